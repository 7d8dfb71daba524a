"""What a training run is: a recipe in TOML, and the checks that find its mistakes before training starts."""

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taae.adversarial import AdversarialConfig
from taae.config import ModelConfig, build, from_dict, load_preset
from taae.data import DataConfig
from taae.distributed import STRATEGIES
from taae.losses import ReconstructionLossConfig
from taae.rvq import RVQConfig
from taae.utterances import CTCTrainingConfig

OPTIMIZERS = ("muon", "adamw", "sgd")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run.

    Attributes:
        preset: Model preset to build.
        init: What to start from: a run folder (autoencoder and discriminator), a model folder or an embedded model (the
            autoencoder); "" for random weights. A model with patches twice as long grows first, and a causal one is
            fitted to one that is not (`taae.transplant`).
        num_steps: Steps in all; the last `decay_share` of them lower the learning rate linearly to zero.
        micro_batches: Batches of `data.batch_size` crops that one step adds up. Processes share them out, so a recipe
            trains the same on any number of processes that divides it.
        optimizer: "muon" for the matrices of transformer layers (Jordan et al. 2024, scaled to match AdamW's update
            size) with AdamW for everything else, "adamw" for all, or "sgd" for all.
        adamw_lr: Of AdamW, and of SGD.
        muon_lr: Of Muon.
        discriminator_lr: Of the discriminator, which AdamW (or SGD) trains without weight decay.
        weight_decay: Of the autoencoder.
        adam_beta1: Of both AdamWs, as is the next.
        gradient_norm: Gradients of the autoencoder, and of the discriminator, are clipped to this norm.
        ema_decay: Of the averaged weights that are saved as the model; 0 saves the weights as they are.
        is_level_matched: Scale the saved model so that it decodes at the energy of its targets, which spectral L1
            losses do not lead to.
        is_bf16: Autocast the autoencoder to bfloat16.
        is_fp16: Autocast it to float16, with a scale on the loss (section 4.2); `is_bf16` must be false.
        strategy: How several processes share a model: "ddp" (each holds all of it) or "fsdp" (each holds a part).
        steps_per_checkpoint: Steps from one checkpoint to the next.
        num_checkpoints: How many of them to keep, the newest.
        steps_per_log: Steps that a row of log.jsonl is the mean of.
        steps_per_sample: Steps between decoded examples, spectrograms and sensitivity maps.
        wavlm: Folder of a WavLM model for the perceptual loss (Eq. 9).
        recogniser: Folder of a `taae.recogniser` whose features make a perceptual term beside the reconstruction
            losses, where there is no [adversarial].
        recogniser_weight: Of that term.
        model: Changes to the preset.
        data: What the model hears.
        loss: Reconstruction losses.
        adversarial: The discriminator and the weights of Eq. 8 or 10; without it, reconstruction losses alone.
        rvq: A residual vector quantiser in place of FSQ; its codebooks lie beside the saved model, in rvq.safetensors.
        ctc: A head that reads the latents of whole utterances, whose transcripts stand in the manifest; its weights
            are trained and checkpointed with the autoencoder, and are not part of the saved model.
    """

    preset: str = "mini"
    init: str = ""
    seed: int = 0
    num_steps: int = 10000
    micro_batches: int = 1
    warmup_steps: int = 200
    decay_share: float = 0.3
    optimizer: str = "muon"
    adamw_lr: float = 1e-3
    muon_lr: float = 2e-3
    discriminator_lr: float = 8e-4
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    gradient_norm: float = 1.0
    ema_decay: float = 0.998
    is_level_matched: bool = True
    is_bf16: bool = True
    is_fp16: bool = False
    strategy: str = "ddp"
    steps_per_checkpoint: int = 200
    num_checkpoints: int = 2
    steps_per_log: int = 50
    steps_per_sample: int = 1000
    wavlm: str = ""
    recogniser: str = ""
    recogniser_weight: float = 0.0
    data: DataConfig = field(default_factory=DataConfig)
    loss: ReconstructionLossConfig = field(default_factory=ReconstructionLossConfig)
    adversarial: AdversarialConfig | None = None
    rvq: RVQConfig | None = None
    ctc: CTCTrainingConfig | None = None
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("num_steps", "micro_batches", "num_checkpoints", *_PERIODS):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        for key in ("decay_share", "ema_decay"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} must be in [0, 1], got {getattr(self, key)}")
        for key in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key} must be in [0, 1), got {getattr(self, key)}")
        for key in ("warmup_steps", "adamw_lr", "muon_lr", "discriminator_lr", "weight_decay", "gradient_norm"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, got {getattr(self, key)}")
        for key, choices in (("optimizer", OPTIMIZERS), ("strategy", STRATEGIES)):
            if getattr(self, key) not in choices:
                raise ValueError(f"{key} must be one of {', '.join(choices)}, got {getattr(self, key)!r}")
        if self.recogniser_weight < 0 or (self.recogniser_weight > 0) != bool(self.recogniser):
            raise ValueError(
                f"recogniser and recogniser_weight go together, got {self.recogniser!r} and {self.recogniser_weight}"
            )
        if self.recogniser and self.adversarial:
            raise ValueError("recogniser is for runs without [adversarial], which has perceptual_weight and wavlm")
        if self.is_bf16 and self.is_fp16:
            raise ValueError("is_bf16 and is_fp16 are both true; set one of them to false")
        if self.adversarial and self.adversarial.perceptual_weight and not self.wavlm:
            raise ValueError(
                "adversarial.perceptual_weight needs a WavLM model: set wavlm to the folder of one (the paper's is "
                "microsoft/wavlm-large), or perceptual_weight to 0"
            )


_PERIODS = ("steps_per_checkpoint", "steps_per_log", "steps_per_sample")


def load_config(path: Path) -> TrainConfig:
    """Read a recipe in TOML; [data], [loss], [adversarial], [rvq] and [ctc] are sections, [model] overrides the preset.

    Raises:
        ValueError: If the file is not TOML, or a key is unknown or a value impossible.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None
    except FileNotFoundError:
        raise ValueError(f"no recipe at {path}; those of the package are {', '.join(recipe_names())}") from None
    optional = {"adversarial": AdversarialConfig, "rvq": RVQConfig, "ctc": CTCTrainingConfig}
    sections = {key: build(kind, values.pop(key), f"{path}: {key}") for key, kind in optional.items() if key in values}
    config = dataclasses.replace(build(TrainConfig, values, str(path)), **sections)
    model_config(config)  # so that a wrong [model] is found here and not when training starts
    return config


def model_config(config: TrainConfig) -> ModelConfig:
    """The preset with the recipe's overrides.

    Raises:
        ValueError: If there is no such preset, or an override has an unknown key or a wrong value.
    """
    return from_dict(load_preset(config.preset).as_dict() | config.model, "[model]")


def recipe_names() -> list[str]:
    """Files of the recipes that come with the package."""
    return sorted(str(path) for path in (Path(__file__).parent / "recipes").glob("*.toml"))


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last `decay_share` of the steps."""
    remaining = (config.num_steps - step) / max(1, config.decay_share * config.num_steps)
    return min(1.0, (step + 1) / max(1, config.warmup_steps), max(0.0, remaining))
