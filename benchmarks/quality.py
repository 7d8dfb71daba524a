"""Quality over bitrate: the embedded models and classical codecs on the same clips, in one run.

    python benchmarks/quality.py MANIFEST [--model mini ...] [--json OUT] [--plot OUT.html] [--results DIR]

PESQ is the raw narrow-band score of P.862, as in the paper, not MOS-LQO. Codec2 is moved back by its delay. The table
is of the clips in `--language`; below it, the other languages of the manifest, pieces of three lengths, and whether the
frame rate of the codec can be found in what it decodes. Where pocketsphinx is installed and clips have transcripts,
word error rates; where Resemblyzer is, speaker similarity. Means with 95 % bootstrap intervals over clips.
"""

import argparse
import contextlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import taae
from taae.audio import load_wav, to_mono
from taae.evaluate import Clip, evaluate, read_manifest, summarise
from workbench import baselines
from workbench.baselines import CODEC2_MODES
from workbench.compare import BOTTLENECKS
from workbench.metrics_extra import available
from workbench.quality import boundary_line_db, fold_deviation_db, modulation_depth, quality_by_length
from workbench.recognition import wer_table

METRICS = ("pesq_raw_nb", "stoi", "estoi", "mel_distance", "stft_distance")
LENGTHS_S = (3.125, 12.5, 25.0)  # all divide 25 s
BOTTLENECK = "2x5^6"  # of everything below the first table


def measure(codecs: list[taae.Codec], clips: list[Clip], results: Path | None) -> list[dict]:
    """One row per codec and bitrate: bits per second, and each metric as mean, low, high."""
    pairs = [(clip.id, clip.path) for clip in clips]
    rows = []
    for codec in codecs:
        for bottleneck, entry in _summary(codec, pairs, BOTTLENECKS, results).items():
            rows.append({"codec": f"TAAE {codec.name}", "mode": bottleneck} | entry)
    for mode in CODEC2_MODES:
        try:
            peer = baselines.load(f"Codec2 {mode}")
        except baselines.UnavailableError as error:
            print(f"left out: {error}", file=sys.stderr)
            break
        (entry,) = _summary(peer, pairs, [mode], results).values()
        rows.append({"codec": "Codec2", "mode": mode} | entry | {"bits_per_second": peer.bitrates[mode]})
    return rows


def _summary(codec: Any, pairs: list, bottlenecks: Any, results: Path | None) -> dict[str, dict]:
    path = None if results is None else results / f"{codec.name.replace(' ', '-')}.jsonl"
    extra = {name: function for name, function in available().items() if name == "speaker_similarity"}
    rows = evaluate(codec, pairs, list(bottlenecks), metrics=METRICS, extra=extra, results_path=path, num_workers=2)
    return summarise(rows)


def by_language(codec: taae.Codec, clips: list[Clip], results: Path | None) -> dict[str, dict]:
    """Language -> summary at `BOTTLENECK`."""
    return {
        language: _summary(codec, [(c.id, c.path) for c in clips if c.language == language], [BOTTLENECK], results)[
            BOTTLENECK
        ]
        for language in sorted({clip.language for clip in clips})
    }


def by_length(codec: taae.Codec, clips: list[Clip]) -> dict[str, Any]:
    """The clips of each speaker joined, sent in pieces of three lengths."""
    speakers: dict[str, list[np.ndarray]] = {}
    for clip in clips:
        speakers.setdefault(clip.speaker, []).append(_load(codec, clip))
    joined = [np.concatenate(wavs) for wavs in speakers.values()]
    table = quality_by_length(codec, joined, codec.sample_rate_hz, BOTTLENECK, LENGTHS_S)
    return {f"{length_s:g} s": row for length_s, row in table.items()}


