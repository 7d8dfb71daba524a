"""ONNX Runtime beside PyTorch, float32: processor time of both halves for the same audio, in interleaved rounds.

    python benchmarks/export.py [--model mini] [--seconds 5 30 60] [--rounds 3] [--json OUT]

One thread each. Processor time and not wall time, and the best of the rounds, so that a busy machine disturbs little.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch

import taae
from taae.export import export_onnx


def measure(model: str, seconds: list[int], rounds: int) -> list[dict]:
    """One row a half and length."""
    codec = taae.load(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        encoder, decoder = (
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for path in export_onnx(codec, folder).values()
        )
    rows = []
    for length_s in seconds:
        wav = 0.1 * torch.randn(1, 1, length_s * codec.sample_rate_hz, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            codes = codec.model.encode_latents(wav).tanh()
        feeds = {"wav": wav.numpy()}, {"codes": codes.numpy()}
        runs: dict[str, tuple[Callable, Callable]] = {
            "encoder": (lambda w=wav: codec.model.encode_latents(w), lambda f=feeds[0]: encoder.run(None, f)),
            "decoder": (lambda c=codes: codec.model.decode_latents(c), lambda f=feeds[1]: decoder.run(None, f)),
        }
        for half, pair in runs.items():
            best = [float("inf")] * 2
            for _ in range(rounds):
                for index, run in enumerate(pair):
                    started = time.process_time()
                    with torch.inference_mode():
                        run()
                    best[index] = min(best[index], time.process_time() - started)
            rows.append(
                {
                    "half": half,
                    "audio_s": length_s,
                    "torch_s": round(best[0], 4),
                    "onnxruntime_s": round(best[1], 4),
                    "speedup": round(best[0] / best[1], 2),
                }
            )
    return rows


def main() -> None:
    """Print the table and, when asked, store it with what the machine is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=int, nargs="+", default=[5, 30, 60])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.model, arguments.seconds, arguments.rounds)
    print(f"{'half':8} {'audio s':>8} {'torch s':>9} {'onnxruntime s':>14} {'speedup':>8}")
    for row in rows:
        times = f"{row['torch_s']:9.3f} {row['onnxruntime_s']:14.3f}"
        print(f"{row['half']:8} {row['audio_s']:8} {times} {row['speedup']:7.2f}x")
    if arguments.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(
            json.dumps({"machine": machine, "model": arguments.model, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
