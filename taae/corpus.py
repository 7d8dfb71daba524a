"""Tokens of whole corpora, in shards that any scheduler may run, lose and run again (docs/corpora.md).

Shard i of N takes every N-th recording of a manifest and becomes one file of tokens and one sidecar, which says from
what they were made and is written last. A shard with a sidecar that fits is finished. Equal inputs give equal bytes.
"""

import hashlib
import json
import logging
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from taae import __version__
from taae.audio import load_wav, loudness_gain, resample, to_mono
from taae.bitstream import unpack
from taae.files import write_atomic
from taae.manifest import Recording, Shard, read_recordings
from taae.token_shards import SUFFIXES, TokenClip, dump_shard
from taae.token_shards import read_tokens as read_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from taae.codec import Codec

Progress = Callable[[float], object]

logger = logging.getLogger(__name__)

# Clips that wait in memory, sorted by length so that those of one length meet: 115 MB at 16 kHz, and as much again
# while the next ones are read.
_WINDOW_S = 1800.0
# Longer recordings are encoded one by one from disk.
_LONG_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusConfig:
    """What to make of a manifest.

    Attributes:
        manifest: JSON lines with id, path and seconds.
        out: Folder of the shards.
        num_shards: How many; it is part of their names.
        bottleneck: Not continuous.
        file_format: "parquet" or "webdataset".
        batch_s: Seconds of audio, of clips with the same number of frames, that share a pass of the encoder; 0 encodes
            every clip by itself.
        encoder_dtype: What the encoder may run in instead of float32; all others change some tokens.
        max_failed_share: More inputs of a shard that cannot be read are an error, since then a disk is missing and
            not a clip broken.
    """

    manifest: Path
    out: Path
    num_shards: int = 1
    bottleneck: str = "2x5^6"
    file_format: Literal["parquet", "webdataset"] = "parquet"
    batch_s: float = 120.0
    encoder_dtype: str = "float32"
    max_failed_share: float = 0.5

    def __post_init__(self) -> None:
        if self.num_shards < 1 or self.batch_s < 0 or not 0 <= self.max_failed_share <= 1:
            raise ValueError(
                "num_shards must be at least 1, batch_s at least 0 and max_failed_share in [0, 1], got "
                f"{self.num_shards}, {self.batch_s} and {self.max_failed_share}"
            )
        if self.file_format not in SUFFIXES:
            raise ValueError(f"file_format must be one of {', '.join(SUFFIXES)}, got {self.file_format!r}")

    def paths(self, shard: Shard) -> tuple[Path, Path]:
        """The token file and the sidecar of a shard."""
        return self.out / f"{shard.name}{SUFFIXES[self.file_format]}", self.out / f"{shard.name}.json"


