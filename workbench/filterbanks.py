"""Four ways to turn a wav into frames of coefficients (appendix B.4), and what an error in them becomes.

Every `Filterbank` is linear: `analyse` (n,) -> (frames, channels), `synthesise` back. All but PQMF reconstruct exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.signal import firwin


@dataclass(frozen=True, slots=True, kw_only=True)
class Filterbank:
    """A linear transform of a wav into frames.

    Attributes:
        hop_samples: A frame every so many samples.
        num_channels: Real coefficients per frame; equal to `hop_samples` when critically sampled.
        analyse: (n,) -> (frames, num_channels), float64.
        synthesise: (frames, num_channels) and n -> (n,).
    """

    title: str
    hop_samples: int
    num_channels: int
    analyse: Callable[[np.ndarray], np.ndarray]
    synthesise: Callable[[np.ndarray, int], np.ndarray]

    @property
    def redundancy(self) -> float:
        """Coefficients per sample; 1 is critically sampled."""
        return self.num_channels / self.hop_samples


def patching(size: int = 320) -> Filterbank:
    """The paper's choice: `size` samples are a frame, a polyphase filterbank."""
    return Filterbank(
        title="Patching",
        hop_samples=size,
        num_channels=size,
        analyse=lambda wav: _padded(wav, size).reshape(-1, size),
        synthesise=lambda frames, n: frames.reshape(-1)[:n],
    )


def rectangular_stft(size: int = 320) -> Filterbank:
    """STFT without window and overlap, the only one that is critically sampled; real and imaginary parts in a row."""

    def synthesise(frames: np.ndarray, n: int) -> np.ndarray:
        return np.fft.irfft(_from_real(frames, size), size, norm="ortho").reshape(-1)[:n]

    return Filterbank(
        title="STFT, no overlap",
        hop_samples=size,
        num_channels=size,
        analyse=lambda wav: _to_real(np.fft.rfft(_padded(wav, size).reshape(-1, size), norm="ortho")),
        synthesise=synthesise,
    )


def overlapping_stft(hop_samples: int = 320) -> Filterbank:
    """STFT with a square-root Hann window of two hops: exact and robust, and twice as much data."""
    size = 2 * hop_samples
    window = np.sin(np.pi * (np.arange(size) + 0.5) / size)

    def analyse(wav: np.ndarray) -> np.ndarray:
        return _to_real(np.fft.rfft(_overlapping(wav, hop_samples) * window, norm="ortho"))

    def synthesise(frames: np.ndarray, n: int) -> np.ndarray:
        return _overlap_add(np.fft.irfft(_from_real(frames, size), size, norm="ortho") * window, n)

    return Filterbank(
        title="STFT, half overlap",
        hop_samples=hop_samples,
        num_channels=size,
        analyse=analyse,
        synthesise=synthesise,
    )


def mdct(hop_samples: int = 320) -> Filterbank:
    """Modified discrete cosine transform, sine window: critically sampled, exact because aliases cancel."""
    size = 2 * hop_samples
    n, k = np.arange(size), np.arange(hop_samples)
    window = np.sin(np.pi * (n + 0.5) / size)
    phase = (n[:, None] + 0.5 + hop_samples / 2) * (k + 0.5)
    basis = window[:, None] * np.cos(np.pi / hop_samples * phase) * np.sqrt(2 / hop_samples)
    return Filterbank(
        title="MDCT",
        hop_samples=hop_samples,
        num_channels=hop_samples,
        analyse=lambda wav: _overlapping(wav, hop_samples) @ basis,
        synthesise=lambda frames, n: _overlap_add(frames @ basis.T, n),
    )


