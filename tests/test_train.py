"""The training loop: it learns, it resumes to the bit, and it refuses recipes that it does not understand."""

import dataclasses
import json
import math

import pytest
import soundfile
import torch

import taae
from taae.config import load_preset
from taae.data import DataConfig
from taae.fsq import quantize
from taae.losses import ReconstructionLossConfig
from taae.train import TrainConfig, Trainer, learning_rate_factor, load_config, model_config, train

TINY = TrainConfig(
    num_steps=12,
    warmup_steps=2,
    is_bf16=False,
    steps_per_checkpoint=5,
    data=DataConfig(manifest="manifest.jsonl", segment_s=0.32, batch_size=4),
    loss=ReconstructionLossConfig(fft_sizes=(128, 512), num_mels=(16, 40), resolutions_per_step=1),
    model={"width": 32, "head_dim": 16, "rope_dims": 8, "depths": [1, 1], "window": [7, 8], "patch_samples": 80},
)


@pytest.fixture(scope="module")
def data(tmp_path_factory, speech):
    folder = tmp_path_factory.mktemp("speech")
    rows = []
    for index in range(3):
        soundfile.write(folder / f"{index}.wav", speech(2.0, seed=index), 16000)
        rows.append({"id": str(index), "path": f"{index}.wav", "seconds": 2.0})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def steps(trainer: Trainer, count: int) -> list[dict[str, float]]:
    return [trainer.train_step() for _ in range(count)]


@pytest.mark.parametrize("is_bf16", [False, True])
def test_a_few_steps_lower_the_loss(data, tmp_path, is_bf16):
    config = dataclasses.replace(TINY, num_steps=30, decay_share=0.0, is_bf16=is_bf16, adamw_lr=5e-3, muon_lr=5e-3)
    trainer = Trainer(config, tmp_path / "run", data)
    losses = [row["mel"] + row["magnitude"] + row["wav"] for row in steps(trainer, 30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(math.isfinite(value) for value in losses)


def test_the_saved_model_decodes_at_the_level_of_its_targets(data, tmp_path):
    trainer = Trainer(TINY, tmp_path / "run", data)
    wav = torch.from_numpy(trainer.crops.batch(0))
    steps(trainer, 10)
    with torch.no_grad():
        # Twice as loud as the training leaves it, so that there is something to match.
        key = "decoder.conv_out.conv.parametrizations.weight.original0"
        trainer.average[key] *= 2
        model = trainer.averaged_model()
        decoded = model.decode_latents(quantize(model.encode_latents(wav), 17))
    # Other crops than those it was matched on
    assert decoded.std() / wav.std() == pytest.approx(1, abs=0.3)


def test_a_resumed_run_repeats_the_uninterrupted_one_to_the_bit(data, tmp_path):
    whole = Trainer(TINY, tmp_path / "whole", data)
    expected = steps(whole, 10)

    (tmp_path / "part").mkdir()
    first = Trainer(TINY, tmp_path / "part", data)
    assert steps(first, 6) == expected[:6]
    first.save()
    steps(first, 2)  # lost with the process

    torch.manual_seed(99)
    resumed = Trainer(TINY, tmp_path / "part", data)
    assert resumed.restore() and resumed.step == 6
    assert steps(resumed, 4) == expected[6:]
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for name, average in whole.average.items():
        assert torch.equal(resumed.average[name], average)


def test_a_run_stops_writes_its_model_and_continues(data, tmp_path):
    run = tmp_path / "run"
    train(TINY, run, data, stop_after_s=0.0)
    assert torch.load(run / "state.pt", weights_only=True)["step"] == 0
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume"):
        train(TINY, run, data)
    train(TINY, run, data, resume=True)
    assert torch.load(run / "state.pt", weights_only=True)["step"] == 12
    codec = taae.load(run / "model")
    assert codec.config == model_config(TINY)
    assert codec.decompress(codec.compress(0.1 * torch.randn(4000))).isfinite().all()
    assert json.loads((run / "config.json").read_text())["num_steps"] == 12
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "log.jsonl", "model", "state.pt"]


def test_the_log_holds_means_also_after_a_resumed_step(data, tmp_path):
    config = dataclasses.replace(TINY, num_steps=50, loss=dataclasses.replace(TINY.loss, resolutions_per_step=2))
    (tmp_path / "run").mkdir()
    trainer = Trainer(config, tmp_path / "run", data)
    rows = steps(trainer, 40)
    trainer.save()
    rows = steps(trainer, 10)
    train(config, tmp_path / "run", data, resume=True)
    (row,) = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert row["step"] == 50
    for name in ("mel", "magnitude", "wav", "norm", "lr"):
        assert row[name] == pytest.approx(sum(step[name] for step in rows) / 10, abs=1e-4)


def test_the_saved_model_is_the_average(data, tmp_path):
    (tmp_path / "run").mkdir()
    trainer = Trainer(TINY, tmp_path / "run", data)
    name = "encoder.conv_in.conv.parametrizations.weight.original0"
    parameter = dict(trainer.model.named_parameters())[name]
    expected = parameter.detach().clone()
    for step in range(3):
        trainer.train_step()
        decay = min(0.998, (2 + step) / (11 + step))
        expected = decay * expected + (1 - decay) * parameter.detach()
    torch.testing.assert_close(trainer.average[name], expected)
    trainer.save()
    saved = taae.load(tmp_path / "run" / "model").model.encoder.conv_in.conv.weight
    torch.testing.assert_close(saved.flatten(1).norm(dim=1), expected.flatten().abs())


def test_training_starts_from_another_model(data, tmp_path):
    (tmp_path / "first").mkdir()
    first = Trainer(TINY, tmp_path / "first", data)
    steps(first, 2)
    first.save()
    second = Trainer(dataclasses.replace(TINY, init=str(tmp_path / "first" / "model")), tmp_path / "second", data)
    wav = 0.1 * torch.randn(1, 1, 3200)
    expected = taae.load(tmp_path / "first" / "model").model.encode_latents(wav)
    torch.testing.assert_close(second.model.encode_latents(wav), expected, rtol=0, atol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    trainer = Trainer(TINY, tmp_path / "run", data)
    with torch.no_grad():
        trainer.model.decoder.conv_in.conv.bias.fill_(math.nan)
    with pytest.raises(RuntimeError, match="the loss is nan at step 0.*lower the learning rates"):
        trainer.train_step()


def test_the_learning_rate_warms_up_and_decays_linearly_to_zero():
    config = TrainConfig(num_steps=1000, warmup_steps=100, decay_share=0.3)
    factors = [learning_rate_factor(config, step) for step in range(1001)]
    assert factors[0] == 0.01 and factors[49] == 0.5 and factors[99:700] == [1.0] * 601
    assert factors[850] == pytest.approx(0.5) and factors[999] == pytest.approx(1 / 300) and factors[1000] == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("stepz = 3", "unknown key stepz; known are .*num_steps"),
        ("[data]\nbatch = 3", r"data: unknown key batch"),
        ("[loss]\nmel = 3", r"loss: unknown key mel"),
        ("[loss]\nresolutions_per_step = 9", "resolutions_per_step must be"),
        ("[model]\nwidht = 64", r"\[model\]: unknown key widht"),
        ("[model]\nwidth = 65", "multiple of head_dim"),
        ('preset = "huge"', "no preset 'huge'"),
        ("num_steps = ", "recipe.toml: not valid TOML"),
        ('num_steps = "x"', "num_steps must be int, got 'x'"),
        ("data = 3", "data: expected a table"),
        ("steps_per_checkpoint = 0", "steps_per_checkpoint must be at least 1"),
        ("[data]\nbatch_size = 0", "batch_size and segment_s must be positive"),
        ("decay_share = 2.0", "decay_share must be in"),
    ],
)
def test_a_recipe_that_is_not_understood_is_refused(tmp_path, text, why):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ValueError, match=why):
        load_config(tmp_path / "recipe.toml")


