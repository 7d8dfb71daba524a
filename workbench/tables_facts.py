"""Our rows of the tables that state facts: Tables 1, 4, 10, 11, 12, Fig. 4, the sentences, and the talk.

What only the authors of other codecs can know is quoted in the paper and "not run" here.
"""

import numpy as np

from taae.rates import real_time_factor
from workbench import codec_facts, published, tables_ablations, text_facts
from workbench.ablations import Results
from workbench.published import Number
from workbench.verdicts import Cell, Outcome, close, exact, not_run, outcome, trend

QUOTED = "quoted by the paper from the codec's authors; nothing to compute"
_APPROXIMATELY = 0.01  # "approximately 950M"
_OTHER_COUNT = 0.07  # published counts of other codecs, which leave out what training alone needs


def table01() -> Outcome:
    """The quantiser's positions, from Eq. 1."""
    import torch

    from taae.fsq import quantize

    cells = []
    for number in published.table("table01").cells:
        levels = int(number.row.removeprefix("l"))
        latents = torch.atanh(torch.linspace(-0.999, 0.999, 4001, dtype=torch.float64))[None, :, None]
        positions = quantize(latents, levels).unique()
        place = int(number.column.removeprefix("position "))
        cells.append(exact(number, float(positions[place]), f"Eq. 1 with {levels} levels"))
    return outcome("table01", cells)


def table04(toys: Results | None = None) -> Outcome:
    """Model sizes: the paper's counted, the quality of three toy sizes."""
    counts = [number for number in published.table("table04").cells if number.column == "Param. count"]
    cells = [_about(number, codec_facts.parameters(number.row)) for number in counts]
    cells += tables_ablations.toy_cells("table04", tables_ablations.SIZES, toys)
    return outcome("table04", cells, notes=tables_ablations.toy_notes(tables_ablations.SIZES, toys))


def table10(
    checkpoint: str = "mini", *, device: str = "cpu", num_clips: int = 3, lengths_s: tuple[int, ...] = (5, 30, 60)
) -> Outcome:
    """Real-time factors on this machine. A preset without weights will do: time does not depend on them.

    Args:
        checkpoint: What is timed as TAAE.
        device: "cpu" or "cuda".
        num_clips: Of each length; the paper takes 1000.
        lengths_s: Of the table's 5, 30 and 60 s, those that are timed.
    """
    import torch

    import taae
    from taae.model import num_parameters

    codec = taae.load(checkpoint, device=device)
    is_paper = "H100" in _device_name(device) and num_parameters(codec.model) > 900e6
    wavs = _speech(codec.sample_rate_hz, max(lengths_s))
    wait = torch.cuda.synchronize if device == "cuda" else None
    ours = {}
    for length_s in lengths_s:
        clips = [torch.from_numpy(wavs[: length_s * codec.sample_rate_hz])[None, None]] * num_clips
        timed = real_time_factor(
            lambda wav: codec.decode(codec.encode(wav)), clips, codec.sample_rate_hz, synchronize=wait
        )
        ours[f"RTF ({length_s}s)"] = timed.fastest
    size = f"{num_parameters(codec.model) / 1e6:.1f}M parameters"
    reason = f"{codec.name} ({size}) on {_device_name(device)}, fastest of {num_clips}"
    cells = []
    for number in published.table("table10").cells:
        if number.column == "Parameters (M)":
            cells.append(_parameters_of(number))
        elif number.row != "TAAE":
            cells.append(not_run(number, f"needs an H100 and the weights of {number.row}"))
        elif number.column not in ours:
            cells.append(not_run(number, f"needs clips of {number.column[5:-2]} s, which this run left out"))
        elif is_paper:
            assert number.value is not None
            cells.append(close(number, ours[number.column], 0.5 * number.value, reason))
        else:
            row = published.table("table10")
            others = [(value, ours[c]) for c in ours if c != number.column and (value := row.cell("TAAE", c).value)]
            cells.append(trend(number, ours[number.column], others, reason))
    notes = ["The factors say whether longer clips are cheaper by the second, as in the paper; a CPU is no H100."]
    return outcome("table10", cells, notes=[] if is_paper else notes, setup={"device": _device_name(device)})


def table11() -> Outcome:
    """Receptive fields and latency: TAAE from its presets, the others from the configuration of their classes."""
    facts = {
        "TAAE (Non-Causal)": codec_facts.taae_fields("paper-950m"),
        "TAAE (Causal)": codec_facts.taae_fields("paper-causal"),
    }
    facts |= {name: make() for name, make in codec_facts.PEER_FIELDS.items()}
    cells = []
    for number in published.table("table11").cells:
        ours, reason = facts.get(number.row, {}).get(number.column, (None, ""))
        if ours is None:
            cells.append(not_run(number, reason or QUOTED))
        elif "~" in number.printed and not isinstance(ours, str):
            assert number.value is not None
            cells.append(close(number, ours, 0.05 * number.value, reason))
        elif number.row == "DAC" and not isinstance(ours, str):
            assert number.value is not None
            cells.append(close(number, ours, 0.07 * number.value, reason))
        else:
            cells.append(exact(number, ours, reason))
    notes = [
        "Total receptive field of TAAE: all 56 layers together see 246 s (123 s when causal). The paper's ~200 s and "
        "~100 s are those of the 40 layers at 25 Hz alone: 40 x 5.12 s = 204.8 s, 40 x 2.56 s = 102.4 s."
    ]
    return outcome("table11", cells, notes=notes)


