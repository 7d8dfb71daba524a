"""Score a codec on a list of clips: one row per clip and bottleneck, and their means (Tables 2 to 5)."""

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from taae.audio import load_wav, to_mono
from taae.config import BottleneckSpec
from taae.metrics import MetricError, bootstrap_ci, check_metrics, score
from taae.workers import Prepare, map_in_order

log = logging.getLogger(__name__)

Row = dict[str, Any]
ExtraMetrics = Mapping[str, Callable[[np.ndarray, np.ndarray, int], float]]

# What a row holds beside its scores.
_NO_SCORES = {
    *("codec", "id", "bottleneck", "seconds", "bytes", "bits_per_second"),
    *("cropped_samples", "rates_hz", "reasons", "warning", "error"),
}


@runtime_checkable
class Reconstructs(Protocol):
    """What `evaluate` asks of a codec; `taae.Codec` and the baselines of the workbench have it."""

    def reconstruct(self, wav: Any, bottleneck: str, *, sample_rate_hz: int) -> tuple[Any, Any]:
        """Wav `(n,)` -> what comes out, as long and at the same rate, and what was sent.

        What was sent is the tokens `(b, s, k)` or `(s, k)` of a `BottleneckSpec`, the bytes of another codec, or None.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One line of a manifest; `path` is absolute or relative to the working directory."""

    id: str
    path: Path
    language: str
    speaker: str
    seconds: float


def read_manifest(path: str | os.PathLike) -> list[Clip]:
    """Read JSON lines with path, id, language, speaker and seconds; other keys are ignored.

    A path in the manifest is relative to the manifest's folder.

    Raises:
        FileNotFoundError: If there is no such manifest.
        ValueError: If a line is not such an object, an id comes twice, or there are no lines.
    """
    path = Path(path)
    clips = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            clip = Clip(
                id=str(row["id"]),
                path=path.parent / row["path"],
                language=str(row["language"]),
                speaker=str(row["speaker"]),
                seconds=float(row["seconds"]),
            )
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, line {number}: expected path, id, language, speaker, seconds: {error!r}"
            ) from None
        clips.append(clip)
    if not clips:
        raise ValueError(f"{path} lists no clips")
    _refuse_duplicates([clip.id for clip in clips])
    return clips


def evaluate(
    codec: Reconstructs,
    clips: Iterable[tuple[str, str | os.PathLike]],
    bottlenecks: Sequence[str],
    *,
    results_path: str | os.PathLike | None = None,
    metrics: Sequence[str] | None = None,
    extra: ExtraMetrics | None = None,
    num_workers: int = 1,
    progress: bool = True,
) -> list[Row]:
    """Send every clip, in mono, through every bottleneck and score what comes out.

    A row holds codec, id, bottleneck, seconds, bytes (of what was sent, without a file header), bits_per_second and the
    metrics; None where one is unknown or undefined, with the reason under "reasons". A clip that fails has "error".

    Args:
        codec: The codec; its `name` and `model_id`, if any, tell its rows from another's in `results_path`.
        clips: (id, path) pairs; ids are unique.
        bottlenecks: What the codec offers, such as "2x5^6".
        results_path: JSON lines, appended row by row. Rows already there with all the metrics are not computed again;
            rows with an error are.
        metrics: Names in `taae.metrics.METRICS`; by default all that this machine can compute.
        extra: More metrics by name, each `(reference, degraded, sample_rate_hz) -> float`, a function of a module.
        num_workers: Processes that score; the codec runs in this one.
        progress: Show a bar when stderr is a terminal.

    Returns:
        One row a clip and bottleneck, in that order.

    Raises:
        ValueError: If a metric is unknown, an id comes twice, or `results_path` holds something else.
        ImportError: If a metric's package is missing.
    """
    names, extra = check_metrics(metrics), dict(extra or {})
    clips = list(clips)
    _refuse_duplicates([clip_id for clip_id, _ in clips])
    codec_name = _name(codec)

    def jobs() -> Iterator[tuple[Row, Prepare]]:
        for clip_id, path in clips:
            loaded: list[tuple[np.ndarray, int]] = []  # once for all bottlenecks, and only if one is missing

            def send(bottleneck: str, path: Any = path, loaded: list = loaded) -> tuple[Any, ...]:
                loaded[:] = loaded or [load_mono(path)]
                wav, sample_rate_hz = loaded[0]
                decoded, sent = codec.reconstruct(wav, bottleneck, sample_rate_hz=sample_rate_hz)
                if hasattr(decoded, "detach"):  # a process that only scores need not import torch
                    decoded = decoded.detach().float().cpu().numpy()
                return wav, decoded, sample_rate_hz, _num_bytes(sent, bottleneck), names, extra

            for bottleneck in bottlenecks:
                key = {"codec": codec_name, "id": clip_id, "bottleneck": bottleneck}
                yield key, partial(send, bottleneck)

    total = len(clips) * len(bottlenecks)
    with tqdm(total=total, desc=codec_name, unit="clip", disable=None if progress else True) as bar:
        return run_jobs(
            score_row, jobs(), {*names, *extra}, results_path=results_path, num_workers=num_workers, bar=bar
        )


