"""Corpora as tokens: what a batch and a clip alone give, what a kill leaves, and who schedules."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import taae
from taae.bitstream import unpack
from taae.corpus import CorpusConfig, encode_shard, read_tokens
from taae.engines import EncoderSource, run_local, run_ray, write_sbatch
from taae.manifest import Shard, read_recordings
from taae.token_shards import TokenClip, dump_shard

SECONDS = (0.3, 2.0, 2.0, 3.1, 2.0, 0.3, 1.0, 3.1, 0.02)


@pytest.fixture(scope="module")
def codec():
    return taae.load()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, speech):
    """Nine clips, some of one length, in several rates and formats, one in stereo and quiet."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for index, seconds in enumerate(SECONDS):
        rate_hz, suffix = (16000, 22050)[index % 4 == 3], ("wav", "flac", "ogg")[index % 3]
        wav = 0.3 * speech(seconds, rate_hz, seed=index)
        soundfile.write(folder / f"{index}.{suffix}", np.stack([wav, wav / 9], 1) if index == 4 else wav, rate_hz)
        rows.append({"id": f"clip {index}", "path": f"{index}.{suffix}", "seconds": seconds})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "manifest.jsonl"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def run_taae(*arguments: object, **keys) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "taae.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **keys)


@pytest.mark.parametrize("bottleneck", ["2x5^6", "1x17^6"])
def test_a_clip_gets_the_tokens_it_gets_alone(codec, manifest, tmp_path, bottleneck):
    config = CorpusConfig(manifest=manifest, out=tmp_path, bottleneck=bottleneck)
    encode_shard(codec, config, Shard())
    clips = list(read_tokens(tmp_path))
    assert [clip.id for clip in clips] == [f"clip {index}" for index in range(len(SECONDS))]
    for clip, recording in zip(clips, read_recordings(manifest), strict=True):
        header, tokens = unpack(codec.compress_file(recording.path, bottleneck))
        np.testing.assert_array_equal(clip.tokens, tokens)
        assert clip.tokens.dtype == np.int64
        assert (clip.num_samples, clip.sample_rate_hz) == (header.num_samples, header.sample_rate_hz)
        assert clip.gain_db == header.gain_db


@pytest.mark.slow
def test_real_speech_in_batches_gets_the_tokens_of_the_model_alone(codec, shared, tmp_path):
    manifest = shared / "speech/dev/manifest.jsonl"
    config = CorpusConfig(manifest=manifest, out=tmp_path, num_shards=8)
    encode_shard(codec, config, Shard(0, 8))
    num_values = num_changed = 0
    for clip, recording in zip(read_tokens(tmp_path), read_recordings(manifest, Shard(0, 8)), strict=True):
        wav, rate_hz = soundfile.read(recording.path, dtype="float32")
        assert rate_hz == codec.sample_rate_hz
        latents = codec.model.encode_latents(torch.from_numpy(wav)[None, None] * 10 ** (clip.gain_db / 20))
        tokens = taae.codec.tokenize(latents, taae.codec.BottleneckSpec.parse("2x5^6"))[0].numpy()
        changed = (tokens != clip.tokens).any(axis=-1)
        # Another batch size may take another order of float32 sums: what lies within 1e-5 of a boundary may move.
        bounded = torch.tanh(latents[0].double())[changed] * 8
        assert ((bounded - bounded.floor() - 0.5).abs().min(dim=-1).values < 8e-5).all()
        num_values, num_changed = num_values + tokens.size, num_changed + int(changed.sum())
    assert num_values > 5000 and num_changed <= 1


def test_batch_size_and_format_do_not_change_tokens(codec, manifest, tmp_path):
    keys = [{"batch_s": 0.0}, {"batch_s": 5.0}, {"file_format": "webdataset"}]
    results = []
    for number, key in enumerate(keys):
        config = CorpusConfig(manifest=manifest, out=tmp_path / str(number), **key)
        encode_shard(codec, config, Shard())
        results.append(list(read_tokens(config.paths(Shard())[0])))
    for clips in results[1:]:
        for clip, first in zip(clips, results[0], strict=True):
            np.testing.assert_array_equal(clip.tokens, first.tokens)
            assert {n: getattr(clip, n) for n in TokenClip.__slots__ if n != "tokens"} == {
                n: getattr(first, n) for n in TokenClip.__slots__ if n != "tokens"
            }


