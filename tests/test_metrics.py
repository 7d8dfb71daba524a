import math
import sys

import numpy as np
import pytest

from taae import metrics
from taae.metrics import MetricError

RATE = 16_000


@pytest.fixture(scope="module")
def clean(speech):
    return speech(4)


@pytest.fixture(scope="module")
def noise(clean):
    return np.random.default_rng(1).standard_normal(clean.size).astype("f4")


def add_noise(wav, noise, snr_db):
    """Noise without mean and orthogonal to `wav`, so that the ratio is exact."""
    wav, noise = wav.astype(np.float64), noise.astype(np.float64)
    centred = wav - wav.mean()
    noise = noise - noise.mean()
    noise -= (noise @ centred) / (centred @ centred) * centred
    return wav + noise * np.linalg.norm(centred) / np.linalg.norm(noise) * 10 ** (-snr_db / 20)


# SI-SDR


@pytest.mark.parametrize("snr_db", [-10, 0, 4.73, 30])
def test_si_sdr_of_known_noise_is_its_ratio(snr_db, clean, noise):
    assert metrics.si_sdr(clean, add_noise(clean, noise, snr_db)) == pytest.approx(snr_db, abs=1e-3)


def test_si_sdr_ignores_scale_sign_and_offset(clean, noise):
    noisy = add_noise(clean, noise, 10)
    assert metrics.si_sdr(clean, -0.3 * noisy + 0.1) == pytest.approx(10, abs=1e-3)


def test_si_sdr_of_an_unrelated_or_silent_clip_is_at_the_floor(clean):
    assert metrics.si_sdr(clean, np.zeros_like(clean)) == pytest.approx(-80)


def test_si_sdr_of_a_silent_reference_is_undefined(clean):
    with pytest.raises(MetricError, match="the reference is silent"):
        metrics.si_sdr(np.full_like(clean, 0.1), clean)


# spectral distances


@pytest.mark.parametrize("distance", [metrics.stft_distance, metrics.mel_distance])
def test_spectral_distance_of_a_scaled_clip_has_a_closed_form(distance, noise):
    loud = 0.1 * noise  # no magnitude is near the clamp
    assert distance(loud, loud) == 0
    assert distance(loud, 0.5 * loud) == pytest.approx(0.5 + math.log(2), rel=1e-4)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 40.0])  # 40 s is more than one block of frames
def test_spectral_distances_and_si_sdr_equal_those_of_auraloss(seconds, speech):
    freq = pytest.importorskip("auraloss.freq")
    time = pytest.importorskip("auraloss.time")
    import torch

    clean = speech(seconds)
    noisy = (add_noise(clean, np.random.default_rng(1).standard_normal(clean.size), 5) * 0.8).astype("f4")
    for ours, theirs in (
        (metrics.stft_distance, freq.STFTLoss(2048, 512, 2048)),
        (metrics.mel_distance, freq.MelSTFTLoss(RATE, 2048, 256, 2048, n_mels=128)),
        (lambda a, b: -metrics.si_sdr(a, b), time.SISDRLoss(zero_mean=True)),
    ):
        expected = theirs(torch.from_numpy(noisy)[None, None], torch.from_numpy(clean)[None, None]).item()
        assert ours(clean, noisy) == pytest.approx(expected, rel=1e-4)  # theirs in float32


def test_spectral_distances_need_sound_in_the_reference_alone(clean):
    for distance in (metrics.stft_distance, metrics.mel_distance):
        with pytest.raises(MetricError, match="the reference is silent"):  # the formula would give 500
            distance(np.zeros_like(clean), clean)
        assert 1 < distance(clean, np.zeros_like(clean)) < 20
        assert math.isfinite(distance([0.1], [0.2]))


# PESQ and STOI


def test_identical_clips_reach_the_top_of_every_scale(clean):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    assert metrics.pesq_raw_nb(clean, clean) == pytest.approx(4.5, abs=1e-4)
    assert metrics.pesq_nb(clean, clean) == pytest.approx(4.549, abs=1e-3)
    assert metrics.pesq_wb(clean, clean) == pytest.approx(4.644, abs=1e-3)
    assert metrics.stoi(clean, clean) == pytest.approx(1, abs=1e-6)
    assert metrics.estoi(clean, clean) == pytest.approx(1, abs=1e-6)


def test_more_noise_scores_worse_on_every_metric(clean, noise):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    better, worse = (metrics.score(clean, add_noise(clean, noise, snr_db), RATE) for snr_db in (20, 0))
    assert set(better) == set(metrics.METRICS) - set(metrics.unavailable_metrics())
    for name in better:
        sign = -1 if name.endswith("distance") else 1
        assert sign * better[name] > sign * worse[name] + 0.02, name


def test_stoi_and_estoi_are_those_of_pystoi(clean, noise):
    pystoi = pytest.importorskip("pystoi")
    noisy = np.float32(add_noise(clean, noise, 5))
    pair = np.float64(clean), np.float64(noisy), RATE
    assert metrics.stoi(clean, noisy) == pytest.approx(pystoi.stoi(*pair), abs=1e-9)
    assert metrics.estoi(clean, noisy) == pytest.approx(pystoi.stoi(*pair, extended=True), abs=1e-9)
    assert metrics.stoi(clean, noisy) - metrics.estoi(clean, noisy) > 0.05


@pytest.mark.parametrize("raw", [-0.5, 1.0, 3.09, 4.5])
def test_raw_pesq_undoes_the_mapping_of_p862_1(raw):
    mos_lqo = 0.999 + 4 / (1 + math.exp(-1.4945 * raw + 4.6607))
    assert metrics.raw_from_mos_lqo(mos_lqo) == pytest.approx(raw, abs=1e-9)


