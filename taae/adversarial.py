"""Adversarial training (section 3.4): hinge loss, normalised feature matching (Eq. 7), the weights of Eq. 8 and 10."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from taae.discriminators import Ensemble, ScaleOutput
from taae.discriminators_peers import build_discriminator, discriminator_config
from taae.fsq import at_least_float32


@dataclass(frozen=True, slots=True, kw_only=True)
class AdversarialConfig:
    """A discriminator, and how its judgement and the other losses add up; the defaults are Eq. 8 (pretraining).

    Eq. 10 (finetuning) has `wav_weight=0`, `stft_weight=0`, `perceptual_weight=1`.

    Attributes:
        architecture: "paper", "encodec", "dac" or "bigvgan".
        discriminator: Changes to that architecture's published configuration, such as {"channels": 16}.
        feature_matching_weight: Of Eq. 7.
        adversarial_weight: Of the generator's hinge term, which the paper leaves out.
        wav_weight: Of the L1 distance of samples; decays, like the next two.
        stft_weight: Of the L1 distance of STFT magnitudes.
        reconstruction_weight: Of `losses.ReconstructionLoss` (multi-resolution mel), which the paper does not have.
        perceptual_weight: Of Eq. 9.
        gamma: Factor per step of the decaying weights.
        warmup_steps: Steps at the start without feature matching and adversarial term.
        scales_per_step: Sub-discriminators that a step draws at random; 0 takes all.
        window_s: Length of the part of a crop that they hear, drawn at random; 0 takes the whole crop.
        is_bf16: Convolutions in bfloat16; spectra and losses stay in float32.
        is_channels_last: Memory layout of the convolutions, several times faster with bfloat16 on a CPU.
    """

    architecture: str = "paper"
    discriminator: dict[str, Any] = field(default_factory=dict)
    feature_matching_weight: float = 1.0
    adversarial_weight: float = 0.0
    wav_weight: float = 1.0
    stft_weight: float = 1.0
    reconstruction_weight: float = 0.0
    perceptual_weight: float = 0.0
    gamma: float = 0.9999
    warmup_steps: int = 0
    scales_per_step: int = 0
    window_s: float = 0.0
    is_bf16: bool = False
    is_channels_last: bool = False

    def __post_init__(self) -> None:
        discriminator_config(self.architecture, self.discriminator)  # a wrong key is found here, not in training
        for key in ("feature_matching", "adversarial", "wav", "stft", "reconstruction", "perceptual"):
            if getattr(self, f"{key}_weight") < 0:
                raise ValueError(f"{key}_weight must not be negative, got {getattr(self, f'{key}_weight')}")
        for key in ("warmup_steps", "scales_per_step", "window_s"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, got {getattr(self, key)}")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], got {self.gamma}")


class View(NamedTuple):
    """What a step shows the discriminator: samples [start, stop) of every crop, to the sub-discriminators `scales`."""

    scales: list[int]
    start: int
    stop: int


def build_adversary(config: AdversarialConfig) -> Ensemble:
    """The fresh discriminator that `config` names, in its memory layout."""
    discriminator = build_discriminator(config.architecture, **config.discriminator)
    if config.scales_per_step > discriminator.num_scales:
        raise ValueError(
            f"scales_per_step is {config.scales_per_step}, but {config.architecture!r} has {discriminator.num_scales}"
        )
    if config.is_channels_last:
        for module in discriminator.modules():
            if isinstance(module, nn.Conv2d):  # it answers in the layout of its input, so only the first ones copy
                module.register_forward_pre_hook(_to_channels_last)
    return discriminator


def _to_channels_last(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0].contiguous(memory_format=torch.channels_last)


def draw_view(
    config: AdversarialConfig, num_scales: int, num_samples: int, sample_rate_hz: int, generator: torch.Generator
) -> View:
    """Draw what a step shows. A loss over random scales has the expectation of that over all of them.

    All ranks must draw the same scales, or they wait for gradients that others do not have: seed by (seed, step) alone.
    """
    drawn = torch.randperm(num_scales, generator=generator)[: config.scales_per_step or num_scales]
    length = min(round(config.window_s * sample_rate_hz) or num_samples, num_samples)
    start = int(torch.randint(num_samples - length + 1, (), generator=generator))
    return View(sorted(drawn.tolist()), start, start + length)


def judge(
    config: AdversarialConfig, discriminator: nn.Module, wav: Float[Tensor, "b 1 n"], view: View
) -> list[ScaleOutput]:
    """Outputs for the part of `wav` that `view` shows, in the precision of the config; logits in float32 or wider.

    `discriminator` is an `Ensemble`, or what wraps one for distributed training.
    """
    part = wav[..., view.start : view.stop]
    # Without the cache: it would keep the weights of the discriminator's step for the generator's, in one autocast.
    with torch.autocast(wav.device.type, torch.bfloat16, enabled=config.is_bf16, cache_enabled=False):
        outputs = discriminator(part, view.scales)
    return [ScaleOutput(at_least_float32(scale.logits), scale.features) for scale in outputs]


def discriminator_hinge_loss(real: list[ScaleOutput], fake: list[ScaleOutput]) -> Tensor:
    """What the discriminator minimises: max(0, 1 - D(x)) + max(0, 1 + D(x^)), averaged over each scale, then scales."""
    losses = [F.relu(1 - r.logits).mean() + F.relu(1 + f.logits).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def adversarial_loss(fake: list[ScaleOutput]) -> Tensor:
    """The generator's term of the hinge game: -D(x^), averaged over each scale, then scales."""
    return -torch.stack([scale.logits.mean() for scale in fake]).mean()


