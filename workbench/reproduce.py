"""Run the notebooks and put every published number beside ours: `python -m workbench reproduce`.

Each notebook runs under papermill in a process of its own, under a time limit. What a notebook gave is kept under the
hash of everything it depends on: a second run takes it from there, and so does a run that was cut off.
"""

import ast
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from workbench import notebook, published, tables_facts, verdicts
from workbench.verdicts import Outcome

ROOT = notebook.ROOT
NOTEBOOKS = ROOT / "notebooks"
RUNS = ROOT / "runs"

Profile = Literal["smoke", "cpu", "gpu", "full"]
# Below the shared folder. The last two are as `workbench data select` writes them.
DEV = "speech/dev/manifest.jsonl"
TRAIN = "speech/train/manifest.jsonl"
LIBRISPEECH = "librispeech-test-clean/manifest.jsonl"
CLEAN_360 = "librispeech-train-clean-360/manifest.jsonl"
_MANIFESTS = ("manifest", "token_manifest")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a profile means.

    Attributes:
        about: For people.
        limit_s: Of one notebook.
        values: Parameter -> value, for every notebook that has it.
        prefixes: Which notebooks run when none is named.
    """

    about: str
    limit_s: float
    values: Mapping[str, Any]
    prefixes: tuple[str, ...] = ("table", "fig", "text")


PLANS: dict[Profile, Plan] = {
    "smoke": Plan(
        about="two clips of the repository: shows that everything runs; its measured numbers mean little",
        limit_s=240,
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
        limit_s=1800,
        values={"profile": "full", "num_clips": 20, "manifest": DEV, "token_manifest": TRAIN},
        prefixes=("table", "fig", "text", "b1_", "b4_", "b5_discriminator"),
    ),
    "gpu": Plan(
        about="as cpu on a GPU, with the times of the 950M model (its weights do not matter for time)",
        limit_s=3600,
        values={
            "profile": "full",
            "num_clips": 200,
            "manifest": DEV,
            "token_manifest": TRAIN,
            "device": "cuda",
            "timed": "paper-950m",
        },
        prefixes=("table", "fig", "text", "b1_", "b4_", "b5_"),
    ),
    "full": Plan(
        about="the paper's 900 clips; give the paper's weights with --set checkpoint=FOLDER",
        limit_s=6 * 3600,
        values={"profile": "full", "num_clips": 900, "manifest": LIBRISPEECH, "token_manifest": CLEAN_360},
        prefixes=("table", "fig", "text", "b1_", "b4_", "b5_"),
    ),
}
FIRST = "table02_objective_metrics"  # its scores serve other tables


@dataclass(kw_only=True)
class Ran:
    """One notebook of a run.

    Attributes:
        name: Of its file, without ending.
        status: "ok", "cached", "failed", or "out of time".
        seconds: It took, now or when it was kept.
        error: The last lines of a failure.
        key: Hash of what it depends on.
        parameters: It ran with.
        outcome: If it gives one.
    """

    name: str
    status: str = "failed"
    seconds: float = 0.0
    error: str = ""
    key: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    outcome: Outcome | None = None


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


def parameters(name: str) -> dict[str, Any]:
    """Parameter -> default, of a notebook."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    source = next("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))
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
    everything = {key for of in known.values() for key in of}
    if unknown := sorted(set(given) - (everything - {"results", "scores"})):
        offered = sorted(everything - {"results", "scores"})
        raise ValueError(f"no notebook of this run has {', '.join(unknown)}; they have {', '.join(offered)}")
    result = {}
    for name, defaults in known.items():
        wanted = {key: value for key, value in {**PLANS[profile].values, **given}.items() if key in defaults}
        for key, value in wanted.items():
            if not _same_type(value, defaults[key]):
                raise ValueError(f"{key} of {name} is like {defaults[key]!r}, got {value!r}")
        result[name] = wanted
    for key in _MANIFESTS:
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


