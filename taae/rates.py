"""What a token stream costs: rates (Eq. 5), use of the codebook and Huffman coding (A.8), time (A.9). No torch."""

import heapq
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRate:
    """The columns BPS, TPF and TPS of Table 2."""

    bits_per_second: float
    tokens_per_frame: int
    tokens_per_second: float


def token_rate(codebook_sizes: Sequence[int], frame_rate_hz: float) -> TokenRate:
    """Rates of one token of every codebook a frame, each rounded up to whole bits.

    Source: Eq. 5, which serves RVQ alike: `token_rate([15625] * 2, 25.0)` has 700 bit/s, `[2048] * 8` at 12.5 Hz 1100.

    Raises:
        ValueError: If there is no codebook, one has less than two codes, or the frame rate is not positive.
    """
    if not codebook_sizes or min(codebook_sizes) < 2 or frame_rate_hz <= 0:
        raise ValueError(f"expected codebooks of 2 codes or more at a rate above 0, got {codebook_sizes}")
    bits_per_frame = sum((int(size) - 1).bit_length() for size in codebook_sizes)
    return TokenRate(
        bits_per_second=frame_rate_hz * bits_per_frame,
        tokens_per_frame=len(codebook_sizes),
        tokens_per_second=frame_rate_hz * len(codebook_sizes),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookUse:
    """How one codebook is used (Table 9).

    Attributes:
        codebook_size: N of the formulas in A.8.
        num_tokens: How many were counted. With less than some hundred times N, entropy and Huffman length read too low.
        num_used: Codes that occur.
        entropy_bits: Of a token, as it occurs, without context.
        huffman_bits: Mean length of a token's Huffman code.
    """

    codebook_size: int
    num_tokens: int
    num_used: int
    entropy_bits: float
    huffman_bits: float

    @property
    def normalized_entropy(self) -> float:
        """Entropy over that of uniform use, 0 to 1."""
        return self.entropy_bits / math.log2(self.codebook_size)

    @property
    def perplexity(self) -> float:
        """Number of codes that, used evenly, have this entropy."""
        return 2**self.entropy_bits


def codebook_use(tokens: Any, codebook_size: int) -> CodebookUse:
    """Count the tokens of one codebook, any shape.

    Source: A.8. A codebook of 17^6 codes is never laid out; only the codes that occur are.

    Raises:
        ValueError: If there are no tokens, or one is not in 0 ... codebook_size - 1.
    """
    tokens = _integers(tokens)
    if codebook_size < 2:
        raise ValueError(f"a codebook has at least 2 codes, got {codebook_size}")
    if tokens.min() < 0 or tokens.max() >= codebook_size:
        raise ValueError(f"tokens must be in 0 ... {codebook_size - 1}, got {tokens.min()} ... {tokens.max()}")
    counts = np.unique(tokens, return_counts=True)[1]
    shares = counts / counts.sum()
    return CodebookUse(
        codebook_size=int(codebook_size),
        num_tokens=int(counts.sum()),
        num_used=len(counts),
        entropy_bits=float(max(0.0, -(shares * np.log2(shares)).sum())),
        huffman_bits=float((shares * huffman_lengths(counts)).sum()),
    )


def huffman_bits_per_second(tokens: Any, codebook_sizes: Sequence[int], frame_rate_hz: float) -> float:
    """Bitrate after a Huffman code for each codebook, fitted to these very tokens; the codes themselves are not sent.

    Source: A.8, whose formula gives bits a token; Table 9 prints bits a second.

    Args:
        tokens: `(..., k)`, one of each codebook a frame.
        codebook_sizes: The k sizes.
        frame_rate_hz: Frames a second.

    Raises:
        ValueError: If the last axis is not k, or a token is out of range.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim < 1 or tokens.shape[-1] != len(codebook_sizes):
        raise ValueError(f"tokens must be (..., {len(codebook_sizes)}), got {tokens.shape}")
    uses = [codebook_use(tokens[..., stage], size) for stage, size in enumerate(codebook_sizes)]
    return frame_rate_hz * sum(use.huffman_bits for use in uses)


def huffman_lengths(counts: Any) -> np.ndarray:
    """Lengths in bits of an optimal prefix code for symbols that occur so often, all above 0; one symbol takes 1 bit.

    Raises:
        ValueError: If there are none or one is not positive.
    """
    counts = _integers(counts).tolist()
    if min(counts) < 1:
        raise ValueError("counts must be positive; leave out what does not occur")
    if len(counts) == 1:
        return np.ones(1, dtype=np.int64)
    heap = [(count, node) for node, count in enumerate(counts)]
    heapq.heapify(heap)
    parents = [0] * (2 * len(counts) - 1)
    for node in range(len(counts), len(parents)):
        (low, left), (high, right) = heapq.heappop(heap), heapq.heappop(heap)
        parents[left] = parents[right] = node
        heapq.heappush(heap, (low + high, node))
    depths = [0] * len(parents)
    for node in range(len(parents) - 2, -1, -1):  # a parent comes after its children, the root last
        depths[node] = depths[parents[node]] + 1
    return np.array(depths[: len(counts)])


@dataclass(frozen=True, slots=True, kw_only=True)
class RealTimeFactor:
    """Seconds of work a second of audio, below 1 where it keeps up (Table 10).

    Attributes:
        mean: All work over all audio.
        fastest: Of the best clip; what a busy machine disturbs least.
        num_clips: Clips that were timed.
        audio_s: Their length in all.
    """

    mean: float
    fastest: float
    num_clips: int
    audio_s: float


def real_time_factor(
    process: Callable[[Any], Any],
    wavs: Iterable[Any],
    sample_rate_hz: int,
    *,
    num_warm_up: int = 1,
    synchronize: Callable[[], Any] | None = None,
) -> RealTimeFactor:
    """Time `process`, such as encode and decode, on each wav `(..., n)`, one after the other.

    Source: A.9, which times clips of 5, 30 and 60 s.

    Args:
        process: What is timed.
        wavs: Arrays or tensors, one a call; the last axis is time.
        sample_rate_hz: Of the wavs.
        num_warm_up: Calls on the first wav before the clock starts.
        synchronize: Waits for the device, `torch.cuda.synchronize` on a GPU; without it only the launch is timed there.

    Raises:
        ValueError: If there are no wavs.
    """
    wait = synchronize or (lambda: None)
    elapsed_s, audio_s, fastest, num_clips = 0.0, 0.0, math.inf, 0
    for wav in wavs:
        if num_clips == 0:
            for _ in range(num_warm_up):
                process(wav)
            wait()
        started = time.perf_counter()
        process(wav)
        wait()
        took_s, length_s = time.perf_counter() - started, wav.shape[-1] / sample_rate_hz
        elapsed_s, audio_s, num_clips = elapsed_s + took_s, audio_s + length_s, num_clips + 1
        fastest = min(fastest, took_s / length_s)
    if num_clips == 0:
        raise ValueError("there are no wavs to time")
    return RealTimeFactor(mean=elapsed_s / audio_s, fastest=fastest, num_clips=num_clips, audio_s=audio_s)


def _integers(values: Any) -> np.ndarray:
    array = np.asarray(values).ravel()
    if array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(f"expected whole numbers, at least one; got {array.size} of type {array.dtype}")
    return array
