"""Checkpoints of a run, which any number of processes can write and any other number read.

`checkpoints/step-00001000` appears whole or not at all, and older ones go only when a newer one is there.
"""

import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from taae.distributed import World

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8,})")


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints in a folder, oldest first."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which it was written."""
    return int(checkpoint.name.removeprefix("step-"))


def save_checkpoint(folder: Path, step: int, state: dict[str, Tensor], world: World, *, keep: int) -> None:
    """Write a checkpoint and remove all but the newest `keep`. Every process calls it with its share of the state.

    Raises:
        OSError: If it cannot be written, for instance because the disk is full; those that were there stay.
    """
    finished, temporary = folder / f"step-{step:08d}", folder / "unfinished"
    problem = None
    try:
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            temporary.mkdir(parents=True)
        world.wait()
        with _without_warnings():
            dcp.save(state, checkpoint_id=temporary, no_dist=world.size == 1)
        if world.is_main:
            shutil.rmtree(finished, ignore_errors=True)
            os.replace(temporary, finished)
            _sync(folder)
    except (dcp.CheckpointException, OSError) as error:
        problem = _cause(error)
    # All of them, or those that wait for the others would wait for ever.
    if world.any(problem is not None):
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        kept, free_gb = checkpoints(folder), shutil.disk_usage(folder).free / 1e9
        last = f"the last good one is {kept[-1]}" if kept else "there is none yet"
        raise OSError(
            f"the checkpoint of step {step} could not be written to {folder}, where {free_gb:.1f} GB are free: "
            f"{problem or 'see the other processes'}; {last}. Make room and continue with --resume"
        )
    if world.is_main:
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)


def checkpoint_sizes(checkpoint: Path) -> dict[str, torch.Size]:
    """Size of every tensor in a checkpoint, by name.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        metadata = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    except Exception as error:  # it is a pickle, which fails in many ways
        raise ValueError(f"{checkpoint} is damaged ({error!r}); delete it to continue from the one before") from None
    return {name: entry.size for name, entry in metadata.items() if isinstance(entry, TensorStorageMetadata)}


def load_checkpoint(checkpoint: Path, state: dict[str, Tensor], world: World) -> None:
    """Fill the tensors of `state` from a checkpoint that has exactly these.

    Raises:
        ValueError: If names or sizes differ, or it is damaged; the text names the first.
    """
    held = checkpoint_sizes(checkpoint)
    for kind, names in (("lacks", set(state) - set(held)), ("has an unknown", set(held) - set(state))):
        if names:
            raise ValueError(
                f"{checkpoint} {kind} {sorted(names)[0]} ({len(names)} such); it was written by another recipe: "
                "continue with that one, or start a new run with init"
            )
    wrong = [name for name, value in state.items() if value.shape != held[name]]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{checkpoint}: {name} is {tuple(held[name])}, the recipe's model has {tuple(state[name].shape)}; "
            "continue with the recipe that wrote it, or start a new run"
        )
    try:
        with _without_warnings():
            dcp.load(state, checkpoint_id=checkpoint, no_dist=world.size == 1)
    except dcp.CheckpointException as error:
        raise ValueError(
            f"{checkpoint} is damaged ({_cause(error)}); delete it to continue from the one before"
        ) from None


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # Said even where one process is what was asked for.
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


def _cause(error: BaseException) -> str:
    if isinstance(error, dcp.CheckpointException):
        failures = list(error.failures.values())
        return f"{failures[0][0]!r}" if failures else repr(error)
    return str(error)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # else a power cut can undo the rename
    finally:
        os.close(descriptor)
