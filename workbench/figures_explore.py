"""Pictures and controls of the explorers: each is a view on a function of `workbench.explore`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from workbench import explore
from workbench.figures_tables import heat, lines, token_counts


def controls(draw: Callable[..., Any], **choices: Sequence[Any]) -> Any:
    """A drop-down for each argument of `draw`; its figure is drawn anew with every choice."""
    try:
        import ipywidgets
        from IPython.display import display
    except ImportError:
        raise ImportError("controls need ipywidgets: pip install 'taae-workbench[notebooks]'") from None
    menus = {
        name: ipywidgets.Dropdown(options=list(values), description=name.replace("_", " "))
        for name, values in choices.items()
    }
    return ipywidgets.interactive(lambda **chosen: display(draw(**chosen)), **menus)


def lattices(levels: int = 9) -> Any:
    """Positions of all level numbers up to one: 2^n + 1 nest, others do not."""
    series = {
        f"{count} levels": (explore.lattice(count).tolist(), [float(count)] * count) for count in range(2, levels + 1)
    }
    figure = lines(series, title="Positions of the quantiser (Eq. 1)", x="value", y="levels")
    return figure.update_traces(mode="markers")


def decomposition(bottleneck: str = "2x5^6", value: float = 0.3) -> Any:
    """What each residual stage adds, and what is left after it."""
    rows = explore.decomposition(value, bottleneck)
    stages = [float(row["stage"]) for row in rows]
    series = {"sum of the stages": (stages, [row["sum"] for row in rows]), "value": (stages, [value] * len(rows))}
    return lines(series, title=f"{value:g} in {bottleneck}", x="stage", y="value")


def code_use(latents: Tensor, bottleneck: str = "2x5^6") -> Any:
    """How often the codes of the first stage occur; `latents` (s, d)."""
    counts = explore.code_counts(latents, bottleneck)
    return token_counts(counts.tolist(), f"{bottleneck}: {len(counts):,} codes in {counts.sum():,} tokens")


def level_use(latents: Tensor, levels: int = 5) -> Any:
    """Share of each level in each dimension; `latents` (s, d)."""
    return heat(explore.level_use(latents, levels), title=f"Use of {levels} levels", x="level", y="dimension")


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


def quantisers(rows: Sequence[Mapping[str, Any]], levels: int) -> Any:
    """Error of each quantiser, as points."""
    figure = lines(
        {str(row["quantiser"]): ([float(levels)], [row["rms_error"]]) for row in rows},
        title=f"Error against tanh with {levels} levels",
        x="levels",
        y="rms error",
    )
    return figure.update_xaxes(tickvals=[levels])
