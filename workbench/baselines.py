"""Other codecs behind the one method that `taae.evaluate` asks for. Real programs; nothing is simulated."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from taae.audio import resample

CODEC2_RATE_HZ = 8000
CODEC2_MODES = ("450", "700C", "1200", "1300", "2400", "3200")  # bit/s; the nominal rate, files pad frames to bytes


class Codec2:
    """Codec2, the vocoder of amateur radio: 8 kHz in and out, one mode a bitrate (Debian package codec2).

    Its output is late by a constant number of samples, which `measure_delay` finds; metrics that compare sample by
    sample are meaningless for it, as its waveforms do not match.

    Raises:
        ValueError: If there is no such mode.
        RuntimeError: If c2enc or c2dec is not installed.
    """

    def __init__(self, mode: str, delay_samples: int = 0) -> None:
        if mode not in CODEC2_MODES:
            raise ValueError(f"Codec2 mode must be one of {', '.join(CODEC2_MODES)}; got {mode!r}")
        for program in ("c2enc", "c2dec"):
            if shutil.which(program) is None:
                raise RuntimeError(f"Codec2 needs {program}: apt-get install codec2")
        self.mode = mode
        self.delay_samples = delay_samples  # at 8 kHz

    @property
    def name(self) -> str:
        return f"Codec2 {self.mode}"

    def reconstruct(self, wav: np.ndarray, bottleneck: str, *, sample_rate_hz: int) -> tuple[np.ndarray, None]:
        """What comes out for `wav` (n,), as long and at the same rate, moved back by the delay. `bottleneck` is unused.

        The second value is None because the files pad every frame to whole bytes, which a channel would not.
        """
        narrow = resample(wav, sample_rate_hz, CODEC2_RATE_HZ)
        decoded = self._run(np.pad(narrow, (0, 2 * CODEC2_RATE_HZ)))[self.delay_samples :]
        restored = resample(decoded[: len(narrow)], CODEC2_RATE_HZ, sample_rate_hz)[: len(wav)]
        return np.pad(restored, (0, len(wav) - len(restored))), None

    def measure_delay(self, wavs: Iterable[np.ndarray], sample_rate_hz: int, longest_s: float = 0.15) -> int:
        """Set and return the delay at which the envelopes of all `wavs` and their decoded versions agree best."""
        self.delay_samples = 0
        num_lags = round(longest_s * CODEC2_RATE_HZ)
        correlation = np.zeros(num_lags)
        for wav in wavs:
            decoded, _ = self.reconstruct(wav, "", sample_rate_hz=sample_rate_hz)
            before = _envelope(resample(wav, sample_rate_hz, CODEC2_RATE_HZ))
            after = _envelope(resample(decoded, sample_rate_hz, CODEC2_RATE_HZ))
            spectrum = np.fft.rfft(after, 2 * len(after)) * np.fft.rfft(before, 2 * len(before)).conj()
            correlation += np.fft.irfft(spectrum)[:num_lags]
        self.delay_samples = int(correlation.argmax())
        return self.delay_samples

    def _run(self, narrow: np.ndarray) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            source, coded, target = (str(Path(folder) / name) for name in ("in.raw", "coded.c2", "out.raw"))
            np.rint(narrow.clip(-1, 1) * 32767).astype("<i2").tofile(source)
            for command in (["c2enc", self.mode, source, coded], ["c2dec", self.mode, coded, target]):
                subprocess.run(command, check=True, capture_output=True)
            return np.fromfile(target, "<i2").astype(np.float32) / 32768


def _envelope(wav: np.ndarray) -> np.ndarray:
    """Energy smoothed over 20 ms, without its mean."""
    window = np.hanning(CODEC2_RATE_HZ // 50)
    smooth = np.convolve(wav.astype(np.float64) ** 2, window / window.sum(), mode="same") ** 0.5
    return smooth - smooth.mean()
