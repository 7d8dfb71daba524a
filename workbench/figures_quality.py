"""Quality over bitrate: a line a model, a point a mode of the classical codecs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PANELS = {"pesq_raw_nb": "PESQ, raw narrow-band", "stoi": "STOI"}
_COLOURS = ("#1f6feb", "#8250df", "#1a7f37", "#bf3989")
_PEERS = "#6e7781"


def quality_over_bitrate(rows: Sequence[Mapping[str, Any]], title: str = "") -> "Figure":
    """Means with 95 % intervals over bits per second.

    Args:
        rows: With codec, mode, bits_per_second (None for a continuous bottleneck, which is left out) and for every
            metric of `PANELS` a mean with low and high.
        title: Above both panels.

    Raises:
        ImportError: If plotly is missing.
    """
    try:
        from plotly.subplots import make_subplots
    except ImportError:
        raise ImportError('plots need plotly: pip install "taae-workbench[notebooks]"') from None
    figure = make_subplots(cols=2, subplot_titles=list(PANELS.values()), horizontal_spacing=0.08)
    codecs = list(dict.fromkeys(row["codec"] for row in rows))
    models = [codec for codec in codecs if codec.startswith("TAAE")]
    for codec in codecs:
        mine = sorted(
            (row for row in rows if row["codec"] == codec and row["bits_per_second"]),
            key=lambda row: row["bits_per_second"],
        )
        colour = _COLOURS[models.index(codec) % len(_COLOURS)] if codec in models else _PEERS
        for column, metric in enumerate(PANELS, start=1):
            means = [row[metric]["mean"] for row in mine]
            figure.add_scatter(
                x=[row["bits_per_second"] for row in mine],
                y=means,
                error_y={
                    "array": [row[metric]["high"] - mean for row, mean in zip(mine, means, strict=True)],
                    "arrayminus": [mean - row[metric]["low"] for row, mean in zip(mine, means, strict=True)],
                    "thickness": 1,
                },
                text=[row["mode"] for row in mine],
                mode="lines+markers" if codec in models else "markers+text",
                textposition="middle right",
                cliponaxis=False,
                name=codec,
                legendgroup=codec,
                showlegend=column == 1,
                marker={"color": colour, "size": 9, "symbol": "circle" if codec in models else "diamond"},
                row=1,
                col=column,
            )
    figure.update_xaxes(type="log", title="bit/s", tickvals=[400, 700, 1000, 1600, 2400, 3200])
    margin = {"l": 50, "r": 50, "t": 80 if title else 40, "b": 40}
    legend = {"orientation": "h", "y": -0.2}
    figure.update_layout(template="plotly_white", title=title, legend=legend, height=460, margin=margin)
    return figure
