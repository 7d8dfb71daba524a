"""What a training run has written so far: its log, its recipe, its sensitivity maps."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taae.monitor import read_log

# Judgements and "now" in figures are about the last tenth of a log, and about three rows at least.
_TAIL_SHARE, _MIN_ROWS = 0.1, 3


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run has written: rows of its log, its recipe, and sensitivity maps by step, (f, t) by name."""

    name: str
    rows: list[dict[str, Any]]
    config: dict[str, Any]
    maps: dict[int, dict[str, np.ndarray]]

    def names(self, prefix: str) -> list[str]:
        """Numbers of the log that start with `prefix`, 78 before 126."""
        found = {name for row in self.rows for name in row if name.startswith(prefix)}
        return sorted(
            found, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
        )

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of the rows that have this number."""
        pairs = [(row["step"], row[name]) for row in self.rows if name in row]
        return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs], dtype=float)

    def tail(self, name: str) -> np.ndarray:
        """Its last tenth, of at least three values."""
        values = self.curve(name)[1]
        return values[-max(_MIN_ROWS, round(_TAIL_SHARE * len(values))) :]


def read_run(folder: Path) -> Run:
    """Read what a training run has written so far.

    Raises:
        ValueError: If the folder holds no log with at least three rows.
    """
    rows = read_log(folder)
    if len(rows) < _MIN_ROWS:
        raise ValueError(
            f"{folder} has {len(rows)} rows in log.jsonl, and fewer than {_MIN_ROWS} say nothing; give the folder of a "
            "run of `taae train`, and wait for more steps (or lower steps_per_log)"
        )
    recipe = folder / "config.json"
    maps = {}
    for path in sorted((folder / "sensitivity").glob("step-*.npz")):
        with np.load(path) as arrays:
            maps[int(path.stem.removeprefix("step-"))] = dict(arrays)
    config = json.loads(recipe.read_text()) if recipe.is_file() else {}
    return Run(name=folder.name, rows=rows, config=config, maps=maps)
