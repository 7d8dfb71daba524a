"""The verb `train`: run a recipe, on one processor or, under torchrun, on many."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Option(metavar="FILE", help="Recipe in TOML, such as taae/recipes/mini-first.toml.")],
    run: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the run: checkpoints, log, and the model.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in DIR.")] = False,
    shared: Annotated[
        Path, typer.Option(metavar="DIR", envvar="TAAE_SHARED", help="Where the recipe's manifest is.")
    ] = Path("../shared"),
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto for a GPU where there is one.")] = "auto",
) -> None:
    """Train a model from a recipe.

    On many GPUs and nodes: torchrun --nproc-per-node 8 -m taae.cli -- train --config FILE --run DIR (mind the --).

    Ctrl-C stops after the step at hand, with a checkpoint. tensorboard --logdir DIR shows losses, audio, spectrograms.
    """
    from taae.distributed import open_world
    from taae.train import load_config
    from taae.train import train as run_training

    recipe = load_config(config)
    with open_world(device) as world:
        run_training(recipe, run, shared, resume=resume, world=world)