def test_shards_hold_every_nth_recording_and_a_sidecar_says_how_they_were_made(codec, manifest, tmp_path):
    config = CorpusConfig(manifest=manifest, out=tmp_path, num_shards=4, file_format="webdataset")
    records = [encode_shard(codec, config, Shard(index, 4)) for index in range(4)]
    assert sorted(contents(tmp_path)) == sorted(
        f"shard-{index:05d}-of-00004.{suffix}" for index in range(4) for suffix in ("tar", "json")
    )
    assert [clip.id for clip in read_tokens(tmp_path / "shard-00001-of-00004.tar")] == ["clip 1", "clip 5"]
    sidecar = json.loads((tmp_path / "shard-00001-of-00004.json").read_text())
    assert sidecar | {"is_skipped": False} == records[1]
    assert (sidecar["shard"], sidecar["num_clips"], sidecar["num_frames"]) == ("1/4", 2, 50 + 8)
    assert sidecar["seconds"] == pytest.approx(2.3)
    assert (sidecar["model_id"], sidecar["bottleneck"]) == (codec.model_id.hex(), "2x5^6")
    assert sidecar["encoder_dtype"] == "float32" and sidecar["failed"] == []
    assert sidecar["versions"]["torch"] == torch.__version__
    more = CorpusConfig(manifest=manifest, out=tmp_path / "more", num_shards=20)
    assert encode_shard(codec, more, Shard(19, 20))["num_clips"] == 0  # more shards than recordings
    assert list(read_tokens(tmp_path / "more")) == []


def test_a_finished_shard_is_skipped_and_a_damaged_one_is_made_again(codec, manifest, tmp_path, caplog):
    config = CorpusConfig(manifest=manifest, out=tmp_path, num_shards=5)
    encode_shard(codec, config, Shard(0, 5))
    before = contents(tmp_path)
    token_path, sidecar_path = config.paths(Shard(0, 5))
    heard = []
    assert encode_shard(codec, config, Shard(0, 5), progress=heard.append)["is_skipped"]
    assert heard == [0.3 + 0.3]  # the bar goes on
    for path, data in ((token_path, b"PAR1"), (sidecar_path, b"{")):
        path.write_bytes(data)
        assert not encode_shard(codec, config, Shard(0, 5))["is_skipped"]
        assert contents(tmp_path) == before and "is made again" in caplog.text
        caplog.clear()
    token_path.unlink()
    assert not encode_shard(codec, config, Shard(0, 5))["is_skipped"]
    assert not encode_shard(codec, config, Shard(0, 5), force=True)["is_skipped"]
    assert contents(tmp_path) == before


def test_a_folder_of_another_run_is_refused(codec, manifest, tmp_path):
    encode_shard(codec, CorpusConfig(manifest=manifest, out=tmp_path, num_shards=9), Shard(0, 9))
    other = CorpusConfig(manifest=manifest, out=tmp_path, num_shards=9, bottleneck="1x6^6")
    with pytest.raises(ValueError, match=r"bottleneck '2x5\^6' and not '1x6\^6'; choose another folder, or --force"):
        encode_shard(codec, other, Shard(0, 9))
    assert encode_shard(codec, other, Shard(0, 9), force=True)["bottleneck"] == "1x6^6"
    rows = manifest.read_text().replace("clip 0", "another")
    (manifest.parent / "other.jsonl").write_text(rows)
    with pytest.raises(ValueError, match="manifest_sha256"):
        changed = CorpusConfig(manifest=manifest.parent / "other.jsonl", out=tmp_path, num_shards=9, bottleneck="1x6^6")
        encode_shard(codec, changed, Shard(0, 9))


def test_inputs_that_cannot_be_read_are_recorded(codec, manifest, tmp_path):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()][:4]
    for row in rows:
        row["path"] = str(manifest.parent / row["path"])
    (tmp_path / "broken.flac").write_bytes(Path(rows[1]["path"]).read_bytes()[:3000])
    rows[1] |= {"path": "broken.flac", "id": "broken"}
    rows[3] |= {"path": "absent.wav", "seconds": 700.0}  # long ones are read another way
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = CorpusConfig(manifest=tmp_path / "manifest.jsonl", out=tmp_path / "out")
    record = encode_shard(codec, config, Shard())
    assert [clip.id for clip in read_tokens(config.out)] == ["clip 0", "clip 2"]
    assert [entry["id"] for entry in record["failed"]] == ["broken", "clip 3"]
    assert "broken.flac" in record["failed"][0]["error"] and "absent.wav" in record["failed"][1]["error"]
    strict = CorpusConfig(manifest=tmp_path / "manifest.jsonl", out=tmp_path / "strict", max_failed_share=0.4)
    with pytest.raises(ValueError, match="shard 0/1: 2 of 4 inputs cannot be read, more than .*first broken: "):
        encode_shard(codec, strict, Shard())
    assert not (tmp_path / "strict").exists()
    (record,) = run_local(EncoderSource(), strict, [Shard()])
    assert record["shard"] == "0/1" and "cannot be read" in record["error"]


