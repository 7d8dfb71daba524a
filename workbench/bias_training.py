"""The second half of appendix B.5: what a discriminator that has really been trained looks at (B.5.1).

It learns to tell speech from the same speech decoded by a fixed codec. No codec is trained against it, so that it wins
in the end; in a real training the two move together.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from taae.adversarial import discriminator_accuracy, discriminator_hinge_loss
from taae.discriminators import Ensemble
from taae.sensitivity import Analysis, sensitivity
from workbench.bias import (
    Pair,
    Result,
    Variant,
    discriminator_losses,
    fresh_discriminator,
    measure,
    outputs,
    random_crops,
)

# Between the two of `taae.sensitivity`: a picture of one sound, as a spectrogram is.
PICTURE = Analysis(fft_size=500, hop_samples=125)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A discriminator at one step of its training; loss and accuracy are means over the steps since the last one.

    Both are None at step 0.
    """

    step: int
    discriminator: Ensemble
    loss: float | None
    accuracy: float | None


def train_discriminator(
    variant: Variant,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    channels: int,
    steps: Sequence[int],
    batch_size: int = 4,
    segment_s: float = 0.5,
    learning_rate: float = 8e-4,
    seed: int = 0,
) -> list[Snapshot]:
    """Train with the hinge loss and AdamW at the paper's 8e-4, and keep a copy at each of `steps`, ascending.

    Raises:
        ValueError: If `steps` is empty or not ascending.
    """
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 0:
        raise ValueError(f"steps must be ascending and not negative, got {tuple(steps)}")
    discriminator = fresh_discriminator(variant, channels=channels, seed=seed)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=learning_rate, betas=(0.8, 0.99), weight_decay=0.0)
    crops = random_crops(pairs, num_crops=steps[-1] * batch_size, segment_s=segment_s, seed=seed + 1)
    snapshots: list[Snapshot] = []
    losses: list[float] = []
    accuracies: list[float] = []
    for step in tqdm(range(steps[-1] + 1), desc=f"training {variant.title}", unit="step"):
        if step in steps:
            snapshots.append(
                Snapshot(
                    step=step,
                    discriminator=copy.deepcopy(discriminator).requires_grad_(False),
                    loss=float(np.mean(losses)) if losses else None,
                    accuracy=float(np.mean(accuracies)) if accuracies else None,
                )
            )
            losses, accuracies = [], []
        if step == steps[-1]:
            break
        batch = [next(crops) for _ in range(batch_size)]
        real = outputs(discriminator, torch.cat([target for target, _ in batch]))
        fake = outputs(discriminator, torch.cat([decoded for _, decoded in batch]))
        loss = discriminator_hinge_loss(real, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        accuracies.append(float(discriminator_accuracy(real, fake).mean()))
    return snapshots


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Where a discriminator looks in one example.

    Attributes:
        level_db: Bins of the example, (f, t), in dB over its loudest.
        sensitivity_db: Of the adversarial loss to them (Eq. 12), in dB over the median.
        times_s, frequencies_hz: Of the bins.
    """

    level_db: np.ndarray
    sensitivity_db: np.ndarray
    times_s: np.ndarray
    frequencies_hz: np.ndarray

    def by_level(self, edges_db: Sequence[float] = tuple(range(-90, 1, 10))) -> list[tuple[float, float]]:
        """Median sensitivity in dB of the bins of each level, as (middle of the level in dB, sensitivity)."""
        rows = []
        for low, high in zip(edges_db[:-1], edges_db[1:], strict=True):
            chosen = (self.level_db >= low) & (self.level_db < high)
            if chosen.sum() >= 20:
                rows.append(((low + high) / 2, float(np.median(self.sensitivity_db[chosen]))))
        return rows

    @property
    def loudness_slope(self) -> float:
        """Change of sensitivity in dB per dB of level: below 0 quiet bins count more, above 0 loud ones do."""
        return float(np.polyfit(self.level_db.ravel(), self.sensitivity_db.ravel(), 1)[0])


def attention(discriminator: Ensemble, pair: Pair, *, sample_rate_hz: int = 16000) -> Attention:
    """Sensitivity of the adversarial loss to the bins of one decoded example, beside their level (B.5.1)."""
    target, decoded = pair
    losses = discriminator_losses(discriminator)

    def adversarial(target: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        return {"adversarial": losses(target, decoded)["adversarial"]}

    _, (per_bin,) = sensitivity(adversarial, target, decoded, (PICTURE,))["adversarial"]
    level = PICTURE.bins(decoded)[0].abs().numpy()
    inner = slice(1, -1)  # the lowest and the highest bin weigh half (see `bin_gradient`)
    level, per_bin = level[inner], per_bin[inner]
    return Attention(
        # Sixteen bits end at -96 dB; below that is nothing that a file could hold.
        level_db=np.maximum(20 * np.log10(level / level.max() + 1e-9), -100.0),
        sensitivity_db=20 * np.log10(per_bin / np.median(per_bin) + 1e-9),
        times_s=np.arange(level.shape[1]) * PICTURE.hop_samples / sample_rate_hz,
        frequencies_hz=np.fft.rfftfreq(PICTURE.fft_size, 1 / sample_rate_hz)[inner],
    )


def mean_slope(discriminator: Ensemble, pairs: Iterator[Pair]) -> float:
    """`Attention.loudness_slope`, averaged over examples."""
    return float(np.mean([attention(discriminator, pair).loudness_slope for pair in pairs]))


def measure_snapshot(
    title: str,
    snapshot: Snapshot,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    num_inputs: int,
    seed: int = 0,
) -> list[Result]:
    """`workbench.bias.measure` of a snapshot on crops of `pairs`, one second each."""
    crops = random_crops(pairs, num_crops=num_inputs, seed=seed + 2)
    losses = discriminator_losses(snapshot.discriminator)
    return measure(f"{title}, step {snapshot.step}", losses, crops, num_inputs=num_inputs)


def progress(snapshots: Mapping[str, Sequence[Snapshot]]) -> list[dict[str, Any]]:
    """One row a snapshot: step, and loss and accuracy since the one before."""
    return [
        {
            "discriminator": title,
            "step": snapshot.step,
            "hinge loss": "" if snapshot.loss is None else f"{snapshot.loss:.3f}",
            "accuracy": "" if snapshot.accuracy is None else f"{snapshot.accuracy:.2f}",
        }
        for title, taken in snapshots.items()
        for snapshot in taken
    ]


def stored_rows(name: str) -> list[dict[str, Any]]:
    """The main numbers of `benchmarks/results/<name>`; adversarial and discriminator loss have one gradient here.

    Raises:
        ValueError: If there is no such file; `benchmarks/bias.py` writes it.
    """
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / name
    if not path.is_file():
        raise ValueError(f"no results at {path}; benchmarks/bias.py writes them")
    rows = [row for row in json.loads(path.read_text())["rows"] if row["loss"] != "discriminator"]
    hidden = {"num_inputs", "time_spacing_samples", "frequency_spacing_hz", "time_uneven_db", "frequency_uneven_db"}
    shown = [{key: value for key, value in row.items() if key not in hidden} for row in rows]
    return [{key: "" if value is None else value for key, value in row.items()} for row in shown]
