"""Streaming with a causal model: audio to tokens to audio, one latent frame at a time (appendices A.4, B.2).

The result is that of `Codec.encode` and `Codec.decode` up to rounding; so are the tokens, but for latents that lie so
near to a boundary of the quantiser. Nothing looks ahead: the algorithmic latency is one latent frame, 40 ms at 25 Hz.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from taae.causal import CausalHalf
from taae.codec import Codec
from taae.config import BottleneckSpec
from taae.fsq import detokenize, tokenize
from taae.graphs import GraphedHalf
from taae.model import Decoder, Encoder
from taae.patching import patchify

# Level of the first, second ... frame in a row that is concealed, and of all after them: see `StreamingDecoder`.
CONCEALED_GAINS = (1.0, 0.7, 0.35, 0.1, 0.0)
# Every concealed frame has so much of the codes before it: nearer to their mean, 0, is where they most likely are. With
# the embedded model and 10 % of the frames lost this is worth 0.01 STOI over repeating them.
CONCEALED_DECAY = 0.7


class _Stream:
    """What both directions share: a half of the model with its past, and a bottleneck that may change."""

    def __init__(
        self,
        codec: Codec,
        half: Encoder | Decoder,
        bottleneck: str | BottleneckSpec,
        num_streams: int,
        max_frames: int,
        use_graphs: bool,
    ) -> None:
        if not codec.config.is_causal:
            raise ValueError(
                f"{codec.name} cannot stream: it is not causal and hears {codec.config.receptive_frames[1]} frames "
                "ahead; choose a causal model such as 'mini-causal', or give whole recordings to Codec.encode"
            )
        self._codec = codec
        self.bottleneck = bottleneck
        if use_graphs and codec.device.type != "cuda":
            raise ValueError(f"use_graphs needs a codec on cuda, this one is on {codec.device}; leave it off")
        self._half = (GraphedHalf if use_graphs else CausalHalf)(half, codec.config, num_streams, max_frames)

    @property
    def bottleneck(self) -> BottleneckSpec:
        return self._spec

    @bottleneck.setter
    def bottleneck(self, value: str | BottleneckSpec) -> None:
        spec, codec = BottleneckSpec.parse(value), self._codec
        if spec.is_continuous:
            raise ValueError("a continuous bottleneck has no tokens to stream; choose one such as '2x5^6'")
        if spec.dim != codec.config.latent_dim:
            raise ValueError(f"bottleneck {spec} has {spec.dim} dimensions, {codec.name} has {codec.config.latent_dim}")
        self._spec = spec

    @property
    def num_frames(self) -> int:
        return self._half.num_frames


class StreamingEncoder(_Stream):
    """Audio in pieces of any size to tokens, as soon as a frame of `hop_samples` is whole.

    Encoders of one codec share its weights and nothing else, so any number of them run side by side. Streams that tick
    together can share one encoder, and so one pass for all.

    Args:
        codec: Of a causal model. For tokens that are stored, in float32.
        bottleneck: Not continuous. It may be changed between two pieces.
        num_streams: Rows of every piece.
        max_frames: Frames of one pass; more than one only where a piece brings them. Large pieces run faster with
            more; memory grows with it.
        use_graphs: Launch each step as one CUDA graph, recorded for each number of frames when it first comes.

    Attributes:
        num_frames: Frames encoded since the beginning, `flush` or `reset()`.

    Raises:
        ValueError: If the model is not causal, or the bottleneck or a number does not fit.
    """

    def __init__(
        self,
        codec: Codec,
        bottleneck: str | BottleneckSpec = "2x5^6",
        *,
        num_streams: int = 1,
        max_frames: int = 8,
        use_graphs: bool = False,
    ) -> None:
        super().__init__(codec, codec.model.encoder, bottleneck, num_streams, max_frames, use_graphs)
        self._pending = torch.zeros(num_streams, 1, 0)

    @property
    def state_bytes(self) -> int:
        """Memory of everything that is remembered between two pieces."""
        return self._half.num_bytes + self._pending.nbytes

    @torch.inference_mode()
    def push(self, wav: Float[Tensor, "b 1 n"]) -> Int64[Tensor, "b s k"]:
        """Tokens of the frames that `wav` makes whole; what is left of it waits for more.

        Raises:
            ValueError: If the shape or a value is not what the model takes; nothing of the piece is used then.
        """
        if wav.dim() != 3 or wav.shape[:2] != self._pending.shape[:2]:
            raise ValueError(f"wav must be ({len(self._pending)}, 1, samples), got {tuple(wav.shape)}")
        if not wav.is_floating_point():
            raise ValueError(f"wav must hold floats in [-1, 1], got {wav.dtype}; divide int16 by 32768")
        if not wav.isfinite().all():
            raise ValueError(f"wav holds {int((~wav.isfinite()).sum())} values that are NaN or infinite")
        wav = torch.cat((self._pending, wav.float().cpu()), dim=-1)
        hop = self._codec.hop_samples
        whole = wav.shape[-1] - wav.shape[-1] % hop
        self._pending = wav[..., whole:].clone()
        if not whole:
            return torch.zeros(len(wav), 0, self._spec.num_stages, dtype=torch.int64)
        patches = patchify(wav[..., :whole], self._codec.config.patch_samples)
        latents = self._half.run(patches.to(self._codec.device, self._codec.dtype))
        return tokenize(latents.float(), self._spec).cpu()

    def flush(self) -> Int64[Tensor, "b s k"]:
        """Tokens of the frame that has begun, completed with zeros, or none. The next piece begins a new stream."""
        missing = -self._pending.shape[-1] % self._codec.hop_samples
        tokens = self.push(torch.zeros(len(self._pending), 1, missing))
        self.reset()
        return tokens

    @torch.inference_mode()
    def reset(self, stream: int | None = None) -> None:
        """Begin anew, all streams or one of them, whose samples that wait for a whole frame become zeros."""
        self._half.reset(stream)
        if stream is None:
            self._pending = self._pending[..., :0].clone()
        else:
            self._pending[stream] = 0


class StreamingDecoder(_Stream):
    """Tokens, any number of frames at a time, to audio; `hop_samples` for each frame at once.

    A frame that did not arrive is concealed: the decoder gets the codes of the last one that did, drawn towards 0
    (`CONCEALED_DECAY`), so that its memory stays in step with the encoder's, and the level falls frame by frame to
    silence (`CONCEALED_GAINS`), until frames arrive again. Args and errors as `StreamingEncoder`; half precision is for
    this side.
    """

    def __init__(
        self,
        codec: Codec,
        bottleneck: str | BottleneckSpec = "2x5^6",
        *,
        num_streams: int = 1,
        max_frames: int = 8,
        use_graphs: bool = False,
    ) -> None:
        super().__init__(codec, codec.model.decoder, bottleneck, num_streams, max_frames, use_graphs)
        self._held = torch.zeros(num_streams, codec.config.latent_dim)
        self._has_held = torch.zeros(num_streams, dtype=torch.bool)
        self._lost_in_a_row = torch.zeros(num_streams, dtype=torch.int64)
        self._gain = torch.ones(num_streams)

    @property
    def state_bytes(self) -> int:
        """Memory of everything that is remembered between two pieces."""
        own = (self._held, self._has_held, self._lost_in_a_row, self._gain)
        return self._half.num_bytes + sum(tensor.nbytes for tensor in own)

    @torch.inference_mode()
    def push(
        self, tokens: Int64[Tensor, "b s k"], is_lost: Bool[Tensor, "b s"] | None = None
    ) -> Float[Tensor, "b 1 n"]:
        """Audio of these frames, n = s * hop_samples, not limited to [-1, 1]; tokens of lost frames are not looked at.

        Raises:
            ValueError: If tokens are outside their codebook, or of another number of streams or stages.
        """
        if tokens.dim() != 3 or len(tokens) != len(self._held) or tokens.is_floating_point():
            raise ValueError(
                f"tokens must be integers ({len(self._held)}, s, k), got {tokens.dtype} {tuple(tokens.shape)}"
            )
        if is_lost is None:
            is_lost = torch.zeros(tokens.shape[:2], dtype=torch.bool)
        arrived = detokenize(tokens.cpu().long().masked_fill(is_lost[..., None], 0), self._spec)
        if not tokens.shape[1]:
            return torch.zeros(len(tokens), 1, 0)
        frames = [self._conceal(codes, lost) for codes, lost in zip(arrived.unbind(1), is_lost.unbind(1), strict=True)]
        codes, gains_before, gains = (torch.stack(values, dim=1) for values in zip(*frames, strict=True))
        patches = self._half.run(codes.to(self._codec.device, self._codec.dtype)).float().cpu()
        wav = patches.reshape(len(codes), codes.shape[1], self._codec.hop_samples)
        if (gains != 1).any() or (gains_before != 1).any():
            wav = wav * self._envelope(gains_before, gains)
        return wav.reshape(len(codes), 1, -1)

    def conceal(self, num_frames: int = 1) -> Float[Tensor, "b 1 n"]:
        """Audio in the place of frames that no stream received."""
        shape = len(self._held), num_frames, self._spec.num_stages
        return self.push(torch.zeros(shape, dtype=torch.int64), torch.ones(shape[:2], dtype=torch.bool))

    def flush(self) -> Float[Tensor, "b 1 0"]:
        """No audio, since none is held back. The next frame begins a new stream."""
        self.reset()
        return torch.zeros(len(self._held), 1, 0)

    @torch.inference_mode()
    def reset(self, stream: int | None = None) -> None:
        """Begin anew, all streams or one of them."""
        self._half.reset(stream)
        rows = slice(None) if stream is None else stream
        self._held[rows], self._has_held[rows], self._lost_in_a_row[rows], self._gain[rows] = 0, False, 0, 1

    def _conceal(self, codes: Tensor, is_lost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What to decode for one frame (b, d), and the level (b,) that it begins with and comes to."""
        self._held = torch.where(is_lost[:, None], self._held, codes)
        self._lost_in_a_row = torch.where(is_lost, self._lost_in_a_row + 1, 0)
        fading = torch.tensor(CONCEALED_GAINS)[(self._lost_in_a_row - 1).clamp(0, len(CONCEALED_GAINS) - 1)]
        # Before the first frame there is nothing to hold, and codes of zero need not sound like silence.
        nothing = is_lost & ~self._has_held
        before = torch.where(nothing, 0.0, self._gain)
        self._gain = torch.where(nothing, 0.0, torch.where(is_lost, fading, 1.0))
        self._has_held = self._has_held | ~is_lost
        return self._held * CONCEALED_DECAY ** self._lost_in_a_row[:, None], before, self._gain

    def _envelope(self, before: Tensor, after: Tensor) -> Tensor:
        """Gain of every sample (b, s, hop): down over the whole frame, up within an eighth of it (5 ms)."""
        hop = self._codec.hop_samples
        passed = torch.arange(1, hop + 1) / hop
        passed = torch.where((after > before)[..., None], (8 * passed).clamp(max=1.0), passed)
        return before[..., None] + (after - before)[..., None] * passed
