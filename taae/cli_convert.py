"""The verbs that turn files into files: compress, decompress, encode, decode."""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from taae import batch
from taae.batch import STREAM, Job, Progress
from taae.cli_options import (
    AudioIn,
    AudioOut,
    Bottleneck,
    Device,
    Dtype,
    DtypeOption,
    Force,
    Format,
    Json,
    Model,
    OfficialConfig,
    SkipExisting,
    TaaeIn,
    TaaeOut,
    TokensIn,
    TokensOut,
    load_codec,
    read_bytes,
    refuse_terminals,
)
from taae.cli_output import complain, explain, say

if TYPE_CHECKING:
    from taae.codec import Codec

logger = logging.getLogger(__name__)


def compress(
    source: AudioIn,
    target: TaaeOut,
    bottleneck: Bottleneck = "2x5^6",
    entropy: Annotated[bool, typer.Option("--entropy", help="Use a range coder where that is smaller.")] = False,
    model: Model = "mini",
    official_config: OfficialConfig = None,
    device: Device = "cpu",
    dtype: DtypeOption = Dtype.float32,
    force: Force = False,
    skip_existing: SkipExisting = False,
    as_json: Json = False,
) -> None:
    """Compress audio to .taae files.

    Channels are averaged; sample rate, length and loudness come back with `decompress`. In --json, bits_per_second is
    that of the tokens, and compression_ratio compares the whole file with 16-bit mono PCM.
    """
    jobs = _plan(source, target, _audio_suffixes(), ".taae", force, skip_existing, as_json)

    def convert(name: str, progress: Progress) -> tuple[bytes, dict[str, Any]]:
        from taae.cli_info import describe_taae

        data = _compress(codec, name, bottleneck, progress, entropy=entropy)
        return data, describe_taae(data)

    codec = load_codec(model, official_config, device, dtype, [bottleneck])
    _run(jobs, convert, force, as_json)


def decompress(
    source: TaaeIn,
    target: AudioOut,
    file_format: Format = None,
    model: Model = "mini",
    official_config: OfficialConfig = None,
    device: Device = "cpu",
    dtype: DtypeOption = Dtype.float32,
    force: Force = False,
    skip_existing: SkipExisting = False,
    as_json: Json = False,
) -> None:
    """Decode .taae files to audio.

    It is mono, with the sample rate, the exact length and the loudness of what was compressed.
    """
    file_format = _audio_format(source, target, file_format)
    jobs = _plan(source, target, [".taae"], f".{file_format}", force, skip_existing, as_json)

    def convert(name: str, progress: Progress) -> tuple[BinaryIO, dict[str, Any]]:
        from taae.cli_info import describe_taae

        data = read_bytes(name)
        return _decompress(codec, data, file_format, describe_taae(data), progress)

    codec = load_codec(model, official_config, device, dtype)
    _run(jobs, convert, force, as_json)


def encode(
    source: AudioIn,
    target: TokensOut,
    bottleneck: Bottleneck = "2x5^6",
    model: Model = "mini",
    official_config: OfficialConfig = None,
    device: Device = "cpu",
    dtype: DtypeOption = Dtype.float32,
    force: Force = False,
    skip_existing: SkipExisting = False,
    as_json: Json = False,
) -> None:
    """Turn audio into token files (.npz).

    They are the tokens that `compress` stores. A file holds the arrays tokens (int64, frames x stages), bottleneck,
    model_id, sample_rate_hz, num_samples and gain_db.
    """
    jobs = _plan(source, target, _audio_suffixes(), ".npz", force, skip_existing, as_json)

    def convert(name: str, progress: Progress) -> tuple[bytes, dict[str, Any]]:
        from taae.bitstream import unpack
        from taae.cli_info import describe_tokens
        from taae.token_file import dump_tokens

        data = dump_tokens(*unpack(_compress(codec, name, bottleneck, progress)))
        return data, describe_tokens(data)

    codec = load_codec(model, official_config, device, dtype, [bottleneck])
    _run(jobs, convert, force, as_json)


