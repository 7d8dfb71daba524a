"""The reconstruction losses of the small models."""

import dataclasses

import librosa
import numpy as np
import pytest
import torch

from taae.losses import ReconstructionLoss, ReconstructionLossConfig, frame_pattern_loss

ALL = ReconstructionLossConfig(complex_weight=0.5)


def noise(seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(2, 1, 8000, generator=torch.Generator().manual_seed(seed))


def test_a_perfect_copy_costs_nothing_and_every_term_sees_an_error():
    loss = ReconstructionLoss(ALL, 16000)
    assert {name: value.item() for name, value in loss(noise(), noise()).items()} == {
        "mel": 0.0, "magnitude": 0.0, "complex": 0.0, "wav": 0.0
    }  # fmt: skip
    for value in loss(noise(), noise(1)).values():
        assert value > 0.01


def test_the_mel_term_is_that_of_librosa():
    config = ReconstructionLossConfig(fft_sizes=(512,), num_mels=(64,), resolutions_per_step=1, magnitude_weight=0.0)
    target, decoded = noise()[:1], noise(1)[:1]

    def log_mel(wav: torch.Tensor) -> np.ndarray:
        bins = librosa.stft(
            wav[0, 0].numpy(), n_fft=512, hop_length=128, window="hann", center=True, pad_mode="constant"
        )
        magnitude = np.abs(bins) / np.sqrt(np.square(np.hanning(513)[:-1]).sum())
        filters = librosa.filters.mel(sr=16000, n_fft=512, n_mels=64)
        return np.log(filters / filters.sum(1, keepdims=True) @ magnitude + 1e-3)

    losses = ReconstructionLoss(config, 16000)(target, decoded)
    assert losses["mel"].item() == pytest.approx(np.abs(log_mel(target) - log_mel(decoded)).mean(), rel=1e-4)
    expected = 0.1 * (target - decoded).abs().mean() / target.abs().mean()
    assert losses["wav"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert set(losses) == {"mel", "magnitude", "wav"} - {"magnitude"}


def test_only_the_complex_and_wav_terms_see_phase():
    target = noise()
    losses = ReconstructionLoss(ALL, 16000)(target, -target)
    assert losses["mel"] == 0 and losses["magnitude"] == 0
    assert losses["complex"] > 0.5 and losses["wav"].item() == pytest.approx(0.1 * 2)


def test_relative_terms_do_not_depend_on_the_level():
    loss = ReconstructionLoss(ALL, 16000)
    loud, quiet = loss(noise(), noise(1)), loss(noise() / 4, noise(1) / 4)
    for name in ("magnitude", "wav"):
        assert quiet[name].item() == pytest.approx(loud[name].item(), rel=1e-4)


def test_silence_has_finite_gradients():
    for target in (torch.zeros(1, 1, 4000), noise()[:1, :, :4000]):
        decoded = torch.zeros(1, 1, 4000, requires_grad=True)
        torch.stack(list(ReconstructionLoss(ALL, 16000)(target, decoded).values())).sum().backward()
        assert decoded.grad is not None and decoded.grad.isfinite().all()


def test_resolutions_are_drawn_from_the_generator_and_average_to_all():
    drawn = ReconstructionLoss(dataclasses.replace(ALL, resolutions_per_step=1), 16000)
    seen = {drawn(noise(), noise(1), torch.Generator().manual_seed(seed))["mel"].item() for seed in range(40)}
    assert len(seen) == 5
    everything = ReconstructionLoss(ALL, 16000)(noise(), noise(1))["mel"].item()
    assert everything == pytest.approx(np.mean(list(seen)), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"fft_sizes": (512,)}, "must pair up"),
        ({"fft_sizes": (), "num_mels": ()}, "must pair up"),
        ({"resolutions_per_step": 0}, r"must be 1 \.\.\. 5, got 0"),
        ({"resolutions_per_step": 6}, r"must be 1 \.\.\. 5, got 6"),
    ],
)
def test_impossible_resolutions_are_refused(options, why):
    with pytest.raises(ValueError, match=why):
        ReconstructionLossConfig(**options)


def test_energy_that_pulses_with_the_frame_is_what_the_frame_pattern_term_sees():
    generator = torch.Generator().manual_seed(0)
    target, other = (0.1 * torch.randn(4, 1, 320000, generator=generator) for _ in range(2))
    pattern = 1 + 0.5 * torch.sin(2 * torch.pi * torch.arange(640) / 640)
    pulsing = other * pattern.repeat(500)
    # Nothing but the pattern of the other noise is wrong: its energy in decibels swings by 10.
    wanted = (pattern.square() / pattern.square().mean()).log().square().mean()
    torch.testing.assert_close(frame_pattern_loss(target, pulsing, 640), wanted, rtol=0.05, atol=0)
    assert frame_pattern_loss(target, target, 640) == 0
    assert frame_pattern_loss(target, other, 640) < 0.01 * wanted  # 2000 frames
    assert frame_pattern_loss(target, pulsing, 625) < 0.02 * wanted  # another period


def test_the_frame_pattern_term_is_finite_for_silence_and_in_the_sum_when_asked_for():
    silence = torch.zeros(1, 1, 6400, requires_grad=True)
    frame_pattern_loss(noise()[:1, :, :6400], silence, 640).backward()
    assert silence.grad is not None and silence.grad.isfinite().all()
    losses = ReconstructionLoss(ReconstructionLossConfig(frame_pattern_weight=0.2), 16000)(noise(), noise(1))
    expected = 0.2 * frame_pattern_loss(noise(), noise(1), 640)
    torch.testing.assert_close(losses["frame_pattern"], expected)


def test_crops_shorter_than_two_frames_have_no_frame_pattern():
    with pytest.raises(ValueError, match="crops need 1280 samples at least, got 1000"):
        frame_pattern_loss(noise()[..., :1000], noise()[..., :1000], 640)
