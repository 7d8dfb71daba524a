"""Pictures of tables: verdicts as a map, our numbers against the paper's, quality over length."""

from collections.abc import Mapping, Sequence
from typing import Any

from workbench import published
from workbench.measured import METRICS
from workbench.verdicts import VERDICTS, Outcome, as_text

MAP = "verdict map"  # meta of figures that repeat what a table of verdicts says
_MEASURED = {*METRICS, "normalized_entropy", "huffman_bits_per_second", "real_time_factor"}

COLOURS = {
    "exact": "#15803d",
    "reproduced": "#65a30d",
    "better": "#0d9488",
    "trend holds (small model)": "#2563eb",
    "differs": "#d97706",
    "not run": "#d1d5db",
}


def verdict_map(outcome: Outcome) -> Any:
    """One square a published cell, coloured by its verdict; the pointer shows both numbers and the reason."""
    objects = _plotly()
    rows = list(dict.fromkeys(cell.row for cell in outcome.cells))
    columns = list(dict.fromkeys(cell.column for cell in outcome.cells))
    figure = objects.Figure()
    for verdict in VERDICTS:
        cells = [cell for cell in outcome.cells if cell.verdict == verdict]
        if not cells:
            continue
        figure.add_scatter(
            x=[cell.column for cell in cells],
            y=[cell.row for cell in cells],
            mode="markers",
            marker={"symbol": "square", "size": 18, "color": COLOURS[verdict]},
            name=f"{verdict} ({len(cells)})",
            customdata=[[cell.printed, as_text(cell.ours), cell.reason] for cell in cells],
            hovertemplate="%{y}, %{x}<br>paper %{customdata[0]}, ours %{customdata[1]}<br>%{customdata[2]}",
        )
    figure.update_xaxes(categoryorder="array", categoryarray=columns, side="top")
    figure.update_yaxes(categoryorder="array", categoryarray=rows, autorange="reversed")
    height = 190 + 24 * len(rows)
    figure.update_layout(
        title={"text": outcome.title, "y": 0.99, "yanchor": "top"},
        template="plotly_white",
        height=height,
        margin={"t": 110, "b": 30},
        legend={"orientation": "h", "y": -30 / height},
        meta=MAP,
    )
    return figure


def beside_paper(outcome: Outcome) -> Any:
    """Measured columns side by side: the paper hollow, ours filled in the colour of its verdict.

    Where nothing was measured, the map of verdicts.
    """
    from plotly.subplots import make_subplots

    numbers = {cell.id: cell for cell in published.table(outcome.name).cells}
    measured = [cell for cell in outcome.cells if isinstance(cell.ours, float) and numbers[cell.id].metric in _MEASURED]
    if not measured:
        return verdict_map(outcome)
    columns = list(dict.fromkeys(cell.column for cell in measured))
    rows = [row for row in dict.fromkeys(cell.row for cell in outcome.cells)]
    rows = [row for row in rows if any(c.row == row and c.column in columns for c in outcome.cells)]
    figure = make_subplots(rows=1, cols=len(columns), subplot_titles=columns, shared_yaxes=True)
    named: set[str] = set()
    for place, column in enumerate(columns, start=1):
        cells = [cell for cell in outcome.cells if cell.column == column and cell.row in rows]
        groups: dict[str, tuple[list, list, dict]] = {
            "paper": (
                [numbers[cell.id].value for cell in cells],
                [cell.row for cell in cells],
                {"symbol": "circle-open", "size": 10, "color": "#18181b", "line": {"width": 1.5}},
            )
        }
        for verdict in VERDICTS:
            mine = [cell for cell in cells if cell.verdict == verdict and cell.ours is not None]
            marker = {"symbol": "circle", "size": 9, "color": COLOURS[verdict]}
            groups[f"ours: {verdict}"] = ([cell.ours for cell in mine], [cell.row for cell in mine], marker)
        for name, (xs, ys, marker) in groups.items():
            if xs:
                figure.add_scatter(
                    **{"x": xs, "y": ys, "mode": "markers", "marker": marker, "name": name, "legendgroup": name},
                    showlegend=name not in named,
                    hovertemplate=f"%{{y}}, {column} %{{x:.3g}}<extra>{name}</extra>",
                    row=1,
                    col=place,
                )
                named.add(name)
    # A column of another order of magnitude than the paper's, as SI-SDR of a model without phases, sets its own scale.
    figure.update_yaxes(categoryorder="array", categoryarray=rows[::-1])
    height = 170 + 24 * len(rows)
    figure.update_layout(
        title={"text": "Ours beside the paper", "y": 0.99, "yanchor": "top"},
        template="plotly_white",
        height=height,
        margin={"t": 80, "b": 70},
        legend={"orientation": "h", "y": -45 / height, "yanchor": "top"},
    )
    return figure