def test_the_papers_pesq_maps_to_the_measured_mos():
    # Table 2: 3.09 raw is about 3.0 on the scale of other papers
    assert metrics.raw_from_mos_lqo(2.96) == pytest.approx(3.09, abs=0.01)


def test_pesq_of_a_long_clip_with_many_utterances_is_the_mean_of_its_pieces(speech):
    pesq = pytest.importorskip("pesq")
    rng = np.random.default_rng(0)
    burst = np.concatenate([0.3 * rng.standard_normal(4000), np.zeros(4000)])
    clean = np.tile(burst, 114).astype("f4")  # 57 s: the package alone crashes the process
    noisy = (clean + 0.01 * rng.standard_normal(clean.size)).astype("f4")
    pieces = [pesq.pesq(RATE, a, b, "nb") for a, b in zip(np.split(clean, 3), np.split(noisy, 3), strict=True)]
    assert metrics.pesq_nb(clean, noisy) == pytest.approx(np.mean(pieces), abs=1e-6)


def test_a_silent_piece_does_not_spoil_pesq(clean, noise):
    pytest.importorskip("pesq")
    noisy = add_noise(clean, noise, 15).astype("f4")
    silence = np.zeros(16 * RATE, "f4")
    padded = [np.concatenate([wav, silence, silence[: -clean.size]]) for wav in (clean, noisy)]  # 32 s, two pieces
    assert metrics.pesq_nb(*padded) == pytest.approx(metrics.pesq_nb(padded[0][: 16 * RATE], padded[1][: 16 * RATE]))


@pytest.mark.parametrize("name", ["pesq_raw_nb", "pesq_nb", "pesq_wb", "stoi", "estoi"])
def test_perceptual_metrics_say_why_they_are_undefined(name, clean):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    metric, silence = metrics.METRICS[name], np.zeros_like(clean)
    with pytest.raises(MetricError, match="the reference is silent"):
        metric(silence, clean)
    with pytest.raises(MetricError, match="the degraded clip is silent"):
        metric(clean, silence)
    for num_samples in (1, 100, 3000):
        with pytest.raises(MetricError, match="needs"):
            metric(clean[4000 : 4000 + num_samples], clean[4000 : 4000 + num_samples])


def test_pesq_finds_no_speech_in_a_click():
    pytest.importorskip("pesq")
    click = np.zeros(RATE, "f4")
    click[8000:8200] = 0.5
    with pytest.raises(MetricError, match="finds no speech"):
        metrics.pesq_nb(click, click)


# score


def test_score_marks_undefined_metrics_as_nan_and_gives_the_reasons(clean):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    reasons = {}
    scores = metrics.score(clean, np.zeros_like(clean), RATE, reasons=reasons)
    undefined = {name for name, value in scores.items() if math.isnan(value)}
    assert undefined == {"pesq_raw_nb", "pesq_nb", "pesq_wb", "stoi", "estoi"} == set(reasons)
    assert reasons["stoi"] == "the degraded clip is silent"


def test_score_resamples_to_16_khz(speech):
    clean = speech(2, 48_000)
    low, high = np.random.default_rng(0).standard_normal((2, clean.size)) * 0.01
    spectrum = np.fft.rfft(high)
    spectrum[: int(9000 * 2)] = 0  # above 9 kHz only
    inaudible = np.fft.irfft(spectrum, clean.size)
    names = ["si_sdr", "mel_distance"]
    scores = metrics.score(clean, clean + inaudible, 48_000, names)
    assert scores["si_sdr"] > 50 and scores["mel_distance"] < 0.01
    assert metrics.score(clean, clean + low, 48_000, names)["si_sdr"] < 30


def test_score_accepts_tensors_and_averages_stereo(clean, noise):
    import torch

    noisy = np.float32(add_noise(clean, noise, 10))
    expected = metrics.si_sdr(clean, noisy)
    stereo = torch.from_numpy(np.stack([noisy + 0.1 * noise, noisy - 0.1 * noise]))[None]
    assert metrics.score(clean[None, None], stereo, RATE, ["si_sdr"])["si_sdr"] == pytest.approx(expected, abs=1e-3)


def test_score_refuses_what_it_cannot_compare(clean):
    with pytest.raises(ValueError, match="reference 64000 samples, degraded 63999"):
        metrics.score(clean, clean[1:], RATE)
    with pytest.raises(ValueError, match="degraded: wav holds 64000 values that are NaN"):
        metrics.score(clean, np.full_like(clean, np.nan), RATE)
    with pytest.raises(ValueError, match="unknown metrics loudness; choose among si_sdr"):
        metrics.score(clean, clean, RATE, ["loudness"])


@pytest.mark.parametrize(("name", "package"), [("pesq_wb", "pesq"), ("estoi", "pystoi")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(name, package, clean, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install .*\b{package}\b"):
        metrics.score(clean, clean, RATE, [name])
    assert metrics.score(clean, 0.5 * clean, RATE, ["si_sdr"])["si_sdr"] > 80  # the plain ones need no package


# statistics


def test_the_bootstrap_interval_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(3, 2, 400)
    mean, low, high = metrics.bootstrap_ci(values)
    half_width = 1.96 * values.std() / 20
    assert mean == pytest.approx(values.mean())
    # 2000 resamples place a 2.5 % quantile within a few percent of the half width
    assert (mean - low, high - mean) == pytest.approx((half_width, half_width), rel=0.12)
    assert metrics.bootstrap_ci(values) == (mean, low, high)
    assert metrics.bootstrap_ci(values, seed=1) != (mean, low, high)


def test_one_value_is_its_own_interval_and_none_is_an_error():
    assert metrics.bootstrap_ci([0.25]) == (0.25, 0.25, 0.25)
    for values in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite numbers"):
            metrics.bootstrap_ci(values)
