"""A published number beside ours, and one honest word about the two.

Verdicts: "exact" (a fact that we compute and that agrees to the printed digits), "reproduced" (measured, within a
tolerance that the reason names), "better", "differs", "trend holds (small model)" (another model than the paper's, and
the same order as in the paper), "not run" (with what is missing). A cell is never empty, and `ours` never comes from
the published numbers.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from workbench import published
from workbench.published import Number

Verdict = Literal["exact", "reproduced", "better", "differs", "trend holds (small model)", "not run"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
TREND: Verdict = "trend holds (small model)"
ABLATIONS = "needs the ablation trainings"

# How far a repetition on other clips of the same corpus may be off. Measured on reconstructions that the authors
# published: Mel within 0.1 (the paper's filters are not known), STFT 0.05, PESQ 0.06, STOI 0.01; the choice of clips
# moves SI-SDR by more than 1 dB. MOSNet: its own spread between clips.
TOLERANCES = {
    "si_sdr": 1.5,
    "mel_distance": 0.1,
    "stft_distance": 0.05,
    "pesq_raw_nb": 0.06,
    "stoi": 0.01,
    "mosnet": 0.1,
    "normalized_entropy": 0.02,
    "huffman_bits_per_second": 15.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One published cell and what became of it.

    Attributes:
        id: As in `published`, "table02/taae-700/pesq".
        row: Of the table.
        column: Of the table.
        printed: What stands in the paper.
        ours: A number or a word that we computed; None only where nothing ran.
        verdict: One of `VERDICTS`.
        reason: How ours came about, or what is missing.
    """

    id: str
    row: str
    column: str
    printed: str
    ours: float | str | None
    verdict: Verdict
    reason: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}; got {self.verdict!r}")
        if (self.ours is None) != (self.verdict == "not run"):
            raise ValueError(f"{self.id}: {self.verdict!r} does not go with {self.ours!r}")
        if self.verdict == "not run" and not self.reason:
            raise ValueError(f"{self.id}: say what is missing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one notebook found.

    Attributes:
        name: Of the published table, "table02", or of a figure.
        title: For people.
        cells: One for each published cell, in the order of print.
        beside: Rows of ours that the paper does not have, such as classical codecs on the same clips.
        notes: What a reader must know to read the numbers.
        setup: What they depend on: model, clips, device.
    """

    name: str
    title: str
    cells: Sequence[Cell] = ()
    beside: Sequence[dict[str, Any]] = ()
    notes: Sequence[str] = ()
    setup: dict[str, Any] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Verdict -> number of cells, those that occur."""
        found = [cell.verdict for cell in self.cells]
        return {verdict: found.count(verdict) for verdict in VERDICTS if verdict in found}

    def rows(self) -> list[dict[str, str]]:
        """For a table on screen."""
        return [
            {
                "row": cell.row,
                "column": cell.column,
                "paper": cell.printed,
                "ours": as_text(cell.ours),
                "verdict": cell.verdict,
                "why": cell.reason,
            }
            for cell in self.cells
        ]

    def save(self, path: str | Path) -> None:
        """Write JSON for `workbench reproduce`; "" is nowhere."""
        if str(path) not in ("", "."):
            Path(path).write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load(path: Path) -> Outcome:
    """Read what `Outcome.save` wrote.

    Raises:
        ValueError: If the file holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Outcome(**values | {"cells": [Cell(**cell) for cell in values["cells"]]})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the outcome of a notebook: {error!r}") from None


def outcome(name: str, cells: Iterable[Cell], **about: Any) -> Outcome:
    """The outcome for a published table, in the order of print.

    Raises:
        RuntimeError: If a published cell is missing, comes twice or is not of this table.
    """
    table = published.table(name)
    cells = list(cells)
    found = {cell.id: cell for cell in cells}
    wanted = [number.id for number in table.cells]
    if len(found) != len(cells) or set(found) != set(wanted):
        wrong = sorted(set(wanted) ^ set(found)) or sorted(c.id for c in cells if [d.id for d in cells].count(c.id) > 1)
        raise RuntimeError(f"{table.title} needs every published cell once; look at {', '.join(wrong[:5])}")
    title = f"{table.title}: {table.caption}"
    return Outcome(name=name, title=title, cells=[found[number_id] for number_id in wanted], **about)


def exact(number: Number, ours: float | str, reason: str) -> Cell:
    """A computed fact: "exact" if it agrees to the printed digits or word for word, else "differs"."""
    return _cell(number, ours, "exact" if agrees(number, ours) else "differs", reason)


def close(number: Number, ours: float, tolerance: float, reason: str) -> Cell:
    """A measurement of the very system of the paper: reproduced within `tolerance`, better, or different."""
    if number.value is None:
        return _cell(number, ours, "differs", f"{reason}; the paper gives no number")
    gain = ours - number.value if number.better != "lower" else number.value - ours
    verdict: Verdict = "differs"
    if abs(gain) <= tolerance + 1e-9:
        verdict = "reproduced"
    elif number.better is not None and gain > 0:
        verdict = "better"
    return _cell(number, ours, verdict, f"{reason}; tolerance {tolerance:.2g}")


def trend(number: Number, ours: float, others: Sequence[tuple[float, float]], reason: str, slack: float = 0.0) -> Cell:
    """A measurement of another system: does it stand to its `others` as in the paper?

    Args:
        number: The published cell.
        ours: What another model gives in its place.
        others: (published, ours) of the cells to compare with; equal published numbers say nothing.
        reason: Which model and which clips.
        slack: By so much an order may be missed.
    """
    if number.value is None or not others:
        return claim(number, ours, f"{reason}; the paper has nothing to compare this with", holds=False)
    kept = [(paper, mine) for paper, mine in others if paper != number.value]
    if not kept:
        return claim(number, ours, f"{reason}; the paper's numbers are all equal here", holds=True)
    value = number.value
    holds = all((ours - mine) * (1 if value > paper else -1) >= -slack for paper, mine in kept)
    return claim(number, ours, f"{reason}; order among {len(others) + 1} rows", holds=holds)


def claim(number: Number, ours: float, reason: str, *, holds: bool) -> Cell:
    """A measurement of another system that the paper's claim does or does not hold for."""
    return _cell(number, ours, TREND if holds else "differs", reason)


def not_run(number: Number, missing: str) -> Cell:
    """Nothing ran; `missing` says what it needs."""
    return _cell(number, None, "not run", missing)


def agrees(number: Number, ours: float | str) -> bool:
    """Whether the printed digits are those of `ours`, rounded; words must be equal but for their case."""
    if number.value is None or isinstance(ours, str):
        dashes = {"–", "-", "—", "n/a"}
        same = {number.printed.casefold(), str(ours).casefold()}
        return len(same) == 1 or same <= dashes
    digits = re.findall(r"\d+\.(\d+)", number.printed)
    decimals = len(digits[-1]) if digits else 0
    scale = 1.0
    if decimals == 0 and abs(number.value) < 1:  # written as a formula, such as "1/2" or "10^-2"
        scale = 1e-6
    return abs(ours - number.value) <= scale * 0.5 * 10**-decimals + 1e-9


def as_text(value: float | str | None) -> str:
    """For a table: four significant digits, "–" where nothing ran."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _cell(number: Number, ours: float | str | None, verdict: Verdict, reason: str) -> Cell:
    if isinstance(ours, float | int):
        ours = float(ours)
    return Cell(
        id=number.id,
        row=number.row,
        column=number.column,
        printed=number.printed,
        ours=ours,
        verdict=verdict,
        reason=reason,
    )
