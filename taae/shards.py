"""WebDataset shards for corpora of 100,000 hours: tar files read piece by piece in an order that can be resumed.

A shard is a plain tar of audio files, ours or anybody's. Beside NAME.tar an index, made once by decoding everything,
says where its clips lie: NAME.clips.npy, and NAME.index.json with what the set as a whole needs to know. No torch.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from taae.audio import FORMATS, load_wav, loudness_gain, to_mono
from taae.crops import DataConfig, FailedClips, draw_crop
from taae.files import write_atomic
from taae.manifest import Recording, Shard, read_recordings
from taae.segments import num_samples_at, open_sound, read_segment

_CLIPS = np.dtype([("offset", "<i8"), ("size", "<i8"), ("seconds", "<f8"), ("gain", "<f4")])
_ORDER, _GROUP, _CROP = 1, 2, 3  # what is drawn; numpy ignores zeros at the end of a seed, so they stand in front


def build_shards(
    manifest: Path, out: Path, num_shards: int, *, max_failed_share: float = 0.01, show_progress: bool = True
) -> Path:
    """Copy the files of a manifest into `num_shards` tars and index them; the files stay as they are encoded.

    Shards that are there with an index are kept, so a run that was stopped goes on; equal inputs give equal bytes.

    Args:
        manifest: JSON lines with id, path and seconds.
        out: Folder of the shards, made where it is missing.
        num_shards: 1 GB each is a good size: 6500 for 105,000 hours in FLAC.
        max_failed_share: More clips of a shard that cannot be read are an error.
        show_progress: Show a bar on stderr.

    Raises:
        ValueError: If the manifest is no such thing, or too many of its clips cannot be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(num_shards), desc="shards", disable=not show_progress):
        shard = Shard(index, num_shards)
        tar = out / f"{shard.name}.tar"
        if not _index_path(tar).is_file():
            missing = _write_tar(tar, read_recordings(manifest, shard))
            index_shard(tar, max_failed_share=max_failed_share, missing=missing)
    return out


def _write_tar(tar: Path, recordings: Iterable[Recording]) -> list[str]:
    """One member NUMBER.SUFFIX and one NUMBER.json (id, seconds) a clip; returns what is wrong with those left out."""
    missing = []
    temporary = tar.with_suffix(".tmp")
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, recording in enumerate(recordings):
            try:
                data = recording.path.read_bytes()
            except OSError as error:
                missing.append(f"{recording.id}: {error}")
                continue
            row = json.dumps({"id": recording.id, "seconds": recording.seconds}).encode()
            for suffix, content in ((recording.path.suffix.lower(), data), (".json", row)):
                member = tarfile.TarInfo(f"{number:09d}{suffix}")  # no owner, no time: equal inputs give equal bytes
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    os.replace(temporary, tar)
    return missing


