"""WebDataset shards: what they hold, an order that can be resumed, and ranks that share it."""

import gc
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import soundfile

from taae.audio import loudness_gain
from taae.data import DataConfig, Prefetched
from taae.shards import ShardCrops, build_shards, index_folder, index_shard


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, speech):
    """Twelve clips of 1 to 3 s, some at 24 kHz, in three formats."""
    folder = tmp_path_factory.mktemp("speech")
    rows = []
    for index in range(12):
        rate_hz, suffix = (16000, 24000)[index % 5 == 0], ("wav", "flac", "ogg")[index % 3]
        wav = 0.2 * speech(1.0 + index % 3, rate_hz, seed=index)
        soundfile.write(folder / f"{index}.{suffix}", wav, rate_hz)
        rows.append({"id": f"clip.{index}", "path": f"{index}.{suffix}", "seconds": len(wav) / rate_hz})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def shards(manifest, tmp_path_factory):
    return build_shards(manifest, tmp_path_factory.mktemp("shards"), 3, show_progress=False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_shard_is_what_webdataset_reads(manifest, shards):
    webdataset = pytest.importorskip("webdataset")
    tars = sorted(map(str, shards.glob("*.tar")))
    assert [tar.rpartition("/")[2] for tar in tars] == [f"shard-{i:05d}-of-00003.tar" for i in range(3)]
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    by_id = {json.loads(sample["json"])["id"]: sample for sample in samples}
    assert [json.loads(sample["json"])["id"] for sample in samples[:4]] == ["clip.0", "clip.3", "clip.6", "clip.9"]
    for row in rows:
        path = manifest.parent / row["path"]
        assert by_id[row["id"]][path.suffix[1:]] == path.read_bytes()
    gc.collect()  # webdataset leaves its files open


def test_shards_made_with_webdataset_can_be_indexed(manifest, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as sink:
        for index in range(0, 12, 3):
            sink.write(
                {"__key__": f"a/{index}", "wav": (manifest.parent / f"{index}.wav").read_bytes(), "txt": "words"}
            )
    index_folder(tmp_path, show_progress=False)
    index = json.loads((tmp_path / "theirs.index.json").read_text())
    assert (index["num_clips"], index["seconds"], index["failed"]) == (4, 4.0, [])
    crops = ShardCrops(tmp_path, DataConfig(segment_s=0.5, batch_size=2), 16000, seed=0)
    assert np.abs(crops.batch(0)).max(axis=2).min() > 0.01


def test_the_index_says_where_a_clip_lies_and_how_loud_it_is(manifest, shards):
    tar = shards / "shard-00001-of-00003.tar"
    clips, data = np.load(tar.with_suffix(".clips.npy")), tar.read_bytes()
    for clip, index in zip(clips, (1, 4, 7, 10), strict=True):
        path = manifest.parent / f"{index}.{('wav', 'flac', 'ogg')[index % 3]}"
        assert data[clip["offset"] : clip["offset"] + clip["size"]] == path.read_bytes()
        wav, rate_hz = soundfile.read(path, dtype="float32")
        assert clip["seconds"] == len(wav) / rate_hz
        assert clip["gain"] == pytest.approx(loudness_gain(wav, rate_hz), rel=1e-6)
    index = json.loads(tar.with_suffix(".index.json").read_text())
    assert index == {"tar_bytes": len(data), "num_clips": 4, "seconds": clips["seconds"].sum(), "failed": []}


def test_an_interrupted_build_goes_on_and_equal_inputs_give_equal_bytes(manifest, shards, tmp_path):
    def contents(folder):
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    again = build_shards(manifest, tmp_path / "again", 3, show_progress=False)
    assert contents(again) == contents(shards)
    (again / "shard-00001-of-00003.index.json").unlink()  # stopped before it was indexed
    (again / "shard-00001-of-00003.tar").write_bytes(b"half")
    kept = (again / "shard-00000-of-00003.tar").stat().st_mtime_ns
    build_shards(manifest, again, 3, show_progress=False)
    assert contents(again) == contents(shards)
    assert (again / "shard-00000-of-00003.tar").stat().st_mtime_ns == kept


def test_a_batch_depends_only_on_seed_and_place_in_the_sequence(shards):
    config = DataConfig(segment_s=0.5, batch_size=4, mixed_shards=2)
    batches = [ShardCrops(shards, config, 16000, seed=3).batch(step) for step in range(30)]  # 2.5 epochs
    resumed = ShardCrops(shards, config, 16000, seed=3)
    for step in (17, 29, 3, 18):
        np.testing.assert_array_equal(resumed.batch(step), batches[step])
    assert batches[0].shape == (4, 1, 8000) and batches[0].dtype == np.float32
    assert not np.array_equal(ShardCrops(shards, config, 16000, seed=4).batch(0), batches[0])
    resumed.batch(2**40)  # any step


def test_ranks_share_the_sequence_of_one_process(shards):
    one = ShardCrops(shards, DataConfig(segment_s=0.5, batch_size=6), 16000, seed=0)
    for world_size in (2, 3):
        config = DataConfig(segment_s=0.5, batch_size=6 // world_size)
        ranks = [
            ShardCrops(shards, config, 16000, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        for step in (0, 5):
            together = np.concatenate([crops.batch(step) for crops in ranks])
            np.testing.assert_array_equal(together, one.batch(step))
    with pytest.raises(ValueError, match="rank 2 of 2"):
        ShardCrops(shards, config, 16000, seed=0, rank=2, world_size=2)


def test_workers_do_not_change_the_sequence(shards):
    config = DataConfig(segment_s=0.5, batch_size=4)
    direct, ahead = (ShardCrops(shards, config, 16000, seed=0) for _ in range(2))
    ahead = Prefetched(ahead, 2)
    for step in range(5, 12):
        np.testing.assert_array_equal(ahead.batch(step), direct.batch(step))


@pytest.mark.parametrize("mixed_shards", [1, 2, 16])
def test_an_epoch_visits_every_stratum_once_and_mixes_only_some_shards(shards, mixed_shards):
    crops = ShardCrops(shards, DataConfig(segment_s=0.5, mixed_shards=mixed_shards), 16000, seed=1)
    total = int(crops.num_strata.sum())
    assert total == 48  # 24 s
    orders = []
    for epoch in range(2):
        visited = [crops._stratum(epoch, position) for position in range(total)]
        assert sorted(visited) == [(shard, j) for shard in range(3) for j in range(crops.num_strata[shard])]
        assert visited != sorted(visited)
        for first in range(0, total):
            group = {shard for shard, _ in visited[first : first + 4]}
            assert len(group) <= 2 * mixed_shards  # where two groups meet
        orders.append(visited)
    assert orders[0] != orders[1]
    if mixed_shards == 1:
        assert len({shard for shard, _ in orders[0][: crops.num_strata[orders[0][0][0]]]}) == 1


def test_every_second_of_audio_is_heard_about_once_an_epoch(tmp_path):
    """A ramp tells where a crop comes from: its first sample is the time."""
    for clip, seconds in enumerate([6, 3, 9]):
        begin = sum([6, 3, 9][:clip])
        ramp = (begin + np.arange(seconds * 8000) / 8000) / 100
        soundfile.write(tmp_path / f"{clip}.wav", ramp, 8000, "FLOAT")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for clip in range(3):
            archive.add(tmp_path / f"{clip}.wav", f"{clip}.wav")
    index_shard(tmp_path / "set.tar")
    clips = np.load(tmp_path / "set.clips.npy")
    clips["gain"] = 1
    np.save(tmp_path / "set.clips.npy", clips)
    config = DataConfig(segment_s=0.5, batch_size=36, loudness_range_db=0.0, speed_range=0.0)
    crops = ShardCrops(tmp_path, config, 8000, seed=0)
    heard = np.zeros(18 * 8000)
    for step in range(20):  # epochs
        for crop in crops.batch(step)[:, 0]:
            first = round(float(crop[0]) * 100 * 8000)
            heard[first : first + 4000] += 1
    heard = heard.reshape(36, 4000).mean(axis=1) / 20
    inner = np.ones(36, bool)
    inner[[0, 11, 12, 17, 18, 35]] = False  # a crop cannot begin before its clip nor end after it
    np.testing.assert_allclose(heard[inner], 1, atol=0.4)
    assert heard.mean() == pytest.approx(1, abs=1e-3)


def test_a_long_clip_is_not_read_whole(tmp_path, speech, monkeypatch):
    soundfile.write(tmp_path / "long.wav", np.tile(speech(10.0), 30), 16000)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "long.wav", "long.wav")
    index_folder(tmp_path, show_progress=False)
    from taae import shards

    num_bytes = 0
    readinto = shards._Member.readinto

    def counted(self, buffer):
        nonlocal num_bytes
        count = readinto(self, buffer)
        num_bytes += count
        return count

    monkeypatch.setattr(shards._Member, "readinto", counted)
    ShardCrops(tmp_path, DataConfig(segment_s=1.0, batch_size=10), 16000, seed=0).batch(0)
    assert num_bytes < 0.1 * (tmp_path / "long.wav").stat().st_size


def test_broken_clips_are_left_out_of_the_index_and_many_are_an_error(manifest, tmp_path):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row["path"] = str(manifest.parent / row["path"])
    rows[4]["path"] = "absent.wav"
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_shards(tmp_path / "manifest.jsonl", tmp_path / "shards", 2, max_failed_share=0.2, show_progress=False)
    index = json.loads((tmp_path / "shards/shard-00000-of-00002.index.json").read_text())
    assert index["num_clips"] == 5 and len(index["failed"]) == 1 and index["failed"][0].startswith("clip.4: [Errno 2]")
    with pytest.raises(
        ValueError, match=r"00000-of-00001.tar: 1 of 12 clips cannot be read, first clip.4: .*No such file"
    ):
        build_shards(tmp_path / "manifest.jsonl", tmp_path / "strict", 1, show_progress=False)
    assert not list((tmp_path / "strict").glob("*.index.json"))


def test_audio_that_rots_after_it_was_indexed_is_replaced_and_counted(manifest, tmp_path, caplog):
    folder = build_shards(manifest, tmp_path / "shards", 1, show_progress=False)
    (tar,) = folder.glob("*.tar")
    data, clips = bytearray(tar.read_bytes()), np.load(tar.with_suffix(".clips.npy"))
    data[clips[1]["offset"] : clips[1]["offset"] + clips[1]["size"]] = bytes(int(clips[1]["size"]))
    tar.write_bytes(data)
    crops = ShardCrops(folder, DataConfig(segment_s=0.5, batch_size=48, max_failed_share=0.5), 16000, seed=0)
    batch = crops.batch(0)
    assert list(crops.failed.errors) == [f"{tar.name} at {clips[1]['offset']}"]
    assert np.abs(batch).max(axis=2).min() > 0.01
    with pytest.raises(ValueError, match="more than max_failed_share = 0.0 allows"):
        ShardCrops(folder, DataConfig(segment_s=0.5, batch_size=48, max_failed_share=0.0), 16000, seed=0).batch(0)


def test_the_command_makes_and_indexes_shards(manifest, shards, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "taae.cli", "data-shards", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    made = run(manifest, tmp_path / "out", "--num-shards", 3)
    assert made.stdout == f"{tmp_path / 'out'}: 3 shards, 12 clips, 0.01 h, 0 could not be read\n", made.stderr
    (tmp_path / "out/shard-00002-of-00003.index.json").unlink()
    assert run(tmp_path / "out").returncode == 0
    for path in shards.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert "a manifest needs OUT" in run(manifest).stderr


def test_missing_and_stale_indices_say_what_to_do(shards, manifest, tmp_path):
    with pytest.raises(ValueError, match="holds no .tar files; `taae data-shards MANIFEST"):
        ShardCrops(tmp_path, DataConfig(), 16000, seed=0)
    folder = build_shards(manifest, tmp_path / "shards", 1, show_progress=False)
    (tar,) = folder.glob("*.tar")
    tar.write_bytes(tar.read_bytes() + b"more")
    with pytest.raises(ValueError, match="delete shard-00000-of-00001.index.json and run `taae data-shards"):
        ShardCrops(folder, DataConfig(), 16000, seed=0)
    tar.with_suffix(".index.json").unlink()
    with pytest.raises(ValueError, match="has no index; `taae data-shards .*` makes it"):
        ShardCrops(folder, DataConfig(), 16000, seed=0)
    tar.write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match="not an uncompressed tar"):
        index_folder(folder, show_progress=False)
