"""Filterbanks of appendix B.4: exactness, energy, and what errors in them look like."""

import numpy as np
import pytest
from scipy.fft import dct

from workbench import filterbanks
from workbench.filterbanks import all_filterbanks, describe, error_numbers, with_error

BANKS = {bank.title: bank for bank in all_filterbanks()}


def noise(n: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(n)


@pytest.mark.parametrize("title", ["Patching", "STFT, no overlap", "STFT, half overlap", "MDCT"])
@pytest.mark.parametrize("n", [6400, 5001, 100])
def test_reconstruction_is_exact(title, n):
    bank, wav = BANKS[title], noise(n)
    assert np.abs(bank.synthesise(bank.analyse(wav), n) - wav).max() < 1e-13


def test_pqmf_reconstructs_nearly():
    assert -90 < describe(BANKS["PQMF"], noise(8000))["reconstruction_db"] < -50


def test_only_the_overlapping_stft_is_redundant():
    assert {title: bank.redundancy for title, bank in BANKS.items()} == {
        "Patching": 1.0,
        "STFT, no overlap": 1.0,
        "STFT, half overlap": 2.0,
        "MDCT": 1.0,
        "PQMF": 1.0,
    }


@pytest.mark.parametrize("title", BANKS)
def test_coefficients_have_the_energy_of_the_wav(title):
    wav = np.pad(noise(6400), 1600)  # nothing at the ends, where windows reach out
    energy = np.square(BANKS[title].analyse(wav)).sum()
    assert energy == pytest.approx(np.square(wav).sum(), rel=2e-3 if title == "PQMF" else 1e-12)


def test_the_mdct_is_the_dct_iv_of_folded_windows():
    hop, wav = 320, noise(3200)
    frames = BANKS["MDCT"].analyse(wav)
    window = np.sin(np.pi * (np.arange(2 * hop) + 0.5) / (2 * hop))
    a, b, c, d = np.split(wav[320:960] * window, 4)  # frame 2 begins one hop before sample 640
    folded = np.concatenate([-c[::-1] - d, a - b[::-1]])
    np.testing.assert_allclose(frames[2], dct(folded, type=4, norm="ortho"), atol=1e-12)


@pytest.mark.parametrize("kind", filterbanks.ERRORS)
@pytest.mark.parametrize("title", BANKS)
def test_every_error_has_the_signal_to_noise_ratio_asked(title, kind):
    wav = noise(16000)
    numbers = error_numbers(BANKS[title], wav, kind, snr_db=12.0)
    assert numbers["snr_db"] == pytest.approx(12.0, abs=1e-6)


def test_relative_errors_jump_at_the_frames_of_the_rectangular_stft_and_nowhere_in_patches(speech):
    wav = speech(12.0)
    found = {t: error_numbers(bank, wav, "relative", snr_db=15.0)["periodicity_db"] for t, bank in BANKS.items()}
    assert found["STFT, no overlap"] > 6
    assert all(abs(found[title]) < 1.5 for title in ("Patching", "STFT, half overlap", "MDCT", "PQMF"))


def test_white_errors_are_alike_in_all(speech):
    wav = speech(12.0)
    for bank in BANKS.values():
        numbers = error_numbers(bank, wav, "white", snr_db=15.0)
        assert abs(numbers["periodicity_db"]) < 1.0 and abs(numbers["highband_db"]) < 0.3


def test_a_linear_bottleneck_makes_the_same_error_of_patches_and_of_the_rectangular_stft(speech):
    wav = speech(12.0)
    patches, spectra = (with_error(BANKS[t], wav, "low rank", snr_db=15.0) for t in ("Patching", "STFT, no overlap"))
    # Two singular value decompositions of one matrix up to a rotation.
    np.testing.assert_allclose(patches, spectra, atol=1e-6)


def test_the_error_of_one_coefficient_lasts_as_long_as_its_filter():
    spread_ms = {title: describe(bank, noise(8000))["spread_ms"] for title, bank in BANKS.items()}
    assert spread_ms["Patching"] == pytest.approx(1 / 16)
    assert 19 < spread_ms["STFT, no overlap"] <= 20
    assert 20 < spread_ms["MDCT"] <= 40


def test_an_error_that_is_none_of_those_known_is_refused():
    with pytest.raises(ValueError, match="no error 'pink'; there are white, relative, coarse, low rank"):
        with_error(BANKS["Patching"], noise(3200), "pink", snr_db=10.0)