def test_a_long_recording_is_encoded_from_disk(codec, tmp_path, speech, monkeypatch):
    monkeypatch.setattr("taae.corpus._LONG_S", 2.0)
    soundfile.write(tmp_path / "long.wav", speech(5.0, 22050), 22050)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"id": "long", "path": "long.wav", "seconds": 5.0}))
    config = CorpusConfig(manifest=tmp_path / "manifest.jsonl", out=tmp_path / "out")
    encode_shard(codec, config, Shard())
    (clip,) = read_tokens(config.out)
    wav, _ = soundfile.read(tmp_path / "long.wav", dtype="float32")
    np.testing.assert_array_equal(clip.tokens, unpack(codec.compress(wav, sample_rate_hz=22050))[1])


def test_the_killed_and_resumed_output_is_that_of_an_uninterrupted_run(manifest, tmp_path):
    arguments = [manifest, tmp_path / "killed", "--num-shards", 6]
    whole = run_taae("encode-dataset", manifest, tmp_path / "whole", "--num-shards", 6)
    assert whole.returncode == 0, whole.stderr
    assert "shard 5/6 done: 1 clips" in whole.stdout
    process = subprocess.Popen(
        [sys.executable, "-m", "taae.cli", "encode-dataset", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("*.json"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)  # somewhere in the third shard or a later one
    assert process.wait() == -signal.SIGKILL
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.json")}
    resumed = run_taae("encode-dataset", *arguments, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    records = [json.loads(line) for line in resumed.stdout.splitlines()]
    assert [record["is_skipped"] for record in records].count(True) == len(finished) >= 2
    for name, time_ns in finished.items():
        assert (tmp_path / "killed" / name).stat().st_mtime_ns == time_ns


def test_one_shard_at_a_time_gives_the_same_files(manifest, tmp_path, codec):
    config = CorpusConfig(manifest=manifest, out=tmp_path / "all", num_shards=3)
    for _ in run_local(EncoderSource(), config, [Shard(index, 3) for index in range(3)]):
        pass
    single = run_taae("encode-dataset", manifest, tmp_path / "single", "--shard", "1/3")
    assert single.returncode == 0, single.stderr
    expected = {name: data for name, data in contents(tmp_path / "all").items() if "00001-of" in name}
    assert contents(tmp_path / "single") == expected


def test_the_script_for_slurm_encodes_what_its_array_tasks_are_given(manifest, tmp_path, monkeypatch):
    made = run_taae("encode-dataset", manifest, tmp_path / "out dir", "--num-shards", 3, "--engine", "slurm")
    script = tmp_path / "out dir" / "encode.sbatch"
    assert (made.returncode, made.stdout) == (0, f"sbatch {script}\n")
    text = script.read_text()
    assert "#SBATCH --array=0-2\n" in text and "#SBATCH --cpus-per-task=2\n" in text
    monkeypatch.setattr("taae.engines.MAX_ARRAY_TASKS", 2)  # a task then takes several shards
    config = CorpusConfig(manifest=manifest, out=tmp_path / "many", num_shards=5)
    script = write_sbatch(EncoderSource(device="cuda"), config, cpus=4)
    assert "#SBATCH --array=0-1\n" in script.read_text() and "--gpus-per-task=1" in script.read_text()
    script.write_text(script.read_text().replace("--device cuda", "--device cpu"))
    subprocess.run(["bash", str(script)], env=os.environ | {"SLURM_ARRAY_TASK_ID": "1"}, check=True, timeout=120)
    assert [clip.id for clip in read_tokens(script.parent)] == ["clip 1", "clip 6", "clip 3", "clip 8"]  # 1/5 and 3/5


@pytest.mark.slow
def test_ray_gives_the_same_files(manifest, tmp_path, codec):
    pytest.importorskip("ray", reason="needs the package ray")
    config = CorpusConfig(manifest=manifest, out=tmp_path / "local", num_shards=3)
    for index in range(3):
        encode_shard(codec, config, Shard(index, 3))
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    arguments = [manifest, tmp_path / "ray", "--num-shards", 3, "--engine", "ray", "--cpus", 1, "--json"]
    done = run_taae("encode-dataset", *arguments, env=environment)
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(line)["shard"] for line in done.stdout.splitlines()) == ["0/3", "1/3", "2/3"]
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_ray_is_started_again_where_it_was_too_slow(manifest, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="needs the package ray")
    calls = []
    monkeypatch.setattr(ray, "init", lambda **keys: calls.append(keys) or 1 / 0)
    config = CorpusConfig(manifest=manifest, out=tmp_path)
    with pytest.raises(RuntimeError, match="Ray did not start in 3 attempts: division by zero"):
        next(run_ray(EncoderSource(), config, [Shard()], cpus=1))
    assert len(calls) == 3 and not ray.is_initialized()


def test_tokens_take_the_smallest_integers_that_hold_them(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    for bottleneck, dtype, stages, size in (
        ("2x5^3", "uint8", 2, 125),
        ("2x5^6", "uint16", 2, 15625),
        ("1x17^6", "uint32", 1, 17**6),
    ):
        tokens = rng.integers(0, size, (1000, stages))
        tokens[0] = size - 1
        clip = TokenClip(id="a", tokens=tokens, num_samples=7, sample_rate_hz=8, gain_db=0.5, audio_sha256="c0")
        settings = {"bottleneck": bottleneck, "model_id": "00"}
        for file_format, suffix in (("parquet", ".parquet"), ("webdataset", ".tar")):
            path = tmp_path / f"{bottleneck}{suffix}"
            path.write_bytes(dump_shard([clip], settings, file_format))
            (back,) = read_tokens(path)
            np.testing.assert_array_equal(back.tokens, tokens)
            assert (back.id, back.num_samples, back.gain_db, back.audio_sha256) == ("a", 7, 0.5, "c0")
        table = parquet.read_table(tmp_path / f"{bottleneck}.parquet")
        assert str(table.schema.field("tokens").type) == f"large_list<element: {dtype}>"
        assert json.loads(table.schema.metadata[b"taae"]) == settings | {"num_stages": stages}
        assert (tmp_path / f"{bottleneck}.parquet").stat().st_size < tokens.size * np.dtype(dtype).itemsize * 1.1 + 3000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_tars(codec, manifest, tmp_path):
    import gc

    webdataset = pytest.importorskip("webdataset")
    config = CorpusConfig(manifest=manifest, out=tmp_path, num_shards=9, file_format="webdataset")
    encode_shard(codec, config, Shard(1, 9))
    (sample,) = webdataset.WebDataset(str(config.paths(Shard(1, 9))[0]), shardshuffle=False).decode()
    assert sample["json"]["id"] == "clip 1" and sample["json"]["bottleneck"] == "2x5^6"
    (clip,) = read_tokens(tmp_path)
    np.testing.assert_array_equal(sample["tokens.npy"], clip.tokens)
    gc.collect()  # webdataset leaves its file open


def test_what_is_no_token_file_is_said(tmp_path):
    pytest.importorskip("pyarrow")
    for name, data in (("a.parquet", b"PAR1 nothing"), ("a.tar", b"nothing" * 200)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="is no token file, or a damaged one"):
            list(read_tokens(tmp_path / name))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no token files"):
        list(read_tokens(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        list(read_tokens(tmp_path / "absent.parquet"))


def test_a_bottleneck_of_another_model_fails_its_shards_in_one_line(manifest, tmp_path):
    config = CorpusConfig(manifest=manifest, out=tmp_path, bottleneck="2x5^8")
    (record,) = run_local(EncoderSource(), config, [Shard()])
    assert record == {"shard": "0/1", "error": "bottleneck 2x5^8 has 8 dimensions, mini has 6"}


def test_only_a_float32_encoder_makes_tokens_to_keep(manifest, tmp_path, unchecked):
    half = taae.load(dtype="bfloat16")
    with pytest.raises(ValueError, match="need a float32 encoder, this one runs in bfloat16"):
        encode_shard(half, CorpusConfig(manifest=manifest, out=tmp_path), Shard())


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--shard", "3/3"], 2, "shards count from 0"),
        (["--shard", "x"], 2, "a shard must read 'i/N'"),
        (["--shard", "0/3", "--num-shards", "3"], 2, "--shard names one part"),
        (["--shard", "0/3", "--engine", "ray"], 2, "--shard names one part"),
        (["--bottleneck", "continuous"], 2, "no tokens to store"),
        (["--model", "absent"], 1, "no model 'absent'"),
    ],
)
def test_mistakes_on_the_command_line_are_named(manifest, tmp_path, arguments, code, text):
    done = run_taae("encode-dataset", manifest, tmp_path / "out", *arguments)
    assert done.returncode == code and text in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/*.parquet"))
