"""The verb `eval`: score a model on clips, or one recording against another."""

import json
import math
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
        str | None, typer.Option(metavar="AUDIO", help="What went in, to be compared with --degraded.")
    ] = None,
    degraded: Annotated[str | None, typer.Option(metavar="AUDIO", help="What came out.")] = None,
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
    model: Model = "mini",
    official_config: OfficialConfig = None,
    device: Device = "cpu",
    dtype: DtypeOption = Dtype.float32,
    force: Force = False,
) -> None:
    """Score a model on clips, or two recordings.

    With --manifest every clip goes through every bottleneck; prints means with 95 % intervals. With --reference and
    --degraded it compares two files of one sample rate and length. Scores: SI-SDR, STFT and mel distance, PESQ, STOI.
    """
    if (manifest is None) == (reference is None and degraded is None) or (reference is None) != (degraded is None):
        raise typer.BadParameter("give either --manifest, or --reference and --degraded")
    if json_path not in (None, STREAM):
        batch.check_folder(json_path)
        batch.split_existing([Job("", json_path)], force=force, skip_existing=False)
    if manifest is None:
        assert reference is not None and degraded is not None
        report: dict[str, Any] = {"reference": reference, "degraded": degraded} | _score_pair(
            reference, degraded, metric
        )
        lines, failed = [f"{name:15}{_number(value)}" for name, value in report["scores"].items()], 0
    else:
        report = _score_manifest(manifest, bottleneck, metric, results, (model, official_config, device, dtype))
        lines = [line for name, entry in report["summary"].items() for line in _summary_lines(name, entry)]
        failed = sum(entry["num_failed"] for entry in report["summary"].values())
    text = json.dumps(report, allow_nan=False, indent=2)
    if json_path not in (None, STREAM):
        from taae.files import write_atomic

        write_atomic(json_path, f"{text}\n".encode(), force=force)
    say(text if json_path == STREAM else "\n".join(lines))
    if failed:
        complain(f"{failed} of {len(report['rows'])} evaluations failed; the rows of --json say why")
        raise typer.Exit(1)


def _score_pair(reference: str, degraded: str, metrics: Sequence[str] | None) -> dict[str, Any]:
    from taae.audio import load_wav, to_mono
    from taae.metrics import score

    (target, rate_hz), (estimate, degraded_hz) = load_wav(reference), load_wav(degraded)
    if rate_hz != degraded_hz:
        raise ValueError(f"{reference} has {rate_hz} Hz, {degraded} has {degraded_hz}; they must have the same")
    reasons: dict[str, str] = {}
    scores = score(to_mono(target), to_mono(estimate), rate_hz, metrics or None, reasons=reasons)
    return {"scores": {k: v if math.isfinite(v) else None for k, v in scores.items()}, "reasons": reasons}


def _score_manifest(
    manifest: Path,
    bottlenecks: Sequence[str] | None,
    metrics: Sequence[str] | None,
    results: Path | None,
    codec_options: tuple[str, Path | None, str, Dtype],
) -> dict[str, Any]:
    from taae import evaluate
    from taae.cli_info import offered_bottlenecks

    clips = [(clip.id, clip.path) for clip in evaluate.read_manifest(manifest)]
    codec = load_codec(*codec_options, bottlenecks or ())
    bottlenecks = bottlenecks or [str(spec) for spec in offered_bottlenecks(codec.config)]
    rows = evaluate.evaluate(codec, clips, bottlenecks, results_path=results, metrics=metrics or None)
    return {"manifest": str(manifest), "model": codec.name, "summary": evaluate.summarise(rows), "rows": rows}


def _summary_lines(bottleneck: str, entry: dict[str, Any]) -> Iterable[str]:
    rate = f", {entry['bits_per_second']:.0f} bit/s" if entry["bits_per_second"] is not None else ""
    yield f"{bottleneck}: {entry['num_clips']} clips, {entry['seconds']:.1f} s{rate}"
    for name, value in entry.items():
        if isinstance(value, dict):
            yield f"  {name:15}{_number(value['mean'])}  ({value['low']:.3f} ... {value['high']:.3f})"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
