"""The study of appendix B.5 and of B.1: real lines in real discriminators, and layer norm on silence."""

import numpy as np
import pytest
import torch

from taae.adversarial import adversarial_loss
from taae.sensitivity import average_sensitivity, measure_bias
from workbench import bias, bias_training, silence


def adversarial_sensitivity(num_inputs: int = 4, **changes):
    """Of a fresh discriminator like the paper's, to white noise."""
    variant = bias.Variant(title="it", architecture="paper", changes=changes)
    discriminator = bias.fresh_discriminator(variant, channels=4, seed=0).requires_grad_(False)

    def losses(_, decoded):
        return {"adversarial": adversarial_loss(discriminator(decoded))}

    pairs = bias.noise_pairs(num_crops=num_inputs)
    return average_sensitivity(losses, pairs, sample_rate_hz=bias.SAMPLE_RATE_HZ)["adversarial"]


def test_reconstruction_losses_have_no_lines_unless_windows_do_not_overlap():
    results = bias.measure("none", bias.reconstruction_losses(), bias.noise_pairs(num_crops=12), num_inputs=12)
    found = {result.loss: result.bias for result in results}
    for name in ("L1", "L2", "STFT"):
        assert found[name].grid_db < 0.3, name
    gaps = found["STFT without overlap"].time
    assert gaps.regularity > 0.9 and gaps.spacing * 16000 == pytest.approx(1024, abs=64) and gaps.uneven_db > 3


def test_the_lines_of_one_scale_lie_an_eighth_of_its_window_and_a_frame_rate_apart():
    found = adversarial_sensitivity(fft_sizes=(512,), hop_divisor=4, is_frequency_strided=True, alpha=0.0, num_inputs=6)
    # Three frequency strides of 2 weigh every eighth bin alike, which in a window of 512 samples means every 64th.
    inside = found.per_sample[2400:-2400]
    highest = np.argsort(inside)[-100:] + 2400
    assert set(highest % 64) <= {63, 0, 1}
    numbers = measure_bias(found)
    assert numbers.time.peak_db > 10 and numbers.time.regularity > 0.8
    assert round(numbers.time.spacing * 16000) == 128  # the hop
    # What is alike in all frames is periodic in the frame rate.
    assert numbers.frequency.peak_db > 5 and numbers.frequency.regularity > 0.8
    assert numbers.frequency.spacing == pytest.approx(16000 / 128, abs=8)


def test_powers_of_two_draw_regular_lines_the_golden_ratio_scatters_them_and_without_stride_there_are_none():
    sizes = (128, 256, 512, 1024, 2048)
    powers, golden, paper = (
        measure_bias(adversarial_sensitivity(**changes))
        for changes in (
            {"fft_sizes": sizes, "hop_divisor": 4, "is_frequency_strided": True, "alpha": 0.0},
            {"is_frequency_strided": True},
            {},
        )
    )
    assert powers.time.peak_db > 15 and powers.frequency.peak_db > 10
    assert powers.time.regularity > 0.8 and powers.frequency.regularity > 0.8
    assert golden.time.peak_db > 10
    assert golden.time.regularity < 0.6 and golden.frequency.regularity < powers.frequency.regularity
    assert paper.time.peak_db < 5 and paper.frequency.peak_db < 5
    assert powers.grid_db > 1.3 * golden.grid_db > 2 * paper.grid_db


def test_the_gain_of_dac_s_normalisation_is_held_constant():
    variant = next(variant for variant in bias.VARIANTS if variant.architecture == "dac")
    discriminator = bias.fresh_discriminator(variant, channels=2, seed=0)
    wav = 0.1 * torch.randn(1, 1, 8000)
    plain, held = discriminator(wav), bias.outputs(discriminator, wav)
    for a, b in zip(plain, held, strict=True):
        torch.testing.assert_close(a.logits, b.logits)
    largest = []
    for forward in (discriminator, lambda wav: bias.outputs(discriminator, wav)):
        leaf = wav.clone().requires_grad_()
        forward(leaf)[0].logits.mean().backward()
        assert leaf.grad is not None
        largest.append(float(leaf.grad.abs().max() / leaf.grad.abs().median()))
    assert largest[0] > 4 * largest[1]


