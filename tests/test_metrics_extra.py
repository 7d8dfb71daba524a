import math
import sys

import numpy as np
import pytest

from taae.evaluate import evaluate, read_manifest
from taae.metrics import MetricError
from workbench import metrics_extra
from workbench.metrics_extra import EXTRA, f0_errors, speaker_similarity

RATE = 16_000


@pytest.fixture
def voice():
    """`voice(f0_hz)` -> a second of a buzz with formants and the given pitch track."""
    from scipy.signal import lfilter

    def make(f0_hz, seconds=1.0):
        time_s = np.arange(round(seconds * RATE)) / RATE
        pulses = np.diff(np.floor(np.cumsum(np.broadcast_to(f0_hz, time_s.shape)) / RATE), prepend=0)
        wav = pulses
        for formant in (500, 1500, 2500):
            angle = 2 * np.pi * formant / RATE
            wav = lfilter([0.05], [1, -2 * 0.97 * np.cos(angle), 0.97**2], wav)
        return (0.5 * wav / np.abs(wav).max()).astype(np.float32)

    return make


def test_f0_error_of_a_transposed_voice_is_its_interval(voice):
    pytest.importorskip("librosa")
    low, high = voice(120.0), voice(120.0 * 2 ** (1 / 12))
    assert f0_errors(low, low, RATE).rmse_cents == 0
    errors = f0_errors(low, high, RATE)
    assert errors.rmse_cents == pytest.approx(100, abs=12)  # pYIN's bins are 10 cents wide
    assert errors.gross_share == 0
    octave = f0_errors(low, voice(240.0), RATE)
    assert octave.gross_share > 0.9 and octave.rmse_cents == pytest.approx(1200, rel=0.05)
    assert EXTRA["f0_error"].score(low, high, RATE) == errors.rmse_cents


def test_voicing_errors_count_what_is_voiced_in_one_clip_only(voice):
    pytest.importorskip("librosa")
    whole = voice(150.0, 2.0)
    half = np.concatenate([whole[:RATE], 1e-3 * np.random.default_rng(0).standard_normal(RATE).astype("f4")])
    assert f0_errors(whole, half, RATE).voicing_share == pytest.approx(0.5, abs=0.1)
    with pytest.raises(MetricError, match="no frame is voiced in both"):
        f0_errors(np.zeros(RATE, "f4"), whole[:RATE], RATE)


def test_a_voice_is_like_itself_and_less_like_others(shared):
    if (reason := EXTRA["speaker_similarity"].unavailable()) is not None:
        pytest.skip(reason)
    from taae.audio import load_wav, to_mono

    by_speaker = {}
    for clip in read_manifest(shared / "speech/dev/manifest.jsonl"):
        if clip.language == "en" and clip.seconds > 4:
            by_speaker.setdefault(clip.speaker, []).append(clip)
    pairs = [clips[:2] for clips in by_speaker.values() if len(clips) > 1][:4]
    wavs = [[to_mono(load_wav(clip.path)[0]) for clip in pair] for pair in pairs]
    assert speaker_similarity(wavs[0][0], wavs[0][0], RATE) == pytest.approx(1)
    same = [speaker_similarity(a, b, RATE) for a, b in wavs]
    other = [speaker_similarity(wavs[i][0], wavs[j][1], RATE) for i in range(4) for j in range(4) if i != j]
    assert np.mean(same) > 0.8 and np.mean(same) > np.mean(other) + 0.1
    narrow = wavs[0][0].copy()
    assert speaker_similarity(wavs[0][0], 0.1 * narrow, RATE) == pytest.approx(1, abs=0.01)  # level does not matter
    with pytest.raises(MetricError, match="silent"):
        speaker_similarity(wavs[0][0], np.zeros(RATE, "f4"), RATE)


def test_embeddings_are_those_of_the_package(speech):
    try:
        from resemblyzer import VoiceEncoder
    except Exception as error:  # its own dependencies are optional
        pytest.skip(f"resemblyzer cannot be imported: {error}")
    wav = speech(5.0)
    wav = wav / np.sqrt(np.mean(wav**2)) * 0.04
    theirs = VoiceEncoder("cpu", verbose=False).embed_utterance(wav)
    assert theirs @ metrics_extra.speaker_embedding(wav) > 0.98


def test_every_extra_metric_says_its_package_and_how_to_get_it(monkeypatch):
    monkeypatch.setattr(metrics_extra, "find_spec", lambda name: None)
    for name, metric in EXTRA.items():
        assert any(character.isdigit() for character in metric.package) and metric.mode, name
        assert metric.unavailable().startswith(f"unavailable: needs {metric.modules[0]}")
        assert f"get it with: {metric.command}" in metric.unavailable()
    assert metrics_extra.available() == {}


@pytest.mark.parametrize("name", ["dnsmos", "distillmos", "visqol", "f0_error"])
def test_a_missing_package_is_an_error_with_a_command(name, monkeypatch, speech):
    for module in ("speechmos", "speechmos.dnsmos", "distillmos", "visqol", "librosa"):
        monkeypatch.setitem(sys.modules, module, None)
    metrics_extra._distillmos.cache_clear()
    metrics_extra._visqol.cache_clear()
    with pytest.raises(ImportError, match=f"{name} unavailable: needs .*, get it with: pip install"):
        EXTRA[name].score(speech(1), speech(1), RATE)


@pytest.mark.parametrize("name", ["dnsmos", "distillmos", "visqol"])
def test_predictors_of_quality_hear_noise(name, shared):
    from taae.audio import load_wav, to_mono

    if (reason := EXTRA[name].unavailable()) is not None:
        pytest.skip(reason)
    clip = read_manifest(shared / "speech/dev/manifest.jsonl")[0]
    wav = to_mono(load_wav(clip.path)[0])[: 4 * RATE]
    noise = np.random.default_rng(0).standard_normal(wav.size).astype("f4")
    good, bad = (EXTRA[name].score(wav, wav + level * noise, RATE) for level in (0.0005, 0.05))
    assert 1 <= bad < good - 0.3 and good <= 5


def test_extra_metrics_take_part_in_an_evaluation(tmp_path, voice):
    pytest.importorskip("librosa")
    import soundfile

    soundfile.write(tmp_path / "a.wav", voice(130.0), RATE)

    class Same:
        def reconstruct(self, wav, bottleneck, *, sample_rate_hz):
            return wav, None

    extra = {"f0_error": EXTRA["f0_error"].score}
    (row,) = evaluate(Same(), [("a", tmp_path / "a.wav")], ["x"], metrics=["si_sdr"], extra=extra, progress=False)
    assert row["f0_error"] == 0 and not math.isnan(row["si_sdr"])
