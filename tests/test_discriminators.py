"""The STFT discriminator of section 3.3 and B.5."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from taae.adversarial import adversarial_loss, discriminator_hinge_loss, feature_matching_loss
from taae.discriminators import ENCODEC, STFTDiscriminatorConfig, STFTEnsemble, golden_ratio_sizes

SMALL = STFTDiscriminatorConfig(fft_sizes=(78, 334), channels=4)


def noise(samples: int = 2000, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(seed))


def test_sizes_are_those_of_b5():
    assert golden_ratio_sizes() == (78, 126, 206, 334, 542, 876, 1418, 2296)
    assert STFTDiscriminatorConfig().fft_sizes == golden_ratio_sizes()


@pytest.mark.parametrize("longest", [64, 1000, 4096])
def test_hops_of_any_family_differ_by_the_golden_ratio(longest):
    hops = np.array(golden_ratio_sizes(longest, 5)) / 2
    exact = longest / 2 / ((1 + math.sqrt(5)) / 2) ** np.arange(5)[::-1]
    assert ((exact - 1 < hops) & (hops <= exact)).all()


def golden(name: str, shared: Path) -> tuple[STFTEnsemble, dict, dict]:
    folder = shared / "reference" / "golden" / "disc"
    results = json.loads((folder / "config.json").read_text())["results"][name]
    ensemble = STFTEnsemble(
        STFTDiscriminatorConfig(
            channels=6, alpha=results["spec_scale_pow"], is_frequency_strided=results["stride"] == [1, 2]
        )
    )
    state = {}
    for key, tensor in load_file(folder / "state_dict.safetensors").items():
        _, _, scale, *rest = key.split(".")
        if "window" not in key:
            key = ".".join(["members", scale, *rest]).replace(".conv.", ".").replace("conv_post", "to_logits")
            for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
                key = key.replace(old, f"parametrizations.weight.{new}")
            state[key] = tensor.float()
    ensemble.load_state_dict(state)
    arrays = {path.stem: np.load(path) for path in folder.glob("*.npy")} | dict(np.load(folder / f"out_{name}.npz"))
    return ensemble, results, {key: torch.from_numpy(value) for key, value in arrays.items()}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", ["s11_a05", "s12_a05", "s11_a0"])
def test_logits_features_losses_and_gradients_are_the_published_ones(name, shared):
    ensemble, results, arrays = golden(name, shared)
    wav, decoded = arrays["reals"], arrays["fakes"].requires_grad_()
    real, fake = ensemble(wav), ensemble(decoded)
    for scale in range(8):
        torch.testing.assert_close(real[scale].logits, arrays[f"logits_{scale}"], atol=1e-5, rtol=0)
        assert [list(feature.shape) for feature in real[scale].features] == results["fmap_shapes"][scale]
        # mean, mean magnitude and norm of the features of every layer
        for layer, (mean, magnitude, norm) in enumerate(arrays[f"fmap_stats_{scale}"].tolist()):
            feature = real[scale].features[layer].detach()
            found = [feature.mean().item(), feature.abs().mean().item(), feature.norm().item()]
            assert found == pytest.approx([mean, magnitude, norm], rel=1e-4, abs=1e-5)
    for scale in (0, 3, 7):
        for layer in range(5):
            expected = arrays[f"fmap_{scale}_{layer}"]
            torch.testing.assert_close(real[scale].features[layer][:1], expected, atol=1e-5, rtol=0)

    assert discriminator_hinge_loss(real, fake).item() == pytest.approx(results["loss_dis"], abs=1e-6)
    assert adversarial_loss(fake).item() == pytest.approx(results["loss_adv"], abs=1e-6)
    matching = feature_matching_loss(real, fake)
    assert matching.item() == pytest.approx(results["feature_matching_normalized"], rel=1e-5)

    # In float64, where no leaky ReLU and no difference of features ends on the wrong side of 0 by rounding.
    ensemble.double()
    wav, decoded = (samples.detach().double().requires_grad_() for samples in (wav, decoded))
    (gradient,) = torch.autograd.grad(feature_matching_loss(ensemble(wav.detach()), ensemble(decoded)), decoded)
    assert relative_error(gradient, arrays["grad_fm_wrt_fake"]) < 1e-3  # the golden one is float32 and has some
    (gradient,) = torch.autograd.grad(torch.stack([scale.logits.mean() for scale in ensemble(wav)]).sum(), wav)
    assert relative_error(gradient, arrays["grad_logits_wrt_input"]) < 1e-4


def test_the_paper_size_has_the_published_parameters(shared):
    with torch.device("meta"):
        ensemble = STFTEnsemble(STFTDiscriminatorConfig())
    found = [tuple(parameter.shape) for parameter in ensemble.parameters()]
    assert sum(map(math.prod, found)) == 47_335_440
    rows = [line.split("\t") for line in (shared / "reference/golden/keys_disc.txt").read_text().splitlines()]
    published = [tuple(json.loads(shape)) for _, shape, kind in rows if kind == "param"]
    assert sorted(found) == sorted(published)


def test_bins_are_those_of_librosa_scaled_by_eq_13():
    librosa = pytest.importorskip("librosa")
    wav = noise()
    member: Any = STFTEnsemble(SMALL).members[1]
    found = torch.complex(*member.scaled_spectrogram(wav).unbind(dim=1)).numpy()
    bins = librosa.stft(wav[:, 0].numpy(), n_fft=334, hop_length=167, window="hann", center=False)
    bins /= np.sqrt(np.square(np.hanning(335)[:-1]).sum())
    expected = bins * np.abs(bins) ** 0.5
    np.testing.assert_allclose(found, expected.transpose(0, 2, 1), atol=1e-5)


def test_some_scales_answer_as_they_do_among_all():
    ensemble = STFTEnsemble(SMALL)
    everything, some = ensemble(noise()), ensemble(noise(), scales=[1])
    assert ensemble.scale_names == ["78", "334"] and ensemble.num_scales == 2 and len(some) == 1
    assert torch.equal(some[0].logits, everything[1].logits)


def test_an_ensemble_up_to_4_khz_is_deaf_above():
    tone = 0.1 * torch.sin(2 * math.pi * 6000 / 16000 * torch.arange(2000))[None, None]
    # Bins of 16000 / 334 Hz: 0 to 83 below 4 kHz, 0 to 167 in all.
    for highest_hz, num_bins, is_deaf in ((4000.0, 84, True), (8000.0, 168, False)):
        ensemble = STFTEnsemble(STFTDiscriminatorConfig(fft_sizes=(334,), channels=4, alpha=0.0, highest_hz=highest_hz))
        quiet, loud = ensemble(noise())[0], ensemble(noise() + tone)[0]
        assert quiet.features[0].shape[-1] == num_bins
        # Only side lobes of the Hann window, below -90 dB, reach the bins that are left.
        assert ((loud.logits - quiet.logits).abs().max() < 1e-4) == is_deaf


def test_the_gradient_is_that_of_finite_differences():
    ensemble = STFTEnsemble(SMALL).double()
    wav = noise().double().requires_grad_()
    direction = torch.randn(wav.shape, dtype=torch.float64)

    def score(samples: torch.Tensor) -> torch.Tensor:
        return torch.stack([scale.logits.square().mean() for scale in ensemble(samples)]).sum()

    (gradient,) = torch.autograd.grad(score(wav), wav)
    step = 1e-7  # small, so that few leaky ReLUs change sides
    slope = (score(wav + step * direction) - score(wav - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5)


@pytest.mark.parametrize("config", [SMALL, ENCODEC], ids=["paper", "encodec"])
def test_silence_has_finite_gradients(config):
    wav = torch.zeros(1, 1, 2500, requires_grad=True)
    torch.stack([scale.logits.mean() for scale in STFTEnsemble(config)(wav)]).sum().backward()
    assert wav.grad is not None and wav.grad.isfinite().all()


def test_encodec_has_its_five_windows_hops_and_strides():
    outputs = STFTEnsemble(ENCODEC)(noise(4096))
    for size, output in zip((128, 256, 512, 1024, 2048), outputs, strict=True):
        frames = (4096 - size) // (size // 4) + 1
        widths = [size // 2 + 1]
        for _ in range(3):
            widths.append((widths[-1] + 1) // 2)
        widths.append(widths[-1])
        assert [tuple(feature.shape) for feature in output.features] == [(2, 32, frames, width) for width in widths]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"fft_sizes": ()}, "fft_sizes must be different"),
        ({"fft_sizes": (64, 64)}, "fft_sizes must be different"),
        ({"fft_sizes": (63,)}, "hop_divisor 2 must divide every FFT size, got "),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"alpha": -0.5}, "alpha must not be negative, got -0.5"),
        ({"highest_hz": 9000.0}, r"highest_hz must be in \(0, 8000\], got 9000"),
    ],
)
def test_impossible_ensembles_are_refused(options, why):
    with pytest.raises(ValueError, match=why):
        STFTDiscriminatorConfig(**options)


def test_impossible_families_and_short_crops_are_refused():
    with pytest.raises(ValueError, match="must be even"):
        golden_ratio_sizes(2295)
    with pytest.raises(ValueError, match="ask for fewer"):
        golden_ratio_sizes(64, 20)
    with pytest.raises(ValueError, match="wav has 300 samples, but the discriminator's window is 334"):
        STFTEnsemble(SMALL)(noise(300))
