"""Every number that the paper and its talk print: Tables 1 to 12, Fig. 4, the slides, and a few of the sentences.

The truth is `data_manifests/published.json`; its "about" explains the fields. Nothing here was measured by us.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

MANIFESTS = Path(__file__).resolve().parents[1] / "data_manifests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One cell of a published table.

    Attributes:
        id: "table02/taae-700/pesq".
        value: In `unit`; None where the cell holds a word or a dash.
        unit: "" for words, "1" for plain numbers.
        printed: What stands in the cell.
        cell: "printed"; "shared" if it spans several rows; "lost" if the text of the paper misses it.
        footnote: "" or what one must know.
        metric: Our name of the column, as in `taae.metrics.METRICS` where it is one; None if we have none.
        better: Which values of the metric are better; None if that makes no sense.
    """

    id: str
    table: str
    row: str
    column: str
    value: float | None
    unit: str
    printed: str
    cell: Literal["printed", "shared", "lost"]
    footnote: str
    metric: str | None = None
    better: Literal["higher", "lower"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A published table; `cells` in the order of print."""

    name: str
    title: str
    caption: str
    section: str
    cells: tuple[Number, ...]

    @property
    def rows(self) -> list[str]:
        """Labels of the rows in their order."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> list[str]:
        """Labels of the columns in their order."""
        return list(dict.fromkeys(cell.column for cell in self.cells))

    def cell(self, row: str, column: str) -> Number:
        """Look a cell up.

        Raises:
            ValueError: If the table has no such cell.
        """
        for cell in self.cells:
            if (cell.row, cell.column) == (row, column):
                return cell
        if row not in self.rows:
            raise ValueError(f"{self.title} has no row {row!r}; it has {', '.join(self.rows)}")
        raise ValueError(f"{self.title} has no {column!r} in row {row!r}; its columns are {', '.join(self.columns)}")

    def values(self, row: str) -> dict[str, float]:
        """Metric or column -> number, of one row; words and dashes are left out.

        Raises:
            ValueError: If there is no such row.
        """
        if row not in self.rows:
            raise ValueError(f"{self.title} has no row {row!r}; it has {', '.join(self.rows)}")
        return {c.metric or c.column: c.value for c in self.cells if c.row == row and c.value is not None}


@cache
def load(path: Path = MANIFESTS / "published.json") -> dict[str, Table]:
    """All tables by name: table01 ... table12, fig04, talk.levels, ..., text.

    Raises:
        FileNotFoundError: If the file is not there, as in an installation without the repository.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no published numbers at {path}; run in a checkout of the repository")
    data = json.loads(path.read_text(encoding="utf-8"))
    cells: dict[str, list[Number]] = {name: [] for name in data["tables"]}
    for record in data["values"]:
        cells[record["table"]].append(Number(**record, **data["columns"].get(record["column"], {})))
    return {name: Table(name=name, **about, cells=tuple(cells[name])) for name, about in data["tables"].items()}


def table(name: str) -> Table:
    """One table, such as "table02".

    Raises:
        ValueError: If there is no such table.
    """
    tables = load()
    if name not in tables:
        raise ValueError(f"no published table {name!r}; there are {', '.join(tables)}")
    return tables[name]


def number(number_id: str) -> Number:
    """One number by its id, such as "table02/taae-700/pesq".

    Raises:
        ValueError: If there is no such number.
    """
    for cell in table(number_id.split("/")[0]).cells:
        if cell.id == number_id:
            return cell
    raise ValueError(f"no published number {number_id!r}")
