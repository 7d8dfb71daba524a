/* Results of one study: plots, tests, and who was left out. */

function pText(p) {
  if (p === null || p === undefined) return "–";
  return p < 0.001 ? "< 0.001" : p.toFixed(3);
}

/** What cannot be computed, as with one listener, comes as null. */
function digits(value, count) {
  return typeof value === "number" ? value.toFixed(count) : "–";
}

function table(headings, rows) {
  const head = make("tr");
  headings.forEach((heading) => head.append(make("th", "", heading)));
  const body = rows.map((cells) => {
    const row = make("tr");
    cells.forEach((cell) => row.append(block("td", "", cell instanceof Node ? cell : String(cell ?? "–"))));
    return row;
  });
  return block("div", "wide", block("table", "", block("thead", "", head), block("tbody", "", ...body)));
}

function resultsView(results, study) {
  const view = make("div", "results");
  const n = `${results.num_kept} listeners counted, ${results.num_finished} of ${results.num_listeners} finished`;
  const heading = block("p", "quiet", `${results.method_label}. ${n}.`);
  if (results.is_simulated) heading.prepend(make("span", "badge", "SIMULATED"), " ");
  view.append(heading);
  const left = Object.entries(results.excluded);
  if (results.num_answers) {
    view.append(...{ mushra: mushraResults, acr: acrResults, abx: abxResults, ab: abResults }[results.method](results, study));
  } else {
    const reason = left.length ? "Everybody who answered is left out." : "There are no answers yet: a page counts as soon as it is submitted.";
    view.append(make("p", "quiet", reason));
  }
  if (results.groups?.question) view.append(...groupParts(results, study));
  if (results.agreement) view.append(...reliabilityParts(results));
  if (results.is_simulated) view.querySelectorAll("svg.plot").forEach((plot) => Plots.mark(plot, "SIMULATED"));
  if (results.flags.length) view.append(make("h3", "", "Worth knowing"), listOfSentences(results.flags));
  if (results.departures.length) view.append(make("h3", "", "Departs from BS.1534-3"), listOfSentences(results.departures));
  view.append(make("h3", "", "Left out"));
  view.append(left.length ? table(["Listener", "Reason"], left) : make("p", "quiet", "Nobody."));
  const flagged = Object.entries(results.flagged);
  if (flagged.length) {
    view.append(make("h3", "", "Flagged, and still counted"), table(["Listener", "Reason"], flagged));
    view.append(make("p", "quiet", "Leave somebody out above, with a cause that is recorded; or set excludes_inattentive in the next study."));
  }
  const people = Object.entries(results.demographics);
  if (people.length) {
    view.append(make("h3", "", "Listeners"));
    for (const [question, counts] of people) {
      const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
      const texts = Object.entries(counts).map(([answer, count]) => `${answer} ${count}`);
      view.append(block("p", "", make("strong", "", `${question} `), `${texts.join(", ")} (n = ${total})`));
    }
  }
  return view;
}

/** The same once more for every kind of equipment, side by side: one kind a test, says BS.1534-3. */
function groupParts({ groups: { question, groups }, is_simulated: isSimulated }) {
  const key = (row) => row.system ?? `${row.a} / ${row.b}`;
  const found = groups.map((group) => new Map((group.systems ?? group.pairs).map((row) => [key(row), row])));
  const names = [...new Set(found.flatMap((rows) => [...rows.keys()]))];
  const rows = names.map((name) => [name, ...found.map((group) => (group.has(name) ? shortResult(group.get(name)) : "–"))]);
  const headings = groups.map(({ answer, num_listeners: n }) => `${answer} (n = ${n})`);
  const what = groups.some(({ systems }) => systems) ? "Median; mean and its 95 % interval." : "Answers and p.";
  return [
    make("h3", "", `By equipment${isSimulated ? " of SIMULATED listeners" : ""}`),
    make("p", "quiet", `${question} ${what} Nobody was drawn into a group, so differences between groups may have other causes.`),
    block("div", "group", table(["", ...headings], rows)),
  ];
}

function shortResult(row) {
  if (row.system) return `${digits(row.median, 1)}; ${digits(row.mean, 1)} (${digits(row.low, 1)} to ${digits(row.high, 1)})`;
  if ("num_correct" in row) return `${row.num_correct} of ${row.num_trials} right, p ${pText(row.p)}`;
  return row.error ? `all ${row.num_none} without preference` : `${row.num_a} : ${row.num_b}, p ${pText(row.p)}`;
}

function reliabilityParts({ agreement, repeats = [] }) {
  const again = new Map(repeats.map((row) => [row.listener, row]));
  const headings = ["Listener", "Agreement with the others"];
  if (repeats.length) headings.push("Repeats: mean difference", "largest");
  const rows = Object.entries(agreement).map(([listener, value]) => {
    const row = again.get(listener);
    return [listener, digits(value, 2), ...(repeats.length ? [digits(row?.mean_difference, 1), digits(row?.largest_difference, 0)] : [])];
  });
  const note = "Agreement: Spearman's correlation with the mean of the other listeners. Repeats: points between the first and the second rating.";
  return [block("details", "", make("summary", "", "Reliability of each listener"), make("p", "quiet", note), table(headings, rows))];
}

