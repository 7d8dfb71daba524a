"""Files that hold the tokens of many clips: Parquet for tables, WebDataset tars for streaming. No torch.

    import numpy as np
    from taae.token_shards import read_tokens

    for clip in read_tokens("tokens/"):       # a file, or a folder of them in order
        clip.id, clip.tokens                  # str, int64 (s, k)

Parquet: columns id, tokens (list of unsigned integers, frame by frame, the k stages of a frame side by side),
num_samples, sample_rate_hz, gain_db, audio_sha256; the schema's metadata has the key "taae" with a JSON object
(model_id, bottleneck, num_stages ...). WebDataset: members NUMBER.tokens.npy, unsigned (s, k), and NUMBER.json.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from taae.config import BottleneckSpec

SUFFIXES = {"parquet": ".parquet", "webdataset": ".tar"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClip:
    """The tokens of one recording, and what it takes to give it back.

    Attributes:
        id: From the manifest.
        tokens: int64 (s, k), s frames and k residual stages; each 0 ... L^d - 1.
        num_samples: Of the recording, at its own rate.
        sample_rate_hz: Of the recording.
        gain_db: What brought it to -20 LUFS before it was encoded.
        audio_sha256: Of the bytes of its file.
    """

    id: str
    tokens: np.ndarray
    num_samples: int
    sample_rate_hz: int
    gain_db: float
    audio_sha256: str


def dump_shard(clips: Sequence[TokenClip], settings: dict[str, Any], file_format: str) -> bytes:
    """The bytes of a token file; equal clips and settings give equal bytes.

    Args:
        clips: In the order to keep.
        settings: How they were made: "bottleneck", and what else a reader may want to know.
        file_format: "parquet" or "webdataset".

    Raises:
        ImportError: If Parquet is asked for and pyarrow is not installed.
    """
    spec = BottleneckSpec.parse(settings["bottleneck"])
    dtype = np.min_scalar_type(spec.codebook_size - 1)
    return (_dump_parquet if file_format == "parquet" else _dump_tar)(clips, settings, spec.num_stages, dtype)


def _dump_parquet(clips: Sequence[TokenClip], settings: dict[str, Any], num_stages: int, dtype: np.dtype) -> bytes:
    pa, parquet = _pyarrow()
    lengths = [clip.tokens.size for clip in clips]
    flat = np.concatenate([clip.tokens.reshape(-1).astype(dtype) for clip in clips]) if clips else np.zeros(0, dtype)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    columns = {
        "id": pa.array([clip.id for clip in clips], pa.string()),
        "tokens": pa.LargeListArray.from_arrays(offsets, pa.array(flat)),
        "num_samples": pa.array([clip.num_samples for clip in clips], pa.int64()),
        "sample_rate_hz": pa.array([clip.sample_rate_hz for clip in clips], pa.int32()),
        "gain_db": pa.array([clip.gain_db for clip in clips], pa.float64()),
        "audio_sha256": pa.array([clip.audio_sha256 for clip in clips], pa.string()),
    }
    table = pa.table(columns).replace_schema_metadata({"taae": json.dumps(settings | {"num_stages": num_stages})})
    file = io.BytesIO()
    # Tokens are close to random: a dictionary of them costs more than it saves, and zstd packs what is left.
    parquet.write_table(table, file, compression="zstd", use_dictionary=False)
    return file.getvalue()


def _dump_tar(clips: Sequence[TokenClip], settings: dict[str, Any], num_stages: int, dtype: np.dtype) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, clip in enumerate(clips):
            array = io.BytesIO()
            np.save(array, clip.tokens.astype(dtype))
            row = {name: getattr(clip, name) for name in TokenClip.__slots__ if name != "tokens"}
            row |= {"bottleneck": settings["bottleneck"], "model_id": settings.get("model_id")}
            for suffix, data in (("tokens.npy", array.getvalue()), ("json", json.dumps(row).encode())):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")  # no time, no owner: equal bytes
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def read_tokens(path: str | PathLike) -> Iterator[TokenClip]:
    """The clips of a token file, or of all token files of a folder in the order of their names.

    Args:
        path: .parquet, .tar, or a folder of them.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If it is no token file, or a folder without any.
        ImportError: If it is Parquet and pyarrow is not installed.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES.values())
        if not files:
            raise ValueError(f"{path} holds no token files ({', '.join(SUFFIXES.values())})")
        for file in files:
            yield from read_tokens(file)
        return
    if not path.is_file():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if path.suffix not in SUFFIXES.values():
        raise ValueError(f"{path} is no token file; expected {' or '.join(SUFFIXES.values())}")
    yield from (_read_parquet if path.suffix == ".parquet" else _read_tar)(path)


def _read_parquet(path: Path) -> Iterator[TokenClip]:
    pa, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(path)
        num_stages = json.loads(file.schema_arrow.metadata[b"taae"])["num_stages"]
    except (pa.ArrowInvalid, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no token file, or a damaged one: {error!r}") from None
    with file:
        for batch in file.iter_batches():
            offsets = batch["tokens"].offsets.to_numpy()
            flat = batch["tokens"].values.to_numpy(zero_copy_only=False)
            rest = batch.drop_columns(["tokens"]).to_pylist()
            for row, start, stop in zip(rest, offsets[:-1], offsets[1:], strict=True):
                yield TokenClip(tokens=flat[start:stop].astype(np.int64).reshape(-1, num_stages), **row)


def _read_tar(path: Path) -> Iterator[TokenClip]:
    names = set(TokenClip.__slots__)
    try:
        with tarfile.open(path, "r:") as archive:
            tokens = None
            for member in archive:
                data = io.BytesIO(archive.extractfile(member).read())  # pyright: ignore[reportOptionalMemberAccess]
                if member.name.endswith(".tokens.npy"):
                    tokens = np.load(data, allow_pickle=False).astype(np.int64)
                elif tokens is not None:
                    row = {name: value for name, value in json.load(data).items() if name in names}
                    yield TokenClip(tokens=tokens, **row)
                    tokens = None
    except (tarfile.TarError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is no token file, or a damaged one: {error!r}") from None


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError(
            "Parquet needs pyarrow: pip install 'taae-workbench[scale]', or choose --format webdataset"
        ) from None
    return pyarrow, parquet
