"""The spectrograms that the page draws, computed in Chromium, against numpy."""

from pathlib import Path

import numpy as np
import pytest

import workbench.ui

pytestmark = pytest.mark.browser
SPECTRUM_JS = Path(workbench.ui.__file__).parent / "static" / "spectrum.js"


@pytest.fixture(scope="module")
def blank(chromium):
    page = chromium.new_page()
    page.add_script_tag(path=SPECTRUM_JS)
    yield page
    page.close()


def test_the_fft_is_that_of_numpy(blank):
    wav = np.random.default_rng(5).standard_normal((2, 512))
    found = blank.evaluate(
        """(wav) => {
          const [re, im] = wav.map((part) => Float64Array.from(part));
          fft(re, im);
          return [[...re], [...im]];
        }""",
        wav.tolist(),
    )
    expected = np.fft.fft(wav[0] + 1j * wav[1])
    assert np.abs(np.array(found[0]) + 1j * np.array(found[1]) - expected).max() < 1e-10


@pytest.mark.parametrize(("sample_rate_hz", "tone_hz"), [(16000, 1000), (16000, 6000), (44100, 3000)])
def test_a_tone_shows_its_level_in_the_row_of_its_frequency(blank, sample_rate_hz, tone_hz):
    rows, columns = 128, 10
    wav = 0.1 * np.sin(2 * np.pi * tone_hz * np.arange(sample_rate_hz) / sample_rate_hz)
    levels, height = blank.evaluate(
        "([wav, rate, hz, columns, rows]) => [[...spectrogram(wav, rate, columns, rows)], heightOfHz(hz, rate)]",
        [wav.tolist(), sample_rate_hz, tone_hz, columns, rows],
    )
    column = np.array(levels).reshape(rows, columns)[:, 5]
    assert abs(np.argmax(column) - (1 - height) * rows) <= 2
    assert column.max() == pytest.approx(-20, abs=1.5)  # a Hann window loses up to 1.4 dB between bins
    mel = 2595 * np.log10(1 + np.array([tone_hz, min(sample_rate_hz / 2, 12000)]) / 700)
    assert height == pytest.approx(mel[0] / mel[1])


def test_silence_is_at_the_floor(blank):
    levels = blank.evaluate("() => [...spectrogram(new Float32Array(8000), 16000, 4, 8)]")
    assert set(levels) == {-110.0}
