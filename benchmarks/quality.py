"""Quality over bitrate: the embedded model and classical codecs on the same clips, in one run.

    python benchmarks/quality.py MANIFEST [--model mini] [--language en] [--json OUT] [--results DIR]

PESQ is the raw narrow-band score of P.862, as in the paper, not MOS-LQO. Codec2 is moved by its delay, one number for
each mode found on the clips themselves. Means with 95 % bootstrap intervals over clips.
"""

import argparse
import json
import sys
from pathlib import Path

import taae
from taae.audio import load_wav, to_mono
from taae.evaluate import Clip, evaluate, read_manifest, summarise
from workbench.baselines import CODEC2_MODES, Codec2
from workbench.compare import BOTTLENECKS

METRICS = ("pesq_raw_nb", "stoi", "estoi", "mel_distance", "stft_distance")


def measure(model: str, clips: list[Clip], results: Path | None) -> list[dict]:
    """One row per codec and bitrate: bits per second, and each metric as mean, low, high."""
    pairs = [(clip.id, clip.path) for clip in clips]
    some = [(to_mono(wav), rate_hz) for wav, rate_hz in (load_wav(path) for _, path in pairs[:10])]
    rate_hz = some[0][1]
    rows = []
    codec = taae.load(model)
    for bottleneck, entry in _summary(codec, pairs, BOTTLENECKS, results).items():
        rows.append({"codec": f"TAAE {codec.name}", "mode": bottleneck} | entry)
    for mode in CODEC2_MODES:
        try:
            peer = Codec2(mode)
        except RuntimeError as error:
            print(f"left out: {error}", file=sys.stderr)
            break
        peer.measure_delay([wav for wav, rate in some if rate == rate_hz], rate_hz)
        (entry,) = _summary(peer, pairs, ["continuous"], results).values()
        nominal = float(mode.rstrip("C"))
        rows.append({"codec": "Codec2", "mode": mode} | entry | {"bits_per_second": nominal})
    return rows


def _summary(codec, pairs, bottlenecks, results: Path | None) -> dict[str, dict]:
    path = None if results is None else results / f"{codec.name.replace(' ', '-')}.jsonl"
    return summarise(evaluate(codec, pairs, list(bottlenecks), metrics=METRICS, results_path=path))


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = ["| codec | mode | bit/s | PESQ (raw NB) | STOI | ESTOI |", "|---|---|---|---|---|---|"]
    for row in rows:
        rate = "-" if row["bits_per_second"] is None else f"{row['bits_per_second']:.0f}"
        cells = [_interval(row[name], digits) for name, digits in (("pesq_raw_nb", 2), ("stoi", 3), ("estoi", 3))]
        lines.append(f"| {row['codec']} | `{row['mode']}` | {rate} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(value: dict, digits: int) -> str:
    return f"{value['mean']:.{digits}f} ({value['low']:.{digits}f} ... {value['high']:.{digits}f})"


def main() -> None:
    """Print the table and, when asked, store the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--language", help="only clips of this language")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--results", type=Path, help="folder for finished clips; the same command continues")
    arguments = parser.parse_args()
    clips = [clip for clip in read_manifest(arguments.manifest) if arguments.language in (None, clip.language)]
    if arguments.results:
        arguments.results.mkdir(parents=True, exist_ok=True)
    rows = measure(arguments.model, clips, arguments.results)
    print(f"{len(clips)} clips\n\n{table(rows)}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"num_clips": len(clips), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
