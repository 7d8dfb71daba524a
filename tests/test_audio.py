import io
import json
import os
import stat

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taae import audio

GOLDEN_LOUDNESS = ("speech", "speech_quiet", "sine997", "loud_noise", "peaky", "near_silence")


def sine(frequency_hz, seconds, rate_hz, amplitude=0.5):
    return (amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype("f4")


# as_channels and to_mono


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.int16, [-32768, 0, 16384, 32767], [-1, 0, 0.5, 32767 / 32768]),
        (np.int32, [-(2**31), 0, 2**30, 2**29], [-1, 0, 0.5, 0.25]),
        (np.uint8, [0, 128, 192, 255], [-1, 0, 0.5, 127 / 128]),
        (np.int8, [-128, 0, 64, 127], [-1, 0, 0.5, 127 / 128]),
        (np.float16, [-1, 0, 0.5, 1.25], [-1, 0, 0.5, 1.25]),
        (np.float64, [-1, 0, 0.5, 1.25], [-1, 0, 0.5, 1.25]),
    ],
)
def test_every_sample_type_is_scaled_to_its_full_scale(dtype, values, expected):
    wav = audio.as_channels(np.array(values, dtype=dtype))
    assert wav.dtype == np.float32 and wav.shape == (1, 4)
    np.testing.assert_array_equal(wav[0], np.float32(expected))
    np.testing.assert_array_equal(audio.as_channels(torch.from_numpy(np.array(values, dtype=dtype))), wav)


def test_lists_tensors_and_a_batch_of_one_become_channels():
    expected = np.float32([[0.5, -0.5, 0.25]])
    for wav in (
        [0.5, -0.5, 0.25],
        [[0.5, -0.5, 0.25]],
        expected[None],
        torch.tensor([0.5, -0.5, 0.25], requires_grad=True),
        torch.tensor([[0.5, -0.5, 0.25]], dtype=torch.bfloat16),
    ):
        np.testing.assert_array_equal(audio.as_channels(wav), expected)


def test_stereo_is_averaged_to_mono():
    np.testing.assert_allclose(audio.to_mono([[1.0, 0.5], [0.0, -0.5]]), [0.5, 0.0])


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (np.zeros((48000, 2), "f4"), r"looks transposed: expected \(channels, n\), got \(48000, 2\); pass wav.T"),
        (np.zeros((48000, 1), "f4"), "looks transposed"),
        (np.zeros((64, 1000), "f4"), "64 channels, at most 32"),
        (np.zeros((2, 1, 100), "f4"), r"got shape \(2, 1, 100\)"),
        (np.float32(0.5), r"got shape \(\)"),
        ([], r"empty: shape \(1, 0\)"),
        (np.zeros((2, 0), "f4"), "empty"),
        (np.zeros(10, np.int64), "got int64, whose full scale is unknown"),
        (np.zeros(10, bool), "got bool"),
        (np.zeros(10, complex), "got complex128"),
        ("hello", "got str"),
        ([[0.1], [0.1, 0.2]], "not a regular array"),
        (np.float32([32767, -5]), "its peak is 32767; divide 16-bit values by 32768"),
        (np.float64([1e300]), r"its peak is 1e\+300"),
        (
            np.float32([[0, 0, 0], [0, np.nan, np.inf]]),
            "2 values that are NaN or infinite, the first at sample 1 of ch",
        ),
        (np.float32([0, -np.inf]), r"1 values .* sample 1 of channel 0 \(-inf\)"),
        (torch.tensor([float("nan")]), "1 values"),
    ],
)
def test_what_is_not_audio_is_refused_with_the_reason(wav, message):
    with pytest.raises(ValueError, match=message):
        audio.as_channels(wav)


# load_wav and save_wav


def test_a_16_bit_file_passes_through_without_changing_a_sample(tmp_path):
    values = np.random.default_rng(0).integers(-32768, 32768, (2, 70_000)).astype(np.int16)
    values[:, :2] = [-32768, 32767]
    for suffix in ("wav", "flac"):
        audio.save_wav(tmp_path / f"a.{suffix}", values, 44_100)
        wav, rate = audio.load_wav(tmp_path / f"a.{suffix}")
        assert rate == 44_100 and wav.flags.c_contiguous
        np.testing.assert_array_equal(wav * 32768, values)
        assert soundfile.info(tmp_path / f"a.{suffix}").subtype == "PCM_16"


