"""Processes of a reproduction: a notebook under papermill, stopped when it has worked for too long; the trainings."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench import notebook

Running = set[subprocess.Popen]

# A process that gets less of a core than this waits for something that does not come.
_IDLE_SHARE = 0.01


def run_notebook(
    path: Path, folder: Path, values: Mapping[str, Any], limit_s: float, running: Running
) -> tuple[str, str]:
    """Execute `path` with parameters `values` into `folder`/notebook.ipynb.

    Args:
        path: The notebook.
        folder: Gets the executed notebook, its parameters and a log.
        values: Parameters.
        limit_s: It is stopped once it has taken so long both by the clock and in processor time, so that a busy machine
            stops nothing; or if for so long (at most a minute) it did nothing.
        running: Holds the process while it runs, for `stop`.

    Returns:
        "ok", "failed" or "out of time"; and the end of the error.
    """
    (folder / "parameters.json").write_text(json.dumps(dict(values)))  # JSON is YAML
    command = [sys.executable, "-m", "papermill", str(path), str(folder / "notebook.ipynb"), "--kernel", "python3"]
    command += ["--parameters_file", str(folder / "parameters.json"), "--cwd", str(notebook.ROOT)]
    command += ["--no-progress-bar", "--log-level", "WARNING"]
    environment = os.environ | {
        "PLOTLY_RENDERER": "plotly_mimetype",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONPATH": f"{notebook.ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    status, why, error = _run(command, folder / "log.txt", environment, limit_s, running)
    return ("out of time", why) if why else ("ok", "") if status == 0 else ("failed", error)


def train_ablations(results: Path, limit_s: float, running: Running) -> str:
    """Train the small models that the ablations lack and write `results`; "" or why there are none.

    Args:
        results: JSON; its log lies beside it.
        limit_s: No training after so many seconds by the clock. What is finished counts.
        running: As for `run_notebook`.
    """
    command = [sys.executable, "-m", "workbench", "ablate", "--results", str(results)]
    command += ["--limit-minutes", f"{limit_s / 60:g}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(notebook.ROOT)}
    log = results.with_suffix(".log")
    status, why, error = _run(command, log, environment, 2 * limit_s, running)
    return "" if results.is_file() else why or error or f"exit status {status}"


def stop(process: subprocess.Popen) -> None:
    """End a process and its children; papermill stops its kernel."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _run(
    command: list[str], log: Path, environment: Mapping[str, str], limit_s: float, running: Running
) -> tuple[int | None, str, str]:
    """Exit status, why it was stopped if it was, and the end of what it said."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=notebook.ROOT, stdout=file, stderr=file, env=environment, start_new_session=True
        )
        running.add(process)
        try:
            why = _wait(process, limit_s)
            if why:
                stop(process)
        finally:
            running.discard(process)
    said = [line for line in log.read_text().strip().splitlines() if "[IPKernelApp]" not in line]
    return process.returncode, why, "\n".join(said[-12:])


def _wait(process: subprocess.Popen, limit_s: float) -> str:
    """Until it ends: "". Why it has to be stopped: otherwise."""
    begun, window_s = time.monotonic(), min(limit_s, 60.0)
    marks: deque[tuple[float, float]] = deque()  # (seconds by the clock, of the processor)
    while True:
        try:
            process.wait(0.5)
            return ""
        except subprocess.TimeoutExpired:
            now, used = time.monotonic() - begun, processor_seconds(process.pid)
        marks.append((now, used))
        while len(marks) > 1 and now - marks[1][0] >= window_s:
            marks.popleft()
        if now > limit_s and used > limit_s:
            return f"took more than {limit_s:.0f} s of work"
        since, used_then = marks[0]
        if now > limit_s and now - since >= window_s and used - used_then < _IDLE_SHARE * (now - since):
            return f"did nothing for {now - since:.0f} s after {since:.0f} s"


def processor_seconds(pid: int) -> float:
    """What a process and all its descendants have used, those that have ended included."""
    import psutil

    total = 0.0
    try:
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    except psutil.NoSuchProcess:
        pass  # ended while we looked
    return total