function listOfSentences(sentences) {
  return block("ul", "sentences", ...sentences.map((sentence) => make("li", "", sentence)));
}

function systemTable(systems) {
  const rows = systems.map((entry) => [
    entry.system,
    entry.num_listeners,
    entry.num_ratings,
    entry.median,
    `${entry.q1} to ${entry.q3}`,
    digits(entry.mean, 2),
    `${digits(entry.low, 2)} to ${digits(entry.high, 2)}`,
  ]);
  return table(["System", "Listeners", "Ratings", "Median", "Quartiles", "Mean", "95 % interval"], rows);
}

function pairTable(pairs) {
  const rows = pairs.map((pair) => [
    `${pair.a} – ${pair.b}`,
    pair.num_listeners,
    digits(pair.difference, 2),
    pText(pair.permutation_holm),
    pText(pair.wilcoxon_holm),
    digits(pair.effect, 2),
  ]);
  return table(["Pair", "n", "Difference", "p (permutation)", "p (Wilcoxon)", "Effect"], rows);
}

function pairDetails(pairs) {
  const note = "Over listeners' means; p after Holm's correction. Effect: matched rank-biserial correlation.";
  return block("details", "", make("summary", "", `All ${pairs.length} pairs`), make("p", "quiet", note), pairTable(pairs));
}

function mushraResults(results, study) {
  const scale = { low: 0, high: 100, ticks: [0, 20, 40, 60, 80, 100], bands: study.scale, title: "Scores by system" };
  const parts = [
    Plots.boxes(results.systems, scale),
    make("p", "quiet", "Box: median and hinges, whiskers to 1.5 IQR. Diamond: mean with its 95 % bootstrap interval over listeners."),
    systemTable(results.systems),
  ];
  const sentences = [];
  const { friedman, anova, mixed } = results;
  if (friedman.error) sentences.push(`Friedman: ${friedman.error}.`);
  else sentences.push(`Friedman: χ²(${friedman.df}) = ${digits(friedman.statistic, 1)}, p ${pText(friedman.p)}, Kendall's W = ${digits(friedman.kendalls_w, 2)}.`);
  if (anova.error) sentences.push(`Repeated-measures ANOVA: ${anova.error}.`);
  else sentences.push(`Repeated-measures ANOVA (Huynh-Feldt ε = ${digits(anova.epsilon, 2)}): F = ${digits(anova.f, 1)}, p ${pText(anova.p_corrected)}.`);
  if (mixed.error) sentences.push(`Mixed model: ${mixed.error}.`);
  else sentences.push(`Mixed model, standard deviations: listener ${digits(mixed.sd_listener, 1)}, item ${digits(mixed.sd_item, 1)}, residual ${digits(mixed.sd_residual, 1)}.`);
  parts.push(make("h3", "", "Tests"), listOfSentences(sentences));
  if (!mixed.error) {
    const rows = Object.entries(mixed.effects).map(([system, effect]) => [
      system,
      digits(effect.difference, 1),
      `${digits(effect.low, 1)} to ${digits(effect.high, 1)}`,
      pText(effect.p),
    ]);
    parts.push(table([`Against ${mixed.baseline}`, "Difference", "95 % interval", "p"], rows));
  }
  parts.push(pairDetails(results.pairs));
  return parts;
}

function acrResults(results, study) {
  const scale = { low: 1, high: 5, ticks: [1, 2, 3, 4, 5], title: "Opinion scores by system" };
  return [
    Plots.boxes(results.systems, scale),
    make("p", "quiet", `5 is ${study.scale[0]}, 1 is ${study.scale[4]}. Diamond: mean opinion score with its 95 % interval.`),
    systemTable(results.systems),
    pairDetails(results.pairs),
  ];
}

function abxResults(results) {
  const rows = results.pairs.map((pair) => ({
    name: `${pair.a} / ${pair.b}`,
    share: pair.proportion,
    low: pair.low,
    high: pair.high,
    note: `${pair.num_correct} of ${pair.num_trials}, p ${pText(pair.p)}`,
  }));
  return [
    Plots.shares(rows, { title: "Share of right answers" }),
    make("p", "quiet", "Right answers with exact 95 % intervals; half would be guessing. p: one-sided binomial test."),
  ];
}

function abResults(results) {
  const rows = results.pairs.map((pair) => ({
    name: `${pair.a} over ${pair.b}`,
    share: pair.share_a ?? 0.5,
    low: pair.low ?? 0,
    high: pair.high ?? 1,
    note: pair.error ? `all ${pair.num_none} without` : `${pair.num_a} : ${pair.num_b}, p ${pText(pair.p)}`,
  }));
  return [
    Plots.shares(rows, { title: "Preference" }),
    make("p", "quiet", "Share of those with a preference who prefer the first, with exact 95 % intervals. p: two-sided sign test."),
  ];
}
