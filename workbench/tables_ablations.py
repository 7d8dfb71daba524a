"""Rows of Tables 3 to 6 that need trainings, from the toy models of `ablations`; every cell says that they are toys."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from taae.config import load_preset
from workbench import ablations, codec_facts, published
from workbench.ablations import Results
from workbench.published import Number
from workbench.verdicts import ABLATIONS, Cell, not_run, trend

# Row of the published table -> variant and bottleneck. The middle size of Table 4 is the base.
SIZES = {"240M": ("size-small", "2x5^6"), "540M": ("base", "2x5^6"), "950M": ("size-large", "2x5^6")}
PERCEPTUAL = {"TAAE": ("perceptual", "2x5^6"), "w.o. perceptual loss": ("continued", "2x5^6")}
RATES = {
    "12.5 Hz 4x8": ("rate-12", "1x4^8"),
    "12.5 Hz 5x8": ("rate-12", "2x3^8"),
    "12.5 Hz 9x8": ("rate-12", "3x3^8"),
    "12.5 Hz 17x8": ("rate-12", "4x3^8"),
    "25 Hz 6x6": ("base", "1x6^6"),
    "25 Hz 17x6": ("base", "2x5^6"),
}
CAUSAL = {"TAAE (causal)": ("causal", "2x5^6"), "TAAE (non-causal)": ("base", "2x5^6")}

TITLES = {
    "stoi": "STOI",
    "estoi": "ESTOI",
    "pesq_raw_nb": "PESQ",
    "mel_distance": "Mel",
    "stft_distance": "STFT",
    "si_sdr": "SI-SDR",
}

_NO_PHASE_DB = -20.0
NOT_TRAINED = "not trained yet"

Rows = Mapping[str, tuple[str, str]]


def toy_cells(table: str, rows: Rows, results: Results | None = None) -> list[Cell]:
    """Measured cells of these rows: does the order of the toys' means agree with the paper's, metric by metric?

    Args:
        table: Name of the published table.
        rows: One of the above.
        results: By default the stored ones; where there are none, the cells say how to get them.
    """
    results = results or _stored()
    cells = []
    for number in published.table(table).cells:
        if number.row in rows and (number.metric in ablations.METRICS or number.metric == "mosnet"):
            cells.append(_cell(number, rows, results))
    return cells


def toy_notes(rows: Rows, results: Results | None = None) -> list[str]:
    """What a reader must know to read these rows."""
    results = results or _stored()
    names = [name for name in dict.fromkeys(name for name, _ in rows.values()) if results and results.of(name)]
    if results is None or not names:
        return []
    parts = [f"{ablations.variants()[name].label} {results.of(name)[0].num_parameters / 1e6:.1f}M" for name in names]
    setup = results.setup
    seconds = setup["crops_per_step"] * setup["segment_s"]
    notes = [
        f"Toy models, not the paper's: {', '.join(parts)} parameters, {setup['num_steps']} steps of {seconds:.0f} s of "
        f"speech on a CPU, {len(setup['clips'])} clips. Their numbers say only whether the paper's order holds, and "
        "only where rows differ by more than seeds do."
    ]
    return notes + [
        f"{v.label[0].upper()}{v.label[1:]}: {v.about}." for name in names if (v := ablations.variants()[name]).about
    ]


def _cell(number: Number, rows: Rows, results: Results | None) -> Cell:
    metric, (variant, mode) = str(number.metric), rows[number.row]
    if metric not in ablations.METRICS:
        return not_run(number, f"{metric} is not measured on toy models, whose speech it was not made for")
    mine = list(results.values(variant, mode, metric).values()) if results else []
    if results is None or not mine:
        return not_run(number, f"{ABLATIONS}: python -m workbench ablate {variant}")
    if useless := _useless(metric, ablations.spread(mine)["mean"], results):
        return not_run(number, useless)
    others = []
    for row, (name, its_mode) in rows.items():
        printed = published.table(number.table).cell(row, number.column).value
        values = results.values(name, its_mode, metric).values()
        if row != number.row and printed is not None and values:
            others.append((printed, ablations.spread(values)["mean"]))
    about = ablations.spread(mine)
    size = results.of(variant)[0].num_parameters / 1e6
    reason = f"toy model ({size:.1f}M parameters, {results.of(variant)[0].num_steps} steps): {_seeds(about)}"
    if not others:
        return not_run(number, f"{ABLATIONS}: no other row of this table is trained")
    closest = min(abs(value - about["mean"]) for _, value in others)
    if closest <= about["sd"]:
        reason += f"; the nearest row is {closest:.2g} away, within the spread of seeds"
    return trend(number, about["mean"], others, reason)


def _useless(metric: str, mean: float, results: Results) -> str:
    """Why a metric cannot order models as poor as these; "" if it can."""
    if metric == "si_sdr" and mean < _NO_PHASE_DB:
        return f"SI-SDR of toy models is {mean:.0f} dB: their losses leave phase free, so its order would say nothing"
    of_noise = ablations.spread(results.values("untrained", "2x5^6", metric).values())["mean"]
    if metric == "pesq_raw_nb" and mean <= of_noise:
        return f"PESQ gives this toy model {mean:.2f} and an untrained one {of_noise:.2f}: it cannot order such speech"
    return ""


def _seeds(about: Mapping[str, float]) -> str:
    count = int(about["num_seeds"])
    return f"mean of {count} seeds, standard deviation {about['sd']:.2g}" if count > 1 else "one seed"


def _stored() -> Results | None:
    return ablations.load() if ablations.RESULTS.is_file() else None


def table_rows(names: Sequence[str], results: Results) -> list[dict[str, str]]:
    """Variants with their numbers, mean and standard deviation over seeds, for a table on screen."""
    lines = []
    for name in names:
        runs = results.of(name)
        for mode in runs[0].scores if runs else ("–",):
            line = {"toy model": ablations.variants()[name].label, "bottleneck": mode}
            line["seeds"] = str(len(runs)) if runs else NOT_TRAINED
            line["parameters"] = f"{runs[0].num_parameters / 1e6:.2f}M" if runs else "–"
            for metric, title in TITLES.items():
                about = ablations.spread(results.values(name, mode, metric).values())
                text = f"{about['mean']:.3f}" if runs else "–"
                line[title] = f"{text} ± {about['sd']:.3f}" if len(runs) > 1 else text
            lines.append(line)
    return lines


def difference_rows(names: Sequence[str], results: Results, baseline: str = "base") -> list[dict[str, str]]:
    """What each variant changes against `baseline` at its highest rate: mean over paired seeds, 95 % interval (t).

    An interval that holds 0 shows nothing; with one seed there is none.
    """
    lines = []
    for name in names:
        runs, others = results.of(name), results.of(baseline)
        if name == baseline:
            continue
        line = {"toy model": ablations.variants()[name].label, "against": ablations.variants()[baseline].label}
        if not runs or not others:
            lines.append(line | dict.fromkeys(TITLES.values(), NOT_TRAINED))
            continue
        modes = (list(runs[0].scores)[-1], list(others[0].scores)[-1])
        for metric, title in TITLES.items():
            found = ablations.difference(results, name, baseline, modes, metric)
            half = f"± {found['half_width']:.3f}" if math.isfinite(found["half_width"]) else "(one seed)"
            line[title] = f"{found['mean']:+.3f} {half}"
        lines.append(line)
    return lines


def quantiser_rows(names: Sequence[str], results: Results) -> list[dict[str, str]]:
    """How well each variant uses its bits: entropies of the symbols of a frame, summed, of what they could be."""
    lines = []
    for name in names:
        runs = results.of(name)
        for mode in runs[0].bits if runs else ():  # what is not trained, the tables before this one say
            uses = {key: ablations.spread(results.values(name, mode, key).values()) for key in runs[0].bits[mode]}
            lines.append(
                {
                    "toy model": ablations.variants()[name].label,
                    "bottleneck": mode,
                    "bits of a frame": f"{uses['bits']['mean']:.2f} of {uses['capacity']['mean']:.2f}",
                    "share": f"{uses['bits_share']['mean']:.3f} ± {uses['bits_share']['sd']:.3f}",
                    "symbols that occur": f"{uses['used_share']['mean']:.1%}",
                    "frames counted": f"{uses['num_frames']['mean']:.0f}",
                }
            )
    return lines


def window_rows(names: Sequence[str], results: Results) -> list[dict[str, str]]:
    """What a window costs: time and reach of the toys, and the reach of the paper's 950M model with that window."""
    paper = load_preset("paper-950m")
    lines = []
    for name in names:
        window = tuple(ablations.recipe(name, 0, ablations.default_steps()).model["window"])
        keys, runs = sum(window) + 1, results.of(name)
        big = replace(paper, window=window)
        line = {"toy model": ablations.variants()[name].label, "keys": str(keys)}
        for key, title in (("cpu_s_per_s", "processor s per s"), ("lookahead_s", "look-ahead, s")):
            about = ablations.spread(run.latency[key] for run in runs)
            spread = f" ± {about['sd']:.4f}" if len(runs) > 1 and about["sd"] else ""
            line[title] = f"{about['mean']:.4f}{spread}" if runs else "–"
        line["a layer of the paper's at 25 Hz sees, s"] = f"{keys / paper.frame_rate_hz:.2f}"
        line["all its layers, s"] = f"{codec_facts.total_receptive_field_s(big):.1f}"
        lines.append(line)
    return lines


def published_rows(table: str, names: Sequence[str]) -> list[dict[str, str]]:
    """Printed rows of the paper, marked as such."""
    of = published.table(table)
    return [{"paper": row} | {cell.column: cell.printed for cell in of.cells if cell.row == row} for row in names]
