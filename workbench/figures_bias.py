"""Pictures of appendices B.1, B.4 and B.5: sensitivity maps and their marginals, attention, errors, gains."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.ndimage import median_filter

from taae.sensitivity import profile_db
from workbench.bias import SAMPLE_RATE_HZ, Result
from workbench.bias_training import Attention
from workbench.filterbanks import Filterbank, folded_clicks, with_error

_RANGE_DB = 15
_COLOURS = ("#3366cc", "#dc3912", "#109618", "#ff9900", "#990099", "#0099c6", "#dd4477")


def sensitivity_figure(results: Sequence[Result], *, start_s: float = 0.3, stop_s: float = 0.5) -> Any:
    """One row a result: the map of Eq. 12 and its two marginals, in dB over their running median.

    The map and the marginal over time show [start_s, stop_s], so that single samples can be seen.
    """
    from plotly.subplots import make_subplots

    titles = [f"<b>{r.variant}</b><br>{r.loss}" for r in results]
    figure = make_subplots(
        rows=len(results),
        cols=3,
        column_widths=[0.42, 0.29, 0.29],
        horizontal_spacing=0.06,
        vertical_spacing=0.35 / len(results) if len(results) > 1 else 0.1,
        subplot_titles=[text for title in titles for text in (title, "along time", "along frequency")],
    )
    for index, result in enumerate(results, start=1):
        average = result.sensitivity
        short, long = average.analyses
        seconds = np.arange(average.per_bin[0].shape[1]) * short.hop_samples / SAMPLE_RATE_HZ
        shown = (seconds >= start_s) & (seconds <= stop_s)
        level = 20 * np.log10(average.per_bin[0][:, shown] + 1e-30)
        # The spectrum of the inputs, smooth over 2 kHz, is no line.
        level -= median_filter(np.median(level, axis=1), round(2000 / SAMPLE_RATE_HZ * short.fft_size) | 1)[:, None]
        figure.add_heatmap(
            z=np.round(level, 2),
            x=1000 * seconds[shown],
            y=np.fft.rfftfreq(short.fft_size, 1 / SAMPLE_RATE_HZ) / 1000,
            zmin=-_RANGE_DB,
            zmax=_RANGE_DB,
            colorscale="Viridis",
            showscale=index == 1,
            colorbar={"title": "dB", "len": 1 / len(results), "y": 1, "yanchor": "top", "x": 1.01},
            row=index,
            col=1,
        )
        first, last = round(start_s * SAMPLE_RATE_HZ), round(stop_s * SAMPLE_RATE_HZ)
        along_time = profile_db(average.per_sample, round(0.128 * SAMPLE_RATE_HZ) | 1)[first:last]
        _line(figure, 1000 * np.arange(first, last) / SAMPLE_RATE_HZ, along_time, index, 2)
        frames = round(0.15 * SAMPLE_RATE_HZ / long.hop_samples)
        hz_per_bin = SAMPLE_RATE_HZ / long.fft_size
        spectrum = average.per_bin[1][:, frames:-frames].mean(axis=1)
        along_frequency = profile_db(spectrum, round(500 / hz_per_bin) | 1)
        _line(figure, np.arange(len(spectrum)) * hz_per_bin / 1000, along_frequency, index, 3)
        figure.update_xaxes(title_text="ms", row=index, col=1)
        figure.update_xaxes(title_text="ms", row=index, col=2)
        figure.update_xaxes(title_text="kHz", row=index, col=3)
        figure.update_yaxes(title_text="kHz", row=index, col=1)
        for column in (2, 3):
            figure.update_yaxes(title_text="dB", range=[-12, 32], row=index, col=column)
    figure.update_annotations(font_size=12)
    figure.update_layout(height=120 + 250 * len(results), width=1200, showlegend=False, template="plotly_white")
    return figure


def ranking_figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Bars of rows from `workbench.bias.ranking`: peaks over the median along both axes, and what is on a grid."""
    import plotly.graph_objects as go

    names = [f"{row['variant']}<br>{row['loss']}" for row in rows][::-1]
    figure = go.Figure()
    for key, title, colour in (
        ("grid_db", "unevenness on a regular grid", _COLOURS[0]),
        ("time_peak_db", "peaks along time", _COLOURS[3]),
        ("frequency_peak_db", "peaks along frequency", _COLOURS[2]),
    ):
        figure.add_bar(y=names, x=[row[key] for row in rows][::-1], name=title, orientation="h", marker_color=colour)
    figure.update_layout(
        height=140 + 62 * len(rows),
        width=1000,
        template="plotly_white",
        xaxis_title="dB over the median; 0 is no bias",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "reversed"},
        bargap=0.3,
    )
    return figure


