"""The `taae` command. Each verb is a few lines over the library, which is imported only when a verb needs it."""

import io
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from taae import __version__
from taae.batch import STREAM
from taae.cli_convert import compress, decode, decompress, encode
from taae.cli_corpus import data_shards, encode_dataset
from taae.cli_eval import evaluate
from taae.cli_export import export
from taae.cli_options import Dtype, DtypeOption, Force, Model, OfficialConfig, load_codec, read_bytes, refuse_terminals
from taae.cli_output import complain, explain, say
from taae.cli_stream import stream
from taae.cli_train import train

logger = logging.getLogger("taae.cli")  # __name__ is "__main__" under `python -m`

_USAGE_ERROR: Any = typer.BadParameter.__base__  # UsageError of click, or of the copy of it that newer typers carry

EPILOG = """
IN and OUT are files, folders (the tree is kept, one bad file does not stop the others) or - for stdin and stdout.
Results go to stdout, everything else to stderr, an error in one line.

\b
Exit codes:
    0  all done
    1  a file, a model or a clip failed; the others were done
    2  the command line makes no sense
  130  interrupted (Ctrl-C); files that were done stay, no half file is left
  141  the reader of stdout went away
  143  terminated
"""

app = typer.Typer(
    name="taae",
    help="Speech at 400 to 1000 bit/s with the Transformer Audio AutoEncoder.",
    epilog=EPILOG,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (compress, decompress, encode, decode, stream, export, encode_dataset, data_shards):
    app.command()(verb)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"taae {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Log what happens, with a traceback for every error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        logging.getLogger("taae").setLevel(logging.DEBUG)


@app.command()
def info(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="A .taae or token file, -, a model folder or a model's name.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Say what a file or a model is: sizes, bits, rates."""
    from taae import cli_info

    is_file = source == STREAM or (os.path.exists(source) and not os.path.isdir(source))
    if is_file:
        refuse_terminals(source)
        try:
            record = cli_info.describe_bytes(read_bytes(source))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    elif source.endswith((".taae", ".npz")):
        raise FileNotFoundError(f"no such file: {source}")
    else:
        record = cli_info.describe_model(source)
    record = {"source": source} | record
    say(json.dumps(record) if as_json else "\n".join(cli_info.table(record)))


app.command(name="eval")(evaluate)


app.command()(train)


@app.command()
def convert(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The new model folder.")],
    model: Model = "mini",
    official_config: OfficialConfig = None,
    dtype: DtypeOption = Dtype.float32,
    force: Force = False,
) -> None:
    """Write a model as a folder of its own: a published checkpoint, or a trained one in a smaller number format.

    Of a half-precision folder the matrices are rounded; it runs in float32 all the same.
    """
    import torch

    from taae.batch import check_folder
    from taae.checkpoint import save_model

    if dtype is Dtype.int8:
        raise typer.BadParameter("a folder holds float32, bfloat16 or float16; int8 is made when a model is loaded")
    check_folder(str(out))
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists; choose another name, or --force to overwrite it")
    codec = load_codec(model, official_config, "cpu", Dtype.float32)
    save_model(codec.model, out, getattr(torch, dtype.value))
    say(f"{out}: {codec.name}, {sum(file.stat().st_size for file in out.iterdir()) / 1e6:.1f} MB")


def main() -> None:
    """Run the `taae` command on `sys.argv` and end the process with an exit code (see `taae --help`)."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported: idle threads sleep, not spin
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="backslashreplace")  # file names need not be valid text
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that temporary files are removed
    logging.basicConfig(format="taae: %(message)s", level=logging.WARNING)
    try:
        code = _invoke(sys.argv[1:])
        sys.stdout.flush()
    except OSError as error:  # stdout is a closed pipe or a full disk
        if not isinstance(error, BrokenPipeError):
            complain(explain(error))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left has to go somewhere at exit
        code = 141 if isinstance(error, BrokenPipeError) else 1
    except KeyboardInterrupt:
        print("taae: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def _invoke(arguments: list[str]) -> int:
    try:
        with typer.main.get_command(app).make_context("taae", arguments) as context:
            context.command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except Exception as error:
        usage: Any = error
        if isinstance(error, _USAGE_ERROR):
            command = usage.ctx.command_path if usage.ctx else "taae"
            complain(f"{' '.join(usage.format_message().split())} (see {command} --help)")
            return 2
        complain(explain(error))
        logger.debug("traceback", exc_info=error)
        return 1
    return 0


if __name__ == "__main__":
    main()