def table12() -> Outcome:
    """Characteristics of the baselines; what a class can tell is checked, training data are quoted."""
    cells = []
    for number in published.table("table12").cells:
        if number.column == "#Params (M)":
            cells.append(_parameters_of(number))
        elif number.column == "Causal" and number.row in ("DAC", "Mimi"):
            ours, reason = codec_facts.PEER_FIELDS[number.row]()["Causal"]
            cells.append(exact(number, ours, reason) if ours is not None else not_run(number, reason))
        else:
            cells.append(not_run(number, QUOTED))
    return outcome("table12", cells)


def fig04(demographics: dict[str, dict[str, int]] | None = None) -> Outcome:
    """Demographics, from a study with real listeners; None where there is none."""
    missing = "needs a listening test with real listeners; simulated answers are no people"
    cells = []
    for number in published.table("fig04").cells:
        counts = next((c for q, c in (demographics or {}).items() if q.casefold() == number.row.casefold()), {})
        given = sum(count for answer, count in counts.items() if answer != "no answer")
        found = next((count for answer, count in counts.items() if answer.casefold() == number.column.casefold()), None)
        if not given or found is None:
            cells.append(not_run(number, missing))
        else:
            cells.append(close(number, 100 * found / given, 10.0, f"{given} of our listeners"))
    shares = [number.value for number in published.table("fig04").cells if number.value is not None]
    fits = [n for n in range(10, 31) if all(abs(100 * round(s * n / 100) / n - s) < 0.06 for s in shares)]
    notes = [
        f"The printed shares are whole numbers of people only for {', '.join(map(str, fits))} of up to 30 answers."
    ]
    return outcome("fig04", cells, notes=notes)


def text() -> Outcome:
    """Numbers in the sentences of the paper, from presets and functions."""
    facts = text_facts.text_facts()
    cells = []
    for number in published.table("text").cells:
        value, reason = facts.get(number.column, (None, ""))
        if value is None:
            cells.append(not_run(number, "a fact about the authors' own run; nothing here to compute or to count"))
        elif number.column == "Parameters":
            cells.append(_about(number, value))
        elif number.unit == "h":
            assert number.value is not None
            cells.append(close(number, value, 0.05 * number.value, reason))
        else:
            cells.append(exact(number, value, reason))
    return outcome("text", cells)


def talk(name: str, of_paper: Outcome | None) -> Outcome:
    """A table of the talk repeats one of the paper: its verdicts are taken from there, cell by cell.

    Args:
        name: "talk.objective" and such.
        of_paper: The outcome of the table in the paper; None if it did not run.
    """
    cells = []
    found = {(cell.row, cell.column): cell for cell in (of_paper.cells if of_paper else ())}
    for number in published.table(name).cells:
        same = found.get((number.row, number.column))
        if same is None:
            cells.append(not_run(number, "a word of the talk, or its table of the paper was not run here"))
            continue
        values = {key: getattr(same, key) for key in ("ours", "verdict", "reason")}
        cells.append(Cell(id=number.id, row=number.row, column=number.column, printed=number.printed, **values))
    return outcome(name, cells)


# Table of the talk -> table of the paper that it repeats.
TALK = {
    "talk.levels": "table01",
    "talk.objective": "table02",
    "talk.perceptual": "table03",
    "talk.scaling": "table04",
    "talk.mls": "table07",
    "talk.text": None,
}


def _about(number: Number, ours: float) -> Cell:
    assert number.value is not None
    return close(number, ours, _APPROXIMATELY * number.value, "counted on the preset without weights")


def _parameters_of(number: Number) -> Cell:
    ours = codec_facts.parameters("950m") if number.row == "TAAE" else codec_facts.peer_parameters(number.row)
    if ours is None:
        return not_run(number, "needs the codec's own package; no class of transformers")
    if number.row == "TAAE":
        return _about(number, ours)
    assert number.value is not None
    return close(number, ours, _OTHER_COUNT * number.value, "counted on the class of transformers, without weights")


def _speech(sample_rate_hz: int, seconds: int) -> np.ndarray:
    """The examples of the repository, repeated."""
    from workbench.bias import SAMPLE_RATE_HZ, speech_clips

    assert sample_rate_hz == SAMPLE_RATE_HZ
    wav = np.concatenate(speech_clips()).astype(np.float32)
    return np.resize(wav, seconds * sample_rate_hz)


def _device_name(device: str) -> str:
    import os
    import platform

    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU {platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads"
