"""Everything behind the page that needs no browser."""

import dataclasses
import json
import math

import numpy as np
import pytest

from taae import bitstream, metrics
from taae.audio import load_wav, resample, save_wav, to_mono
from taae.config import BottleneckSpec
from workbench import compare as module
from workbench.compare import SourceError, bitrate_label, compare, is_taae, open_taae


@pytest.fixture(scope="module")
def comparison(tiny_codec, example):
    return compare(tiny_codec, example, ["continuous", "2x5^6", "1x6^6", "1x17^6"])


def test_versions_come_lowest_bitrate_first_with_labels_in_kbit_per_second(comparison):
    assert [(version.label, version.bottleneck) for version in comparison.versions] == [
        ("0.4 kbit/s", "1x6^6"),
        ("0.625 kbit/s", "1x17^6"),
        ("0.7 kbit/s", "2x5^6"),
        ("Continuous", "continuous"),
    ]
    assert bitrate_label("4x3^6", 25.0) == "1 kbit/s"


def test_what_is_heard_is_decoded_from_the_file_that_is_offered(comparison, tiny_codec):
    for version in comparison.versions[:-1]:
        assert np.array_equal(version.wav, tiny_codec.decompress(version.data).numpy()[0, 0])


def test_payload_is_the_nominal_bitrate_per_started_frame(comparison):
    num_frames = math.ceil(len(comparison.original) / 640)
    for version, bits_per_frame in zip(comparison.versions, (16, 25, 28), strict=False):
        assert version.payload_bits == bits_per_frame * num_frames
        assert len(version.data) == bitstream.HEADER_BYTES + math.ceil(version.payload_bits / 8)
        assert version.tokens.shape == (num_frames, BottleneckSpec.parse(version.bottleneck).num_stages)


def test_ratio_and_rate_are_those_of_the_whole_file(comparison):
    entry = comparison.as_dict()["versions"][0]
    assert comparison.pcm_bytes == 2 * len(comparison.original)
    assert entry["num_bytes"] == len(comparison.versions[0].data)
    assert entry["compression_ratio"] == comparison.pcm_bytes / entry["num_bytes"]
    assert entry["bits_per_second"] == pytest.approx(8 * entry["num_bytes"] / (len(comparison.original) / 16000))


def test_metrics_are_those_of_the_metrics_module(comparison):
    for version in comparison.versions:
        assert version.scores["stoi"] == metrics.stoi(comparison.original, version.wav, 16000)
        assert version.scores["si_sdr"] == metrics.si_sdr(comparison.original, version.wav, 16000)
        assert set(version.scores) == {"stoi", "pesq_raw_nb", "si_sdr", "mel_distance", "stft_distance"}


def test_bitrates_that_share_a_grid_are_said_to_sound_alike(comparison):
    assert np.array_equal(comparison.versions[1].wav, comparison.versions[2].wav)
    assert not np.array_equal(comparison.versions[0].wav, comparison.versions[1].wav)
    (note,) = comparison.notes
    assert note.startswith("0.625 kbit/s and 0.7 kbit/s sound exactly alike")


def test_other_rates_and_channels_come_back_at_the_rate_of_the_recording(tiny_codec, speech, tmp_path):
    stereo = np.stack([speech(1.0, 44100, seed=1), speech(1.0, 44100, seed=2)])
    save_wav(tmp_path / "stereo.wav", stereo, 44100)
    result = compare(tiny_codec, tmp_path / "stereo.wav", ["1x6^6"])
    assert result.sample_rate_hz == result.source_rate_hz == 44100
    assert result.versions[0].wav.shape == result.original.shape == (44100,)
    assert result.pcm_bytes == 32000  # PCM is counted at the codec's 16 kHz, not at 44.1 kHz
    assert result.notes == ["The 2 channels were averaged: the codec is mono."]
    stored, _ = load_wav(tmp_path / "stereo.wav")
    assert np.array_equal(result.original, to_mono(stored))


def test_rates_that_browsers_do_not_play_are_brought_to_48_khz(tiny_codec, speech, tmp_path):
    save_wav(tmp_path / "fast.wav", speech(0.5, 96000), 96000)
    result = compare(tiny_codec, tmp_path / "fast.wav", ["1x6^6"])
    assert result.sample_rate_hz == 48000
    assert len(result.original) == len(result.versions[0].wav) == 24000
    assert bitstream.read_header(result.versions[0].data).num_samples == 48000
    assert result.notes == ["Played here at 48 kHz; the .taae files decode to 96 kHz."]