def index_folder(folder: Path, *, max_failed_share: float = 0.01, show_progress: bool = True) -> None:
    """Index every tar of a folder that has no index yet.

    Raises:
        ValueError: If there are no tars, or too many clips of one cannot be read.
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise ValueError(f"{folder} holds no .tar files")
    for tar in tqdm(tars, desc="indexing", unit="shard", disable=not show_progress):
        if not _index_path(tar).is_file():
            index_shard(tar, max_failed_share=max_failed_share)


def index_shard(tar: Path, *, max_failed_share: float = 0.01, missing: Sequence[str] = ()) -> None:
    """Decode every clip of a tar once, and write where it lies, how long it is and what brings it to -20 LUFS.

    Args:
        tar: Its members that end in .wav, .flac, .ogg, .opus or .mp3 are the clips.
        max_failed_share: More clips that cannot be read are an error.
        missing: What is wrong with clips that should be in it and are not; they count as failed.

    Raises:
        ValueError: If it is no tar, holds no clips, or too many of them cannot be read.
    """
    clips, failed = [], list(missing)
    try:
        with tarfile.open(tar, "r:") as archive:
            members = [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    except tarfile.TarError as error:
        raise ValueError(f"{tar} is not an uncompressed tar, or a damaged one: {error}") from None
    members = [member for member in members if Path(member[0]).suffix.lower().lstrip(".") in FORMATS]
    with tar.open("rb") as file:
        for name, offset, size in members:
            file.seek(offset)
            try:
                wav, rate_hz = load_wav(file.read(size))
                mono = to_mono(wav)
                clips.append((offset, size, len(mono) / rate_hz, loudness_gain(mono, rate_hz)))
            except ValueError as error:
                failed.append(f"{name}: {error}")
    num_clips = len(clips) + len(failed)
    if not clips or len(failed) > max_failed_share * num_clips:
        raise ValueError(
            f"{tar}: {len(failed)} of {num_clips} clips cannot be read"
            + (f", first {failed[0]}" if failed else "; it holds no audio files")
        )
    table = io.BytesIO()
    np.save(table, np.array(clips, _CLIPS))
    write_atomic(_clips_path(tar), table.getvalue(), force=True)
    seconds = sum(clip[2] for clip in clips)
    index = {"tar_bytes": tar.stat().st_size, "num_clips": len(clips), "seconds": seconds, "failed": failed}
    write_atomic(_index_path(tar), json.dumps(index).encode(), force=True)  # last: it says that all is there


class ShardCrops:
    """Crops of all shards of a folder, each second of audio about once an epoch; `batch(step)` takes any step.

    Every shard laid end to end is cut into strata of one crop length, and a crop begins at a random place of its
    stratum. An epoch walks through the shards in a random order, `mixed_shards` at a time, whose strata it shuffles.
    Rank r of R takes every R-th batch of that one sequence, so R ranks with b crops see what one with R * b sees.

    Attributes:
        failed: Clips that could not be read so far, although they could when the shard was indexed.
    """

    def __init__(
        self, folder: Path, config: DataConfig, sample_rate_hz: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be 0 ... world_size - 1, got rank {rank} of {world_size}")
        self.config, self.sample_rate_hz, self.seed = config, sample_rate_hz, seed
        self.rank, self.world_size = rank, world_size
        self.failed = FailedClips(config.max_failed_share)
        self.tars = sorted(folder.glob("*.tar"))
        if not self.tars:
            raise ValueError(f"{folder} holds no .tar files; `taae data-shards MANIFEST {folder}` makes them")
        self.num_strata = np.array([max(1, round(_read_index(tar)["seconds"] / config.segment_s)) for tar in self.tars])

    def batch(self, step: int) -> np.ndarray:
        """Crops for one step, (batch_size, 1, segment_samples) float32.

        Raises:
            ValueError: If more than `config.max_failed_share` of the crops cannot be read.
        """
        first = (step * self.world_size + self.rank) * self.config.batch_size
        return np.stack([self._crop(first + number) for number in range(self.config.batch_size)])[:, None]

    def _crop(self, number: int) -> np.ndarray:
        epoch, position = divmod(number, int(self.num_strata.sum()))
        shard, stratum = self._stratum(epoch, position)
        clips = _clip_table(_clips_path(self.tars[shard]))
        ends = np.cumsum(clips["seconds"])
        rng = np.random.default_rng((_CROP, self.seed, epoch, position))
        moment = (stratum + rng.random()) / self.num_strata[shard] * ends[-1]
        while True:
            clip = min(int(np.searchsorted(ends, moment, side="right")), len(clips) - 1)
            place = 1 - (ends[clip] - moment) / clips["seconds"][clip]
            try:
                crop = self._crop_of(self.tars[shard], clips[clip], place, rng)
            except (ValueError, OSError) as error:
                self.failed.add(f"{self.tars[shard].name} at {clips[clip]['offset']}", error)
                moment = rng.random() * ends[-1]
            else:
                self.failed.passed()
                return crop

    def _stratum(self, epoch: int, position: int) -> tuple[int, int]:
        """The shard and the stratum in it that come at one place of an epoch."""
        order = _permutation((_ORDER, self.seed, epoch), len(self.tars))
        ends = np.cumsum(self.num_strata[order])
        mixed = self.config.mixed_shards
        first = int(np.searchsorted(ends, position, side="right")) // mixed * mixed
        last = min(first + mixed, len(order)) - 1
        before = int(ends[first - 1]) if first else 0
        shuffled = _permutation((_GROUP, self.seed, epoch, first), int(ends[last]) - before)
        drawn = before + int(shuffled[position - before])
        chosen = int(np.searchsorted(ends, drawn, side="right"))
        return int(order[chosen]), drawn - (int(ends[chosen - 1]) if chosen else 0)

    def _crop_of(self, tar: Path, clip: np.void, place: float, rng: np.random.Generator) -> np.ndarray:
        rate_hz = self.sample_rate_hz
        member = io.BufferedReader(_Member(tar, int(clip["offset"]), int(clip["size"])))
        with member, open_sound(member, f"{tar} at {clip['offset']}") as sound:

            def read(start: int, stop: int) -> np.ndarray:
                return read_segment(sound, start, stop, rate_hz) * np.float32(clip["gain"])

            return draw_crop(read, num_samples_at(sound, rate_hz), self.config, rate_hz, rng, place)


class _Member(io.RawIOBase):
    """Part of a file as a file of its own, so that a long clip is sought in and not read whole."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._file = path.open("rb", buffering=0)
        self._offset, self._size, self._at = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        self._file.seek(self._offset + self._at)
        count = self._file.readinto(memoryview(buffer)[: max(0, self._size - self._at)])
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _clips_path(tar: Path) -> Path:
    return tar.with_suffix(".clips.npy")


def _index_path(tar: Path) -> Path:
    return tar.with_suffix(".index.json")


def _read_index(tar: Path) -> dict:
    try:
        index = json.loads(_index_path(tar).read_text())
    except FileNotFoundError:
        raise ValueError(f"{tar} has no index; `taae data-shards {tar.parent}` makes it") from None
    if tar.stat().st_size != index["tar_bytes"]:
        raise ValueError(
            f"{tar} has {tar.stat().st_size} bytes, its index {index['tar_bytes']}; delete "
            f"{_index_path(tar).name} and run `taae data-shards {tar.parent}`"
        )
    return index


@lru_cache(maxsize=256)  # a table of a few thousand clips takes 100 kB
def _clip_table(path: Path) -> np.ndarray:
    return np.load(path)


@lru_cache(maxsize=4)  # one epoch and one group of shards, and the next ones at their ends
def _permutation(seed: tuple[int, ...], size: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(size)
