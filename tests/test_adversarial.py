"""Losses and weights of adversarial training (section 3.4), and what a step shows the discriminator."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from taae.adversarial import (
    AdversarialConfig,
    View,
    adversarial_loss,
    build_adversary,
    discriminator_accuracy,
    discriminator_hinge_loss,
    draw_view,
    feature_matching_loss,
    feature_matching_terms,
    generator_weights,
    judge,
    weighted_sum,
)
from taae.discriminators import ScaleOutput
from taae.losses import stft_l1_loss, wav_l1_loss

SMALL = AdversarialConfig(discriminator={"fft_sizes": (78, 206, 334), "channels": 8})


def noise(samples: int = 4000, seed: int = 0, items: int = 2) -> torch.Tensor:
    return 0.1 * torch.randn(items, 1, samples, generator=torch.Generator().manual_seed(seed))


def outputs(*scales: list[float]) -> list[ScaleOutput]:
    return [ScaleOutput(torch.tensor(logits), [torch.tensor(logits)]) for logits in scales]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def test_the_hinge_ends_where_the_discriminator_is_sure():
    assert discriminator_hinge_loss(outputs([1.0, 7.0]), outputs([-1.0, -3.0])) == 0
    assert discriminator_hinge_loss(outputs([0.0]), outputs([0.0])) == 2
    # Scales count alike, however many logits they have: (0.5 + 1.5) / 2 + (0 + 3) / 2 over two scales.
    assert discriminator_hinge_loss(outputs([0.5], [2.0, 2.0, 2.0]), outputs([0.5], [2.0, 2.0, 2.0])) == 2.5
    assert adversarial_loss(outputs([1.0], [3.0, 3.0])) == -2


def test_feature_matching_is_a_relative_distance_averaged_over_layers_and_scales():
    def scale(*layers: list[float]) -> ScaleOutput:
        return ScaleOutput(torch.zeros(1), [torch.tensor(layer) for layer in layers])

    real, fake = [scale([1.0, -3.0], [2.0]), scale([4.0])], [scale([2.0, -3.0], [3.0]), scale([2.0])]
    terms = feature_matching_terms(real, fake, eps=0.0)
    assert [term.tolist() for term in terms] == [[0.25, 0.5], [0.5]]
    assert feature_matching_loss(real, fake, eps=0.0).item() == pytest.approx((0.375 + 0.5) / 2)
    assert feature_matching_loss(real, real) == 0


def test_accuracy_is_a_half_for_a_coin_and_one_for_a_judge():
    real, fake = outputs([1.0, 2.0], [1.0, 2.0], [3.0, -1.0]), outputs([-1.0, -2.0], [1.0, 2.0], [-1.0, -1.0])
    assert discriminator_accuracy(real, fake).tolist() == [1.0, 0.5, 0.75]


def test_a_discriminator_learns_to_hear_what_is_wrong_and_matching_its_features_repairs_it():
    config = AdversarialConfig(discriminator={"fft_sizes": (78,), "channels": 8})
    discriminator, view = build_adversary(config), View([0], 0, 2000)
    wav, other = 5 * noise(2000, items=4), 5 * noise(2000, seed=1, items=4)
    dull = (other + other.roll(1, dims=-1)) / 2**0.5  # as loud, with less treble
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=5e-3, betas=(0.5, 0.9))
    losses, accuracies = [], []
    for _ in range(35):
        real, fake = (judge(config, discriminator, samples, view) for samples in (wav, dull))
        loss = discriminator_hinge_loss(real, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        accuracies.append(discriminator_accuracy(real, fake).item())
    assert losses[0] == pytest.approx(2, abs=0.1) and losses[-1] < 0.8
    assert accuracies[0] < 0.6 and accuracies[-1] > 0.85

    with torch.no_grad():
        real = judge(config, discriminator, wav, view)
    start = wav + noise(2000, seed=2, items=4)
    repaired = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([repaired], lr=5e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = feature_matching_loss(real, judge(config, discriminator, repaired, view))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert (repaired - wav).abs().mean() < 0.9 * (start - wav).abs().mean()


def test_reconstruction_weights_decay_as_published(shared: Path):
    folder = shared / "reference" / "golden" / "losses"
    golden = json.loads((folder / "losses.json").read_text())
    target, decoded = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("reals", "decoded"))
    config = AdversarialConfig()
    decayed = [generator_weights(config, step)["wav"] * wav_l1_loss(target, decoded).item() for step in range(3)]
    assert decayed == pytest.approx(golden["l1_three_calls_decay_0.9999"], rel=1e-6)
    assert stft_l1_loss(target, decoded).item() == pytest.approx(golden["lin_only"], rel=1e-5)


def test_eq_8_forgets_reconstruction_and_keeps_feature_matching():
    config = AdversarialConfig()
    first, later, last = (generator_weights(config, step) for step in (0, 6931, 499_999))
    assert first["feature_matching"] == last["feature_matching"] == 1 and first["adversarial"] == 0
    assert later["wav"] == later["stft"] == pytest.approx(0.5, rel=1e-3)  # half after ln 2 / 1e-4 steps
    assert last["wav"] == pytest.approx(np.exp(-50), rel=0.01)


def test_eq_10_is_feature_matching_and_perception_alike():
    config = AdversarialConfig(wav_weight=0.0, stft_weight=0.0, perceptual_weight=1.0)
    weights = generator_weights(config, 0)
    losses = {"feature_matching": torch.tensor(0.3), "perceptual": torch.tensor(0.4)}
    assert weighted_sum(losses, weights).item() == pytest.approx(0.7)


def test_warm_up_holds_back_what_the_discriminator_says():
    config = AdversarialConfig(warmup_steps=10, adversarial_weight=0.5)
    assert [generator_weights(config, step)["feature_matching"] for step in (0, 9, 10)] == [0, 0, 1]
    assert [generator_weights(config, step)["adversarial"] for step in (9, 10)] == [0, 0.5]


def test_a_weight_without_its_loss_is_refused():
    with pytest.raises(ValueError, match="do not fit weights"):
        weighted_sum({"feature_matching": torch.tensor(1.0)}, generator_weights(AdversarialConfig(), 0))
    with pytest.raises(ValueError, match="do not fit weights"):
        weighted_sum({"feature_matching": torch.tensor(1.0), "mel": torch.tensor(1.0)}, {"feature_matching": 1.0})


def test_views_are_drawn_evenly_and_depend_on_the_generator_alone():
    config = dataclasses.replace(SMALL, scales_per_step=2, window_s=0.25)

    def view(seed: int) -> View:
        return draw_view(config, 3, 16000, 16000, torch.Generator().manual_seed(seed))

    views = [view(seed) for seed in range(600)]
    assert view(7) == views[7]
    counts = Counter(scale for view in views for scale in view.scales)
    assert all(abs(counts[scale] - 400) < 60 for scale in range(3))  # 5 standard deviations
    assert all(view.stop - view.start == 4000 and len(set(view.scales)) == 2 for view in views)
    starts = np.array([view.start for view in views])
    assert starts.min() < 200 and starts.max() > 11800 and abs(starts.mean() - 6000) < 500


def test_without_limits_a_view_is_everything_and_short_crops_are_shown_whole():
    generator = torch.Generator().manual_seed(0)
    assert draw_view(SMALL, 3, 500, 16000, generator) == View([0, 1, 2], 0, 500)
    assert draw_view(dataclasses.replace(SMALL, window_s=1.0), 3, 500, 16000, generator) == View([0, 1, 2], 0, 500)


def test_a_view_shows_its_part_to_its_scales():
    discriminator = build_adversary(SMALL)
    shown = judge(SMALL, discriminator, noise(), View([2], 1000, 3000))
    assert len(shown) == 1
    assert torch.equal(shown[0].logits, discriminator(noise()[..., 1000:3000])[2].logits)


def test_the_loss_of_one_random_scale_is_on_average_that_of_all():
    discriminator = build_adversary(SMALL)
    everything = View([0, 1, 2], 0, 4000)
    real, fake = (judge(SMALL, discriminator, noise(seed=seed), everything) for seed in (0, 1))
    single = []
    for scale in range(3):
        view = View([scale], 0, 4000)
        real_scale, fake_scale = (judge(SMALL, discriminator, noise(seed=seed), view) for seed in (0, 1))
        single.append(feature_matching_loss(real_scale, fake_scale).item())
    assert np.mean(single) == pytest.approx(feature_matching_loss(real, fake).item(), rel=1e-5)


def test_bfloat16_in_channels_last_gives_nearly_the_same_gradient():
    view = View([0, 1, 2], 0, 4000)
    fast = dataclasses.replace(SMALL, is_bf16=True, is_channels_last=True)
    gradients, weight_gradients = [], []
    for config in (SMALL, fast):
        torch.manual_seed(0)
        discriminator = build_adversary(config)
        wav, decoded = 5 * noise(), noise(seed=1).requires_grad_()
        real, fake = judge(config, discriminator, wav, view), judge(config, discriminator, decoded, view)
        assert fake[0].logits.dtype == torch.float32
        dtype = torch.bfloat16 if config.is_bf16 else torch.float32
        is_last = config.is_channels_last
        for feature in fake[0].features:
            assert feature.dtype == dtype and feature.is_contiguous(memory_format=torch.channels_last) == is_last
        gradients.append(torch.autograd.grad(feature_matching_loss(real, fake), decoded, retain_graph=True)[0])
        discriminator_hinge_loss(real, fake).backward()
        weight_gradients.append(torch.cat([p.grad.flatten() for p in discriminator.parameters() if p.grad is not None]))
    assert cosine(*gradients) > 0.99  # 8 bits of mantissa
    assert cosine(*weight_gradients) > 0.98


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"architecture": "melgan"}, "no discriminator 'melgan'"),
        ({"discriminator": {"chanels": 16}}, "discriminator 'paper': unknown key chanels; known are fft_sizes"),
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
        ({"wav_weight": -1.0}, "wav_weight must not be negative, got -1.0"),
        ({"window_s": -1.0}, "window_s must not be negative, got -1.0"),
    ],
)
def test_impossible_recipes_are_refused(options, why):
    with pytest.raises(ValueError, match=why):
        AdversarialConfig(**options)


def test_more_scales_than_there_are_is_refused():
    with pytest.raises(ValueError, match="scales_per_step is 4, but 'paper' has 3"):
        build_adversary(dataclasses.replace(SMALL, scales_per_step=4))
