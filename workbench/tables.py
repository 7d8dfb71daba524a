"""Our rows of the measured tables (2, 3, 5 to 8), each published cell with a verdict.

Every function takes a `Bench` and gives an `Outcome`. A model smaller than the paper's is compared by the order of its
rows. What has no weights here is "not run", with the command that gets them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from taae.config import BottleneckSpec
from workbench import published, rows, tables_ablations
from workbench.ablations import Results
from workbench.measured import LABELS, METRICS, Bench
from workbench.verdicts import Cell, Outcome, exact, not_run

# Codecs that run on any machine with the Debian packages: from the lowest rate to what telephones use.
LIVE_PEERS = ("Codec2 450", "Codec2 700C", "Codec2 1300", "Codec2 3200", "Speex wb0", "AMR-NB 4.75", "Opus 6k")

_LANGUAGES = {
    "Italian": "it",
    "Polish": "pl",
    "Dutch": "nl",
    "French": "fr",
    "Portuguese": "pt",
    "German": "de",
    "Spanish": "es",
}


def table02(bench: Bench) -> Outcome:
    """Objective metrics on clean speech, with classical codecs beside."""
    cells = list(rows.quality("table02", bench, lambda row: rows.BOTTLENECKS.get(row.removeprefix("TAAE "))))
    return rows.finished("table02", cells, bench, beside=bench.beside(LIVE_PEERS))


def table03(bench: Bench, toys: Results | None = None) -> Outcome:
    """With and without perceptual loss: toy models, or the model under test where it is the paper's."""
    cells, notes = _trained("table03", tables_ablations.PERCEPTUAL, {"TAAE": "2x5^6"}, bench, toys)
    return rows.finished("table03", cells, bench, notes)


def table05(bench: Bench, toys: Results | None = None) -> Outcome:
    """Latent rates: rates from Eq. 5, quality of toy models, or at 25 Hz of the paper's where it is under test."""
    specs = {
        "12.5 Hz 4x8": ("1x4^8", 12.5),
        "12.5 Hz 5x8": ("2x3^8", 12.5),
        "12.5 Hz 9x8": ("3x3^8", 12.5),
        "12.5 Hz 17x8": ("4x3^8", 12.5),
        "25 Hz 6x6": ("1x6^6", 25.0),
        "25 Hz 17x6": ("2x5^6", 25.0),
    }
    cells = []
    for number in published.table("table05").cells:
        spec, rate = BottleneckSpec.parse(specs[number.row][0]), specs[number.row][1]
        if number.metric in rows.RATES:
            cells.append(rows.rate(number, spec, rate))
        elif number.column in ("Latent (Hz)", "FSQ L", "FSQ d"):
            ours = {"Latent (Hz)": rate, "FSQ L": spec.grid_levels, "FSQ d": spec.dim}[number.column]
            cells.append(exact(number, ours, f"of the bottleneck {spec}"))
    ours = {row: spec for row, (spec, rate) in specs.items() if rate == 25.0}
    trained, notes = _trained("table05", tables_ablations.RATES, ours, bench, toys)
    return rows.finished("table05", cells + trained, bench, notes)


def table06(bench: Bench, toys: Results | None = None) -> Outcome:
    """Causal against non-causal: toy models, or the paper's non-causal one; beside them what is embedded, and Mimi."""
    table = published.table("table06")
    spec = BottleneckSpec.parse("2x5^6")
    cells = [rows.rate(n, spec, 25.0) for n in table.cells if n.metric in rows.RATES and n.row.startswith("TAAE")]
    cells += rows.peer_row([n for n in table.cells if n.row == "Mimi"], "Mimi 1100", bench)
    trained, notes = _trained("table06", tables_ablations.CAUSAL, {"TAAE (non-causal)": "2x5^6"}, bench, toys)
    beside = [_embedded(bench)]
    if bench.checkpoint == "mini":  # its causal sibling was fine-tuned from it, as in A.4
        beside.append(_embedded(replace(bench, checkpoint="mini-causal")))
    return rows.finished("table06", cells + trained, bench, notes, beside=beside)