def encode_shard(
    codec: "Codec", config: CorpusConfig, shard: Shard, *, force: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Encode one shard, or find that it is finished.

    The tokens are those of `codec.compress` and `taae encode`: mono, at the model's rate, at -20 LUFS. Inputs that
    cannot be read are left out and listed in the sidecar.

    Args:
        codec: In float32, or in `config.encoder_dtype`.
        config: The corpus.
        shard: Which part of it; `shard.count` is `config.num_shards`.
        force: Encode it even when it is finished, or was made with other settings.
        progress: Called with seconds of audio as they are done.

    Returns:
        The sidecar, and "is_skipped".

    Raises:
        ValueError: If the folder holds this shard of another model, bottleneck or manifest; if too many inputs cannot
            be read; or if the codec runs in another precision.
    """
    if shard.count != config.num_shards:
        raise ValueError(f"shard {shard} is of {shard.count}, the corpus has {config.num_shards}")
    if codec.precision not in ("float32", config.encoder_dtype):
        raise ValueError(f"tokens to keep need a {config.encoder_dtype} encoder, this one runs in {codec.precision}")
    recordings = read_recordings(config.manifest, shard)
    _refuse_duplicates(recordings)
    settings = _settings(codec, config, recordings)
    token_path, sidecar_path = config.paths(shard)
    finished = None if force else _finished(token_path, sidecar_path, settings)
    if finished is not None:
        if progress:
            progress(sum(recording.seconds for recording in recordings))
        return finished | {"is_skipped": True}
    clips, failed = _encode(codec, config, recordings, progress)
    if len(failed) > config.max_failed_share * len(recordings):
        first = failed[0]
        raise ValueError(
            f"shard {shard}: {len(failed)} of {len(recordings)} inputs cannot be read, more than max_failed_share = "
            f"{config.max_failed_share} allows; first {first['id']}: {first['error']}"
        )
    config.out.mkdir(parents=True, exist_ok=True)
    data = dump_shard(clips, settings, config.file_format)
    write_atomic(token_path, data, force=True)
    sidecar = settings | {
        "shard": str(shard),
        "num_clips": len(clips),
        "num_frames": sum(len(clip.tokens) for clip in clips),
        "seconds": math.fsum(clip.num_samples / clip.sample_rate_hz for clip in clips),
        # Of the digests of all inputs that could be read, in the order of the manifest.
        "audio_sha256": hashlib.sha256("".join(clip.audio_sha256 for clip in clips).encode()).hexdigest(),
        "tokens_sha256": hashlib.sha256(data).hexdigest(),
        "failed": failed,
        "versions": _versions(),
    }
    # Last: a name without a sidecar is a shard that is not finished.
    write_atomic(sidecar_path, (json.dumps(sidecar, indent=2) + "\n").encode(), force=True)
    return sidecar | {"is_skipped": False}


def _settings(codec: "Codec", config: CorpusConfig, recordings: Sequence[Recording]) -> dict[str, Any]:
    """What the bytes of a shard depend on, apart from the audio and the versions of packages."""
    rows = "\n".join(f"{recording.id}\t{recording.seconds!r}" for recording in recordings)
    return {
        "model": codec.name,
        "model_id": codec.model_id.hex(),
        "bottleneck": config.bottleneck,
        "frame_rate_hz": codec.frame_rate_hz,
        "encoder_dtype": codec.precision,
        "batch_s": config.batch_s,
        "format": config.file_format,
        "manifest_sha256": hashlib.sha256(rows.encode()).hexdigest(),
    }


def _finished(token_path: Path, sidecar_path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The sidecar of a shard that is there as it was written, None where it has to be made.

    Raises:
        ValueError: If it is there with other settings.
    """
    try:
        sidecar = json.loads(sidecar_path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        logger.warning("%s is damaged; the shard is made again", sidecar_path)
        return None
    changed = [key for key in settings if sidecar.get(key) != settings[key]]
    if changed:
        there = ", ".join(f"{key} {sidecar.get(key)!r} and not {settings[key]!r}" for key in changed)
        raise ValueError(f"{sidecar_path} is of another run, with {there}; choose another folder, or --force")
    if not token_path.is_file() or hashlib.sha256(token_path.read_bytes()).hexdigest() != sidecar["tokens_sha256"]:
        logger.warning("%s is missing or damaged; the shard is made again", token_path)
        return None
    return sidecar


def _encode(
    codec: "Codec", config: CorpusConfig, recordings: Sequence[Recording], progress: Progress | None
) -> tuple[list[TokenClip], list[dict[str, str]]]:
    """The clips of a shard and the inputs that could not be read, both in the order of the manifest."""
    results: dict[int, TokenClip | str] = {}  # a clip, or what is wrong with it
    for loaded in _read_ahead(codec, recordings):
        for indices in _batches(loaded, config, codec.sample_rate_hz):
            if isinstance(item := loaded[indices[0]], _Loaded):
                items: list[Any] = [loaded.pop(index) for index in indices]
                tokens = codec.encode_batch([item.wav for item in items], config.bottleneck)
                for index, item, tensor in zip(indices, items, tokens, strict=True):
                    results[index] = item.clip(recordings[index].id, tensor.numpy())
            else:
                index = indices[0]
                results[index] = item if item is not None else _encode_long(codec, config, recordings[index])
            if progress:
                progress(sum(recordings[index].seconds for index in indices))
    clips, failed = [], []
    for index, recording in enumerate(recordings):
        result = results[index]
        if isinstance(result, TokenClip):
            clips.append(result)
        else:
            failed.append({"id": recording.id, "error": result})
    return clips, failed


def _batches(
    loaded: dict[int, "_Loaded | str | None"], config: CorpusConfig, sample_rate_hz: int
) -> Iterator[list[int]]:
    """Places of clips that share a pass, all with the same number of frames; others one by one."""
    groups: dict[int, list[int]] = {}
    for index, item in loaded.items():
        if isinstance(item, _Loaded):
            groups.setdefault(item.wav.shape[-1], []).append(index)
    yield from [[index] for index, item in loaded.items() if not isinstance(item, _Loaded)]
    for num_samples, indices in groups.items():
        size = max(1, int(config.batch_s * sample_rate_hz / num_samples))
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


def _read_ahead(codec: "Codec", recordings: Sequence[Recording]) -> Iterator[dict[int, "_Loaded | str | None"]]:
    """Windows of audio, each read while the one before it is encoded."""
    windows = _windows(recordings)
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = [reader.submit(_load_window, codec, recordings, window) for window in windows[:1]]
        for following in [*windows[1:], None]:
            if not coming:
                return
            loaded = coming.pop().result()
            if following is not None:
                coming.append(reader.submit(_load_window, codec, recordings, following))
            yield loaded


def _windows(recordings: Sequence[Recording]) -> list[list[int]]:
    """Places of recordings, by length, in runs of `_WINDOW_S`."""
    windows: list[list[int]] = []
    seconds = math.inf
    for index in sorted(range(len(recordings)), key=lambda index: recordings[index].seconds):
        held_s = min(recordings[index].seconds, _LONG_S)
        if seconds + held_s > _WINDOW_S:
            windows.append([])
            seconds = 0.0
        windows[-1].append(index)
        seconds += held_s
    return windows


@dataclass(frozen=True, slots=True)
class _Loaded:
    wav: "Tensor"  # (1, n) at the model's rate and -20 LUFS, n a whole number of frames
    num_samples: int
    sample_rate_hz: int
    gain_db: float
    audio_sha256: str

    def clip(self, clip_id: str, tokens: np.ndarray) -> TokenClip:
        return TokenClip(
            id=clip_id,
            tokens=tokens,
            num_samples=self.num_samples,
            sample_rate_hz=self.sample_rate_hz,
            gain_db=self.gain_db,
            audio_sha256=self.audio_sha256,
        )


def _load_window(
    codec: "Codec", recordings: Sequence[Recording], window: Sequence[int]
) -> dict[int, "_Loaded | str | None"]:
    """Audio by place, an error, or None for a recording that is too long to wait in memory."""
    loaded: dict[int, _Loaded | str | None] = {}
    for index in window:
        recording = recordings[index]
        try:
            loaded[index] = None if recording.seconds > _LONG_S else _load(codec, recording)
        except (ValueError, OSError) as error:
            loaded[index] = str(error)
    return loaded


def _load(codec: "Codec", recording: Recording) -> _Loaded:
    import torch
    from torch.nn.functional import pad

    with recording.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        wav, rate_hz = load_wav(file)
    mono = to_mono(wav)
    at_model_rate = resample(mono, rate_hz, codec.sample_rate_hz)
    # Rounded and applied as `Codec.compress` does it.
    gain_db = float(np.float32(20 * math.log10(loudness_gain(at_model_rate, codec.sample_rate_hz))))
    levelled = torch.from_numpy(at_model_rate)[None] * 10 ** (gain_db / 20)
    # Clips with the same number of frames are equally long once the model's own padding is there.
    whole = pad(levelled, (0, -levelled.shape[-1] % codec.hop_samples))
    return _Loaded(whole, len(mono), rate_hz, gain_db, digest)


def _encode_long(codec: "Codec", config: CorpusConfig, recording: Recording) -> TokenClip | str:
    try:
        with recording.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        header, tokens = unpack(codec.compress_file(recording.path, config.bottleneck))
    except (ValueError, OSError) as error:
        return str(error)
    return TokenClip(
        id=recording.id,
        tokens=tokens,
        num_samples=header.num_samples,
        sample_rate_hz=header.sample_rate_hz,
        gain_db=header.gain_db,
        audio_sha256=digest,
    )


def _refuse_duplicates(recordings: Sequence[Recording]) -> None:
    seen: set[str] = set()
    for recording in recordings:
        if recording.id in seen:
            raise ValueError(f"ids must be unique, {recording.id!r} comes twice in the manifest")
        seen.add(recording.id)


def _versions() -> dict[str, str]:
    versions = {"taae": __version__, "python": platform.python_version()}
    for name in ("numpy", "pyarrow", "soundfile", "soxr", "torch"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # pyarrow, where tars are written
            continue
    return versions
