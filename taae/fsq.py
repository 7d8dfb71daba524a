"""Finite scalar quantisation: Eq. 1-4, hybrid training, residual decomposition (section 3.2).

Latents are (b, s, d) before tanh, codes lie on the grid in [-1, 1], tokens are int64 (b, s, k). Whatever decides a
token is computed in float64.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from taae.config import BottleneckSpec, FSQConfig, NoiseMode


def at_least_float32(values: Tensor) -> Tensor:
    """Widen half precision: bfloat16 puts 3 % of 17-level codes on the wrong value."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def quantize(latents: Float[Tensor, "b s d"], levels: int | Sequence[int]) -> Float[Tensor, "b s d"]:
    """Move every latent to the nearest of `levels` evenly spaced values in [-1, 1].

    Source: Eq. 1 (ties go up: floor(x + 1/2)). The result has no useful gradient; in training use `quantize_hybrid`.

    Args:
        latents: Encoder output before `tanh`; any range.
        levels: Values per dimension, at least 2: one number, or one for each of the d dimensions.

    Raises:
        ValueError: If a number of levels is below 2 or there are not d of them.
    """
    codes = _round_to_grid(torch.tanh(latents.double()), _levels_tensor(levels, latents))
    return codes.to(at_least_float32(latents).dtype)


