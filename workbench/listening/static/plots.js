/* Plots of results as SVG, sized by their box: every one states n. */
const Plots = {
  SVG: "http://www.w3.org/2000/svg",

  make(tag, attributes = {}, text = "") {
    const element = document.createElementNS(Plots.SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
    if (text) element.textContent = text;
    return element;
  },

  /**
   * Box plots (hinges, median, whiskers to 1.5 IQR), every score as a point, mean and its interval beside.
   *
   * @param {{system: string, kind: string, scores: number[], median: number, q1: number, q3: number, mean: number, low: number, high: number, num_listeners: number, num_ratings: number}[]} systems
   * @param {{low: number, high: number, ticks: number[], bands: string[], title: string}} scale
   */
  boxes(systems, { low, high, ticks, bands = [], title }) {
    const [left, top, rowHeight, width] = [190, 34, 54, 900];
    const right = width - 96;
    const height = top + rowHeight * systems.length + 36;
    const x = (score) => left + ((score - low) / (high - low)) * (right - left);
    const svg = Plots.make("svg", { viewBox: `0 0 ${width} ${height}`, class: "plot", role: "img", "aria-label": title });
    const bottom = height - 36;
    bands.forEach((label, k) => {
      const [from, to] = [x(high - ((k + 1) * (high - low)) / bands.length), x(high - (k * (high - low)) / bands.length)];
      if (k % 2 === 0) svg.append(Plots.make("rect", { x: from, y: top, width: to - from, height: bottom - top, class: "band" }));
      svg.append(Plots.make("text", { x: (from + to) / 2, y: top - 12, class: "label middle" }, label));
    });
    for (const tick of ticks) {
      svg.append(Plots.make("line", { x1: x(tick), x2: x(tick), y1: top, y2: bottom, class: "grid" }));
      svg.append(Plots.make("text", { x: x(tick), y: bottom + 20, class: "label middle" }, String(tick)));
    }
    systems.forEach((entry, k) => svg.append(Plots._row(entry, x, top + rowHeight * (k + 0.5), { left, right })));
    return svg;
  },

  _row(entry, x, y, { left, right }) {
    const row = Plots.make("g", { class: `row ${entry.kind}` });
    const reach = 1.5 * (entry.q3 - entry.q1);
    const inside = entry.scores.filter((score) => score >= entry.q1 - reach && score <= entry.q3 + reach);
    const [least, most] = [Math.min(...inside), Math.max(...inside)];
    entry.scores.forEach((score, k) => {
      const spread = (((k * 7919) % 17) / 16 - 0.5) * 20; // a fixed scatter, so that equal scores can be told apart
      row.append(Plots.make("circle", { cx: x(score), cy: y + spread, r: 2, class: "point" }));
    });
    row.append(
      Plots.make("line", { x1: x(least), x2: x(entry.q1), y1: y, y2: y, class: "whisker" }),
      Plots.make("line", { x1: x(entry.q3), x2: x(most), y1: y, y2: y, class: "whisker" }),
      Plots.make("rect", { x: x(entry.q1), y: y - 13, width: Math.max(1, x(entry.q3) - x(entry.q1)), height: 26, rx: 4, class: "box" }),
      Plots.make("line", { x1: x(entry.median), x2: x(entry.median), y1: y - 13, y2: y + 13, class: "median" }),
      Plots.make("line", { x1: x(entry.low), x2: x(entry.high), y1: y + 19, y2: y + 19, class: "interval" }),
      Plots.make("path", { d: `M${x(entry.mean)} ${y + 14.5}l4.5 4.5l-4.5 4.5l-4.5-4.5z`, class: "mean" }),
      Plots.make("text", { x: left - 14, y: y + 5, class: "name end" }, Plots.short(entry.system)),
      Plots.make("text", { x: right + 14, y: y + 5, class: "label" }, `n = ${entry.num_listeners}`),
    );
    row.append(Plots.make("title", {}, `${entry.system}: median ${entry.median}, mean ${entry.mean?.toFixed(1)}`));
    return row;
  },

  /**
   * Shares with exact intervals, against a line that means guessing or indifference.
   *
   * @param {{name: string, share: number, low: number, high: number, note: string}[]} rows
   */
  shares(rows, { title, middle = 0.5, from = 0, to = 1 }) {
    const [left, top, rowHeight, width] = [260, 12, 46, 900];
    const right = width - 150;
    const height = top + rowHeight * rows.length + 36;
    const x = (share) => left + ((share - from) / (to - from)) * (right - left);
    const svg = Plots.make("svg", { viewBox: `0 0 ${width} ${height}`, class: "plot", role: "img", "aria-label": title });
    const bottom = height - 36;
    for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
      const kind = tick === middle ? "grid strong" : "grid";
      svg.append(Plots.make("line", { x1: x(tick), x2: x(tick), y1: top, y2: bottom, class: kind }));
      svg.append(Plots.make("text", { x: x(tick), y: bottom + 20, class: "label middle" }, `${100 * tick} %`));
    }
    rows.forEach(({ name, share, low, high, note }, k) => {
      const y = top + rowHeight * (k + 0.5);
      svg.append(
        Plots.make("line", { x1: x(low), x2: x(high), y1: y, y2: y, class: "interval" }),
        Plots.make("circle", { cx: x(share), cy: y, r: 6, class: "mean" }),
        Plots.make("text", { x: left - 14, y: y + 5, class: "name end" }, Plots.short(name, 34)),
        Plots.make("text", { x: right + 14, y: y + 5, class: "label" }, note),
      );
    });
    return svg;
  },

  /** A word across the plot that stays with every copy of it. */
  mark(svg, text) {
    svg.append(Plots.make("text", { x: 8, y: 22, class: "mark" }, text));
  },

  short(text, length = 22) {
    return text.length > length ? `${text.slice(0, length - 1)}…` : text;
  },
};
