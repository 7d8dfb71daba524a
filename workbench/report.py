"""One HTML file of a run of `workbench reproduce` that reads offline: plotly.js is in it once, nothing is loaded."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import notebook
from workbench.verdicts import VERDICTS, Cell, Outcome, as_text

if TYPE_CHECKING:
    from workbench.reproduce import Ran

_MAP = "verdict map"  # `figures_tables.MAP`
_FIGURE = "application/vnd.plotly.v1+json"
_SIGNS = {
    "exact": "=",
    "reproduced": "≈",
    "better": "↑",
    "trend holds (small model)": "∼",
    "differs": "≠",
    "not run": "∅",
}
_MEANINGS = {
    "exact": "a fact that we computed; it agrees to the printed digits",
    "reproduced": "measured or counted, within the tolerance that the reason names",
    "better": "measured, and better than printed by more than the tolerance",
    "trend holds (small model)": "another model than the paper's; its numbers stand in the paper's order",
    "differs": "the number or the order is another one; the reason says of what",
    "not run": "nothing was computed; the reason says what is missing",
}
_STYLE = """
:root { color-scheme: light; --line: #d4d4d8; --soft: #f4f4f5; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 1.5rem; font: 15px/1.5 system-ui, sans-serif; color: #18181b; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; }
td .bar { width: 11rem; } p { margin: .5rem 0; }
a { color: #1d4ed8; text-decoration: none; } a:hover { text-decoration: underline; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .6rem 0; font-size: .9rem; }
th, td { border: 1px solid var(--line); padding: .25rem .5rem; text-align: left; vertical-align: top; }
th { background: var(--soft); font-weight: 600; } td small { color: #52525b; display: block; }
td b { font-variant-numeric: tabular-nums; }
.warn { border-left: 4px solid #d97706; padding: .4rem .8rem; background: #fffbeb; white-space: pre-wrap; }
.bar { display: flex; height: .9rem; max-width: 44rem; border-radius: 3px; overflow: hidden; margin: .4rem 0; }
.tag { display: inline-block; min-width: 1.4em; padding: 0 .3em; border-radius: 3px; color: #fff; text-align: center; }
.exact { background: #15803d; } .reproduced { background: #4d7c0f; } .better { background: #0f766e; }
.trend { background: #2563eb; } .differs { background: #b45309; } .not { background: #71717a; }
td.not-run { background: var(--soft); color: #52525b; } summary { cursor: pointer; color: #1d4ed8; margin: .3rem 0; }
ul { margin: .4rem 0; padding-left: 1.3rem; } .figure { margin: .6rem 0; } code { font-size: .9em; }
"""


def write(path: Path, profile: str, about: str, done: "Sequence[Ran]", outcomes: Sequence[Outcome]) -> None:
    """The report of a run.

    Args:
        path: Of the HTML file.
        profile: Of the run.
        about: What the profile means.
        done: Its notebooks, executed in `notebooks/` beside the file.
        outcomes: One for every published table, and the figures.
    """
    from plotly.offline import get_plotlyjs

    ran = {r.outcome.name: r for r in done if r.outcome is not None}
    sections, drawings = [], []
    for outcome in outcomes:
        mine = ran.get(outcome.name)
        figures = figures_of(path.parent / "notebooks" / f"{mine.name}.ipynb") if mine else []
        sections.append(_section(outcome, mine, len(drawings), len(figures)))
        drawings += figures
    # Those that failed are named at the top, and their tables say "not run".
    for r in [r for r in done if r.outcome is None and r.status in ("ok", "cached")]:
        figures = figures_of(path.parent / "notebooks" / f"{r.name}.ipynb")
        sections.append(_notebook_section(r, len(drawings), len(figures)))
        drawings += figures
    data = json.dumps(drawings).replace("</", "<\\/")
    draw = "data.forEach((f, i) => Plotly.newPlot(`f${i}`, f.data, f.layout, {responsive: true, displaylogo: false}));"
    body = "\n".join([_head(profile, about, done, outcomes), *sections])
    path.write_text(
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>TAAE: reproduction, {escape(profile)}</title><style>{_STYLE}</style></head><body>\n{body}\n"
        f"<script>{get_plotlyjs()}</script>\n<script>const data = {data};\n{draw}</script></body></html>\n",
        encoding="utf-8",
    )


def figures_of(path: Path) -> list[dict[str, Any]]:
    """The plotly figures in the outputs of an executed notebook; the report's own tables stand for maps of verdicts."""
    if not path.is_file():
        return []
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    found = [output["data"][_FIGURE] for output in outputs if _FIGURE in output.get("data", {})]
    drawn = [{"data": figure["data"], "layout": figure["layout"]} for figure in found]
    return [figure for figure in drawn if figure["layout"].get("meta") != _MAP]


def _head(profile: str, about: str, done: "Sequence[Ran]", outcomes: Sequence[Outcome]) -> str:
    cells = [cell for outcome in outcomes for cell in outcome.cells]
    counts = {verdict: sum(cell.verdict == verdict for cell in cells) for verdict in VERDICTS}
    facts = notebook.provenance("small" if profile == "smoke" else "full", seed=0) | {"profile": profile}
    legend = _table(
        ["verdict", "cells", "means"],
        [[_tag(verdict) + " " + verdict, str(counts[verdict]), _MEANINGS[verdict]] for verdict in VERDICTS],
    )
    failed = [r for r in done if r.status not in ("ok", "cached")]
    lines = [f"<p class='warn'>{escape(r.name)}: {r.status}. {escape(r.error)}</p>" for r in failed]
    if profile == "smoke":
        lines.insert(
            0, "<p class='warn'>Smoke: two clips. It shows that everything runs; its measured numbers mean little.</p>"
        )
    return (
        "<h1>Scaling Transformers for Low-Bitrate High-Quality Speech Coding: what we could reproduce</h1>"
        f"<p>Profile <b>{escape(profile)}</b>: {escape(about)}. Every cell that the paper and its talk "
        f"print ({len(cells)}) stands beside ours; nothing in a column “ours” is copied from the paper.</p>"
        f"{''.join(lines)}{_bar(cells)}{legend}"
        f"<p><small>{escape(' · '.join(f'{key} {value}' for key, value in facts.items()))}</small></p>"
        f"<h2>Contents</h2>{_contents(done, outcomes)}"
        f"<h2>What is missing</h2>{_missing(outcomes)}"
    )


def _contents(done: "Sequence[Ran]", outcomes: Sequence[Outcome]) -> str:
    rows = []
    for outcome in outcomes:
        words = ", ".join(f"{count} {verdict}" for verdict, count in outcome.counts().items())
        bar = _strip(outcome.cells) if outcome.cells else ""
        rows.append([f"<a href='#{_id(outcome.name)}'>{escape(outcome.title)}</a>", bar, words or "no printed number"])
    for ran in done:
        if ran.outcome is None and ran.status in ("ok", "cached"):
            rows.append([f"<a href='#{_id(ran.name)}'>{escape(ran.name)}</a>", "", "no printed number"])
    return _table(["table or figure", "verdicts", ""], rows)


def _missing(outcomes: Sequence[Outcome]) -> str:
    """Why cells were not run, most cells first; the talk repeats the paper and is left out."""
    groups: dict[str, list[str]] = {}
    for outcome in outcomes:
        if not outcome.name.startswith("talk."):
            for cell in outcome.cells:
                if cell.verdict == "not run":
                    groups.setdefault(cell.reason, []).append(outcome.title.split(":")[0])
    rows = [
        [str(len(titles)), escape(", ".join(dict.fromkeys(titles))), _reason(reason)]
        for reason, titles in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    return _table(["cells", "of", "needs"], rows)


def _reason(reason: str) -> str:
    """With the command, if it names one, to copy."""
    what, sign, command = reason.partition("get it with: ")
    return f"{escape(what)}{sign}<code>{escape(command)}</code>" if sign else escape(reason)


def _section(outcome: Outcome, ran: "Ran | None", first: int, count: int) -> str:
    parts = [f"<h2 id='{_id(outcome.name)}'>{escape(outcome.title)}</h2>"]
    if ran is not None:
        setup = ", ".join(f"{key} {value}" for key, value in outcome.setup.items() if key != "clips_sha256")
        link = f"<a href='notebooks/{ran.name}.ipynb'>{ran.name}.ipynb</a>"
        parts.append(f"<p><small>{link}, {ran.seconds:.0f} s ({ran.status}). {escape(setup)}</small></p>")
    if outcome.notes:
        parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in outcome.notes) + "</ul>")
    if outcome.cells:
        table = _grid(outcome.cells) if _is_grid(outcome.cells) else _sentences(outcome.cells)
        if outcome.name.startswith("talk."):
            table = f"<details><summary>The slide repeats a table of the paper</summary>{table}</details>"
        parts += [_bar(outcome.cells), table]
    if outcome.beside:
        keys = list(outcome.beside[0])
        rows = [[escape(str(row.get(key, ""))) for key in keys] for row in outcome.beside]
        title = "Measured beside it, not in the paper" if outcome.cells else "Measured"
        parts.append(f"<h3>{title}</h3>{_table([key.replace('_', ' ') for key in keys], rows)}")
    return "\n".join([*parts, _figures(first, count)])


def _notebook_section(ran: "Ran", first: int, count: int) -> str:
    link = f"<a href='notebooks/{ran.name}.ipynb'>executed notebook</a>"
    return (
        f"<h2 id='{_id(ran.name)}'>{escape(ran.name)}</h2>"
        f"<p>No published number: {escape(ran.status)}, {ran.seconds:.0f} s; {link}</p>{_figures(first, count)}"
    )


def _is_grid(cells: Sequence[Cell]) -> bool:
    """Whether rows and columns make a table, rather than a list of sentences."""
    return len({cell.column for cell in cells}) <= 15


def _sentences(cells: Sequence[Cell]) -> str:
    lines = [[escape(c.row), escape(c.column), *_pair(c), _reason(c.reason)] for c in cells]
    return _table(["section", "what", "paper", "ours", "verdict", "how"], lines)


def _grid(cells: Sequence[Cell]) -> str:
    """In the layout of the paper: ours, the printed value below it, and why."""
    columns = list(dict.fromkeys(cell.column for cell in cells))
    rows = list(dict.fromkeys(cell.row for cell in cells))
    found = {(cell.row, cell.column): cell for cell in cells}
    body = []
    for row in rows:
        line = [f"<th>{escape(row)}</th>"]
        for column in columns:
            cell = found.get((row, column))
            line.append("<td></td>" if cell is None else _square(cell))
        body.append(f"<tr>{''.join(line)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in ["", *columns])
    return f"<div class='scroll'><table><tr>{head}</tr>{''.join(body)}</table></div>{_reasons(cells)}"


def _square(cell: Cell) -> str:
    kind = " class='not-run'" if cell.verdict == "not run" else ""
    ours = "not run" if cell.ours is None else f"<b>{escape(as_text(cell.ours))}</b>"
    return (
        f"<td{kind} title='{escape(f'{cell.verdict}: {cell.reason}', quote=True)}'>{_tag(cell.verdict)} {ours}"
        f"<small>paper {escape(cell.printed)}</small></td>"
    )


def _pair(cell: Cell) -> list[str]:
    return [escape(cell.printed), escape(as_text(cell.ours)), f"{_tag(cell.verdict)} {cell.verdict}"]


def _reasons(cells: Iterable[Cell]) -> str:
    """Why, once for all cells of a row that share a reason."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for cell in cells:
        groups.setdefault((cell.row, cell.verdict, cell.reason), []).append(cell.column)
    rows = [
        [escape(row), escape(", ".join(columns)), f"{_tag(verdict)} {verdict}", _reason(reason)]
        for (row, verdict, reason), columns in groups.items()
    ]
    table = _table(["row", "columns", "verdict", "how"], rows)
    return f"<details><summary>How each came about, or what is missing</summary>{table}</details>"


def _strip(cells: Sequence[Cell]) -> str:
    parts = []
    for verdict in VERDICTS:
        count = sum(cell.verdict == verdict for cell in cells)
        if count:
            parts.append(f"<span class='{_kind(verdict)}' style='flex:{count}' title='{count} {verdict}'></span>")
    return f"<div class='bar'>{''.join(parts)}</div>"


def _bar(cells: Sequence[Cell]) -> str:
    words = ", ".join(f"{n} {v}" for v in VERDICTS if (n := sum(cell.verdict == v for cell in cells)))
    return f"{_strip(cells)}<p><small>{words}</small></p>"


def _figures(first: int, count: int) -> str:
    return "".join(f"<div class='figure' id='f{index}'></div>" for index in range(first, first + count))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    return f"<div class='scroll'><table><tr>{titles}</tr>{lines}</table></div>"


def _tag(verdict: str) -> str:
    return f"<span class='tag {_kind(verdict)}'>{_SIGNS[verdict]}</span>"


def _kind(verdict: str) -> str:
    return verdict.split(" ")[0]


def _id(name: str) -> str:
    return name.replace(".", "-")
