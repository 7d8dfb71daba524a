"""Tokens on a line: one header, then one small packet for each latent frame (docs/streaming.md). No torch.

Packets have one size and carry a number, so a receiver sees which are missing and conceals them.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase

from taae.config import BottleneckSpec

MAGIC = b"TAAS"
VERSION = 1
NUMBERS = 2**16  # packet numbers begin again after this many frames, 44 minutes
# Without a packet for this long the sender was away: time that passed is not filled with silence.
MAX_GAP_FRAMES = 250

# magic, version, model id, stages, levels, dim, gain
_HEADER = struct.Struct(">4sB8sBHBf")
_NUMBER = struct.Struct(">H")


class PacketError(ValueError):
    """The bytes are no stream of packets, or one of another model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamHeader:
    """What a receiver must know first.

    Attributes:
        model_id: The 8 bytes by which the model that wrote the tokens is known.
        bottleneck: Not continuous.
        gain_db: Gain that was applied before encoding and is undone after decoding.
    """

    model_id: bytes
    bottleneck: BottleneckSpec
    gain_db: float = 0.0

    def __post_init__(self) -> None:
        if self.bottleneck.is_continuous:
            raise ValueError("a continuous bottleneck has no tokens to send; choose one such as '2x5^6'")
        if len(self.model_id) != 8:
            raise ValueError(f"model_id must be 8 bytes, got {len(self.model_id)}")
        if not abs(self.gain_db) <= 120:
            raise ValueError(f"gain_db must be finite and at most 120 either way, got {self.gain_db}")

    @property
    def packet_bytes(self) -> int:
        """A number of two bytes and the bits of one frame, filled up to whole bytes."""
        return _NUMBER.size + math.ceil(self.bottleneck.bits_per_frame / 8)

    def dump(self) -> bytes:
        spec = self.bottleneck
        return _HEADER.pack(MAGIC, VERSION, self.model_id, spec.num_stages, spec.levels, spec.dim, self.gain_db)

    def dump_packet(self, number: int, tokens: Sequence[int]) -> bytes:
        """One frame; its stages follow each other, most significant bit first, and zeros fill the last byte.

        Raises:
            ValueError: If the number of tokens or one of them does not fit the bottleneck.
        """
        spec = self.bottleneck
        if len(tokens) != spec.num_stages or not all(0 <= token < spec.codebook_size for token in tokens):
            raise ValueError(f"a frame of {spec} has {spec.num_stages} tokens below {spec.codebook_size}, got {tokens}")
        packed, width = 0, spec.bits_per_frame // spec.num_stages
        for token in tokens:
            packed = packed << width | token
        packed <<= -spec.bits_per_frame % 8
        return _NUMBER.pack(number % NUMBERS) + packed.to_bytes(self.packet_bytes - _NUMBER.size, "big")

    def parse_packet(self, packet: bytes) -> tuple[int, list[int] | None]:
        """Number and tokens of one packet; None in place of tokens that no encoder writes."""
        spec = self.bottleneck
        width = spec.bits_per_frame // spec.num_stages
        packed = int.from_bytes(packet[_NUMBER.size :], "big") >> -spec.bits_per_frame % 8
        shifts = range((spec.num_stages - 1) * width, -1, -width)
        tokens = [packed >> shift & (1 << width) - 1 for shift in shifts]
        (number,) = _NUMBER.unpack_from(packet)
        return number, tokens if max(tokens) < spec.codebook_size else None


def read_header(file: BufferedIOBase) -> StreamHeader:
    """The header at the beginning of a stream.

    Raises:
        PacketError: If there is none.
    """
    data = _read_whole(file, _HEADER.size)
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise PacketError(f"not a stream of packets from `taae stream --encode`: it starts with {data[:4]!r}")
    _, version, model_id, stages, levels, dim, gain_db = _HEADER.unpack(data)
    if version != VERSION:
        raise PacketError(f"packets of version {version}, expected {VERSION}; a newer taae can read them")
    try:
        return StreamHeader(model_id=model_id, bottleneck=BottleneckSpec(stages, levels, dim), gain_db=gain_db)
    except ValueError as error:
        raise PacketError(f"damaged header of a stream: {error}") from None


def read_frames(file: BufferedIOBase, header: StreamHeader) -> Iterator[list[int] | None]:
    """Frames in order, None for each that is missing; packets that come late or twice are left out.

    What is missing is known when the next packet comes. After a gap of more than `MAX_GAP_FRAMES` the stream goes on
    as if there had been none. A last packet that is not whole is one that did not arrive.
    """
    expected = None
    while len(packet := _read_whole(file, header.packet_bytes)) == header.packet_bytes:
        number, tokens = header.parse_packet(packet)
        missing = 0 if expected is None else (number - expected) % NUMBERS
        if missing > NUMBERS // 2:
            continue
        for _ in range(missing if missing <= MAX_GAP_FRAMES else 0):
            yield None
        yield tokens
        expected = number + 1


def _read_whole(file: BufferedIOBase, num_bytes: int) -> bytes:
    """So many bytes, or all there are before the end; a pipe gives what it has."""
    data = b""
    while len(data) < num_bytes and (more := file.read(num_bytes - len(data))):
        data += more
    return data