def run_jobs(
    function: Callable[..., Row],
    jobs: Iterable[tuple[Row, Prepare]],
    names: set[str],
    *,
    results_path: str | os.PathLike | None,
    num_workers: int,
    bar: tqdm,
) -> list[Row]:
    """One row a job, in order: its key and what `function` gives or an "error"; or the row that `results_path` has.

    Args:
        function: Scores; see `taae.workers.map_in_order`.
        jobs: Key (codec, id, bottleneck) and what makes the arguments of `function`.
        names: Of the metrics that a finished row has.
        results_path: As for `evaluate`.
        num_workers: As for `evaluate`.
        bar: Told of every row.

    Raises:
        ValueError: If `results_path` holds something else.
    """
    done = _read_results(Path(results_path)) if results_path is not None else {}

    def is_done(key: Row) -> bool:  # and not new, failed, or scored with fewer metrics
        return names <= set(done.get(_key(key), {}))

    rows = []
    missing = ((key, None if is_done(key) else prepare) for key, prepare in jobs)
    for key, outcome in map_in_order(function, missing, num_workers):
        if outcome is None:
            row = done[_key(key)]
        else:
            if isinstance(outcome, Exception):  # any clip may break any codec; the others still count
                log.warning("%s at %s failed: %s", key["id"], key["bottleneck"], outcome)
                outcome = {"error": f"{type(outcome).__name__}: {outcome}"}
            row = key | outcome
            if results_path is not None:
                with Path(results_path).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row, allow_nan=False) + "\n")
        rows.append(row)
        bar.update()
    return rows


def summarise(rows: Iterable[Mapping[str, Any]], seed: int = 0) -> dict[str, Row]:
    """Per bottleneck: number of clips and of failures, seconds, bits per second, and every metric's mean.

    `bits_per_second` is that of all clips together. A metric is {"mean", "low", "high", "num_clips"} with the 95 %
    bootstrap interval over the clips on which it is defined.

    Args:
        rows: Of one codec, from `evaluate`.
        seed: Of the bootstrap.

    Raises:
        ValueError: If the rows come from more than one codec.
    """
    rows = list(rows)
    if len(codecs := {row["codec"] for row in rows}) > 1:
        raise ValueError(f"rows of several codecs cannot share a mean: {', '.join(sorted(codecs))}")
    summary: dict[str, Row] = {}
    for bottleneck in dict.fromkeys(row["bottleneck"] for row in rows):
        mine = [row for row in rows if row["bottleneck"] == bottleneck]
        good = [row for row in mine if "error" not in row]
        sized = [row for row in good if row["bytes"] is not None]
        entry: Row = {
            "num_clips": len(good),
            "num_failed": len(mine) - len(good),
            "seconds": sum(row["seconds"] for row in good),
            "bits_per_second": 8 * sum(row["bytes"] for row in sized) / sum(row["seconds"] for row in sized)
            if sized
            else None,
        }
        for name in dict.fromkeys(key for row in good for key in row if key not in _NO_SCORES):
            values = [row[name] for row in good if row.get(name) is not None]
            if values:
                mean, low, high = bootstrap_ci(values, seed)
                entry[name] = {"mean": mean, "low": low, "high": high, "num_clips": len(values)}
        summary[bottleneck] = entry
    return summary


def load_mono(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """A recording as (n,), channels averaged, and its sample rate."""
    wav, sample_rate_hz = load_wav(path)
    return to_mono(wav), sample_rate_hz


def score_row(
    wav: np.ndarray, decoded: Any, sample_rate_hz: int, num_bytes: int | None, names: list[str], extra: ExtraMetrics
) -> Row:
    """What a row says of one clip; JSON has no nan, so a metric that is not defined is None."""
    reasons: dict[str, str] = {}
    scores = score(wav, decoded, sample_rate_hz, names, reasons=reasons)
    for name, metric in extra.items():
        try:
            scores[name] = metric(wav, to_mono(decoded), sample_rate_hz)
        except MetricError as error:
            scores[name], reasons[name] = math.nan, str(error)
    seconds = wav.size / sample_rate_hz
    row: Row = {
        "seconds": seconds,
        "bytes": num_bytes,
        "bits_per_second": None if num_bytes is None else 8 * num_bytes / seconds,
    }
    row |= {name: value if math.isfinite(value) else None for name, value in scores.items()}
    return row | {"reasons": reasons} if reasons else row


def _num_bytes(sent: Any, bottleneck: str) -> int | None:
    if sent is None:
        return None
    if isinstance(sent, bytes):
        return len(sent)
    num_frames = sent.shape[-2]
    return math.ceil(num_frames * BottleneckSpec.parse(bottleneck).bits_per_frame / 8)


def _key(row: Row) -> tuple[str, str, str]:
    return row["codec"], row["id"], row["bottleneck"]


def _name(codec: Any) -> str:
    name = str(getattr(codec, "name", type(codec).__name__))
    model_id = getattr(codec, "model_id", None)
    return f"{name} {model_id.hex()}" if isinstance(model_id, bytes) else name


def _read_results(path: Path) -> dict[tuple[str, str, str], Row]:
    """Rows by codec, id and bottleneck, the last of each. A last line that a crash cut off is removed from the file."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    rows = {}
    for number, line in enumerate(whole.decode("utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            rows[_key(row)] = row
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not a row of an evaluation: {error!r}") from None
    if len(whole) < len(data):
        if not data[len(whole) :].startswith(b'{"codec"'):
            raise ValueError(f"{path} does not hold rows of an evaluation")
        os.truncate(path, len(whole))
    return rows


def _refuse_duplicates(ids: list[str]) -> None:
    if twice := [clip_id for clip_id, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"ids must be unique, these come twice: {', '.join(twice[:5])}")
