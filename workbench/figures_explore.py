"""Pictures and controls of the explorers: each is a view on a function of `workbench.explore`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from workbench import explore
from workbench.figures_tables import heat, lines, token_counts


def controls(draw: Callable[..., Any], **choices: Sequence[Any]) -> Any:
    """A slider for each argument of `draw` that is a number, a menu for one that is a word; the first choice is shown.

    What `draw` gives, a figure, a sound or a list of such, is shown anew with every choice. It is written into the
    view as it is: what an output widget captures of `display` comes late, or never, where a notebook runs without a
    browser.
    """
    try:
        import ipywidgets
    except ImportError:
        raise ImportError("controls need ipywidgets: pip install 'taae-workbench[notebooks]'") from None
    widgets: dict[str, Any] = {}
    for name, values in choices.items():
        settings: dict[str, Any] = {"value": values[0], "description": name.replace("_", " ")}
        if all(isinstance(value, int | float) for value in values):
            kind, options = ipywidgets.SelectionSlider, sorted(set(values))
            settings |= {"continuous_update": False, "layout": ipywidgets.Layout(width="32rem")}
        else:
            kind, options = ipywidgets.Dropdown, list(values)
        widgets[name] = kind(options=options, **settings)
    # The height is that of a figure, or the page jumps while the next one is drawn.
    output: Any = ipywidgets.Output(layout=ipywidgets.Layout(min_height="30rem"))

    def show(_: Any = None) -> None:
        drawn = draw(**{name: widget.value for name, widget in widgets.items()})
        output.outputs = [
            {"output_type": "display_data", "data": _bundle(item), "metadata": {}}
            for item in (drawn if isinstance(drawn, list) else [drawn])
        ]

    for widget in widgets.values():
        widget.observe(show, "value")
    show()
    return ipywidgets.VBox([*widgets.values(), output])


def _bundle(item: Any) -> dict[str, Any]:
    """What a browser needs to show something, by MIME type."""
    from IPython.core.formatters import DisplayFormatter

    # plotly's figures show themselves when they are formatted, but can be asked.
    bundle = item._repr_mimebundle_() if hasattr(item, "to_plotly_json") else None
    return bundle or DisplayFormatter().format(item)[0]


def lattices(levels: int = 9) -> Any:
    """Positions of all level numbers up to one: 2^n + 1 nest, others do not."""
    series = {"2^n + 1 levels: nested": ([], []), "other numbers of levels": ([], [])}
    for count in range(2, levels + 1):
        is_nested = count > 2 and (count - 1) & (count - 2) == 0
        xs, ys = series["2^n + 1 levels: nested" if is_nested else "other numbers of levels"]
        positions = explore.lattice(count).tolist()
        xs += positions
        ys += [float(count)] * count
    figure = lines(series, title="Positions of the quantiser (Eq. 1)", x="value", y="levels")
    figure.update_traces(mode="markers", marker_size=8)
    figure.data[1].marker.color = "#a1a1aa"
    return figure.update_yaxes(dtick=1).update_layout(height=520)


def decomposition(bottleneck: str = "2x5^6", value: float = 0.3) -> Any:
    """How the sum of the residual stages closes in on a value."""
    rows = explore.decomposition(value, bottleneck)
    stages = ["start", *(f"stage {row['stage'] + 1}" for row in rows)]
    sums = [0.0, *(row["sum"] for row in rows)]
    title = f"{value:g} in {bottleneck}: {sums[-1]:.4g}, off by {rows[-1]['left']:+.4f}"
    figure = lines({"sum of the stages": (stages, sums)}, title=title, x="", y="value")
    figure.update_traces(line_shape="hv", text=["", *(f"{row['adds']:+.4g}" for row in rows)], marker_size=10)
    figure.update_traces(mode="lines+markers+text", textposition="top center")
    figure.add_hline(value, line_dash="dot", annotation_text="value")
    return figure.update_yaxes(range=[-1.2, 1.2])


def code_use(latents: Tensor, bottleneck: str = "2x5^6") -> Any:
    """How often the codes of the first stage occur; `latents` (s, d)."""
    counts = explore.code_counts(latents, bottleneck)
    return token_counts(counts.tolist(), f"{bottleneck}: {len(counts):,} codes in {counts.sum():,} tokens")


def level_use(latents: Tensor, levels: int = 5) -> Any:
    """Share of each level in each dimension; `latents` (s, d)."""
    return heat(explore.level_use(latents, levels), title=f"Use of {levels} levels", x="level", y="dimension")


def code_sound(codec: Any, token: int, bottleneck: str = "2x5^6") -> Any:
    """A player of one code of the first stage, repeated for a second."""
    from IPython.display import Audio

    return Audio(explore.sound_of_code(codec, token, bottleneck), rate=codec.sample_rate_hz)


def traversal(codec: Any, wav: np.ndarray, dim: int, value: float) -> list[Any]:
    """Spectra of `wav` (n,) coded as it is and with one dimension at `value` throughout, and a player of the latter."""
    from IPython.display import Audio

    plain = codec.reconstruct(wav, "continuous")[0][0, 0].numpy()
    (moved,) = explore.traverse(codec, wav, dim, [value])
    title = f"Dimension {dim} at {value:g}"
    figure = spectra({"as it is": plain, title: moved}, codec.sample_rate_hz, title)
    return [figure.update_yaxes(range=[-50, 60]), Audio(moved, rate=codec.sample_rate_hz)]


def spectra(sounds: Mapping[str, np.ndarray], sample_rate_hz: int, title: str) -> Any:
    """Smoothed spectra of sounds (n,), in dB."""
    series = {}
    for name, sound in sounds.items():
        power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
        bands = np.array_split(power[1:], 64)
        centres = np.array_split(np.fft.rfftfreq(len(sound), 1 / sample_rate_hz)[1:], 64)
        level = [float(10 * np.log10(band.mean() + 1e-12)) for band in bands]
        series[name] = ([float(centre.mean()) for centre in centres], level)
    return lines(series, title=title, x="Hz", y="dB")


def rate_distortion(rows: Sequence[Mapping[str, Any]], metric: str = "stoi") -> Any:
    """Quality over rate, levels that were trained with apart from others, and the continuous limit as a line."""
    series = {}
    for trained in ("yes", "no"):
        points = sorted(
            (row["bits_per_second"], row[metric])
            for row in rows
            if row["trained"] == trained and np.isfinite(row["bits_per_second"])
        )
        if points:
            name = "trained levels" if trained == "yes" else "other levels"
            series[name] = ([point[0] for point in points], [point[1] for point in points])
    figure = lines(series, title=f"{metric} over rate", x="bit/s", y=metric)
    for row in rows:
        if not np.isfinite(row["bits_per_second"]):
            figure.add_hline(row[metric], line_dash="dot", annotation_text="continuous")
    return figure


def quantisers(levels: int) -> Any:
    """What each quantiser of `explore.three_fsqs` makes of every value; curves that agree lie on each other."""
    figure = lines(explore.staircases(levels), title=f"{levels} levels", x="tanh of the latent", y="position")
    figure.update_traces(mode="lines")
    for trace, width, dash in zip(figure.data, (9, 5, 2, 2), ("solid", "solid", "solid", "dot"), strict=True):
        trace.line.width, trace.line.dash = width, dash  # the first stays visible below the others
    return figure.update_layout(height=520)