def test_crops_are_the_same_place_of_both_and_repeatable():
    ramp = np.arange(40000, dtype=np.float32)
    pairs = [(ramp, -ramp), (ramp + 1e6, -ramp - 1e6)]
    first, again = (list(bias.random_crops(pairs, num_crops=5, segment_s=1.0, seed=3)) for _ in range(2))
    for (target, decoded), (same, _) in zip(first, again, strict=True):
        assert target.shape == (1, 1, 16000) and (target == -decoded).all() and (target == same).all()
        assert float(target[0, 0, 1] - target[0, 0, 0]) == 1
    assert len({float(target[0, 0, 0]) for target, _ in first}) == 5
    with pytest.raises(ValueError, match="no clip is longer than segment_s = 3.0"):
        next(bias.random_crops(pairs, num_crops=1, segment_s=3.0))


def test_a_discriminator_that_trains_learns_and_its_snapshots_stay(speech):
    wav = speech(6.0)
    noisy = wav + 0.05 * np.random.default_rng(0).standard_normal(len(wav)).astype(np.float32)
    variant = bias.Variant(
        title="it", architecture="paper", changes={"fft_sizes": (126,), "is_frequency_strided": True}
    )
    fresh, late = bias_training.train_discriminator(
        variant, [(wav, noisy)], channels=4, steps=(0, 100), batch_size=2, segment_s=0.2, learning_rate=5e-3
    )
    assert (fresh.loss, fresh.accuracy) == (None, None)
    assert late.loss is not None and late.loss < 1.8 and late.accuracy is not None and late.accuracy > 0.6
    same = bias.fresh_discriminator(variant, channels=4, seed=0)
    for a, b in zip(fresh.discriminator.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="steps must be ascending"):
        bias_training.train_discriminator(variant, [(wav, noisy)], channels=4, steps=(5, 5))


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_power_law_of_eq_13_turns_a_fresh_discriminator_towards_loud_bins(alpha):
    # Loud, so that biases do not matter: a network without them is linear in the level of its input.
    swell = torch.logspace(1, 3, 16000)
    wav = (swell * torch.randn(16000, generator=torch.Generator().manual_seed(0)))[None, None]
    variant = bias.Variant(title="it", architecture="paper", changes={"alpha": alpha})
    discriminator = bias.fresh_discriminator(variant, channels=4, seed=0).requires_grad_(False)
    # The derivative of X |X|^alpha grows as |X|^alpha: half a dB per dB.
    assert bias_training.mean_slope(discriminator, iter([(wav, wav)])) == pytest.approx(alpha, abs=0.15)


def test_layer_norm_gains_are_capped_at_the_root_of_epsilon():
    levels = np.array([1e-6, 1.0])
    assert silence.layer_norm_gain_db(1e-2, levels) == pytest.approx([20.0, 0.0], abs=0.05)
    assert silence.layer_norm_gain_db(1e-5, levels) == pytest.approx([50.0, 0.0], abs=0.05)


def test_epsilon_1e_2_keeps_silence_quiet_and_its_gradients_small(speech):
    inputs = silence.batches(speech(6.0))
    by_eps = {eps: {row["batch"]: row for row in silence.measure(eps, inputs, has_bias=False)} for eps in (1e-5, 1e-2)}
    noise = {eps: rows["rounding noise"] for eps, rows in by_eps.items()}
    assert noise[1e-5]["norm_gain_db"] == pytest.approx(50, abs=0.1)
    assert noise[1e-2]["norm_gain_db"] == pytest.approx(20, abs=0.1)
    assert noise[1e-5]["latents_db"] > noise[1e-2]["latents_db"] + 30
    assert noise[1e-5]["gradient_norm"] > 30 * noise[1e-2]["gradient_norm"]
    assert noise[1e-2]["gradient_norm"] < by_eps[1e-2]["speech"]["gradient_norm"]
    assert all(np.isfinite(row["gradient_norm"]) for rows in by_eps.values() for row in rows.values())
