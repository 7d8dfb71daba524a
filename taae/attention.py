"""Sliding-window attention: one definition of the window, many backends behind it, and rotary positions.

Query i sees the keys i - left ... i + right that exist: (63, 64) in the published model, (63, 0) in the causal one.
"""

import importlib.util
import logging
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

Backend = Literal["auto", "reference", "blocked", "flex", "flash"]

logger = logging.getLogger(__name__)

# Up to this many queries one dense mask costs less than cutting (measured on two CPU cores).
_DENSE_QUERIES = 256


def window_attention(
    q: Float[Tensor, "b h n e"],
    k: Float[Tensor, "b h n e"],
    v: Float[Tensor, "b h n e"],
    *,
    left: int,
    right: int,
    backend: Backend = "auto",
) -> Float[Tensor, "b h n e"]:
    """Attention of every query to the keys from `left` before to `right` after it; scale 1/sqrt(e).

    Every backend agrees with "reference" within its dtype's tolerance. "blocked" costs time and memory linear in n
    and runs everywhere; "flex" and "flash" need a GPU ("flash" also the flash-attn package, and computes in half
    precision). "auto" is flash for half precision on CUDA where installed, else blocked; the choice is logged once.

    Raises:
        ValueError: If the backend is unknown.
        RuntimeError: If the backend cannot run here. Nothing ever drops the window instead.
    """
    if backend == "auto":
        backend = _choose(q.device.type, q.dtype)
    if backend not in _BACKENDS:
        raise ValueError(f"attention backend must be one of {', '.join(get_args(Backend))}; got {backend!r}")
    return _BACKENDS[backend](q, k, v, left, right)


@cache  # so that each choice is logged once
def _choose(device: str, dtype: torch.dtype) -> Backend:
    has_flash = device == "cuda" and importlib.util.find_spec("flash_attn") is not None
    backend = "flash" if has_flash and dtype in (torch.float16, torch.bfloat16) else "blocked"
    reason = "" if backend == "flash" or device == "cpu" else "; flash needs the flash-attn package and half precision"
    logger.info("window attention: %s backend for %s on %s%s", backend, dtype, device, reason)
    return backend


def _window_mask(queries: Int64[Tensor, "q"], keys: Int64[Tensor, "k"], left: int, right: int) -> Tensor:
    distance = keys[None, :] - queries[:, None]
    return (distance >= -left) & (distance <= right)


def _reference(q: Tensor, k: Tensor, v: Tensor, left: int, right: int) -> Tensor:
    """Softmax over a dense mask, written out: the oracle of the tests."""
    positions = torch.arange(q.shape[2], device=q.device)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~_window_mask(positions, positions, left, right), float("-inf"))
    return scores.softmax(dim=-1) @ v


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention under a mask. In training on a CPU the fused kernel takes twice as long as the formula (measured)."""
    if q.requires_grad and q.device.type == "cpu":
        scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(dim=-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _blocked(q: Tensor, k: Tensor, v: Tensor, left: int, right: int) -> Tensor:
    """Exact attention of blocks of queries to the slice of keys that they can see, without copies."""
    n = q.shape[2]
    block = n if n <= _DENSE_QUERIES else max(128, left, right)
    pieces = []
    for start in range(0, n, block):
        stop = min(start + block, n)
        first, last = max(0, start - left), min(n, stop + right)
        mask = None
        if n > 1 + min(left, right):
            queries = torch.arange(start, stop, device=q.device)
            mask = _window_mask(queries, torch.arange(first, last, device=q.device), left, right)
        keys, values = k[:, :, first:last], v[:, :, first:last]
        pieces.append(_attend(q[:, :, start:stop], keys, values, mask))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def attend_rows(
    q: Float[Tensor, "b h m e"],
    k: Float[Tensor, "b h n e"],
    v: Float[Tensor, "b h n e"],
    *,
    start: int,
    left: int,
    right: int,
) -> Float[Tensor, "b h m e"]:
    """`window_attention` of the queries start ... start + m - 1 alone, at inference on a CPU.

    Written out, since on CPUs torch's fused kernel takes twice as long for so few keys (measured); softmax in float32.
    """
    m, n = q.shape[2], k.shape[2]
    first, last = max(0, start - left), min(n, start + m + right)
    mask = _added_mask(m, last - first, start - first, left, right)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k[:, :, first:last].transpose(-1, -2)).float()
    weights = scores.add_(mask).softmax(dim=-1).to(v.dtype)
    return torch.matmul(weights, v[:, :, first:last])


@lru_cache(maxsize=64)  # a few shapes, the same in every layer
def _added_mask(m: int, n: int, start: int, left: int, right: int) -> Tensor:
    """0 where query start + i sees key j, minus infinity elsewhere."""
    with torch.inference_mode(False):  # what a cache holds must be usable outside
        seen = _window_mask(torch.arange(start, start + m), torch.arange(n), left, right)
        return torch.zeros(m, n).masked_fill_(~seen, float("-inf"))


def _flex(q: Tensor, k: Tensor, v: Tensor, left: int, right: int) -> Tensor:
    if q.device.type != "cuda":
        raise RuntimeError(f"the flex backend needs a CUDA device, got {q.device}; choose 'blocked'")
    return _compiled_flex()(q, k, v, block_mask=_flex_mask(q.shape[2], left, right, q.device))


@lru_cache(maxsize=8)  # the layers of a block share it, and making one looks at every pair of positions
def _flex_mask(n: int, left: int, right: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(
        lambda b, h, query, key: (key - query >= -left) & (key - query <= right), None, None, n, n, device=device
    )


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)  # pyright: ignore[reportReturnType]


def _flash(q: Tensor, k: Tensor, v: Tensor, left: int, right: int) -> Tensor:
    if importlib.util.find_spec("flash_attn") is None:
        raise RuntimeError("the flash backend needs the flash-attn package: pip install 'taae-workbench[flash]'")
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError(f"the flash backend needs half precision on CUDA, got {q.dtype} on {q.device}")
    from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]

    swapped = (tensor.transpose(1, 2) for tensor in (q, k, v))  # flash-attn wants (b, n, h, e)
    return flash_attn_func(*swapped, window_size=(left, right)).transpose(1, 2)


_BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, int, int], Tensor]] = {
    "reference": _reference,
    "blocked": _blocked,
    "flex": _flex,
    "flash": _flash,
}


def rotary_angles(num_positions: int, rope_dims: int, device: torch.device, start: int = 0) -> Float[Tensor, "2 n r"]:
    """Cosine and sine of position * 10000^(-2i / rope_dims), computed in float64 (RoPE, Su et al. 2024).

    Positions count the block's own frames from `start`. Returned in float32, (2, n, rope_dims / 2).
    """
    inverse = 10000.0 ** (-torch.arange(0, rope_dims, 2, dtype=torch.float64, device=device) / rope_dims)
    positions = torch.arange(start, start + num_positions, dtype=torch.float64, device=device)
    angles = positions[:, None] * inverse
    return torch.stack((angles.cos(), angles.sin())).float()


def rotate(heads: Float[Tensor, "b h n e"], angles: Float[Tensor, "2 n r"]) -> Float[Tensor, "b h n e"]:
    """Rotate the first 2r dimensions of every head, dimension i paired with i + r; the others pass."""
    half = angles.shape[-1]
    cos, sin = angles.to(heads.dtype)
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