@pytest.mark.parametrize("suffix", ["ogg", "opus", "mp3"])
def test_lossy_formats_keep_the_sound_and_the_length(suffix, tmp_path, speech):
    wav = np.stack([speech(3, 48_000), speech(3, 48_000, seed=1)])
    audio.save_wav(tmp_path / f"a.{suffix}", wav, 48_000)
    back, rate = audio.load_wav(tmp_path / f"a.{suffix}")
    assert rate == 48_000 and back.shape == wav.shape
    for channel, original in zip(back, wav, strict=True):
        assert np.corrcoef(channel, original)[0, 1] > 0.97  # aligned, and the channels not swapped


def test_a_long_vorbis_file_is_written_without_a_crash(tmp_path):
    wav = np.tile(sine(440, 1, 48_000), 60)  # libsndfile overflows its stack when it gets this at once
    audio.save_wav(tmp_path / "a.ogg", wav, 48_000)
    assert audio.load_wav(tmp_path / "a.ogg")[0].shape == (1, wav.size)


def test_loud_samples_clip_and_never_wrap(tmp_path):
    audio.save_wav(tmp_path / "a.wav", np.float32([1.5, -1.5, 1.0, -1.0]), 8000)
    np.testing.assert_array_equal(audio.load_wav(tmp_path / "a.wav")[0][0] * 32768, [32767, -32768, 32767, -32768])


def test_a_float_wav_keeps_every_bit(tmp_path):
    wav = np.float32([1.5, -1e-9, 1 / 3])
    audio.save_wav(tmp_path / "a.wav", wav, 8000, is_float=True)
    np.testing.assert_array_equal(audio.load_wav(tmp_path / "a.wav")[0][0], wav)


def test_audio_is_read_from_bytes_files_and_pipes(tmp_path, speech):
    wav = np.rint(speech(0.5) * 32768)[None] / 32768
    buffer = io.BytesIO()
    audio.save_wav(buffer, wav, 16_000, file_format="flac")
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:  # a pipe cannot go back to write a header
        audio.save_wav(file, wav[:, :4000], 16_000)
    with os.fdopen(reader, "rb") as file:
        np.testing.assert_array_equal(audio.load_wav(file)[0], wav[:, :4000])
    np.testing.assert_array_equal(audio.load_wav(buffer.getvalue())[0], wav)
    buffer.seek(0)
    np.testing.assert_array_equal(audio.load_wav(buffer)[0], wav)


def test_an_existing_file_is_replaced_only_when_forced(tmp_path):
    path = tmp_path / "a.wav"
    audio.save_wav(path, np.zeros(10, "f4"), 8000)
    with pytest.raises(FileExistsError, match="a.wav"):
        audio.save_wav(path, np.ones(20, "f4"), 8000)
    assert audio.load_wav(path)[0].shape == (1, 10)
    audio.save_wav(path, np.ones(20, "f4"), 8000, force=True)
    assert audio.load_wav(path)[0].shape == (1, 20)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.wav"]  # no temporary file is left


