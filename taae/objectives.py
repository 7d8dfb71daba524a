"""From a batch to losses: what the autoencoder and the discriminator minimise (section 3.4), and numbers on both.

Pretraining is Eq. 8, finetuning Eq. 10; without a discriminator there are reconstruction losses alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from taae.adversarial import (
    AdversarialConfig,
    View,
    adversarial_loss,
    discriminator_accuracy,
    discriminator_hinge_loss,
    feature_matching_terms,
    generator_weights,
    judge,
    weighted_sum,
)
from taae.discriminators import ScaleOutput
from taae.fsq import quantize, quantize_hybrid
from taae.losses import ReconstructionLoss, stft_l1_loss, wav_l1_loss
from taae.model import TAAE
from taae.perceptual import CTCHead, WavLM, perceptual_loss
from taae.recipe import TrainConfig
from taae.recogniser import load_recogniser
from taae.rvq import ResidualVQ
from taae.utterances import Spoken


class Losses(NamedTuple):
    """What to minimise, and the terms and measurements to log, all 0-dimensional."""

    total: Tensor
    numbers: dict[str, Tensor]


class Reconstructed(NamedTuple):
    """Decoded speech in float32, as long as the target; latents before tanh; losses of CTC head and RVQ, or None."""

    decoded: Float[Tensor, "b 1 n"]
    latents: Float[Tensor, "b s d"]
    ctc_loss: Tensor | None
    rvq_loss: Tensor | None


class Reconstruct(nn.Module):
    """The autoencoder in one pass, as DDP and FSDP2 want it: encode, quantise (as in training or for good), decode."""

    def __init__(
        self, model: TAAE, dtype: torch.dtype, ctc: CTCHead | None = None, rvq: ResidualVQ | None = None
    ) -> None:
        super().__init__()
        self.model, self.dtype, self.ctc, self.rvq = model, dtype, ctc, rvq

    def forward(
        self, wav: Float[Tensor, "b 1 n"], levels: int, generator: torch.Generator, spoken: Spoken | None = None
    ) -> Reconstructed:
        """Encode and decode `wav`; the CTC head reads the latents of `spoken`, which only the encoder hears."""
        fsq, ctc_loss, rvq_loss = self.model.config.fsq, None, None
        with torch.autocast(wav.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if self.ctc is not None and spoken is not None:
                said = self.model.encode_latents(spoken.wav)
                ctc_loss = self.ctc.loss(said, spoken.transcripts, spoken.num_frames)
            latents = self.model.encode_latents(wav)
            if self.rvq is not None:
                codes, _, rvq_loss = self.rvq(latents)
            elif self.training:
                codes = quantize_hybrid(
                    latents,
                    levels,
                    noise_probability=fsq.noise_probability,
                    noise_mode=fsq.noise_mode,
                    generator=generator,
                )
            else:
                codes = quantize(latents, levels)
            decoded = self.model.decode_latents(codes)
        return Reconstructed(decoded[..., : wav.shape[-1]].float(), latents.float(), ctc_loss, rvq_loss)


class GeneratorLosses(nn.Module):
    """What the autoencoder minimises."""

    def __init__(self, config: TrainConfig, sample_rate_hz: int) -> None:
        super().__init__()
        self.adversarial = config.adversarial
        self.reconstruction = ReconstructionLoss(config.loss, sample_rate_hz)
        needs_wavlm = config.adversarial is not None and config.adversarial.perceptual_weight > 0
        self.wavlm = WavLM(Path(config.wavlm)) if needs_wavlm else None
        self.recogniser = load_recogniser(Path(config.recogniser)) if config.recogniser else None
        self.recogniser_weight = config.recogniser_weight

    def forward(
        self,
        wav: Float[Tensor, "b 1 n"],
        decoded: Float[Tensor, "b 1 n"],
        generator: torch.Generator,
        step: int = 0,
        outputs: tuple[list[ScaleOutput], list[ScaleOutput]] | None = None,
        names: Sequence[str] = (),
    ) -> Losses:
        """Eq. 8 or 10 with the weights of `step`, or reconstruction losses.

        Args:
            wav: Target.
            decoded: What the autoencoder made of it.
            generator: Draws the resolutions of the reconstruction losses.
            step: Steps done.
            outputs: Of the discriminator for `wav` (without gradients) and for `decoded`.
            names: Of the scales in `outputs`.
        """
        if self.adversarial is None:
            numbers = self.reconstruction(wav, decoded, generator)
            if self.recogniser is not None:
                with torch.no_grad():
                    target = self.recogniser(wav)
                numbers["perceptual"] = self.recogniser_weight * perceptual_loss(target, self.recogniser(decoded))
            return Losses(torch.stack(list(numbers.values())).sum(), numbers)
        weights = generator_weights(self.adversarial, step)
        losses, numbers = {}, {}
        if weights["wav"]:
            losses["wav"] = wav_l1_loss(wav, decoded)
        if weights["stft"]:
            losses["stft"] = stft_l1_loss(wav, decoded)
        if weights["reconstruction"]:
            terms = self.reconstruction(wav, decoded, generator)
            losses["reconstruction"] = torch.stack(list(terms.values())).sum()
        if self.wavlm is not None:
            with torch.no_grad():
                target = self.wavlm(wav)
            losses["perceptual"] = perceptual_loss(target, self.wavlm(decoded))
        if outputs is not None:
            real, fake = outputs
            terms = feature_matching_terms(real, fake)
            losses["feature_matching"] = torch.stack([scale.mean() for scale in terms]).mean()
            losses["adversarial"] = adversarial_loss(fake)
            for name, values in zip(names, terms, strict=True):
                numbers |= {f"matching/{name}/{layer}": value for layer, value in enumerate(values)}
        return Losses(weighted_sum(losses, weights), losses | numbers)


def discriminator_losses(
    config: AdversarialConfig,
    discriminator: nn.Module,
    wav: Float[Tensor, "b 1 n"],
    decoded: Float[Tensor, "b 1 n"],
    view: View,
    names: Sequence[str],
) -> tuple[Losses, list[ScaleOutput]]:
    """What the discriminator minimises, its accuracy on every scale, and what it says of `wav`, without gradients.

    Real and decoded speech go through it together: one forward pass is what DDP and FSDP2 are made for.
    """
    outputs = judge(config, discriminator, torch.cat([wav, decoded.detach()]), view)
    real, fake = _half(outputs, 0), _half(outputs, 1)
    loss = discriminator_hinge_loss(real, fake)
    numbers = {"discriminator": loss}
    accuracy = discriminator_accuracy(real, fake)
    numbers |= {f"accuracy/{name}": value for name, value in zip(names, accuracy, strict=True)}
    detached = [ScaleOutput(scale.logits.detach(), [layer.detach() for layer in scale.features]) for scale in real]
    return Losses(loss, numbers), detached


def codebook_use(latents: Float[Tensor, "b s d"], levels: int) -> dict[str, Tensor]:
    """How much of the quantiser a batch uses.

    "codebook/entropy": entropy of the levels of a dimension over log(levels), averaged over dimensions: 1 where all are
    used alike. "codebook/lowest" is that of the least used dimension. "codebook/distinct": different codes per frame; 1
    where no two frames of the batch have the same code.
    """
    digits = ((quantize(latents, levels) + 1) / 2 * (levels - 1)).round().long().flatten(0, 1)
    shares = torch.nn.functional.one_hot(digits, levels).double().mean(dim=0)  # (d, levels)
    entropies = torch.special.entr(shares).sum(dim=1) / torch.tensor(levels).log()
    distinct = len(torch.unique(digits, dim=0)) / len(digits)
    return {
        "codebook/entropy": entropies.mean(),
        "codebook/lowest": entropies.min(),
        "codebook/distinct": torch.tensor(distinct, device=latents.device),
    }


def _half(outputs: list[ScaleOutput], half: int) -> list[ScaleOutput]:
    return [
        ScaleOutput(scale.logits.chunk(2)[half], [layer.chunk(2)[half] for layer in scale.features])
        for scale in outputs
    ]