def run(
    asked: Sequence[str] = (),
    profile: Profile = "smoke",
    *,
    given: Mapping[str, Any] | None = None,
    out: Path | None = None,
    workers: int = 2,
    limit_s: float | None = None,
    is_fresh: bool = False,
) -> tuple[Path, list[Ran]]:
    """Run notebooks and write the run folder; its report.html reads offline.

    Args:
        asked: As for `choose`.
        profile: How much.
        given: Parameters beside the profile's.
        out: New folder, or one of an earlier run, which is written anew; by default one with the date in runs/.
        workers: Notebooks at a time.
        limit_s: Of one notebook, instead of the profile's.
        is_fresh: Take nothing from the cache.

    Returns:
        The folder, and what became of each notebook.

    Raises:
        ValueError: If a notebook or a parameter is unknown.
        ImportError: If papermill is missing.
    """
    from workbench import report

    _require_papermill()
    chosen = choose(asked, profile)
    wanted = settings(chosen, profile, given or {})
    limit_s = PLANS[profile].limit_s if limit_s is None else limit_s
    folder = out or RUNS / f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}-reproduce-{profile}"
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    print(
        f"{profile}: {PLANS[profile].about}\n{len(chosen)} notebooks, {workers} at a time, at most "
        f"{limit_s * -(-len(chosen) // workers) / 60:.0f} minutes; results in {folder}",
        flush=True,
    )

    def one(name: str) -> Ran:
        ran = _run_one(name, wanted[name], folder, limit_s, is_fresh, shares=FIRST in chosen)
        print(
            f"{ran.status:12}{name}, {ran.seconds:.0f} s {ran.error.splitlines()[-1] if ran.error else ''}", flush=True
        )
        return ran

    done = [one(name) for name in chosen if name == FIRST]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        done += pool.map(one, [name for name in chosen if name != FIRST])
    done.sort(key=lambda ran: ran.name)
    outcomes = complete([ran.outcome for ran in done if ran.outcome is not None])
    write(folder, profile, done, outcomes)
    report.write(folder / "report.html", profile, PLANS[profile].about, done, outcomes)
    return folder, done


def complete(found: Sequence[Outcome]) -> list[Outcome]:
    """An outcome for every published table: those found, those the talk repeats, and "not run" for the rest."""
    by_name = {outcome.name: outcome for outcome in found}
    for name, of_paper in tables_facts.TALK.items():
        if of_paper is None or of_paper in by_name:
            by_name[name] = tables_facts.talk(name, by_name.get(of_paper or ""))
    for name, table in published.load().items():
        if name not in by_name:
            cells = [
                verdicts.not_run(number, "its notebook did not run, or failed, this time") for number in table.cells
            ]
            by_name[name] = verdicts.outcome(name, cells)
    order = list(published.load())
    return sorted(by_name.values(), key=lambda outcome: (outcome.name not in order, _place(outcome.name, order)))


