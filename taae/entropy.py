"""Adaptive range coder for the digits of tokens: the entropy-coded mode of a `.taae` file. Integers only, no torch.

A digit is the level, 0 ... L-1, of one dimension in one residual stage. `docs/bitstream.md` describes the model and
the coder; both sides run the same `_code_digits`, so that encoder and decoder cannot drift apart.
"""

from collections.abc import Callable

import numpy as np

MAX_LEVELS = 64  # time and memory of a digit grow with L
# A digit costs at least log2(e) / 9216 bit for each other value it could have had: no weight is below _BACKOFF, no
# total above _MAX_SHARED * (_MAX_OWN + _BACKOFF). This many times L-1 fit a byte; a reader bounds num_frames by it.
MAX_ALTERNATIVES_PER_BYTE = 51_200

_BACKOFF = 32  # the shared counts weigh as much as this many digits of one dimension
_MAX_SHARED = 1024
_MAX_OWN = 256
_TOP_BITS = 48  # wide enough that range // total loses nothing that matters
_TOP = 1 << _TOP_BITS
_BOTTOM = _TOP >> 8


def encode_digits(digits: np.ndarray, levels: int) -> bytes:
    """Code digits (num_frames, dim, num_stages), each 0 ... levels-1, as bytes; about 3 us a digit.

    Raises:
        ValueError: If `levels` is not 2 ... MAX_LEVELS.
    """
    num_frames, dim, num_stages = digits.shape
    encoder = _Encoder(digits.ravel().tolist())
    _code_digits(encoder.code, num_frames, dim, num_stages, levels)
    return encoder.finish()


def decode_digits(payload: bytes, num_frames: int, dim: int, num_stages: int, levels: int) -> np.ndarray:
    """The inverse of `encode_digits`: digits (num_frames, dim, num_stages), int64.

    Raises:
        ValueError: If `levels` is not 2 ... MAX_LEVELS, or the payload is too short, too long or not of this coder.
    """
    alternatives = num_frames * dim * num_stages * (levels - 1)
    if alternatives > MAX_ALTERNATIVES_PER_BYTE * len(payload):
        raise ValueError(f"its {len(payload)} bytes cannot hold {num_frames} frames")
    decoder = _Decoder(payload)
    digits = _code_digits(decoder.code, num_frames, dim, num_stages, levels)
    decoder.finish()
    return np.array(digits, dtype=np.int64).reshape(num_frames, dim, num_stages)


def _code_digits(
    code: Callable[[list[int], int], int], num_frames: int, dim: int, num_stages: int, levels: int
) -> list[int]:
    """Walk frames, dimensions, stages; `code(weights, their sum)` writes the next digit or reads it, and returns it."""
    if not 2 <= levels <= MAX_LEVELS:
        raise ValueError(f"entropy coding takes 2 to {MAX_LEVELS} levels, got {levels}; use the packed mode")
    half = (levels - 1) // 2
    # How often each digit came in a context: in all dimensions, and in each one. The former start from a guess, a digit
    # near the previous frame's, and stay above zero; on files of 5 to 10 s that saves 1 to 3 %.
    shared: dict[int, list[int]] = {}
    own: list[dict[int, list[int]]] = [{} for _ in range(dim)]
    # The previous frame's value up to each stage, in steps of that stage's grid.
    previous = [[0] * num_stages for _ in range(dim)]
    digits = []
    for _ in range(num_frames):
        for own_counts, positions in zip(own, previous, strict=True):
            position, path = 0, 1  # value of the stages so far; the same digits as one number
            for stage in range(num_stages):
                position *= levels - 1  # a step of this stage is 1 / (levels - 1) of the stage before (Eq. 4)
                # Where the previous frame's value lies among the values that this digit can take; -1 and L are outside.
                near = min(max(positions[stage] - position + half, -1), levels)
                context = path * (levels + 2) + near + 1
                common = shared.get(context)
                if common is None:
                    common = shared[context] = [1 + 4 // (1 + abs(value - near)) for value in range(levels)]
                counts = own_counts.get(context)
                if counts is None:
                    counts = own_counts[context] = [0] * levels
                num_common, num_counts = sum(common), sum(counts)
                weights = [count * num_common + _BACKOFF * prior for count, prior in zip(counts, common, strict=True)]

                digit = code(weights, num_common * (num_counts + _BACKOFF))

                digits.append(digit)
                common[digit] += 1
                counts[digit] += 1
                if num_common >= _MAX_SHARED:
                    common[:] = [(count + 1) >> 1 for count in common]
                if num_counts >= _MAX_OWN:
                    counts[:] = [count >> 1 for count in counts]
                position += digit - half
                positions[stage] = position
                path = path * levels + digit
    return digits


class _Encoder:
    """`low` and `range` are the interval that the digits so far have left; bytes leave at its top."""

    def __init__(self, digits: list[int]) -> None:
        self._digits = iter(digits)
        self._low = 0
        self._range = _TOP
        self._bytes = bytearray()

    def code(self, weights: list[int], total: int) -> int:
        digit = next(self._digits)
        step = self._range // total
        self._low += step * sum(weights[:digit])
        self._range = step * weights[digit]
        while self._range < _BOTTOM:
            self._shift()
            self._range <<= 8
        return digit

    def finish(self) -> bytes:
        """Write the fewest bytes that name a number inside the interval whatever follows them: one or two."""
        end = self._low + self._range
        for unit in (_BOTTOM, _BOTTOM >> 8):
            start = -(-self._low // unit) * unit
            if start + unit <= end:
                break
        self._low = start
        self._shift()
        if unit != _BOTTOM:
            self._shift()
        return bytes(self._bytes)

    def _shift(self) -> None:
        if self._low >= _TOP:  # carry into the bytes already written
            index = len(self._bytes) - 1
            while self._bytes[index] == 255:
                self._bytes[index] = 0
                index -= 1
            self._bytes[index] += 1
        self._bytes.append(self._low >> (_TOP_BITS - 8) & 255)
        self._low = (self._low & (_BOTTOM - 1)) << 8


class _Decoder:
    """`code` is how far the number in the payload lies above the encoder's `low`."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._following = iter(payload[_TOP_BITS // 8 :])
        self._code = int.from_bytes(payload[: _TOP_BITS // 8].ljust(_TOP_BITS // 8, b"\0"))
        self._range = _TOP
        self._num_shifts = 0

    def code(self, weights: list[int], total: int) -> int:
        step = self._range // total
        target = self._code // step
        if target >= total:
            raise ValueError("it was not written by this entropy coder")
        digit = start = 0
        while target >= start + weights[digit]:
            start += weights[digit]
            digit += 1
        self._code -= step * start
        self._range = step * weights[digit]
        while self._range < _BOTTOM:
            self._code = self._code << 8 | next(self._following, 0)
            self._range <<= 8
            self._num_shifts += 1
            if self._num_shifts >= len(self._payload):
                raise ValueError(f"its {len(self._payload)} bytes end before its digits")
        return digit

    def finish(self) -> None:
        """Check that the encoder, which writes one or two bytes at the end, would not have stopped before."""
        if len(self._payload) > self._num_shifts + 2:
            raise ValueError(f"its digits end in byte {self._num_shifts + 2} of {len(self._payload)}")
