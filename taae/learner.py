"""A network that learns: its optimisers, the scale of its loss, its averaged weights, and all of that as one state."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from taae.distributed import whole
from taae.recipe import TrainConfig


class Learner:
    """A network with what changes it.

    Args:
        module: The network; under FSDP2 its parameters must be sharded already.
        wrapped: What is called in training: `module`, or what shares it out among processes.
        config: Learning rates and the rest.
        parts: Parts of it, by name, whose gradient norms are reported.
        is_discriminator: It has its own learning rate, one optimiser without weight decay, and no averaged weights.

    Attributes:
        average: Averaged weights by name; empty where the weights are saved as they are.
    """

    def __init__(
        self,
        module: nn.Module,
        wrapped: nn.Module,
        config: TrainConfig,
        parts: Mapping[str, nn.Module],
        *,
        is_discriminator: bool = False,
    ) -> None:
        self.module, self.wrapped, self.config, self.parts = module, wrapped, config, parts
        self.parameters = dict(module.named_parameters())
        self.optimizers = _optimizers(self.parameters, config, is_discriminator)
        self.base_lrs = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        device = next(iter(self.parameters.values())).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=config.is_fp16 and not is_discriminator)
        has_average = config.ema_decay > 0 and not is_discriminator
        self.average = {name: value.detach().clone() for name, value in self.parameters.items() if has_average}

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to those that are there."""
        self.scaler.scale(loss).backward()

    def update(self, factor: float, step: int) -> dict[str, float]:
        """Clip the gradients, change the weights at `factor` of the base learning rates, forget the gradients.

        Returns:
            Norm of all gradients before they were clipped ("norm") and of those of each part ("norm/encoder"). If the
            first is not finite, nothing has changed but the loss scale of float16, which is lower.
        """
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norms = {f"norm/{name}": _gradient_norm(part) for name, part in self.parts.items() if _has_gradient(part)}
        total = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.gradient_norm)
        norms = {"norm": float(whole(total))} | norms
        if math.isfinite(norms["norm"]):
            for optimizer, base in zip(self.optimizers, self.base_lrs, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = base * factor
                self.scaler.step(optimizer)
            # Short averages first: long ones would remember the random weights.
            decay = min(self.config.ema_decay, (2 + step) / (11 + step))
            with torch.no_grad():
                for name, average in self.average.items():
                    average.lerp_(self.parameters[name], 1 - decay)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return norms

    def weights(self) -> dict[str, Tensor]:
        """The weights to save as a model, on the CPU: averaged ones where there are any. Every process must ask."""
        return {name: whole(value) for name, value in (self.average or self.parameters).items()}

    def state(self) -> dict[str, Tensor]:
        """Weights, averages, optimiser states and loss scale by name; all but the last are the tensors themselves."""
        state = {f"weights/{name}": value for name, value in self.module.state_dict().items()}
        state |= {f"average/{name}": value for name, value in self.average.items()}
        for optimizer, names in self._names():
            for name in names:
                entries = optimizer.state.get(self.parameters[name], {})
                state |= {f"optimizer/{name}|{key}": value for key, value in entries.items()}
        if self.scaler.is_enabled():
            state["scaler"] = torch.tensor([self.scaler.get_scale(), self.scaler.state_dict()["_growth_tracker"]])
        return state

    def make_room(self, sizes: Mapping[str, torch.Size]) -> None:
        """Create the optimiser states that a checkpoint holds, which a new optimiser lacks until its first step.

        Args:
            sizes: Of the tensors of the checkpoint, named as in `state`.
        """
        for optimizer, names in self._names():
            for name in names:
                parameter, prefix = self.parameters[name], f"optimizer/{name}|"
                entries = {key.removeprefix(prefix): size for key, size in sizes.items() if key.startswith(prefix)}
                # Moments are shaped, and sharded, like their parameter; a count of steps is a number on the CPU.
                optimizer.state[parameter] = {
                    key: torch.zeros_like(parameter) if size == parameter.shape else torch.zeros(size)
                    for key, size in entries.items()
                }

    def restore_scale(self, state: Mapping[str, Tensor]) -> None:
        """Take over the loss scale; the rest of a `state` is loaded in place."""
        if self.scaler.is_enabled():
            scale, tracker = state["scaler"].tolist()
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": scale, "_growth_tracker": int(tracker)})

    def _names(self) -> list[tuple[Optimizer, list[str]]]:
        names = {parameter: name for name, parameter in self.parameters.items()}
        return [
            (optimizer, [names[parameter] for group in optimizer.param_groups for parameter in group["params"]])
            for optimizer in self.optimizers
        ]


def _has_gradient(part: nn.Module) -> bool:
    """Not so for a sub-discriminator that this step did not draw."""
    return any(parameter.grad is not None for parameter in part.parameters())


def _gradient_norm(part: nn.Module) -> float:
    gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
    return float(whole(torch.nn.utils.get_total_norm(gradients)))


def _optimizers(parameters: Mapping[str, Tensor], config: TrainConfig, is_discriminator: bool) -> list[Optimizer]:
    lr = config.discriminator_lr if is_discriminator else config.adamw_lr
    weight_decay = 0.0 if is_discriminator else config.weight_decay
    if config.optimizer == "sgd":
        return [torch.optim.SGD(parameters.values(), lr=lr, weight_decay=weight_decay)]
    matrices, others = [], []
    for name, parameter in parameters.items():
        is_matrix = config.optimizer == "muon" and parameter.dim() == 2 and ".blocks." in name
        (matrices if is_matrix else others).append(parameter)
    betas = (config.adam_beta1, config.adam_beta2)
    optimizers: list[Optimizer] = [torch.optim.AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay)]
    if matrices:
        muon = torch.optim.Muon(
            matrices, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append(muon)
    return optimizers
