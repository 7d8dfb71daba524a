"""Figures of listening tests. Each says how many listeners it shows, and SIMULATED where nobody listened."""

from typing import TYPE_CHECKING, Any

from workbench.listening import power, stats
from workbench.listening.frames import Table
from workbench.listening.study import REFERENCE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_COLOURS = {"reference": "#6b7280", "anchor": "#b4b8c0", "codec": "#2563eb", "files": "#0f766e"}


def mushra_boxes(ratings: Table, *, title: str = "Listening test") -> "Figure":
    """Fig. 2: a box of all ratings for each system, best median first, with the mean and its 95 % interval.

    Hinges, whiskers (1.5 IQR) and outliers are those of `stats`; the interval comes from a bootstrap over listeners.

    Args:
        ratings: From `Store.ratings_frame`, screened; needs system, system_kind, listener, score, is_simulated.
        title: Goes above, followed by n.
    """
    objects = _plotly()
    figure = objects.Figure()
    summary = stats.summary(ratings)
    for row in summary.to_dict("records"):
        group = ratings[ratings["system"] == row["system"]]
        is_outlier = stats.outliers(group["score"])
        inside, outside = group["score"][~is_outlier], group["score"][is_outlier]
        label = f"{_name(row['system'])}<br>n = {row['num_listeners']}"
        colour = _COLOURS[group["system_kind"].iloc[0]]
        # Plotly's own quartiles are others than Tukey's hinges, so it gets ours.
        figure.add_box(
            x=[label],
            q1=[row["q1"]],
            median=[row["median"]],
            q3=[row["q3"]],
            lowerfence=[float(inside.min())],
            upperfence=[float(inside.max())],
            line={"color": colour},
            name=label,
            showlegend=False,
        )
        figure.add_scatter(
            x=[label] * len(outside),
            y=outside.to_numpy(),
            mode="markers",
            marker={"color": colour, "size": 4, "opacity": 0.5},
            hoverinfo="y",
            showlegend=False,
        )
    labels = [trace.name for trace in figure.data if trace.type == "box"]
    figure.add_scatter(
        x=labels,
        y=summary["mean"].to_numpy(),
        error_y={
            "array": (summary["high"] - summary["mean"]).to_numpy(),
            "arrayminus": (summary["mean"] - summary["low"]).to_numpy(),
        },
        mode="markers",
        marker={"symbol": "diamond", "color": "#111827", "size": 8},
        name="mean, 95 % CI over listeners",
    )
    figure.update_yaxes(title="score", range=[0, 102], tickvals=[0, 20, 40, 60, 80, 100])
    return _finished(figure, ratings, title)


def boxes_by(ratings: Table, column: str, *, title: str = "Listening test") -> "Figure":
    """`mushra_boxes` side by side for each value of a column of listeners, such as equipment; each states its n."""
    objects = _plotly()
    figure = objects.Figure()
    order = list(stats.summary(ratings)["system"])
    for value, part in ratings.groupby(column):
        rows = {row["system"]: row for row in stats.summary(part).to_dict("records")}
        shown = [rows[system] for system in order if system in rows]
        groups = [part[part["system"] == row["system"]]["score"] for row in shown]
        inside = [scores[~stats.outliers(scores)] for scores in groups]
        figure.add_box(
            x=[_name(row["system"]) for row in shown],
            q1=[row["q1"] for row in shown],
            median=[row["median"] for row in shown],
            q3=[row["q3"] for row in shown],
            lowerfence=[float(scores.min()) for scores in inside],
            upperfence=[float(scores.max()) for scores in inside],
            name=f"{value} (n = {part['listener'].nunique()})",
        )
    figure.update_layout(boxmode="group")
    figure.update_yaxes(title="score", range=[0, 102], tickvals=[0, 20, 40, 60, 80, 100])
    return _finished(figure, ratings, title)