def frame_rate(codec: taae.Codec, clips: list[Clip]) -> dict[str, dict[str, float]]:
    """Modulation at the rates of all layers, and energy over the places of a frame: original and decoded."""
    frame = round(codec.sample_rate_hz / codec.frame_rate_hz)
    patches = frame // codec.config.patch_samples
    rates_hz = [codec.frame_rate_hz * factor for factor in (1, 2, 4) if patches % factor == 0]
    wavs = [wav[: len(wav) // frame * frame] for wav in (_load(codec, clip) for clip in clips)]
    send = partial(codec.reconstruct, bottleneck=BOTTLENECK, sample_rate_hz=codec.sample_rate_hz)
    versions = {"original": wavs, "decoded": [to_mono(send(wav)[0]) for wav in wavs]}
    table = {}
    for name, version in versions.items():
        joined, lines = np.concatenate(version), {}
        for hz in rates_hz:
            lines[f"line at {hz:g} Hz, dB"] = boundary_line_db(joined, codec.sample_rate_hz, hz)
            lines[f"depth at {hz:g} Hz"] = modulation_depth(joined, codec.sample_rate_hz, hz)
        table[name] = lines | {"deviation over the frame, dB": fold_deviation_db(version, frame)}
    return table


def words(codecs: list[taae.Codec], manifest: Path, language: str) -> dict[str, dict[str, Any]]:
    """System -> word error rates of pocketsphinx, of the originals first, over the clips with a transcript."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    spoken = {row["id"]: row["transcript"] for row in rows if row.get("transcript")}
    clips = [clip for clip in read_manifest(manifest) if clip.id in spoken and clip.language == language]
    wavs = [_load(codecs[0], clip) for clip in clips]
    systems: dict[str, tuple[Any, str]] = {
        f"TAAE {codec.name} {bottleneck}": (codec, bottleneck) for codec in codecs for bottleneck in ("1x6^6", "2x5^6")
    }
    for mode in ("700C", "1200"):
        with contextlib.suppress(baselines.UnavailableError):
            systems[f"Codec2 {mode}"] = (baselines.load(f"Codec2 {mode}"), mode)
    rate_hz = codecs[0].sample_rate_hz
    decoded = {
        name: [to_mono(codec.reconstruct(wav, mode, sample_rate_hz=rate_hz)[0]) for wav in wavs]
        for name, (codec, mode) in systems.items()
    }
    table = wer_table(wavs, decoded, [spoken[clip.id] for clip in clips], sample_rate_hz=rate_hz, num_workers=2)
    return {name: {"wer": row["wer"], "dwer": row["dwer"]} for name, row in table.items()}


def _load(codec: taae.Codec, clip: Clip) -> np.ndarray:
    wav, rate_hz = load_wav(clip.path)
    if rate_hz != codec.sample_rate_hz:
        raise ValueError(f"{clip.path} has {rate_hz} Hz; these measures take {codec.sample_rate_hz}")
    return to_mono(wav)


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = [
        "| codec | mode | bit/s | PESQ (raw NB) | STOI | ESTOI | speaker similarity |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate = "-" if row["bits_per_second"] is None else f"{row['bits_per_second']:.0f}"
        shown = (("pesq_raw_nb", 2), ("stoi", 3), ("estoi", 3), ("speaker_similarity", 2))
        cells = [_interval(row[name], digits) for name, digits in shown if name in row]
        lines.append(f"| {row['codec']} | `{row['mode']}` | {rate} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(value: dict, digits: int) -> str:
    return f"{value['mean']:.{digits}f} ({value['low']:.{digits}f} ... {value['high']:.{digits}f})"


def main() -> None:
    """Print the tables and, when asked, store the numbers and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", nargs="+", default=["mini"])
    parser.add_argument("--language", default="en", help="of the first table")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="quality over bitrate, as a page that needs no network")
    parser.add_argument("--results", type=Path, help="folder for finished clips; the same command continues")
    arguments = parser.parse_args()
    everything = read_manifest(arguments.manifest)
    clips = [clip for clip in everything if clip.language == arguments.language]
    if arguments.results:
        arguments.results.mkdir(parents=True, exist_ok=True)
    codecs = [taae.load(model) for model in arguments.model]
    rows = measure(codecs, clips, arguments.results)
    print(f"{len(clips)} clips\n\n{table(rows)}")
    found: dict[str, Any] = {"num_clips": len(clips), "bottleneck": BOTTLENECK, "rows": rows}
    for codec in codecs:
        name = f"TAAE {codec.name}"
        more = {
            "languages": by_language(codec, everything, arguments.results),
            "lengths": by_length(codec, clips),
            "frame_rate": frame_rate(codec, clips),
        }
        print(f"\n{name} at {BOTTLENECK}\n")
        for key in ("languages", "lengths"):
            for label, row in more[key].items():
                pesq, stoi = _interval(row["pesq_raw_nb"], 2), _interval(row["stoi"], 3)
                print(f"| {label} | {row['stoi']['num_clips']} | {pesq} | {stoi} |")
        for label, row in more["frame_rate"].items():
            print(f"| {label} | " + " | ".join(f"{key}: {value:.3g}" for key, value in row.items()) + " |")
        found[name] = more
    try:
        found["words"] = words(codecs, arguments.manifest, arguments.language)
        for label, row in found["words"].items():
            print(f"| {label} | {row['wer']['num_clips']} | {_interval(row['wer'], 2)} | {_interval(row['dwer'], 2)} |")
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.plot:
        from workbench.figures_quality import quality_over_bitrate

        quality_over_bitrate(rows).write_html(arguments.plot, include_plotlyjs=True)


if __name__ == "__main__":
    main()
