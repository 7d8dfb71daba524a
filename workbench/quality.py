"""What a table of means does not show: does quality depend on length, and can the frame rate be heard?

Plain functions of a codec and clips; `benchmarks/quality.py` prints them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from taae.audio import to_mono
from taae.metrics import bootstrap_ci, score


def quality_by_length(
    codec: Any, wavs: Sequence[np.ndarray], sample_rate_hz: int, bottleneck: str, lengths_s: Sequence[float]
) -> dict[float, dict[str, Any]]:
    """The same speech sent in pieces of each length: only the length differs between the rows (section 5, Fig. 3).

    Args:
        codec: Anything with `reconstruct`.
        wavs: (n,) recordings; what does not fill the longest length is left out.
        sample_rate_hz: Of the recordings.
        bottleneck: What the codec offers, such as "2x5^6".
        lengths_s: Seconds; each must divide the longest.

    Returns:
        Per length: STOI and raw PESQ over the *longest* pieces put together again, as mean, low, high and num_clips.

    Raises:
        ValueError: If a length does not divide the longest, or no recording is long enough.
    """
    longest = round(max(lengths_s) * sample_rate_hz)
    for length_s in lengths_s:
        if longest % round(length_s * sample_rate_hz):
            raise ValueError(f"{max(lengths_s)} s is not a whole number of pieces of {length_s} s")
    pieces = [wav[start : start + longest] for wav in wavs for start in range(0, len(wav) - longest + 1, longest)]
    if not pieces:
        have_s = max(map(len, wavs), default=0) / sample_rate_hz
        raise ValueError(f"no recording is {max(lengths_s)} s long; the longest has {have_s:.1f} s")
    table = {}
    for length_s in lengths_s:
        num_samples = round(length_s * sample_rate_hz)
        scores = []
        for piece in pieces:
            parts = [piece[start : start + num_samples] for start in range(0, longest, num_samples)]
            decoded = [to_mono(codec.reconstruct(part, bottleneck, sample_rate_hz=sample_rate_hz)[0]) for part in parts]
            scores.append(score(piece, np.concatenate(decoded), sample_rate_hz, ["stoi", "pesq_raw_nb"]))
        table[length_s] = {}
        for name in ("stoi", "pesq_raw_nb"):
            mean, low, high = bootstrap_ci([row[name] for row in scores])
            table[length_s][name] = {"mean": mean, "low": low, "high": high, "num_clips": len(scores)}
    return table


def boundary_line_db(wav: np.ndarray, sample_rate_hz: int, line_hz: float, neighbours_hz: float = 4.0) -> float:
    """How far a modulation at `line_hz` stands above its neighbours: clicks at frame boundaries make such a line.

    Clicks are broad and speech falls off with frequency, so the energy of the second difference of the samples, which
    stresses what is high and sudden, is taken over 2.5 ms. The modulation spectrum of its logarithm is compared at the
    line with its mean over `neighbours_hz` on both sides. Speech alone gives 0 dB on average; a click 40 dB below the
    speech at every 40 ms shows.

    Args:
        wav: (n,), some seconds; the longer, the surer.
        sample_rate_hz: Of the samples.
        line_hz: 25 for latent frames of 40 ms, 50 for patches of 20 ms.
        neighbours_hz: Width on each side.

    Returns:
        Decibels.

    Raises:
        ValueError: If the recording is shorter than two seconds.
    """
    envelope = _log_envelope(wav, sample_rate_hz, line_hz, floor=1e-4)
    power = np.abs(np.fft.rfft(envelope * np.hanning(len(envelope)))) ** 2
    frequencies = np.fft.rfftfreq(len(envelope), 1 / 400)
    resolution = 2 * frequencies[1]  # of the Hann window
    distance = np.abs(frequencies - line_hz)
    on_line = power[distance <= 0.5 * resolution].mean()
    beside = power[(distance > resolution) & (distance <= neighbours_hz)].mean()
    return float(10 * np.log10(on_line / beside))


def modulation_depth(wav: np.ndarray, sample_rate_hz: int, line_hz: float) -> float:
    """How deep the modulation is that `boundary_line_db` finds: m of an envelope 1 + m cos(2 pi line_hz t).

    A line may stand far above its neighbours in minutes of speech and still be too shallow to hear: in broadband noise
    listeners detect modulations from about 0.05 up to 50 Hz, and only deeper ones above (Viemeister 1979). What is 20
    dB below the mean counts for little here, so that pauses do not.

    Args:
        wav: (n,), some seconds; chance makes 0.002 to 0.008 in four minutes of speech.
        sample_rate_hz: Of the samples.
        line_hz: As there.

    Raises:
        ValueError: If the recording is shorter than two seconds.
    """
    envelope = _log_envelope(wav, sample_rate_hz, line_hz, floor=1e-2)
    window = np.hanning(len(envelope))
    turns = np.exp(-2j * np.pi * line_hz / 400 * np.arange(len(envelope)))
    # Energy goes as 1 + 2 m cos, and half of a cosine turns this way.
    return float(abs((envelope * window * turns).sum()) / window.sum())


def _log_envelope(wav: np.ndarray, sample_rate_hz: int, line_hz: float, floor: float) -> np.ndarray:
    """Log energies of second differences in steps of 2.5 ms without their mean, a whole number of periods."""
    if len(wav) < 2 * sample_rate_hz:
        raise ValueError(f"two seconds at least are needed, got {len(wav) / sample_rate_hz:.2f} s")
    hop = sample_rate_hz // 400
    bends = np.diff(wav.astype(np.float64), 2) ** 2
    energies = bends[: len(bends) // hop * hop].reshape(-1, hop).mean(axis=1)
    envelope = np.log(energies + floor * energies.mean() + 1e-20)
    period = round(400 / line_hz)
    envelope = envelope[: len(envelope) // period * period]
    return envelope - envelope.mean()


def fold_deviation_db(wavs: Sequence[np.ndarray], period_samples: int) -> float:
    """How unevenly the energy falls on the samples of a frame, averaged over all frames: 0 dB is no pattern at all.

    A decoder that writes frames of fixed length may write some of its samples louder than others, in every frame. What
    results is noise that pulses at the frame rate, a roughness. Each frame's energies are divided by their mean and
    averaged over frames; the standard deviation of their decibels over the `period_samples` places is returned. With
    few frames it is not 0 for speech either (about 0.5 dB for 1000 frames), so compare with the original.

    Args:
        wavs: (n,) recordings that begin at a frame boundary.
        period_samples: 640 for the 40 ms frames of 16 kHz models.
    """
    frames = np.concatenate(
        [wav[: len(wav) // period_samples * period_samples].reshape(-1, period_samples) for wav in wavs]
    )
    energies = frames.astype(np.float64) ** 2
    means = energies.mean(axis=1, keepdims=True)
    is_loud = means[:, 0] > 0.02 * means.mean()
    folded = (energies[is_loud] / means[is_loud]).mean(axis=0)
    return float(np.std(10 * np.log10(folded + 1e-6)))
