"""Noisy and far-field speech through codecs: the question of robustness that the paper leaves open.

Two references: against the clean recording (what a listener gets of the talker) and against what the codec was given
(how well it codes). A codec that removes noise gains in the first and loses in the second.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from taae.evaluate import Clip, load_mono, read_manifest
from taae.metrics import MetricError, bootstrap_ci, stoi
from workbench import baselines
from workbench.rooms import Noise, Room, make_variant

NO_CODEC = "no codec"


def conditions(noises: Sequence[Noise], snrs_db: Sequence[float], reverberations_s: Sequence[float]) -> list[dict]:
    """Clean speech, every noise at every ratio, and every room, as arguments of `rooms.make_variant`."""
    noisy = [{"noise": noise, "snr_db": snr_db} for noise in noises for snr_db in snrs_db]
    return [{}, *noisy, *({"room": Room(reverberation_s=seconds)} for seconds in reverberations_s)]


def measure(
    codecs: Sequence[tuple[Any, str]], clips: Sequence[Clip], wanted: Sequence[dict[str, Any]], *, seed: int = 0
) -> list[dict[str, Any]]:
    """STOI of every codec in every condition, means over clips with 95 % intervals.

    Args:
        codecs: (codec, bottleneck or bitrate); the condition without any codec is always measured too.
        clips: Clean speech of several speakers.
        wanted: Of `conditions`.
        seed: Of the noise.

    Returns:
        Rows with codec, noise, snr_db, reverberation_s (None where they do not apply), num_clips, and stoi_clean and
        stoi_input, each with _low and _high.
    """
    rows = []
    for condition in wanted:
        with TemporaryDirectory() as folder:
            inputs = list(clips)
            if condition:
                make_variant(clips, Path(folder), seed=seed, **condition)
                inputs = read_manifest(Path(folder) / "manifest.jsonl")
            room = condition.get("room")
            about = {
                "noise": condition.get("noise"),
                "snr_db": condition.get("snr_db"),
                "reverberation_s": room.reverberation_s if room else None,
            }
            for codec, mode in [(None, ""), *codecs]:
                name = NO_CODEC if codec is None else codec.name
                if codec is not None and not name.endswith(mode):  # "Codec2 700C" says its mode already
                    name += f" {mode}"
                scores = [_score(codec, mode, clean, given) for clean, given in zip(clips, inputs, strict=True)]
                rows.append({"codec": name} | about | _means(scores))
    return rows


def open_codec(name: str) -> tuple[Any, str]:
    """A model with its bottleneck ("mini 2x5^6"), or a codec of the catalogue in its first mode ("Codec2 700C").

    Raises:
        UnavailableError: If the codec of the catalogue is not here.
    """
    model, _, mode = name.rpartition(" ")
    if "^" in mode or mode == "continuous":
        import taae

        return taae.load(model), mode
    codec = baselines.load(name)
    return codec, next(iter(codec.bitrates))


def table_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """For a table on screen."""
    lines = []
    for row in rows:
        what = f"{row['noise']} noise, {row['snr_db']:g} dB" if row["noise"] else "as recorded"
        if row["reverberation_s"]:
            what = f"room, {row['reverberation_s']:g} s"
        line = {"condition": what, "codec": row["codec"]}
        for key, title in (("stoi_clean", "STOI against the clean"), ("stoi_input", "against the input")):
            line[title] = f"{row[key]:.3f} ({row[f'{key}_low']:.3f} to {row[f'{key}_high']:.3f})"
        lines.append(line | {"clips": str(row["num_clips"])})
    return lines


def _score(codec: Any, mode: str, clean: Clip, given: Clip) -> tuple[float, float] | None:
    (reference, rate_hz), (wav, its_rate_hz) = load_mono(clean.path), load_mono(given.path)
    decoded = wav
    if codec is not None:
        decoded, _ = codec.reconstruct(wav, mode, sample_rate_hz=its_rate_hz)
        decoded = np.asarray(decoded.numpy() if hasattr(decoded, "numpy") else decoded).reshape(-1)
    try:
        return stoi(reference, decoded, rate_hz), stoi(wav, decoded, its_rate_hz)
    except MetricError:
        return None


def _means(scores: Sequence[tuple[float, float] | None]) -> dict[str, float]:
    found = np.array([pair for pair in scores if pair is not None])
    row: dict[str, float] = {"num_clips": len(found)}
    for key, column in (("stoi_clean", 0), ("stoi_input", 1)):
        row[key], row[f"{key}_low"], row[f"{key}_high"] = bootstrap_ci(found[:, column])
    return row


def available(names: Sequence[str]) -> list[tuple[Any, str]]:
    """Those of `names` that this machine has, as `open_codec` gives them; the others are named on the screen."""
    found = []
    for name in names:
        try:
            found.append(open_codec(name))
        except baselines.UnavailableError as error:
            print(f"not run: {error}")
    return found
