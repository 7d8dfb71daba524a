"""Run the notebooks and put every published number beside ours: `python -m workbench reproduce`.

What a notebook gave is kept under the hash of everything it depends on: a second run takes it from there, and so does
a run that was cut off.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from workbench import execution, notebook, profiles, published, sources, tables_facts, verdicts
from workbench.profiles import PLANS, Profile
from workbench.verdicts import Outcome

RUNS = notebook.ROOT / "runs"
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
        limit_s: Work of one notebook, instead of the profile's.
        is_fresh: Take nothing from the cache.

    Returns:
        The folder, and what became of each notebook.

    Raises:
        ValueError: If a notebook or a parameter is unknown.
        ImportError: If papermill is missing.
    """
    from workbench import report

    _require_papermill()
    chosen = profiles.choose(asked, profile)
    wanted = profiles.settings(chosen, profile, given or {})
    limit_s = PLANS[profile].limit_s if limit_s is None else limit_s
    folder = out or RUNS / f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}-reproduce-{profile}"
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    waiting = [name for name in chosen if "toys" in profiles.parameters(name) and "toys" not in wanted[name]]
    train_limit_s = PLANS[profile].train_limit_s if waiting else 0
    print(_announcement(profile, len(chosen), workers, limit_s, train_limit_s, is_whole=not asked), flush=True)
    print(f"results in {folder}", flush=True)
    running: execution.Running = set()

    def one(name: str) -> Ran:
        ran = _run_one(name, wanted[name], folder, limit_s, is_fresh, running, shares=FIRST in chosen)
        print(
            f"{ran.status:12}{name}, {ran.seconds:.0f} s {ran.error.splitlines()[-1] if ran.error else ''}", flush=True
        )
        return ran

    if is_fresh:
        shutil.rmtree(scores_folder(""), ignore_errors=True)
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        toys = folder / "ablations.json"
        training = pool.submit(execution.train_ablations, toys, train_limit_s, running) if train_limit_s else None
        done = [pool.submit(one, name).result() for name in chosen if name == FIRST]
        done += pool.map(one, [name for name in chosen if name != FIRST and name not in waiting])
        if training is not None:
            if missing := training.result():
                print(f"the ablations show the stored results: {missing.splitlines()[-1]}", flush=True)
            else:
                for name in waiting:
                    wanted[name]["toys"] = str(toys)
        done += pool.map(one, waiting)
    finally:  # of Ctrl-C too, which the processes do not get
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            execution.stop(process)
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
    facts |= {"profile": profile, "source_sha256": sources.digest("import workbench.reproduce, workbench.tables")}
    facts["notebooks"] = [{k: v for k, v in asdict(ran).items() if k != "outcome"} for ran in done]
    facts["setups"] = {outcome.name: outcome.setup for outcome in outcomes if outcome.setup}
    (folder / "provenance.json").write_text(json.dumps(facts, indent=1) + "\n")


def key_of(name: str, values: Mapping[str, Any]) -> str:
    """Hash of a notebook, its parameters, the code, the packages, and the data and weights that it names."""
    digest = hashlib.sha256(sources.digest(profiles.code(name)).encode())
    digest.update((profiles.NOTEBOOKS / f"{name}.ipynb").read_bytes())
    toys = Path(str(values.get("toys", "")))
    digest.update(json.dumps({k: v for k, v in values.items() if k != "toys"}, sort_keys=True).encode())
    digest.update(toys.read_bytes() if toys.is_file() else b"")  # wherever it lies
    packages = {package: _version_of(package) for package in ("torch", "numpy", "scipy", "transformers", "pesq")}
    digest.update(json.dumps(packages, sort_keys=True).encode())
    for manifest in [values[key] for key in profiles.MANIFESTS if values.get(key)]:
        path = notebook.find_manifest(manifest)
        assert path is not None
        digest.update(path.read_bytes())
    folder = Path(str(values.get("checkpoint", "")))
    for path in sorted(folder.glob("*")) if values.get("checkpoint") and folder.is_dir() else []:
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    if database := values.get("database"):
        digest.update(Path(str(database)).read_bytes() if Path(str(database)).is_file() else b"")
    return digest.hexdigest()[:24]


def scores_folder(name: str) -> Path:
    """Where scores of single clips are kept: they hold for the code that made them."""
    return RUNS / "reproduce-scores" / sources.digest("import workbench.measured")[:16] / name


def _announcement(
    profile: Profile, num_notebooks: int, workers: int, limit_s: float, train_limit_s: float, *, is_whole: bool
) -> str:
    bound_min = limit_s * -(-num_notebooks // workers) / 60
    lines = [f"{profile}: {PLANS[profile].about}"]
    lines.append(f"{num_notebooks} notebooks, {workers} at a time{', ' + PLANS[profile].expected if is_whole else ''}")
    if train_limit_s:
        lines.append(
            f"beside them trains the small models that the ablations lack: at most {train_limit_s / 60:.0f} minutes"
        )
    lines.append(f"at most {bound_min:.0f} minutes of work for the notebooks, {limit_s:.0f} s each")
    return "\n".join(lines)


def _run_one(
    name: str,
    values: dict[str, Any],
    folder: Path,
    limit_s: float,
    is_fresh: bool,
    running: execution.Running,
    *,
    shares: bool,
) -> Ran:
    ran = Ran(name=name, parameters=values, key=key_of(name, values))
    kept, target = RUNS / "reproduce-cache" / ran.key, folder / "notebooks" / f"{name}.ipynb"
    if (kept / "done.json").is_file() and not is_fresh:
        ran.seconds, ran.status = json.loads((kept / "done.json").read_text())["seconds"], "cached"
    else:
        work = kept.with_name(f"{ran.key}-{os.getpid()}")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        known = profiles.parameters(name)
        if "results" in known:
            values = values | {"results": str(work / "outcome.json")}
        if "scores" in known:
            values = values | {"scores": str(scores_folder("shared" if shares else name))}
        begun = time.perf_counter()
        ran.status, ran.error = execution.run_notebook(
            profiles.NOTEBOOKS / f"{name}.ipynb", work, values, limit_s, running
        )
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


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _place(name: str, order: list[str]) -> tuple[int, str]:
    return (order.index(name) if name in order else 0, name)


def _require_papermill() -> None:
    from importlib.util import find_spec

    if find_spec("papermill") is None or find_spec("plotly") is None:
        raise ImportError("reproducing needs papermill and plotly: pip install 'taae-workbench[notebooks,listening]'")
