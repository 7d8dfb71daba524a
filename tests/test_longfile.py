import numpy as np
import pytest
import soundfile

from taae.audio import resample
from taae.bitstream import unpack
from taae.checkpoint import random_model
from taae.codec import Codec
from taae.config import ModelConfig
from taae.longfile import mono_memmap, resample_blocks, take

# A receptive field of few frames, so that a recording of minutes is many pieces.
SMALL = ModelConfig(name="small", width=16, head_dim=8, rope_dims=4, ff_mult=1, depths=(1, 1), window=(3, 4))


@pytest.fixture(scope="module")
def codec():
    return Codec(*random_model(SMALL))


@pytest.fixture
def recording():
    rng = np.random.default_rng(5)
    return (0.1 * rng.standard_normal((2, 44100 * 70 + 13))).astype(np.float32)


@pytest.mark.parametrize(
    ("from_hz", "to_hz"), [(44100, 16000), (16000, 44100), (8000, 16000), (96000, 16000), (16000, 16000)]
)
def test_resampling_in_blocks_gives_the_same_samples_as_at_once(from_hz, to_hz):
    wav = np.random.default_rng(0).standard_normal(150_001).astype(np.float32)
    blocks = (wav[start : start + 10_007] for start in range(0, len(wav), 10_007))
    np.testing.assert_array_equal(
        np.concatenate(list(resample_blocks(blocks, from_hz, to_hz))), resample(wav, from_hz, to_hz)
    )


def test_take_gives_exactly_so_many_samples():
    blocks = [np.arange(5), np.arange(5), np.arange(5)]
    assert [len(block) for block in take(blocks, 7)] == [5, 2, 0]


def test_a_file_in_blocks_has_the_bytes_of_the_recording_at_once(codec, recording, tmp_path):
    soundfile.write(tmp_path / "long.wav", recording.T, 44100, subtype="FLOAT")
    in_blocks = codec.compress_file(tmp_path / "long.wav", "2x5^6")
    at_once = codec.compress(recording, "2x5^6", sample_rate_hz=44100)
    assert in_blocks == at_once
    header, _ = unpack(in_blocks)
    assert (header.num_samples, header.sample_rate_hz) == (recording.shape[1], 44100)


def test_decoded_blocks_are_the_whole_recording(codec, recording):
    data = codec.compress(recording, "1x6^6", sample_rate_hz=44100)
    blocks = list(codec.decompress_blocks(data))
    assert len(blocks) > 1
    np.testing.assert_array_equal(np.concatenate(blocks), codec.decompress(data)[0, 0].numpy())


def test_reading_in_blocks_averages_channels_and_keeps_the_count(recording, tmp_path):
    soundfile.write(tmp_path / "stereo.flac", recording.T, 44100, subtype="PCM_24")
    with mono_memmap(tmp_path / "stereo.flac", 44100) as (mono, rate_hz, num_samples):
        assert (rate_hz, num_samples) == (44100, recording.shape[1])
        # PCM_24 has steps of 1.2e-7
        np.testing.assert_allclose(mono, recording.mean(axis=0), atol=2e-7)


@pytest.mark.parametrize("content", [b"", b"RIFF not audio at all"])
def test_what_is_not_audio_is_named(tmp_path, content):
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.wav"), mono_memmap(path, 16000):
        pass


def test_a_missing_file_is_named(codec, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        codec.compress_file(tmp_path / "nowhere.wav")
