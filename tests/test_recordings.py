"""Manifests and their shards, and parts of recordings."""

import gzip
import json

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from taae.audio import resample, to_mono
from taae.manifest import Shard, read_recordings
from taae.segments import num_samples_at, open_sound, read_segment


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def test_a_path_is_relative_to_its_manifest_and_other_keys_do_not_matter(tmp_path):
    rows = [{"id": 7, "path": "a/b.wav", "seconds": 2, "x": None}, {"id": "c", "path": "/c.wav", "seconds": 0.5}]
    first, second = read_recordings(write(tmp_path / "m.jsonl", rows))
    assert (first.id, first.path, first.seconds) == ("7", tmp_path / "a/b.wav", 2.0)
    assert str(second.path) == "/c.wav"
    with gzip.open(tmp_path / "m.jsonl.gz", "wt") as file:
        file.write((tmp_path / "m.jsonl").read_text())
    assert read_recordings(tmp_path / "m.jsonl.gz") == [first, second]


@given(st.integers(1, 12), st.integers(1, 15))
def test_the_shards_of_a_manifest_are_its_recordings_in_turn(tmp_path_factory, num_rows, count):
    folder = tmp_path_factory.mktemp("shards")
    manifest = write(folder / "m", [{"id": str(i), "path": f"{i}", "seconds": 1} for i in range(num_rows)])
    shards = [read_recordings(manifest, Shard(index, count)) for index in range(count)]
    for index, recordings in enumerate(shards):
        assert [recording.id for recording in recordings] == [str(i) for i in range(index, num_rows, count)]


def test_a_line_of_another_shard_is_not_looked_at(tmp_path):
    good = json.dumps({"id": "a", "path": "a", "seconds": 1})
    (tmp_path / "m").write_text("\n".join([good, "{broken", good]))
    assert len(read_recordings(tmp_path / "m", Shard(0, 2))) == 2
    with pytest.raises(ValueError, match="m, line 2: expected an object with id, path and seconds"):
        read_recordings(tmp_path / "m", Shard(1, 2))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "lists no recordings"),
        ("\n\n", "lists no recordings"),
        ('{"id": "a", "path": "a"}', "line 1: expected .*KeyError\\('seconds'\\)"),
        ('["a"]', "line 1: expected an object"),
        ('\n{"id": "a", "path": "a", "seconds": -1}', "line 2: seconds must be positive, got -1.0"),
        ('{"id": "a", "path": "a", "seconds": NaN}', "seconds must be positive, got nan"),
        ("\udcff", "cannot read .* as a manifest"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_said(tmp_path, text, complaint):
    (tmp_path / "m.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=complaint):
        read_recordings(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="no manifest at"):
        read_recordings(tmp_path / "absent")


def test_a_shard_reads_i_of_n():
    assert Shard.parse("3/100") == Shard(3, 100)
    assert (str(Shard(3, 100)), Shard(3, 100).name) == ("3/100", "shard-00003-of-00100")
    for text in ("3", "3/", "-1/3", "1/2/3", "a/b"):
        with pytest.raises(ValueError, match="must read 'i/N'"):
            Shard.parse(text)
    for text in ("3/3", "0/0"):
        with pytest.raises(ValueError, match="shards count from 0"):
            Shard.parse(text)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 44100, 48000])
def test_a_segment_is_that_of_the_whole_recording_at_the_other_rate(tmp_path, speech, rate_hz):
    stereo = np.stack([speech(3.0, rate_hz), speech(3.0, rate_hz, seed=1)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, rate_hz, "FLOAT")
    whole = resample(to_mono(stereo.T), rate_hz, 16000)
    with open_sound(tmp_path / "a.wav") as sound:
        assert num_samples_at(sound, 16000) == len(whole)
        for start, stop in ((0, 48000), (0, 1), (47999, 48000), (5000, 13001), (20003, 20003), (31111, 48000)):
            segment = read_segment(sound, start, stop, 16000)
            assert segment.dtype == np.float32 and len(segment) == stop - start
            # -110 dB: what soxr's filter still weighs 0.1 s away.
            np.testing.assert_allclose(segment, whole[start:stop], atol=3e-6)


def test_a_file_that_ends_too_early_or_is_none_is_named(tmp_path, speech):
    soundfile.write(tmp_path / "a.flac", speech(2.0), 16000)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    with (
        pytest.raises(ValueError, match="cannot read .*cut.flac as audio: "),
        open_sound(tmp_path / "cut.flac") as sound,
    ):
        read_segment(sound, 0, 32000, 16000)
    with open_sound(tmp_path / "cut.flac") as sound:
        assert len(read_segment(sound, 0, 4000, 16000)) == 4000  # what is there can be used
    (tmp_path / "none.wav").write_bytes(b"none")
    with pytest.raises(ValueError, match="cannot read .*none.wav as audio"), open_sound(tmp_path / "none.wav"):
        pass
    with pytest.raises(FileNotFoundError), open_sound(tmp_path / "absent.wav"):
        pass
