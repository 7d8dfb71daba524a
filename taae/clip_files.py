"""Training crops straight from audio files, for sets that are too large to decode beforehand. No torch."""

from pathlib import Path

import numpy as np

from taae.audio import loudness_gain
from taae.crops import DataConfig, FailedClips, draw_crop
from taae.manifest import read_recordings
from taae.segments import num_samples_at, open_sound, read_segment

# The loudness of a longer clip is measured on this much of it, around the crop: the level of a long recording drifts.
_LOUDNESS_S = 20.0


class FileCrops:
    """Random crops of the files of a manifest; `batch(step)` is a pure function of (seed, rank, step) and the files.

    A file is opened, sought and left again: nothing is kept but its gain. Clips of up to 20 s give the crops that
    `Crops` gives when they are packed, up to 16-bit rounding. A clip that cannot be read is replaced by the next draw.

    Attributes:
        failed: Clips that could not be read so far.
    """

    def __init__(self, manifest: Path, config: DataConfig, sample_rate_hz: int, *, seed: int, rank: int = 0) -> None:
        recordings = read_recordings(manifest)
        self.config, self.sample_rate_hz, self.seed, self.rank = config, sample_rate_hz, seed, rank
        self.paths = [recording.path for recording in recordings]
        self.cumulative = np.cumsum([recording.seconds for recording in recordings])
        self.failed = FailedClips(config.max_failed_share)
        self._gains: dict[int, float] = {}

    def batch(self, step: int) -> np.ndarray:
        """Crops for one step, (batch_size, 1, segment_samples) float32.

        Raises:
            ValueError: If more than `config.max_failed_share` of the crops cannot be read.
        """
        rng = np.random.default_rng((self.seed, self.rank, step))
        return np.stack([self._crop(rng) for _ in range(self.config.batch_size)])[:, None]

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        while True:
            clip = int(np.searchsorted(self.cumulative, rng.random() * self.cumulative[-1], side="right"))
            try:
                crop = self._crop_of(clip, rng)
            except (ValueError, OSError) as error:
                self.failed.add(str(self.paths[clip]), error)
            else:
                self.failed.passed()
                return crop

    def _crop_of(self, clip: int, rng: np.random.Generator) -> np.ndarray:
        rate_hz = self.sample_rate_hz
        with open_sound(self.paths[clip]) as sound:
            num_samples = num_samples_at(sound, rate_hz)

            def read(start: int, stop: int) -> np.ndarray:
                # Read by itself and not cut from what the gain is measured on: that is read only once, and a decoder
                # that sought may differ in the last bit from one that did not.
                return read_segment(sound, start, stop, rate_hz) * gain(start, stop)

            def gain(start: int, stop: int) -> float:
                if clip in self._gains:
                    return self._gains[clip]
                around = max(round(_LOUDNESS_S * rate_hz), stop - start)
                first = min(max(0, (start + stop - around) // 2), max(0, num_samples - around))
                last = min(first + around, num_samples)
                value = loudness_gain(read_segment(sound, first, last, rate_hz), rate_hz)
                if last - first == num_samples:
                    self._gains[clip] = value
                return value

            return draw_crop(read, num_samples, self.config, rate_hz, rng)
