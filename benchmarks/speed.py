"""Speed of the codec on this machine, as ratios measured side by side in one process.

    python benchmarks/speed.py [--model mini] [--seconds 10 30 60] [--rounds 3] [--json OUT]

Each row is encode plus decode of noise at speech level; the rounds of all variants are interleaved and the fastest
counts, so that a busy machine disturbs them alike. "reference" is dense attention under a mask: the same result at a
cost that grows with the square of the length. Weights do not matter for time, so presets run with random ones.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch

import taae
from taae.attention import Backend
from taae.codec import Codec


def measure(model: str, seconds: list[int], rounds: int) -> list[dict]:
    """Fastest wall time per variant and length, with real-time factors (seconds of work per second of audio)."""
    plain, half = taae.load(model), taae.load(model, dtype="bfloat16")
    rows = []
    for length_s in seconds:
        wav = 0.1 * torch.randn(1, 1, length_s * plain.sample_rate_hz, generator=torch.Generator().manual_seed(0))
        variants: dict[str, tuple[Codec, Backend]] = {
            "float32 reference": (plain, "reference"),
            "float32 blocked": (plain, "blocked"),
            "bfloat16 blocked": (half, "blocked"),
        }
        best = dict.fromkeys(variants, float("inf"))
        for _ in range(rounds):
            for name, (codec, backend) in variants.items():
                codec.model.backend = backend
                started = time.perf_counter()
                codec.decode(codec.encode(wav))
                best[name] = min(best[name], time.perf_counter() - started)
        for name, elapsed_s in best.items():
            rows.append(
                {
                    "model": model,
                    "variant": name,
                    "audio_s": length_s,
                    "elapsed_s": elapsed_s,
                    "rtf": elapsed_s / length_s,
                    "speedup": best["float32 reference"] / elapsed_s,
                }
            )
    return rows


def main() -> None:
    """Print the table and, when asked, store it with what the machine is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 30, 60])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = measure(arguments.model, arguments.seconds, arguments.rounds)
    print(f"{'variant':20} {'audio s':>8} {'times real time':>16} {'against reference':>18}")
    for row in rows:
        print(f"{row['variant']:20} {row['audio_s']:8} {1 / row['rtf']:16.1f} {row['speedup']:17.2f}x")
    if arguments.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
