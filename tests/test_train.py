"""The training loop: it learns, it resumes to the bit, survives kills and full disks, and refuses what it cannot do."""

import dataclasses
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import taae
from taae.adversarial import AdversarialConfig, build_adversary, generator_weights
from taae.config import load_preset
from taae.data import DataConfig
from taae.fsq import quantize
from taae.losses import ReconstructionLossConfig
from taae.model import TAAE, num_parameters
from taae.monitor import read_log
from taae.perceptual import CTCConfig
from taae.recipe import recipe_names
from taae.train import TrainConfig, Trainer, learning_rate_factor, load_config, model_config, train
from taae.training_state import checkpoints
from taae.utterances import CTCTrainingConfig

TINY_MODEL = {
    "width": 32,
    "head_dim": 16,
    "rope_dims": 8,
    "strides": [1, 2],
    "depths": [1, 1],
    "window": [7, 8],
    "patch_samples": 80,
}
TINY = TrainConfig(
    num_steps=12,
    warmup_steps=2,
    is_bf16=False,
    steps_per_checkpoint=5,
    steps_per_log=1,
    data=DataConfig(manifest="manifest.jsonl", segment_s=0.32, batch_size=4),
    loss=ReconstructionLossConfig(fft_sizes=(128, 512), num_mels=(16, 40), resolutions_per_step=1),
    model=TINY_MODEL,
)
# Everything at once: two networks, random scales, two micro-batches.
GAN = dataclasses.replace(
    TINY,
    micro_batches=2,
    optimizer="adamw",
    data=dataclasses.replace(TINY.data, batch_size=2, segment_s=0.16),
    adversarial=AdversarialConfig(
        discriminator={"channels": 4, "fft_sizes": [78, 126, 206], "is_frequency_strided": True}, scales_per_step=2
    ),
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


def losses_of(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Rows of a log without what the clock says."""
    return [{key: row[key] for key in row if key not in ("audio_per_s", "elapsed_s")} for row in rows]


def warnings_in(caplog) -> str:
    return "\n".join(record.message for record in caplog.records if record.name.startswith("taae"))


# Learning


@pytest.mark.parametrize("is_bf16", [False, True])
def test_a_few_steps_lower_the_loss(data, tmp_path, is_bf16):
    config = dataclasses.replace(TINY, num_steps=30, decay_share=0.0, is_bf16=is_bf16, adamw_lr=5e-3, muon_lr=5e-3)
    trainer = Trainer(config, tmp_path / "run", data)
    losses = [row["mel"] + row["magnitude"] + row["wav"] for row in steps(trainer, 30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(math.isfinite(value) for value in losses)


class Repeated:
    """The same loud crops in every step."""

    def __init__(self, speech):
        self.crops = np.stack([2 * speech(0.16, seed=index) for index in range(4)])[:, None]

    def batch(self, step):
        return self.crops


@pytest.mark.parametrize("learns", ["codec", "discriminator"])
def test_either_network_learns_while_the_other_stands_still(data, tmp_path, speech, learns):
    # Without reconstruction losses, so that all the autoencoder learns from is feature matching.
    assert GAN.adversarial is not None
    adversarial = dataclasses.replace(GAN.adversarial, wav_weight=0.0, stft_weight=0.0, scales_per_step=0)
    rates = {"adamw_lr": 1e-2, "discriminator_lr": 0.0} if learns == "codec" else {"adamw_lr": 0.0}
    rates = {"discriminator_lr": 1e-2, "weight_decay": 0.0, "warmup_steps": 0, "num_steps": 99} | rates
    trainer = Trainer(dataclasses.replace(GAN, adversarial=adversarial, micro_batches=1, **rates), tmp_path, data)
    trainer.crops = {0: Repeated(speech)}
    learners = trainer._learners()
    before = {name: [value.clone() for value in item.parameters.values()] for name, item in learners.items()}
    rows = steps(trainer, 25)
    for name, learner in learners.items():
        changed = [(new != old).any() for new, old in zip(learner.parameters.values(), before[name], strict=True)]
        assert all(changed) if name == learns else not any(changed)
    sizes = (78, 126, 206)
    assert rows[0]["feature_matching"] == pytest.approx(
        np.mean([rows[0][f"matching/{size}/{layer}"] for size in sizes for layer in range(5)])
    )
    assert rows[0]["discriminator"] == pytest.approx(2, abs=0.01)  # hinge: 1 + 1 for logits near 0
    assert "wav" not in rows[0] and "stft" not in rows[0]
    assert rows[0]["norm"] ** 2 == pytest.approx(rows[0]["norm/encoder"] ** 2 + rows[0]["norm/decoder"] ** 2)
    if learns == "codec":
        assert rows[-1]["feature_matching"] < 0.9 * rows[0]["feature_matching"]
    else:
        assert rows[-1]["discriminator"] < 1.5
        assert np.mean([rows[-1][f"accuracy/{size}"] for size in sizes]) > 0.6
        squares = sum(rows[-1][f"discriminator_norm/{size}"] ** 2 for size in sizes)
        assert rows[-1]["discriminator_norm"] ** 2 == pytest.approx(squares)


def test_micro_batches_add_up_to_the_gradient_of_their_mean(data, tmp_path):
    config = dataclasses.replace(TINY, optimizer="sgd", adamw_lr=0.1, micro_batches=2, warmup_steps=0, seed=3)
    config = dataclasses.replace(config, gradient_norm=1e9, weight_decay=0.0)
    both = Trainer(config, tmp_path / "run", data)
    start = [parameter.detach().clone() for parameter in both.model.parameters()]
    both.train_step()
    moved = [old - new.detach() for old, new in zip(start, both.model.parameters(), strict=True)]
    single = []
    for stream in (0, 1):
        one = Trainer(config, tmp_path / "run", data)
        one.crops = {stream: one.crops[stream]}
        one.train_step()
        single.append([old - new.detach() for old, new in zip(start, one.model.parameters(), strict=True)])
    for whole, first, second in zip(moved, *single, strict=True):
        torch.testing.assert_close(
            whole, (first + second) / 2, rtol=1e-4, atol=2e-7
        )  # weights near 1 have steps of 6e-8
    assert any((first != second).any() for first, second in zip(*single, strict=True))  # they heard different crops


def test_draws_depend_on_seed_step_and_stream():
    from taae.trainer import _generator

    keys = [(0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2), (2**31, 0, 1), (0, 0, 0)]
    draws = [tuple(torch.rand(4, generator=_generator(*key)).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws[0] == tuple(torch.rand(4, generator=_generator(0, 0, 1)).tolist())


def test_fp16_scales_the_loss_and_skips_a_step_whose_gradient_overflows(data, tmp_path):
    config = dataclasses.replace(TINY, is_fp16=True, num_steps=20)
    trainer = Trainer(config, tmp_path / "run", data)
    trainer.codec.scaler.load_state_dict(trainer.codec.scaler.state_dict() | {"scale": 2.0**60})
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    (row,) = steps(trainer, 1)
    assert row["skipped"] == 1 and "norm" not in row and trainer.step == 1
    assert all(torch.equal(new, old) for new, old in zip(trainer.model.parameters(), before, strict=True))
    assert trainer.codec.scaler.get_scale() == 2.0**59
    trainer.codec.scaler.load_state_dict(trainer.codec.scaler.state_dict() | {"scale": 2.0**10})
    rows = steps(trainer, 3)
    assert all("skipped" not in row and row["norm"] < 100 for row in rows)  # unscaled before it is measured
    trainer.run.mkdir(exist_ok=True)
    trainer.codec.scaler.load_state_dict(trainer.codec.scaler.state_dict() | {"scale": 2.0**9, "_growth_tracker": 7})
    trainer.save()
    again = Trainer(config, tmp_path / "run", data)
    assert again.restore()
    assert (again.codec.scaler.get_scale(), again.codec.scaler.state_dict()["_growth_tracker"]) == (2.0**9, 7)


# The saved model


def test_the_saved_model_decodes_at_the_level_of_its_targets(data, tmp_path):
    trainer = Trainer(TINY, tmp_path / "run", data)
    wav = torch.from_numpy(trainer.crops[0].batch(0))
    steps(trainer, 10)
    with torch.no_grad():
        # Twice as loud as the training leaves it, so that there is something to match.
        key = "model.decoder.conv_out.conv.parametrizations.weight.original0"
        trainer.codec.average[key] *= 2
        model = trainer.averaged_model()
        decoded = model.decode_latents(quantize(model.encode_latents(wav), 17))
    # Other crops than those it was matched on
    assert decoded.std() / wav.std() == pytest.approx(1, abs=0.3)


def test_the_saved_model_is_the_average_or_without_one_the_weights(data, tmp_path):
    name = "encoder.conv_in.conv.parametrizations.weight.original0"
    for ema_decay in (0.998, 0.0):
        run = tmp_path / str(ema_decay)
        trainer = Trainer(dataclasses.replace(TINY, ema_decay=ema_decay, is_level_matched=False), run, data)
        parameter = dict(trainer.model.named_parameters())[name]
        expected = parameter.detach().clone()
        for step in range(3):
            trainer.train_step()
            decay = min(ema_decay, (2 + step) / (11 + step))
            expected = decay * expected + (1 - decay) * parameter.detach()
        run.mkdir()
        trainer.save()
        saved = taae.load(run / "model").model.encoder.conv_in.conv.weight
        torch.testing.assert_close(saved.flatten(1).norm(dim=1), expected.flatten().abs())
        assert torch.equal(expected, parameter) == (ema_decay == 0)


def test_training_starts_from_another_model_or_from_a_run_with_its_discriminator(data, tmp_path, caplog):
    first = Trainer(GAN, tmp_path / "first", data)
    steps(first, 2)
    first.run.mkdir()
    first.save()
    wav = 0.1 * torch.randn(1, 1, 3200)
    expected = taae.load(tmp_path / "first" / "model").model.encode_latents(wav)
    assert first.adversary is not None

    stage = Trainer(dataclasses.replace(GAN, seed=9, init=str(tmp_path / "first")), tmp_path / "stage", data)
    torch.testing.assert_close(stage.model.encode_latents(wav), expected, rtol=0, atol=1e-5)
    assert stage.adversary is not None and stage.step == 0
    for ours, theirs in zip(stage.adversary.parameters(), first.adversary.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert warnings_in(caplog) == ""

    model_only = dataclasses.replace(GAN, seed=9, init=str(tmp_path / "first" / "model"))
    second = Trainer(model_only, tmp_path / "second", data)
    torch.testing.assert_close(second.model.encode_latents(wav), expected, rtol=0, atol=1e-5)
    assert "the discriminator starts from random weights" in caplog.text


def test_a_causal_stage_starts_from_a_model_that_is_not(data, tmp_path):
    first = Trainer(TINY, tmp_path / "first", data)
    first.run.mkdir()
    first.save()
    causal = dataclasses.replace(
        TINY, init=str(tmp_path / "first"), model=TINY_MODEL | {"is_causal": True, "window": [15, 0]}
    )
    trainer = Trainer(causal, tmp_path / "causal", data)
    wav = 0.1 * torch.randn(1, 1, 3200)
    changed = wav.clone()
    changed[..., 1600:] = 0
    with torch.no_grad():
        latents, others = (trainer.model.encode_latents(item) for item in (wav, changed))
    assert torch.equal(latents[:, :10], others[:, :10]) and not torch.equal(latents[:, 10:], others[:, 10:])
    theirs, ours = (dict(item.model.named_parameters()) for item in (first, trainer))
    key = "encoder.blocks.0.0.mlp.to_out.weight"
    torch.testing.assert_close(ours[key], first.codec.average[f"model.{key}"])
    assert theirs.keys() == ours.keys()


def test_a_stage_starts_from_a_model_with_patches_twice_as_long(data, tmp_path):
    first = Trainer(TINY, tmp_path / "first", data)
    first.run.mkdir()
    first.save()
    finer = {"patch_samples": TINY_MODEL["patch_samples"] // 2, "strides": [1, 2, 2], "depths": [1, 1, 1]}
    recipe = dataclasses.replace(TINY, init=str(tmp_path / "first"), model=TINY_MODEL | finer)
    trainer = Trainer(recipe, tmp_path / "grown", data)
    key = "blocks.0.0.mlp.to_out.weight"  # the decoder's first block is the encoder's last
    ours, averaged = dict(trainer.model.named_parameters()), first.codec.average
    torch.testing.assert_close(ours[f"decoder.{key}"], averaged[f"model.decoder.{key}"])
    torch.testing.assert_close(ours["encoder.blocks.1.0.mlp.to_out.weight"], averaged[f"model.encoder.{key}"])
    assert all(math.isfinite(value) for value in trainer.train_step().values())

    deeper = dataclasses.replace(recipe, model=recipe.model | {"depths": [1, 2, 1]})
    with pytest.raises(ValueError, match="init = .*weights do not fit the model"):
        Trainer(deeper, tmp_path / "deeper", data)


def test_the_ctc_head_learns_to_read_the_latents_and_is_checkpointed(data, tmp_path):
    rows = [json.loads(line) for line in (data / "manifest.jsonl").read_text().splitlines()]
    for row, transcript in zip(rows, ("a bad cab", "face", None), strict=True):
        row |= {"transcript": transcript, "path": str(data / row["path"])}
    (tmp_path / "spoken.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ctc = CTCTrainingConfig(weight=0.5, batch_size=2, head=CTCConfig(symbols=" abcdef", channels=16))
    config = dataclasses.replace(
        TINY, ctc=ctc, data=dataclasses.replace(TINY.data, manifest="spoken.jsonl", batch_size=1), adamw_lr=5e-3
    )
    config = dataclasses.replace(config, warmup_steps=0, num_steps=40, decay_share=0.0)
    trainer = Trainer(config, tmp_path / "run", tmp_path)
    assert {transcript for _, transcript in trainer.utterances[0].rows} == {"a bad cab", "face"}
    head = {name: value for name, value in trainer.codec.parameters.items() if name.startswith("ctc.")}
    before = [value.clone() for value in head.values()]
    losses = [row["ctc"] for row in steps(trainer, 30)]
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    assert len(head) == 6 and all((new != old).any() for new, old in zip(head.values(), before, strict=True))
    spoken = trainer.utterances[0].batch(7)
    assert spoken.wav.shape == (2, 1, 32000) and spoken.num_frames == [200, 200]
    assert torch.equal(spoken.wav, trainer.utterances[0].batch(7).wav)

    trainer.run.mkdir(exist_ok=True)
    trainer.save()
    expected = steps(trainer, 1)
    again = Trainer(config, tmp_path / "run", tmp_path)
    assert again.restore() and steps(again, 1) == expected
    assert taae.load(tmp_path / "run" / "model").config == model_config(config)
    silent = dataclasses.replace(config, data=dataclasses.replace(TINY.data, manifest="manifest.jsonl"))
    with pytest.raises(ValueError, match=r"\[ctc\]: none of the 3 lines of .*manifest.jsonl has a transcript"):
        Trainer(silent, tmp_path / "other", data)


# Resuming


@pytest.mark.parametrize("config", [TINY, GAN], ids=["muon", "gan"])
def test_a_resumed_run_repeats_the_uninterrupted_one_to_the_bit(data, tmp_path, config):
    whole = Trainer(config, tmp_path / "whole", data)
    expected = steps(whole, 8)

    (tmp_path / "part").mkdir()
    first = Trainer(config, tmp_path / "part", data)
    assert steps(first, 1) == expected[:1]
    first.save()  # when some scales of the discriminator have not been drawn yet, and have no moments
    steps(first, 2)  # lost with the process

    torch.manual_seed(99)
    resumed = Trainer(config, tmp_path / "part", data)
    assert resumed.restore() and resumed.step == 1
    assert steps(resumed, 4) == expected[1:5]
    resumed.save()
    again = Trainer(config, tmp_path / "part", data)
    assert again.restore() and steps(again, 3) == expected[5:]
    ours, theirs = again._state(), whole._state()
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if name != "rng" and not torch.equal(ours[name], theirs[name])]
    assert different == []
    for kind in ("codec/weights", "codec/average", "codec/optimizer", "step", "seed", "rng"):
        assert any(name.startswith(kind) for name in ours)


def test_a_run_that_is_killed_continues_as_if_nothing_had_happened(data, tmp_path):
    config = dataclasses.replace(GAN, num_steps=9, steps_per_checkpoint=3, steps_per_sample=4)
    train(config, tmp_path / "whole", data)
    expected = losses_of(read_log(tmp_path / "whole"))
    assert [row["step"] for row in expected] == list(range(1, 10))

    run = tmp_path / "killed"
    arguments = ["train", "--config", str(write_recipe(tmp_path, config)), "--run", str(run), "--shared", str(data)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-m", "taae.cli", *arguments], env=environment) as process:
        deadline = time.monotonic() + 240
        while len(read_log(run)) < 5:  # after the first checkpoint, before the second
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = read_log(run)
    assert losses_of(done) == expected[: len(done)]
    assert 0 < len(checkpoints(run / "checkpoints")) <= 2

    train(config, run, data, resume=True)
    assert losses_of(read_log(run)) == expected
    for name in ("model/model.safetensors", "discriminator.safetensors"):
        ours, theirs = load_file(run / name), load_file(tmp_path / "whole" / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert sorted(path.name for path in run.iterdir()) == [
        *("checkpoints", "config.json", "discriminator.safetensors", "log.jsonl", "model", "sensitivity", "tensorboard")
    ]


def write_recipe(folder: Path, config: TrainConfig) -> Path:
    """The TOML file that reads as `config`."""

    def value(item: object) -> str:
        if isinstance(item, dict):
            return "{" + ", ".join(f"{key} = {value(entry)}" for key, entry in item.items()) + "}"
        return json.dumps(item)

    sections = {key: item for key, item in dataclasses.asdict(config).items() if item is not None}
    path = folder / "recipe.toml"
    path.write_text("".join(f"{key} = {value(item)}\n" for key, item in sections.items()))
    assert load_config(path) == load_config(path)
    return path


def test_ctrl_c_saves_a_checkpoint_and_a_second_one_does_not_wait(data, tmp_path):
    run = tmp_path / "run"
    trainer_steps = []

    class Interrupting(Trainer):
        def train_step(self):
            if self.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            trainer_steps.append(self.step)
            return super().train_step()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taae.train.Trainer", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            train(TINY, run, data)
    assert trainer_steps == [0, 1, 2]
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step-00000003"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(dataclasses.replace(TINY, num_steps=4), run, data, resume=True)
    assert [row["step"] for row in read_log(run)] == [1, 2, 3, 4]


def test_a_run_stops_writes_its_model_and_continues(data, tmp_path):
    run = tmp_path / "run"
    train(TINY, run, data, stop_after_s=0.0)
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step-00000000"]
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume"):
        train(TINY, run, data)
    train(TINY, run, data, resume=True)
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step-00000010", "step-00000012"]
    codec = taae.load(run / "model")
    assert codec.config == model_config(TINY)
    assert codec.decompress(codec.compress(0.1 * torch.randn(4000))).isfinite().all()
    assert json.loads((run / "config.json").read_text())["num_steps"] == 12


def test_resuming_says_when_the_recipe_has_changed_or_there_is_nothing_to_resume(data, tmp_path, caplog):
    config = dataclasses.replace(TINY, num_steps=2)
    train(config, tmp_path / "run", data, resume=True)
    assert "no checkpoint" in caplog.text
    caplog.clear()
    train(config, tmp_path / "run", data, resume=True)
    assert warnings_in(caplog) == ""
    train(dataclasses.replace(config, num_steps=3, muon_lr=1e-3), tmp_path / "run", data, resume=True)
    assert "changed since step 2: num_steps, muon_lr" in caplog.text


def test_the_log_holds_means(data, tmp_path):
    config = dataclasses.replace(TINY, num_steps=8, steps_per_log=4)
    rows = steps(Trainer(config, tmp_path / "run", data), 8)
    train(config, tmp_path / "run", data)
    for row, part in zip(read_log(tmp_path / "run"), (rows[:4], rows[4:]), strict=True):
        for name in ("mel", "magnitude", "wav", "norm", "lr", "codebook/entropy"):
            assert row[name] == pytest.approx(np.mean([step[name] for step in part]), rel=1e-8)


# A full disk, a damaged checkpoint


@pytest.fixture
def small_files():
    """No file can grow beyond 20 kB, as on a full disk: writing more is an OSError."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(num_bytes: int = 20_000) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_the_last_checkpoint_survives_a_full_disk(data, tmp_path, small_files):
    (tmp_path / "run").mkdir()
    trainer = Trainer(dataclasses.replace(GAN, num_checkpoints=1), tmp_path / "run", data)
    expected = steps(trainer, 2)[1:]
    del trainer

    trainer = Trainer(dataclasses.replace(GAN, num_checkpoints=1), tmp_path / "run", data)
    steps(trainer, 1)
    trainer.save()
    steps(trainer, 1)
    small_files()
    with pytest.raises(OSError, match=r"step 2 could not be written.*GB are free.*last good one is .*step-00000001"):
        trainer.save()
    small_files(10**9)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000001"]
    again = Trainer(GAN, tmp_path / "run", data)
    assert again.restore() and again.step == 1
    assert steps(again, 1) == expected
    again.save()
    assert [path.name for path in checkpoints(tmp_path / "run/checkpoints")] == ["step-00000001", "step-00000002"]


def test_a_checkpoint_that_does_not_fit_or_is_damaged_is_refused(data, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    Trainer(GAN, run, data).save()
    wider = dataclasses.replace(GAN, model=TINY_MODEL | {"ff_mult": 2})
    with pytest.raises(ValueError, match=r"step-00000000: codec/.* is \(.*\), the recipe's model has"):
        Trainer(wider, run, data).restore()
    with pytest.raises(ValueError, match="has an unknown discriminator/.*written by another recipe"):
        Trainer(dataclasses.replace(GAN, adversarial=None), run, data).restore()
    with pytest.raises(ValueError, match="lacks codec/average/model.decoder.blocks.1.1.*another recipe"):
        Trainer(dataclasses.replace(GAN, model=TINY_MODEL | {"depths": [2, 1]}), run, data).restore()
    (part,) = (run / "checkpoints/step-00000000").glob("*.distcp")
    part.write_bytes(part.read_bytes()[:5000])
    with pytest.raises(ValueError, match="step-00000000 is damaged"):
        Trainer(GAN, run, data).restore()
    (run / "checkpoints/step-00000000/.metadata").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="step-00000000 is damaged .*delete it to continue"):
        Trainer(GAN, run, data).restore()


def test_a_folder_with_a_model_that_cannot_be_continued_is_left_alone(data, tmp_path):
    (tmp_path / "run/model").mkdir(parents=True)
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"holds a model, but no checkpoint.*init = "):
            train(TINY, tmp_path / "run", data, resume=resume)


# What is not finite


def test_a_loss_that_is_not_finite_stops_the_run_and_its_batch_is_kept(data, tmp_path):
    trainer = Trainer(GAN, tmp_path / "run", data)
    expected = trainer.crops[0].batch(0)
    with torch.no_grad():
        dict(trainer.model.named_parameters())["decoder.conv_in.conv.bias"].fill_(math.nan)
    with pytest.raises(RuntimeError, match="the loss is not finite at step 0.*nan.*lower the learning rates"):
        trainer.train_step()
    (folder,) = tmp_path.glob("run/not-finite-*")
    assert folder.name == "not-finite-step-00000000-rank-0"
    np.testing.assert_array_equal(np.load(folder / "batch.npy"), expected)
    np.testing.assert_array_equal(soundfile.read(folder / "crop-001.wav", dtype="float32")[0], expected[1, 0])
    report = json.loads((folder / "report.json").read_text())
    assert report["step"] == 0 and math.isnan(report["numbers"]["discriminator"])


def test_a_gradient_that_is_not_finite_changes_nothing(data, tmp_path):
    trainer = Trainer(TINY, tmp_path / "run", data)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    handle = trainer.model.decoder.conv_out.conv.register_full_backward_hook(
        lambda module, into, out: (into[0] * math.inf,)
    )
    with pytest.raises(RuntimeError, match=r"the gradient \(norm\) is not finite at step 0"):
        trainer.train_step()
    handle.remove()
    assert all(torch.equal(new, old) for new, old in zip(trainer.model.parameters(), before, strict=True))
    assert (tmp_path / "run/not-finite-step-00000000-rank-0/batch.npy").is_file()


# Recipes


def test_the_learning_rate_warms_up_and_decays_linearly_to_zero():
    config = TrainConfig(num_steps=1000, warmup_steps=100, decay_share=0.3)
    factors = [learning_rate_factor(config, step) for step in range(1001)]
    assert factors[0] == 0.01 and factors[49] == 0.5 and factors[99:700] == [1.0] * 601
    assert factors[850] == pytest.approx(0.5) and factors[999] == pytest.approx(1 / 300) and factors[1000] == 0
    constant = TrainConfig(num_steps=10, warmup_steps=0, decay_share=0.0)
    assert {learning_rate_factor(constant, step) for step in range(10)} == {1.0}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("stepz = 3", "recipe.toml: unknown key stepz; known are .*num_steps"),
        ("[data]\nbatch = 3", r"data: unknown key batch"),
        ("[loss]\nmel = 3", r"loss: unknown key mel"),
        ("[loss]\nresolutions_per_step = 9", "resolutions_per_step must be"),
        ("[model]\nwidht = 64", r"\[model\]: unknown key widht"),
        ("[model]\nwidth = 65", "multiple of head_dim"),
        ("[ctc]\nsymbols = 'ab'", "recipe.toml: ctc: unknown key symbols"),
        ("[ctc.head]\nsymbols = 'aa'", "symbols must be different"),
        ("[adversarial]\ngama = 1.0", "recipe.toml: adversarial: unknown key gama"),
        ("[adversarial]\narchitecture = 'gan'", "gan"),
        ("[adversarial.discriminator]\nchanels = 3", "chanels"),
        ("[adversarial]\nperceptual_weight = 1.0", "perceptual_weight needs a WavLM model: set wavlm to the folder"),
        ('preset = "huge"', "no preset 'huge'"),
        ("num_steps = ", "recipe.toml: not valid TOML"),
        ('num_steps = "x"', "num_steps must be int, got 'x'"),
        ("data = 3", "data: expected a table"),
        ("adversarial = 3", "adversarial: expected a table"),
        ("steps_per_checkpoint = 0", "steps_per_checkpoint must be at least 1"),
        ("[data]\nbatch_size = 0", "batch_size and segment_s must be positive"),
        ("decay_share = 2.0", "decay_share must be in"),
        ("adam_beta2 = 1.0", r"adam_beta2 must be in \[0, 1\)"),
        ('optimizer = "lion"', "optimizer must be one of muon, adamw, sgd, got 'lion'"),
        ('strategy = "zero"', "strategy must be one of ddp, fsdp"),
        ("is_fp16 = true", "is_bf16 and is_fp16 are both true"),
    ],
)
def test_a_recipe_that_is_not_understood_is_refused(tmp_path, text, why):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ValueError, match=why):
        load_config(tmp_path / "recipe.toml")


