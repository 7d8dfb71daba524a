"""The study of appendix B.5: which losses are biased towards particular samples and frequencies, and by how much.

`measure` averages the sensitivity of a discriminator's losses over inputs and rates the lines in it. Pictures are in
`workbench.figures_bias`; training a discriminator for the second half of the study is in `workbench.bias_training`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import taae
from taae.adversarial import adversarial_loss, discriminator_hinge_loss, feature_matching_loss
from taae.audio import load_wav, loudness_gain, resample, to_mono
from taae.discriminators import Ensemble, ScaleOutput
from taae.discriminators_peers import DACDiscriminator, build_discriminator
from taae.sensitivity import Bias, PairLosses, Sensitivity, average_sensitivity, measure_bias

EXAMPLES = Path(__file__).parent / "ui" / "examples"
SAMPLE_RATE_HZ = 16000
NO_DISCRIMINATOR = "No discriminator"

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A discriminator of the study.

    Attributes:
        title: What figures and tables call it.
        architecture: As `taae.discriminators_peers.build_discriminator` takes it.
        changes: To its published configuration, but for the channels, which the study sets.
    """

    title: str
    architecture: str
    changes: Mapping[str, Any] = field(default_factory=dict)


_POWERS_8 = (16, 32, 64, 128, 256, 512, 1024, 2048)
# Hops 512 / phi^k as Encodec's longest, rounded down, four of them in a window.
_GOLDEN_5 = (296, 480, 780, 1264, 2048)

# As published, and each with what the paper changes (FFT sizes) or leaves open (frequency stride) changed alone.
VARIANTS = (
    Variant(title="Encodec: powers of two, strided", architecture="encodec"),
    Variant(title="Encodec, golden ratio, strided", architecture="encodec", changes={"fft_sizes": _GOLDEN_5}),
    Variant(title="Encodec, not strided", architecture="encodec", changes={"is_frequency_strided": False}),
    Variant(
        title="Paper, powers of two, strided",
        architecture="paper",
        changes={"fft_sizes": _POWERS_8, "is_frequency_strided": True},
    ),
    Variant(title="Paper: golden ratio, strided", architecture="paper", changes={"is_frequency_strided": True}),
    Variant(title="Paper, powers of two, not strided", architecture="paper", changes={"fft_sizes": _POWERS_8}),
    Variant(title="Paper: golden ratio, not strided", architecture="paper"),
    Variant(title="DAC: periods and STFTs", architecture="dac"),
    Variant(title="BigVGAN: periods and STFTs", architecture="bigvgan"),
)


