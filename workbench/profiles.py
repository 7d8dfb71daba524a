"""What `workbench reproduce` runs: the notebooks, their parameters, and how much of each a profile asks for."""

import ast
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workbench import notebook

NOTEBOOKS = notebook.ROOT / "notebooks"

Profile = Literal["smoke", "cpu", "gpu", "full"]
# Below the shared folder. The last two are as `workbench data select` writes them.
DEV = "speech/dev/manifest.jsonl"
TRAIN = "speech/train/manifest.jsonl"
LIBRISPEECH = "librispeech-test-clean/manifest.jsonl"
CLEAN_360 = "librispeech-train-clean-360/manifest.jsonl"
MANIFESTS = ("manifest", "token_manifest")
_GIVEN_BY_THE_RUNNER = {"results", "scores"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a profile means.

    Attributes:
        about: For people.
        expected: How long all of it takes.
        limit_s: Work of one notebook, see `workbench.execution.run_notebook`.
        values: Parameter -> value, for every notebook that has it.
        train_limit_s: For the trainings that the ablations lack; with 0 the stored results are shown.
        prefixes: Which notebooks run when none is named.
    """

    about: str
    expected: str
    limit_s: float
    values: Mapping[str, Any]
    train_limit_s: float = 0
    prefixes: tuple[str, ...] = ("table", "fig", "text", "ablation")


PLANS: dict[Profile, Plan] = {
    "smoke": Plan(
        about="two clips of the repository: shows that everything runs; its measured numbers mean little",
        expected="usually 3 minutes on two cores",
        limit_s=120,
        values={
            "profile": "small",
            "num_clips": 2,
            "lengths_s": [5, 30],
            "pieces_s": [3.0, 6.0],
            "num_repeats": 1,
            "seconds": 5.0,
        },
    ),
    "cpu": Plan(
        about="the embedded model and the codecs of this machine on the clips that are here",
        expected="an estimated 45 minutes on two cores, with the trainings",
        limit_s=1800,
        values={"profile": "full", "num_clips": 20, "manifest": DEV, "token_manifest": TRAIN},
        train_limit_s=45 * 60,
        prefixes=("table", "fig", "text", "ablation", "b1_", "b4_", "b5_discriminator"),
    ),
    "gpu": Plan(
        about="as cpu on a GPU, with the times of the 950M model (its weights do not matter for time)",
        expected="not measured",
        limit_s=3600,
        values={
            "profile": "full",
            "num_clips": 200,
            "manifest": DEV,
            "token_manifest": TRAIN,
            "device": "cuda",
            "timed": "paper-950m",
        },
        train_limit_s=45 * 60,
        prefixes=("table", "fig", "text", "ablation", "b1_", "b4_", "b5_"),
    ),
    "full": Plan(
        about="the paper's 900 clips; give the paper's weights with --set checkpoint=FOLDER",
        expected="not measured",
        limit_s=6 * 3600,
        values={"profile": "full", "num_clips": 900, "manifest": LIBRISPEECH, "token_manifest": CLEAN_360},
        train_limit_s=45 * 60,
        prefixes=("table", "fig", "text", "ablation", "b1_", "b4_", "b5_"),
    ),
}


def names() -> list[str]:
    """Notebooks that there are."""
    return sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def choose(asked: Sequence[str], profile: Profile) -> list[str]:
    """Notebooks by name or by its beginning, such as "table02" or "fsq"; those of the profile if none is asked for.

    Raises:
        ValueError: If something asked for fits none.
    """
    if not asked:
        return [name for name in names() if name.startswith(PLANS[profile].prefixes)]
    chosen: list[str] = []
    for text in asked:
        found = [name for name in names() if name == text] or [name for name in names() if name.startswith(text)]
        if not found:
            raise ValueError(f"no notebook {text!r}; there are {', '.join(names())}")
        chosen += found
    return sorted(set(chosen))


def code(name: str) -> str:
    """All code of a notebook."""
    return "\n".join("".join(cell["source"]) for cell in _cells(name) if cell["cell_type"] == "code")


def parameters(name: str) -> dict[str, Any]:
    """Parameter -> default, of a notebook."""
    source = next("".join(cell["source"]) for cell in _cells(name) if "parameters" in cell["metadata"].get("tags", []))
    return {
        node.target.id: ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None
    }


def settings(chosen: Sequence[str], profile: Profile, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Notebook -> parameters that differ from its defaults: those of the profile, then those given.

    Raises:
        ValueError: If no chosen notebook has a given parameter, or a value is of another type than its default.
    """
    known = {name: parameters(name) for name in chosen}
    offered = {key for of in known.values() for key in of} - _GIVEN_BY_THE_RUNNER
    if unknown := sorted(set(given) - offered):
        raise ValueError(f"no notebook of this run has {', '.join(unknown)}; they have {', '.join(sorted(offered))}")
    result = {}
    for name, defaults in known.items():
        wanted = {key: value for key, value in {**PLANS[profile].values, **given}.items() if key in defaults}
        for key, value in wanted.items():
            if not _same_type(value, defaults[key]):
                raise ValueError(f"{key} of {name} is like {defaults[key]!r}, got {value!r}")
        result[name] = wanted
    for key in MANIFESTS:
        if key not in given:
            _use_what_is_here(result, key)
    return result


def setting(text: str) -> tuple[str, Any]:
    """A parameter as it is written on the command line: "num_clips=5", "checkpoint=runs/mine".

    Raises:
        ValueError: If there is no "=".
    """
    key, sign, value = text.partition("=")
    if not sign or not key.isidentifier():
        raise ValueError(f"a parameter reads KEY=VALUE, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value  # a word


def _cells(name: str) -> list[dict[str, Any]]:
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def _use_what_is_here(values: dict[str, dict[str, Any]], key: str) -> None:
    """Where the profile's manifest is not on this machine, the examples of the repository stand in, and it is said."""
    for manifest in sorted({of[key] for of in values.values() if of.get(key)}):
        try:
            notebook.find_manifest(manifest)
        except ValueError as error:
            print(f"using the examples of the repository: {error}", file=sys.stderr)
            for of in values.values():
                if of.get(key) == manifest:
                    of[key] = ""


def _same_type(value: Any, default: Any) -> bool:
    if isinstance(default, float) and not isinstance(value, bool):
        return isinstance(value, int | float)
    return type(value) is type(default)
