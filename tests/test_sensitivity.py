"""Sensitivity of losses to samples and bins (Eq. 11-12), and the numbers for the lines in it."""

import math

import numpy as np
import pytest
import torch

from taae.adversarial import adversarial_loss
from taae.discriminators_peers import build_discriminator
from taae.sensitivity import (
    Analysis,
    Sensitivity,
    average_sensitivity,
    bin_gradient,
    loss_gradients,
    measure_bias,
    sensitivity,
)

RATE_HZ = 16000
SMALL = Analysis(fft_size=32, hop_samples=8)


def noise(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small_discriminator():
    torch.manual_seed(0)
    return build_discriminator("paper", channels=2, fft_sizes=(32, 52), is_frequency_strided=True).double()


def some_losses(target, decoded):
    return {
        "L2": (target - decoded).square().mean(),
        "spectrum": torch.fft.rfft(decoded[:, 0]).abs().log1p().mean(),
        "adversarial": adversarial_loss(DISCRIMINATOR(decoded)),
    }


DISCRIMINATOR = small_discriminator()


@pytest.mark.parametrize("name", ["L2", "spectrum", "adversarial"])
def test_eq_11_agrees_with_finite_differences(name):
    target, decoded = noise(1, 1, 200), noise(1, 1, 200, seed=1)
    samples, _ = sensitivity(some_losses, target, decoded, (SMALL,))[name]
    step = 1e-6
    for n in (0, 1, 57, 100, 199):
        nudge = torch.zeros_like(decoded)
        nudge[0, 0, n] = step
        slope = (some_losses(target, decoded + nudge)[name] - some_losses(target, decoded - nudge)[name]) / (2 * step)
        # Central differences of smooth losses in float64: about 1e-10 relative, and kinks of leaky ReLU are rare.
        assert samples[n] == pytest.approx(abs(float(slope.detach())), rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("name", ["L2", "spectrum", "adversarial"])
def test_eq_12_agrees_with_finite_differences_of_the_bins(name):
    target, decoded = noise(1, 1, 200), noise(1, 1, 200, seed=1)
    _, (per_bin,) = sensitivity(some_losses, target, decoded, (SMALL,))[name]
    bins = SMALL.bins(decoded)
    assert per_bin.shape == bins.shape[1:]
    step = 1e-5
    for f, t in ((0, 3), (5, 0), (5, 10), (16, 12), (9, bins.shape[2] - 1)):
        parts = []
        for direction in (1, 1j):
            nudge = torch.zeros_like(bins)
            nudge[0, f, t] = step * direction
            up, down = (some_losses(target, SMALL.wav(bins + sign * nudge, 200))[name] for sign in (1, -1))
            parts.append(float(((up - down) / (2 * step)).detach()))
        assert per_bin[f, t] == pytest.approx(math.hypot(*parts), rel=1e-4, abs=5e-12)


def test_the_transform_of_eq_12_is_inverted_exactly():
    wav = noise(2, 1, 333)
    for analysis in (SMALL, Analysis(fft_size=100, hop_samples=50)):
        assert (analysis.wav(analysis.bins(wav), 333) - wav).abs().max() < 1e-12


def test_bin_gradient_is_the_transpose_of_the_inverse_stft():
    gradient, bins = noise(1, 1, 200), torch.view_as_complex(noise(1, 17, 26, 2, seed=3))
    bins[:, [0, -1]] = bins[:, [0, -1]].real + 0j  # their imaginary parts do not reach the wav
    inner = (bin_gradient(gradient, SMALL) * bins.conj()).real.sum()
    assert float(inner) == pytest.approx(float((gradient * SMALL.wav(bins, 200)).sum()), rel=1e-10)


def test_gradients_of_several_losses_come_apart_and_parameters_collect_none():
    target, decoded = noise(1, 1, 200), noise(1, 1, 200, seed=1)
    gradients = loss_gradients(some_losses, target, decoded)
    torch.testing.assert_close(gradients["L2"], 2 * (decoded - target) / 200)
    assert all(parameter.grad is None for parameter in DISCRIMINATOR.parameters())
    assert decoded.grad is None and not decoded.requires_grad


def test_the_average_is_that_of_the_single_inputs():
    pairs = [(noise(1, 1, 200, seed=s), noise(1, 1, 200, seed=s + 50)) for s in range(5)]
    average = average_sensitivity(some_losses, iter(pairs), sample_rate_hz=RATE_HZ, analyses=(SMALL,))["spectrum"]
    single = [sensitivity(some_losses, *pair, (SMALL,))["spectrum"] for pair in pairs]
    np.testing.assert_allclose(average.sample_halves[0], np.mean([single[i][0] for i in (0, 2, 4)], axis=0))
    np.testing.assert_allclose(average.bin_halves[0][1], np.mean([single[i][1][0] for i in (1, 3)], axis=0))
    assert average.num_inputs == 5


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        (lambda t, d: {"many": (t - d).abs()}, r"'many' must be one number, got shape \(1, 1, 64\)"),
        (lambda t, d: {"deaf": t.mean()}, "'deaf' does not depend on the decoded wav"),
        (lambda t, d: {"root": (t - d).square().sum().sqrt()}, "'root' has a gradient that is not finite"),
    ],
)
def test_losses_without_a_sensitivity_are_refused(losses, why):
    wav = noise(1, 1, 64)
    with pytest.raises(ValueError, match=why):
        loss_gradients(losses, wav, wav)