def attention_figure(attentions: Mapping[str, Attention]) -> Any:
    """One row each: the sound, the sensitivity to its bins, and sensitivity by level (B.5.1)."""
    from plotly.subplots import make_subplots

    titles = [text for name in attentions for text in (f"<b>{name}</b><br>the sound", "sensitivity", "by level")]
    figure = make_subplots(
        rows=len(attentions),
        cols=3,
        subplot_titles=titles,
        horizontal_spacing=0.07,
        vertical_spacing=0.4 / len(attentions) if len(attentions) > 1 else 0.1,
    )
    for index, seen in enumerate(attentions.values(), start=1):
        for column, values, low, high in ((1, seen.level_db, -80, 0), (2, seen.sensitivity_db, -20, 20)):
            figure.add_heatmap(
                z=np.round(values, 1),
                x=seen.times_s,
                y=seen.frequencies_hz / 1000,
                zmin=low,
                zmax=high,
                colorscale="Magma" if column == 1 else "Viridis",
                showscale=False,
                row=index,
                col=column,
            )
            figure.update_xaxes(title_text="s", row=index, col=column)
            figure.update_yaxes(title_text="kHz", row=index, col=column)
        levels, medians = zip(*seen.by_level(), strict=True)
        figure.add_scatter(x=levels, y=medians, mode="lines+markers", line_color=_COLOURS[0], row=index, col=3)
        figure.update_xaxes(title_text="level of the bin, dB", range=[-95, 0], row=index, col=3)
        figure.update_yaxes(title_text="sensitivity, dB", range=[-25, 45], row=index, col=3)
    figure.update_annotations(font_size=12)
    figure.update_layout(height=120 + 260 * len(attentions), width=1200, showlegend=False, template="plotly_white")
    return figure


def error_figure(
    filterbanks: Sequence[Filterbank], wav: np.ndarray, kind: str, *, snr_db: float, stop_s: float = 0.12
) -> Any:
    """One row a filterbank: the error in time, its spectrogram, and its jumps folded at the hop."""
    from plotly.subplots import make_subplots

    titles = [t for bank in filterbanks for t in (f"<b>{bank.title}</b>: error", "its spectrogram", "jumps in a hop")]
    figure = make_subplots(
        rows=len(filterbanks),
        cols=3,
        subplot_titles=titles,
        horizontal_spacing=0.07,
        vertical_spacing=0.4 / len(filterbanks) if len(filterbanks) > 1 else 0.1,
    )
    # Where most is said in 0.6 s.
    shown = round(0.6 * SAMPLE_RATE_HZ)
    start = int(np.argmax(np.convolve(np.abs(wav), np.ones(shown), mode="valid")))
    for index, bank in enumerate(filterbanks, start=1):
        error = with_error(bank, wav, kind, snr_db=snr_db) - wav
        short = error[start : start + round(stop_s * SAMPLE_RATE_HZ)]
        _line(figure, 1000 * np.arange(len(short)) / SAMPLE_RATE_HZ, short, index, 1)
        frames = np.lib.stride_tricks.sliding_window_view(error[start : start + shown], 128)[::32]
        level = 20 * np.log10(np.abs(np.fft.rfft(frames * np.hanning(128), axis=1)).T + 1e-5)
        figure.add_heatmap(
            z=np.round(level, 1),
            x=1000 * np.arange(level.shape[1]) * 32 / SAMPLE_RATE_HZ,
            y=np.arange(65) * SAMPLE_RATE_HZ / 128 / 1000,
            zmin=-50,
            zmax=10,
            colorscale="Magma",
            showscale=False,
            row=index,
            col=2,
        )
        folded = folded_clicks(error, bank.hop_samples).mean(axis=0)
        _line(figure, np.arange(bank.hop_samples) / bank.hop_samples, folded, index, 3)
        for column, x, y in ((1, "ms", ""), (2, "ms", "kHz"), (3, "place in the hop", "dB")):
            figure.update_xaxes(title_text=x, row=index, col=column)
            figure.update_yaxes(title_text=y, row=index, col=column)
        figure.update_yaxes(range=[-6, 26], row=index, col=3)
    figure.update_annotations(font_size=12)
    figure.update_layout(height=120 + 220 * len(filterbanks), width=1200, showlegend=False, template="plotly_white")
    return figure


def lines_figure(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str) -> Any:
    """Named lines of (x, y) in one plot."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for (name, (across, up)), colour in zip(lines.items(), _COLOURS * 4, strict=False):
        figure.add_scatter(x=list(across), y=list(up), name=name, mode="lines", line_color=colour)
    figure.update_layout(width=900, height=420, template="plotly_white", xaxis_title=x, yaxis_title=y)
    return figure


def _line(figure: Any, x: np.ndarray, y: np.ndarray, row: int, column: int) -> None:
    figure.add_scatter(
        x=np.round(x, 4), y=np.round(y, 4), mode="lines", line={"width": 1, "color": _COLOURS[0]}, row=row, col=column
    )