def feature_matching_terms(real: list[ScaleOutput], fake: list[ScaleOutput], eps: float = 1e-3) -> list[Tensor]:
    """The summands of Eq. 7: for each scale a vector with one value per layer."""
    terms = []
    for real_scale, fake_scale in zip(real, fake, strict=True):
        layers = []
        for target, decoded in zip(real_scale.features, fake_scale.features, strict=True):
            wide = torch.promote_types(target.dtype, torch.float32)
            layers.append((target - decoded).abs().mean(dtype=wide) / (target.abs().mean(dtype=wide) + eps))
        terms.append(torch.stack(layers))
    return terms


def feature_matching_loss(real: list[ScaleOutput], fake: list[ScaleOutput], eps: float = 1e-3) -> Tensor:
    """Eq. 7: mean |D(x) - D(x^)| / (mean |D(x)| + eps) of every layer, averaged over layers, then scales.

    `eps` is not in the paper but in the published code. Gradients flow into both arguments: where only the generator
    learns, compute `real` without gradients.
    """
    return torch.stack([terms.mean() for terms in feature_matching_terms(real, fake, eps)]).mean()


def discriminator_accuracy(real: list[ScaleOutput], fake: list[ScaleOutput]) -> Float[Tensor, " scales"]:
    """Share of logits on the right side of 0 for each scale: 0.5 is chance, 1 a discriminator that has won."""
    with torch.no_grad():
        right = [
            ((r.logits > 0).float().mean() + (f.logits < 0).float().mean()) / 2 for r, f in zip(real, fake, strict=True)
        ]
        return torch.stack(right)


def generator_weights(config: AdversarialConfig, step: int) -> dict[str, float]:
    """Weight of every term in step `step`, counted from 0: Eq. 8 with k = step + 1, as the published code counts.

    Terms: "feature_matching", "adversarial", "perceptual", and "wav", "stft", "reconstruction", which decay.
    """
    decay = config.gamma ** (step + 1)
    is_warm = step >= config.warmup_steps
    return {
        "feature_matching": config.feature_matching_weight * is_warm,
        "adversarial": config.adversarial_weight * is_warm,
        "perceptual": config.perceptual_weight,
        "wav": config.wav_weight * decay,
        "stft": config.stft_weight * decay,
        "reconstruction": config.reconstruction_weight * decay,
    }


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Eq. 8 or 10: the sum of `losses`, each times the weight of its name.

    Raises:
        ValueError: If a term has a weight but no loss was computed for it, or a loss has no weight.
    """
    wanted = {name for name, weight in weights.items() if weight}
    if not wanted <= set(losses) <= set(weights):
        raise ValueError(f"losses {sorted(losses)} do not fit weights {dict(weights)}")
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
