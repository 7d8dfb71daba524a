import numpy as np
import pytest

from workbench.listening.anchors import CUTOFFS_HZ, low_pass, low_pass_taps, mask_faults

RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 96000)
POSSIBLE = [(rate, hz) for rate in RATES_HZ for hz in CUTOFFS_HZ if rate / 2 - hz >= 100]


@pytest.mark.parametrize(("rate_hz", "cutoff_hz"), POSSIBLE)
def test_every_filter_is_inside_the_mask_of_bs1534(rate_hz, cutoff_hz):
    assert mask_faults(low_pass_taps(rate_hz, cutoff_hz), rate_hz, cutoff_hz) == []


def test_the_mask_finds_a_filter_that_is_too_gentle():
    from scipy.signal import firwin

    faults = mask_faults(np.asarray(firwin(41, 3500, fs=48000)), 48000, 3500)
    assert len(faults) == 3  # ripple, 25 dB at 4 kHz, 50 dB at 4.5 kHz


@pytest.mark.parametrize("rate_hz", [16000, 44100, 48000])
@pytest.mark.parametrize(("tone_hz", "attenuation_db"), [(100, 0), (1000, 0), (3400, 0), (4000, 25), (4500, 50)])
def test_sines_pass_or_stop_as_the_mask_says(rate_hz, tone_hz, attenuation_db):
    time_s = np.arange(rate_hz) / rate_hz
    tone = np.sin(2 * np.pi * tone_hz * time_s)
    inner = slice(rate_hz // 4, -rate_hz // 4)
    filtered = low_pass(tone, rate_hz, 3500)[inner]
    if attenuation_db:
        assert 20 * np.log10(np.abs(filtered).max()) <= -attenuation_db
    else:  # zero phase: what passes is the same wave, not a later one
        np.testing.assert_allclose(filtered, tone[inner], atol=0.012)  # 0.1 dB


def test_an_anchor_is_not_late_and_as_long_as_its_reference():
    click = np.zeros(1001, np.float32)
    click[500] = 1.0
    anchor = low_pass(click, 16000, 3500)
    assert anchor.shape == click.shape and anchor.argmax() == 500
    np.testing.assert_allclose(anchor, anchor[::-1], atol=1e-7)


def test_a_rate_that_cannot_hold_the_anchor_is_refused_with_the_rate_that_can():
    with pytest.raises(ValueError, match="7 kHz anchor removes nothing at 8000 Hz; use references of 14200 Hz"):
        low_pass(np.ones(100), 8000, 7000)