def test_what_a_recipe_names_must_exist(data, tmp_path):
    with pytest.raises(ValueError, match=r"no recipe at .*absent.toml; those of the package are .*paper-pretrain.toml"):
        load_config(tmp_path / "absent.toml")
    missing = dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, manifest="nowhere.jsonl"))
    with pytest.raises(ValueError, match="no manifest at .*nowhere.jsonl; set TAAE_SHARED"):
        train(missing, tmp_path / "run", data)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="init = 'runs/absent': no model 'runs/absent'; give a folder"):
        Trainer(dataclasses.replace(TINY, init="runs/absent"), tmp_path / "run", data)
    with pytest.raises(ValueError, match="init = 'mini': weights do not fit the model"):
        Trainer(dataclasses.replace(TINY, init="mini"), tmp_path / "run", data)
    assert GAN.adversarial is not None
    fine = dataclasses.replace(GAN.adversarial, perceptual_weight=1.0)
    with pytest.raises(ValueError, match="no WavLM at .*wavlm"):
        Trainer(dataclasses.replace(GAN, adversarial=fine, wavlm=str(tmp_path / "wavlm")), tmp_path / "run", data)
    run = tmp_path / "run"
    run.mkdir()
    Trainer(GAN, run, data).save()
    fewer = dataclasses.replace(GAN.adversarial, discriminator={"channels": 2, "fft_sizes": [78, 126, 206]})
    with pytest.raises(ValueError, match=r"discriminator.safetensors does not fit \[adversarial\]: .*shape"):
        Trainer(dataclasses.replace(GAN, init=str(run), adversarial=fewer), tmp_path / "next", data)


