"""The training loop: one page, for one process or many, resumable at every checkpoint.

`taae train --config FILE` runs it; `trainer` knows what a step does. The loop decides when to log, save and stop.
"""

import dataclasses
import json
import logging
import math
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType

from taae.distributed import ALONE, World
from taae.model import num_parameters
from taae.monitor import Monitor
from taae.recipe import TrainConfig, learning_rate_factor, load_config, model_config
from taae.trainer import Trainer
from taae.training_state import checkpoints

__all__ = ["TrainConfig", "Trainer", "learning_rate_factor", "load_config", "model_config", "train"]

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    run: Path,
    shared: Path,
    *,
    resume: bool = False,
    stop_after_s: float = math.inf,
    world: World = ALONE,
) -> None:
    """Train to the end (or for `stop_after_s` seconds), with a checkpoint every `steps_per_checkpoint` steps.

    SIGINT (Ctrl-C) and SIGTERM end it after the step at hand, with a checkpoint; a second one ends it at once.

    Raises:
        ValueError: If the run folder already holds a run and `resume` is false, or the recipe does not fit.
        RuntimeError: If a loss or a gradient stops being finite.
        OSError: If a checkpoint cannot be written; the last good one stays.
        KeyboardInterrupt: After SIGINT.
    """
    _check_folder(run, resume)
    trainer = Trainer(config, run, shared, world)
    run.mkdir(parents=True, exist_ok=True)
    if resume and not trainer.restore():
        logger.warning("%s holds no checkpoint; training starts from the beginning", run)
    if world.is_main:
        _store_recipe(config, run, trainer.step)
    started, saved = time.monotonic(), -1
    title = f"{num_parameters(trainer.model) / 1e6:.1f}M"
    with StopRequest() as stop, Monitor(run, config, world, trainer.step, title) as monitor:
        while trainer.step < config.num_steps:
            if world.any(stop.signal != 0 or time.monotonic() - started >= stop_after_s):
                break
            if trainer.step % config.steps_per_sample == 0:
                _show(trainer, monitor)
            numbers = trainer.train_step()
            monitor.add(trainer.step, numbers)
            if trainer.step % config.steps_per_checkpoint == 0:
                trainer.save()
                saved = trainer.step
        if saved < trainer.step:
            trainer.save()
        if trainer.step == config.num_steps:
            _show(trainer, monitor)
    stop.resume()


def _show(trainer: Trainer, monitor: Monitor) -> None:
    wav, decoded = trainer.example()
    monitor.add_example(trainer.step, wav, decoded, trainer.sample_rate_hz)
    maps, frequencies_hz = trainer.sensitivity(wav, decoded)
    if maps:
        monitor.add_sensitivity(trainer.step, maps, frequencies_hz)


class StopRequest:
    """Notes SIGINT and SIGTERM instead of dying of them, until a second one comes.

    Attributes:
        signal: Number of the first signal, 0 as long as there is none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before = {}

    def __enter__(self) -> "StopRequest":
        # Only the main thread may; elsewhere, as in a notebook's worker, whoever started the thread decides.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._give_back()

    def resume(self) -> None:
        """Do what the signal asked for.

        Raises:
            KeyboardInterrupt: After SIGINT.
            SystemExit: After SIGTERM.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal:
            sys.exit(128 + self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._give_back()
        logger.warning("stopping after this step, with a checkpoint")

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _check_folder(run: Path, resume: bool) -> None:
    found = checkpoints(run / "checkpoints")
    if found and not resume:
        raise ValueError(f"{run} already holds a run; continue it with --resume or choose another folder")
    if (run / "model").exists() and not found:
        raise ValueError(
            f"{run} holds a model, but no checkpoint to continue from; choose another folder for a new run, which "
            f'init = "{run}" would start from this model'
        )


def _store_recipe(config: TrainConfig, run: Path, step: int) -> None:
    """Keep the recipe beside the run, and say what differs from that of the steps before."""
    recipe, stored = json.dumps(dataclasses.asdict(config), indent=2) + "\n", run / "config.json"
    if step and stored.is_file():
        before, now = json.loads(stored.read_text()), json.loads(recipe)
        if changed := [key for key in now if now[key] != before.get(key)]:
            logger.warning("the recipe has changed since step %d: %s", step, ", ".join(changed))
    stored.write_text(recipe)
