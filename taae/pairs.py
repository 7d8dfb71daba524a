"""Score recordings against what any codec made of them: two files, or two folders with files of the same names."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from taae.audio import FORMATS
from taae.evaluate import ExtraMetrics, Row, load_mono, run_jobs, score_row
from taae.metrics import check_metrics
from taae.workers import Prepare

MAX_CROP_S = 0.1  # codecs work in frames of up to 80 ms and may give up to one more or less

_SUFFIXES = {*(f".{name}" for name in FORMATS), ".aif", ".aiff", ".oga", ".w64"}


def evaluate_folders(
    reference: str | os.PathLike,
    degraded: str | os.PathLike,
    *,
    metrics: Sequence[str] | None = None,
    extra: ExtraMetrics | None = None,
    results_path: str | os.PathLike | None = None,
    crop: bool = False,
    num_workers: int = 1,
    progress: bool = True,
) -> list[Row]:
    """Score every file of a folder against the one of the same name in the other; one row a clip, by name.

    A row is that of `taae.evaluate.evaluate`, without bytes; its codec names the two folders. A pair that differs
    in sample rate, or in length by more than `MAX_CROP_S`, has "error"; the others are still scored.

    Args:
        reference: Folder of originals, with any subfolders.
        degraded: Folder of the same names; suffixes may differ.
        metrics: As for `evaluate`.
        extra: As for `evaluate`.
        results_path: As for `evaluate`.
        crop: Compare the common beginning of clips that differ more in length.
        num_workers: Processes that read and score.
        progress: Show a bar when stderr is a terminal.

    Raises:
        ValueError: If the folders do not hold the same names, or as `evaluate`.
    """
    names, extra = check_metrics(metrics), dict(extra or {})
    pairs = match_folders(reference, degraded)

    def jobs() -> Iterator[tuple[Row, Prepare]]:
        for name, before, after in pairs:
            key = {"codec": f"{degraded} of {reference}", "id": name, "bottleneck": "recorded"}
            yield key, lambda before=before, after=after: (before, after, names, extra, crop)

    with tqdm(total=len(pairs), desc=str(degraded), unit="clip", disable=None if progress else True) as bar:
        return run_jobs(
            score_files, jobs(), {*names, *extra}, results_path=results_path, num_workers=num_workers, bar=bar
        )


def match_folders(reference: str | os.PathLike, degraded: str | os.PathLike) -> list[tuple[str, Path, Path]]:
    """(name, original, degraded) of all audio files; a name is the path below the folder, without suffix.

    Raises:
        ValueError: If a name is in one folder only, or twice in one, or there are none.
    """
    before, after = _audio_files(Path(reference)), _audio_files(Path(degraded))
    for ours, theirs, folder in ((before, after, degraded), (after, before, reference)):
        if lacking := [str(path) for name, path in ours.items() if name not in theirs]:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise ValueError(f"{folder} has no counterpart of {', '.join(lacking[:3])}{more}; names must match")
    return [(name, path, after[name]) for name, path in before.items()]


def score_files(
    reference: str | os.PathLike,
    degraded: str | os.PathLike,
    metrics: Sequence[str] | None = None,
    extra: ExtraMetrics | None = None,
    crop: bool = False,
) -> Row:
    """Scores of one pair: seconds, the metrics, "reasons" for what is undefined, "cropped_samples" if lengths differ.

    Raises:
        ValueError: If the files differ in sample rate, or in length by more than `MAX_CROP_S` and `crop` is false.
    """
    (target, rate_hz), (estimate, degraded_hz) = load_mono(reference), load_mono(degraded)
    if rate_hz != degraded_hz:
        raise ValueError(
            f"{reference} has {rate_hz} Hz, {degraded} has {degraded_hz}; they must have the same, resample one"
        )
    difference = estimate.size - target.size
    if abs(difference) > MAX_CROP_S * rate_hz and not crop:
        raise ValueError(
            f"{reference} lasts {target.size / rate_hz:.3f} s, {degraded} {estimate.size / rate_hz:.3f} s; "
            "they must start and end together, or give --crop to compare their common beginning"
        )
    length = min(target.size, estimate.size)
    names = check_metrics(metrics)
    row = score_row(target[:length], estimate[:length], rate_hz, None, names, extra or {})
    return row | ({"cropped_samples": difference} if difference else {})


def _audio_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"expected a folder of recordings, got {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        parts: Any = path.relative_to(folder).parts
        if path.suffix.lower() not in _SUFFIXES or any(part.startswith(".") for part in parts) or not path.is_file():
            continue
        name = str(path.relative_to(folder).with_suffix(""))
        if name in found:
            raise ValueError(f"{found[name]} and {path} have the same name; remove or rename one")
        found[name] = path
    if not found:
        raise ValueError(f"{folder} holds no recordings ({', '.join(sorted(_SUFFIXES))})")
    return found
