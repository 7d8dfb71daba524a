import numpy as np
import pytest

from workbench.figures_quality import quality_over_bitrate
from workbench.quality import boundary_line_db, fold_deviation_db, modulation_depth, quality_by_length

RATE_HZ = 16000


class Muting:
    """Sends speech through unchanged, but for the first `lost` samples of every piece, which become zero."""

    def __init__(self, lost: int = 0) -> None:
        self.lost, self.lengths_s = lost, []

    def reconstruct(self, wav, bottleneck, *, sample_rate_hz):
        self.lengths_s.append(len(wav) / sample_rate_hz)
        return np.concatenate([np.zeros(self.lost, np.float32), wav[self.lost :]]), None


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose loudness changes eight times a second, as that of syllables does."""
    rng = np.random.default_rng(seed)
    num_samples = round(seconds * RATE_HZ)
    knots = np.arange(0, num_samples + 2000, 2000)
    envelope = np.interp(np.arange(num_samples), knots, rng.uniform(0.02, 1, len(knots)))
    return (0.1 * envelope * rng.standard_normal(num_samples)).astype(np.float32)


def test_only_the_length_of_the_pieces_differs_between_rows():
    codec, wav = Muting(), speech_like(13)
    table = quality_by_length(codec, [wav], RATE_HZ, "any", (1.5, 6))
    assert codec.lengths_s == [1.5] * 8 + [6] * 2
    for row in table.values():
        assert row["stoi"]["num_clips"] == 2
        assert row["stoi"]["mean"] == pytest.approx(1)


def test_a_codec_that_loses_every_beginning_does_worse_on_short_pieces():
    table = quality_by_length(Muting(lost=4000), [speech_like(12)], RATE_HZ, "any", (1.5, 6))
    assert table[1.5]["stoi"]["mean"] < table[6]["stoi"]["mean"] - 0.03


def test_lengths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="6 s is not a whole number of pieces of 4 s"):
        quality_by_length(Muting(), [speech_like(12)], RATE_HZ, "any", (4, 6))
    with pytest.raises(ValueError, match="no recording is 25 s long; the longest has 12.0 s"):
        quality_by_length(Muting(), [speech_like(12)], RATE_HZ, "any", (5, 25))


@pytest.mark.parametrize("line_hz", [25, 50])
def test_clicks_at_the_frame_rate_make_a_line_and_their_absence_makes_none(line_hz):
    wav = speech_like(60)
    clicked = wav.copy()
    clicked[:: RATE_HZ // line_hz] += 0.2
    assert abs(boundary_line_db(wav, RATE_HZ, line_hz)) < 6  # one bin of a noise spectrum
    assert boundary_line_db(clicked, RATE_HZ, line_hz) > 12
    # The same clicks at another rate are not at this line.
    moved = wav.copy()
    moved[:: RATE_HZ // 40] += 0.2
    assert boundary_line_db(moved, RATE_HZ, line_hz) < 6


@pytest.mark.parametrize("line_hz", [25, 50, 100])
def test_the_depth_of_a_modulation_is_that_of_its_envelope(line_hz):
    noise = np.random.default_rng(3).standard_normal(60 * RATE_HZ)
    wave = np.cos(2 * np.pi * line_hz * np.arange(len(noise)) / RATE_HZ + 1)
    for depth in (0.03, 0.1):
        # The steps of 2.5 ms average a little of it away.
        found = modulation_depth((1 + depth * wave) * noise, RATE_HZ, line_hz)
        assert found == pytest.approx(depth * np.sinc(line_hz / 400), abs=0.006)
    assert modulation_depth(noise, RATE_HZ, line_hz) < 0.006


@pytest.mark.parametrize("measure", [boundary_line_db, modulation_depth])
def test_a_modulation_line_needs_two_seconds(measure):
    with pytest.raises(ValueError, match="two seconds at least are needed, got 1.00 s"):
        measure(speech_like(1), RATE_HZ, 25)


def test_energy_that_pulses_with_the_frame_is_measured_in_decibels():
    wavs = [speech_like(20, seed) for seed in range(2)]
    pattern_db = 3 * np.sin(2 * np.pi * np.arange(640) / 640)  # standard deviation 3 / sqrt(2)
    pulsing = [wav[:319360] * np.tile(10 ** (pattern_db / 20), 499).astype(np.float32) for wav in wavs]
    assert fold_deviation_db(wavs, 640) < 0.5
    assert fold_deviation_db(pulsing, 640) == pytest.approx(3 / np.sqrt(2), abs=0.15)


def test_the_plot_shows_every_mean_with_its_interval_and_leaves_out_what_has_no_bitrate():
    def row(codec, mode, rate, mean):
        value = {"mean": mean, "low": mean - 0.1, "high": mean + 0.2, "num_clips": 3}
        return {"codec": codec, "mode": mode, "bits_per_second": rate, "pesq_raw_nb": value, "stoi": value}

    rows = [
        row("TAAE mini", "2x5^6", 700, 2.4),
        row("TAAE mini", "1x6^6", 400, 2.2),
        row("TAAE mini", "continuous", None, 2.5),
        row("Codec2", "700C", 700, 2.1),
    ]
    taae, _, codec2, _ = quality_over_bitrate(rows).data
    assert (taae.name, list(taae.x), list(taae.y)) == ("TAAE mini", [400, 700], [2.2, 2.4])
    assert (codec2.name, list(codec2.text), codec2.mode) == ("Codec2", ["700C"], "markers+text")
    np.testing.assert_allclose(taae.error_y.array, 0.2)
    np.testing.assert_allclose(taae.error_y.arrayminus, 0.1)
