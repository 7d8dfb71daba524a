"""What a run tells while it runs: log.jsonl, a progress line, TensorBoard, and sensitivity maps of its discriminator.

`python -m workbench.health RUN` turns the log and the maps into a page.
"""

import importlib.util
import json
import logging
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from taae.audio import save_wav
from taae.distributed import World
from taae.recipe import TrainConfig

logger = logging.getLogger(__name__)

_DYNAMIC_RANGE_DB = 80.0


class Monitor:
    """Collects the numbers of steps, and writes their means every `steps_per_log` steps; only the first process writes.

    Rows of the log that lie after `step` belong to a process that was killed before its checkpoint; they are removed.

    Args:
        run: Folder of the run.
        config: Of the run.
        world: The processes of the run.
        step: Steps done before.
        title: Shown before the progress bar.
    """

    def __init__(self, run: Path, config: TrainConfig, world: World, step: int, title: str) -> None:
        self.run, self.config, self.world, self._first_step = run, config, world, step
        self._started = time.monotonic()
        self._sums: dict[str, tuple[float, int]] = {}
        self._bar = tqdm(
            total=config.num_steps, initial=step, desc=title, unit="step", disable=not world.is_main, dynamic_ncols=True
        )
        self._log, self._board = None, None
        if world.is_main:
            _drop_rows_after(run / "log.jsonl", step)
            self._log = (run / "log.jsonl").open("a")
            self._board = _open_board(run / "tensorboard", step)

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._bar.close()
        if self._log:
            self._log.close()
        if self._board:
            self._board.close()

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Count the numbers of step number `step` (from 1). All processes must agree on the names."""
        for name, value in numbers.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, count + 1
        self._bar.update()
        if step % self.config.steps_per_log == 0:
            self._write(step)

    def _write(self, step: int) -> None:
        means = self.world.mean({name: total / count for name, (total, count) in sorted(self._sums.items())})
        self._sums = {}
        if self._log is None:
            return
        config, elapsed = self.config, time.monotonic() - self._started
        seconds = config.data.batch_size * config.micro_batches * config.data.segment_s
        speed = (step - self._first_step) * seconds / elapsed
        # Nine digits hold a float32 exactly, so that two logs can be compared to the bit.
        row = {"step": step} | {name: float(f"{value:.9g}") for name, value in means.items()}
        row |= {"audio_per_s": round(speed, 1), "elapsed_s": round(elapsed, 1)}
        self._log.write(json.dumps(row) + "\n")
        self._log.flush()
        shown = {name: f"{value:.3g}" for name, value in means.items() if "/" not in name}
        self._bar.set_postfix(shown | {"audio-s/s": f"{speed:.1f}"})
        if self._board:
            for name, value in row.items():
                self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def add_example(
        self, step: int, wav: Float[Tensor, "1 1 n"], decoded: Float[Tensor, "1 1 n"], sample_rate_hz: int
    ) -> None:
        """Show one recording and what the model makes of it: to listen to, and as spectrograms."""
        if self._board is None:
            return
        for name, example in (("original", wav), ("decoded", decoded)):
            example = example[0, 0].float().cpu()
            self._board.add_audio(name, example.clamp(-1, 1)[None], step, sample_rate_hz)
            self._board.add_image(name, spectrogram_image(example), step)

    def add_sensitivity(self, step: int, maps: dict[str, np.ndarray], frequencies_hz: np.ndarray) -> None:
        """Keep how much losses depend on each bin of the example (Eq. 12): maps are (f, t)."""
        if not self.world.is_main:
            return
        folder = self.run / "sensitivity"
        folder.mkdir(exist_ok=True)
        temporary = folder / ".unfinished.npz"
        np.savez_compressed(
            temporary,
            frequencies_hz=frequencies_hz.astype(np.float32),
            **{name: values.astype(np.float32) for name, values in maps.items()},  # pyright: ignore[reportArgumentType]
        )
        os.replace(temporary, folder / f"step-{step:08d}.npz")
        if self._board:
            for name, values in maps.items():
                self._board.add_image(f"sensitivity/{name}", _image(torch.from_numpy(values).float()), step)


def spectrogram_image(wav: Float[Tensor, " n"]) -> Float[Tensor, "1 f t"]:
    """Grey levels of a log spectrogram, low frequencies below, the loudest bin white and 80 dB less black."""
    bins = torch.stft(wav, 512, 128, window=torch.hann_window(512), return_complex=True)
    return _image(bins.abs())


def _image(magnitudes: Tensor) -> Tensor:
    level_db = 20 * (magnitudes / magnitudes.max().clamp(min=1e-12)).clamp(min=1e-12).log10()
    return (level_db / _DYNAMIC_RANGE_DB + 1).clamp(0, 1).flip(0)[None]


def keep_batch(folder: Path, wav: Float[Tensor, "b 1 n"], sample_rate_hz: int, report: dict[str, Any]) -> None:
    """Write a batch down to be looked at later: as numbers, as recordings where it can be heard, and a report."""
    folder.mkdir(parents=True, exist_ok=True)
    batch = wav.detach().float().cpu().numpy()
    np.save(folder / "batch.npy", batch)
    for index, crop in enumerate(batch):
        if np.isfinite(crop).all():
            save_wav(folder / f"crop-{index:03d}.wav", crop, sample_rate_hz, is_float=True, force=True)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")


def read_log(run: Path) -> list[dict[str, Any]]:
    """Rows of log.jsonl; a last line that a killed process left unfinished does not count."""
    path = run / "log.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]


def _drop_rows_after(path: Path, step: int) -> None:
    rows = read_log(path.parent)
    kept = [row for row in rows if row["step"] <= step]
    if path.is_file():
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(temporary, path)


def _open_board(folder: Path, step: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        logger.warning("no TensorBoard: pip install 'taae-workbench[train]'; log.jsonl has the same numbers")
        return None
    from torch.utils.tensorboard.writer import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
