"""What a step of adversarial training costs, what makes it cheaper, and what that does to the gradient.

    python benchmarks/discriminator.py [--channels 16] [--clips 1] [--rounds 5] [--train-steps 100] [--json OUT]

A step updates the discriminator (hinge on target and decoded speech) and finds the gradient of Eq. 7 for the decoded
speech. Crops are 2 s of real speech, decoded by the embedded model at 400 bit/s. Times are CPU-seconds of one thread;
the rounds of all variants are interleaved and the fastest counts, so that a busy machine disturbs them alike.

The price is the cosine between a variant's gradient in the decoded speech and that of the full discriminator: the mean
over single draws, and that of the mean of eight draws. "Fresh" discriminators have random weights, the same ones where
the shapes allow; of the "trained" ones each was trained by itself for `--train-steps` updates if it is another network
(stride, band, channels). The cosine between two seeds of the full one says what difference means nothing.
"""

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import taae
from taae.adversarial import (
    AdversarialConfig,
    View,
    build_adversary,
    discriminator_hinge_loss,
    draw_view,
    feature_matching_loss,
    judge,
)
from taae.audio import load_wav, loudness_gain
from taae.discriminators import Ensemble
from taae.losses import ReconstructionLoss, ReconstructionLossConfig

SECONDS, RATE_HZ, DRAWS = 2.0, 16000, 8
OTHER_SEED = "another seed"