def trained_variants(is_frequency_strided: bool) -> list[Variant]:
    """Those that the study trains: Encodec's, and the paper's without and with the power law of Eq. 13."""
    stride = {"is_frequency_strided": is_frequency_strided}
    return [
        Variant(title="Encodec", architecture="encodec", changes=stride),
        Variant(title="Paper, alpha 0", architecture="paper", changes=stride | {"alpha": 0.0}),
        Variant(title="Paper, alpha 1/2", architecture="paper", changes=stride | {"alpha": 0.5}),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Sensitivity of one loss of one variant, and the numbers for its lines.

    Attributes:
        bias: Of the average over inputs.
    """

    variant: str
    loss: str
    sensitivity: Sensitivity
    bias: Bias


def speech_clips(manifest: Path | None = None, *, max_clips: int = 40, language: str | None = None) -> list[np.ndarray]:
    """Clips at 16 kHz and -20 LUFS, (n,) each: of a manifest (JSON lines with `path`), or the examples of this package.

    Raises:
        ValueError: If the manifest is missing or names no clip in `language`.
    """
    if manifest is None:
        paths = sorted(EXAMPLES.glob("*.flac"))
    else:
        from taae.evaluate import read_manifest

        paths = [clip.path for clip in read_manifest(manifest) if language in (None, clip.language)]
        paths = paths[:: max(1, len(paths) // max_clips)][:max_clips]  # from all over: neighbours share a speaker
    if not paths:
        raise ValueError(f"no clips in {manifest or EXAMPLES}" + (f" in language {language!r}" if language else ""))
    clips = []
    for path in paths:
        wav, rate_hz = load_wav(path)
        mono = resample(to_mono(wav), rate_hz, SAMPLE_RATE_HZ)
        clips.append(mono * np.float32(loudness_gain(mono, SAMPLE_RATE_HZ)))
    return clips


def decoded_pairs(
    clips: Sequence[np.ndarray], *, model: str = "mini", bottleneck: str = "2x5^6"
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each clip beside what a codec makes of it: what a discriminator in training has to tell apart."""
    codec = taae.load(model)
    pairs = []
    for clip in tqdm(clips, desc=f"decoding with {codec.name}", unit="clip"):
        decoded, _ = codec.reconstruct(clip, bottleneck)
        pairs.append((clip, decoded[0, 0].numpy()))
    return pairs


def random_crops(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, num_crops: int, segment_s: float = 1.0, seed: int = 0
) -> Iterator[Pair]:
    """The same crop of both sides of a pair, (1, 1, n) each, drawn by duration.

    Raises:
        ValueError: If no clip is longer than `segment_s`.
    """
    length = round(segment_s * SAMPLE_RATE_HZ)
    starts = np.array([max(0, len(clip) - length) for clip, _ in pairs], dtype=np.float64)
    if not starts.sum():
        raise ValueError(f"no clip is longer than segment_s = {segment_s}; choose a shorter one")
    rng = np.random.default_rng(seed)
    for _ in range(num_crops):
        index = int(rng.choice(len(pairs), p=starts / starts.sum()))
        start = int(rng.integers(int(starts[index])))
        target, decoded = (torch.from_numpy(wav[start : start + length].copy())[None, None] for wav in pairs[index])
        yield target, decoded


def noise_pairs(*, num_crops: int, segment_s: float = 1.0, seed: int = 0) -> Iterator[Pair]:
    """White noise at -20 dB, and the same with other noise 6 dB below added: inputs with no structure of their own."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_crops):
        target = 0.1 * torch.randn(1, 1, round(segment_s * SAMPLE_RATE_HZ), generator=generator)
        yield target, target + 0.05 * torch.randn(target.shape, generator=generator)


def fresh_discriminator(variant: Variant, *, channels: int, seed: int) -> Ensemble:
    """The variant with `channels` channels and random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_discriminator(variant.architecture, channels=channels, **variant.changes)


def outputs(discriminator: Ensemble, wav: Tensor) -> list[ScaleOutput]:
    """What the discriminator says; that of DAC behind a gain held constant.

    DAC's divides by the peak of its input, so that the derivative by that one sample is some 40 dB above all others:
    true of every input, but never at the same place, and it would hide what is.
    """
    if isinstance(discriminator, DACDiscriminator):
        wav = wav - wav.mean(dim=-1, keepdim=True)
        wav = 0.8 * wav / (wav.detach().abs().amax(dim=-1, keepdim=True) + 1e-9)
        return Ensemble.forward(discriminator, wav)
    return discriminator(wav)


def discriminator_losses(discriminator: Ensemble) -> PairLosses:
    """Feature matching (Eq. 7), the generator's adversarial loss and the discriminator's own, by the decoded wav."""

    def losses(target: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            real = outputs(discriminator, target)
        fake = outputs(discriminator, decoded)
        return {
            "feature matching": feature_matching_loss(real, fake),
            "adversarial": adversarial_loss(fake),
            "discriminator": discriminator_hinge_loss(real, fake),
        }

    return losses


def reconstruction_losses(fft_size: int = 1024) -> PairLosses:
    """L1 and L2 of samples, and L1 of STFT magnitudes with Hann windows a quarter of their length apart.

    "STFT without overlap" has them a whole length apart, against the condition that B.5 names.
    """
    window = torch.hann_window(fft_size)

    def distance(target: Tensor, decoded: Tensor, hop_samples: int) -> Tensor:
        magnitudes = [
            torch.stft(wav[:, 0], fft_size, hop_samples, window=window, center=False, return_complex=True).abs()
            for wav in (target, decoded)
        ]
        return (magnitudes[0] - magnitudes[1]).abs().mean()

    def losses(target: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        return {
            "L1": (target - decoded).abs().mean(),
            "L2": (target - decoded).square().mean(),
            "STFT": distance(target, decoded, fft_size // 4),
            "STFT without overlap": distance(target, decoded, fft_size),
        }

    return losses


def measure(title: str, losses: PairLosses, pairs: Iterable[Pair], *, num_inputs: int) -> list[Result]:
    """Average the sensitivity of `losses` over `pairs` and rate it; with a progress bar."""
    bar = tqdm(pairs, desc=title, total=num_inputs, unit="input")
    # As an iterator: the type checker of the tests takes an item out of whatever has a length.
    averages = average_sensitivity(losses, iter(bar), sample_rate_hz=SAMPLE_RATE_HZ)
    return [
        Result(variant=title, loss=name, sensitivity=average, bias=measure_bias(average))
        for name, average in averages.items()
    ]


def study(
    variants: Sequence[Variant],
    speech: Sequence[tuple[np.ndarray, np.ndarray]] | None,
    *,
    channels: int,
    num_inputs: int,
    seed: int = 0,
) -> list[Result]:
    """Rate fresh discriminators, and the losses that need none, on the same inputs.

    Args:
        variants: Some of `VARIANTS`.
        speech: From `decoded_pairs`; None for white noise.
        channels: Of every discriminator, in place of the published 32 or 256.
        num_inputs: One second each.
        seed: Of the weights and the inputs.
    """

    def pairs() -> Iterator[Pair]:
        if speech is None:
            return noise_pairs(num_crops=num_inputs, seed=seed)
        return random_crops(speech, num_crops=num_inputs, seed=seed)

    results = measure(NO_DISCRIMINATOR, reconstruction_losses(), pairs(), num_inputs=num_inputs)
    for variant in variants:
        discriminator = fresh_discriminator(variant, channels=channels, seed=seed).requires_grad_(False)
        results += measure(variant.title, discriminator_losses(discriminator), pairs(), num_inputs=num_inputs)
    return results


def row(result: Result) -> dict[str, Any]:
    """The numbers of a result: levels in dB, the spacing of the grid in samples and in Hz."""
    time, frequency = result.bias.time, result.bias.frequency
    return {
        "variant": result.variant,
        "loss": result.loss,
        "num_inputs": result.sensitivity.num_inputs,
        "grid_db": round(result.bias.grid_db, 2),
        "time_peak_db": round(time.peak_db, 2),
        "time_uneven_db": round(time.uneven_db, 2),
        "time_regularity": round(time.regularity, 2),
        "time_spacing_samples": round(time.spacing * result.sensitivity.sample_rate_hz),
        "frequency_peak_db": round(frequency.peak_db, 2),
        "frequency_uneven_db": round(frequency.uneven_db, 2),
        "frequency_regularity": round(frequency.regularity, 2),
        "frequency_spacing_hz": round(frequency.spacing, 1),
    }


def ranking(results: Sequence[Result], losses: Sequence[str]) -> list[dict[str, Any]]:
    """`row` of every result with one of `losses`, the most regular lines first."""
    chosen = [result for result in results if result.loss in losses]
    return [row(result) for result in sorted(chosen, key=lambda result: -result.bias.grid_db)]
