"""What the codec costs on this machine, beside a plain implementation of it and beside other codecs, in one run.

    python benchmarks/speed.py [--quick] [--rounds 3] [--seconds 5 30 60 300] [--large-seconds 30]

Every row is encode plus decode of the same speech. Each configuration has a process of its own (`speed_worker.py`);
they are asked in turn, round after round, so that a busy machine disturbs them alike, and the fastest round counts.
"float32 dense" is the plain network with one mask of n x n, which is how code without a windowed kernel runs on a CPU.

A full run stores benchmarks/results/bench.json and writes the tables and the plot of docs/performance.md from it;
`--quick` (one round of mini, 5 and 30 s) only prints. Both add a line to benchmarks/results/bench-history.jsonl. A full
run takes paper-950m in where there are 8 GB of free memory. Weights do not matter for time,
so what has none here runs with random ones.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import speed_report

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
VARIANTS = (speed_report.DENSE, "float32", "float32 fast", "bfloat16 plain", "bfloat16", "int8")
PEERS = ("Codec2 700C", "Opus 6k", "EnCodec", "DAC", "Mimi")
DISCRIMINATORS = ("full", "stride, bf16, channels last, 3 scales")
CROPS_S = 8 * 5.12
DRAWS_S = 16.0  # eight draws of scales, of 2 s each
# Free memory that a worker of paper-950m needs to begin, for float32 weights and a copy of them, and that all of them
# need to take turns; with less they run one after the other.
LARGE_GB, TOGETHER_GB = 7.5, 16.0

Spec = tuple[str, str, str]  # kind, name, variant of speed_worker.py
_KEYS = ("kind", "name", "variant")


class Worker:
    """One configuration in its process."""

    def __init__(self, spec: Spec, num_threads: int) -> None:
        self.spec = spec
        environment = _environment() | {"OMP_NUM_THREADS": str(num_threads), "TQDM_DISABLE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "speed_worker.py"), *spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    @cached_property
    def ready(self) -> dict[str, Any]:
        """Its first line: memory and threads, or why it cannot run."""
        return self._answer()

    def ask(self, question: str) -> dict[str, Any]:
        """Answer to a number of seconds, or to "gemm DTYPE"."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"unavailable": f"ended with code {self.process.wait()}"}


def measure(specs: list[Spec], lengths: list[float], rounds: int, limit_s: float, num_threads: int) -> list[dict]:
    """One row a configuration and length, all configurations in turn.

    Args:
        specs: What to measure.
        lengths: Seconds of audio.
        rounds: Of each cell; one only where it takes more than a sixteenth of `limit_s`.
        limit_s: Cells that would take more processor time, judged by the length before, are left out.
        num_threads: Of each configuration.
    """
    rows: list[dict] = []
    running: list[Worker] = []
    started: list[Worker] = []
    for spec in specs:
        if spec[1] == "paper-950m" and free_gb() < LARGE_GB:
            reason = {"unavailable": f"needs {LARGE_GB:g} GB of free memory: {free_gb():.1f}"}
            rows.append(dict(zip(_KEYS, spec, strict=True)) | reason)
            continue
        started.append(Worker(spec, num_threads))
        if spec[1] == "paper-950m":
            assert started[-1].ready  # one after the other: each needs most memory while it starts
    for worker in started:
        if "unavailable" in worker.ready:
            rows.append(dict(zip(_KEYS, worker.spec, strict=True)) | worker.ready)
        else:
            running.append(worker)
    took: dict[Spec, float] = {worker.spec: 0.0 for worker in running}  # processor seconds per second of audio
    for length_s in lengths:
        cells: dict[Spec, list[dict]] = {worker.spec: [] for worker in running}
        for index in range(rounds):
            for worker in running:
                expected_s = took[worker.spec] * length_s
                if expected_s <= limit_s and (not index or expected_s <= limit_s / 16):
                    cells[worker.spec].append(worker.ask(str(length_s)))
                    took[worker.spec] = cells[worker.spec][-1].get("cpu_s", math.inf) / length_s
        for worker in running:
            rows.append(_row(worker, length_s, cells[worker.spec], took[worker.spec] * length_s))
            print(speed_report.line(rows[-1]), flush=True)
    for worker in running:
        worker.close()
    return rows


