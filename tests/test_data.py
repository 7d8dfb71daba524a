"""Packing clips and drawing crops: the same step always gets the same audio."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from taae.audio import integrated_loudness, loudness_gain, save_wav
from taae.clip_files import FileCrops
from taae.data import Crops, DataConfig, Prefetched, open_crops, pack


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
    assert sorted(path.name for path in out.iterdir()) == [".lock", "clips.i2", "index.json"]


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


def test_crops_from_files_are_those_of_the_packed_clips_to_16_bits(manifest, packed):
    for config in (DataConfig(segment_s=0.5, batch_size=32), DataConfig(segment_s=1.7, batch_size=8, speed_range=0.0)):
        direct, whole = FileCrops(manifest, config, 16000, seed=1, rank=1), Crops(packed, config, seed=1, rank=1)
        for step in (0, 7):
            # Half a step of 16 bits at a full scale of 2, times +5 dB, and the ripple of a resampler that was cut.
            np.testing.assert_allclose(direct.batch(step), whole.batch(step), atol=2e-4)


def test_a_batch_from_files_does_not_depend_on_what_was_read_before(manifest):
    config = DataConfig(segment_s=0.4, batch_size=6)
    fresh, used = FileCrops(manifest, config, 16000, seed=0), FileCrops(manifest, config, 16000, seed=0)
    for step in range(10):
        used.batch(step)
    np.testing.assert_array_equal(fresh.batch(9), used.batch(9))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3"])
def test_every_format_is_read_from_its_middle(tmp_path, speech, suffix):
    save_wav(tmp_path / f"clip.{suffix}", speech(12.0, 24000), 24000)
    row = {"id": "clip", "path": f"clip.{suffix}", "seconds": 12.0}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row))
    config = DataConfig(segment_s=1.0, batch_size=8)
    packed = pack(tmp_path / "manifest.jsonl", tmp_path / "packed", 16000, show_progress=False)
    direct = FileCrops(tmp_path / "manifest.jsonl", config, 16000, seed=0).batch(3)
    # 16-bit rounding as above; an Opus decoder that sought keeps differing by about 1 % from one that did not.
    np.testing.assert_allclose(direct, Crops(packed, config, seed=0).batch(3), atol=0.02 if suffix == "opus" else 2e-4)
    assert np.abs(direct).max() > 0.1


def test_a_long_file_is_levelled_by_the_twenty_seconds_around_a_crop(tmp_path, speech):
    loud, faint = speech(40.0, 8000), 0.05 * speech(40.0, 8000, seed=1)
    soundfile.write(tmp_path / "long.wav", np.concatenate([loud, faint]), 8000)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"id": "long", "path": "long.wav", "seconds": 80.0}))
    config = DataConfig(segment_s=4.0, batch_size=60, speed_range=0.0, loudness_range_db=0.0)
    levels = [
        integrated_loudness(crop / 10, 8000) + 20
        for crop in FileCrops(tmp_path / "manifest.jsonl", config, 8000, seed=0).batch(0)[:, 0]
    ]
    # All but the crops from around the jump, where loud neighbours count.
    assert np.mean(np.abs(np.array(levels) + 20) < 3) > 0.75


def test_silence_is_drawn_as_often_as_it_lasts_and_stays_silent(tmp_path, speech):
    """B.1: the model has to meet silence; only the loudness draw may touch it."""
    hiss = 3e-4 * np.random.default_rng(0).standard_normal(16000 * 6)  # -70 dB, below the gate of the loudness
    soundfile.write(tmp_path / "hiss.wav", hiss, 16000, "FLOAT")
    soundfile.write(tmp_path / "speech.wav", np.concatenate([speech(2.0), np.zeros(16000 * 4)]), 16000, "FLOAT")
    rows = [{"id": name, "path": f"{name}.wav", "seconds": 6.0} for name in ("hiss", "speech")]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = DataConfig(segment_s=0.5, batch_size=150, speed_range=0.0)
    for crops in (
        FileCrops(tmp_path / "manifest.jsonl", config, 16000, seed=0),
        Crops(pack(tmp_path / "manifest.jsonl", tmp_path / "packed", 16000, show_progress=False), config, seed=0),
    ):
        rms = np.sqrt(np.square(crops.batch(0)).mean(axis=(1, 2)))
        assert np.mean(rms == 0) == pytest.approx(3.5 / 5.5 / 2, abs=0.1)  # where a crop of 0.5 s can begin
        is_hiss = (rms > 0) & (rms < 1e-3)
        assert np.mean(is_hiss) == pytest.approx(0.5, abs=0.1)
        assert 3e-4 * 10**-0.26 < rms[is_hiss].min() and rms[is_hiss].max() < 3e-4 * 10**0.26  # +- 5 dB


def broken_manifest(folder: Path, speech, num_good: int, num_broken: int) -> Path:
    folder.mkdir()
    soundfile.write(folder / "good.wav", speech(1.0), 16000)
    data = (folder / "good.wav").read_bytes()
    (folder / "cut.wav").write_bytes(data[:1000])  # a header that promises more
    flac = folder / "good.flac"
    soundfile.write(flac, speech(1.0), 16000)
    (folder / "cut.flac").write_bytes(flac.read_bytes()[:2000])
    names = ["good.wav"] * num_good + ["cut.flac", "absent.wav"][:num_broken]
    rows = [{"id": str(i), "path": name, "seconds": 1.0} for i, name in enumerate(names)]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "manifest.jsonl"


def test_a_broken_file_is_replaced_and_counted(tmp_path, speech, caplog):
    manifest = broken_manifest(tmp_path / "set", speech, 10, 2)
    config = DataConfig(segment_s=0.9, batch_size=16, max_failed_share=0.5)
    crops = FileCrops(manifest, config, 16000, seed=0)
    batches = [crops.batch(step) for step in range(8)]
    assert sorted(Path(name).name for name in crops.failed.errors) == ["absent.wav", "cut.flac"]
    assert "cut.flac as audio" in next(error for name, error in crops.failed.errors.items() if "cut" in name)
    assert len(caplog.records) == 2  # each clip once
    assert min(np.abs(batch).max(axis=2).min() for batch in batches) > 0.01
    np.testing.assert_array_equal(FileCrops(manifest, config, 16000, seed=0).batch(7), batches[7])


def test_too_many_broken_files_stop_the_run(tmp_path, speech):
    manifest = broken_manifest(tmp_path / "few", speech, 10, 2)
    crops = FileCrops(manifest, DataConfig(segment_s=0.5, batch_size=16), 16000, seed=0)
    with pytest.raises(
        ValueError, match=r"11 of \d+ crops cannot be read, more than max_failed_share = 0.01 allows; 2"
    ):
        for step in range(100):
            crops.batch(step)
    only = broken_manifest(tmp_path / "only", speech, 0, 2)
    with pytest.raises(ValueError, match="100 of 100 crops cannot be read"):
        FileCrops(only, DataConfig(max_failed_share=1.0), 16000, seed=0).batch(0)


def test_the_source_follows_from_the_configuration(manifest, tmp_path):
    def source(**keys):
        return open_crops(DataConfig(**keys), manifest.parent, tmp_path / "cache", 16000, 0, rank=1, world_size=2)

    assert isinstance(source(manifest="manifest.jsonl"), Crops)
    assert isinstance(source(manifest="manifest.jsonl", is_packed=False), FileCrops)
    assert isinstance(source(manifest="manifest.jsonl", num_workers=1), Prefetched)
    with pytest.raises(ValueError, match="no manifest at .*absent.jsonl; set TAAE_SHARED"):
        source(manifest="absent.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no .tar files; `taae data-shards"):
        open_crops(DataConfig(manifest="empty"), tmp_path, tmp_path, 16000, 0)


def test_workers_change_neither_batches_nor_the_random_numbers_of_training(manifest, packed):
    config = DataConfig(segment_s=0.3, batch_size=4, is_packed=False)
    direct = FileCrops(manifest, config, 16000, seed=2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    for num_workers in (1, 2):
        torch.manual_seed(5)
        ahead = Prefetched(FileCrops(manifest, config, 16000, seed=2), num_workers)
        for step in (100, 101, 2**40, 102, 106, 99, 107):  # resumed, in order, aside, skipped ahead and back
            np.testing.assert_array_equal(ahead.batch(step), direct.batch(step))
        assert torch.equal(torch.rand(3), expected)
        ahead.close()


def test_what_a_worker_could_not_read_is_told(tmp_path, speech):
    manifest = broken_manifest(tmp_path / "set", speech, 4, 2)
    ahead = Prefetched(FileCrops(manifest, DataConfig(batch_size=8, max_failed_share=0.9), 16000, seed=0), 1)
    for step in range(4):
        ahead.batch(step)
    assert len(ahead.failed.errors) == 2
    strict = Prefetched(FileCrops(manifest, DataConfig(batch_size=8, max_failed_share=0.0), 16000, seed=0), 1)
    with pytest.raises(ValueError, match="^1 of .* crops cannot be read"):
        for step in range(4):
            strict.batch(step)


def test_two_processes_pack_once(manifest, tmp_path):
    code = """
import sys
from pathlib import Path
from taae import data
load = data.load_wav
def loud(path):
    print(path)
    return load(path)
data.load_wav = loud
data.pack(Path(sys.argv[1]), Path(sys.argv[2]), 16000, show_progress=False)
"""
    command = [sys.executable, "-c", code, str(manifest), str(tmp_path / "packed")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(len(output.splitlines()) for output in outputs) == [0, 5]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("batch_size", 0, "batch_size"),
        ("max_failed_share", 1.5, "max_failed_share must be in"),
        ("num_workers", -1, "num_workers must be >= 0"),
        ("mixed_shards", 0, "mixed_shards >= 1"),
        ("speed_range", 0.9, "speed_range in"),
    ],
)
def test_impossible_values_are_named(key, value, text):
    with pytest.raises(ValueError, match=text):
        DataConfig(**{key: value})
