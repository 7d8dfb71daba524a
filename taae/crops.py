"""What a training crop is: where it lies in a clip, its speed and its loudness; the same for every source of audio."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from taae.audio import resample

# Fewer reads than this say little about the share of a data set that is broken.
_ENOUGH_READS = 1000
_MAX_FAILED_IN_A_ROW = 100

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What the model hears in training (section 4.2 where it applies).

    Attributes:
        manifest: JSON lines with `id`, `path` (relative to the manifest) and `seconds`, or a folder of WebDataset
            shards that `taae data-shards` has indexed; relative to TAAE_SHARED.
        is_packed: Decode all clips of the manifest once into one array; otherwise read every crop from its file.
        segment_s: Length of a crop in seconds; 5.12 in the paper.
        batch_size: Crops per step and rank.
        loudness_range_db: Crops of a clip at -20 LUFS are scaled by a uniform draw of +- this (5 in the paper).
        speed_range: Half of the crops are resampled by a factor of 1 +- this, which moves pitch and formants.
        max_failed_share: Clips that cannot be read are skipped and counted; more than this share of them is an error.
        num_workers: Processes that make batches ahead of time; 0 makes them when they are asked for. It does not
            change them.
        mixed_shards: Shards that crops come from at the same time: more mix better, fewer are read more in sequence.
    """

    manifest: str = "speech/train/manifest.jsonl"
    is_packed: bool = True
    segment_s: float = 2.56
    batch_size: int = 16
    loudness_range_db: float = 5.0
    speed_range: float = 0.15
    max_failed_share: float = 0.01
    num_workers: int = 0
    mixed_shards: int = 16

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.segment_s <= 0:
            raise ValueError(f"batch_size and segment_s must be positive, got {self.batch_size} and {self.segment_s}")
        if self.loudness_range_db < 0 or not 0 <= self.speed_range < 0.9:
            raise ValueError(
                f"loudness_range_db must be >= 0 and speed_range in [0, 0.9), got {self.loudness_range_db} "
                f"and {self.speed_range}"
            )
        if not 0 <= self.max_failed_share <= 1:
            raise ValueError(f"max_failed_share must be in [0, 1], got {self.max_failed_share}")
        if self.num_workers < 0 or self.mixed_shards < 1:
            raise ValueError(
                f"num_workers must be >= 0 and mixed_shards >= 1, got {self.num_workers} and {self.mixed_shards}"
            )


def draw_crop(
    read: Callable[[int, int], np.ndarray],
    num_samples: int,
    config: DataConfig,
    sample_rate_hz: int,
    rng: np.random.Generator,
    place: float | None = None,
) -> np.ndarray:
    """One crop, (segment_samples,) float32: a place, a speed and a loudness; a short clip lies in silence.

    Silence is neither left out nor made louder: the large epsilon of the layer norms copes with it (B.1).

    Args:
        read: Gives the samples from `start` to `stop` of the clip, float32 at `sample_rate_hz` and -20 LUFS.
        num_samples: Length of the clip.
        config: Length, speed and loudness of crops.
        sample_rate_hz: Of the clip and of the crop.
        rng: Source of every draw.
        place: Where in the clip the crop begins, from 0 (its start) to 1 (as late as it fits); drawn when left out.
    """
    segment_samples = round(config.segment_s * sample_rate_hz)
    speed = 1.0 + config.speed_range * rng.uniform(-1, 1) if rng.random() < 0.5 else 1.0
    wanted = int(np.ceil(segment_samples * speed)) + 1
    num_starts = max(1, num_samples - wanted + 1)
    start = int(rng.integers(0, num_starts)) if place is None else min(int(place * num_starts), num_starts - 1)
    crop = read(start, min(start + wanted, num_samples))
    if speed != 1.0:
        crop = resample(crop, round(sample_rate_hz * speed), sample_rate_hz)
    crop = crop[:segment_samples] * 10 ** (rng.uniform(-1, 1) * config.loudness_range_db / 20)
    before = int(rng.integers(0, segment_samples - len(crop) + 1))
    return np.pad(crop, (before, segment_samples - len(crop) - before)).astype(np.float32)


class FailedClips:
    """Clips that could not be read. Each is logged once; too many of them stop the run.

    Attributes:
        errors: What is wrong, by name of the clip.
    """

    def __init__(self, max_share: float) -> None:
        self.max_share = max_share
        self.errors: dict[str, str] = {}
        self._num_reads = self._num_failed = self._num_in_a_row = 0

    def passed(self) -> None:
        """Count a clip that could be read."""
        self._num_reads += 1
        self._num_in_a_row = 0

    def add(self, name: str, error: Exception) -> None:
        """Count a clip that could not.

        Raises:
            ValueError: If more than `max_share` of the reads (but of at least 1000) failed, or 100 in a row.
        """
        self._num_reads += 1
        self._num_failed += 1
        self._num_in_a_row += 1
        if name not in self.errors:
            logger.warning("skipped %s: %s", name, error)
        self.errors[name] = str(error)
        too_many = self._num_failed > self.max_share * max(self._num_reads, _ENOUGH_READS)
        if too_many or self._num_in_a_row >= _MAX_FAILED_IN_A_ROW:
            raise ValueError(
                f"{self._num_failed} of {self._num_reads} crops cannot be read, more than max_failed_share = "
                f"{self.max_share} allows; {len(self.errors)} clips failed, the last: {error}"
            ) from None
