"""What a codec of the workbench looks like from outside, and what all of them share."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from taae.audio import resample


class UnavailableError(RuntimeError):
    """A codec needs what is not here; the message says what and how to get it."""

    def __init__(self, name: str, needs: str, command: str) -> None:
        super().__init__(f"{name} unavailable: needs {needs}, get it with: {command}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What a codec sends.

    Attributes:
        mode: One of the codec's `bitrates`.
        num_samples: Of the recording, at the codec's rate.
        data: What a channel would carry, without container and padding.
        tokens: `(s, k)` int64; None for a codec without tokens.
        stream: What the decoder of a program reads; None if that is `tokens`.
    """

    mode: str
    num_samples: int
    data: bytes
    tokens: np.ndarray | None = None
    stream: bytes | None = None


@runtime_checkable
class SpeechCodec(Protocol):
    """A codec: real weights or a real program behind two functions."""

    @property
    def name(self) -> str:
        """In tables and files."""
        ...

    @property
    def sample_rate_hz(self) -> int:
        """Of what `encode` takes and `decode` gives."""
        ...

    @property
    def bitrates(self) -> Mapping[str, float]:
        """Mode -> nominal bits per second."""
        ...

    def encode(self, wav: np.ndarray, mode: str) -> Encoded:
        """Code `wav` (n,)."""
        ...

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Give back as many samples as went in, not delayed."""
        ...


class Reconstructing:
    """Adds what `taae.evaluate` asks of a codec to one with `encode` and `decode`."""

    name: str
    sample_rate_hz: int
    bitrates: Mapping[str, float]
    delay_samples = 0

    def encode(self, wav: np.ndarray, mode: str) -> Encoded:
        raise NotImplementedError

    def decode(self, encoded: Encoded) -> np.ndarray:
        raise NotImplementedError

    def reconstruct(self, wav: np.ndarray, bottleneck: str, *, sample_rate_hz: int) -> tuple[np.ndarray, bytes]:
        """What comes out for `wav` (n,), as long and at the same rate, and what was sent.

        A codec of another rate is fed with a resampled wav, and what comes out is resampled back, as section 4.4 has it
        for the codecs at 24 kHz. With one mode only, `bottleneck` is not looked at.

        Raises:
            ValueError: If the codec has no such mode.
        """
        mode = next(iter(self.bitrates)) if len(self.bitrates) == 1 else bottleneck
        if mode not in self.bitrates:
            raise ValueError(f"{self.name} has the modes {', '.join(self.bitrates)}; got {mode!r}")
        encoded = self.encode(resample(wav, sample_rate_hz, self.sample_rate_hz), mode)
        return fit(resample(self.decode(encoded), self.sample_rate_hz, sample_rate_hz), len(wav)), encoded.data

    def measure_delay(
        self, wavs: Iterable[np.ndarray], sample_rate_hz: int, longest_s: float = 0.15, *, by_envelope: bool = True
    ) -> int:
        """Set and return `delay_samples`: where all `wavs` and their decoded versions agree best, at the codec's rate.

        Args:
            wavs: Some seconds of speech.
            sample_rate_hz: Of the wavs.
            longest_s: Delays up to this are tried.
            by_envelope: Compare envelopes, for codecs whose waveforms do not match; else the waveforms.
        """
        self.delay_samples = 0
        num_lags = round(longest_s * self.sample_rate_hz)
        correlation = np.zeros(num_lags)
        for wav in wavs:
            before = resample(wav, sample_rate_hz, self.sample_rate_hz)
            after = self.decode(self.encode(before, next(iter(self.bitrates))))
            if by_envelope:
                before, after = (envelope(x, self.sample_rate_hz) for x in (before, after))
            spectrum = np.fft.rfft(after, 2 * len(after)) * np.fft.rfft(before, 2 * len(before)).conj()
            correlation += np.fft.irfft(spectrum)[:num_lags]
        self.delay_samples = int(correlation.argmax())
        return self.delay_samples


def fit(wav: np.ndarray, num_samples: int) -> np.ndarray:
    """Cut or fill with silence to `num_samples`."""
    return np.pad(wav[:num_samples], (0, max(0, num_samples - len(wav)))).astype(np.float32, copy=False)


def envelope(wav: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Energy smoothed over 20 ms, without its mean."""
    window = np.hanning(sample_rate_hz // 50)
    smooth = np.convolve(wav.astype(np.float64) ** 2, window / window.sum(), mode="same") ** 0.5
    return smooth - smooth.mean()


def pack_tokens(tokens: np.ndarray, codebook_sizes: tuple[int, ...]) -> bytes:
    """Tokens `(s, k)` as bits, each as many as its codebook needs, frame by frame; zeros fill the last byte."""
    widths = [(size - 1).bit_length() for size in codebook_sizes]
    columns = [
        (tokens[:, [stage]] >> np.arange(width - 1, -1, -1)) & 1 for stage, width in enumerate(widths)
    ]  # each (s, width)
    return np.packbits(np.concatenate(columns, 1).astype(np.uint8).ravel()).tobytes()
