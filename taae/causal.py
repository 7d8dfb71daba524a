"""Half of a causal model with its past remembered, so that it takes its input a few frames at a time (appendix A.4).

A step computes for the new frames what the offline forward computes for them. What it needs of the past has a fixed
size: the last inputs of every convolution, and keys and values, already rotated, as far back as the window sees.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from taae.attention import rotary_angles
from taae.config import ModelConfig
from taae.model import Conv, ConvTransposed, Decoder, Encoder, Layers

Rows = slice | int

_NEVER = -(2**62)  # position of a slot that holds nothing: no query sees so far


class CausalHalf:
    """Encoder or decoder, a step at a time, for `num_streams` streams that tick together.

    Args:
        half: The modules; their weights are shared, not copied.
        config: Of their model.
        num_streams: Rows of every piece.
        max_frames: Latent frames of one step. Longer pieces take several.

    Attributes:
        num_frames: Latent frames since the beginning.

    Raises:
        ValueError: If the model is not causal or a number is not positive.
    """

    def __init__(self, half: Encoder | Decoder, config: ModelConfig, num_streams: int, max_frames: int) -> None:
        if not config.is_causal:
            raise ValueError(f"{config.name} is not causal, so its output waits for input that is still to come")
        if num_streams < 1 or max_frames < 1:
            raise ValueError(f"num_streams and max_frames must be at least 1, got {num_streams} and {max_frames}")
        self.num_frames = 0
        patches_per_frame = config.hop_samples // config.patch_samples
        rate = patches_per_frame if isinstance(half, Encoder) else 1  # rows of one latent frame at this place
        self._rows_per_frame, self._max_rows = rate, rate * max_frames
        self._steps: list[_ConvStep | _TransposedStep | LayersStep] = []
        for module in _modules_in_order(half):
            if isinstance(module, Conv):
                rate //= module.conv.stride[0]
                self._steps.append(_ConvStep(module, num_streams))
            elif isinstance(module, ConvTransposed):
                rate *= module.stride
                self._steps.append(_TransposedStep(module, num_streams))
            elif isinstance(module, Layers) and len(module):
                self._steps.append(LayersStep(module, config, num_streams, rate * max_frames))

    @property
    def num_bytes(self) -> int:
        """Memory of the past; it never changes."""
        return sum(value.nbytes for step in self._steps for value in vars(step).values() if torch.is_tensor(value))

    def run(self, stream: Float[Tensor, "b n c"]) -> Float[Tensor, "b m e"]:
        """The next rows, at least one frame and whole frames, through every module."""
        done = []
        for piece in stream.split(self._max_rows, dim=1):
            done.append(self.step(piece))
        self.num_frames += stream.shape[1] // self._rows_per_frame
        return done[0] if len(done) == 1 else torch.cat(done, dim=1)

    def step(self, piece: Tensor) -> Tensor:
        """At most `max_frames` frames."""
        for step in self._steps:
            piece = step.run(piece)
        return piece

    def reset(self, stream: int | None = None) -> None:
        """Forget the past of all streams, or of one."""
        for step in self._steps:
            step.reset(slice(None) if stream is None else stream)
        if stream is None:
            self.num_frames = 0


def _modules_in_order(half: Encoder | Decoder) -> list[nn.Module]:
    if isinstance(half, Encoder):
        pairs = zip(half.downsample, half.blocks, strict=True)
    else:
        pairs = zip(half.blocks, half.upsample, strict=True)
    return [half.conv_in, *(module for pair in pairs for module in pair), half.conv_out]


class _ConvStep:
    """A causal convolution and its last kernel - stride inputs, zero at first as the padding is."""

    def __init__(self, module: Conv, num_streams: int) -> None:
        self.conv = module.conv
        self.past = module.conv.weight.new_zeros(num_streams, module.padding[0], module.conv.in_channels)

    def run(self, stream: Tensor) -> Tensor:
        joined = torch.cat((self.past, stream), dim=1)
        self.past.copy_(joined[:, joined.shape[1] - self.past.shape[1] :])
        return self.conv(joined.transpose(1, 2)).transpose(1, 2)

    def reset(self, rows: Rows) -> None:
        self.past[rows] = 0


class _TransposedStep:
    """A causal transposed convolution. Its kernel is two strides long, so one input of the past still sounds."""

    def __init__(self, module: ConvTransposed, num_streams: int) -> None:
        self.conv, self.stride = module.conv, module.stride
        self.past = module.conv.weight.new_zeros(num_streams, 1, module.conv.in_channels)

    def run(self, stream: Tensor) -> Tensor:
        joined = torch.cat((self.past, stream), dim=1)
        self.past.copy_(joined[:, -1:])
        full = self.conv(joined.transpose(1, 2))
        return full[..., self.stride : self.stride * joined.shape[1]].transpose(1, 2)

    def reset(self, rows: Rows) -> None:
        self.past[rows] = 0


class LayersStep:
    """Transformer layers with rings of rotated keys and values, one slot for each position that a step can need.

    A ring holds its positions in any order: attention does not mind, and the mask is made from the positions.
    """

    def __init__(self, layers: Layers, config: ModelConfig, num_streams: int, max_rows: int) -> None:
        self.layers, self.left = layers, config.window[0]
        weight = next(layers.parameters())
        num_slots = self.left + max_rows
        shape = len(layers), num_streams, config.num_heads, num_slots, config.head_dim
        self.keys, self.values = weight.new_zeros(shape), weight.new_zeros(shape)
        self.positions = torch.full((num_streams, num_slots), _NEVER, device=weight.device)
        self.next_position = 0

    def run(self, stream: Tensor) -> Tensor:
        return self.compute(stream, *self.place(stream.shape[1]))

    def place(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Angles, slots and mask of the next n rows, which are counted then: all that depends on the position."""
        new = torch.arange(self.next_position, self.next_position + n, device=self.positions.device)
        slots = new % self.positions.shape[1]
        self.positions[:, slots] = new
        distance = new[:, None] - self.positions[:, None, :]  # (b, n, slots)
        mask = ((distance >= 0) & (distance <= self.left))[:, None]
        # From the absolute position, in float64: a recursion would drift, and float32 is 0.01 rad off after an hour.
        angles = rotary_angles(n, self.layers.rope_dims, self.positions.device, start=self.next_position)
        self.next_position += n
        return angles, slots, mask

    def compute(self, stream: Tensor, angles: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
        """The layers themselves, on tensors alone."""
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            q, k, v = layer.project(stream, angles)  # pyright: ignore[reportCallIssue] - layers of a ModuleList
            keys[:, :, slots], values[:, :, slots] = k, v
            heads = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            stream = layer.finish(stream, heads)  # pyright: ignore[reportCallIssue]
        return stream

    def reset(self, rows: Rows) -> None:
        self.positions[rows] = _NEVER
        if rows == slice(None):
            self.next_position = 0
