"""The `.taae` file: a 39-byte header and the tokens, packed or entropy-coded (`docs/bitstream.md`). No torch."""

import math
import struct
import zlib
from dataclasses import dataclass, replace

import numpy as np

from taae import entropy as entropy_coder
from taae.config import BottleneckSpec

MAGIC = b"TAAE"
VERSION = 1
HEADER_BYTES = 39
DEFAULT_MAX_FRAMES = 2**24  # a week at 25 Hz; 128 MiB of tokens a stage

MAX_ENTROPY_DIGITS = 2**25  # frames * stages * dims: 31 hours of "2x5^6" at 25 Hz, some minutes of work

# What the encoder of the tokens ran in; anything but float32 changes some of them (docs/precision.md).
ENCODER_DTYPES = ("float32", "bfloat16", "float16", "int8")

_FLAG_ENTROPY_CODED = 1
_DTYPE_SHIFT, _DTYPE_MASK = 1, 0b11  # flag bits 1 and 2: a place in ENCODER_DTYPES
# magic, version, flags, model id, sample rate (24 bits), samples (48 bits), frames, stages, levels, dim, gain
_FIELDS = struct.Struct(">4sBB8s3s6sIBHBf")
_CHECKSUM = struct.Struct(">I")
_MAX_GAIN_DB = 770  # 10^(770 / 20) and its inverse are finite and not zero in float32
_CHUNK_TOKENS = 2**16  # a token takes 64 bytes while it is packed; a multiple of 8, so that chunks end on whole bytes

Bytes = bytes | bytearray | memoryview


class BitstreamError(ValueError):
    """The bytes are not a whole, unaltered `.taae` file, or one of another model than the one asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a `.taae` file says before its tokens.

    Attributes:
        model_id: The 8 bytes by which the model that wrote the tokens is known.
        sample_rate_hz: Of the audio that went in and comes out, 1 ... 2^24 - 1; not that of the model.
        num_samples: Of that audio, at `sample_rate_hz`, 0 ... 2^48 - 1.
        num_frames: Rows of tokens, 0 ... 2^32 - 1; 0 exactly when `num_samples` is 0.
        bottleneck: Not continuous; at most 65535 levels.
        gain_db: Gain that was applied before encoding and is undone after decoding; rounded to float32, as stored.
        is_entropy_coded: Whether the tokens are entropy-coded; `pack` sets it.
        encoder_dtype: One of `ENCODER_DTYPES`.

    Raises:
        ValueError: If a value does not fit its field.
    """

    model_id: bytes
    sample_rate_hz: int
    num_samples: int
    num_frames: int
    bottleneck: BottleneckSpec
    gain_db: float
    is_entropy_coded: bool = False
    encoder_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.encoder_dtype not in ENCODER_DTYPES:
            raise ValueError(f"encoder_dtype must be one of {', '.join(ENCODER_DTYPES)}, got {self.encoder_dtype!r}")
        if len(self.model_id) != 8:
            raise ValueError(f"model_id must be 8 bytes, got {len(self.model_id)}")
        if self.bottleneck.is_continuous:
            raise ValueError("a continuous bottleneck has no tokens to store; choose one such as '2x5^6'")
        if self.bottleneck.levels >= 2**16:
            raise ValueError(f"a .taae file stores at most 65535 levels, got bottleneck {self.bottleneck}")
        limits = {"sample_rate_hz": (1, 2**24), "num_samples": (0, 2**48), "num_frames": (0, 2**32)}
        for name, (low, end) in limits.items():
            if not low <= getattr(self, name) < end:
                raise ValueError(f"{name} must be {low} ... {end - 1}, got {getattr(self, name)}")
        if (self.num_samples == 0) != (self.num_frames == 0):
            raise ValueError(f"no samples means no frames; got {self.num_samples} samples, {self.num_frames} frames")
        if not abs(self.gain_db) <= _MAX_GAIN_DB:  # so that NaN fails too
            raise ValueError(f"gain_db must be finite and within +-{_MAX_GAIN_DB}, got {self.gain_db}")
        object.__setattr__(self, "gain_db", float(np.float32(self.gain_db)))

    @property
    def packed_payload_bits(self) -> int:
        """num_frames * stages * ceil(log2 L^d) (Eq. 5), before the last byte is filled up."""
        return self.num_frames * self.bottleneck.bits_per_frame

    @property
    def num_digits(self) -> int:
        """Values that the entropy coder codes, one for each frame, stage and dimension."""
        return self.num_frames * self.bottleneck.num_stages * self.bottleneck.dim


