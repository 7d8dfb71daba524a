"""Linear layers whose weights are laid out once for the processor's matrix instructions, with the next step fused in.

torch's compiler uses the same operators; they are not public, so `is_available` looks for them and asks them for a
result, and whoever calls has a plain path beside this one.
"""

from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Weights = Literal["float32", "bfloat16", "int8"]

_ROWS_HINT = 256  # rows that the layout is chosen for; measured equal for 1 to 1500
_ZERO_POINT = 128  # of activations: oneDNN takes them unsigned
_LARGEST = 127


@cache
def is_available() -> bool:
    """Whether this torch has oneDNN and the operators, and they compute what they should."""
    if not torch.backends.mkldnn.is_available():
        return False
    rows, weight, other = torch.randn(3, 8), torch.randn(5, 8), torch.randn(3, 5)
    try:
        packed = PackedLinear(weight, None)
        found = packed.add(rows, other), packed.swish(rows)
    except (AttributeError, RuntimeError, TypeError):
        return False
    wanted = other + rows @ weight.T, F.silu(rows @ weight.T)
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, wanted, strict=True))


@cache
def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 by itself; emulated, it is slower than float32."""
    if not is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    is_x86 = torch.backends.cpu.get_cpu_capability().startswith(("AVX", "DEFAULT", "NO AVX"))
    return not is_x86 or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def has_int8() -> bool:
    """Whether it multiplies 8-bit integers without losing carries (VNNI), and torch has the operators."""
    try:
        if not torch.cpu._is_vnni_supported():
            return False
        layer = _VnniLinear(torch.eye(8), None)
        return torch.allclose(layer(torch.arange(16.0).view(2, 8)), torch.arange(16.0).view(2, 8), atol=0.1)
    except (AttributeError, RuntimeError):
        return False


def pack(weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None, weights: Weights) -> "Packed":
    """The fastest layer here for rows @ weight.T + bias, with weights in that format.

    int8 is symmetric, one scale for each output; activations are quantised as they come, one scale for each row, so
    that no row depends on its neighbours. Where the processor has no such instructions the same values are multiplied
    in float32.
    """
    if weights == "int8":
        return (_VnniLinear if has_int8() else _RoundedLinear)(weight, bias)
    dtype = torch.float32 if weights == "float32" else torch.bfloat16
    return PackedLinear(weight.to(dtype), None if bias is None else bias.to(dtype))


class Packed(nn.Module):
    """A linear layer and what may follow it, each in one call where the operators have it."""

    def forward(self, rows: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        raise NotImplementedError

    def swish(self, rows: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return F.silu(self(rows), inplace=True)

    def mul(self, rows: Float[Tensor, "*b i"], other: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
        return self(rows).mul_(other)

    def add(self, rows: Float[Tensor, "*b i"], other: Float[Tensor, "*b o"]) -> Float[Tensor, "*b o"]:
        return self(rows).add_(other)


class PackedLinear(Packed):
    """Weights in the blocks that oneDNN reads; float32 or bfloat16, the rows likewise."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = _frozen(bias)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS_HINT)
        self.weight = nn.Parameter(packed, requires_grad=False)  # a parameter, to be counted as one

    def forward(self, rows: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")

    def swish(self, rows: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "swish", [], "")

    def mul(self, rows: Tensor, other: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(rows, other, self.weight, self.bias, "mul")

    def add(self, rows: Tensor, other: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(rows, other, self.weight, self.bias, "add")


class _VnniLinear(Packed):
    """8-bit weights and rows, 32-bit sums."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        integers, scale = _quantize_weight(weight)
        self.scale, self.bias = _frozen(scale), _frozen(bias)
        self.register_buffer("zero_points", torch.zeros(len(weight), dtype=torch.int64))
        packed = torch.ops.onednn.qlinear_prepack(integers, [_ROWS_HINT, weight.shape[1]])
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, rows: Tensor) -> Tensor:
        wide = rows.float()
        steps = _row_steps(wide)
        shifted = (wide * (1 / steps)).add_(_ZERO_POINT + 0.5).to(torch.uint8)  # cutting off rounds what is positive
        product = torch.ops.onednn.qlinear_pointwise(
            shifted, 1.0, _ZERO_POINT, self.weight, self.scale, self.zero_points, None,
            1.0, 0, rows.dtype, "none", [], "",
        )  # fmt: skip
        product.mul_(steps.to(rows.dtype))
        return product if self.bias is None else product.add_(self.bias.to(rows.dtype))


class _RoundedLinear(Packed):
    """The values of `_VnniLinear` multiplied in float32: slower, and right everywhere."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        integers, scale = _quantize_weight(weight)
        self.linear = pack(integers.float() * scale[:, None], bias, "float32")

    def forward(self, rows: Tensor) -> Tensor:
        steps = _row_steps(rows.float())
        return self.linear((rows.float() * (1 / steps) + 0.5).floor() * steps).to(rows.dtype)


def _frozen(value: Tensor | None) -> nn.Parameter | None:
    return None if value is None else nn.Parameter(value.detach().contiguous(), requires_grad=False)


def _quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers within +-127 (o, i), and the step of each output (o,)."""
    scale = (weight.float().abs().amax(dim=1) / _LARGEST).clamp(min=1e-12)
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


def _row_steps(rows: Tensor) -> Tensor:
    """What one unit of each row's integers is worth, in float32."""
    largest = torch.maximum(rows.amax(dim=-1, keepdim=True), -rows.amin(dim=-1, keepdim=True))
    return (largest / _LARGEST).clamp(min=1e-12)
