"""Pictures of the ablations: every seed a dot, means with error bars, and "toy model" in every title."""

from collections.abc import Mapping, Sequence
from typing import Any

from workbench import ablations
from workbench.ablations import Results
from workbench.tables_ablations import TITLES

_ABOVE = {"stoi": True, "estoi": True, "pesq_raw_nb": True, "si_sdr": True}


def toy_bars(
    results: Results, names: Sequence[str], metrics: Sequence[str] = ("stoi", "estoi", "mel_distance"), mode: str = ""
) -> Any:
    """Means over seeds with one standard deviation, and the seeds themselves.

    Args:
        results: Of `ablations`.
        names: Variants, in the order of the axis.
        metrics: One panel each.
        mode: Bottleneck; where a variant does not have it, its last one.
    """
    from plotly.subplots import make_subplots

    titles = [f"{TITLES[metric]} ({'higher' if metric in _ABOVE else 'lower'} is better)" for metric in metrics]
    figure = make_subplots(rows=1, cols=len(metrics), subplot_titles=titles)
    for place, metric in enumerate(metrics, start=1):
        for name in names:
            runs = results.of(name)
            if not runs:  # the tables say so
                continue
            its_mode = mode if mode in runs[0].scores else list(runs[0].scores)[-1]
            values = list(results.values(name, its_mode, metric).values())
            label, about = ablations.variants()[name].label, ablations.spread(values)
            figure.add_scatter(
                x=[label] * len(values),
                y=values,
                mode="markers",
                marker={"color": "#9ca3af", "size": 7},
                name="one seed",
                showlegend=False,
                row=1,
                col=place,
            )
            figure.add_scatter(
                x=[label],
                y=[about["mean"]],
                error_y={"array": [about["sd"]]},
                mode="markers",
                marker={"color": "#1d4ed8", "size": 11, "symbol": "diamond"},
                name=f"{label}, {its_mode}",
                showlegend=False,
                row=1,
                col=place,
            )
    counts = sorted({len(results.of(name)) for name in names} - {0})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0] if counts else 0} seed(s)"
    figure.update_layout(
        title={"text": f"Toy models: mean and standard deviation over {seeds}", "y": 0.97},
        template="plotly_white",
        height=440,
        margin={"t": 90},
    )
    return figure


def robustness_curves(rows: Sequence[Mapping[str, Any]], reference: str = "clean") -> Any:
    """STOI over the ratio of speech to noise, with 95 % intervals over clips; `rows` of `robustness.measure`.

    Args:
        rows: One for each condition and codec.
        reference: "clean" for STOI against the clean recording, "input" against what the codec was given.
    """
    import plotly.graph_objects as objects

    figure = objects.Figure()
    colours = ("#1d4ed8", "#d97706", "#15803d", "#6b7280", "#7c3aed")
    codecs = dict(zip(dict.fromkeys(row["codec"] for row in rows), colours, strict=False))
    dashes = {"white": "solid", "speech-shaped": "dash", "babble": "dot"}
    kinds = dict.fromkeys(row["noise"] for row in rows if row["noise"])
    for codec, colour in codecs.items():
        for kind in kinds:
            some = sorted((r for r in rows if r["codec"] == codec and r["noise"] == kind), key=lambda r: r["snr_db"])
            figure.add_scatter(
                x=[row["snr_db"] for row in some],
                y=[row[f"stoi_{reference}"] for row in some],
                error_y=_interval(some, f"stoi_{reference}"),
                mode="lines+markers",
                line={"color": colour, "dash": dashes.get(kind, "solid")},
                name=f"{codec}, {kind}",
            )
    figure.update_xaxes(title="speech over noise, dB")
    figure.update_yaxes(title=f"STOI against the {reference}")
    figure.update_layout(title=f"Noise: STOI against the {reference}", template="plotly_white", height=460)
    return figure


def room_curves(rows: Sequence[Mapping[str, Any]], reference: str = "clean") -> Any:
    """STOI over reverberation, with 95 % intervals over clips; 0 s is the recording as it is."""
    import plotly.graph_objects as objects

    figure = objects.Figure()
    for codec in dict.fromkeys(row["codec"] for row in rows):
        some = [row for row in rows if row["codec"] == codec and not row["noise"]]
        figure.add_scatter(
            x=[row["reverberation_s"] or 0.0 for row in some],
            y=[row[f"stoi_{reference}"] for row in some],
            error_y=_interval(some, f"stoi_{reference}"),
            mode="lines+markers",
            name=codec,
        )
    figure.update_xaxes(title="reverberation time, s")
    figure.update_yaxes(title=f"STOI against the {reference}")
    figure.update_layout(title=f"Rooms: STOI against the {reference}", template="plotly_white", height=420)
    return figure


def _interval(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    return {
        "array": [row[f"{key}_high"] - row[key] for row in rows],
        "arrayminus": [row[key] - row[f"{key}_low"] for row in rows],
    }