def pack(header: Header, tokens: np.ndarray, *, entropy: bool = False) -> bytes:
    """Write a `.taae` file.

    Args:
        header: Its `is_entropy_coded` is ignored.
        tokens: Integers (s, k), each 0 ... L^d - 1; s frames of k residual stages.
        entropy: Try the entropy coder too and keep what it writes if that is smaller (up to 64 levels and
            `MAX_ENTROPY_DIGITS`).

    Raises:
        ValueError: If the tokens do not fit the header.
    """
    tokens = _checked_tokens(header, np.asarray(tokens))
    spec = header.bottleneck
    payload, is_entropy_coded = _pack_bits(tokens.ravel(), _bits_per_token(spec)), False
    if entropy and spec.levels <= entropy_coder.MAX_LEVELS and header.num_digits <= MAX_ENTROPY_DIGITS:
        digits = tokens[:, None, :] // _digit_weights(spec) % spec.levels  # (s, d, k)
        coded = entropy_coder.encode_digits(digits, spec.levels)
        if len(coded) < len(payload):
            payload, is_entropy_coded = coded, True
    head = _pack_header(replace(header, is_entropy_coded=is_entropy_coded))
    return head + _CHECKSUM.pack(_checksum(head, payload)) + payload


def unpack(data: Bytes, *, max_frames: int = DEFAULT_MAX_FRAMES) -> tuple[Header, np.ndarray]:
    """Read a `.taae` file: its header and its tokens (s, k), int64.

    Args:
        data: The whole file.
        max_frames: Refuse longer files. Packed tokens take memory in proportion to the file; a byte of entropy-coded
            ones can be a thousand frames.

    Raises:
        BitstreamError: If the file is truncated, altered, too long, of another version or not a `.taae` file.
    """
    data = bytes(data)
    header = read_header(data)
    spec = header.bottleneck
    if header.num_frames > max_frames:
        raise BitstreamError(f"the file has {header.num_frames} frames, at most {max_frames} allowed; raise max_frames")
    payload = data[HEADER_BYTES:]
    if header.is_entropy_coded:
        if header.num_digits > MAX_ENTROPY_DIGITS:
            raise BitstreamError(
                f"{header.num_frames} entropy-coded frames of {spec} are {header.num_digits} digits, "
                f"at most {MAX_ENTROPY_DIGITS} allowed; no writer makes such a file"
            )
        try:
            digits = entropy_coder.decode_digits(payload, header.num_frames, spec.dim, spec.num_stages, spec.levels)
        except ValueError as error:
            raise BitstreamError(f"the payload is damaged: {error}; write it anew") from error
        return header, (digits * _digit_weights(spec)).sum(axis=1)
    tokens = _unpack_bits(payload, header.num_frames * spec.num_stages, _bits_per_token(spec))
    if tokens.size and int(tokens.max()) >= spec.codebook_size:
        raise BitstreamError(
            f"token {int(tokens.max())} is outside the codebook of {spec} ({spec.codebook_size} codes); "
            "a faulty program wrote the file, write it anew"
        )
    return header, tokens.reshape(header.num_frames, spec.num_stages)


def read_header(data: Bytes) -> Header:
    """Check a whole `.taae` file, checksum included, and read its header without decoding the tokens.

    Raises:
        BitstreamError: As `unpack`, apart from what only the tokens show.
    """
    data = bytes(data)
    if not data:
        raise BitstreamError("the file is empty, expected a .taae file; copy or write it anew")
    if data[:4] != MAGIC[: len(data)]:
        raise BitstreamError(f"not a .taae file: it starts with {data[:4]!r}, expected {MAGIC!r}; choose another file")
    if len(data) > 4 and data[4] != VERSION:
        raise BitstreamError(f"the file has version {data[4]}, expected {VERSION}; use the program that wrote it")
    if len(data) < HEADER_BYTES:
        raise BitstreamError(f"the file is truncated: {len(data)} bytes, expected {HEADER_BYTES} or more; copy it anew")
    _, _, flags, model_id, rate, samples, num_frames, *bottleneck, gain_db = _FIELDS.unpack_from(data)
    known = _FLAG_ENTROPY_CODED | _DTYPE_MASK << _DTYPE_SHIFT
    if flags & ~known:
        raise BitstreamError(f"the file has flags {flags}, expected 0 ... {known}; use a newer program")
    try:
        header = Header(
            model_id=model_id,
            sample_rate_hz=int.from_bytes(rate, "big"),
            num_samples=int.from_bytes(samples, "big"),
            num_frames=num_frames,
            bottleneck=BottleneckSpec(*bottleneck),
            gain_db=gain_db,
            is_entropy_coded=bool(flags & _FLAG_ENTROPY_CODED),
            encoder_dtype=ENCODER_DTYPES[flags >> _DTYPE_SHIFT & _DTYPE_MASK],
        )
    except ValueError as error:
        raise BitstreamError(f"the header is damaged: {error}; copy or write it anew") from error
    _check_payload(header, data)
    return header


def expect_model(header: Header, model_id: bytes, model_name: str) -> None:
    """Check that the model at hand is the one whose tokens these are; another would decode them to noise.

    Raises:
        BitstreamError: If it is not.
    """
    if header.model_id != model_id:
        raise BitstreamError(
            f"the file was written by model {header.model_id.hex()}, this is {model_name} ({model_id.hex()}); "
            "load the model that wrote it"
        )


