"""Time and memory of streaming, step by step, against the 40 ms that a frame lasts.

    python benchmarks/streaming.py [--models mini-causal 240m] [--dtypes float32] [--frames 1] [--hour] [--json OUT]

Encoder and decoder run at the same time, in a process and on a thread each, as on a machine that has a core for either:
what one takes of the memory's rate, the other lacks. "cpu" is processor time, what a step takes where nothing else
wants the core; on a busy machine it is the number to read. The presets get a causal window of 64 keys and random
weights, which do not matter for time. `--frames` go into a step together, `--streams` tick together. `--hour` streams
an hour through mini-causal in pieces of two seconds and looks at the memory of the process.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch

import taae
from taae.checkpoint import random_model
from taae.codec import Codec
from taae.config import load_preset
from taae.streaming import StreamingDecoder, StreamingEncoder

PRESETS = {"240m": "paper-240m", "540m": "paper-540m", "950m": "paper-950m"}
HALVES = ("encoder", "decoder")
FRAME_MS = 40


def load(name: str, dtype: str) -> Codec:
    """An embedded causal model, or the causal sibling of a preset with random weights."""
    warnings.simplefilter("ignore")
    if name not in PRESETS:
        return taae.load(name, dtype=dtype)
    config = load_preset(PRESETS[name])
    config = dataclasses.replace(config, name=f"{name}-causal", window=(63, 0), is_causal=True)
    return Codec(*random_model(config), dtype=dtype)


def time_half(name: str, dtype: str, half: str, num_steps: int, num_frames: int, num_streams: int) -> dict:
    """One row, of steps that begin when a line comes in on stdin. A ring costs the same full or empty."""
    codec = load(name, dtype)
    kind = StreamingEncoder if half == "encoder" else StreamingDecoder
    stream = kind(codec, num_streams=num_streams, max_frames=num_frames)
    generator = torch.Generator().manual_seed(0)
    if half == "encoder":
        piece = 0.1 * torch.randn(num_streams, 1, num_frames * codec.hop_samples, generator=generator)
    else:
        piece = torch.randint(0, 5**6, (num_streams, num_frames, 2), generator=generator)
    for _ in range(5):
        stream.push(piece)
    print("ready", flush=True)
    sys.stdin.readline()
    times = []
    for _ in range(num_steps):
        started, cpu_started = time.perf_counter(), time.thread_time()
        stream.push(piece)
        times.append((time.perf_counter() - started, time.thread_time() - cpu_started))
    wall_ms, cpu_ms = 1000 * np.array(times).T
    weights = getattr(codec.model, half)
    return {
        "model": codec.name,
        "dtype": dtype,
        "half": half,
        "frames": num_frames,
        "streams": num_streams,
        "available_ms": FRAME_MS * num_frames,
        "wall_ms_p50": round(float(np.median(wall_ms)), 3),
        "wall_ms_p99": round(float(np.percentile(wall_ms, 99)), 3),
        "cpu_ms_p50": round(float(np.median(cpu_ms)), 3),
        "cpu_ms_best": round(float(cpu_ms.min()), 3),
        "weights_mb": round(sum(tensor.nbytes for tensor in weights.state_dict().values()) / 1e6, 1),
        "state_kb": round(stream.state_bytes / 1e3, 1),
    }


def time_both(*arguments: str) -> list[dict]:
    """A row of each half, measured side by side."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--half", half, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for half in HALVES
    ]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    rows = []
    for child in children:
        output, _ = child.communicate()
        if child.returncode:
            raise RuntimeError(f"{' '.join(arguments)} ended with code {child.returncode}")
        rows.append(json.loads(output))
    return rows


def hour() -> dict:
    """Memory of the process at the beginning and at the end of an hour, and how long that took."""
    codec = taae.load("mini-causal")
    encoder, decoder = StreamingEncoder(codec, max_frames=50), StreamingDecoder(codec, max_frames=50)
    piece = 0.1 * torch.randn(1, 1, 50 * codec.hop_samples, generator=torch.Generator().manual_seed(0))

    def resident_mb() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    sizes = []
    started, cpu_started = time.perf_counter(), time.process_time()
    for count in range(1800):
        decoder.push(encoder.push(piece))
        if count in (29, 899, 1799):
            sizes.append(round(resident_mb(), 1))
    elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    names = ("resident_mb_1_min", "resident_mb_30_min", "resident_mb_60_min")
    return dict(zip(names, sizes, strict=True)) | {
        "frames": encoder.num_frames,
        "state_kb": round((encoder.state_bytes + decoder.state_bytes) / 1e3, 1),
        "elapsed_s": round(elapsed_s, 1),
        "cpu_s": round(cpu_s, 1),
    }


def main() -> None:
    """Print the table and, when asked, store it with what the machine is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["mini-causal", *PRESETS], default=["mini-causal", "240m"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--half", choices=HALVES, help=argparse.SUPPRESS)
    parser.add_argument("--hour", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = (options.steps, options.frames, options.streams)
    if options.half:
        print(json.dumps(time_half(options.models[0], options.dtypes[0], options.half, *counts)))
        return
    sizes = [f"--steps={counts[0]}", f"--frames={counts[1]}", f"--streams={counts[2]}"]
    rows = []
    names = ("p50 ms", "p99 ms", "cpu p50", "cpu best", "of")
    print(f"{'model':12} {'half':8} {'dtype':9}", *(f"{name:>8}" for name in names), " state kB")
    for name in options.models:
        for dtype in options.dtypes:
            for row in time_both("--models", name, "--dtypes", dtype, *sizes):
                rows.append(row)
                keys = ("wall_ms_p50", "wall_ms_p99", "cpu_ms_p50", "cpu_ms_best", "available_ms")
                times = " ".join(f"{row[key]:8.1f}" for key in keys)
                print(f"{row['model']:12} {row['half']:8} {row['dtype']:9} {times} {row['state_kb']:9}", flush=True)
    record = {"torch": torch.__version__, "load_average": round(os.getloadavg()[0], 2), "rows": rows}
    if options.hour:
        record["hour"] = hour()
        print(json.dumps(record["hour"]))
    record["peak_resident_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