def variants(channels: int) -> dict[str, AdversarialConfig]:
    """Recipes by the words of the table; the first is the full discriminator."""
    full = AdversarialConfig(discriminator={"channels": channels})

    def change(**changes: object) -> AdversarialConfig:
        return dataclasses.replace(full, discriminator=full.discriminator | changes)

    fast = {"is_bf16": True, "is_channels_last": True}
    strided = change(is_frequency_strided=True)
    return {
        "full": full,
        OTHER_SEED: full,
        "4 of 8 scales": dataclasses.replace(full, scales_per_step=4),
        "3 of 8 scales": dataclasses.replace(full, scales_per_step=3),
        "1 of 8 scales": dataclasses.replace(full, scales_per_step=1),
        "1 s of 2 s": dataclasses.replace(full, window_s=1.0),
        "0.5 s of 2 s": dataclasses.replace(full, window_s=0.5),
        "frequency stride": strided,
        "up to 4 kHz": change(highest_hz=4000.0),
        "half the channels": change(channels=channels // 2),
        "channels last": dataclasses.replace(full, is_channels_last=True),
        "bf16": dataclasses.replace(full, is_bf16=True),
        "bf16, channels last": dataclasses.replace(full, **fast),
        "stride, bf16, channels last": dataclasses.replace(strided, **fast),
        "stride, bf16, channels last, 3 scales": dataclasses.replace(strided, **fast, scales_per_step=3),
    }


def speech(shared: Path, num_clips: int) -> tuple[Tensor, Tensor]:
    """English dev crops at -20 LUFS and what the embedded model makes of them, (clips, 1, 2 s) each."""
    manifest = shared / "speech/dev/manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["language"] == "en" and row["seconds"] > SECONDS + 1][::4][:num_clips]
    crops = []
    for row in rows:
        samples = load_wav(manifest.parent / row["path"])[0].reshape(-1)
        samples = samples * loudness_gain(samples, RATE_HZ)
        crops.append(samples[RATE_HZ // 2 :][: round(SECONDS * RATE_HZ)].astype(np.float32))
    wav = torch.from_numpy(np.stack(crops))[:, None]
    codec = taae.load("mini")
    with torch.no_grad():
        decoded = codec.decode(codec.encode(wav, bottleneck="1x6^6"), bottleneck="1x6^6")[..., : wav.shape[-1]]
    return wav, decoded


def discriminator_update(config: AdversarialConfig, ensemble: Ensemble, wav: Tensor, decoded: Tensor, view: View):
    """Gradients of the hinge loss in the parameters; returns what the discriminator said."""
    ensemble.zero_grad()
    real, fake = judge(config, ensemble, wav, view), judge(config, ensemble, decoded, view)
    discriminator_hinge_loss(real, fake).backward()
    return real, fake


def speech_gradient(config: AdversarialConfig, ensemble: Ensemble, wav: Tensor, decoded: Tensor, view: View) -> Tensor:
    """Gradient of Eq. 7 in the decoded speech."""
    decoded = decoded.detach().requires_grad_()
    ensemble.requires_grad_(False)
    with torch.no_grad():
        real = judge(config, ensemble, wav, view)
    (gradient,) = torch.autograd.grad(feature_matching_loss(real, judge(config, ensemble, decoded, view)), decoded)
    ensemble.requires_grad_(True)
    return gradient


def view_of(config: AdversarialConfig, ensemble: Ensemble, seed: int) -> View:
    """What step `seed` of a recipe shows."""
    generator = torch.Generator().manual_seed(seed)
    return draw_view(config, ensemble.num_scales, round(SECONDS * RATE_HZ), RATE_HZ, generator)


def fresh(config: AdversarialConfig, seed: int = 0) -> Ensemble:
    """A discriminator with random weights."""
    torch.manual_seed(seed)
    return build_adversary(config)


def autoencoder_step(wav: Tensor) -> Callable[[], object]:
    """Encode, decode, reconstruction losses and their gradients of the embedded model, to compare with."""
    model = taae.load("mini").model.train().requires_grad_(True)
    loss = ReconstructionLoss(ReconstructionLossConfig(), RATE_HZ)

    def step() -> None:
        model.zero_grad()
        decoded = model.decode_latents(model.encode_latents(wav).tanh())
        torch.stack(list(loss(wav, decoded[..., : wav.shape[-1]]).values())).sum().backward()

    return step


def measure_times(recipes: dict[str, AdversarialConfig], wav: Tensor, decoded: Tensor, rounds: int) -> dict[str, float]:
    """Fastest CPU-seconds of each variant's step, averaged over views where they differ in size."""
    ensembles = {name: fresh(config) for name, config in recipes.items()}
    best: dict[str, dict[int, float]] = {name: {} for name in [*recipes, "autoencoder"]}
    autoencoder = autoencoder_step(wav)
    for _ in range(rounds + 1):  # the first round warms up
        for name, config in recipes.items():
            for seed in range(DRAWS if config.scales_per_step else 1):
                view = view_of(config, ensembles[name], seed)
                started = time.thread_time()
                discriminator_update(config, ensembles[name], wav, decoded, view)
                speech_gradient(config, ensembles[name], wav, decoded, view)
                best[name][seed] = min(best[name].get(seed, float("inf")), time.thread_time() - started)
        started = time.thread_time()
        autoencoder()
        best["autoencoder"][0] = min(best["autoencoder"].get(0, float("inf")), time.thread_time() - started)
    return {name: float(np.mean(list(times.values()))) for name, times in best.items()}


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two gradients of one shape."""
    return float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def measure_cosines(
    recipes: dict[str, AdversarialConfig], wav: Tensor, decoded: Tensor, ensembles: dict[str, Ensemble]
) -> dict[str, dict[str, float]]:
    """Per variant: cosine with the full gradient, of single draws and of their mean."""
    gradients = {}
    for name, config in recipes.items():
        ensemble = fresh(config)  # in the memory layout of the variant
        ensemble.load_state_dict(ensembles[name].state_dict())
        seeds = range(DRAWS if config.scales_per_step or config.window_s else 1)
        views = [view_of(config, ensemble, seed) for seed in seeds]
        gradients[name] = torch.stack([speech_gradient(config, ensemble, wav, decoded, view) for view in views])
    reference = gradients["full"][0]
    return {
        name: {
            "one_draw": float(np.mean([cosine(gradient, reference) for gradient in drawn])),
            "eight_draws": cosine(drawn.mean(dim=0), reference),
        }
        for name, drawn in gradients.items()
    }


def fresh_ensembles(recipes: dict[str, AdversarialConfig]) -> dict[str, Ensemble]:
    """Random weights from one seed; stride and band leave their shapes alone, so only "half the channels" differs."""
    return {name: fresh(config, seed=int(name == OTHER_SEED)) for name, config in recipes.items()}


def trained_ensembles(
    recipes: dict[str, AdversarialConfig], wav: Tensor, decoded: Tensor, num_steps: int
) -> tuple[dict[str, Ensemble], dict[str, dict]]:
    """Each network after updates with the paper's AdamW, three scales a step; and its loss before and after."""
    ensembles: dict[str, Ensemble] = {}
    reached: dict[str, dict] = {}
    for name, config in recipes.items():
        twins = [other for other in ensembles if recipes[other].discriminator == config.discriminator]
        if twins and name != OTHER_SEED:
            ensembles[name] = ensembles[twins[0]]
            continue
        cheap = dataclasses.replace(config, is_bf16=True, is_channels_last=True, scales_per_step=3)
        ensemble = ensembles[name] = fresh(cheap, seed=int(name == OTHER_SEED))
        optimizer = torch.optim.AdamW(ensemble.parameters(), lr=8e-4)
        reached[name] = {"hinge_before": hinge(config, ensemble, wav, decoded)}
        for step in range(num_steps):
            discriminator_update(cheap, ensemble, wav, decoded, view_of(cheap, ensemble, step))
            optimizer.step()
        reached[name]["hinge_after"] = hinge(config, ensemble, wav, decoded)
    return ensembles, reached


def hinge(config: AdversarialConfig, ensemble: Ensemble, wav: Tensor, decoded: Tensor) -> float:
    """Loss of the discriminator over all scales and the whole crops."""
    view = View(list(range(ensemble.num_scales)), 0, wav.shape[-1])
    with torch.no_grad():
        real, fake = judge(config, ensemble, wav, view), judge(config, ensemble, decoded, view)
    return float(discriminator_hinge_loss(real, fake))


def main() -> None:
    """Print the table and, when asked, store it with what the machine is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train-steps", type=int, default=100)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("TAAE_SHARED", "../shared")))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipes = variants(arguments.channels)
    wav, decoded = speech(arguments.shared, arguments.clips)
    trained, reached = trained_ensembles(recipes, wav, decoded, arguments.train_steps)
    cosines = {
        "fresh": measure_cosines(recipes, wav, decoded, fresh_ensembles(recipes)),
        "trained": measure_cosines(recipes, wav, decoded, trained),
    }
    times = measure_times(recipes, wav, decoded, arguments.rounds)
    rows = []
    for name in recipes:
        row = {"variant": name, "cpu_s": times[name], "speedup": times["full"] / times[name]}
        rows.append(row | {when: values[name] for when, values in cosines.items()})
    print(f"{'variant':38} {'CPU s':>7} {'faster':>7} {'cos fresh':>10} {'of 8':>6} {'cos trained':>12} {'of 8':>6}")
    for row in rows:
        fresh_row, trained_row = row["fresh"], row["trained"]
        print(
            f"{row['variant']:38} {row['cpu_s']:7.2f} {row['speedup']:6.1f}x {fresh_row['one_draw']:10.3f} "
            f"{fresh_row['eight_draws']:6.3f} {trained_row['one_draw']:12.3f} {trained_row['eight_draws']:6.3f}"
        )
    print(f"autoencoder (mini): {times['autoencoder']:.2f} CPU s")
    print(f"training: {json.dumps(reached)}")
    if arguments.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "vectors": torch.backends.cpu.get_cpu_capability(),
            "threads": 1,
            "torch": torch.__version__,
        }
        setup = {"channels": arguments.channels, "clips": arguments.clips, "seconds": SECONDS, "draws": DRAWS}
        result = {
            "machine": machine,
            "setup": setup | {"train_steps": arguments.train_steps, "rounds": arguments.rounds},
            "rows": rows,
            "autoencoder_cpu_s": times["autoencoder"],
            "training": reached,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
