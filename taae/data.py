"""Training audio: a manifest of clips or a folder of shards, drawn as random crops.

A crop depends only on (seed, rank, step), so a resumed run sees what an uninterrupted one would.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from taae.audio import load_wav, loudness_gain, resample, to_mono
from taae.clip_files import FileCrops
from taae.crops import DataConfig, FailedClips, draw_crop
from taae.files import write_atomic
from taae.manifest import read_recordings
from taae.shards import ShardCrops

# Clips are stored at -20 LUFS as 16-bit integers; this head room keeps peaks above 1 from clipping.
_FULL_SCALE = 2.0

# A caller that skips a few steps keeps its workers; what they had made for those steps is thrown away.
_MAX_SKIPPED_STEPS = 16


@runtime_checkable
class CropSource(Protocol):
    """Where batches come from."""

    @property
    def failed(self) -> FailedClips:
        """Clips that could not be read so far."""
        ...

    def batch(self, step: int) -> np.ndarray:
        """Crops for one step, (batch_size, 1, segment_samples) float32: always the same for the same step."""
        ...


def open_crops(
    config: DataConfig,
    shared: Path,
    cache: Path,
    sample_rate_hz: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> CropSource:
    """The crops that a configuration asks for; `batch(step)` of the result may be called for any step in any order.

    | `config.manifest` is | `is_packed` | source | an epoch |
    |---|---|---|---|
    | a file | true | `Crops`, after `pack` into `cache` (once for all processes) | none: draws with replacement |
    | a file | false | `FileCrops`, nothing is written | none: draws with replacement |
    | a folder | either | `ShardCrops` | every second of audio about once |

    In the first two every rank draws for itself; in the last the ranks share one sequence. With `config.num_workers`
    the batches of consecutive steps are made ahead of time by other processes, and are the same.

    Args:
        config: What to read, and how.
        shared: Folder that `config.manifest` is relative to.
        cache: Folder for packed audio.
        sample_rate_hz: Of the crops.
        seed: Of every draw.
        rank: This process among those that train together.
        world_size: How many those are.

    Raises:
        ValueError: If there is no such manifest, or too many of its clips cannot be read.
    """
    path = shared / config.manifest
    if path.is_dir():
        source: CropSource = ShardCrops(path, config, sample_rate_hz, seed=seed, rank=rank, world_size=world_size)
    elif not path.is_file():
        raise ValueError(f"no manifest at {path}; set TAAE_SHARED to the folder that holds the speech")
    elif config.is_packed:
        packed = pack(path, cache, sample_rate_hz, max_failed_share=config.max_failed_share, show_progress=rank == 0)
        source = Crops(packed, config, seed=seed, rank=rank)
    else:
        source = FileCrops(path, config, sample_rate_hz, seed=seed, rank=rank)
    return Prefetched(source, config.num_workers) if config.num_workers else source


def pack(
    manifest: Path, out: Path, sample_rate_hz: int, *, max_failed_share: float = 0.01, show_progress: bool = True
) -> Path:
    """Decode every clip of a manifest into `out`: clips.i2 (int16, mono, -20 LUFS) and index.json.

    Does nothing when `out` holds this manifest at this rate. Clips that cannot be read are listed in index.json.
    Several processes may call it at once: one packs, the others wait.

    Raises:
        ValueError: If the manifest is missing or malformed, or more than `max_failed_share` of its clips cannot be
            read.
    """
    if not manifest.is_file():
        raise ValueError(f"no manifest at {manifest}; set TAAE_SHARED to the folder that holds the speech")
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out / ".lock"):
        index_path = out / "index.json"
        if index_path.is_file():
            index = json.loads(index_path.read_text())
            if (index["manifest_sha256"], index["sample_rate_hz"]) == (digest, sample_rate_hz):
                return out
        recordings = read_recordings(manifest)
        clips, offset, failed = [], 0, []
        with (out / "clips.tmp").open("wb") as file:
            for recording in tqdm(recordings, desc="packing", unit="clip", disable=not show_progress):
                try:
                    wav, rate_hz = load_wav(recording.path)
                except (ValueError, OSError) as error:
                    failed.append(f"{recording.path}: {error}")
                    continue
                mono = resample(to_mono(wav).reshape(-1), rate_hz, sample_rate_hz)
                mono = mono * loudness_gain(mono, sample_rate_hz) / _FULL_SCALE
                file.write(np.round(mono.clip(-1, 1) * 32767).astype("<i2").tobytes())
                clips.append({"id": recording.id, "offset": offset, "samples": len(mono)})
                offset += len(mono)
        if len(failed) > max_failed_share * len(recordings) or not clips:
            raise ValueError(f"{len(failed)} of {len(recordings)} clips cannot be read, first {failed[0]}")
        index_path.unlink(missing_ok=True)  # it must never describe other clips, wherever this stops
        os.replace(out / "clips.tmp", out / "clips.i2")
        index = {"manifest_sha256": digest, "sample_rate_hz": sample_rate_hz, "failed": failed, "clips": clips}
        write_atomic(index_path, json.dumps(index).encode(), force=True)
    return out


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the system lets go of the lock when its owner dies. Windows has no such lock."""
    with path.open("w") as file:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Crops:
    """Random crops of a packed data set; `batch(step)` is a pure function of (seed, rank, step)."""

    def __init__(self, packed: Path, config: DataConfig, *, seed: int, rank: int = 0) -> None:
        index = json.loads((packed / "index.json").read_text())
        self.config, self.seed, self.rank = config, seed, rank
        self.sample_rate_hz = index["sample_rate_hz"]
        self.clips = index["clips"]
        self.samples = np.memmap(packed / "clips.i2", dtype="<i2", mode="r")
        self.cumulative = np.cumsum([clip["samples"] for clip in self.clips])
        self.failed = FailedClips(config.max_failed_share)  # none: `pack` left them out

    def batch(self, step: int) -> np.ndarray:
        """Crops for one step, (batch_size, 1, segment_samples) float32; clips too short are padded with zeros."""
        rng = np.random.default_rng((self.seed, self.rank, step))
        return np.stack([self._crop(rng) for _ in range(self.config.batch_size)])[:, None]

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        clip = self.clips[int(np.searchsorted(self.cumulative, rng.random() * self.cumulative[-1], side="right"))]

        def read(start: int, stop: int) -> np.ndarray:
            samples = self.samples[clip["offset"] + start : clip["offset"] + stop]
            return samples.astype(np.float32) * (_FULL_SCALE / 32767)

        return draw_crop(read, clip["samples"], self.config, self.sample_rate_hz, rng)


