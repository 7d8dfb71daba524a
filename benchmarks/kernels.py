"""Number formats and kernels of one model against each other, side by side in one process; on cuda, Table 10.

    python benchmarks/kernels.py [--model mini] [--seconds 5 30 60] [--rounds 3] [--device cpu] [--json OUT]

Each row is encode plus decode of noise at speech level. The variants take turns, round by round, so that a busy machine
disturbs them alike; a ratio is the median over rounds of "float32 dense" in that round over the variant. Processor time
stands beside wall time, since it suffers less from neighbours. "dense" is attention under a mask: the same result at a
cost that grows with the square of the length, as the published code has it on a CPU. Weights do not matter for time,
so presets run with random ones.

On cuda every length runs alone and in the batch that is fastest per second of audio (Table 10). With --share, what the
matrix products alone would take here stands above the rows: the same sizes, prepacked, in the same process.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from taae import packed
from taae.attention import Backend
from taae.checkpoint import load_model
from taae.codec import Codec
from taae.config import ModelConfig
from taae.fast import Kernels

CPU_VARIANTS: dict[str, tuple[str, Kernels, Backend]] = {  # dtype, kernels, backend
    "float32 dense": ("float32", "plain", "reference"),
    "float32 plain": ("float32", "plain", "auto"),
    "float32 fast": ("float32", "fast", "auto"),
    "bfloat16 plain": ("bfloat16", "plain", "auto"),
    "bfloat16 fast": ("bfloat16", "fast", "auto"),
    "int8 fast": ("int8", "fast", "auto"),
}
CUDA_VARIANTS: dict[str, tuple[str, Kernels, Backend]] = {
    "float32 blocked": ("float32", "plain", "blocked"),
    "float16 blocked": ("float16", "plain", "blocked"),
    "bfloat16 blocked": ("bfloat16", "plain", "blocked"),
    "bfloat16 flex": ("bfloat16", "plain", "flex"),
    "bfloat16 flash": ("bfloat16", "plain", "flash"),
}
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def load_variants(model: str, device: str, names: list[str]) -> dict[str, tuple[Codec, Backend]]:
    """One codec for each dtype and kernels; variants that differ in the attention backend alone share it."""
    codecs: dict[tuple[str, str], Codec] = {}
    variants = {}
    for name, (dtype, kernels, backend) in (CPU_VARIANTS if device == "cpu" else CUDA_VARIANTS).items():
        if names and name not in names:
            continue
        if (dtype, kernels) not in codecs:
            # Loaded anew, for memory: a fast codec takes the weights of its model apart.
            codecs[dtype, kernels] = Codec(*load_model(model), device=device, dtype=dtype, kernels=kernels)
        variants[name] = codecs[dtype, kernels], backend
    return variants


def measure(variants: dict[str, tuple[Codec, Backend]], length_s: int, batch: int, rounds: int) -> list[dict]:
    """Medians over the rounds, after one that warms up; variants that cannot run here are left out, and named."""
    times: dict[str, list[tuple[float, float]]] = {}
    for turn in range(rounds + 1):
        for name, (codec, backend) in variants.items():
            if turn and name not in times:
                continue
            codec.model.backend = backend
            try:
                elapsed = _time(codec, length_s, batch)
            except RuntimeError as error:  # no flash-attn, or no memory for this batch
                print(f"left out: {name}, {batch} x {length_s} s: {str(error).splitlines()[0]}")
                torch.cuda.empty_cache()
                continue
            times.setdefault(name, []).extend([elapsed] if turn else [])
    dense = times.get("float32 dense")
    rows = []
    for name, found in times.items():
        wall_s, cpu_s = (median(values) for values in zip(*found, strict=True))
        row = {"variant": name, "audio_s": length_s, "batch": batch, "wall_s": wall_s, "cpu_s": cpu_s}
        row["rtf"] = wall_s / (length_s * batch)
        if dense:
            for place, unit in enumerate(("wall", "cpu")):
                ratios = [a[place] / b[place] for a, b in zip(dense, found, strict=True)]
                row[f"speedup_{unit}"] = median(ratios)
        rows.append(row)
    return rows


def _time(codec: Codec, length_s: int, batch: int) -> tuple[float, float]:
    """Wall and processor time of one encode and decode."""
    generator = torch.Generator().manual_seed(0)
    wav = 0.1 * torch.randn(batch, 1, length_s * codec.sample_rate_hz, generator=generator)
    finish: Callable[[], None] = torch.cuda.synchronize if codec.device.type == "cuda" else lambda: None
    finish()
    wall, cpu = time.perf_counter(), time.process_time()
    codec.decode(codec.encode(wav))
    finish()
    return time.perf_counter() - wall, time.process_time() - cpu


def best_batch(variants: dict[str, tuple[Codec, Backend]], length_s: int, rounds: int) -> list[dict]:
    """For each variant the row of one recording and, where another is faster per second of audio, of the best batch."""
    rows = [row for batch in BATCHES for row in measure(variants, length_s, batch, rounds)]
    kept = []
    for name in variants:
        own = [row for row in rows if row["variant"] == name]
        kept += [row for row in own if row["batch"] == 1 or row is min(own, key=lambda row: row["rtf"])]
    return kept


def matrix_products(config: ModelConfig, dtype: str, length_s: int) -> float:
    """Processor seconds of the linear layers alone for encode plus decode: what no path can be below."""
    weights: packed.Weights = "bfloat16" if dtype == "bfloat16" and packed.has_bfloat16() else "float32"
    width, inner = config.width, config.ff_mult * config.width
    shapes = [(width, 3 * width), (width, width), (width, inner), (width, inner), (inner, width)]
    layer_rows = 0.0
    rate_hz = config.sample_rate_hz / config.patch_samples
    for stride, depth in zip(config.strides, config.depths, strict=True):
        rate_hz /= stride
        layer_rows += 2 * depth * rate_hz * length_s
    rows, seconds = 256, 0.0
    for inputs, outputs in shapes:
        layer = packed.pack(torch.randn(outputs, inputs), None, weights)
        values = torch.randn(rows, inputs).to(torch.bfloat16 if weights == "bfloat16" else torch.float32)
        found = []
        for _ in range(12):
            started = time.process_time()
            layer(values)
            found.append(time.process_time() - started)
        seconds += median(found) * layer_rows / rows
    return seconds


def main() -> None:
    """Print the table and, when asked, store it with what the machine is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=int, nargs="+", default=[5, 30, 60])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", default=[], metavar="NAME", help="only these")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--share", action="store_true", help="measure the matrix products by themselves too")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    variants = load_variants(arguments.model, arguments.device, arguments.variants)
    config = next(iter(variants.values()))[0].config
    rows, products = [], []
    for length_s in arguments.seconds:
        if arguments.share:
            for dtype in ("float32", "bfloat16"):
                products.append(
                    {"dtype": dtype, "audio_s": length_s, "cpu_s": matrix_products(config, dtype, length_s)}
                )
                print(f"matrix products in {dtype}, {length_s} s: {products[-1]['cpu_s']:.2f} s of processor time")
        if arguments.device == "cuda":
            rows += best_batch(variants, length_s, arguments.rounds)
        else:
            rows += measure(variants, length_s, 1, arguments.rounds)
    print(f"{'variant':18} {'audio s':>8} {'batch':>6} {'RTF':>9} {'cpu s':>8} {'dense / it, wall':>17} {'cpu':>6}")
    for row in rows:
        ratios = f"{row.get('speedup_wall', float('nan')):17.2f} {row.get('speedup_cpu', float('nan')):6.2f}"
        print(f"{row['variant']:18} {row['audio_s']:8} {row['batch']:6} {row['rtf']:9.5f} {row['cpu_s']:8.2f} {ratios}")
    if arguments.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "has_bfloat16": packed.has_bfloat16(),
            "has_int8": packed.has_int8(),
            "threads": torch.get_num_threads(),
            "device": arguments.device if arguments.device == "cpu" else torch.cuda.get_device_name(),
            "torch": torch.__version__,
        }
        found = {"model": arguments.model, "machine": machine, "matrix_products": products, "rows": rows}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
