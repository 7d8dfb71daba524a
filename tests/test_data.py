"""Packing clips and drawing crops: the same step always gets the same audio."""

import json

import numpy as np
import pytest
import soundfile

from taae.audio import integrated_loudness, loudness_gain
from taae.data import Crops, DataConfig, pack


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, speech):
    """Six clips of two corpora, one at another rate and one in stereo."""
    folder = tmp_path_factory.mktemp("speech")
    rows = []
    for index, (seconds, rate_hz) in enumerate([(1.0, 16000), (2.0, 16000), (0.3, 16000), (1.5, 22050), (1.0, 16000)]):
        wav = 0.2 * speech(seconds, rate_hz, seed=index)
        soundfile.write(folder / f"{index}.wav", wav if index else np.stack([wav, wav], 1), rate_hz, "PCM_24")
        corpus = "small" if index == 0 else "large"
        rows.append({"id": f"clip{index}", "path": f"{index}.wav", "seconds": seconds, "corpus": corpus})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def packed(manifest, tmp_path_factory):
    return pack(manifest, tmp_path_factory.mktemp("packed"), 16000, show_progress=False)


def index_of(packed):
    return json.loads((packed / "index.json").read_text())


def test_clips_are_packed_end_to_end_at_minus_20_lufs(packed, speech):
    index = index_of(packed)
    assert index["sample_rate_hz"] == 16000 and index["failed"] == []
    assert [clip["samples"] for clip in index["clips"]] == [16000, 32000, 4800, 24000, 16000]
    assert [clip["offset"] for clip in index["clips"]] == [0, 16000, 48000, 52800, 76800]
    samples = np.fromfile(packed / "clips.i2", "<i2")
    assert len(samples) == 92800
    for clip in index["clips"][:2]:
        wav = samples[clip["offset"] : clip["offset"] + clip["samples"]] / np.float32(32767) * 2
        # A tenth, since the measure clamps loud peaks.
        assert integrated_loudness(wav.astype(np.float32) / 10, 16000) + 20 == pytest.approx(-20, abs=0.1)
    second = samples[16000:48000] / 32767 * 2
    wav = 0.2 * speech(2.0, seed=1)
    np.testing.assert_allclose(second, wav * loudness_gain(wav, 16000), atol=4e-5)  # half a step of 16 bits, twice


def test_packing_again_changes_nothing_until_manifest_or_rate_do(manifest, tmp_path):
    out = pack(manifest, tmp_path / "packed", 16000, show_progress=False)
    (out / "clips.i2").write_bytes(b"kept")
    assert pack(manifest, out, 16000, show_progress=False) == out
    assert (out / "clips.i2").read_bytes() == b"kept"
    pack(manifest, out, 8000, show_progress=False)
    assert index_of(out)["clips"][0]["samples"] == 8000
    assert (out / "clips.i2").stat().st_size == 2 * 46400
    assert sorted(path.name for path in out.iterdir()) == ["clips.i2", "index.json"]


def test_a_clip_that_cannot_be_read_is_counted_and_many_stop(manifest, tmp_path, speech):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row["path"] = str(manifest.parent / row["path"])
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    broken = {"id": "broken", "path": str(tmp_path / "broken.wav"), "seconds": 1.0}
    short = tmp_path / "short.wav"
    soundfile.write(short, speech(0.05), 16000)
    many = [{"id": str(number), "path": str(short), "seconds": 0.05} for number in range(110)]

    (tmp_path / "few.jsonl").write_text("\n".join(map(json.dumps, [broken, *many])))
    index = index_of(pack(tmp_path / "few.jsonl", tmp_path / "few", 16000, show_progress=False))
    assert len(index["clips"]) == 110 and len(index["failed"]) == 1
    assert "broken.wav" in index["failed"][0]
    assert Crops(tmp_path / "few", DataConfig(batch_size=2, segment_s=0.1), seed=0).batch(0).shape == (2, 1, 1600)

    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, [*rows, broken])))
    with pytest.raises(ValueError, match="1 of 6 clips cannot be read, first .*broken.wav"):
        pack(tmp_path / "many.jsonl", tmp_path / "many", 16000, show_progress=False)
    assert not (tmp_path / "many" / "index.json").exists()
    with pytest.raises(ValueError, match="no manifest at .*; set TAAE_SHARED"):
        pack(tmp_path / "absent.jsonl", tmp_path / "absent", 16000)


