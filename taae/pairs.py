"""Score recordings against what any codec made of them: two files, or two folders with files of the same names."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from taae.audio import FORMATS, resample
from taae.evaluate import ExtraMetrics, Row, load_mono, run_jobs, score_row
from taae.metrics import RATE_HZ, check_metrics
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
    crop: bool = True,
    num_workers: int = 1,
    progress: bool = True,
) -> list[Row]:
    """Score every file of a folder against the one of the same name in the other; one row a clip, by name.

    A row is that of `taae.evaluate.evaluate`, without bytes, and what `score_files` adds; its codec names the two
    folders. Files without a counterpart are left out (`match_folders` lists them); a pair that fails has "error".

    Args:
        reference: Folder of originals, with any subfolders.
        degraded: Folder of the same names; suffixes may differ.
        metrics: As for `evaluate`.
        extra: As for `evaluate`.
        results_path: As for `evaluate`.
        crop: As for `score_files`.
        num_workers: Processes that read and score.
        progress: Show a bar when stderr is a terminal.

    Raises:
        ValueError: If no names match, or as `evaluate`.
    """
    names, extra = check_metrics(metrics), dict(extra or {})
    pairs, _ = match_folders(reference, degraded)

    def jobs() -> Iterator[tuple[Row, Prepare]]:
        for name, before, after in pairs:
            key = {"codec": f"{degraded} of {reference}", "id": name, "bottleneck": "recorded"}
            yield key, lambda before=before, after=after: (before, after, names, extra, crop)

    with tqdm(total=len(pairs), desc=str(degraded), unit="clip", disable=None if progress else True) as bar:
        return run_jobs(
            score_files, jobs(), {*names, *extra}, results_path=results_path, num_workers=num_workers, bar=bar
        )


def match_folders(
    reference: str | os.PathLike, degraded: str | os.PathLike
) -> tuple[list[tuple[str, Path, Path]], list[Path]]:
    """Pair the audio files of two folders; a name is the path below the folder, without suffix.

    Two folders of one file each make a pair whatever the names.

    Returns:
        (name, original, degraded) of all pairs, and the files that have no counterpart.

    Raises:
        ValueError: If a name comes twice in a folder, a folder holds no audio, or no names match.
    """
    before, after = _audio_files(Path(reference)), _audio_files(Path(degraded))
    if len(before) == len(after) == 1:
        (name, path), degraded_path = next(iter(before.items())), next(iter(after.values()))
        return [(name, path, degraded_path)], []
    pairs = [(name, path, after[name]) for name, path in before.items() if name in after]
    if not pairs:
        examples = f"{next(iter(before.values()))}, {next(iter(after.values()))}"
        raise ValueError(f"no file of {degraded} has the name of one of {reference}; names must match, got {examples}")
    alone = [path for name, path in before.items() if name not in after]
    return pairs, alone + [path for name, path in after.items() if name not in before]


def score_files(
    reference: str | os.PathLike,
    degraded: str | os.PathLike,
    metrics: Sequence[str] | None = None,
    extra: ExtraMetrics | None = None,
    crop: bool = True,
) -> Row:
    """Scores of one pair of recordings, in mono; of clips of different length, their common beginning.

    The row has seconds, the metrics, and where they apply: "reasons" for what is undefined, "cropped_samples" if
    lengths differ, "rates_hz" if sample rates differ (both are then compared at 16 kHz), and "warning" if lengths
    differ by more than `MAX_CROP_S`.

    Raises:
        ValueError: If `crop` is false and lengths differ by more than `MAX_CROP_S`.
    """
    (target, rate_hz), (estimate, degraded_hz) = load_mono(reference), load_mono(degraded)
    notes: Row = {}
    if rate_hz != degraded_hz:
        notes["rates_hz"] = [rate_hz, degraded_hz]
        target, estimate = resample(target, rate_hz, RATE_HZ), resample(estimate, degraded_hz, RATE_HZ)
        rate_hz = RATE_HZ
    if difference := estimate.size - target.size:
        notes["cropped_samples"] = difference
    if abs(difference) > MAX_CROP_S * rate_hz:
        lengths = f"{reference} lasts {target.size / rate_hz:.3f} s, {degraded} {estimate.size / rate_hz:.3f} s"
        if not crop:
            raise ValueError(f"{lengths}; they must start and end together")
        notes["warning"] = f"{lengths}; their common beginning was compared"
    length = min(target.size, estimate.size)
    return score_row(target[:length], estimate[:length], rate_hz, None, check_metrics(metrics), extra or {}) | notes


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
