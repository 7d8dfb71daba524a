"""The networks of a run, how one step changes them, and how they are saved, restored and started from others."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from taae.adversarial import (
    AdversarialConfig,
    View,
    build_adversary,
    discriminator_hinge_loss,
    draw_view,
    feature_matching_loss,
    generator_weights,
    judge,
)
from taae.checkpoint import RVQ, fused_state, load_fused_state, load_model, save_model
from taae.data import open_crops
from taae.discriminators import ScaleOutput
from taae.distributed import ALONE, World, distribute, frozen, gradient_sync
from taae.files import write_atomic
from taae.fsq import draw_levels, quantize
from taae.learner import Learner
from taae.model import TAAE
from taae.monitor import keep_batch
from taae.objectives import GeneratorLosses, Losses, Reconstruct, codebook_use, discriminator_losses
from taae.perceptual import CTCHead
from taae.recipe import TrainConfig, learning_rate_factor, model_config
from taae.sensitivity import Analysis, sensitivity
from taae.training_state import checkpoint_sizes, checkpoints, load_checkpoint, save_checkpoint
from taae.transplant import grow, make_causal
from taae.utterances import Spoken, Utterances

DISCRIMINATOR = "discriminator.safetensors"

logger = logging.getLogger(__name__)

# Steps that no training reaches: their crops serve other ends.
_LEVEL_STEP, _EXAMPLE_STEP, _FIT_STEP = 2**40, 2**41, 2**42
_FIT_S = 400  # of speech for least squares

# Shorter than a syllable and longer than a pitch period; its sizes are in no discriminator.
_ANALYSIS = Analysis(fft_size=600, hop_samples=150)


class Trainer:
    """Autoencoder and discriminator of a run, and how one step changes them.

    Args:
        config: The recipe.
        run: Folder of the run.
        shared: Folder that the recipe's manifest is relative to.
        world: The processes that train together.

    Raises:
        ValueError: If what the recipe names does not exist or does not fit.

    Attributes:
        model: The autoencoder as it is trained; `averaged_model` is what gets saved.
        step: Steps done.
    """

    def __init__(self, config: TrainConfig, run: Path, shared: Path, world: World = ALONE) -> None:
        if config.micro_batches % world.size:
            raise ValueError(
                f"micro_batches is {config.micro_batches}, which {world.size} processes cannot share equally; make it "
                f"a multiple of {world.size} (data.batch_size crops each), or start another number of processes"
            )
        self.config, self.run, self.world, self.step = config, run, world, 0
        torch.manual_seed(config.seed)
        self.model = TAAE(model_config(config))
        adversary = build_adversary(config.adversarial) if config.adversarial else None
        self.sample_rate_hz = self.model.config.sample_rate_hz
        self.shared, self.packed = shared, run.parent / "packed"
        mine = range(world.rank, config.micro_batches, world.size)
        self.crops = {stream: self._open_crops(config.data, stream) for stream in mine}
        self.other_crops = self._open_crops(replace(config.data, num_workers=0), 0)
        if config.init:
            self._initialise(adversary)
        self.rvq = config.rvq.build(self.model.config.latent_dim, config.seed) if config.rvq else None
        self.codec = self._codec_learner()
        self.adversary, self.discriminator = adversary, self._discriminator_learner(adversary)
        self.losses = GeneratorLosses(config, self.sample_rate_hz).to(world.device)
        self.utterances = {
            stream: Utterances(
                shared / config.data.manifest, config.ctc, self.model.config, seed=config.seed, stream=stream
            )
            for stream in mine
            if config.ctc
        }

    def _open_crops(self, data: Any, stream: int) -> Any:
        config = self.config
        return open_crops(
            data, self.shared, self.packed, self.sample_rate_hz, config.seed, stream, config.micro_batches
        )

    def _initialise(self, adversary: nn.Module | None) -> None:
        """Load what `config.init` names: a run (autoencoder and discriminator) or a model, transplanted if need be."""
        run = Path(self.config.init)
        is_run = (run / "model").is_dir()
        try:
            source = load_model(run / "model" if is_run else self.config.init)[0]
            ours, theirs = self.model.config, source.config
            if (ours.hop_samples, ours.patch_samples) == (theirs.hop_samples, theirs.patch_samples / 2):
                source = grow(source, self._speech_to_fit(), ours.depths[0], self.config.seed)
            elif ours.is_causal and not theirs.is_causal:
                source = make_causal(source, ours, self._speech_to_fit())
            load_fused_state(self.model, fused_state(source))
        except ValueError as error:
            raise ValueError(f"init = {self.config.init!r}: {error}") from None
        if adversary is None:
            return
        if not (run / DISCRIMINATOR).is_file():
            logger.warning(
                "init = %r has no %s; the discriminator starts from random weights", self.config.init, DISCRIMINATOR
            )
            return
        try:
            adversary.load_state_dict(load_file(run / DISCRIMINATOR))
        except (RuntimeError, SafetensorError) as error:
            first = str(error).splitlines()[-1].strip()
            raise ValueError(
                f"init: {run / DISCRIMINATOR} does not fit [adversarial]: {first}; use the architecture and the sizes "
                "of that run"
            ) from None

    def _speech_to_fit(self) -> Tensor:
        data = self.config.data
        num_batches = math.ceil(_FIT_S / (data.batch_size * data.segment_s))
        crops = [self.other_crops.batch(_FIT_STEP + index) for index in range(num_batches)]
        return torch.from_numpy(np.concatenate(crops))

    def _codec_learner(self) -> Learner:
        config, model = self.config, self.model
        dtype = torch.bfloat16 if config.is_bf16 else torch.float16 if config.is_fp16 else torch.float32
        ctc = CTCHead(config.ctc.head, model.config.latent_dim) if config.ctc else None
        module = Reconstruct(model, dtype, ctc, self.rvq).to(self.world.device)
        layers = [layer for block in (*model.encoder.blocks, *model.decoder.blocks) for layer in block.children()]
        wrapped = distribute(module, self.world, config.strategy, layers, has_idle_parameters=False)
        parts = {"encoder": model.encoder, "decoder": model.decoder} | ({"ctc": ctc} if ctc else {})
        return Learner(module, wrapped, config, parts)

    def _discriminator_learner(self, adversary: Any) -> Learner | None:
        if adversary is None or self.config.adversarial is None:
            return None
        adversary.to(self.world.device)
        parts = dict(zip(adversary.scale_names, adversary.members, strict=True))
        is_partial = self.config.adversarial.scales_per_step > 0
        wrapped = distribute(adversary, self.world, self.config.strategy, (), has_idle_parameters=is_partial)
        return Learner(adversary, wrapped, self.config, parts, is_discriminator=True)

    def train_step(self) -> dict[str, float]:
        """One update of both networks, each by the gradients at the weights before it; returns what to log.

        Raises:
            RuntimeError: If a loss or a gradient is not finite; the batch is written into the run's folder.
        """
        view, rows, names, wav = self._draw_view(), [], [], torch.empty(0)
        for stream, crops in self.crops.items():
            wav = torch.from_numpy(crops.batch(self.step)).to(self.world.device)
            numbers = self._backward(wav, stream, view, is_last=stream == max(self.crops))
            names = list(numbers)
            rows.append(torch.stack([value.detach().double() for value in numbers.values()]))
        means = dict(zip(names, torch.stack(rows).mean(dim=0).tolist(), strict=True))
        factor = learning_rate_factor(self.config, self.step)
        norms = self.codec.update(factor, self.step)
        if self.discriminator:
            of_both = self.discriminator.update(factor, self.step)
            norms |= {f"discriminator_{name}": value for name, value in of_both.items()}
        if not math.isfinite(norms["norm"]) and self.config.is_fp16:
            # The scale of the loss was too high: halved by now, and nothing else has happened.
            norms, means = {}, means | {"skipped": 1.0}
        elif wrong := [name for name, value in norms.items() if not math.isfinite(value)]:
            raise self._not_finite(f"the gradient ({wrong[0]})", wav, means | norms)
        self.step += 1
        return means | norms | {"lr": factor}

    def _backward(self, wav: Tensor, stream: int, view: View | None, *, is_last: bool) -> dict[str, Tensor]:
        """Add the gradients of one micro-batch, and return its losses and measurements."""
        fsq, adversarial, share = self.model.config.fsq, self.config.adversarial, 1 / len(self.crops)
        draws = _generator(self.config.seed, self.step, 1 + stream)
        levels = draw_levels(fsq, draws)
        with gradient_sync(self.codec.wrapped, is_last):
            spoken = self._spoken(stream)
            decoded, latents, ctc, rvq = self.codec.wrapped(wav, levels, _on_device(draws, self.world.device), spoken)
            numbers: dict[str, Tensor] = {}
            if self.rvq is None:
                numbers = codebook_use(latents.detach(), max(fsq.train_levels))
            outputs, names = None, []
            if adversarial and self.discriminator and self.adversary and view:
                names = [self.adversary.scale_names[scale] for scale in view.scales]
                with gradient_sync(self.discriminator.wrapped, is_last):
                    losses, real = discriminator_losses(
                        adversarial, self.discriminator.wrapped, wav, decoded, view, names
                    )
                    self._check(losses, wav)
                    self.discriminator.backward(losses.total * share)
                numbers |= losses.numbers
                if listens(adversarial, self.step):
                    with frozen(self.adversary):
                        outputs = real, judge(adversarial, self.adversary, decoded, view)
            losses = self.losses(wav, decoded, draws, self.step, outputs, names)
            if ctc is not None and self.config.ctc:
                losses = Losses(losses.total + self.config.ctc.weight * ctc, losses.numbers | {"ctc": ctc})
            if rvq is not None:  # weighted already
                losses = Losses(losses.total + rvq, losses.numbers | {"commitment": rvq})
            self._check(losses, wav)
            self.codec.backward(losses.total * share)
        return losses.numbers | numbers

    def _spoken(self, stream: int) -> Spoken | None:
        if self.config.ctc is None:
            return None
        spoken = self.utterances[stream].batch(self.step)
        return spoken._replace(wav=spoken.wav.to(self.world.device))

    def _draw_view(self) -> View | None:
        if self.config.adversarial is None or self.adversary is None:
            return None
        num_samples = round(self.config.data.segment_s * self.sample_rate_hz)
        generator = _generator(self.config.seed, self.step, 0)  # the same for all streams
        return draw_view(
            self.config.adversarial, self.adversary.num_scales, num_samples, self.sample_rate_hz, generator
        )

    def _check(self, losses: Losses, wav: Tensor) -> None:
        if not math.isfinite(float(losses.total.detach())):
            numbers = {name: float(value.detach()) for name, value in losses.numbers.items()}
            raise self._not_finite("the loss", wav, numbers)

    def _not_finite(self, what: str, wav: Tensor, numbers: Mapping[str, float]) -> RuntimeError:
        """Write the batch and the numbers of this step down, and describe them in an error."""
        folder = self.run / f"not-finite-step-{self.step:08d}-rank-{self.world.rank}"
        report = {"step": self.step, "seed": self.config.seed, "numbers": dict(numbers)}
        keep_batch(folder, wav, self.sample_rate_hz, report)
        wrong = {name: value for name, value in numbers.items() if not math.isfinite(value)}
        return RuntimeError(
            f"{what} is not finite at step {self.step}: {wrong or dict(numbers)}. The batch is in {folder}. Listen to "
            "it, lower the learning rates or gradient_norm, and continue from the last checkpoint with --resume"
        )

    def example(self) -> tuple[Tensor, Tensor]:
        """One crop that stays the same, and what the model makes of it now, (1, 1, n). Every process must ask."""
        wav = torch.from_numpy(self.other_crops.batch(_EXAMPLE_STEP)[:1]).to(self.world.device)
        self.codec.wrapped.eval()
        with torch.no_grad():
            decoded, *_ = self.codec.wrapped(wav, max(self.model.config.fsq.train_levels), torch.Generator())
        self.codec.wrapped.train()
        return wav, decoded

    def sensitivity(self, wav: Tensor, decoded: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Where the discriminator looks in one example (B.5.1): Eq. 12 for its losses, (f, t) each, and the f in Hz.

        Nothing without a discriminator. Every process must ask.
        """
        adversarial, adversary = self.config.adversarial, self.adversary
        if adversarial is None or adversary is None:
            return {}, np.zeros(0)
        everything = View(list(range(adversary.num_scales)), 0, wav.shape[-1])

        def losses(target: Tensor, decoded: Tensor) -> dict[str, Tensor]:
            real: list[ScaleOutput] = judge(adversarial, adversary, target, everything)
            fake = judge(adversarial, adversary, decoded, everything)
            return {
                "discriminator": discriminator_hinge_loss(real, fake),
                "matching": feature_matching_loss(real, fake),
            }

        with frozen(adversary):
            found = sensitivity(losses, wav, decoded, [_ANALYSIS])
        maps = {name: of_analyses[0] for name, (_, of_analyses) in found.items()}
        return maps, np.fft.rfftfreq(_ANALYSIS.fft_size, 1 / self.sample_rate_hz)

    def save(self) -> None:
        """Write a checkpoint, then the averaged model as a folder and the weights of discriminator and RVQ.

        Raises:
            OSError: If there is no room; the last checkpoint stays.
        """
        folder = self.run / "checkpoints"
        save_checkpoint(folder, self.step, self._state(), self.world, keep=self.config.num_checkpoints)
        model = self.averaged_model()
        adversary = self.discriminator.weights() if self.discriminator else {}
        if self.world.is_main:
            save_model(model, self.run / "model")
            if self.rvq is not None:
                write_atomic(self.run / RVQ, to_safetensors(self.rvq.state_dict()), force=True)
            if adversary:
                write_atomic(self.run / DISCRIMINATOR, to_safetensors(adversary), force=True)
        self.world.wait()

    @torch.no_grad()
    def averaged_model(self) -> TAAE:
        """The averaged weights; with `is_level_matched`, scaled so that decoded crops have the energy of their targets.

        L1 losses settle on medians, which lie below means: without this, decoded speech is some 5 dB too quiet.
        """
        model = TAAE(self.model.config)
        weights = {name: value for name, value in self.codec.weights().items() if name.startswith("model.")}
        model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
        if not self.config.is_level_matched or not self.world.is_main:
            return model
        model.to(self.world.device)
        target_energy = decoded_energy = 0.0
        for index in range(4):
            wav = torch.from_numpy(self.other_crops.batch(_LEVEL_STEP + index)).to(self.world.device)
            codes = self._codes(model.encode_latents(wav))
            target_energy += float(wav.square().sum())
            decoded_energy += float(model.decode_latents(codes).square().sum())
        gain = math.sqrt(target_energy / max(decoded_energy, 1e-9))
        last: Any = model.decoder.conv_out.conv
        last.weight = last.weight * min(max(gain, 0.5), 4.0)  # a model at its beginning may decode next to nothing
        return model

    def _codes(self, latents: Tensor) -> Tensor:
        """Quantised for good."""
        if self.rvq is not None:
            return self.rvq.detokenize(self.rvq.tokenize(latents))
        return quantize(latents, max(self.model.config.fsq.train_levels))

    def restore(self) -> bool:
        """Continue from the last checkpoint of this run, if there is one.

        Raises:
            ValueError: If it does not fit the recipe or is damaged.
        """
        found = checkpoints(self.run / "checkpoints")
        if not found:
            return False
        sizes = checkpoint_sizes(found[-1])
        for name, learner in self._learners().items():
            learner.make_room(
                {key.removeprefix(f"{name}/"): size for key, size in sizes.items() if key.startswith(name)}
            )
        state = self._state()
        load_checkpoint(found[-1], state, self.world)
        for name, learner in self._learners().items():
            learner.restore_scale({key.removeprefix(f"{name}/"): value for key, value in state.items()})
        self.step = int(state["step"])
        torch.set_rng_state(state["rng"])
        return True

    def _learners(self) -> dict[str, Learner]:
        return {"codec": self.codec} | ({"discriminator": self.discriminator} if self.discriminator else {})

    def _state(self) -> dict[str, Tensor]:
        # The crops and draws of a step are functions of seed, stream and step, so these are their state.
        state = {"step": torch.tensor(self.step), "seed": torch.tensor(self.config.seed), "rng": torch.get_rng_state()}
        for name, learner in self._learners().items():
            state |= {f"{name}/{key}": value for key, value in learner.state().items()}
        return state


def listens(config: AdversarialConfig, step: int) -> bool:
    """Whether the autoencoder learns from the discriminator in this step."""
    weights = generator_weights(config, step)
    return bool(weights["feature_matching"] or weights["adversarial"])


def _generator(*key: int) -> torch.Generator:
    # Mixed into 32 bits: torch's generator of the CPU ignores what lies above.
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def _on_device(draws: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator that can draw on `device`; on the CPU `draws` itself."""
    return draws if device.type == "cpu" else torch.Generator(device).manual_seed(draws.initial_seed())