def pqmf(num_channels: int = 32, taps_per_channel: int = 16, attenuation_db: float = 80.0) -> Filterbank:
    """Pseudo quadrature mirror filters: a long low-pass moved to each band by a cosine; nearly exact.

    Source: Lin and Vaidyanathan 1998: a Kaiser window whose cutoff is searched for the flattest overall response.
    """
    length = num_channels * taps_per_channel + 1
    beta = 0.1102 * (attenuation_db - 8.7)

    def low_pass(cutoff: float) -> np.ndarray:
        shape: Any = ("kaiser", beta)  # scipy's annotation knows names only
        return np.asarray(firwin(length, cutoff, window=shape))

    def alias(cutoff: float) -> float:
        overall = np.convolve(low_pass(cutoff), low_pass(cutoff)[::-1])
        return float(np.abs(overall[length - 1 :: 2 * num_channels][1:]).max())

    middle = 1 / (2 * num_channels)
    found: Any = minimize_scalar(alias, bounds=(middle, 2 * middle), method="bounded", options={"xatol": 1e-10})
    cutoff = found.x
    n, k = np.arange(length), np.arange(num_channels)
    angle = (2 * k[:, None] + 1) * np.pi / (2 * num_channels) * (n - (length - 1) / 2)
    sign = (-1.0) ** k[:, None] * np.pi / 4
    prototype = 2 * np.sqrt(num_channels) * low_pass(cutoff)
    analysis, synthesis = prototype * np.cos(angle + sign), prototype * np.cos(angle - sign)
    reach = length // 2  # whole frames, so that those beyond both ends, which touch the wav, are kept too

    def analyse(wav: np.ndarray) -> np.ndarray:
        padded = np.pad(_padded(wav, num_channels), 2 * reach)
        windows = np.lib.stride_tricks.sliding_window_view(padded, length)[::num_channels]
        return windows @ analysis[:, ::-1].T

    def synthesise(frames: np.ndarray, n: int) -> np.ndarray:
        out = np.zeros(len(frames) * num_channels + length)
        for index, frame in enumerate(frames @ synthesis):
            out[index * num_channels : index * num_channels + length] += frame
        return out[2 * reach : 2 * reach + n]

    return Filterbank(
        title="PQMF", hop_samples=num_channels, num_channels=num_channels, analyse=analyse, synthesise=synthesise
    )


def all_filterbanks() -> list[Filterbank]:
    """Those that B.4 compares, at the paper's patch of 320 samples; PQMF at 32 bands, as audio coding uses it."""
    return [patching(), rectangular_stft(), overlapping_stft(), mdct(), pqmf()]


ERRORS = ("white", "relative", "coarse", "low rank")


