"""The verb `eval`: score a model on clips, or one recording against another."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from taae import batch
from taae.batch import STREAM, Job
from taae.cli_options import Device, Dtype, DtypeOption, Force, Model, OfficialConfig, check_bottleneck, load_codec
from taae.cli_output import complain, say


def evaluate(
    manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON lines with path, id, language, speaker, seconds.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="AUDIO", help="What went in: a file or folder, compared with --degraded.")
    ] = None,
    degraded: Annotated[
        str | None, typer.Option(metavar="AUDIO", help="What came out: a file, or a folder with the same names.")
    ] = None,
    bottleneck: Annotated[
        list[str] | None,
        typer.Option(
            parser=check_bottleneck, metavar="KxL^D", help="Repeatable; by default 400 to 1000 bit/s. Also: continuous."
        ),
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Repeatable; all by default.")] = None,
    results: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON lines, one a clip as it is done; the same command continues."),
    ] = None,
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="OUT", help="Write everything as JSON; - for stdout.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that score clips.")] = 1,
    crop: Annotated[
        bool, typer.Option(help="Compare the common beginning of recordings that differ in length by over 0.1 s.")
    ] = True,
    model: Model = "mini",
    official_config: OfficialConfig = None,
    device: Device = "cpu",
    dtype: DtypeOption = Dtype.float32,
    force: Force = False,
) -> None:
    """Score a model on clips, or recordings against others.

    With --manifest every clip goes through every bottleneck; prints means with 95 % intervals. With --reference and
    --degraded it compares two files, or two folders file by file, in mono at 16 kHz; what differs in length or lacks a
    counterpart is reported. Scores: SI-SDR, STFT
    and mel distance, PESQ (raw, narrow and wide band), STOI, ESTOI, and MOSNet where TAAE_MOSNET names its weights.
    """
    if (manifest is None) == (reference is None and degraded is None) or (reference is None) != (degraded is None):
        raise typer.BadParameter("give either --manifest, or --reference and --degraded")
    if json_path not in (None, STREAM):
        batch.check_folder(json_path)
        batch.split_existing([Job("", json_path)], force=force, skip_existing=False)
    if manifest is not None:
        report = _score_manifest(
            manifest, bottleneck, metric, results, workers, (model, official_config, device, dtype)
        )
    elif Path(str(reference)).is_dir() or Path(str(degraded)).is_dir():
        report = _score_folders(str(reference), str(degraded), metric, results, workers, crop)
    else:
        report = _score_pair(str(reference), str(degraded), metric, crop)
    if "summary" in report:
        lines = [line for name, entry in report["summary"].items() for line in _summary_lines(name, entry)]
    else:
        lines = [f"{name:15}{_number(value)}" for name, value in report["scores"].items()]
    if not metric:
        from taae.metrics import unavailable_metrics

        report["unavailable"] = unavailable_metrics()
        lines += [f"{name:15}{reason}" for name, reason in report["unavailable"].items()]
    failed = sum(entry["num_failed"] for entry in report.get("summary", {}).values())
    text = json.dumps(report, allow_nan=False, indent=2)
    if json_path not in (None, STREAM):
        from taae.files import write_atomic

        write_atomic(json_path, f"{text}\n".encode(), force=force)
    say(text if json_path == STREAM else "\n".join(lines))
    if failed:
        complain(f"{failed} of {len(report['rows'])} evaluations failed; the rows of --json say why")
        raise typer.Exit(1)


def _score_pair(reference: str, degraded: str, metrics: Sequence[str] | None, crop: bool) -> dict[str, Any]:
    from taae.metrics import check_metrics
    from taae.pairs import score_files

    row = score_files(reference, degraded, metrics or None, crop=crop)
    if "warning" in row:
        complain(row["warning"])
    names = check_metrics(metrics or None)
    scores = {name: row.pop(name) for name in names}
    return {"reference": reference, "degraded": degraded, "scores": scores, "reasons": {}, "cropped_samples": 0} | {
        key: value for key, value in row.items() if key not in ("bytes", "bits_per_second")
    }


def _score_folders(
    reference: str, degraded: str, metrics: Sequence[str] | None, results: Path | None, workers: int, crop: bool
) -> dict[str, Any]:
    from taae.evaluate import summarise
    from taae.pairs import MAX_CROP_S, evaluate_folders, match_folders

    pairs, alone = match_folders(reference, degraded)
    rows = evaluate_folders(
        reference, degraded, metrics=metrics or None, results_path=results, crop=crop, num_workers=workers
    )
    if alone:
        names = f"{', '.join(map(str, alone[:3]))}{' ...' if len(alone) > 3 else ''}"
        complain(f"scored {len(pairs)} pairs; left out for want of a counterpart ({len(alone)}): {names}")
    if cropped := [row for row in rows if "warning" in row]:
        complain(
            f"{len(cropped)} of {len(rows)} pairs differ in length by more than {MAX_CROP_S} s; their common beginning "
            f"was compared, first {cropped[0]['id']}"
        )
    unmatched = [str(path) for path in alone]
    return {
        **{"reference": reference, "degraded": degraded, "summary": summarise(rows)},
        **{"unmatched": unmatched, "rows": rows},
    }


def _score_manifest(
    manifest: Path,
    bottlenecks: Sequence[str] | None,
    metrics: Sequence[str] | None,
    results: Path | None,
    workers: int,
    codec_options: tuple[str, Path | None, str, Dtype],
) -> dict[str, Any]:
    from taae import evaluate
    from taae.cli_info import offered_bottlenecks

    clips = [(clip.id, clip.path) for clip in evaluate.read_manifest(manifest)]
    codec = load_codec(*codec_options, bottlenecks or ())
    bottlenecks = bottlenecks or [str(spec) for spec in offered_bottlenecks(codec.config)]
    rows = evaluate.evaluate(
        codec, clips, bottlenecks, results_path=results, metrics=metrics or None, num_workers=workers
    )
    return {"manifest": str(manifest), "model": codec.name, "summary": evaluate.summarise(rows), "rows": rows}


def _summary_lines(bottleneck: str, entry: dict[str, Any]) -> Iterable[str]:
    rate = f", {entry['bits_per_second']:.0f} bit/s" if entry["bits_per_second"] is not None else ""
    yield f"{bottleneck}: {entry['num_clips']} clips, {entry['seconds']:.1f} s{rate}"
    for name, value in entry.items():
        if isinstance(value, dict):
            yield f"  {name:15}{_number(value['mean'])}  ({value['low']:.3f} ... {value['high']:.3f})"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
