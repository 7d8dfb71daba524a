"""Time and memory of streaming, step by step, against the 40 ms that a frame lasts.

    python benchmarks/streaming.py [--models mini-size 240m] [--dtypes float32] [--steps 100] [--hour] [--json OUT]

Every step pushes one frame. Models have the sizes of the presets, a causal window of 64 keys and random weights, which
do not matter for time. One thread a half: encoder and decoder can have a core each. "cpu" is processor time, which is
what the step would take on a core of its own, but for memory that others use. `--hour` streams an hour through the
smaller model in pieces of two seconds and looks at the memory of the process.
"""

import argparse
import dataclasses
import json
import os
import platform
import resource
import time
from pathlib import Path

import numpy as np
import torch

from taae.checkpoint import random_model
from taae.codec import Codec
from taae.config import ModelConfig, load_preset
from taae.streaming import StreamingDecoder, StreamingEncoder

PRESETS = {"mini-size": "mini", "240m": "paper-240m"}


def causal(name: str) -> ModelConfig:
    """The causal sibling of a preset."""
    return dataclasses.replace(load_preset(PRESETS[name]), name=f"{name}-causal", window=(63, 0), is_causal=True)


def measure(name: str, dtype: str, num_steps: int) -> list[dict]:
    """One row a half. A ring costs the same full or empty, so no frames have to go before."""
    codec = Codec(*random_model(causal(name)), dtype=dtype)
    hop = codec.hop_samples
    wav = 0.1 * torch.randn(1, 1, num_steps * hop, generator=torch.Generator().manual_seed(0))
    halves = {"encoder": StreamingEncoder(codec, max_frames=1), "decoder": StreamingDecoder(codec, max_frames=1)}
    times: dict[str, list[tuple[float, float]]] = {half: [] for half in halves}
    for frame in range(num_steps):
        piece = wav[..., frame * hop : (frame + 1) * hop]
        for half, stream in halves.items():
            started, cpu_started = time.perf_counter(), time.thread_time()
            piece = stream.push(piece)
            cpu_s, elapsed_s = time.thread_time() - cpu_started, time.perf_counter() - started
            times[half].append((1000 * elapsed_s, 1000 * cpu_s))
    rows = []
    for half, stream in halves.items():
        elapsed_ms, cpu_ms = np.array(times[half][min(10, num_steps // 2) :]).T
        p50, p99 = np.percentile(elapsed_ms, [50, 99])
        weights = sum(p.nbytes for p in getattr(codec.model, half).parameters())
        rows.append(
            {
                "model": codec.name,
                "half": half,
                "dtype": dtype,
                "step_ms_p50": round(float(p50), 3),
                "step_ms_p99": round(float(p99), 3),
                "cpu_ms_p50": round(float(np.median(cpu_ms)), 3),
                "cpu_ms_best": round(float(cpu_ms.min()), 3),
                "share_of_40_ms": round(float(p50) / codec.config.latency_ms, 3),
                "weights_mb": round(weights / 1e6, 1),
                "state_kb": round(stream.state_bytes / 1e3, 1),
            }
        )
    return rows


def hour() -> dict:
    """Memory of the process at the beginning and at the end of an hour, and how long that took."""
    codec = Codec(*random_model(causal("mini-size")))
    encoder, decoder = StreamingEncoder(codec, max_frames=50), StreamingDecoder(codec, max_frames=50)
    piece = 0.1 * torch.randn(1, 1, 50 * codec.hop_samples, generator=torch.Generator().manual_seed(0))

    def resident_mb() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    sizes = []
    started = time.perf_counter()
    for count in range(1800):
        decoder.push(encoder.push(piece))
        if count in (29, 899, 1799):
            sizes.append(round(resident_mb(), 1))
    elapsed_s = time.perf_counter() - started
    names = ("resident_mb_1_min", "resident_mb_30_min", "resident_mb_60_min")
    return dict(zip(names, sizes, strict=True)) | {
        "frames": encoder.num_frames,
        "state_kb": round((encoder.state_bytes + decoder.state_bytes) / 1e3, 1),
        "elapsed_s": round(elapsed_s, 1),
        "times_real_time": round(3600 / elapsed_s, 1),
    }


def main() -> None:
    """Print the table and, when asked, store it with what the machine is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--hour", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row for name in arguments.models for dtype in arguments.dtypes for row in measure(name, dtype, arguments.steps)
    ]
    names = ("p50 ms", "p99 ms", "cpu p50", "cpu best", "of 40 ms", "state kB")
    print(f"{'model':18} {'half':8} {'dtype':9}", *(f"{name:>8}" for name in names))
    for row in rows:
        times = " ".join(f"{row[key]:8.1f}" for key in ("step_ms_p50", "step_ms_p99", "cpu_ms_p50", "cpu_ms_best"))
        print(
            f"{row['model']:18} {row['half']:8} {row['dtype']:9} {times} {row['share_of_40_ms']:8.0%}", row["state_kb"]
        )
    record = {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": 1, "torch": torch.__version__},
        "load_average": os.getloadavg()[0],
        "rows": rows,
    }
    if arguments.hour:
        record["hour"] = hour()
        print(json.dumps(record["hour"]))
    record["peak_resident_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