def test_a_recipe_overrides_its_preset(tmp_path):
    (tmp_path / "recipe.toml").write_text(
        'preset = "mini"\nnum_steps = 7\n[data]\nbatch_size = 3\n[loss]\nfft_sizes = [256]\nnum_mels = [20]\n'
        "resolutions_per_step = 1\n[model]\ndepths = [1, 3]\n[model.fsq]\ntrain_levels = [5]\n"
    )
    config = load_config(tmp_path / "recipe.toml")
    assert (config.num_steps, config.data.batch_size, config.loss.fft_sizes) == (7, 3, (256,))
    mini = load_preset("mini")
    assert model_config(config) == dataclasses.replace(
        mini, depths=(1, 3), fsq=dataclasses.replace(mini.fsq, train_levels=(5,))
    )


def test_the_recipes_of_the_package_are_read():
    from importlib.resources import files

    recipes = [path for path in files("taae").joinpath("recipes").iterdir() if path.name.endswith(".toml")]
    assert recipes
    for path in recipes:
        assert load_config(path).num_steps > 0  # pyright: ignore[reportArgumentType]


def test_resuming_says_when_the_recipe_has_changed_or_there_is_nothing_to_resume(data, tmp_path, caplog):
    config = dataclasses.replace(TINY, num_steps=2)
    train(config, tmp_path / "run", data, resume=True)
    assert "no checkpoint" in caplog.text
    caplog.clear()
    train(config, tmp_path / "run", data, resume=True)
    assert caplog.text == ""
    train(dataclasses.replace(config, num_steps=3, muon_lr=1e-3), tmp_path / "run", data, resume=True)
    assert "changed since step 2: num_steps, muon_lr" in caplog.text