def pair_differences(ratings: Table, against: str = REFERENCE, *, title: str = "Difference") -> "Figure":
    """Mean difference of every system from one of them, with a 95 % bootstrap interval over listeners."""
    objects = _plotly()
    table = stats.table_of(ratings)
    if against not in table:
        raise ValueError(f"no ratings of {against!r}; there are {', '.join(table.columns)}")
    names, means, lows, highs = [], [], [], []
    for system in [name for name in stats.summary(ratings)["system"] if name != against]:
        difference = (table[system] - table[against]).dropna()
        low, high = stats.bootstrap_interval(difference.rename("score").reset_index())
        names.append(f"{_name(system)} (n = {len(difference)})")
        means.append(float(difference.mean()))
        lows.append(means[-1] - low)
        highs.append(high - means[-1])
    figure = objects.Figure()
    figure.add_scatter(
        x=means,
        y=names,
        error_x={"array": highs, "arrayminus": lows},
        mode="markers",
        marker={"size": 10, "color": _COLOURS["codec"]},
        showlegend=False,
    )
    figure.add_vline(0, line_dash="dot")
    figure.update_xaxes(title=f"points from {_name(against)}, 95 % CI")
    figure.update_yaxes(autorange="reversed")
    return _finished(figure, ratings, title)


def demographics(counts: dict[str, int], question: str, *, is_simulated: bool = False) -> "Figure":
    """Fig. 4: shares of those who answered, and n; who gave no answer is in the title and not in the shares."""
    objects = _plotly()
    given = {answer: count for answer, count in counts.items() if answer != "no answer"}
    total = sum(given.values())
    figure = objects.Figure()
    figure.add_bar(
        x=list(given.values()),
        y=list(given),
        orientation="h",
        text=[f"{count} ({count / total:.1%})" for count in given.values()],
        marker={"color": _COLOURS["codec"]},
    )
    missing = counts.get("no answer", 0)
    mark = "SIMULATED: " if is_simulated else ""
    figure.update_layout(title=f"{mark}{question} (n = {total} of {total + missing})", template="plotly_white")
    figure.update_xaxes(title="listeners")
    figure.update_yaxes(autorange="reversed")
    return figure


def power_curves(differences: list[float], *, num_items: int, num_systems: int, most_listeners: int = 60) -> "Figure":
    """Power over the number of listeners, a curve for each difference in points (`power.power`)."""
    objects = _plotly()
    counts = list(range(2, most_listeners + 1))
    figure = objects.Figure()
    for difference in differences:
        values = [power.power(difference, n, num_items, num_systems=num_systems) for n in counts]
        figure.add_scatter(x=counts, y=values, mode="lines", name=f"{difference:g} points")
    figure.add_hline(0.8, line_dash="dot")
    figure.update_layout(
        title=f"Power of all pairs of {num_systems} systems, {num_items} items a listener", template="plotly_white"
    )
    figure.update_xaxes(title="listeners after screening")
    figure.update_yaxes(title="chance to find the difference", range=[0, 1.02])
    return figure


def _finished(figure: "Figure", ratings: Table, title: str) -> "Figure":
    simulated = ratings["is_simulated"]
    if simulated.any() and not simulated.all():
        raise ValueError("ratings of simulated and of real listeners cannot share a figure; choose one kind")
    mark = "SIMULATED: " if simulated.any() else ""
    n = f"n = {ratings['listener'].nunique()} listeners, {ratings['item'].nunique()} items, {len(ratings)} ratings"
    figure.update_layout(title=f"{mark}{title} ({n})", template="plotly_white", legend={"orientation": "h", "y": -0.2})
    return figure


def _name(system: str) -> str:
    return {"reference": "hidden reference", "anchor35": "3.5 kHz anchor", "anchor70": "7 kHz anchor"}.get(
        system, system
    )


def _plotly() -> Any:
    try:
        import plotly.graph_objects as objects
    except ImportError:
        raise ImportError("figures need plotly: pip install 'taae-workbench[listening]'") from None
    return objects