def table07(bench: Bench) -> Outcome:
    """Seven languages. For a small model: does a language lose no more against English than in the paper?"""
    cells: list[Cell] = []
    english = published.table("table02").values("TAAE 700")
    spec = BottleneckSpec.parse("2x5^6")
    ours_english = bench.ours([str(spec)])[str(spec)]
    for row in published.table("table07").rows:
        word, name = row.split(" ", 1)
        numbers = [number for number in published.table("table07").cells if number.row == row]
        language = _LANGUAGES[word]
        if name != "TAAE":
            printed = next(number.printed for number in numbers if number.metric == "bits_per_second")
            cells += rows.peer_row(numbers, f"{name} {printed}", bench, language)
            continue
        cells += [rows.rate(number, spec, 25.0) for number in numbers if number.metric in rows.RATES]
        measured = [number for number in numbers if number.metric in METRICS]
        if not bench.clips(language):
            missing = f"needs clips in {word}: {bench.manifest or 'the examples'} has none"
            cells += [not_run(number, missing) for number in measured]
            continue
        means = bench.ours([str(spec)], language)[str(spec)]
        for number in measured:
            cells.append(rows.against_english(number, means, ours_english, english, bench, language))
    return rows.finished("table07", cells, bench)


def table08(bench: Bench) -> Outcome:
    """HuBERT units with a unit vocoder, and TAAE."""
    cells = list(rows.quality("table08", bench, lambda row: rows.BOTTLENECKS.get(row.removeprefix("TAAE "))))
    return rows.finished("table08", cells, bench)


def _trained(
    name: str, toy_rows: tables_ablations.Rows, ours: dict[str, str], bench: Bench, toys: Results | None
) -> tuple[list[Cell], list[str]]:
    """Metrics of rows that need several trainings, and notes on them.

    Toy models stand beside toy models only: where the model under test is the paper's, its rows are measured and the
    others wait for the authors' other models.
    """
    if not bench.is_papers_model:
        return tables_ablations.toy_cells(name, toy_rows, toys), tables_ablations.toy_notes(toy_rows, toys)
    missing = "needs the paper's other model, whose weights are not published; toy models do not compare with this one"
    others = [n for n in published.table(name).cells if n.row in toy_rows and n.row not in ours and n.metric in METRICS]
    return rows.taae_rows(name, ours, bench) + [not_run(number, missing) for number in others], []


def _embedded(bench: Bench) -> dict[str, Any]:
    """The model under test as a row that the paper does not have."""
    means = bench.ours(["2x5^6"])["2x5^6"]
    row = {"codec": f"{bench.codec.name} ({bench.num_parameters / 1e6:.1f}M)", "BPS": "700"}
    return row | {LABELS[metric]: f"{mean:.2f}" for metric, mean in means.items()}


def fig03(bench: Bench, lengths_s: Sequence[float], bottleneck: str = "2x5^6") -> tuple[Outcome, dict[float, Any]]:
    """Quality over the length of what is sent; the paper draws Fig. 3 and prints no number of it."""
    curves = bench.by_length(bottleneck, lengths_s)
    lines = [
        {"seconds": f"{length_s:g}"}
        | {name: f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})" for name, row in metrics.items()}
        | {"pieces": str(metrics["stoi"]["num_clips"])}
        for length_s, metrics in curves.items()
    ]
    notes = [
        f"{bench.describe()} at {bottleneck}: the same speech, joined by speaker, sent in pieces of each length; the "
        "paper takes other utterances for each length."
    ]
    if left_out := [f"{length_s:g}" for length_s in lengths_s if length_s not in curves]:
        notes.append(f"Left out, since no speaker's clips are so long together: {', '.join(left_out)} s.")
    title = "Figure 3: quality over length"
    return Outcome(name="fig03", title=title, beside=lines, notes=notes, setup=bench.setup()), curves
