"""What lost frames cost, concealed or filled with silence, on real speech: raw narrow-band PESQ and STOI.

    python benchmarks/packet_loss.py [--model mini-causal] [--loss 0 0.05 0.1 0.2] [--clips 20] [--json OUT]

Clips are the first ones of data_manifests/speech.dev.jsonl.gz in a shuffled order, found below $TAAE_SHARED/speech/dev
(../shared). Both ways lose the same frames; "silence" decodes as the concealment does and mutes what was lost.
"""

import argparse
import gzip
import json
import os
from pathlib import Path

import numpy as np
import torch

import taae
from taae.audio import load_wav, loudness_gain, resample
from taae.metrics import pesq_raw_nb, stoi
from taae.streaming import StreamingDecoder, StreamingEncoder

ROOT = Path(__file__).resolve().parents[1]


def clips(count: int) -> list[np.ndarray]:
    """Speech (n,) at 16 kHz and -20 LUFS, at least 3 s and at most 10 s."""
    shared = Path(os.environ.get("TAAE_SHARED", ROOT.parent / "shared")) / "speech" / "dev"
    with gzip.open(ROOT / "data_manifests" / "speech.dev.jsonl.gz", "rt") as file:
        rows = [row for row in map(json.loads, file) if row.get("seconds", 0) >= 3]
    found = []
    for index in np.random.default_rng(0).permutation(len(rows))[:count]:
        wav, rate_hz = load_wav(shared / rows[index]["path"])
        mono = resample(wav.mean(axis=0), rate_hz, 16000)[: 10 * 16000]
        found.append((mono * loudness_gain(mono, 16000)).astype(np.float32))
    return found


def measure(model: str, bottleneck: str, losses: list[float], count: int) -> list[dict]:
    """One row for each loss and way."""
    codec = taae.load(model)
    rows = []
    for loss in losses:
        scores: dict[str, list[tuple[float, float]]] = {"concealed": [], "silence": []}
        for seed, wav in enumerate(clips(count)):
            wav = wav[: len(wav) - len(wav) % codec.hop_samples]
            tokens = StreamingEncoder(codec, bottleneck, max_frames=50).push(torch.from_numpy(wav)[None, None])
            is_lost = np.random.default_rng(seed).random(tokens.shape[1]) < loss
            decoder = StreamingDecoder(codec, bottleneck, max_frames=50)
            heard = decoder.push(tokens, torch.from_numpy(is_lost)[None])[0, 0].numpy()
            muted = heard * np.repeat(~is_lost, codec.hop_samples)
            for way, result in (("concealed", heard), ("silence", muted)):
                scores[way].append((pesq_raw_nb(wav, result, 16000), stoi(wav, result, 16000)))
        for way, values in scores.items():
            pesq, intelligibility = np.mean(values, axis=0)
            rows.append({"loss": loss, "way": way, "pesq_raw_nb": round(pesq, 3), "stoi": round(intelligibility, 3)})
    return rows


def main() -> None:
    """Print the table and, when asked, store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini-causal")
    parser.add_argument("--bottleneck", default="2x5^6")
    parser.add_argument("--loss", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2])
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = measure(arguments.model, arguments.bottleneck, arguments.loss, arguments.clips)
    print(f"{'lost':>6}  {'way':10} {'PESQ':>6} {'STOI':>6}")
    for row in rows:
        print(f"{row['loss']:6.0%}  {row['way']:10} {row['pesq_raw_nb']:6.2f} {row['stoi']:6.3f}")
    if arguments.json:
        record = {"model": arguments.model, "bottleneck": arguments.bottleneck, "clips": arguments.clips, "rows": rows}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
