"""How much a loss depends on each sample and on each time-frequency bin of its input: Eq. 11 and 12 (B.5).

Both come from one backward pass. A loss that treats all places alike gives, averaged over many inputs, a flat map;
lines in the map are places that training sees too much or too little of, and `measure_bias` puts numbers on them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import median_filter
from torch import Tensor

# (target, decoded), each (b, 1, n), to scalar losses by name.
PairLosses = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """The STFT whose bins Eq. 12 differentiates by: periodic Hann window, one-sided, centred, zeros beyond the ends.

    A short window tells neighbouring samples apart, a long one neighbouring frequencies; no window does both.

    Attributes:
        fft_size: Window and FFT length in samples, even.
        hop_samples: At most half of it, or the STFT has no inverse that forgives a change of its bins.
    """

    fft_size: int
    hop_samples: int

    def __post_init__(self) -> None:
        if self.fft_size < 4 or self.fft_size % 2:
            raise ValueError(f"fft_size must be even and at least 4, got {self.fft_size}")
        if not 1 <= self.hop_samples <= self.fft_size // 2:
            raise ValueError(f"hop_samples must be 1 ... fft_size / 2, got {self.hop_samples} of {self.fft_size}")

    def bins(self, wav: Float[Tensor, "b 1 n"]) -> Tensor:
        """Complex bins (b, fft_size / 2 + 1, frames)."""
        window = torch.hann_window(self.fft_size, dtype=wav.dtype, device=wav.device)
        return torch.stft(
            wav[:, 0], self.fft_size, self.hop_samples, window=window, pad_mode="constant", return_complex=True
        )

    def wav(self, bins: Tensor, num_samples: int) -> Float[Tensor, "b 1 n"]:
        """The inverse of `bins`, `num_samples` long."""
        window = torch.hann_window(self.fft_size, dtype=bins.real.dtype, device=bins.device)
        return torch.istft(bins, self.fft_size, self.hop_samples, window=window, length=num_samples)[:, None]


# One for lines across time, one for lines across frequency; powers of two would lend them a grid of their own.
ANALYSES = (Analysis(fft_size=200, hop_samples=50), Analysis(fft_size=2000, hop_samples=500))


def loss_gradients(
    losses: PairLosses, target: Float[Tensor, "b 1 n"], decoded: Float[Tensor, "b 1 n"]
) -> dict[str, Float[Tensor, "b 1 n"]]:
    """Derivative by `decoded` of every loss, in one forward pass and a backward pass each; parameters collect none.

    Raises:
        ValueError: If a loss is not one number, does not depend on `decoded`, or has a gradient that is not finite.
    """
    decoded = decoded.detach().requires_grad_()
    with torch.enable_grad():
        values = losses(target.detach(), decoded)
    gradients = {}
    for name, value in values.items():
        if value.numel() != 1:
            raise ValueError(f"loss {name!r} must be one number, got shape {tuple(value.shape)}; take its mean")
        if not value.requires_grad:
            raise ValueError(f"loss {name!r} does not depend on the decoded wav; is it computed under no_grad?")
        (gradient,) = torch.autograd.grad(value, decoded, retain_graph=True, allow_unused=True)
        if gradient is None or not gradient.isfinite().all():
            reason = "does not depend on the decoded wav" if gradient is None else "has a gradient that is not finite"
            raise ValueError(f"loss {name!r} {reason}")
        gradients[name] = gradient
    return gradients


def bin_gradient(gradient: Float[Tensor, "b 1 n"], analysis: Analysis) -> Tensor:
    """From dL / d wav to dL / d Re X + j dL / d Im X, complex (b, f, t), for wav = inverse STFT of X.

    The inverse is linear, so this is its transpose; the loss is not evaluated again. Bins between 0 and the Nyquist
    frequency stand for two of the full spectrum and weigh twice as much as those two.
    """
    with torch.enable_grad():
        bins = analysis.bins(torch.zeros_like(gradient)).requires_grad_()
        wav = analysis.wav(bins, gradient.shape[-1])
        (result,) = torch.autograd.grad(wav, bins, gradient)
    return result


def sensitivity(
    losses: PairLosses,
    target: Float[Tensor, "1 1 n"],
    decoded: Float[Tensor, "1 1 n"],
    analyses: Sequence[Analysis] = ANALYSES,
) -> dict[str, tuple[np.ndarray, tuple[np.ndarray, ...]]]:
    """Sensitivity of each loss to one example (B.5.1): s_n of Eq. 11, (n,), and s_{n,f} of Eq. 12, (f, t) per analysis.

    Raises:
        ValueError: As `loss_gradients`.
    """
    return {
        name: (
            gradient[0, 0].abs().cpu().numpy(),
            tuple(bin_gradient(gradient, analysis)[0].abs().cpu().numpy() for analysis in analyses),
        )
        for name, gradient in loss_gradients(losses, target, decoded).items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Sensitivity averaged over inputs, kept for the odd and the even ones apart.

    What both halves share belongs to the loss; what they do not is chance.

    Attributes:
        sample_halves: s_n of Eq. 11, (2, n).
        bin_halves: s_{n,f} of Eq. 12, (2, f, t) for each of `analyses`.
        num_inputs: Of both halves together.
    """

    sample_halves: np.ndarray
    bin_halves: tuple[np.ndarray, ...]
    analyses: tuple[Analysis, ...]
    num_inputs: int
    sample_rate_hz: int

    @property
    def per_sample(self) -> np.ndarray:
        """s_n, (n,)."""
        return self.sample_halves.mean(axis=0)

    @property
    def per_bin(self) -> tuple[np.ndarray, ...]:
        """s_{n,f}, (f, t) for each analysis."""
        return tuple(halves.mean(axis=0) for halves in self.bin_halves)


