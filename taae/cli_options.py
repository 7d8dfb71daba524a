"""Options that several verbs of the `taae` command share, and the codec that they choose."""

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taae.batch import STREAM

if TYPE_CHECKING:
    from taae.codec import Codec


class Dtype(StrEnum):
    """Number formats a model can run in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"


def check_bottleneck(text: str) -> str:
    """Parse an option whose mistakes are the command line's."""
    from taae.config import BottleneckSpec

    try:
        return str(BottleneckSpec.parse(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _check_token_bottleneck(text: str) -> str:
    if text == "continuous":
        raise typer.BadParameter("a continuous bottleneck has no tokens to store; choose one such as 2x5^6")
    return check_bottleneck(text)


AudioIn = Annotated[str, typer.Argument(metavar="IN", help="Audio (wav, flac, ogg, opus, mp3), a folder of it, or -.")]
AudioOut = Annotated[
    str, typer.Argument(metavar="OUT", help="Audio file, its suffix names the format; a folder, or -.")
]
TaaeIn = Annotated[str, typer.Argument(metavar="IN", help="A .taae file, a folder of them, or -.")]
TaaeOut = Annotated[str, typer.Argument(metavar="OUT", help="The .taae file, a folder, or -.")]
TokensIn = Annotated[str, typer.Argument(metavar="IN", help="A token file (.npz), a folder of them, or -.")]
TokensOut = Annotated[str, typer.Argument(metavar="OUT", help="The token file (.npz), a folder, or -.")]
Bottleneck = Annotated[
    str,
    typer.Option(
        parser=_check_token_bottleneck,
        metavar="KxL^D",
        help="Stages x levels ^ dimensions: 1x6^6 is 400 bit/s, 1x17^6 625, 2x5^6 700, 4x3^6 1000.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="NAME", help="wav, flac, ogg, opus or mp3; otherwise OUT's suffix, wav for a folder or -."
    ),
]
Model = Annotated[str, typer.Option(metavar="NAME", help="Embedded model, model folder or preset.")]
OfficialConfig = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="model_config.json of a published checkpoint; --model then names its weights."),
]
Device = Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1 ...")]
DtypeOption = Annotated[
    Dtype,
    typer.Option("--dtype", help="For decoding: all but float32 change tokens, and files say so. int8 runs on a CPU."),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite.")]
SkipExisting = Annotated[
    bool, typer.Option("--skip-existing", help="Leave out what is there already, to continue a run.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a file.")]


def load_codec(
    model: str, official_config: Path | None, device: str, dtype: Dtype, bottlenecks: Sequence[str] = ()
) -> "Codec":
    """The codec, after a check that it has the dimensions of `bottlenecks`: once, not for each file of a folder."""
    import taae
    from taae.config import BottleneckSpec

    if official_config is None:
        codec = taae.load(model, device=device, dtype=dtype.value)
    else:
        codec = taae.load_official(official_config, model, device=device, dtype=dtype.value)
    for spec in map(BottleneckSpec.parse, bottlenecks):
        if not spec.is_continuous and spec.dim != codec.config.latent_dim:
            raise ValueError(f"bottleneck {spec} has {spec.dim} dimensions, {codec.name} has {codec.config.latent_dim}")
    return codec


def refuse_terminals(source: str, target: str = "") -> None:
    """Stop before bytes are read from, or written to, a terminal."""
    if source == STREAM and sys.stdin.isatty():
        raise typer.BadParameter("- reads stdin, which is a terminal; pipe a file into it")
    if target == STREAM and sys.stdout.isatty():
        raise typer.BadParameter("- writes bytes to stdout, which is a terminal; pipe it or name a file")


def read_bytes(source: str) -> bytes:
    """A file, or stdin."""
    return sys.stdin.buffer.read() if source == STREAM else Path(source).read_bytes()
