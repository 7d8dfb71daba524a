"""Bias of discriminators towards places of the input (appendix B.5), in numbers.

    python benchmarks/bias.py fresh --manifest M [--channels 8] [--num-inputs 32] --json OUT
    python benchmarks/bias.py learned --train M --manifest M [--steps 0 40 240] --json OUT

"fresh" rates every variant of the study with random weights, on speech and on white noise, beside losses that need no
discriminator; "learned" trains some of them to tell speech from what the embedded model makes of it. Peaks and
unevenness are in dB, spacings in samples and Hz; see `taae.sensitivity.measure_bias`.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from workbench import bias, bias_training


def fresh(arguments: argparse.Namespace) -> list[dict]:
    """One row per kind of input, variant and loss."""
    variants = [variant for variant in bias.VARIANTS if arguments.only in variant.title]
    rows = []
    for kind, pairs in (("noise", None), ("speech", _pairs(arguments.manifest, arguments))):
        results = bias.study(
            variants, pairs, channels=arguments.channels, num_inputs=arguments.num_inputs, seed=arguments.seed
        )
        rows += [{"input": kind} | bias.row(result) for result in results]
    return rows


def learned(arguments: argparse.Namespace) -> list[dict]:
    """One row per variant, step and loss: bias on unheard clips, and whether loud or quiet bins count."""
    training, held_out = _pairs(arguments.train, arguments), _pairs(arguments.manifest, arguments)
    rows = []
    for variant in bias.trained_variants(is_frequency_strided=True):
        snapshots = bias_training.train_discriminator(
            variant,
            training,
            channels=arguments.channels,
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
        )
        for snapshot in snapshots:
            examples = bias.random_crops(held_out, num_crops=8, seed=9)
            facts = {
                "step": snapshot.step,
                "hinge_loss": None if snapshot.loss is None else round(snapshot.loss, 3),
                "accuracy": None if snapshot.accuracy is None else round(snapshot.accuracy, 3),
                "loudness_slope": round(bias_training.mean_slope(snapshot.discriminator, examples), 3),
            }
            results = bias_training.measure_snapshot(
                variant.title, snapshot, held_out, num_inputs=arguments.num_inputs, seed=arguments.seed
            )
            rows += [facts | bias.row(result) | {"variant": variant.title} for result in results]
    return rows


def _pairs(manifest: Path, arguments: argparse.Namespace):
    clips = bias.speech_clips(manifest, max_clips=arguments.max_clips, language=arguments.language)
    return bias.decoded_pairs(clips)


def main() -> None:
    """Run one of the two studies and store its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["fresh", "learned"])
    parser.add_argument("--manifest", type=Path, required=True, help="clips to measure on")
    parser.add_argument("--train", type=Path, help="clips to train on, for learned")
    parser.add_argument("--language", default="en")
    parser.add_argument("--max-clips", type=int, default=24)
    parser.add_argument("--only", default="", help="only variants whose title holds this, for fresh")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--num-inputs", type=int, default=32, help="of one second each")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 40, 240])
    parser.add_argument("--batch-size", type=int, default=2, help="of half a second each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.study == "learned" and arguments.train is None:
        parser.error("learned needs --train")
    rows = fresh(arguments) if arguments.study == "fresh" else learned(arguments)
    command = "python benchmarks/bias.py " + " ".join(_portable(argument) for argument in sys.argv[1:])
    result = {"command": command, "channels": arguments.channels, "torch": torch.__version__, "rows": rows}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def _portable(argument: str) -> str:
    """A path of this machine as one below the shared folder."""
    marker = "speech/"
    return f"$TAAE_SHARED/{argument[argument.index(marker) :]}" if f"/{marker}" in argument else argument


if __name__ == "__main__":
    main()
