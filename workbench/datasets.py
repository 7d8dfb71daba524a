"""Corpora of the paper: cards that say what each is, lists of their clips, and our seeded selections from them.

A card, `data_manifests/<name>.toml`, holds facts: source, licence, bytes, checksums, hours, role in the paper;
"unverified" where we have not seen the value. The authors published no list of the clips that they measured, so every
selection is ours, made by the rule of the card with its seed, and says so.
"""

import gzip
import hashlib
import json
import random
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import soundfile
from tqdm import tqdm

from taae.audio import load_wav, save_wav
from workbench.published import MANIFESTS

Unverified = Literal["unverified"]
Row = dict[str, Any]

OURS = "our draw by the rule of the paper; the authors' own list is not published"
_SUFFIXES = {".flac", ".opus", ".wav"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A file to fetch."""

    url: str
    bytes: int | Unverified
    md5: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """How to draw clips.

    Attributes:
        seconds: Shortest and longest.
        num_clips: How many.
        seed: Of the draw.
        splits: Top folders to draw from; all when empty.
        crop: Where too few are short enough, take the beginning of longer ones, its length drawn evenly.
    """

    seconds: tuple[float, float]
    num_clips: int
    seed: int
    splits: tuple[str, ...] = ()
    crop: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.seconds[0] < self.seconds[1] or self.num_clips < 1:
            raise ValueError(f"a selection needs 0 < shortest < longest and at least one clip, got {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBins:
    """Bins of Fig. 3: clips within `half_width_s` of each centre, at most `max_clips` of each."""

    centres_s: tuple[float, ...]
    half_width_s: float
    max_clips: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a corpus is; see the files."""

    name: str
    title: str
    role: str
    homepage: str
    licence: str
    licence_url: str
    citation: str
    language: str
    hours: float
    num_clips: int | Unverified
    sample_rate_hz: int
    layout: Literal["librispeech", "mls", "manifest"]
    subfolder: str
    files: tuple[Archive, ...]
    selection: Selection | None = None
    length_bins: LengthBins | None = field(default=None)

    @property
    def listing(self) -> Path:
        """Where its list of clips is kept, if there is one."""
        return MANIFESTS / f"{self.name}.jsonl.gz"


def cards() -> dict[str, Card]:
    """All cards by name."""
    return {path.stem: _read_card(path) for path in sorted(MANIFESTS.glob("*.toml"))}


def card(name: str) -> Card:
    """One card.

    Raises:
        ValueError: If there is none of this name.
    """
    found = cards()
    if name not in found:
        raise ValueError(f"no data set {name!r}; there are {', '.join(found)}")
    return found[name]


def _read_card(path: Path) -> Card:
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        values["files"] = tuple(Archive(**archive) for archive in values["files"])
        kinds: dict[str, Any] = {"selection": Selection, "length_bins": LengthBins}
        for key in kinds.keys() & values.keys():
            rule = {name: tuple(value) if isinstance(value, list) else value for name, value in values[key].items()}
            values[key] = kinds[key](**rule)
        return Card(name=path.stem, **values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def clips(of: Card, root: Path, *, with_checksums: bool = False) -> Iterator[Row]:
    """Rows of all clips below `root`, in order: id, path (relative to root), seconds, language, speaker, split, ...

    Args:
        of: The card; its layout says where speakers and ids stand in the paths.
        root: The unpacked corpus: the folder that holds `of.subfolder`, or for MLS train, dev and test.
        with_checksums: Add the SHA-256 of every file, which reads them whole.

    Raises:
        ValueError: If there are no recordings where the layout has them.
    """
    if of.layout == "manifest":
        raise ValueError(f"{of.name} is listed already, in {of.listing.name}")
    folder = root / of.subfolder
    paths = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"no recordings in {folder}; unpack {', '.join(file.url for file in of.files)} there")
    for path in tqdm(paths, desc=of.name, unit="clip", disable=None):
        parts = path.relative_to(root).parts
        # .../<speaker>/<book or chapter>/<id>.flac, for MLS below <split>/audio
        row: Row = {
            "id": path.stem,
            "path": path.relative_to(root).as_posix(),
            "seconds": round(soundfile.info(path).duration, 6),
            "language": of.language,
            "speaker": parts[-3],
            "split": parts[-5] if of.layout == "mls" and len(parts) >= 5 else of.subfolder,
            "corpus": of.name,
            "licence": of.licence,
        }
        yield row | ({"sha256": _digest(path, "sha256")} if with_checksums else {})


def select(rows: Iterable[Row], rule: Selection) -> list[Row]:
    """Draw clips by a rule: the same rows and seed give the same draw, whatever their order.

    Returns:
        Rows by id. A cropped one has "cut", [start, end] in seconds, and "-cut" at the end of its id. They may be fewer
        than `rule.num_clips`.
    """
    low, high = rule.seconds
    pool = sorted((row for row in rows if not rule.splits or row["split"] in rule.splits), key=lambda row: row["id"])
    rng = random.Random(rule.seed)
    fitting = [row for row in pool if low <= row["seconds"] <= high]
    chosen = rng.sample(fitting, min(rule.num_clips, len(fitting)))
    if rule.crop and len(chosen) < rule.num_clips:
        longer = [row for row in pool if row["seconds"] > high]
        for row in rng.sample(longer, min(rule.num_clips - len(chosen), len(longer))):
            end = round(rng.uniform(low, high), 3)
            chosen.append(row | {"id": f"{row['id']}-cut", "cut": [0.0, end], "seconds": end})
    return sorted(({**row, "selection": OURS} for row in chosen), key=lambda row: row["id"])


def select_by_length(rows: Iterable[Row], bins: LengthBins) -> list[Row]:
    """Draw clips for every bin of Fig. 3; a row has "length_bin_s". A clip may be in two bins that overlap."""
    pool = sorted(rows, key=lambda row: row["id"])
    rng = random.Random(bins.seed)
    chosen = []
    for centre in bins.centres_s:
        inside = [row for row in pool if abs(row["seconds"] - centre) <= bins.half_width_s]
        drawn = rng.sample(inside, min(bins.max_clips, len(inside)))
        chosen += [
            {**row, "id": f"{row['id']}@{centre:g}s", "length_bin_s": centre, "selection": OURS}
            for row in sorted(drawn, key=lambda row: row["id"])
        ]
    return chosen


def write_selection(rows: Sequence[Row], root: Path, out: Path) -> None:
    """Write `out/manifest.jsonl`, which `taae eval --manifest` reads, and the cropped clips beside it as FLAC.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("the rule chose no clips; is this the whole corpus?")
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in rows:
        path = (root / row["path"]).resolve()
        if "cut" in row:
            wav, rate_hz = load_wav(path)
            start, end = (round(second * rate_hz) for second in row["cut"])
            path = out.resolve() / "cut" / f"{row['id']}.flac"
            path.parent.mkdir(exist_ok=True)
            save_wav(path, wav[:, start:end], rate_hz, force=True)
        lines.append(json.dumps({**row, "path": str(path), "original_path": row["path"]}, ensure_ascii=False) + "\n")
    (out / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")


def write_listing(rows: Iterable[Row], out: Path) -> int:
    """Write rows as gzipped JSON lines, the same rows as the same bytes; returns how many."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    out.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))
    return len(lines)


def verify_archives(of: Card, folder: Path) -> list[str]:
    """Compare downloaded archives with the card: one line for each that is missing, differs or has no checksum."""
    problems = []
    for archive in of.files:
        path = folder / archive.url.rsplit("/", 1)[1]
        if not path.is_file():
            problems.append(f"{path.name}: missing; get it with: wget -c {archive.url}")
            continue
        if isinstance(archive.bytes, int) and path.stat().st_size != archive.bytes:
            problems.append(f"{path.name}: {path.stat().st_size} bytes, expected {archive.bytes}")
            continue
        known = [kind for kind in ("sha256", "md5") if getattr(archive, kind) != "unverified"]
        if not known:
            problems.append(f"{path.name}: no checksum is known; its sha256 is {_digest(path, 'sha256')}")
        elif (found := _digest(path, known[0])) != getattr(archive, known[0]):
            problems.append(f"{path.name}: {known[0]} is {found}, expected {getattr(archive, known[0])}")
    return problems


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