class Prefetched:
    """Batches of consecutive steps from other processes, which make them ahead of time; they are those of `source`.

    The first call says where to begin. A step out of the sequence is made here and now, and does not disturb it.
    """

    def __init__(self, source: CropSource, num_workers: int) -> None:
        self.source, self.num_workers = source, num_workers
        self._batches: Any = None
        self._next_step = 0

    @property
    def failed(self) -> FailedClips:
        return self.source.failed

    def batch(self, step: int) -> np.ndarray:
        """Crops for one step, as `source` gives them.

        Raises:
            ValueError: As `source`.
        """
        if self._batches is None:
            self._batches, self._next_step = self._start(step), step
        if not 0 <= step - self._next_step <= _MAX_SKIPPED_STEPS:
            return self.source.batch(step)
        while True:
            crops, errors, complaint = next(self._batches)
            self.failed.errors.update(errors)
            if complaint:
                raise ValueError(complaint)
            self._next_step += 1
            if self._next_step > step:
                return crops.numpy()

    def close(self) -> None:
        """End the processes; they also end with this object."""
        self._batches = None

    def _start(self, step: int) -> Any:
        import torch
        from torch.utils.data import DataLoader

        steps = range(step, 2**62)  # no training reaches the end
        # A generator of its own, since a loader takes a number from the global one, which training draws from.
        generator = torch.Generator().manual_seed(0)
        loader = DataLoader(
            _Steps(self.source),  # pyright: ignore[reportArgumentType]
            batch_size=None,
            sampler=steps,
            num_workers=self.num_workers,
            generator=generator,
        )
        return iter(loader)


class _Steps:
    """What a worker of a torch DataLoader asks for: a batch, new errors, and why there is no batch."""

    def __init__(self, source: CropSource) -> None:
        self.source = source
        self.num_told = 0

    def __getitem__(self, step: int) -> tuple[np.ndarray | None, dict[str, str], str]:
        crops, complaint = None, ""
        try:
            crops = self.source.batch(step)
        except ValueError as error:
            complaint = str(error)
        errors = dict(list(self.source.failed.errors.items())[self.num_told :])
        self.num_told += len(errors)
        return crops, errors, complaint