def test_a_write_that_fails_leaves_the_folder_as_it_was(tmp_path):
    path = tmp_path / "a.mp3"
    audio.save_wav(path, sine(440, 1, 16_000), 16_000)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="cannot write 1 channels at 96000 Hz as mp3"):
        audio.save_wav(path, sine(440, 1, 96_000), 96_000, force=True)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp3"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [("a.xyz", {}, "cannot write audio as 'xyz'"), ("a.mp3", {"is_float": True}, "only wav holds floats")],
)
def test_unknown_output_formats_are_refused(name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        audio.save_wav(tmp_path / name, np.zeros(10, "f4"), 8000, **options)


def test_files_that_are_not_audio_give_clear_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such audio file: .*nothing.wav"):
        audio.load_wav(tmp_path / "nothing.wav")
    with pytest.raises(ValueError, match="is a folder"):
        audio.load_wav(tmp_path)
    for name, data, message in (
        ("empty.wav", b"", "empty.wav is empty"),
        ("text.wav", b"this is not audio " * 100, "cannot read .*text.wav as audio"),
        ("noise.raw", bytes(range(256)) * 10, "cannot read .*noise.raw as audio"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message):
            audio.load_wav(tmp_path / name)
    with pytest.raises(ValueError, match="the given data is empty"):
        audio.load_wav(b"")


def test_files_without_samples_or_with_nan_give_clear_errors(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 8000)
    with pytest.raises(ValueError, match="none.wav holds no samples"):
        audio.load_wav(tmp_path / "none.wav")
    soundfile.write(tmp_path / "nan.wav", np.float32([0, np.nan]), 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match="nan.wav: wav holds 1 values that are NaN or infinite, the first at sample 1"):
        audio.load_wav(tmp_path / "nan.wav")


def test_a_header_that_promises_too_much_allocates_nothing(tmp_path, speech):
    buffer = io.BytesIO()
    audio.save_wav(buffer, speech(1), 16_000, file_format="flac")
    data = bytearray(buffer.getvalue())
    data[21] |= 0x0F  # the number of samples in STREAMINFO: 36 bits, all set
    data[22:26] = b"\xff" * 4
    with pytest.raises(ValueError, match="cannot read"):
        audio.load_wav(bytes(data))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_broken_files_never_give_anything_but_audio_or_a_value_error(data):
    buffer = io.BytesIO()
    audio.save_wav(buffer, sine(440, 0.05, 8000), 8000, file_format=data.draw(st.sampled_from(["wav", "flac", "ogg"])))
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        wav, rate = audio.load_wav(bytes(raw[: data.draw(st.integers(1, len(raw)))]))
    except ValueError:
        return
    assert wav.ndim == 2 and wav.size > 0 and np.isfinite(wav).all() and rate > 0


# resample


@given(
    n=st.integers(1, 3000),
    from_hz=st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000, 96000]),
    to_hz=st.sampled_from([8000, 16000, 44100, 48000]),
)
@settings(max_examples=60, deadline=None)
def test_the_resampled_length_is_rounded_up_exactly(n, from_hz, to_hz):
    assert audio.resample(np.ones((2, n), "f4"), from_hz, to_hz).shape == (2, -(-n * to_hz // from_hz))


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44100, 16000), (8000, 16000), (16000, 44100), (96000, 16000)])
def test_resampling_keeps_the_phase_of_a_sine(from_hz, to_hz):
    resampled = audio.resample(np.stack([sine(1000, 1, from_hz), sine(300, 1, from_hz)]), from_hz, to_hz)
    middle = slice(to_hz // 10, -to_hz // 10)  # the ends ring, since the sine starts and stops there
    # 24-bit filters: about 1e-7 of full scale, in float32
    np.testing.assert_allclose(resampled[0, middle], sine(1000, 1, to_hz)[middle], atol=3e-6)
    np.testing.assert_allclose(resampled[1, middle], sine(300, 1, to_hz)[middle], atol=3e-6)


def test_what_lies_above_the_new_nyquist_frequency_is_removed():
    aliased = audio.resample(sine(10_000, 1, 48_000), 48_000, 16_000)
    assert np.abs(aliased[1600:-1600]).max() < 1e-5


def test_an_equal_rate_changes_nothing(speech):
    wav = speech(0.2)
    np.testing.assert_array_equal(audio.resample(wav, 16_000, 16_000), wav)


@pytest.mark.parametrize("rate", [0, -1, 1, 999, 768_001, 10**9])
def test_absurd_sample_rates_are_refused(rate):
    with pytest.raises(ValueError, match="whole number from 1000 to 768000 Hz"):
        audio.resample(np.zeros(10, "f4"), rate, 16_000)


# loudness


@pytest.mark.parametrize("name", GOLDEN_LOUDNESS)
def test_loudness_and_gain_equal_those_of_the_published_code(name, shared):
    folder = shared / "reference" / "golden" / "loudness"
    golden = json.loads((folder / "loudness.json").read_text())[name]
    wav, expected = np.load(folder / f"{name}_in.npy"), np.load(folder / f"{name}_out.npy")
    # the published code filters in float32, we in float64
    assert audio.integrated_loudness(wav, 16_000) == pytest.approx(golden["loudness"], abs=1e-4)
    gain = audio.loudness_gain(wav, 16_000)
    assert gain == pytest.approx(golden["gain"], rel=1e-5)
    np.testing.assert_allclose(np.float32(gain) * wav, expected, atol=3e-6)


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100])
def test_a_997_hz_sine_at_full_scale_measures_minus_3_lufs(rate_hz):
    # BS.1770: 0 dBFS at 997 Hz on one channel reads -3.01 LKFS; this shelf, at 1500 Hz, is a little lower than the
    # standard's, and the clamp shaves the peaks, so compare 20 dB below full scale within half a decibel.
    assert audio.integrated_loudness(sine(997, 3, rate_hz, 0.1), rate_hz) == pytest.approx(-23.01, abs=0.5)


def test_ten_decibels_louder_measures_ten_lu_more(speech):
    wav = speech(4) * 0.1
    louder = audio.integrated_loudness(wav * 10**0.5, 16_000)
    assert louder - audio.integrated_loudness(wav, 16_000) == pytest.approx(10, abs=1e-3)


def test_pauses_do_not_lower_the_loudness():
    tone = sine(500, 4, 16_000)
    paused = np.concatenate([tone, np.zeros(64_000, "f4")])
    # only the three blocks that straddle the end of the tone differ, and they pass the relative gate
    assert audio.integrated_loudness(paused, 16_000) == pytest.approx(audio.integrated_loudness(tone, 16_000), abs=0.3)