def test_long_recordings_are_heard_at_the_rate_of_the_codec(tiny_codec, speech, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MAX_FULL_RATE_SAMPLES", 10000)
    wav = speech(0.5, 24000)
    save_wav(tmp_path / "long.wav", wav, 24000)
    result = compare(tiny_codec, tmp_path / "long.wav", ["1x6^6"])
    assert result.sample_rate_hz == 16000
    assert np.abs(result.original - resample(wav, 24000, 16000)).max() < 1e-4  # 16-bit file


def test_silence_has_no_metrics_but_reasons(tiny_codec, tmp_path):
    save_wav(tmp_path / "silence.wav", np.zeros(16000, np.float32), 16000)
    result = compare(tiny_codec, tmp_path / "silence.wav", ["1x6^6"])
    entry = json.loads(json.dumps(result.as_dict(), allow_nan=False))["versions"][0]
    for name in ("stoi", "pesq_raw_nb", "si_sdr"):
        assert entry["scores"][name] is None
        assert len(entry["reasons"][name]) > 5
    assert np.isfinite(result.versions[0].wav).all()


def test_progress_rises_from_0_to_1_and_says_what_is_done(tiny_codec, example):
    calls: list[tuple[float, str]] = []
    compare(tiny_codec, example, ["1x6^6", "continuous"], lambda *call: calls.append(call))
    fractions = [fraction for fraction, _ in calls]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    said = [what for _, what in calls]
    assert {"Encoding", "Decoding at 0.4 kbit/s", "Measuring without a quantiser"} <= set(said)


def _bad_files(folder, speech):
    (folder / "nonsense.wav").write_bytes(b"RIFF" + bytes(range(200)))
    (folder / "empty.wav").write_bytes(b"")
    save_wav(folder / "short.wav", speech(0.01), 16000)
    save_wav(folder / "long.wav", np.zeros(1000 * 601, np.float32), 1000)
    (folder / "large.wav").write_bytes(b"RIFF")
    with (folder / "large.wav").open("r+b") as file:
        file.truncate(65 * 2**20)
    return {
        "nonsense.wav": "cannot read nonsense.wav as audio",
        "empty.wav": "empty.wav is empty",
        "short.wav": "lasts 10 ms; at least 50 ms",
        "long.wav": "lasts 10:01 minutes; at most 10, please",
        "large.wav": "large.wav has 65 MB; at most 64 MB",
    }


def test_unusable_files_get_one_sentence_that_does_not_tell_where_they_lie(tiny_codec, speech, tmp_path):
    for name, words in _bad_files(tmp_path, speech).items():
        with pytest.raises(SourceError) as raised:
            compare(tiny_codec, tmp_path / name, ["1x6^6"])
        message = str(raised.value)
        assert words in message
        assert str(tmp_path) not in message and "\n" not in message


@pytest.mark.parametrize(("bottlenecks", "words"), [([], "at least one bitrate"), (["3x"], "3x")])
def test_a_missing_or_unknown_bitrate_is_said(tiny_codec, example, bottlenecks, words):
    with pytest.raises(SourceError, match=words):
        compare(tiny_codec, example, bottlenecks)


def test_a_taae_file_opens_as_what_it_decodes_to(comparison, tiny_codec, tmp_path):
    version = comparison.versions[2]
    path = tmp_path / "speech.taae"
    path.write_bytes(version.data)
    assert is_taae(path)
    opened = open_taae(tiny_codec, path)
    assert opened.original is None
    assert opened.duration_s == comparison.duration_s
    (only,) = opened.versions
    assert np.array_equal(only.wav, version.wav)
    assert np.array_equal(only.tokens, version.tokens)
    assert (only.label, only.payload_bits, only.scores) == ("0.7 kbit/s", version.payload_bits, {})
    json.dumps(opened.as_dict(), allow_nan=False)


def test_taae_files_are_known_by_their_content_too(comparison, example, tmp_path):
    (tmp_path / "renamed.bin").write_bytes(comparison.versions[0].data)
    (tmp_path / "wrong.taae").write_bytes(example.read_bytes())
    assert is_taae(tmp_path / "renamed.bin")
    assert is_taae(tmp_path / "wrong.taae")  # so that the message is about .taae files
    assert not is_taae(example)


def test_damaged_and_foreign_taae_files_are_refused_in_one_sentence(comparison, tiny_codec, tmp_path):
    data = comparison.versions[0].data
    header, tokens = bitstream.unpack(data)
    files = {
        "flipped.taae": data[:-1] + bytes([data[-1] ^ 1]),
        "truncated.taae": data[:60],
        "foreign.taae": bitstream.pack(dataclasses.replace(header, model_id=b"another!"), tokens),
        "endless.taae": bitstream.pack(dataclasses.replace(header, num_samples=2**40), tokens),
        "text.taae": b"hello",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError) as raised:
            open_taae(tiny_codec, tmp_path / name)
        assert "\n" not in str(raised.value)
        assert str(tmp_path) not in str(raised.value)
        assert name in str(raised.value) or "at most 10, please" in str(raised.value)
