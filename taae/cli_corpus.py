"""The verbs for whole corpora: encode-dataset, data-shards."""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from taae.cli_options import Bottleneck, Device, Dtype, DtypeOption, Force, Model, OfficialConfig
from taae.cli_output import complain, say


class Engine(StrEnum):
    """Who runs the shards."""

    local = "local"
    ray = "ray"
    slurm = "slurm"


class TokenFormat(StrEnum):
    """What a shard of tokens is."""

    parquet = "parquet"
    webdataset = "webdataset"


def encode_dataset(
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="JSON lines (.jsonl, .jsonl.gz) with id, path and seconds.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the shards; made where it is missing.")],
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only this shard, 0/N to N-1/N; otherwise all.")
    ] = None,
    num_shards: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Number of shards, 1 by default; 10 hours each do well.")
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="This process; Ray (RAY_ADDRESS or here); or write a script for Slurm.")
    ] = Engine.local,
    bottleneck: Bottleneck = "2x5^6",
    file_format: Annotated[TokenFormat, typer.Option("--format", help="What to write.")] = TokenFormat.parquet,
    batch_seconds: Annotated[
        float, typer.Option(min=0, help="Audio of clips of one length that share a pass; 0 takes every clip alone.")
    ] = 120.0,
    cpus: Annotated[int, typer.Option(min=1, help="Cores a shard, with --engine ray and slurm.")] = 2,
    model: Model = "mini",
    official_config: OfficialConfig = None,
    device: Device = "cpu",
    dtype: DtypeOption = Dtype.float32,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a shard.")] = False,
) -> None:
    """Turn a corpus into shards of tokens, on one machine or many.

    Finished shards are skipped, so the same command goes on after a crash; a shard that was stopped starts again.
    Inputs that cannot be read are left out and listed in the sidecar, shard-....json. `taae.corpus.read_tokens` reads
    the result. The encoder runs in float32 unless --dtype says otherwise; the sidecar names it.
    """
    from taae import engines
    from taae.corpus import CorpusConfig
    from taae.manifest import Shard

    if shard is not None and (num_shards is not None or engine is not Engine.local):
        raise typer.BadParameter("--shard names one part, for the engine local and without --num-shards")
    try:
        one = None if shard is None else Shard.parse(shard)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--shard") from None
    source = engines.EncoderSource(model, official_config, device, dtype.value)
    config = CorpusConfig(
        manifest=manifest,
        out=out,
        num_shards=one.count if one else num_shards or 1,
        bottleneck=bottleneck,
        file_format=file_format.value,
        batch_s=batch_seconds,
        encoder_dtype=dtype.value,
    )
    if engine is Engine.slurm:
        script = engines.write_sbatch(source, config, cpus=cpus, force=force)
        say(json.dumps({"script": str(script)}) if as_json else f"sbatch {script}")
        return
    shards = [one] if one else [Shard(index, config.num_shards) for index in range(config.num_shards)]
    records = (
        engines.run_ray(source, config, shards, cpus=cpus, force=force)
        if engine is Engine.ray
        else engines.run_local(source, config, shards, force=force)
    )
    if not all([_report(record, as_json) for record in records]):
        raise typer.Exit(1)


def _report(record: dict[str, Any], as_json: bool) -> bool:
    """Print what became of a shard; whether it is finished."""
    if as_json:
        say(json.dumps(record))
    if "error" in record:
        complain(f"shard {record['shard']}: {record['error']}")
        return False
    if not as_json:
        state = "was finished" if record["is_skipped"] else "done"
        failed = f", {len(record['failed'])} inputs could not be read" if record["failed"] else ""
        say(
            f"shard {record['shard']} {state}: {record['num_clips']} clips, {record['seconds'] / 3600:.2f} h, "
            f"{record['num_frames']} frames{failed}"
        )
    return True


def data_shards(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A manifest (JSON lines), or a folder of .tar files to index.")
    ],
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Folder of the shards; not for a folder of .tar files.")
    ] = None,
    num_shards: Annotated[int, typer.Option(metavar="N", min=1, help="1 GB each is a good size.")] = 1,
    max_failed_share: Annotated[
        float, typer.Option(min=0, max=1, help="More clips of a shard that cannot be read are an error.")
    ] = 0.01,
) -> None:
    """Make WebDataset shards for training, or index those that exist.

    A recipe then names the folder as its manifest. Every clip is decoded once, to find broken ones and its loudness.
    Shards that are done are kept, so the same command goes on after a crash.
    """
    from taae.shards import build_shards, index_folder

    show_progress = os.isatty(2)
    if source.is_dir():
        if out is not None:
            raise typer.BadParameter(
                f"{source} is a folder, whose .tar files are indexed where they are; leave out OUT"
            )
        index_folder(source, max_failed_share=max_failed_share, show_progress=show_progress)
        out = source
    elif out is None:
        raise typer.BadParameter("a manifest needs OUT, the folder of the shards")
    else:
        build_shards(source, out, num_shards, max_failed_share=max_failed_share, show_progress=show_progress)
    indices = [json.loads(path.read_text()) for path in sorted(out.glob("*.index.json"))]
    say(
        f"{out}: {len(indices)} shards, {sum(index['num_clips'] for index in indices)} clips, "
        f"{sum(index['seconds'] for index in indices) / 3600:.2f} h, "
        f"{sum(len(index['failed']) for index in indices)} could not be read"
    )