def test_a_batch_depends_only_on_seed_rank_and_step(packed):
    config = DataConfig(segment_s=0.5, batch_size=4)
    crops = Crops(packed, config, seed=3)
    batches = [crops.batch(step) for step in range(3)]
    again = Crops(packed, config, seed=3)
    again.batch(17)
    for step in (2, 0, 1):
        np.testing.assert_array_equal(again.batch(step), batches[step])
    for other in (
        crops.batch(1),
        Crops(packed, config, seed=4).batch(0),
        Crops(packed, config, seed=3, rank=1).batch(0),
    ):
        assert not np.array_equal(other, batches[0])
    assert batches[0].shape == (4, 1, 8000) and batches[0].dtype == np.float32


def test_an_unchanged_crop_is_a_piece_of_a_clip(packed):
    config = DataConfig(segment_s=0.1, batch_size=20, loudness_range_db=0.0, speed_range=0.0)
    samples = np.fromfile(packed / "clips.i2", "<i2").astype(np.float32) * np.float32(2 / 32767)
    windows = np.lib.stride_tricks.sliding_window_view(samples, 1600)
    for crop in Crops(packed, config, seed=0).batch(0)[:, 0]:
        candidates = np.flatnonzero(np.isclose(windows[:, 0], crop[0], atol=1e-7))
        assert any(np.allclose(windows[start], crop, atol=1e-6) for start in candidates)


def test_a_clip_shorter_than_the_crop_lies_in_silence(packed):
    config = DataConfig(segment_s=5.0, batch_size=12, speed_range=0.0)
    lengths = set()
    for crop in Crops(packed, config, seed=0).batch(0)[:, 0]:
        nonzero = np.flatnonzero(crop)
        lengths.add(round((nonzero[-1] - nonzero[0] + 1) / 16000, 1))
    assert lengths <= {0.3, 1.0, 1.5, 2.0} and len(lengths) > 1


def test_loudness_varies_within_its_range_and_speed_changes_length(packed):
    clips = index_of(packed)["clips"]
    config = DataConfig(segment_s=5.0, batch_size=200, loudness_range_db=5.0, speed_range=0.1)
    samples = np.fromfile(packed / "clips.i2", "<i2").astype(np.float64) * (2 / 32767)
    energies = {c["samples"]: np.square(samples[c["offset"] : c["offset"] + c["samples"]]).sum() for c in clips}
    gains_db, speeds = [], []
    for crop in Crops(packed, config, seed=0).batch(0)[:, 0]:
        nonzero = np.flatnonzero(np.abs(crop) > 1e-6)
        length = nonzero[-1] - nonzero[0] + 1
        nearest = min(energies, key=lambda samples: abs(np.log(samples / length)))
        speeds.append(nearest / length)
        if abs(nearest - length) <= 2 and nearest != 16000:  # two clips have one second
            gains_db.append(10 * np.log10(np.square(crop.astype(np.float64)).sum() / energies[nearest]))
    assert min(gains_db) > -5.01 and max(gains_db) < 5.01
    assert min(gains_db) < -3.5 and max(gains_db) > 3.5
    changed = [speed for speed in speeds if abs(speed - 1) > 0.001]
    assert 0.35 < len(changed) / len(speeds) < 0.65  # half of the crops
    assert 0.89 < min(changed) < 0.95 and 1.05 < max(changed) < 1.11


def test_a_clip_is_drawn_by_its_duration(packed):
    crops = Crops(packed, DataConfig(), seed=0)
    weights = np.diff(crops.cumulative, prepend=0)
    np.testing.assert_allclose(weights / weights.sum(), np.array([1.0, 2.0, 0.3, 1.5, 1.0]) / 5.8, rtol=1e-9)