def with_error(filterbank: Filterbank, wav: np.ndarray, kind: str, *, snr_db: float, seed: int = 0) -> np.ndarray:
    """`wav` after an error of its coefficients, scaled so that the wav has `snr_db` in every bank.

    "white" adds noise of one size to every coefficient; "relative" in proportion to each, as a model does that gets
    every coefficient equally wrong; "coarse" zeroes all but a tenth of each frame, as a codec that spends no bits on
    them; "low rank" keeps of every frame its part in 32 directions, the best for this wav, as a linear bottleneck.

    Raises:
        ValueError: If there is no such kind of error.
    """
    coefficients = filterbank.analyse(wav.astype(np.float64))
    noise = np.random.default_rng(seed).standard_normal(coefficients.shape)
    if kind == "white":
        error = noise
    elif kind == "relative":
        error = noise * np.abs(coefficients)
    elif kind == "coarse":
        threshold = np.quantile(np.abs(coefficients), 0.9, axis=1, keepdims=True)
        error = np.where(np.abs(coefficients) < threshold, -coefficients, 0.0)
    elif kind == "low rank":
        basis = np.linalg.svd(coefficients, full_matrices=False)[2][: min(32, filterbank.num_channels // 2)]
        error = coefficients @ basis.T @ basis - coefficients
    else:
        raise ValueError(f"no error {kind!r}; there are {', '.join(ERRORS)}")
    error = filterbank.synthesise(error, len(wav))
    gain = np.sqrt(np.square(wav.astype(np.float64)).sum() / np.square(error).sum() * 10 ** (-snr_db / 10))
    return wav + gain * error


def describe(filterbank: Filterbank, wav: np.ndarray) -> dict[str, Any]:
    """Numbers of a filterbank on a wav.

    Returns:
        title, hop_samples, coefficients_per_sample, reconstruction_db (error over signal, -300 for rounding alone),
        spread_ms (how long the error of one coefficient lasts, to 99 % of its energy).
    """
    exact = wav.astype(np.float64)
    difference = filterbank.synthesise(filterbank.analyse(exact), len(exact)) - exact
    level = np.square(difference).sum() / np.square(exact).sum()
    return {
        "title": filterbank.title,
        "hop_samples": filterbank.hop_samples,
        "coefficients_per_sample": filterbank.redundancy,
        "reconstruction_db": float(10 * np.log10(max(level, 1e-30))),
        "spread_ms": 1000 * _spread_samples(filterbank) / 16000,
    }


def error_numbers(
    filterbank: Filterbank, wav: np.ndarray, kind: str, *, snr_db: float, seed: int = 0
) -> dict[str, Any]:
    """What an error looks like.

    Returns:
        title, error, snr_db, periodicity_db (`periodicity_db` of the error at the hop), highband_db (level of the error
        above 4 kHz over its level below).
    """
    degraded = with_error(filterbank, wav, kind, snr_db=snr_db, seed=seed)
    error = degraded - wav
    power = np.square(np.abs(np.fft.rfft(error)))
    middle = len(power) // 2
    return {
        "title": filterbank.title,
        "error": kind,
        "snr_db": float(10 * np.log10(np.square(wav).sum() / np.square(error).sum())),
        "periodicity_db": periodicity_db(error, filterbank.hop_samples),
        "highband_db": float(10 * np.log10(power[middle:].sum() / power[:middle].sum())),
    }


def folded_clicks(error: np.ndarray, hop_samples: int) -> np.ndarray:
    """How much an error jumps at each place in a hop, in dB over the mean, for odd and even frames: (2, hop_samples).

    A jump is the second difference, a steep high-pass; every frame is divided by its own mean, so that loud ones count
    as much as others. Jumps at the same place of every frame are the "periodic transients" of B.4.
    """
    jumps = np.square(np.diff(error, n=2, prepend=0.0, append=0.0))
    frames = jumps[: len(jumps) // hop_samples * hop_samples].reshape(-1, hop_samples)
    frames = frames[frames.mean(axis=1) > 1e-3 * frames.mean()]  # not those of silence
    frames = frames / frames.mean(axis=1, keepdims=True)
    return 10 * np.log10(np.stack([frames[0::2].mean(axis=0), frames[1::2].mean(axis=0)]))


def periodicity_db(error: np.ndarray, hop_samples: int) -> float:
    """Where odd frames jump most (the highest 1 % of places), how much even ones do, and the reverse; 0 is chance."""
    first, second = folded_clicks(error, hop_samples)
    num_top = max(1, round(0.01 * hop_samples))
    return float(np.mean([second[np.argsort(first)[-num_top:]], first[np.argsort(second)[-num_top:]]]))


def _spread_samples(filterbank: Filterbank) -> int:
    """Shortest stretch with 99 % of the energy of the widest of some unit coefficients."""
    hop = filterbank.hop_samples
    num_frames = 2 * (4000 // hop) + 1
    widest = 0
    for channel in range(0, filterbank.num_channels, max(1, filterbank.num_channels // 8)):
        frames = np.zeros((num_frames, filterbank.num_channels))
        frames[num_frames // 2, channel] = 1.0
        energy = np.cumsum(np.square(filterbank.synthesise(frames, num_frames * hop)))
        ends = np.searchsorted(energy, energy + 0.99 * energy[-1])
        lengths = (ends - np.arange(len(energy)))[ends < len(energy)]
        widest = max(widest, int(lengths.min()) if lengths.size else len(energy))
    return widest


def _padded(wav: np.ndarray, size: int) -> np.ndarray:
    return np.pad(np.asarray(wav, dtype=np.float64), (0, -len(wav) % size))


def _overlapping(wav: np.ndarray, hop_samples: int) -> np.ndarray:
    """Windows of two hops, one hop apart, that cover every sample twice: (frames, 2 * hop)."""
    padded = np.pad(_padded(wav, hop_samples), hop_samples)
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * hop_samples)[::hop_samples]


def _overlap_add(windows: np.ndarray, n: int) -> np.ndarray:
    hop = windows.shape[1] // 2
    out = np.zeros((len(windows) + 1, hop))
    out[:-1] += windows[:, :hop]
    out[1:] += windows[:, hop:]
    return out.reshape(-1)[hop : hop + n]


def _to_real(bins: np.ndarray) -> np.ndarray:
    """One-sided bins of an orthonormal FFT of even size as as many real numbers, of the same energy."""
    inner = np.sqrt(2) * bins[:, 1:-1]
    return np.concatenate([np.real(bins[:, :1]), np.real(inner), np.imag(inner), np.real(bins[:, -1:])], axis=1)


def _from_real(frames: np.ndarray, size: int) -> np.ndarray:
    half = size // 2 - 1
    inner = (frames[:, 1 : 1 + half] + 1j * frames[:, 1 + half : 1 + 2 * half]) / np.sqrt(2)
    return np.concatenate([frames[:, :1], inner, frames[:, -1:]], axis=1)