def write(folder: Path, profile: Profile, done: Sequence[Ran], outcomes: Sequence[Outcome]) -> None:
    """results.json, results.csv and provenance.json."""
    import csv

    (folder / "results.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["table", "row", "column", "printed", "ours", "verdict", "reason"])
        for outcome in outcomes:
            for cell in outcome.cells:
                ours = "" if cell.ours is None else cell.ours
                writer.writerow([outcome.name, cell.row, cell.column, cell.printed, ours, cell.verdict, cell.reason])
    facts: dict[str, Any] = notebook.provenance("small" if profile == "smoke" else "full", seed=0)
    facts |= {"profile": profile, "source_sha256": source_digest()}
    facts["notebooks"] = [{k: v for k, v in asdict(ran).items() if k != "outcome"} for ran in done]
    facts["setups"] = {outcome.name: outcome.setup for outcome in outcomes if outcome.setup}
    (folder / "provenance.json").write_text(json.dumps(facts, indent=1) + "\n")


@cache
def source_digest() -> str:
    """Of all code, presets, embedded weights and published numbers."""
    digest = hashlib.sha256()
    for folder in (ROOT / "taae", ROOT / "workbench", ROOT / "data_manifests"):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def key_of(name: str, values: Mapping[str, Any]) -> str:
    """Hash of a notebook, its parameters, the code, the packages, and the data and weights that it names."""
    digest = hashlib.sha256(source_digest().encode())
    digest.update((NOTEBOOKS / f"{name}.ipynb").read_bytes())
    digest.update(json.dumps(dict(values), sort_keys=True).encode())
    packages = {package: _version_of(package) for package in ("torch", "numpy", "scipy", "transformers", "pesq")}
    digest.update(json.dumps(packages, sort_keys=True).encode())
    for manifest in [values[key] for key in _MANIFESTS if values.get(key)]:
        path = notebook.find_manifest(manifest)
        assert path is not None
        digest.update(path.read_bytes())
    folder = Path(str(values.get("checkpoint", "")))
    for path in sorted(folder.glob("*")) if values.get("checkpoint") and folder.is_dir() else []:
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    if database := values.get("database"):
        digest.update(Path(str(database)).read_bytes() if Path(str(database)).is_file() else b"")
    return digest.hexdigest()[:24]


def _run_one(name: str, values: dict[str, Any], folder: Path, limit_s: float, is_fresh: bool, *, shares: bool) -> Ran:
    ran = Ran(name=name, parameters=values, key=key_of(name, values))
    kept, target = RUNS / "reproduce-cache" / ran.key, folder / "notebooks" / f"{name}.ipynb"
    if (kept / "done.json").is_file() and not is_fresh:
        ran.seconds, ran.status = json.loads((kept / "done.json").read_text())["seconds"], "cached"
    else:
        work = kept.with_name(f"{ran.key}-{os.getpid()}")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        if "results" in parameters(name):
            values = values | {"results": str(work / "outcome.json")}
        if "scores" in parameters(name):
            values = values | {"scores": str(RUNS / "reproduce-scores" / ("shared" if shares else name))}
        begun = time.perf_counter()
        ran.status, ran.error = _execute(NOTEBOOKS / f"{name}.ipynb", work, values, limit_s)
        ran.seconds = time.perf_counter() - begun
        if ran.status != "ok":
            if (work / "notebook.ipynb").is_file():
                shutil.copy(work / "notebook.ipynb", target)
            shutil.rmtree(work)
            return ran
        (work / "done.json").write_text(json.dumps({"seconds": ran.seconds}))
        shutil.rmtree(kept, ignore_errors=True)
        work.rename(kept)
    shutil.copy(kept / "notebook.ipynb", target)
    if (kept / "outcome.json").is_file():
        ran.outcome = verdicts.load(kept / "outcome.json")
    return ran


def _execute(path: Path, work: Path, values: Mapping[str, Any], limit_s: float) -> tuple[str, str]:
    """Papermill in a process of its own, killed with its kernel when the time is over: status and error."""
    (work / "parameters.json").write_text(json.dumps(dict(values)))  # JSON is YAML
    command = [sys.executable, "-m", "papermill", str(path), str(work / "notebook.ipynb"), "--kernel", "python3"]
    command += ["--parameters_file", str(work / "parameters.json"), "--cwd", str(ROOT)]
    command += ["--no-progress-bar", "--log-level", "WARNING"]
    environment = os.environ | {
        "PLOTLY_RENDERER": "plotly_mimetype",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    log = work / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        try:
            status = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # papermill's handler stops the kernel
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return "out of time", f"took longer than {limit_s:.0f} s"
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
    return ("ok", "") if status == 0 else ("failed", "\n".join(log.read_text().strip().splitlines()[-12:]))


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


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _same_type(value: Any, default: Any) -> bool:
    if isinstance(default, float) and not isinstance(value, bool):
        return isinstance(value, int | float)
    return type(value) is type(default)


def _place(name: str, order: list[str]) -> tuple[int, str]:
    return (order.index(name) if name in order else 0, name)


def _require_papermill() -> None:
    from importlib.util import find_spec

    if find_spec("papermill") is None or find_spec("plotly") is None:
        raise ImportError("reproducing needs papermill and plotly: pip install 'taae-workbench[notebooks,listening]'")
