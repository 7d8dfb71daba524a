"""The training loop: one page, resumable at every checkpoint.

`taae train --config FILE` runs it. Reconstruction losses only; the batch of a step depends on (seed, step) alone.
"""

import dataclasses
import json
import logging
import math
import os
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from taae.checkpoint import fused_state, load_fused_state, load_model, save_model
from taae.config import ModelConfig, build, from_dict, load_preset
from taae.data import Crops, DataConfig, pack
from taae.fsq import draw_levels, quantize, quantize_hybrid
from taae.losses import ReconstructionLoss, ReconstructionLossConfig
from taae.model import TAAE, num_parameters

logger = logging.getLogger(__name__)

_LEVEL_BATCHES = 2**40  # steps that no training reaches


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
        preset: Model preset to build.
        init: Model folder or embedded model whose weights to start from; "" for random ones.
        num_steps: Steps in all; the last `decay_share` of them lower the learning rate linearly to zero.
        adamw_lr: For vectors, convolutions and everything else that is not a matrix of a transformer layer.
        muon_lr: For those matrices (Muon, Jordan et al. 2024, scaled to match AdamW's update size).
        ema_decay: Of the averaged weights that are saved as the model.
        is_bf16: Autocast to bfloat16.
    """

    preset: str = "mini"
    init: str = ""
    seed: int = 0
    num_steps: int = 10000
    warmup_steps: int = 200
    decay_share: float = 0.3
    adamw_lr: float = 1e-3
    muon_lr: float = 2e-3
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    ema_decay: float = 0.998
    is_bf16: bool = True
    steps_per_checkpoint: int = 200
    data: DataConfig = field(default_factory=DataConfig)
    loss: ReconstructionLossConfig = field(default_factory=ReconstructionLossConfig)
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("num_steps", "steps_per_checkpoint"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        for key in ("decay_share", "ema_decay"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} must be in [0, 1], got {getattr(self, key)}")
        for key in ("warmup_steps", "adamw_lr", "muon_lr", "weight_decay", "gradient_norm"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, got {getattr(self, key)}")


def load_config(path: Path) -> TrainConfig:
    """Read a recipe in TOML; [data] and [loss] are sections, [model] overrides the preset.

    Raises:
        ValueError: If the file is not TOML, or a key is unknown or a value impossible.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None
    config = build(TrainConfig, values, str(path))
    model_config(config)  # so that a wrong [model] is found here and not when training starts
    return config


def model_config(config: TrainConfig) -> ModelConfig:
    """The preset with the recipe's overrides.

    Raises:
        ValueError: If there is no such preset, or an override has an unknown key or a wrong value.
    """
    return from_dict(load_preset(config.preset).as_dict() | config.model, "[model]")


class Trainer:
    """Model, optimisers and averaged weights of a run, and how one step changes them."""

    def __init__(self, config: TrainConfig, run: Path, shared: Path) -> None:
        self.config, self.run = config, run
        torch.manual_seed(config.seed)
        self.model = TAAE(model_config(config))
        if config.init:
            load_fused_state(self.model, fused_state(load_model(config.init)[0]))
        matrices, others = _split_parameters(self.model)
        adamw = torch.optim.AdamW(others, lr=config.adamw_lr, betas=(0.9, 0.99), weight_decay=config.weight_decay)
        muon = torch.optim.Muon(
            matrices, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.optimizers = [adamw, muon]
        self.base_lrs = [config.adamw_lr, config.muon_lr]
        self.average = {key: value.detach().clone() for key, value in self.model.named_parameters()}
        self.loss = ReconstructionLoss(config.loss, self.model.config.sample_rate_hz)
        packed = pack(shared / config.data.manifest, run.parent / "packed", self.model.config.sample_rate_hz)
        self.crops = Crops(packed, config.data, seed=config.seed)
        self.step = 0

    def train_step(self) -> dict[str, float]:
        """One update; returns the losses, gradient norm and learning-rate factor of this step."""
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 2**32 + self.step)
        wav = torch.from_numpy(self.crops.batch(self.step))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.is_bf16):
            latents = self.model.encode_latents(wav)
            fsq = self.model.config.fsq
            codes = quantize_hybrid(
                latents,
                draw_levels(fsq, generator),
                noise_probability=fsq.noise_probability,
                noise_mode=fsq.noise_mode,
                generator=generator,
            )
            decoded = self.model.decode_latents(codes)
        losses = self.loss(wav, decoded.float(), generator)
        total = torch.stack(list(losses.values())).sum()
        if not math.isfinite(float(total.detach())):
            raise RuntimeError(
                f"the loss is {float(total.detach())} at step {self.step}: {losses}; lower the learning rates"
            )
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_norm)
        factor = learning_rate_factor(config, self.step)
        for optimizer, base in zip(self.optimizers, self.base_lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
            optimizer.step()
        self.step += 1
        decay = min(config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                self.average[name].lerp_(parameter, 1 - decay)
        return {name: float(value.detach()) for name, value in losses.items()} | {"norm": float(norm), "lr": factor}

    def save(self) -> None:
        """Write the averaged model as a folder and everything that a resumed run needs, atomically."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, self.run / "state.tmp")
        os.replace(self.run / "state.tmp", self.run / "state.pt")
        save_model(self.averaged_model(), self.run / "model")

    @torch.no_grad()
    def averaged_model(self) -> TAAE:
        """The averaged weights, the last convolution scaled so that decoded crops have the energy of their targets.

        L1 losses settle on medians, which lie below means: without this, decoded speech is some 5 dB too quiet.
        """
        model = TAAE(self.model.config)
        model.load_state_dict(self.average)
        target_energy = decoded_energy = 0.0
        for index in range(4):
            wav = torch.from_numpy(self.crops.batch(_LEVEL_BATCHES + index))
            codes = quantize(model.encode_latents(wav), max(model.config.fsq.train_levels))
            target_energy += float(wav.square().sum())
            decoded_energy += float(model.decode_latents(codes).square().sum())
        gain = math.sqrt(target_energy / max(decoded_energy, 1e-9))
        last: Any = model.decoder.conv_out.conv
        last.weight = last.weight * min(max(gain, 0.5), 4.0)  # a model at its beginning may decode next to nothing
        return model

    def restore(self) -> bool:
        """Continue from the last checkpoint of this run, if there is one."""
        path = self.run / "state.pt"
        if not path.is_file():
            return False
        state = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return True


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last `decay_share` of the steps."""
    remaining = (config.num_steps - step) / max(1, config.decay_share * config.num_steps)
    return min(1.0, (step + 1) / max(1, config.warmup_steps), max(0.0, remaining))


def train(
    config: TrainConfig, run: Path, shared: Path, *, resume: bool = False, stop_after_s: float = math.inf
) -> None:
    """Train to the end (or for `stop_after_s` seconds), with a checkpoint every `steps_per_checkpoint` steps.

    Raises:
        ValueError: If the run folder already holds a checkpoint and `resume` is false.
        RuntimeError: If the loss stops being finite.
    """
    run.mkdir(parents=True, exist_ok=True)
    if (run / "state.pt").exists() and not resume:
        raise ValueError(f"{run} already holds a run; continue it with --resume or choose another folder")
    trainer = Trainer(config, run, shared)
    recipe, stored = json.dumps(dataclasses.asdict(config), indent=2) + "\n", run / "config.json"
    if resume and not trainer.restore():
        logger.warning("%s holds no checkpoint; training starts from the beginning", run)
    elif resume and stored.is_file():
        before, now = json.loads(stored.read_text()), json.loads(recipe)
        if changed := [key for key in now if now[key] != before.get(key)]:
            logger.warning("the recipe has changed since step %d: %s", trainer.step, ", ".join(changed))
    stored.write_text(recipe)
    started, first = time.monotonic(), trainer.step
    seconds = config.data.batch_size * config.data.segment_s
    title = f"{num_parameters(trainer.model) / 1e6:.1f}M"
    sums: dict[str, float] = {}
    num_summed = 0
    with (
        tqdm(total=config.num_steps, initial=trainer.step, desc=title, unit="step") as bar,
        (run / "log.jsonl").open("a") as log,
    ):
        while trainer.step < config.num_steps and time.monotonic() - started < stop_after_s:
            for name, value in trainer.train_step().items():
                sums[name] = sums.get(name, 0.0) + value
            num_summed += 1  # fewer than 50 after a resumed step
            bar.update()
            if trainer.step % 50 == 0:
                elapsed = time.monotonic() - started
                row = {name: round(value / num_summed, 4) for name, value in sums.items()}
                row |= {"step": trainer.step, "audio_per_s": round((trainer.step - first) * seconds / elapsed, 1)}
                log.write(json.dumps(row | {"elapsed_s": round(elapsed, 1)}) + "\n")
                log.flush()
                bar.set_postfix({name: row[name] for name in row if name != "step"})
                sums, num_summed = {}, 0
            if trainer.step % config.steps_per_checkpoint == 0:
                trainer.save()
    trainer.save()


def _split_parameters(model: TAAE) -> tuple[list[Tensor], list[Tensor]]:
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2 and ".blocks." in name
        (matrices if is_matrix else others).append(parameter)
    return matrices, others