def decode(
    source: TokensIn,
    target: AudioOut,
    file_format: Format = None,
    model: Model = "mini",
    official_config: OfficialConfig = None,
    device: Device = "cpu",
    dtype: DtypeOption = Dtype.float32,
    force: Force = False,
    skip_existing: SkipExisting = False,
    as_json: Json = False,
) -> None:
    """Decode token files to audio, as `decompress`."""
    file_format = _audio_format(source, target, file_format)
    jobs = _plan(source, target, [".npz"], f".{file_format}", force, skip_existing, as_json)

    def convert(name: str, progress: Progress) -> tuple[BinaryIO, dict[str, Any]]:
        from taae.bitstream import pack
        from taae.cli_info import describe_tokens
        from taae.token_file import parse_tokens

        data = read_bytes(name)
        return _decompress(codec, pack(*parse_tokens(data)), file_format, describe_tokens(data), progress)

    codec = load_codec(model, official_config, device, dtype)
    _run(jobs, convert, force, as_json)


def _plan(
    source: str,
    target: str,
    suffixes: Iterable[str],
    target_suffix: str,
    force: bool,
    skip_existing: bool,
    as_json: bool,
) -> tuple[list[Job], list[Job]]:
    if force and skip_existing:
        raise typer.BadParameter("--force and --skip-existing exclude each other")
    if target == STREAM and as_json:
        raise typer.BadParameter("--json and the output - both want stdout")
    refuse_terminals(source, target)
    jobs = batch.plan(source, target, suffixes=suffixes, target_suffix=target_suffix)
    return batch.split_existing(jobs, force=force, skip_existing=skip_existing)


def _audio_suffixes() -> list[str]:
    from taae.audio import FORMATS

    return [f".{name}" for name in FORMATS]


def _audio_format(source: str, target: str, chosen: str | None) -> str:
    from taae.audio import FORMATS

    is_file = target != STREAM and not os.path.isdir(source)
    name = (chosen or (Path(target).suffix[1:] if is_file else "wav")).lower()
    if name not in FORMATS:
        raise typer.BadParameter(
            f"cannot write audio as {name!r}; choose one of {', '.join(FORMATS)}", param_hint="OUT"
        )
    return name


def _compress(codec: "Codec", source: str, bottleneck: str, progress: Progress, *, entropy: bool = False) -> bytes:
    from taae.audio import load_wav

    if source != STREAM:
        return codec.compress_file(source, bottleneck, entropy=entropy, progress=progress)
    wav, sample_rate_hz = load_wav(read_bytes(STREAM))
    return codec.compress(wav, bottleneck, sample_rate_hz=sample_rate_hz, entropy=entropy, progress=progress)


def _decompress(
    codec: "Codec", data: bytes, file_format: str, record: dict[str, Any], progress: Progress
) -> tuple[BinaryIO, dict[str, Any]]:
    from taae.audio import encode_blocks

    blocks = (block[None] for block in codec.decompress_blocks(data, progress=progress))
    file = encode_blocks(blocks, record["sample_rate_hz"], file_format)
    output_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    return file, record | {"output_bytes": output_bytes}


def _run(plan: tuple[list[Job], list[Job]], convert: batch.Convert, force: bool, as_json: bool) -> None:
    """Do the jobs, print what became of each, and fail at the end if one of them failed."""
    jobs, skipped = plan
    failed = 0
    for job in skipped:
        if as_json:
            say(json.dumps({"input": job.source, "output": job.target, "is_skipped": True}))
    for outcome in batch.run(jobs, convert, force=force):
        record = {"input": outcome.job.source, "output": outcome.job.target} | outcome.record
        if outcome.error is not None:
            failed += 1
            record["error"] = explain(outcome.error)
            place = "stdin" if outcome.job.source == STREAM else outcome.job.source
            complain(record["error"] if place in record["error"] else f"{place}: {record['error']}")
            logger.debug("traceback", exc_info=outcome.error)
        if as_json:
            say(json.dumps(record))
        elif not failed and len(jobs) == 1 and outcome.job.target != STREAM:
            say(f"{outcome.job.target}: {_sizes(record)}")
    if len(jobs) + len(skipped) > 1 and not as_json:
        say(f"{len(jobs) - failed} files written, {len(skipped)} skipped, {failed} failed")
    if failed:
        raise typer.Exit(1)


def _sizes(record: dict[str, Any]) -> str:
    shape = "x".join(map(str, record["tokens_shape"]))
    return f"{record['seconds']:.2f} s, {shape} tokens of {record['bottleneck']}, {record['bits_per_second']:.0f} bit/s"