def test_a_recipe_overrides_its_preset(tmp_path):
    (tmp_path / "recipe.toml").write_text(
        'preset = "mini"\nnum_steps = 7\n[data]\nbatch_size = 3\n[loss]\nfft_sizes = [256]\nnum_mels = [20]\n'
        "resolutions_per_step = 1\n[model]\ndepths = [1, 1, 3]\n[model.fsq]\ntrain_levels = [5]\n"
    )
    config = load_config(tmp_path / "recipe.toml")
    assert (config.num_steps, config.data.batch_size, config.loss.fft_sizes) == (7, 3, (256,))
    assert config.adversarial is None
    mini = load_preset("mini")
    assert model_config(config) == dataclasses.replace(
        mini, depths=(1, 1, 3), fsq=dataclasses.replace(mini.fsq, train_levels=(5,))
    )


def test_the_recipes_of_the_package_are_read():
    names = [Path(name).stem for name in recipe_names()]
    assert {
        "mini-first",
        *(f"{size}-{stage}" for size in ("paper", "small") for stage in ("pretrain", "finetune")),
    } <= set(names)
    for path in recipe_names():
        assert load_config(Path(path)).num_steps > 0


@pytest.mark.parametrize(
    ("stage", "num_steps", "weights"),
    [
        ("pretrain", 500_000, {"feature_matching": 1, "wav": 0.9999, "stft": 0.9999}),
        ("finetune", 150_000, {"feature_matching": 1, "perceptual": 1}),
        ("causal", 200_000, {"feature_matching": 1, "perceptual": 1}),
    ],
)
def test_the_paper_recipes_have_the_numbers_of_section_4_2_and_build_at_full_size(stage, num_steps, weights):
    (path,) = (Path(name) for name in recipe_names() if name.endswith(f"paper-{stage}.toml"))
    config = load_config(path)
    assert (config.num_steps, config.optimizer) == (num_steps, "adamw")
    assert (config.adamw_lr, config.discriminator_lr, config.weight_decay) == (8e-4, 8e-4, 0.01)
    assert config.data.segment_s == 5.12 and config.data.batch_size * config.micro_batches == 128
    assert (config.is_fp16, config.is_bf16) == (True, False)
    assert {learning_rate_factor(config, step) for step in (0, num_steps - 1)} == {1.0}
    assert config.adversarial is not None
    first = generator_weights(config.adversarial, 0)
    assert {name: weight for name, weight in first.items() if weight} == pytest.approx(weights)
    with torch.device("meta"):
        model, discriminator = TAAE(model_config(config)), build_adversary(config.adversarial)
        latents = model.encode_latents(torch.empty(1, 1, 81920))
        assert (latents.shape, model.decode_latents(latents).shape) == ((1, 128, 6), (1, 1, 81920))
    assert num_parameters(model) == 953_319_756 and num_parameters(discriminator) == 47_335_440
    assert discriminator.scale_names == ["78", "126", "206", "334", "542", "876", "1418", "2296"]
    assert model.config.is_causal == (stage == "causal") and model.config.fsq.train_levels == (5, 9, 17)
