"""Training audio: a manifest of clips, packed once into one array, drawn as random crops.

A crop depends only on (seed, rank, step), so a resumed run sees what an uninterrupted one would.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from taae.audio import load_wav, loudness_gain, resample, to_mono

# Clips are stored at -20 LUFS as 16-bit integers; this head room keeps peaks above 1 from clipping.
_FULL_SCALE = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What the model hears in training (section 4.2 where it applies).

    Attributes:
        manifest: JSON lines with `path` (relative to the manifest) and `seconds`; relative to TAAE_SHARED.
        segment_s: Length of a crop in seconds; 5.12 in the paper.
        batch_size: Crops per step.
        loudness_range_db: Crops are scaled by a uniform draw of +- this (5 in the paper).
        speed_range: Half of the crops are resampled by a factor of 1 +- this, which moves pitch and formants.
    """

    manifest: str = "speech/train/manifest.jsonl"
    segment_s: float = 2.56
    batch_size: int = 16
    loudness_range_db: float = 5.0
    speed_range: float = 0.15

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.segment_s <= 0:
            raise ValueError(f"batch_size and segment_s must be positive, got {self.batch_size} and {self.segment_s}")
        if self.loudness_range_db < 0 or not 0 <= self.speed_range < 0.9:
            raise ValueError(
                f"loudness_range_db must be >= 0 and speed_range in [0, 0.9), got {self.loudness_range_db} "
                f"and {self.speed_range}"
            )


def pack(manifest: Path, out: Path, sample_rate_hz: int, *, show_progress: bool = True) -> Path:
    """Decode every clip of a manifest into `out`: clips.i2 (int16, mono, -20 LUFS) and index.json.

    Does nothing when `out` holds this manifest at this rate. Clips that cannot be read are listed in index.json.

    Raises:
        ValueError: If the manifest is missing, or more than 1 % of its clips cannot be read.
    """
    if not manifest.is_file():
        raise ValueError(f"no manifest at {manifest}; set TAAE_SHARED to the folder that holds the speech")
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    index_path = out / "index.json"
    if index_path.is_file():
        index = json.loads(index_path.read_text())
        if (index["manifest_sha256"], index["sample_rate_hz"]) == (digest, sample_rate_hz):
            return out
    out.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    clips, offset, failed = [], 0, []
    with (out / "clips.tmp").open("wb") as file:
        for row in tqdm(rows, desc="packing", unit="clip", disable=not show_progress):
            try:
                wav, rate_hz = load_wav(manifest.parent / row["path"])
            except (ValueError, OSError) as error:
                failed.append(f"{row['path']}: {error}")
                continue
            mono = resample(to_mono(wav).reshape(-1), rate_hz, sample_rate_hz)
            mono = mono * loudness_gain(mono, sample_rate_hz) / _FULL_SCALE
            file.write(np.round(mono.clip(-1, 1) * 32767).astype("<i2").tobytes())
            clips.append({"id": row["id"], "offset": offset, "samples": len(mono)})
            offset += len(mono)
    if len(failed) > 0.01 * len(rows):
        raise ValueError(f"{len(failed)} of {len(rows)} clips cannot be read, first {failed[0]}")
    index_path.unlink(missing_ok=True)  # it must never describe other clips, wherever this stops
    os.replace(out / "clips.tmp", out / "clips.i2")
    index = {"manifest_sha256": digest, "sample_rate_hz": sample_rate_hz, "failed": failed, "clips": clips}
    index_path.write_text(json.dumps(index))
    return out


class Crops:
    """Random crops of a packed data set; `batch(step)` is a pure function of (seed, rank, step)."""

    def __init__(self, packed: Path, config: DataConfig, *, seed: int, rank: int = 0) -> None:
        index = json.loads((packed / "index.json").read_text())
        self.config, self.seed, self.rank = config, seed, rank
        self.sample_rate_hz = index["sample_rate_hz"]
        self.segment_samples = round(config.segment_s * self.sample_rate_hz)
        self.clips = index["clips"]
        self.samples = np.memmap(packed / "clips.i2", dtype="<i2", mode="r")
        self.cumulative = np.cumsum([clip["samples"] for clip in self.clips])

    def batch(self, step: int) -> np.ndarray:
        """Crops for one step, (batch_size, 1, segment_samples) float32; clips too short are padded with zeros."""
        rng = np.random.default_rng((self.seed, self.rank, step))
        return np.stack([self._crop(rng) for _ in range(self.config.batch_size)])[:, None]

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        clip = self.clips[int(np.searchsorted(self.cumulative, rng.random() * self.cumulative[-1], side="right"))]
        speed = 1.0 + self.config.speed_range * rng.uniform(-1, 1) if rng.random() < 0.5 else 1.0
        wanted = int(np.ceil(self.segment_samples * speed)) + 1
        start = int(rng.integers(0, max(1, clip["samples"] - wanted + 1)))
        stop = min(start + wanted, clip["samples"])
        crop = self.samples[clip["offset"] + start : clip["offset"] + stop].astype(np.float32) * (_FULL_SCALE / 32767)
        if speed != 1.0:
            crop = resample(crop, round(self.sample_rate_hz * speed), self.sample_rate_hz)
        crop = crop[: self.segment_samples] * 10 ** (rng.uniform(-1, 1) * self.config.loudness_range_db / 20)
        before = int(rng.integers(0, self.segment_samples - len(crop) + 1))
        return np.pad(crop, (before, self.segment_samples - len(crop) - before)).astype(np.float32)
