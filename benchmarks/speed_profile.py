"""Where the time of encoding and decoding goes, by operator, on one thread.

    python benchmarks/speed_profile.py [--model mini] [--dtype bfloat16] [--kernels auto] [--seconds 30] [--layers 2]

torch's profiler counts how long operators last outside of the operators that they call; what other processes take on a
busy machine falls on all of them alike. `--layers` keeps only so many layers of each block, since all are alike:
paper-950m then fits into 1 GB and profiles in seconds.
"""

import argparse
import dataclasses
import json
import warnings

import torch
from torch.profiler import ProfilerActivity, profile

from taae.checkpoint import load_model, random_model
from taae.codec import Codec
from taae.config import load_preset

# The first group with a word that the operator's name contains; bmm and softmax are nowhere but in attention.
GROUPS = {
    "attention": ("attention", "bmm", "softmax"),
    "matrix products": ("mm", "linear", "mkldnn", "onednn", "convolution"),
    "norms": ("layer_norm",),
    "copies and layout": ("copy", "cat", "contiguous", "clone", "fill", "empty", "reorder", "to", "pad", "zero"),
}


def shares(codec: Codec, seconds: float) -> tuple[dict[str, float], list[tuple[str, float, int]], float]:
    """Share of each group; the twelve operators that take most, with their calls; milliseconds in all."""
    wav = 0.1 * torch.randn(1, 1, round(seconds * codec.sample_rate_hz), generator=torch.Generator().manual_seed(0))
    codec.decode(codec.encode(wav))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        codec.decode(codec.encode(wav))
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    groups = dict.fromkeys([*GROUPS, "the rest"], 0.0)
    for event in events:
        name = event.key.removeprefix("aten::").strip("_")
        group = next((group for group, words in GROUPS.items() if any(word in name for word in words)), "the rest")
        groups[group] += event.self_cpu_time_total / total
    rows = [(event.key, event.self_cpu_time_total / total, event.count) for event in events[:12]]
    return groups, rows, total / 1000


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--layers", type=int, default=0, help="of each block; 0 keeps all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.layers:
        config = load_preset(options.model)
        depths = tuple(min(depth, options.layers) for depth in config.depths)
        loaded = random_model(dataclasses.replace(config, depths=depths))
    else:
        loaded = load_model(options.model)
    codec = Codec(*loaded, dtype=options.dtype, kernels=options.kernels)
    groups, rows, total_ms = shares(codec, options.seconds)
    print(f"{options.model}, {options.dtype} {options.kernels}, {options.seconds:g} s: {total_ms:.0f} ms on one thread")
    for name, share in groups.items():
        print(f"  {name:20} {share:6.1%}")
    for name, share, count in rows:
        print(f"    {name:48} {share:6.1%} {count:6}")
    print(json.dumps({name: round(share, 3) for name, share in groups.items()}))


if __name__ == "__main__":
    main()
