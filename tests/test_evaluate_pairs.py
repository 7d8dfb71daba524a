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

from taae import metrics, workers
from taae.audio import resample
from taae.evaluate import evaluate, summarise
from taae.pairs import evaluate_folders, match_folders, score_files

PLAIN = ["si_sdr", "mel_distance"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def folders(tmp_path, speech):
    """Three clips, one in a subfolder and one as flac, and the same with noise."""
    for index, name in enumerate(("a", "b", "deep/c")):
        wav = speech(1.0, seed=index)
        noise = 0.01 * np.random.default_rng(index).standard_normal(wav.size)
        for folder, content, suffix in (("clean", wav, "wav"), ("coded", wav + noise, "flac" if index == 1 else "wav")):
            path = tmp_path / folder / f"{name}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, content, 16_000)
    (tmp_path / "coded" / "notes.txt").write_text("no recording")
    return tmp_path / "clean", tmp_path / "coded"


def assert_alike(rows, others):
    """Equal but for the last digits, which depend on how BLAS cuts a sum."""
    for row, other in zip(rows, others, strict=True):
        numbers = {name for name, value in row.items() if isinstance(value, float)}
        assert {k: row[k] for k in row if k not in numbers} == {k: other[k] for k in other if k not in numbers}
        assert {k: row[k] for k in numbers} == pytest.approx({k: other[k] for k in numbers}, rel=1e-6)


def taae(*arguments, cwd):
    command = [sys.executable, "-m", "taae.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)


def test_two_folders_are_scored_clip_by_clip(folders):
    rows = evaluate_folders(*folders, metrics=PLAIN, progress=False)
    assert [row["id"] for row in rows] == ["a", "b", "deep/c"]
    for row, suffix in zip(rows, ("wav", "flac", "wav"), strict=True):
        (clean, rate), (coded, _) = (
            soundfile.read(folders[0] / f"{row['id']}.wav", dtype="float32"),
            soundfile.read(folders[1] / f"{row['id']}.{suffix}", dtype="float32"),
        )
        expected = metrics.score(clean, coded, rate, PLAIN)
        assert {name: row[name] for name in PLAIN} == pytest.approx(expected, rel=1e-6)
        assert row["seconds"] == 1.0 and row["bytes"] is None
    summary = summarise(rows)["recorded"]
    assert summary["num_clips"] == 3
    assert summary["si_sdr"]["mean"] == pytest.approx(np.mean([row["si_sdr"] for row in rows]))


def test_processes_give_the_rows_of_one(folders, tmp_path):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    path = tmp_path / "rows.jsonl"
    rows = evaluate_folders(*folders, num_workers=2, results_path=path, progress=False)
    assert_alike(rows, evaluate_folders(*folders, progress=False))
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    assert set(metrics.check_metrics(None)) <= set(rows[0])


def test_the_command_writes_all_metrics_as_json(folders, tmp_path):
    pytest.importorskip("pesq")
    done = taae("eval", "--reference", folders[0], "--degraded", folders[1], "--json", "out.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    (entry,) = report["summary"].values()
    assert set(metrics.METRICS) == {name for name in entry if isinstance(entry[name], dict)} | set(
        report["unavailable"]
    )
    assert entry["pesq_raw_nb"]["num_clips"] == len(report["rows"]) == 3
    assert "3 clips, 3.0 s" in done.stdout and "mosnet" in done.stdout


def test_files_without_a_counterpart_are_reported_and_the_others_scored(folders, tmp_path):
    (folders[1] / "a.wav").unlink()
    soundfile.write(folders[1] / "more.wav", np.zeros(800), 16_000)
    arguments = ("eval", "--reference", folders[0], "--degraded", folders[1], "--metric", "si_sdr", "--json", "o.json")
    done = taae(*arguments, cwd=tmp_path)
    assert done.returncode == 0 and "scored 2 pairs; left out for want of a counterpart (2): " in done.stderr
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["unmatched"] == [str(folders[0] / "a.wav"), str(folders[1] / "more.wav")]
    assert [row["id"] for row in report["rows"]] == ["b", "deep/c"]


def test_one_file_in_each_folder_is_a_pair_whatever_its_name(tmp_path, speech):
    for folder, name in (("one", "a.flac"), ("two", "b.wav")):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / name, speech(1.0), 16_000)
    assert match_folders(tmp_path / "one", tmp_path / "two") == (
        [("a", tmp_path / "one" / "a.flac", tmp_path / "two" / "b.wav")],
        [],
    )


def test_folders_that_cannot_be_paired_are_refused(folders, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("x", "y"):
        soundfile.write(other / f"{name}.wav", np.zeros(800), 16_000)
    with pytest.raises(ValueError, match=r"names must match, got .*a\.wav, .*x\.wav"):
        match_folders(folders[0], other)
    (folders[0] / "a.wav").rename(folders[0] / "b.mp3")
    with pytest.raises(ValueError, match=r"b\.mp3 and .*b\.wav have the same name"):
        match_folders(*folders)
    with pytest.raises(ValueError, match="expected a folder of recordings, got .*missing"):
        match_folders(tmp_path / "missing", folders[1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no recordings"):
        match_folders(tmp_path / "empty", folders[1])


def test_other_rates_lengths_and_channels_are_compared_and_said(folders, speech, tmp_path):
    soundfile.write(folders[1] / "a.wav", resample(speech(1.0), 16_000, 24_000), 24_000, "FLOAT")
    soundfile.write(folders[1] / "b.flac", speech(1.0, seed=1)[:8000], 16_000)
    soundfile.write(folders[1] / "deep" / "c.wav", np.stack([speech(1.0, seed=2)] * 2, axis=1), 16_000)
    arguments = ("eval", "--reference", folders[0], "--degraded", folders[1], "--metric", "si_sdr", "--json", "o.json")
    done = taae(*arguments, cwd=tmp_path)
    assert done.returncode == 0 and "1 of 3 pairs differ in length by more than 0.1 s" in done.stderr
    first, second, third = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert first["rates_hz"] == [16_000, 24_000] and first["si_sdr"] > 25  # what resampling there and back leaves
    assert "lasts 1.000 s" in second["warning"] and second["cropped_samples"] == -8000 and second["seconds"] == 0.5
    assert second["si_sdr"] > 60 and third["si_sdr"] > 60 and "warning" not in third
    rows = evaluate_folders(*folders, metrics=PLAIN, crop=False, progress=False)
    assert "0.500 s; they must start and end together" in rows[1]["error"] and "error" not in rows[0]


def test_a_frame_more_or_less_is_cropped_and_said(tmp_path, speech):
    wav = speech(1.0)
    soundfile.write(tmp_path / "a.wav", wav, 16_000)
    soundfile.write(tmp_path / "b.wav", np.concatenate([wav, 0.1 * np.ones(640)]), 16_000)
    row = score_files(tmp_path / "a.wav", tmp_path / "b.wav", ["si_sdr"])
    assert row["cropped_samples"] == 640 and row["seconds"] == 1.0 and row["si_sdr"] > 60


def test_other_metrics_join_and_their_gaps_are_explained(folders):
    extra = {"first": _first_sample, "never": _never}
    (row, *_) = evaluate_folders(*folders, metrics=PLAIN, extra=extra, progress=False)
    assert row["first"] == pytest.approx(soundfile.read(folders[1] / "a.wav")[0][0], abs=1e-6)
    assert row["never"] is None and row["reasons"] == {"never": "by nature"}
    summary = summarise([row])["recorded"]
    assert summary["first"]["num_clips"] == 1 and "never" not in summary


def _first_sample(reference, degraded, sample_rate_hz):
    return float(degraded[0])


def _never(reference, degraded, sample_rate_hz):
    raise metrics.MetricError("by nature")


# Processes


@pytest.mark.parametrize("num_workers", [1, 2])
def test_jobs_that_fail_stand_in_their_place(num_workers):
    def broken():
        raise OSError("no such clip")

    jobs = [("a", lambda: ("4 / 2",)), ("b", None), ("c", lambda: ("1 / 0",)), ("d", broken), ("e", lambda: ("3",))]
    results = dict(workers.map_in_order(eval, jobs, num_workers))
    assert list(results) == list("abcde")
    assert (results["a"], results["b"], results["e"]) == (2, None, 3)
    assert str(results["c"]) == "division by zero" and str(results["d"]) == "no such clip"


def test_a_job_that_kills_its_process_takes_no_other_with_it():
    texts = [f"{number} * 2" for number in range(10)]
    texts[2] = "__import__('os').kill(__import__('os').getpid(), 9)"
    results = [
        result for _, result in workers.map_in_order(eval, [(t, lambda t=t: (t,)) for t in texts], num_workers=2)
    ]
    crash = results.pop(2)
    assert isinstance(crash, RuntimeError) and "the process that did this died" in str(crash)
    assert results == [2 * number for number in range(10) if number != 2]


def test_no_worker_is_refused():
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        list(workers.map_in_order(eval, [], 0))


class Halving:
    """A codec that makes everything half as loud, at the speed of its owner."""

    name = "halving"

    def __init__(self):
        self.calls = []

    def reconstruct(self, wav, bottleneck, *, sample_rate_hz):
        self.calls.append(wav.size)
        return torch.from_numpy(wav / 2 + 0.01 * np.sign(wav))[None, None], b"12"


def test_a_codec_is_scored_in_processes_too(folders):
    clips = [(path.stem, path) for path in sorted(folders[0].rglob("*.wav"))]
    parallel = evaluate(Halving(), clips, ["x"], metrics=PLAIN, num_workers=2, progress=False)
    assert_alike(parallel, evaluate(Halving(), clips, ["x"], metrics=PLAIN, progress=False))
    assert parallel[0]["bytes"] == 2


def test_after_kill_9_the_same_command_finishes_the_rest(tmp_path, speech):
    pytest.importorskip("pystoi")
    for folder in ("clean", "coded"):
        (tmp_path / folder).mkdir()
    for index in range(12):
        wav = speech(2.0, seed=index)
        soundfile.write(tmp_path / "clean" / f"{index:02}.wav", wav, 16_000)
        soundfile.write(tmp_path / "coded" / f"{index:02}.wav", 0.5 * wav + 0.001, 16_000)
    arguments = ["eval", "--reference", "clean", "--degraded", "coded", "--results", "rows.jsonl", "--workers", "2"]
    arguments += ["--metric", "stoi"]
    results = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "taae.cli", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, start_new_session=True)
    deadline = time.monotonic() + 120
    while not results.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = [line for line in results.read_text().splitlines(keepends=True) if line.endswith("\n")]
    done = taae(*arguments, "--json", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert results.read_text().splitlines(keepends=True)[: len(kept)] == kept  # nothing was done twice
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"{index:02}" for index in range(12)]
    assert json.loads(done.stdout)["rows"] == rows
