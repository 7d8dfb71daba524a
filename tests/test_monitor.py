"""What a run tells: means over processes and steps, a log that survives kills, TensorBoard, pictures."""

import json
import logging
from collections import deque

import numpy as np
import pytest
import torch

from taae.data import DataConfig
from taae.distributed import ALONE, World
from taae.monitor import Monitor, read_log, spectrogram_image
from taae.objectives import codebook_use
from taae.recipe import TrainConfig

CONFIG = TrainConfig(num_steps=100, steps_per_log=2, micro_batches=3, data=DataConfig(segment_s=2.0, batch_size=4))


def test_rows_are_means_over_the_steps_in_which_a_number_came_up(tmp_path):
    with Monitor(tmp_path, CONFIG, ALONE, 0, "test") as monitor:
        monitor.add(1, {"loss": 1.0, "accuracy/78": 0.5})
        assert read_log(tmp_path) == []
        monitor.add(2, {"loss": 2.0, "accuracy/126": 0.75})
        monitor.add(3, {"loss": 9.0})
        monitor.add(4, {"loss": 1 / 3})
    first, second = read_log(tmp_path)
    assert (first["step"], first["loss"], first["accuracy/78"], first["accuracy/126"]) == (2, 1.5, 0.5, 0.75)
    assert second["loss"] == pytest.approx((9 + 1 / 3) / 2, rel=1e-8) and "accuracy/78" not in second


def test_a_row_keeps_float32_to_the_bit(tmp_path):
    values = np.random.default_rng(0).lognormal(size=200).astype(np.float32)
    config = TrainConfig(num_steps=300, steps_per_log=1)
    with Monitor(tmp_path, config, ALONE, 0, "test") as monitor:
        for step, value in enumerate(values, start=1):
            monitor.add(step, {"loss": float(value)})
    assert [np.float32(row["loss"]) for row in read_log(tmp_path)] == list(values)


def test_the_speed_counts_the_audio_of_all_micro_batches(tmp_path, monkeypatch):
    clock = deque([100.0, 104.0])
    monkeypatch.setattr("taae.monitor.time.monotonic", clock.popleft)
    with Monitor(tmp_path, CONFIG, ALONE, 6, "test") as monitor:
        monitor.add(7, {"loss": 1.0})
        monitor.add(8, {"loss": 1.0})
    (row,) = read_log(tmp_path)
    assert row["audio_per_s"] == 2 * 3 * 4 * 2.0 / 4.0 and row["elapsed_s"] == 4.0


def test_rows_of_a_killed_process_after_its_checkpoint_are_removed(tmp_path):
    rows = [{"step": step, "loss": float(step)} for step in (2, 4, 6, 8)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 10, "lo')
    assert [row["step"] for row in read_log(tmp_path)] == [2, 4, 6, 8]
    with Monitor(tmp_path, CONFIG, ALONE, 5, "test") as monitor:
        monitor.add(6, {"loss": 0.5})
    assert [row["loss"] for row in read_log(tmp_path)] == [2.0, 4.0, 0.5]


def test_only_the_first_process_writes_and_it_writes_the_mean_of_all(tmp_path):
    class TwoAlike(World):
        """The other process has numbers that are 1 higher."""

        def mean(self, values):
            assert list(values) == sorted(values)  # or processes would add up different things
            return {name: value + 0.5 for name, value in values.items()}

    with Monitor(tmp_path, CONFIG, TwoAlike(1, 2), 0, "test") as other:
        other.add(2, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []
    with Monitor(tmp_path, CONFIG, TwoAlike(0, 2), 0, "test") as main:
        main.add(2, {"b": 1.0, "a": 3.0})
    (row,) = read_log(tmp_path)
    assert (row["a"], row["b"]) == (3.5, 1.5)


def test_tensorboard_gets_losses_audio_and_spectrograms(tmp_path, speech):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wav = torch.from_numpy(speech(0.5))[None, None]
    with Monitor(tmp_path, CONFIG, ALONE, 0, "test") as monitor:
        monitor.add(2, {"loss": 0.25, "accuracy/78": 0.5})
        monitor.add_example(2, wav, 0.5 * wav, 16000)
        monitor.add_sensitivity(2, {"matching": np.ones((5, 4))}, np.arange(5.0))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"train/loss", "accuracy/78", "train/audio_per_s"} <= set(board.Tags()["scalars"])
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(2, 0.25)]
    assert board.Tags()["audio"] == ["original", "decoded"]
    clip = board.Audio("decoded")[0]
    assert (clip.sample_rate, clip.length_frames) == (16000, 8000)
    assert set(board.Tags()["images"]) == {"original", "decoded", "sensitivity/matching"}
    picture = board.Images("original")[0]
    assert (picture.height, picture.width) == (257, 63)


def test_without_tensorboard_the_log_remains_and_says_so_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING), Monitor(tmp_path, CONFIG, ALONE, 0, "test") as monitor:
        monitor.add(2, {"loss": 0.25})
        monitor.add_example(2, torch.zeros(1, 1, 800), torch.zeros(1, 1, 800), 16000)
    assert "pip install 'taae-workbench[train]'" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_spectrogram_shows_a_tone_where_it_is():
    tone = torch.sin(2 * torch.pi * 2000 * torch.arange(16000) / 16000)
    picture = spectrogram_image(tone)
    assert picture.shape == (1, 257, 126)
    column = picture[0, :, 60]
    assert int(column.argmax()) == 256 - 2000 * 512 // 16000 and column.max() == pytest.approx(1, abs=1e-3)
    assert column[:100].max() == 0  # more than 80 dB below, 4.8 kHz and higher
    assert spectrogram_image(torch.zeros(4000)).isfinite().all()


def test_sensitivity_maps_are_kept_by_step(tmp_path):
    values = np.random.default_rng(0).random((7, 3))
    with Monitor(tmp_path, CONFIG, ALONE, 0, "test") as monitor:
        monitor.add_sensitivity(40, {"matching": values, "discriminator": 2 * values}, np.linspace(0, 8000, 7))
    (path,) = (tmp_path / "sensitivity").iterdir()
    assert path.name == "step-00000040.npz"
    with np.load(path) as kept:
        np.testing.assert_allclose(kept["discriminator"], 2 * values, rtol=1e-6)
        assert kept["frequencies_hz"][-1] == 8000


def test_codebook_use_is_1_for_even_use_and_falls_with_collapse():
    levels = 5
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, levels)] * 2).clamp(-0.999, 0.999).atanh()[None]  # (1, 25, 2)
    use = {name: float(value) for name, value in codebook_use(grid, levels).items()}
    assert use == pytest.approx({"codebook/entropy": 1.0, "codebook/lowest": 1.0, "codebook/distinct": 1.0})
    half = grid.clone()
    half[..., 1] = 0.0
    use = {name: float(value) for name, value in codebook_use(half, levels).items()}
    assert use == pytest.approx({"codebook/entropy": 0.5, "codebook/lowest": 0.0, "codebook/distinct": 5 / 25})
    two_levels = torch.tensor([-9.0, 9.0]).repeat(8)[None, :, None]
    assert float(codebook_use(two_levels, 17)["codebook/entropy"]) == pytest.approx(np.log(2) / np.log(17))
