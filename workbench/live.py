"""A voice through the codec while it speaks: what stands behind the live page, with no browser and no server in it."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

import taae
from taae.checkpoint import PRETRAINED, WEIGHTS
from taae.config import BottleneckSpec
from taae.streaming import StreamingDecoder, StreamingEncoder

if TYPE_CHECKING:
    from taae.codec import Codec

EMBEDDED = "mini-causal"
MAX_SESSIONS = 8
IDLE_S = 30.0
MAX_PIECE_S = 2.0


class LiveError(ValueError):
    """One sentence for the person at the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """What the page may change at any moment.

    Attributes:
        bottleneck: "2x5^6" and so on.
        loss: Share of frames that the line loses, 0 ... 1.
        gain_db: Applied before encoding and undone after decoding.
    """

    bottleneck: str = "2x5^6"
    loss: float = 0.0
    gain_db: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.loss <= 1:
            raise LiveError(f"loss must be between 0 and 1, got {self.loss}")
        if not abs(self.gain_db) <= 60:
            raise LiveError(f"the gain must be at most 60 dB either way, got {self.gain_db}")
        try:
            is_continuous = BottleneckSpec.parse(self.bottleneck).is_continuous
        except ValueError as error:
            raise LiveError(str(error)) from None
        if is_continuous:
            raise LiveError("a continuous bottleneck has no tokens to send; choose a bitrate")


class LiveSession:
    """One voice: PCM in, PCM out, 40 ms late, with a line in between that loses frames at random."""

    def __init__(self, codec: "Codec", seed: int = 0) -> None:
        self._codec = codec
        self._encoder, self._decoder = StreamingEncoder(codec), StreamingDecoder(codec)
        self._draws = np.random.default_rng(seed)
        self._lock = threading.Lock()  # a browser that repeats a request must not mix up the past
        self.last_used = time.monotonic()

    def push(self, pcm: bytes, settings: LiveSettings) -> tuple[bytes, dict[str, float | int]]:
        """Decoded audio of the frames that `pcm` makes whole, and counts and times of these frames.

        Args:
            pcm: 16-bit little-endian mono at the model's rate.
            settings: For these frames.

        Raises:
            LiveError: If it is no such audio, or too much of it.
        """
        if len(pcm) % 2 or len(pcm) > 2 * MAX_PIECE_S * self._codec.sample_rate_hz:
            raise LiveError(f"expected 16-bit samples of at most {MAX_PIECE_S:g} s, got {len(pcm)} bytes")
        with self._lock:
            self.last_used = time.monotonic()
            self._encoder.bottleneck = self._decoder.bottleneck = settings.bottleneck
            gain = 10 ** (settings.gain_db / 20)
            wav = torch.from_numpy(np.frombuffer(pcm, "<i2").astype(np.float32))[None, None] * (gain / 32768)
            started = time.perf_counter()
            tokens = self._encoder.push(wav)
            encoded = time.perf_counter()
            is_lost = torch.from_numpy(self._draws.random(tokens.shape[:2]) < settings.loss)
            heard = self._decoder.push(tokens, is_lost)
            decoded = time.perf_counter()
        samples = (heard[0, 0] * (32768 / gain)).round().clamp(-32768, 32767)
        return samples.numpy().astype("<i2").tobytes(), {
            "frames": tokens.shape[1],
            "lost": int(is_lost.sum()),
            "bits": tokens.shape[1] * self._encoder.bottleneck.bits_per_frame,
            "encode_ms": 1000 * (encoded - started),
            "decode_ms": 1000 * (decoded - encoded),
        }


class LiveSessions:
    """The voices of one server. The model is loaded when the first one asks, unless the server's own is causal."""

    def __init__(self, codec: "Codec", clock: Callable[[], float] = time.monotonic) -> None:
        self._codec = codec if codec.config.is_causal else None
        self._device = str(codec.device)
        self._clock = clock
        self._sessions: dict[str, LiveSession] = {}
        self._lock = threading.Lock()

    def codec(self) -> "Codec":
        """The causal model.

        Raises:
            LiveError: If there is none.
        """
        with self._lock:
            if self._codec is None:
                if not (PRETRAINED / EMBEDDED / WEIGHTS).is_file():
                    raise LiveError(
                        f"Live coding needs a causal model, and this installation has none: {PRETRAINED / EMBEDDED} "
                        "is missing. Start the app with --model and the folder of a causal model."
                    )
                self._codec = taae.load(EMBEDDED, device=self._device)
            return self._codec

    def start(self) -> str:
        """Open a session and give the name by which `get` knows it; sessions that were left alone are closed.

        Raises:
            LiveError: If there is no model, or too many speak already.
        """
        codec = self.codec()
        with self._lock:
            now = self._clock()
            self._sessions = {
                name: session for name, session in self._sessions.items() if now - session.last_used < IDLE_S
            }
            if len(self._sessions) >= MAX_SESSIONS:
                raise LiveError(f"{MAX_SESSIONS} people are speaking already; try again in a minute.")
            name = secrets.token_urlsafe(16)
            self._sessions[name] = LiveSession(codec, seed=secrets.randbits(32))
            return name

    def get(self, name: str) -> LiveSession:
        """The session of this name.

        Raises:
            LiveError: If there is none (any more).
        """
        with self._lock:
            if name not in self._sessions:
                raise LiveError("The server has closed this session; press Start again.")
            return self._sessions[name]

    def stop(self, name: str) -> None:
        """Close a session; nothing happens if it is closed."""
        with self._lock:
            self._sessions.pop(name, None)
