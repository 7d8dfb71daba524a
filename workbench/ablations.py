"""Small trainings of what the paper claims without measuring it, and of Tables 3 to 6: `python -m workbench ablate`.

`ablations.toml` names the variants as changes of one base recipe. A run is one variant with one seed, trained by
`taae.train`, resumed where it was killed and never trained twice. What comes out is a toy; it says so everywhere.
"""

import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from taae.files import write_atomic
from taae.recipe import model_config
from workbench import notebook

ROOT = notebook.ROOT
VARIANTS = Path(__file__).with_suffix(".toml")
RESULTS = ROOT / "benchmarks" / "results" / "ablations.json"
RUNS = ROOT / "runs" / "ablations"
TRAIN, DEV = "speech/train/manifest.jsonl", "speech/dev/manifest.jsonl"
METRICS = ("stoi", "estoi", "pesq_raw_nb", "mel_distance", "stft_distance", "si_sdr")
NUM_CLIPS = 14
RVQ_MODE = "rvq"  # what stands in the place of a bottleneck


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What differs from the base recipe.

    Attributes:
        label: For tables and figures.
        about: What a label cannot say.
        bottlenecks: It is evaluated with.
        init: Variant of the same seed whose weights it starts from; "" for random ones.
        num_steps_share: Of the base's steps.
        model: Changes to the base's [model].
        rvq: Of `taae.rvq.RVQConfig`; empty for FSQ.
        recogniser_weight: Of the perceptual loss.
    """

    name: str
    label: str
    about: str = ""
    bottlenecks: tuple[str, ...]
    init: str = ""
    num_steps_share: float = 1.0
    model: dict[str, Any] = field(default_factory=dict)
    rvq: dict[str, Any] = field(default_factory=dict)
    recogniser_weight: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One variant with one seed.

    Attributes:
        recipe_sha256: Of the recipe, those of what it starts from included, and of the data.
        num_parameters: Of the autoencoder, without the quantiser.
        train_cpu_s: Processor seconds of training, those of what it starts from not included.
        losses: Means of the last logged steps.
        scores: Bottleneck -> metric -> mean over the clips.
        bits: Bottleneck -> use of the quantiser, see `quantiser_use`.
        latency: See `latency`.
    """

    variant: str
    seed: int
    num_steps: int
    recipe_sha256: str
    num_parameters: int
    train_cpu_s: float
    losses: dict[str, float]
    scores: dict[str, dict[str, float]]
    bits: dict[str, dict[str, float]]
    latency: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Results:
    """All runs, and what they depend on."""

    command: str
    setup: dict[str, Any]
    runs: tuple[Result, ...]

    def of(self, variant: str) -> list[Result]:
        """Runs of a variant, by seed."""
        return sorted((run for run in self.runs if run.variant == variant), key=lambda run: run.seed)

    def values(self, variant: str, bottleneck: str, metric: str) -> dict[int, float]:
        """Seed -> value; `metric` may also be one of `bits` or `latency`."""
        found = {}
        for run in self.of(variant):
            numbers = run.scores.get(bottleneck, {}) | run.bits.get(bottleneck, {}) | run.latency
            if metric in numbers:
                found[run.seed] = numbers[metric]
        return found

    def summary(self) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        """Variant -> bottleneck -> metric -> mean, sd (0 for one seed) and num_seeds."""
        table: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
        for name in dict.fromkeys(run.variant for run in self.runs):
            modes = dict.fromkeys(mode for run in self.of(name) for mode in run.scores)
            table[name] = {
                mode: {
                    metric: spread(values.values()) for metric in METRICS if (values := self.values(name, mode, metric))
                }
                for mode in modes
            }
        return table

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        data = {"about": ABOUT, "command": self.command, "setup": self.setup}
        data |= {"summary": self.summary(), "runs": [asdict(run) for run in self.runs]}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(_rounded(data), indent=1) + "\n").encode(), force=True)


ABOUT = (
    "Toy models, each trained for half a minute on one CPU core. Only differences between rows mean anything, and "
    "only where they are larger than the spread over seeds."
)


@cache
def variants() -> dict[str, Variant]:
    """Name -> variant, in the order of the file.

    Raises:
        ValueError: If the file has a key that a variant does not have.
    """
    known, found = set(Variant.__dataclass_fields__), {}
    for name, values in _file()["variants"].items():
        if unknown := sorted(set(values) - known):
            offered = ", ".join(sorted(known))
            raise ValueError(f"{VARIANTS}: {name} has unknown {', '.join(unknown)}; known are {offered}")
        values["bottlenecks"] = tuple(values.get("bottlenecks", ("1x6^6", "2x5^6")))
        found[name] = Variant(name=name, **values)
    return found


def ablations() -> dict[str, tuple[str, ...]]:
    """Ablation -> its variants, in the order of presentation."""
    return {name: tuple(names) for name, names in _file()["ablations"].items()}


