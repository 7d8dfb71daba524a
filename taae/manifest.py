"""Lists of recordings: a manifest is JSON lines, one recording each, and a shard is every N-th of them. No torch."""

import gzip
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One line of a manifest.

    Attributes:
        id: Its name, unique in the manifest.
        path: Absolute, or relative to the working directory.
        seconds: Its length, as the manifest says; it need not be exact.
    """

    id: str
    path: Path
    seconds: float


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `count`: the recordings index, index + count, index + 2 * count ... of a manifest, from 0."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"shards count from 0: 0/N to N-1/N with N at least 1, got {self.index}/{self.count}")

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read "3/100".

        Raises:
            ValueError: If it is no such pair.
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if match is None:
            raise ValueError(f"a shard must read 'i/N' such as '0/100', got {text!r}")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """Stem of its files: "shard-00003-of-00100"."""
        return f"shard-{self.index:05d}-of-{self.count:05d}"


def read_recordings(manifest: str | os.PathLike, shard: Shard = Shard()) -> list[Recording]:  # noqa: B008
    """Read a manifest, .jsonl or .jsonl.gz, with id, path and seconds on every line; other keys are ignored.

    Blank lines do not count. Of the lines of other shards only the first is looked at closely, so that a hundred
    processes can share a manifest of millions.

    Args:
        manifest: A path in it is relative to its folder.
        shard: Which of its lines.

    Raises:
        ValueError: If there is no manifest, it lists nothing, or a line is not such an object.
    """
    manifest = Path(manifest)
    if not manifest.is_file():
        raise ValueError(f"no manifest at {manifest}; it is a file of JSON lines with id, path and seconds")
    recordings, number = [], -1
    for number, (line_number, line) in enumerate(_lines(manifest)):
        if number == 0 or number % shard.count == shard.index:
            recording = _parse(line, manifest, line_number)
            if number % shard.count == shard.index:
                recordings.append(recording)
    if number < 0:
        raise ValueError(f"{manifest} lists no recordings")
    return recordings


def _lines(manifest: Path) -> Iterator[tuple[int, str]]:
    is_gzip = manifest.suffix == ".gz"
    try:
        with gzip.open(manifest, "rt", encoding="utf-8") if is_gzip else manifest.open(encoding="utf-8") as file:
            for line_number, line in enumerate(file, start=1):
                if line.strip():
                    yield line_number, line
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"cannot read {manifest} as a manifest: {error}") from None


def _parse(line: str, manifest: Path, line_number: int) -> Recording:
    try:
        row: dict[str, Any] = json.loads(line)
        recording = Recording(id=str(row["id"]), path=manifest.parent / row["path"], seconds=float(row["seconds"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{manifest}, line {line_number}: expected an object with id, path and seconds: {error!r}"
        ) from None
    if not (math.isfinite(recording.seconds) and recording.seconds > 0):
        raise ValueError(f"{manifest}, line {line_number}: seconds must be positive, got {recording.seconds}")
    return recording
