"""Objective metrics of appendix D, each `(reference, degraded, sample_rate_hz) -> float`.

Everything is measured at 16 kHz, one clip at a time; other rates are resampled first and channels are averaged. The
paper's "PESQ" is the raw narrow-band score (`pesq_raw_nb`), which reads higher than the MOS-LQO of most other papers.
"""

import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import get_window

from taae.audio import mel_filters, resample, to_mono

RATE_HZ = 16_000

# The C code of `pesq` 0.0.4 keeps 50 utterances and writes past that without a check: wrong scores, then a crash.
# Utterances and the gaps between them last 0.2 s at least, so 19 s cannot hold more.
PESQ_MAX_S = 19.0


class MetricError(ValueError):
    """The metric is not defined for this pair, for example PESQ of silence."""


def si_sdr(reference: Any, degraded: Any, sample_rate_hz: int = RATE_HZ) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, means removed, higher is better.

    Matches `auraloss.time.SISDRLoss(zero_mean=True)`, negated; its floor of 1e-8 bounds the value from below at -80 dB.

    Raises:
        MetricError: If the reference is constant.
    """
    target, estimate = (wav.astype(np.float64) for wav in _pair(reference, degraded, sample_rate_hz))
    target -= target.mean()
    estimate -= estimate.mean()
    energy = target @ target
    if energy < 1e-12:
        raise MetricError("the reference is silent")
    scaled = (estimate @ target) / (energy + 1e-8) * target
    residual = estimate - scaled
    return float(10 * np.log10(scaled @ scaled / (residual @ residual + 1e-8) + 1e-8))


def stft_distance(reference: Any, degraded: Any, sample_rate_hz: int = RATE_HZ) -> float:
    """Spectral convergence plus L1 of natural-log magnitudes (2048-point Hann window, hop 512), lower is better.

    Matches `auraloss.freq.STFTLoss(2048, 512, 2048)`.

    Raises:
        MetricError: If the reference is silent.
    """
    return _spectral_distance(*_pair(reference, degraded, sample_rate_hz), hop_samples=512)


def mel_distance(reference: Any, degraded: Any, sample_rate_hz: int = RATE_HZ) -> float:
    """As `stft_distance`, on 128 mel bands with hop 256, lower is better.

    Matches `auraloss.freq.MelSTFTLoss(16000, 2048, 256, 2048, n_mels=128)`.

    Raises:
        MetricError: If the reference is silent.
    """
    filters = mel_filters(RATE_HZ, 2048, 128)
    return _spectral_distance(*_pair(reference, degraded, sample_rate_hz), hop_samples=256, filters=filters)


def pesq_raw_nb(reference: Any, degraded: Any, sample_rate_hz: int = RATE_HZ) -> float:
    """Raw P.862 score, narrow band, from -0.5 to 4.5: the paper's "PESQ".

    Package `pesq`, mode "nb", with the MOS mapping of P.862.1 undone.

    Raises:
        MetricError: If PESQ finds no speech, or under 0.25 s of audio.
    """
    return raw_from_mos_lqo(pesq_nb(reference, degraded, sample_rate_hz))


def pesq_nb(reference: Any, degraded: Any, sample_rate_hz: int = RATE_HZ) -> float:
    """Narrow-band MOS-LQO (P.862.1), 1.0 to 4.55; package `pesq`, mode "nb".

    A clip over 19 s is scored in equal pieces and averaged, because the package is not safe on longer ones.

    Raises:
        MetricError: If PESQ finds no speech, or under 0.25 s of audio.
    """
    return _pesq(*_pair(reference, degraded, sample_rate_hz), mode="nb")


def pesq_wb(reference: Any, degraded: Any, sample_rate_hz: int = RATE_HZ) -> float:
    """Wide-band MOS-LQO (P.862.2), 1.0 to 4.64; package `pesq`, mode "wb". Otherwise as `pesq_nb`."""
    return _pesq(*_pair(reference, degraded, sample_rate_hz), mode="wb")


def stoi(reference: Any, degraded: Any, sample_rate_hz: int = RATE_HZ) -> float:
    """Short-time objective intelligibility, up to 1; package `pystoi`, extended=False.

    Raises:
        MetricError: If the reference holds under about 0.4 s of sound.
    """
    return _stoi(*_pair(reference, degraded, sample_rate_hz), extended=False)


def estoi(reference: Any, degraded: Any, sample_rate_hz: int = RATE_HZ) -> float:
    """Extended STOI; package `pystoi`, extended=True. Otherwise as `stoi`."""
    return _stoi(*_pair(reference, degraded, sample_rate_hz), extended=True)


def mosnet(reference: Any, degraded: Any, sample_rate_hz: int = RATE_HZ) -> float:
    """MOS that MOSNet predicts for the degraded clip, 1 to 5; the reference is not used (`taae.metrics_mosnet`).

    Raises:
        FileNotFoundError: If the weights are not there; the message says how to get them.
        MetricError: If there are less than 257 samples at 16 kHz.
    """
    from taae.metrics_mosnet import mosnet_score

    _, estimate = _pair(reference, degraded, sample_rate_hz)
    if estimate.size < 257:
        raise MetricError("MOSNet needs 257 samples at 16 kHz")
    return mosnet_score(estimate)


METRICS: dict[str, Callable[[Any, Any, int], float]] = {
    "si_sdr": si_sdr,
    "stft_distance": stft_distance,
    "mel_distance": mel_distance,
    "pesq_raw_nb": pesq_raw_nb,
    "pesq_nb": pesq_nb,
    "pesq_wb": pesq_wb,
    "stoi": stoi,
    "estoi": estoi,
    "mosnet": mosnet,
}


def score(
    reference: Any,
    degraded: Any,
    sample_rate_hz: int,
    metrics: Sequence[str] | None = None,
    *,
    reasons: dict[str, str] | None = None,
) -> dict[str, float]:
    """Compute many metrics of one clip.

    Args:
        reference: What went in, `(n,)` or anything `taae.audio.as_channels` takes.
        degraded: What came out, of the same length.
        sample_rate_hz: Of both.
        metrics: Names in `METRICS`; by default all, MOSNet only where its weights are.
        reasons: Receives, for every metric that is not defined on this clip, the reason.

    Returns:
        One number a metric; nan where it is not defined (`MetricError` of the single function).

    Raises:
        ValueError: If a name is unknown, or the clips are not audio of one length.
        ImportError: If a metric's package is missing.
    """
    names = check_metrics(metrics)
    target, estimate = _pair(reference, degraded, sample_rate_hz)
    scores = {}
    for name in names:
        try:
            scores[name] = METRICS[name](target, estimate, RATE_HZ)
        except MetricError as error:
            scores[name] = float("nan")
            if reasons is not None:
                reasons[name] = str(error)
    return scores


def check_metrics(metrics: Sequence[str] | None) -> list[str]:
    """Names of the metrics to compute; None stands for all less `unavailable_metrics`. Fails now, not after a clip.

    Raises:
        ValueError: If a name is unknown.
        ImportError: If a metric's package is missing.
        FileNotFoundError: If the weights of a metric that was asked for are missing.
    """
    names = [name for name in METRICS if name not in unavailable_metrics()] if metrics is None else list(metrics)
    if unknown := sorted(set(names) - set(METRICS)):
        raise ValueError(f"unknown metrics {', '.join(unknown)}; choose among {', '.join(METRICS)}")
    for name in names:
        if name.startswith("pesq"):
            _package("pesq")
        elif name in ("stoi", "estoi"):
            _package("pystoi")
        elif name == "mosnet":
            from taae.metrics_mosnet import find_weights

            find_weights()
            _package("h5py")
    return names


def unavailable_metrics() -> dict[str, str]:
    """Metrics that need more than packages of the extra, here MOSNet without its weights: name -> what to do."""
    try:
        check_metrics(["mosnet"])
    except (FileNotFoundError, ImportError) as error:
        return {"mosnet": f"unavailable: {error}"}
    return {}


def raw_from_mos_lqo(mos_lqo: float) -> float:
    """Undo the mapping of ITU-T P.862.1: narrow-band MOS-LQO -> raw P.862 score."""
    return float((4.6607 - np.log(4 / (mos_lqo - 0.999) - 1)) / 1.4945)


def bootstrap_ci(
    values: Sequence[float] | np.ndarray, seed: int = 0, *, num_resamples: int = 2000
) -> tuple[float, float, float]:
    """Mean of `values` with its 95 % interval by the percentile bootstrap over clips.

    Returns:
        mean, low, high. One value has no spread, so all three are equal.

    Raises:
        ValueError: If there are no values or one is not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"expected a list of finite numbers, got {values!r}"[:200])
    rng = np.random.default_rng(seed)
    means = [rng.choice(sample, sample.size).mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(sample.mean()), float(low), float(high)


def _pair(reference: Any, degraded: Any, sample_rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    """Both clips as `(n,)` at 16 kHz, checked."""
    wavs = []
    for name, wav in (("reference", reference), ("degraded", degraded)):
        try:
            wavs.append(to_mono(wav))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if wavs[0].size != wavs[1].size:
        raise ValueError(f"the clips differ in length: reference {wavs[0].size} samples, degraded {wavs[1].size}")
    target, estimate = (resample(wav, sample_rate_hz, RATE_HZ) for wav in wavs)
    return target, estimate


def _magnitudes(wav: np.ndarray, num_fft: int, hop_samples: int, first: int, num_frames: int) -> np.ndarray:
    """Magnitudes `(frames, bins)` of some frames of `wav`, which is already padded."""
    frames = sliding_window_view(wav, num_fft)[first * hop_samples :: hop_samples][:num_frames]
    power = np.abs(np.fft.rfft(frames * get_window("hann", num_fft))) ** 2
    return np.sqrt(np.maximum(power, 1e-8))


def _spectral_distance(
    target: np.ndarray, estimate: np.ndarray, hop_samples: int, filters: np.ndarray | None = None
) -> float:
    if not np.any(target):  # its clamped bins would weigh a thousand times as much as any speech
        raise MetricError("the reference is silent")
    num_fft = 2048
    num_frames = 1 + target.size // hop_samples
    target, estimate = (np.pad(wav, num_fft // 2, mode="reflect") for wav in (target, estimate))
    error = energy = log_error = 0.0
    num_values = 0
    for first in range(0, num_frames, 1024):  # bounded memory on long clips
        true, coded = (_magnitudes(wav, num_fft, hop_samples, first, 1024) for wav in (target, estimate))
        if filters is not None:
            true, coded = true @ filters.T, coded @ filters.T
        error += float(((true - coded) ** 2).sum())
        energy += float((true**2).sum())
        log_error += float(np.abs(np.log(true) - np.log(coded)).sum())
        num_values += true.size
    return float(np.sqrt(error / energy) + log_error / num_values)


def _pesq(target: np.ndarray, estimate: np.ndarray, mode: str) -> float:
    package = _package("pesq")
    _check_sound(target, estimate)
    num_pieces = int(np.ceil(target.size / (PESQ_MAX_S * RATE_HZ)))
    values, failure = [], None
    for true, coded in zip(np.array_split(target, num_pieces), np.array_split(estimate, num_pieces), strict=True):
        try:
            _check_sound(true, coded)
            values.append(float(package.pesq(RATE_HZ, true, coded, mode)))
        except package.NoUtterancesError:
            failure = "PESQ finds no speech in the reference"
        except package.BufferTooShortError:
            failure = "PESQ needs at least 0.25 s"
        except ValueError as error:  # "cannot convert float NaN to integer", or a silent piece
            failure = f"PESQ is not defined here: {error}"
    if not values:
        raise MetricError(failure)
    return float(np.mean(values))


def _stoi(target: np.ndarray, estimate: np.ndarray, extended: bool) -> float:
    package = _package("pystoi")
    _check_sound(target, estimate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # said by the error below
        try:
            value = float(package.stoi(target.astype(np.float64), estimate.astype(np.float64), RATE_HZ, extended))
        except ValueError:  # not even one frame
            value = 1e-5
    if value == 1e-5:  # what pystoi returns instead of raising
        raise MetricError("STOI needs about 0.4 s of sound in the reference")
    return value


def _check_sound(target: np.ndarray, estimate: np.ndarray) -> None:
    for name, wav in (("reference", target), ("degraded clip", estimate)):
        if not np.any(wav):
            raise MetricError(f"the {name} is silent")


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"this metric needs the package {name}: pip install {name}, or the extra metrics") from error