def choose(asked: Sequence[str]) -> list[str]:
    """Variants of the ablations or variants asked for, all if none is, each after what it starts from.

    Raises:
        ValueError: If there is neither an ablation nor a variant of that name.
    """
    names: list[str] = []
    for text in asked or list(ablations()):
        if text not in ablations() and text not in variants():
            raise ValueError(
                f"no ablation {text!r}; there are {', '.join(ablations())}; variants {', '.join(variants())}"
            )
        names += ablations().get(text, (text,))
    wanted = set(names) | {variants()[name].init for name in names} - {""}
    return [name for name in variants() if name in wanted]


def recipe(name: str, seed: int, num_steps: int, out: Path = RUNS) -> Any:
    """The `TrainConfig` of a variant; `num_steps` are the base's."""
    from dataclasses import replace

    from taae.config import build
    from taae.recipe import TrainConfig, model_config
    from taae.rvq import RVQConfig

    variant, values = variants()[name], dict(_file()["base"])
    values["model"] = _merged(values["model"], variant.model)
    config = build(TrainConfig, values, f"{VARIANTS}: {name}")
    steps = max(1, round(num_steps * variant.num_steps_share))
    config = replace(config, seed=seed, num_steps=steps, steps_per_log=min(config.steps_per_log, max(1, steps // 6)))
    if variant.rvq:
        config = replace(config, rvq=build(RVQConfig, variant.rvq, f"{VARIANTS}: {name}: rvq"))
    if variant.init:
        # Other crops than those it has seen; it goes on at the rates in the middle of the base's decay.
        config = replace(
            config,
            init=str(run_folder(variant.init, seed, num_steps, out)),
            seed=seed + 1000,
            adamw_lr=config.adamw_lr / 2,
            muon_lr=config.muon_lr / 2,
        )
    if variant.recogniser_weight:
        config = replace(config, recogniser=str(recogniser_folder(out)), recogniser_weight=variant.recogniser_weight)
    model_config(config)
    return config


def default_steps() -> int:
    """Of the base, in the file."""
    return int(_file()["base"]["num_steps"])


def run_folder(name: str, seed: int, num_steps: int, out: Path = RUNS) -> Path:
    """Where a run lies."""
    return out / f"{name}-{num_steps}-seed{seed}"


def recogniser_folder(out: Path = RUNS) -> Path:
    """Where the recogniser lies whose features the perceptual loss compares."""
    return out / "recogniser"


def recipe_sha256(name: str, seed: int, num_steps: int) -> str:
    """Of everything in the recipe, presets looked up, without where files lie."""
    variant, values = variants()[name], asdict(recipe(name, seed, num_steps))
    values["model"], values["preset"] = model_config(recipe(name, seed, num_steps)).as_dict(), ""
    values["init"] = recipe_sha256(variant.init, seed, num_steps) if variant.init else ""
    values["recogniser"] = _file()["recogniser"] if variant.recogniser_weight else ""
    values["bottlenecks"] = variant.bottlenecks
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def recogniser_recipe() -> dict[str, Any]:
    """Of the recogniser, for `taae.recogniser.train_recogniser`."""
    return dict(_file()["recogniser"])


def load(path: Path = RESULTS) -> Results:
    """Read stored results.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If the file holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no ablations at {path}; python -m workbench ablate trains them")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        runs = tuple(Result(**run) for run in data["runs"])
        return Results(command=data["command"], setup=data["setup"], runs=runs)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no ablations: {error!r}") from None


def spread(values: Any) -> dict[str, float]:
    """Mean and standard deviation over seeds; of one seed the deviation is unknown and written as 0."""
    found = list(values)
    mean = float(np.mean(found)) if found else math.nan
    return {"mean": mean, "sd": float(np.std(found, ddof=1)) if len(found) > 1 else 0.0, "num_seeds": len(found)}


def difference(results: Results, variant: str, baseline: str, bottlenecks: tuple[str, str], metric: str) -> dict:
    """Mean difference of two variants over the seeds that both have, and half of its 95 % interval (Student's t).

    The same seed means the same crops and, where the sizes are equal, the same first weights, so seeds are paired. With
    one seed the half width is infinite: nothing is known.
    """
    from scipy.stats import t

    first, second = (
        results.values(name, mode, metric) for name, mode in zip((variant, baseline), bottlenecks, strict=True)
    )
    both = sorted(set(first) & set(second))
    changes = [first[seed] - second[seed] for seed in both]
    half = math.inf
    if len(changes) > 1:
        half = float(t.ppf(0.975, len(changes) - 1) * np.std(changes, ddof=1) / math.sqrt(len(changes)))
    return {"mean": float(np.mean(changes)) if changes else math.nan, "half_width": half, "num_seeds": len(changes)}


def _file() -> dict[str, Any]:
    return tomllib.loads(VARIANTS.read_text(encoding="utf-8"))


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return dict(base) | dict(changes)


def _rounded(value: Any) -> Any:
    """Six significant digits, so that the file reads well."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