@pytest.mark.parametrize(("drop_db", "expected_lu"), [(15, 0), (8, 10 * np.log10((1 + 10**-0.8) / 2))])
def test_only_what_is_10_lu_quieter_than_the_mean_is_gated(drop_db, expected_lu):
    tone = sine(500, 20, 16_000, 0.1)
    mixed = np.concatenate([tone, tone * 10 ** (-drop_db / 20)])
    change = audio.integrated_loudness(mixed, 16_000) - audio.integrated_loudness(tone, 16_000)
    assert change == pytest.approx(expected_lu, abs=0.05)  # three blocks of 400 straddle the step


def test_the_gain_brings_speech_to_the_target(speech):
    wav = speech(4) * 0.1
    for target in (-20.0, -30.0):
        gain = audio.loudness_gain(wav, 16_000, target)
        assert audio.integrated_loudness(wav * gain, 16_000) == pytest.approx(target, abs=0.01)  # peaks are clamped


def test_the_gain_never_lets_the_peak_reach_1():
    wav = np.zeros(16_000, "f4")
    wav[::4000] = 0.9  # quiet on average, so -20 LUFS would clip
    assert audio.loudness_gain(wav, 16_000) * 0.9 == pytest.approx(0.95)


@pytest.mark.parametrize(
    "wav",
    [
        np.zeros(16_000, "f4"),
        np.full(1, 1e-4, "f4"),
        sine(3, 2, 16_000, amplitude=0.05),  # loud enough to count, too low to hear: the published code returns NaN
        sine(440, 1, 16_000, amplitude=1e-3),
    ],
    ids=["zeros", "one faint sample", "3 Hz", "faint tone"],
)
def test_silence_and_what_nobody_hears_keep_a_gain_of_1(wav):
    assert audio.loudness_gain(wav, 16_000) == 1.0


def test_loudness_of_silence_is_minus_infinity():
    assert audio.integrated_loudness(np.zeros(16_000, "f4"), 16_000) == -np.inf
    assert audio.integrated_loudness(sine(3, 2, 16_000, amplitude=0.05), 16_000) == -np.inf


def test_a_clip_under_400_ms_is_measured_as_one_block():
    # the published code raises here
    tone = sine(1000, 0.4, 16_000, 0.1)
    whole = audio.integrated_loudness(tone, 16_000)
    assert audio.integrated_loudness(tone[:6399], 16_000) == pytest.approx(whole, abs=1e-2)
    assert audio.integrated_loudness(tone[:160], 16_000) == pytest.approx(whole, abs=1.5)  # 10 ms, the filters start


@given(
    n=st.integers(1, 8000),
    exponent=st.floats(-40, 1.5),
    rate_hz=st.sampled_from([8000, 11025, 16000, 48000]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_the_gain_is_always_finite_and_positive(n, exponent, rate_hz, seed):
    wav = np.random.default_rng(seed).uniform(-1, 1, n) * 10**exponent
    gain = audio.loudness_gain(wav, rate_hz)
    assert np.isfinite(gain) and gain > 0
    assert gain == 1 or np.abs(wav).max() * gain < 1


def test_measuring_piece_by_piece_changes_nothing(speech, monkeypatch):
    wav = speech(5, 11_025)
    whole = audio.integrated_loudness(wav, 11_025), audio.loudness_gain(wav, 11_025)
    monkeypatch.setattr(audio, "_CHUNK_SAMPLES", 1001)
    pieces = audio.integrated_loudness(wav, 11_025), audio.loudness_gain(wav, 11_025)
    np.testing.assert_allclose(pieces, whole, rtol=1e-9)


def test_loudness_refuses_stereo_and_low_rates():
    with pytest.raises(ValueError, match="one channel, got 2; use to_mono first"):
        audio.loudness_gain(np.ones((2, 100), "f4"), 16_000)
    with pytest.raises(ValueError, match="above 3000 Hz, got 2000"):
        audio.integrated_loudness(np.ones(100, "f4"), 2000)


# mel filters


@pytest.mark.parametrize(("rate_hz", "num_fft", "num_mels"), [(16_000, 2048, 128), (24_000, 512, 40), (1600, 256, 20)])
def test_mel_filters_equal_those_of_librosa(rate_hz, num_fft, num_mels):
    filters = pytest.importorskip("librosa.filters")
    expected = filters.mel(sr=rate_hz, n_fft=num_fft, n_mels=num_mels)
    np.testing.assert_allclose(audio.mel_filters(rate_hz, num_fft, num_mels), expected, atol=1e-7)
