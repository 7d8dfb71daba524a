"""The discriminators of DAC and BigVGAN, and building any of the four by name."""

import math
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from taae.discriminators import Ensemble
from taae.discriminators_peers import (
    BigVGANConfig,
    BigVGANDiscriminator,
    DACConfig,
    DACDiscriminator,
    build_discriminator,
    discriminator_config,
)

NAMES = ["paper", "encodec", "dac", "bigvgan"]


def noise(samples: int = 4000, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(seed))


def spectra_of(member: torch.nn.Module, layer: torch.nn.Module, wav: torch.Tensor) -> torch.Tensor:
    """What reaches the convolution `layer` when `member` hears `wav`."""
    seen = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    member(wav)
    hook.remove()
    return seen[0]


def test_published_sizes_have_the_parameters_that_their_layers_add_up_to():
    # Weights, biases and the gains of weight norm: (inputs * kernel + 2) * outputs.
    widths = [1, 32, 128, 512, 1024, 1024]
    period = sum((5 * a + 2) * b for a, b in zip(widths, widths[1:], strict=False)) + 3 * 1024 + 2
    stft = [(27 * a + 2) * 32 for a in (2, 32, 32, 32)] + [(9 * 32 + 2) * 32]
    magnitude = sum(stft) - 27 * 32
    logits = 9 * 32 + 2
    expected = {
        "dac": 5 * period + 3 * (5 * sum(stft) + logits),
        "bigvgan": 5 * period + 3 * (magnitude + logits),
    }
    for name, count in expected.items():
        with torch.device("meta"):
            assert sum(parameter.numel() for parameter in build_discriminator(name).parameters()) == count


