/* The comparison as a table: sizes and metrics of every version, files to save. */

const METRICS = [
  // key, name, which way is better, digits, meaning
  ["stoi", "STOI", "↑", 3, "short-time objective intelligibility, at most 1"],
  ["pesq_raw_nb", "PESQ", "↑", 2, "perceived quality: raw narrow-band P.862 score as in the paper, -0.5 to 4.5"],
  ["si_sdr", "SI-SDR, dB", "↑", 1, "scale-invariant signal-to-distortion ratio: how closely the waveform is followed"],
  ["mel_distance", "Mel", "↓", 2, "distance of mel spectrograms"],
  ["stft_distance", "STFT", "↓", 2, "distance of spectrograms"],
];

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

function bottleneckText(version) {
  return version.tokens ? version.bottleneck : "not quantised";
}

function formatNumber(value, digits = 0) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** [heading, meaning] of the columns between the version and the files. */
function tableColumns(report) {
  const columns = [
    ["Tokens", "how many numbers are stored"],
    ["Bits", "of the packed tokens"],
    ["File", "the whole .taae file, with its header of 39 bytes"],
    ["Actual bit/s", "of the whole file; on short recordings the header weighs"],
    ["vs PCM", `size against 16-bit mono PCM at ${report.codec_rate_hz / 1000} kHz`],
  ];
  if (report.has_original) METRICS.forEach(([, name, arrow, , meaning]) => columns.push([`${name} ${arrow}`, meaning]));
  return columns;
}

/** One text for every column; "" where there is nothing to say. `version` is undefined for the original. */
function tableCells(report, version) {
  if (!version) {
    const pcmRate = (8 * report.pcm_bytes) / report.duration_s;
    return ["", "", `${formatNumber(report.pcm_bytes)} B`, formatNumber(pcmRate), "1×", ...METRICS.map(() => "")];
  }
  let cells = ["", "", "", "", ""];
  if (version.num_bytes !== null) {
    cells = [
      formatNumber(version.tokens.length * version.tokens[0].length),
      formatNumber(version.payload_bits),
      `${formatNumber(version.num_bytes)} B`,
      formatNumber(version.bits_per_second),
      `${formatNumber(version.compression_ratio)}×`,
    ];
  }
  if (!report.has_original) return cells;
  const scores = METRICS.map(([key, , , digits]) => [version.scores[key], digits]);
  return [...cells, ...scores.map(([score, digits]) => (score === null ? "n/a" : formatNumber(score, digits)))];
}

/**
 * @param {object} report
 * @param {Object<string, string>} urls  file name -> address
 * @param {(object|undefined)[]} versions  in the order of the rows
 * @returns {{table: HTMLTableElement, rows: HTMLTableRowElement[]}}
 */
function comparisonTable(report, urls, versions) {
  const columns = tableColumns(report);
  const table = make("table");
  table.append(make("caption", "visually-hidden", "Size and measures of every version"));
  const head = make("tr");
  for (const [text, meaning] of [["Version", ""], ...columns, ["Save", ""]]) {
    const cell = make("th", "", text);
    cell.scope = "col";
    cell.title = meaning;
    head.append(cell);
  }
  const rows = versions.map((version) => {
    const row = make("tr");
    const name = make("th", "", version ? version.label : "Original, as PCM");
    name.scope = "row";
    if (version) name.append(make("small", "spec", bottleneckText(version)));
    row.append(name);
    tableCells(report, version).forEach((text, k) => {
      if (!columns[k]) return;
      const cell = make("td", text ? "" : "empty", text || "–");
      cell.dataset.title = columns[k][0]; // shown where the table is a stack of cards
      row.append(cell);
    });
    const save = make("td", "save");
    const files = version ? [version.wav_file, version.taae_file] : [report.original_file];
    for (const file of files.filter(Boolean)) {
      const link = make("a", "", file.endsWith(".taae") ? ".taae" : ".wav");
      link.href = urls[file];
      link.download = file;
      link.setAttribute("aria-label", `Save ${file}`);
      save.append(link);
    }
    row.append(save);
    return row;
  });
  const [thead, tbody] = [make("thead"), make("tbody")];
  thead.append(head);
  tbody.append(...rows);
  table.append(thead, tbody);
  return { table, rows };
}

/** What the columns mean, for those who cannot hover. */
function tableLegend(report) {
  const details = make("details", "legend");
  details.append(make("summary", "", "What the numbers mean"));
  const list = make("dl");
  tableColumns(report).forEach(([text, meaning]) => list.append(make("dt", "", text), make("dd", "", meaning)));
  details.append(list);
  if (report.has_original) details.append(make("p", "", "↑ higher is better, ↓ lower is better. Measured at 16 kHz."));
  return details;
}

/** A sentence for every metric that has no value, with the reason and the versions that it holds for. */
function missingMetrics(report) {
  const places = new Map();
  for (const version of report.versions) {
    for (const [key, name] of METRICS) {
      if (!version.reasons[key]) continue;
      const sentence = `${name.split(",")[0]} is not available: ${version.reasons[key]}`;
      places.set(sentence, [...(places.get(sentence) ?? []), version.label]);
    }
  }
  return [...places].map(([sentence, labels]) => {
    return labels.length === report.versions.length ? `${sentence}.` : `${sentence} (${labels.join(", ")}).`;
  });
}