def quantize_hybrid(
    latents: Float[Tensor, "b s d"],
    levels: int | Sequence[int],
    *,
    noise_probability: float = 0.5,
    noise_mode: NoiseMode = "paper",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b s d"]:
    """Emulate the quantiser in training: uniform noise for some items of the batch, straight-through for the others.

    Source: Eq. 2 and the text below it; one draw per batch item. "paper": with `noise_probability` noise, else
    straight-through. "published" (the released code): two draws, so that at 1/2 half of the items get noise, a
    quarter is rounded and a quarter stays tanh. The gradient is that of tanh in every case; noise is not clipped.

    Args:
        latents: Encoder output before `tanh`.
        levels: As in `quantize`.
        noise_probability: In "paper" the chance of noise. In "published" (its `noise_dropout`) the chance that an item
            keeps tanh instead of being rounded and, in a second draw, the chance that noise does not replace it.
        noise_mode: "paper" or "published".
        generator: Source of the random draws, for repeatable training.
    """
    bounded = torch.tanh(at_least_float32(latents))
    grid = _levels_tensor(levels, latents)
    rounded = bounded + (_round_to_grid(bounded, grid) - bounded).detach()

    def draw_items(probability: float) -> Tensor:
        chance = torch.rand(len(latents), 1, 1, generator=generator, device=latents.device)
        return chance < probability

    if noise_mode == "published":
        rounded = torch.where(draw_items(noise_probability), bounded, rounded)
        has_noise = draw_items(1 - noise_probability)
    else:
        has_noise = draw_items(noise_probability)
    noise = torch.rand(bounded.shape, generator=generator, device=bounded.device, dtype=bounded.dtype)
    noisy = bounded + (2 * noise - 1) / (grid - 1)
    return torch.where(has_noise, noisy, rounded)


def draw_levels(config: FSQConfig, generator: torch.Generator | None = None) -> int:
    """Choose one of the level numbers a model trains with, uniformly (section 3.2)."""
    index = int(torch.randint(len(config.train_levels), (), generator=generator))
    return config.train_levels[index]


def bottleneck_codes(latents: Float[Tensor, "b s d"], spec: BottleneckSpec) -> Float[Tensor, "b s d"]:
    """What the decoder receives at inference: grid codes, or tanh(latents) when continuous (section 3.2.1)."""
    if spec.is_continuous:
        return torch.tanh(at_least_float32(latents))
    _check_dim(spec, latents.shape[-1])
    return quantize(latents, spec.grid_levels)


def tokenize(latents: Float[Tensor, "b s d"], spec: BottleneckSpec) -> Int64[Tensor, "b s k"]:
    """Latents to tokens, one per residual stage; dimension 0 is the least significant digit.

    Source: Eq. 1, 3, 4, with tanh taken once: taken literally, Eq. 4 applies tanh in each stage and loses a factor
    of four in error. `detokenize` of the result is `quantize` with `spec.grid_levels` levels, exactly.

    Raises:
        ValueError: If `spec` is continuous or has another dimension than the latents.
    """
    _check_dim(spec, latents.shape[-1])
    return combine_digits(split_stages(torch.tanh(latents.double()), spec), spec.levels)


def detokenize(tokens: Int64[Tensor, "b s k"], spec: BottleneckSpec) -> Float[Tensor, "b s d"]:
    """Tokens to codes: the sum of the stages, clipped to [-1, 1] (section 3.2.1).

    Raises:
        ValueError: If a token is outside its codebook or the number of stages is not that of `spec`.
    """
    _check_dim(spec, spec.dim)
    if tokens.shape[-1] != spec.num_stages:
        raise ValueError(f"bottleneck {spec} has {spec.num_stages} tokens a frame, got {tokens.shape[-1]}")
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < spec.codebook_size:
        low, high = int(tokens.min()), int(tokens.max())
        raise ValueError(f"tokens of {spec} lie in 0 ... {spec.codebook_size - 1}, got {low} ... {high}")
    levels = split_digits(tokens, spec.levels, spec.dim) - (spec.levels - 1) // 2
    direct = (levels * _stage_steps(spec, tokens.device)).sum(dim=-2) + (spec.grid_levels - 1) // 2
    direct = direct.clamp(0, spec.grid_levels - 1)
    return (2 / (spec.grid_levels - 1) * direct.double() - 1).float()


def split_stages(bounded: Float[Tensor, "*b d"], spec: BottleneckSpec) -> Int64[Tensor, "*b k d"]:
    """One level 0 ... L-1 per residual stage for values in [-1, 1]: each stage rounds what is left (Eq. 3).

    Counted from 0 in steps of the finest grid, where earlier stages are whole numbers. The last stage takes the
    direct quantiser's level less those, so that the sum is the direct quantiser and not nearly so.
    """
    half = (spec.levels - 1) // 2
    direct = _levels_of(bounded, spec.grid_levels)
    if spec.num_stages == 1:
        return direct[..., None, :]
    left = bounded * ((spec.grid_levels - 1) // 2)
    direct = direct - (spec.grid_levels - 1) // 2
    stages = []
    for step in _stage_steps(spec, bounded.device)[:-1, 0]:
        level = torch.floor(left / step + 0.5).long().clamp(-half, half)
        left = left - level * step
        direct = direct - level * step
        stages.append(level + half)
    return torch.stack([*stages, direct + half], dim=-2)


def combine_digits(digits: Int64[Tensor, "*b d"], levels: int) -> Int64[Tensor, "*b"]:
    """sum_i digit_i * levels^i in int64; float32 sums gave the published package 24 % wrong 17^6 tokens."""
    weights = torch.tensor([levels**i for i in range(digits.shape[-1])], dtype=torch.int64, device=digits.device)
    return (digits.long() * weights).sum(dim=-1)


def split_digits(tokens: Int64[Tensor, "*b"], levels: int, dim: int) -> Int64[Tensor, "*b d"]:
    """The inverse of `combine_digits`."""
    weights = torch.tensor([levels**i for i in range(dim)], dtype=torch.int64, device=tokens.device)
    return torch.div(tokens[..., None], weights, rounding_mode="floor") % levels


def _stage_steps(spec: BottleneckSpec, device: torch.device) -> Int64[Tensor, "k 1"]:
    """One step of each stage's grid, counted in steps of the finest: (L-1)^(K-1-k) (Eq. 4)."""
    steps = [(spec.levels - 1) ** (spec.num_stages - 1 - stage) for stage in range(spec.num_stages)]
    return torch.tensor(steps, device=device)[:, None]


def _levels_of(bounded: Tensor, levels: Tensor | int) -> Int64[Tensor, "..."]:
    """Level 0 ... L-1 of values in [-1, 1], ties upwards (Eq. 1)."""
    return torch.floor((levels - 1) * (bounded + 1) / 2 + 0.5).long()


def _round_to_grid(bounded: Tensor, levels: Tensor) -> Tensor:
    levels = levels.to(bounded)
    return 2 / (levels - 1) * _levels_of(bounded, levels) - 1


def _levels_tensor(levels: int | Sequence[int], latents: Tensor) -> Tensor:
    values = torch.as_tensor(levels, device=latents.device)
    if values.min() < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    if values.dim() and len(values) != latents.shape[-1]:
        raise ValueError(f"levels must be one number or one per dimension ({latents.shape[-1]}), got {levels}")
    return values


def _check_dim(spec: BottleneckSpec, dim: int) -> None:
    if spec.is_continuous:
        raise ValueError("a continuous bottleneck has no tokens; choose one such as '2x5^6'")
    if spec.dim != dim:
        raise ValueError(f"bottleneck {spec} has {spec.dim} dimensions, the model's latents have {dim}")
