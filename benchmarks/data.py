"""How fast training audio is made on this machine: sources and workers side by side in one process.

    python benchmarks/data.py [--shared DIR] [--clips 600] [--rounds 3] [--json OUT]

Clips of the training set, in Opus as they are and in FLAC, are packed, left as files and put into shards. Each figure
is seconds of audio in the crops per second of wall time, in batches of 16 crops of 5.12 s; the rounds of all variants
are interleaved and the fastest counts. Without workers it is also given per second of processor time, which a busy
machine changes less. Workers here have the cores to themselves, which they would share with a model on the CPU.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

from taae.audio import load_wav, save_wav
from taae.data import DataConfig, Prefetched, open_crops
from taae.shards import build_shards

WORKERS = (0, 1, 2)
CONFIG = DataConfig(segment_s=5.12, batch_size=16)


def prepare(shared: Path, folder: Path, num_clips: int) -> Path:
    """Every n-th clip of the training set as opus.jsonl and flac.jsonl, with shards of each; returns `folder`."""
    manifest = shared / CONFIG.manifest
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    rows = rows[:: max(1, len(rows) // num_clips)]
    for suffix in ("opus", "flac"):
        lines = []
        for number, row in enumerate(rows):
            path = manifest.parent / row["path"]
            if suffix == "flac":
                wav, rate_hz = load_wav(path)
                path = folder / f"{number}.flac"
                save_wav(path, wav, rate_hz)
            lines.append(json.dumps({"id": row["id"], "path": str(path), "seconds": row["seconds"]}))
        (folder / f"{suffix}.jsonl").write_text("\n".join(lines))
        build_shards(folder / f"{suffix}.jsonl", folder / f"{suffix}-shards", 4, show_progress=False)
    return folder


def measure(folder: Path, rounds: int, batches: int = 6) -> list[dict]:
    """Audio-seconds per second of every source and number of workers, and how they compare with packed without any."""
    keys = {
        "packed": {"manifest": "opus.jsonl"},
        **{f"files, {suffix}": {"manifest": f"{suffix}.jsonl", "is_packed": False} for suffix in ("opus", "flac")},
        **{f"shards, {suffix}": {"manifest": f"{suffix}-shards"} for suffix in ("opus", "flac")},
    }
    variants = {}
    for name, key in keys.items():
        config = DataConfig(segment_s=CONFIG.segment_s, batch_size=CONFIG.batch_size, **key)
        for num_workers in WORKERS:
            # A source for each, since files remember gains: here every clip is new to every variant.
            source = open_crops(config, folder, folder / "packed", 16000, seed=0)
            variants[name, num_workers] = source if num_workers == 0 else Prefetched(source, num_workers)
    best = {variant: (float("inf"), float("inf")) for variant in variants}
    for turn in range(rounds):
        for variant, source in variants.items():
            ahead = 2 * variant[1] + 2 if variant[1] else 0  # what workers have made before the clock starts
            first = turn * (batches + ahead)
            for step in range(first, first + ahead):
                source.batch(step)
            started, cpu_started = time.perf_counter(), time.process_time()
            for step in range(first + ahead, first + ahead + batches):
                source.batch(step)
            elapsed = time.perf_counter() - started, time.process_time() - cpu_started
            best[variant] = (min(best[variant][0], elapsed[0]), min(best[variant][1], elapsed[1]))
    seconds = batches * CONFIG.batch_size * CONFIG.segment_s
    return [
        {
            "source": name,
            "num_workers": num_workers,
            "audio_s_per_s": round(seconds / elapsed_s),
            "audio_s_per_cpu_s": None if num_workers else round(seconds / cpu_s),
            "ratio": round(best["packed", 0][0] / elapsed_s, 3),
        }
        for (name, num_workers), (elapsed_s, cpu_s) in best.items()
    ]


def main() -> None:
    """Print the table and, when asked, store it with what the machine is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("TAAE_SHARED", "../shared")))
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(prepare(arguments.shared.resolve(), Path(folder), arguments.clips), arguments.rounds)
    print(f"{'source':14} {'workers':>7} {'audio s per s':>14} {'per CPU s':>10} {'against packed':>15}")
    for row in rows:
        cpu = row["audio_s_per_cpu_s"] or ""
        print(f"{row['source']:14} {row['num_workers']:7} {row['audio_s_per_s']:14} {cpu:>10} {row['ratio']:14.2f}x")
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