def _row(worker: Worker, length_s: float, answers: list[dict], expected_s: float) -> dict[str, Any]:
    kind, name, variant = worker.spec
    row: dict[str, Any] = dict(zip(_KEYS, worker.spec, strict=True)) | {"audio_s": length_s}
    failed = [answer["unavailable"] for answer in answers if "unavailable" in answer]
    if failed or not answers:
        return row | {"unavailable": failed[0] if failed else f"left out: about {expected_s:.0f} s of processor time"}
    if kind == "codec":
        dtype = "float32" if variant.startswith("float32") else "bfloat16"
        row["gemm_gflops_per_cpu_s"] = round(worker.ask(f"gemm {dtype}")["gflops"], 1)
    for key in ("wall_s", "cpu_s"):
        values = [answer[key] for answer in answers]
        row[key] = [round(value, 5) for value in (min(values), statistics.median(values), max(values))]
    # What a program took that the worker ran is not known: the system counts the worker's own memory to it.
    is_program = name.startswith(("Codec2", "Opus"))
    row["memory_mb"] = None if is_program else round(answers[-1]["peak_mb"] - worker.ready["base_mb"], 1)
    return row | {"base_mb": round(worker.ready["base_mb"], 1)}


def stream(*arguments: str) -> list[dict]:
    """Rows of benchmarks/streaming.py; none, and a word, where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "streaming.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "streaming.py"), *arguments, "--json", str(path)]
        if subprocess.run(command, env=_environment()).returncode:
            print(f"left out: {' '.join(command)} failed", file=sys.stderr)
            return []
        return json.loads(path.read_text())["rows"]


def free_gb() -> float:
    """Memory that a new process can have."""
    with open("/proc/meminfo") as file:
        sizes = dict(line.split(":") for line in file)
    return int(sizes["MemAvailable"].split()[0]) * 1024 / 1e9


def busy_s() -> float:
    """Processor seconds that all processes of the machine have used since it started."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, file.readline().split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def children_s() -> float:
    """Processor seconds of all processes that this one started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def machine(num_threads: int) -> dict[str, Any]:
    """What was measured on, and with."""
    cpu: dict[str, str] = {}
    with open("/proc/cpuinfo") as file:
        for text in file:
            key, _, value = text.partition(":")
            cpu.setdefault(key.strip(), value.strip())
    flags, wanted = cpu.get("flags", "").split(), "avx2 avx512f avx512_bf16 avx512_vnni amx_bf16 amx_int8"
    return {
        "processor": cpu.get("model name", platform.machine()),
        "family": f"{cpu.get('cpu family')}/{cpu.get('model')}",
        "vectors": [name for name in wanted.split() if name in flags],
        "cores": os.cpu_count(),
        "threads": num_threads,
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def commit() -> str:
    """Of the working tree, with a + where it has changed since; empty outside of git."""
    done = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of mini, 5 and 30 s; docs stay")
    parser.add_argument("--seconds", type=float, nargs="+", default=[5, 30, 60, 300])
    parser.add_argument("--large-seconds", type=float, nargs="+", default=[30], help="of paper-950m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit-s", type=float, default=120.0, help="processor time of a cell that is still measured")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    seconds = [5.0, 30.0] if options.quick else options.seconds
    rounds = 1 if options.quick else options.rounds
    started, busy_before = time.perf_counter(), busy_s()
    shared = (rounds, options.limit_s / (8 if options.quick else 1), options.threads)
    ours = [("codec", "mini", variant) for variant in VARIANTS]
    rows = measure([*ours, *(("peer", name, "-") for name in PEERS)], seconds, *shared)
    rows += measure([("training", "mini", "-")], [CROPS_S], *shared)
    rows += measure([("discriminator", "-", variant) for variant in DISCRIMINATORS], [DRAWS_S], *shared)
    streaming = stream("--models", "mini-causal", "--steps", "50" if options.quick else "200")
    if not options.quick:
        large = [("codec", "paper-950m", variant) for variant in VARIANTS if variant != "float32 fast"]
        for specs in [large] if free_gb() > TOGETHER_GB else [[spec] for spec in large]:
            rows += measure(specs, options.large_seconds, *shared)
        streaming += stream("--models", "240m", "--steps", "60")
        streaming += stream("--models", "950m", "--frames", "8", "--steps", "12", "--dtypes", "bfloat16", "int8")
    elapsed_s = time.perf_counter() - started
    others = (busy_s() - busy_before - children_s()) / elapsed_s / (os.cpu_count() or 1)
    record = {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": machine(options.threads),
        "options": {"rounds": rounds, "seconds": seconds, "is_quick": options.quick},
        "elapsed_s": round(elapsed_s),
        "used_by_others": round(max(0.0, others), 3),
        "rows": rows,
        "streaming": streaming,
    }
    print(speed_report.tables(record))
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "bench-history.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    if not options.quick:
        (RESULTS / "bench.json").write_text(json.dumps(record, indent=1) + "\n")
        speed_report.write(record)


if __name__ == "__main__":
    main()
