"""What bfloat16 and int8 change: tokens of the encoder, and what encoder and decoder cost in quality.

    python benchmarks/precision.py MANIFEST [--model mini] [--clips 20] [--bottleneck 1x6^6 2x5^6] [--json OUT]

The clips are spread evenly over the manifest. Tokens: the share of tokens, of digits (a token has one for each
dimension) and of whole frames that differ from those of the float32 reference. Quality: PESQ (raw narrow-band, P.862)
and STOI against the original, with the precision in the encoder alone, in the decoder alone, and in both; beside the
mean the mean difference to float32 on both sides, clip by clip, with its 95 % bootstrap interval.
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

import taae
from taae import packed
from taae.audio import load_wav, to_mono
from taae.bitstream import unpack
from taae.evaluate import Clip, read_manifest
from taae.fast import Kernels
from taae.fsq import split_digits
from taae.metrics import bootstrap_ci, pesq_raw_nb, stoi

REFERENCE = "float32"
VARIANTS: dict[str, tuple[str, Kernels]] = {
    "float32 fast": ("float32", "fast"),
    "bfloat16 plain": ("bfloat16", "plain"),
    "bfloat16": ("bfloat16", "auto"),
    "int8": ("int8", "auto"),
}
SCORED = ("bfloat16", "int8")
METRICS = {"pesq_raw_nb": pesq_raw_nb, "stoi": stoi}


def flips(reference: list[bytes], changed: list[bytes]) -> dict[str, float]:
    """Shares of tokens, digits and frames that differ between the files of the same recordings."""
    tokens, digits, frames = [], [], []
    for first, second in zip(reference, changed, strict=True):
        (header, ours), (_, theirs) = unpack(first), unpack(second)
        spec = header.bottleneck
        differ = ours != theirs
        tokens.append(differ.ravel())
        frames.append(differ.any(axis=1))
        each = [split_digits(torch.from_numpy(side), spec.levels, spec.dim).numpy() for side in (ours, theirs)]
        digits.append((each[0] != each[1]).ravel())
    shares = {"tokens": tokens, "digits": digits, "frames": frames}
    return {name: float(np.concatenate(values).mean()) for name, values in shares.items()}


def measure(model: str, clips: list[Clip], bottlenecks: list[str]) -> list[dict[str, Any]]:
    """One row per bottleneck and variant: flips, and for those of `SCORED` the cost in quality."""
    reference = taae.load(model)
    codecs = {name: taae.load(model, dtype=dtype, kernels=kernels) for name, (dtype, kernels) in VARIANTS.items()}
    files: dict[tuple[str, str], list[bytes]] = {}
    scores: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number, clip in enumerate(clips, start=1):
        wav, rate_hz = load_wav(clip.path)
        original = to_mono(wav)
        for name, codec in ({REFERENCE: reference} | codecs).items():
            for bottleneck, data in zip(
                bottlenecks, codec.compress_each(wav, bottlenecks, sample_rate_hz=rate_hz), strict=True
            ):
                files.setdefault((bottleneck, name), []).append(data)
        for bottleneck in bottlenecks:
            plain = files[bottleneck, REFERENCE][-1]
            sounds = {REFERENCE: reference.decompress(plain)}
            for name in SCORED:
                own = files[bottleneck, name][-1]
                sounds[f"{name} encoder"] = reference.decompress(own)
                sounds[f"{name} decoder"] = codecs[name].decompress(plain)
                sounds[f"{name} both"] = codecs[name].decompress(own)
            for name, sound in sounds.items():
                row = {metric: score(original, to_mono(sound), rate_hz) for metric, score in METRICS.items()}
                scores.setdefault((bottleneck, name), []).append(row)
        print(f"clip {number} of {len(clips)}", flush=True)
    rows = []
    for bottleneck in bottlenecks:
        base = scores[bottleneck, REFERENCE]
        rows.append({"bottleneck": bottleneck, "variant": REFERENCE} | _quality(base, base))
        for name in VARIANTS:
            row: dict[str, Any] = {"bottleneck": bottleneck, "variant": name}
            row["changed"] = flips(files[bottleneck, REFERENCE], files[bottleneck, name])
            for side in ("encoder", "decoder", "both") if name in SCORED else ():
                row[side] = _quality(scores[bottleneck, f"{name} {side}"], base)
            rows.append(row)
    return rows


def _quality(rows: list[dict[str, float]], base: list[dict[str, float]]) -> dict[str, Any]:
    found = {}
    for metric in METRICS:
        values = np.array([row[metric] for row in rows])
        difference, low, high = bootstrap_ci(values - np.array([row[metric] for row in base]))
        found[metric] = {"mean": float(values.mean()), "difference": difference, "low": low, "high": high}
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| bottleneck | precision | tokens changed | digits | in | PESQ | STOI |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        head = f"| `{row['bottleneck']}` | {row['variant']} |"
        changed = row.get("changed")
        head += f" {100 * changed['tokens']:.1f} % | {100 * changed['digits']:.1f} % |" if changed else " | |"
        sides = (
            {"": row}
            if "pesq_raw_nb" in row
            else {side: row[side] for side in ("encoder", "decoder", "both") if side in row}
        )
        lines += [
            f"{head} {side} | {_cell(q['pesq_raw_nb'], 3)} | {_cell(q['stoi'], 4)} |" for side, q in sides.items()
        ]
        lines += [] if sides else [f"{head} | | |"]
    return "\n".join(lines)


def _cell(value: dict[str, float], digits: int) -> str:
    shown = f"{value['mean']:.{digits}f}"
    if not value["difference"]:
        return shown
    difference, low, high = (f"{value[key]:+.{digits}f}" for key in ("difference", "low", "high"))
    return f"{shown} ({difference}; {low} ... {high})"


def main() -> None:
    """Print the table and, when asked, store the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--bottleneck", nargs="+", default=["1x6^6", "2x5^6"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    everything = read_manifest(arguments.manifest)
    clips = [everything[i * len(everything) // arguments.clips] for i in range(arguments.clips)]
    rows = measure(arguments.model, clips, arguments.bottleneck)
    print(table(rows))
    if arguments.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "has_bfloat16": packed.has_bfloat16(),
            "has_int8": packed.has_int8(),
            "torch": torch.__version__,
        }
        found = {"model": arguments.model, "clips": [clip.id for clip in clips], "machine": machine, "rows": rows}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