def _bits_per_token(spec: BottleneckSpec) -> int:
    return spec.bits_per_frame // spec.num_stages


def _digit_weights(spec: BottleneckSpec) -> np.ndarray:
    """L^i of dimension i, (d, 1): the first dimension is the least significant digit of a token."""
    return np.array([[spec.levels**i] for i in range(spec.dim)], dtype=np.int64)


def _pack_header(header: Header) -> bytes:
    spec = header.bottleneck
    return _FIELDS.pack(
        MAGIC,
        VERSION,
        _FLAG_ENTROPY_CODED * header.is_entropy_coded | ENCODER_DTYPES.index(header.encoder_dtype) << _DTYPE_SHIFT,
        header.model_id,
        header.sample_rate_hz.to_bytes(3, "big"),
        header.num_samples.to_bytes(6, "big"),
        header.num_frames,
        spec.num_stages,
        spec.levels,
        spec.dim,
        header.gain_db,
    )


def _check_payload(header: Header, data: bytes) -> None:
    """Compare length, checksum and pad bits with what the header promises, before anything of its size is allocated."""
    num_bytes = len(data) - HEADER_BYTES
    packed_bytes = math.ceil(header.packed_payload_bits / 8)
    tokens = f"{header.num_frames} frames of {header.bottleneck}"
    if header.is_entropy_coded:
        if num_bytes >= packed_bytes:
            raise BitstreamError(
                f"the file is too long or altered: entropy-coded tokens take {num_bytes} bytes, expected fewer than "
                f"the {packed_bytes} of {tokens} when packed; copy it anew"
            )
    elif num_bytes != packed_bytes:
        raise BitstreamError(
            f"the file is {'truncated' if num_bytes < packed_bytes else 'too long'}: {len(data)} bytes, "
            f"expected {HEADER_BYTES + packed_bytes} for {tokens}; copy it anew"
        )
    (stored,) = _CHECKSUM.unpack_from(data, _FIELDS.size)
    computed = _checksum(data[: _FIELDS.size], data[HEADER_BYTES:])
    if stored != computed:
        raise BitstreamError(
            f"the file was altered or cut: its checksum is {computed:08x}, expected {stored:08x}; copy it anew"
        )
    pad_bits = 8 * packed_bytes - header.packed_payload_bits
    if pad_bits and not header.is_entropy_coded and data[-1] & (1 << pad_bits) - 1:
        raise BitstreamError(f"the last {pad_bits} bits are not zero; a faulty program wrote the file, write it anew")


def _checksum(head: bytes, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(head))


def _checked_tokens(header: Header, tokens: np.ndarray) -> np.ndarray:
    spec = header.bottleneck
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens must be integers, got {tokens.dtype}; convert them, int64 holds every token")
    if tokens.shape != (header.num_frames, spec.num_stages):
        raise ValueError(
            f"tokens must be (num_frames, stages) = ({header.num_frames}, {spec.num_stages}) as the header says, "
            f"got {tokens.shape}; pack one item of a batch at a time"
        )
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < spec.codebook_size:
        raise ValueError(
            f"tokens of {spec} lie in 0 ... {spec.codebook_size - 1}, got {int(tokens.min())} ... {int(tokens.max())}"
        )
    return tokens.astype(np.int64)


def _pack_bits(tokens: np.ndarray, num_bits: int) -> bytes:
    """Non-negative int64 (n,) -> `num_bits` bits each, most significant first, the last byte filled with zeros."""
    chunks = []
    for start in range(0, len(tokens), _CHUNK_TOKENS):
        chunk = tokens[start : start + _CHUNK_TOKENS].astype(">i8").view(np.uint8).reshape(-1, 8)
        chunks.append(np.packbits(np.unpackbits(chunk, axis=1)[:, 64 - num_bits :]).tobytes())
    return b"".join(chunks)


def _unpack_bits(payload: bytes, num_tokens: int, num_bits: int) -> np.ndarray:
    """The inverse of `_pack_bits`: int64 (num_tokens,)."""
    source = np.frombuffer(payload, dtype=np.uint8)
    tokens = np.empty(num_tokens, dtype=np.int64)
    for start in range(0, num_tokens, _CHUNK_TOKENS):
        chunk = tokens[start : start + _CHUNK_TOKENS]
        first_byte = start * num_bits // 8
        chunk_bits = len(chunk) * num_bits
        bits = np.zeros((len(chunk), 64), dtype=np.uint8)
        found = np.unpackbits(source[first_byte : first_byte + math.ceil(chunk_bits / 8)], count=chunk_bits)
        bits[:, 64 - num_bits :] = found.reshape(-1, num_bits)
        chunk[:] = np.packbits(bits, axis=1).view(">i8")[:, 0]
    return tokens