def rate_quality(outcome: Outcome, column: str = "STOI") -> Any:
    """Quality over bit rate: the paper's rows hollow, ours filled, and the codecs that we measured beside them."""
    objects = _plotly()
    table = published.table(outcome.name)
    found = {(cell.row, cell.column): cell for cell in outcome.cells}
    figure = objects.Figure()
    paper, ours = [], []
    for row in table.rows:
        rate, quality = table.cell(row, "BPS").value, table.cell(row, column).value
        if rate is not None and quality is not None:
            paper.append((rate, quality, row))
            mine = found[row, column].ours
            if isinstance(mine, float):
                ours.append((rate, mine, row))
    beside = [(float(r["BPS"]), float(r[column]), r["codec"]) for r in outcome.beside if r["BPS"] != "not run"]
    for name, points, symbol in (
        ("paper", paper, "circle-open"),
        ("measured here", ours, "circle"),
        ("measured here, not in the paper", beside, "diamond"),
    ):
        figure.add_scatter(
            x=[point[0] for point in points],
            y=[point[1] for point in points],
            text=[point[2] for point in points],
            mode="markers+text",
            textposition="top center",
            marker={"symbol": symbol, "size": 10},
            name=name,
        )
    figure.update_xaxes(type="log", title="bit/s")
    figure.update_yaxes(title=column)
    figure.update_layout(title=f"{column} over bit rate", template="plotly_white", height=480)
    return figure


def length_curves(table: Mapping[float, Mapping[str, Any]], title: str) -> Any:
    """Fig. 3: STOI and raw PESQ over the length of what the codec is given, with 95 % intervals over clips."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2, subplot_titles=("STOI", "PESQ (raw P.862)"))
    lengths = list(table)
    for place, metric in enumerate(("stoi", "pesq_raw_nb"), start=1):
        rows = [table[length_s][metric] for length_s in lengths]
        figure.add_scatter(
            x=lengths,
            y=[row["mean"] for row in rows],
            error_y={
                "array": [row["high"] - row["mean"] for row in rows],
                "arrayminus": [row["mean"] - row["low"] for row in rows],
            },
            mode="lines+markers",
            showlegend=False,
            row=1,
            col=place,
        )
    figure.update_xaxes(title="s")
    figure.update_layout(title=title, template="plotly_white")
    return figure


def token_counts(counts: Sequence[int], title: str) -> Any:
    """How often each code occurs, most frequent first, on logarithmic axes."""
    objects = _plotly()
    figure = objects.Figure()
    figure.add_scatter(x=list(range(1, len(counts) + 1)), y=list(counts), mode="lines", showlegend=False)
    figure.update_xaxes(type="log", title="rank of the code")
    figure.update_yaxes(type="log", title="times it occurs")
    figure.update_layout(title=title, template="plotly_white")
    return figure


def lines(series: Mapping[str, tuple[Sequence[float | str], Sequence[float]]], *, title: str, x: str, y: str) -> Any:
    """Named curves in one picture."""
    objects = _plotly()
    figure = objects.Figure()
    for name, (xs, ys) in series.items():
        figure.add_scatter(x=list(xs), y=list(ys), mode="lines+markers", name=name)
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    figure.update_layout(title=title, template="plotly_white")
    return figure


def heat(values: Any, *, title: str, x: str, y: str) -> Any:
    """A matrix as colours."""
    objects = _plotly()
    figure = objects.Figure(objects.Heatmap(z=values, colorscale="Viridis"))
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    figure.update_layout(title=title, template="plotly_white")
    return figure


def _plotly() -> Any:
    try:
        import plotly.graph_objects as objects
    except ImportError:
        raise ImportError("figures need plotly: pip install 'taae-workbench[notebooks]'") from None
    return objects