def test_inputs_that_cannot_be_averaged_are_refused():
    long, short = (noise(1, 1, 200),) * 2, (noise(1, 1, 100),) * 2
    with pytest.raises(ValueError, match="one length; got 100 after 200 samples"):
        average_sensitivity(some_losses, iter([long, short]), sample_rate_hz=RATE_HZ, analyses=(SMALL,))
    with pytest.raises(ValueError, match="at least 2 of them, got 1"):
        average_sensitivity(some_losses, iter([long]), sample_rate_hz=RATE_HZ, analyses=(SMALL,))
    with pytest.raises(ValueError, match="even and at least 4, got 33"):
        Analysis(fft_size=33, hop_samples=8)
    with pytest.raises(ValueError, match="fft_size / 2, got 20 of 32"):
        Analysis(fft_size=32, hop_samples=20)


def made_up(time_db: np.ndarray, frequency_db: np.ndarray, *, num_inputs: int, seed: int = 0) -> Sensitivity:
    """A sensitivity whose profiles are known, with the chance of `num_inputs` inputs added."""
    rng = np.random.default_rng(seed)
    analysis = Analysis(fft_size=2000, hop_samples=500)

    def halves(level_db: np.ndarray, *more: int) -> np.ndarray:
        chance = np.abs(rng.standard_normal((num_inputs, len(level_db), *more))).reshape(2, -1, len(level_db), *more)
        return chance.mean(axis=1) * 10 ** (level_db.reshape(-1, *(1 for _ in more)) / 20)

    return Sensitivity(
        sample_halves=halves(time_db),
        bin_halves=(halves(frequency_db, 33),),
        analyses=(analysis,),
        num_inputs=num_inputs,
        sample_rate_hz=RATE_HZ,
    )


def test_chance_is_no_bias_however_few_the_inputs():
    for num_inputs in (2, 16):
        bias = measure_bias(made_up(np.zeros(16000), np.zeros(1001), num_inputs=num_inputs))
        for axis in (bias.time, bias.frequency):
            assert axis.regularity == 0 and axis.grid_db == 0 and axis.spacing == 0
            assert axis.uneven_db == 0
            assert abs(axis.peak_db) < 2.5  # one input a half: the median of 56 values that spread by 10 dB
        assert bias.grid_db == 0


def test_a_comb_is_measured_at_its_spacing_and_height_whatever_the_number_of_inputs():
    time_db, frequency_db = np.zeros(16000), np.zeros(1001)
    time_db[::128] = 20.0
    frequency_db[::25] = 12.0  # 8 Hz bins: every 200 Hz
    heights = []
    for num_inputs in (8, 64):
        bias = measure_bias(made_up(time_db, frequency_db, num_inputs=num_inputs))
        assert bias.time.spacing == pytest.approx(128 / RATE_HZ) and bias.frequency.spacing == pytest.approx(200)
        assert bias.time.regularity > 0.9 and bias.frequency.regularity > 0.9
        assert bias.frequency.peak_db == pytest.approx(12, abs=1.0)
        # Chance of 8 inputs makes a few of the lines fall short.
        heights.append(bias.time.peak_db)
        expected = 20 * math.sqrt(1 / 128 * (1 - 1 / 128))  # standard deviation of a comb
        assert bias.time.uneven_db == pytest.approx(expected, rel=0.1)
    assert heights == pytest.approx([20, 20], abs=1.0)


def test_scattered_lines_are_as_high_but_on_no_grid():
    rng = np.random.default_rng(0)
    time_db = np.zeros(16000)
    time_db[rng.choice(16000, 125, replace=False)] = 20.0
    bias = measure_bias(made_up(time_db, np.zeros(1001), num_inputs=16))
    assert bias.time.peak_db == pytest.approx(20, abs=1.0)
    assert bias.time.regularity < 0.2


def test_the_envelope_and_the_spectrum_of_the_inputs_are_no_bias():
    slope = np.linspace(0, -40, 1001)  # 40 dB over 8 kHz
    swell = 6 * np.sin(np.linspace(0, 2 * np.pi, 16000))
    bias = measure_bias(made_up(swell, slope, num_inputs=16))
    assert bias.grid_db < 0.5 and abs(bias.time.peak_db) < 1.5 and abs(bias.frequency.peak_db) < 1.5


def test_inputs_too_short_to_rate_are_refused():
    with pytest.raises(ValueError, match="the inputs have 6000 points"):
        measure_bias(made_up(np.zeros(6000), np.zeros(1001), num_inputs=2))