@pytest.mark.parametrize("name", ["dac", "bigvgan"])
@pytest.mark.parametrize("samples", [2002, 2004])
def test_a_period_discriminator_is_a_1d_network_on_every_period_th_sample(name, samples):
    ensemble = build_discriminator(name, channels=2)
    member: Any = ensemble.members[1]
    assert ensemble.scale_names[1] == "period 3"
    wav = noise(samples)
    missing = -samples % 3 or (3 if name == "dac" else 0)  # DAC's pads where nothing is missing
    padded = np.pad(wav.numpy(), ((0, 0), (0, 0), (0, missing)), mode="reflect")
    output = member(wav)
    for phase in range(3):
        hidden = torch.from_numpy(padded[..., phase::3].copy())
        for conv, stride in zip(member.convs, (3, 3, 3, 3, 1), strict=True):
            hidden = F.leaky_relu(F.conv1d(hidden, conv.weight[..., 0], conv.bias, stride, padding=2), 0.1)
        expected = F.conv1d(hidden, member.to_logits.weight[..., 0], member.to_logits.bias, padding=1)
        torch.testing.assert_close(output.features[4][..., phase], hidden, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(output.logits[..., phase], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("samples", [4000, 4096])
def test_dac_hears_a_centred_complex_stft_in_five_bands(samples):
    member: Any = build_discriminator("dac", channels=2).members[7]
    wav = noise(samples)
    # audiotools pads to whole hops and by (window - hop) / 2, centres, and drops two frames at each end.
    padded = np.pad(wav[:, 0].numpy(), ((0, 0), (192, 192 + -samples % 128)), mode="reflect")
    bins = librosa.stft(padded, n_fft=512, hop_length=128, window="hann", center=True, pad_mode="reflect")[..., 2:-2]
    assert bins.shape[-1] == math.ceil(samples / 128)
    bands = [spectra_of(member, convs[0], wav) for convs in member.band_convs]
    found = torch.cat(bands, dim=-1).numpy()
    np.testing.assert_allclose(found[:, 0] + 1j * found[:, 1], bins.transpose(0, 2, 1), atol=1e-4)
    assert [band.shape[-1] for band in bands] == [25, 39, 64, 64, 65]  # 0.1, 0.25, 0.5, 0.75 of 257 bins, rounded down


def test_bigvgan_hears_magnitudes_of_a_rectangular_window():
    member: Any = build_discriminator("bigvgan", channels=2).members[5]
    wav = noise()
    padded = np.pad(wav[:, 0].numpy(), ((0, 0), (452, 452)), mode="reflect")
    bins = librosa.stft(padded, n_fft=1024, hop_length=120, win_length=600, window="boxcar", center=False)
    np.testing.assert_allclose(spectra_of(member, member.convs[0], wav)[:, 0].numpy(), np.abs(bins), atol=1e-4)


def test_dac_does_not_hear_gain_or_offset():
    ensemble = build_discriminator("dac", channels=2)
    for plain, changed in zip(ensemble(noise()), ensemble(0.3 * noise() + 0.2), strict=True):
        torch.testing.assert_close(plain.logits, changed.logits, atol=1e-5, rtol=1e-4)


def test_features_end_with_the_logits_only_where_the_source_has_it_so():
    for output in build_discriminator("bigvgan", channels=2)(noise()):
        assert len(output.features) == 6 and torch.equal(output.features[-1], output.logits)
    assert [len(output.features) for output in build_discriminator("dac", channels=2)(noise())] == [5] * 5 + [25] * 3


@pytest.mark.parametrize("name", NAMES)
def test_all_four_share_one_interface_and_have_finite_gradients(name):
    ensemble = build_discriminator(name, channels=2)
    assert isinstance(ensemble, Ensemble) and len(ensemble.scale_names) == ensemble.num_scales
    everything, some = ensemble(noise()), ensemble(noise(), scales=[2, 0])
    assert torch.equal(some[0].logits, everything[2].logits) and torch.equal(some[1].logits, everything[0].logits)
    wav = torch.cat([noise()[:1], torch.zeros(1, 1, 4000)]).requires_grad_()
    torch.stack([scale.logits.mean() for scale in ensemble(wav)]).sum().backward()
    assert wav.grad is not None and wav.grad.isfinite().all() and (wav.grad[0].abs().max() > 0)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_all_four_are_those_of_finite_differences(name):
    ensemble = build_discriminator(name, channels=2).double()
    wav = noise(2500)[:1].double().requires_grad_()

    def score(samples: torch.Tensor) -> torch.Tensor:
        return torch.stack([scale.logits.square().mean() for scale in ensemble(samples)]).sum()

    (gradient,) = torch.autograd.grad(score(wav), wav)
    direction = gradient / gradient.abs().max()  # uphill, where the slope is largest against rounding
    step = 1e-8  # small, so that few leaky ReLUs change sides
    slope = (score(wav + step * direction) - score(wav - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-4)


def test_a_name_and_changes_build_what_they_say():
    config = discriminator_config("encodec", {"channels": 8, "fft_sizes": [256, 512]})
    assert config.channels == 8
    assert build_discriminator("encodec", channels=8, fft_sizes=[256, 512]).scale_names == ["256", "512"]
    assert isinstance(build_discriminator("dac", channels=1), DACDiscriminator)
    assert isinstance(build_discriminator("bigvgan", channels=1), BigVGANDiscriminator)


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("melgan", {}, "no discriminator 'melgan'; there are paper, encodec, dac, bigvgan"),
        ("dac", {"alpha": 0.5}, "discriminator 'dac': unknown key alpha; known are periods, fft_sizes, channels"),
        ("paper", {"channels": "many"}, "channels must be int, got 'many'"),
        ("dac", {"channels": 0}, "channels must be positive, got 0"),
        ("bigvgan", {"fft_sizes": (512,)}, "must pair up"),
        ("bigvgan", {"window_samples": (600, 1200, 1000)}, "a window cannot exceed its FFT"),
    ],
)
def test_impossible_discriminators_are_refused(name, changes, why):
    with pytest.raises(ValueError, match=why):
        build_discriminator(name, **changes)


def test_crops_that_are_too_short_are_refused():
    for config in (DACConfig(channels=1, periods=()), BigVGANConfig(channels=1, periods=())):
        ensemble = DACDiscriminator(config) if isinstance(config, DACConfig) else BigVGANDiscriminator(config)
        with pytest.raises(ValueError, match="wav has 200 samples, but a discriminator with windows of"):
            ensemble(noise(200))