def average_sensitivity(
    losses: PairLosses,
    pairs: Iterable[tuple[Tensor, Tensor]],
    *,
    sample_rate_hz: int,
    analyses: Sequence[Analysis] = ANALYSES,
) -> dict[str, Sensitivity]:
    """Average both sensitivities over many inputs, as B.5 does to find what is systematic.

    One input at a time: memory is that of one backward pass and two running sums a loss, however many inputs there are.
    Wrap `pairs` in tqdm to see progress.

    Args:
        losses: Anything from (target, decoded) to scalars by name; the gradient is by `decoded`.
        pairs: (target, decoded), each (1, 1, n) with one n; at least two of them.
        sample_rate_hz: Of the inputs.
        analyses: The STFTs of Eq. 12.

    Raises:
        ValueError: If there are fewer than two inputs, they differ in length, or as `loss_gradients`.
    """
    sums: dict[str, list[np.ndarray]] = {}
    count, num_samples = 0, 0
    for count, (target, decoded) in enumerate(pairs, start=1):
        if count > 1 and decoded.shape[-1] != num_samples:
            raise ValueError(f"inputs must have one length; got {decoded.shape[-1]} after {num_samples} samples")
        num_samples = decoded.shape[-1]
        for name, (samples, maps) in sensitivity(losses, target, decoded, analyses).items():
            arrays = (samples, *maps)
            halves = sums.setdefault(name, [np.zeros((2, *array.shape)) for array in arrays])
            for half, array in zip(halves, arrays, strict=True):
                half[(count - 1) % 2] += array
    if count < 2:
        raise ValueError(f"an average over inputs needs at least 2 of them, got {count}")
    per_half = np.array([(count + 1) // 2, count // 2], dtype=np.float64)
    averages = {}
    for name, halves in sums.items():
        samples, *maps = ((half.T / per_half).T for half in halves)
        averages[name] = Sensitivity(
            sample_halves=samples,
            bin_halves=tuple(maps),
            analyses=tuple(analyses),
            num_inputs=count,
            sample_rate_hz=sample_rate_hz,
        )
    return averages


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisBias:
    """How far a sensitivity profile is from flat, and how much of that sits on a regular grid; no chance included.

    Every number compares two halves of the inputs, so that more inputs make it more precise and not smaller.

    Attributes:
        peak_db: Peak to median: where one half has its highest 0.5 %, how far the other half stands above its median.
        uneven_db: Standard deviation that both halves share. 0 where chance could make as much.
        regularity: Highest autocorrelation of the shared part away from lag 0: 1 for lines on one grid, near 0 for a
            pattern like noise. 0 where chance could make as much here too.
        spacing: Smallest lag with nearly that autocorrelation, in s or Hz: the grid. 0 where there is none.
    """

    peak_db: float
    uneven_db: float
    regularity: float
    spacing: float

    @property
    def grid_db(self) -> float:
        """Standard deviation of the part on a regular grid, the number to rank by: periodic lines and nothing else."""
        return self.uneven_db * self.regularity**0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Bias:
    """Both marginals of a sensitivity: vertical lines of its picture are in `time`, horizontal ones in `frequency`."""

    time: AxisBias
    frequency: AxisBias

    @property
    def grid_db(self) -> float:
        """Both directions together: what the lines of a regular grid add, and 0 for none."""
        return math.hypot(self.time.grid_db, self.frequency.grid_db)


def measure_bias(sensitivity: Sensitivity, *, edge_s: float = 0.15, edge_hz: float = 100.0) -> Bias:
    """Numbers for the lines in a sensitivity map (B.5), by which losses can be ranked.

    Along time it reads s_n; along frequency s_{n,f} of the analysis with the longest window, averaged over time.
    Slow trends (128 ms, 500 Hz) are removed: they are the envelope and the spectrum of the inputs.

    Args:
        sensitivity: Averaged over enough inputs; a dozen show strong lines, weak ones need more.
        edge_s: Left out at both ends, where fewer windows overlap.
        edge_hz: Left out at both ends, where convolutions see zeros beyond the band.

    Raises:
        ValueError: If the inputs are too short to hold four of the trends' windows.
    """
    rate_hz = sensitivity.sample_rate_hz
    longest = max(range(len(sensitivity.analyses)), key=lambda index: sensitivity.analyses[index].fft_size)
    hz_per_bin = rate_hz / sensitivity.analyses[longest].fft_size
    edge_frames = round(edge_s * rate_hz / sensitivity.analyses[longest].hop_samples)
    spectra = sensitivity.bin_halves[longest][..., edge_frames or None : -edge_frames or None].mean(axis=-1)
    return Bias(
        time=_axis_bias(sensitivity.sample_halves, 1 / rate_hz, edge=edge_s, trend=0.128, finest=0.001),
        frequency=_axis_bias(spectra, hz_per_bin, edge=edge_hz, trend=500.0, finest=40.0),
    )


def profile_db(profile: Float[np.ndarray, "*b n"], trend_points: int) -> Float[np.ndarray, "*b n"]:
    """A sensitivity profile in dB over its running median, so that slow trends are gone and lines stay."""
    level_db = 20 * np.log10(np.maximum(profile, 1e-30))
    # Mirrored: a repeated last value would be the median of its own surroundings.
    trend_db = np.apply_along_axis(median_filter, -1, level_db, trend_points, mode="reflect")
    return level_db - trend_db


def _axis_bias(halves: np.ndarray, unit: float, *, edge: float, trend: float, finest: float) -> AxisBias:
    """Bias of two profiles with a point every `unit`, in which the others are too; `finest` is the smallest spacing."""
    margin, width = round(edge / unit), round(trend / unit) | 1
    if halves.shape[-1] - 2 * margin < 2 * width:
        raise ValueError(
            f"the inputs have {halves.shape[-1]} points of {unit:.3g}; measuring bias needs {2 * (width + margin)}"
        )
    first, second = profile_db(halves[:, margin : halves.shape[-1] - margin], width)
    num_top = max(1, round(0.005 * len(first)))
    peaks_db = [
        np.median(there[np.argsort(here)[-num_top:]]) - np.median(there)
        for here, there in ((first, second), (second, first))
    ]
    shared = _cross_covariance(first, second, max_lag=width)
    uneven_db, regularity, spacing = 0.0, 0.0, 0.0
    chance = 5 * first.std() * second.std() / len(first) ** 0.5  # five standard errors of a covariance of 0
    if shared[0] > chance:
        uneven_db = float(shared[0] ** 0.5)
        # A line has a width, which is no spacing: look where its own autocorrelation has fallen to half.
        start = max(round(finest / unit), int(np.argmax(shared < shared[0] / 2)))
        repeated = shared[start:]
        if repeated.max() > chance:
            regularity = min(1.0, float(repeated.max() / shared[0]))
            spacing = unit * (start + int(np.argmax(repeated > 0.8 * repeated.max())))
    return AxisBias(peak_db=float(np.mean(peaks_db)), uneven_db=uneven_db, regularity=regularity, spacing=spacing)


def _cross_covariance(first: np.ndarray, second: np.ndarray, max_lag: int) -> np.ndarray:
    """Covariance of both signals at lags 0 ... max_lag, the two directions averaged."""
    size = 2 * len(first)
    product = np.fft.rfft(first - first.mean(), size).conj() * np.fft.rfft(second - second.mean(), size)
    lags = np.fft.irfft(product, size)
    both = (lags[: max_lag + 1] + np.roll(lags[::-1], 1)[: max_lag + 1]) / 2
    return both / (len(first) - np.arange(max_lag + 1))
