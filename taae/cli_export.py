"""The verb `export`: a model for programs without torch."""

from pathlib import Path
from typing import Annotated

import typer

from taae.cli_options import Dtype, Force, Model, OfficialConfig, load_codec
from taae.cli_output import say


def export(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Gets encoder.onnx and decoder.onnx.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="The format; the only one so far.")] = False,
    model: Model = "mini",
    official_config: OfficialConfig = None,
    force: Force = False,
) -> None:
    """Write both halves of a model as ONNX, float32, for any batch and length.

    The encoder takes wav (b, 1, n) and gives latents before tanh; the decoder takes codes in [-1, 1] and gives wav.
    """
    if not onnx:
        raise typer.BadParameter("name the format: --onnx")
    from taae.batch import check_folder
    from taae.export import export_onnx

    check_folder(str(out))
    for path in export_onnx(load_codec(model, official_config, "cpu", Dtype.float32), out, force=force).values():
        say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
