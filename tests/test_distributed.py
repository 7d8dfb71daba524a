"""Several processes train as one does, and read each other's checkpoints. Two processes on the CPU, over gloo."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from torch import nn

from taae.adversarial import AdversarialConfig
from taae.checkpoint import fused_state, load_model
from taae.data import DataConfig
from taae.distributed import ALONE, World, distribute, frozen, open_world, whole
from taae.losses import ReconstructionLossConfig
from taae.monitor import read_log
from taae.rvq import RVQConfig
from taae.train import TrainConfig, Trainer, train
from taae.training_state import checkpoints

# With SGD: Adam turns the rounding noise of a gradient that is almost 0 into a whole step.
SGD = TrainConfig(
    num_steps=4,
    warmup_steps=0,
    decay_share=0.0,
    optimizer="sgd",
    adamw_lr=0.3,
    discriminator_lr=0.3,
    is_bf16=False,
    micro_batches=4,
    steps_per_log=1,
    steps_per_checkpoint=2,
    steps_per_sample=3,
    data=DataConfig(manifest="manifest.jsonl", segment_s=0.16, batch_size=1),
    loss=ReconstructionLossConfig(fft_sizes=(128,), num_mels=(16,), resolutions_per_step=1),
    adversarial=AdversarialConfig(
        discriminator={"channels": 4, "fft_sizes": [78, 126], "is_frequency_strided": True}, scales_per_step=1
    ),
    model={
        "width": 32,
        "head_dim": 16,
        "rope_dims": 8,
        "strides": [1, 2],
        "depths": [1, 1],
        "window": [7, 8],
        "patch_samples": 80,
    },
)
ADAMW = dataclasses.replace(
    SGD, optimizer="adamw", adamw_lr=1e-3, discriminator_lr=1e-3, strategy="fsdp", micro_batches=2
)
MUON_FP16 = dataclasses.replace(ADAMW, optimizer="muon", is_fp16=True, num_steps=2)

RVQ = dataclasses.replace(SGD, adversarial=None, rvq=RVQConfig(num_stages=2, codebook_size=8))

# Each of the two processes runs this: one import of torch for all that they have to show.
WORKER = """
import dataclasses, json, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_distributed import ADAMW, MUON_FP16, RVQ, SGD
from taae.distributed import open_world, whole
from taae.train import Trainer, train

data, out = Path(sys.argv[1]), Path(sys.argv[2])
with open_world("cpu") as world:
    assert world.size == 2 and world.any(world.rank == 1) and not world.any(False)
    assert world.mean({"rank": float(world.rank)}) == {"rank": 0.5}
    train(SGD, out / "ddp", data, world=world)
    train(dataclasses.replace(ADAMW, num_steps=2), out / "fsdp", data, world=world)
    train(ADAMW, out / "fsdp", data, resume=True, world=world)
    train(MUON_FP16, out / "muon", data, world=world)
    trainer = Trainer(ADAMW, out / "sharded", data, world)
    shares = [parameter.to_local().numel() for parameter in trainer.model.parameters()]
    (out / f"shares-{world.rank}").write_text(str(sum(shares)))
    for strategy in ("ddp", "fsdp"):
        trainer = Trainer(dataclasses.replace(RVQ, strategy=strategy), out / "rvq", data, world)
        states = []
        for _ in range(2):
            state = trainer._state()
            states.append({name: whole(value).clone() for name, value in state.items()})
            trainer.train_step()
        torch.save(states, out / f"rvq-{strategy}-{world.rank}")
    try:
        Trainer(dataclasses.replace(SGD, micro_batches=3), out / "odd", data, world)
    except ValueError as error:
        (out / f"refused-{world.rank}").write_text(str(error))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory, speech):
    folder = tmp_path_factory.mktemp("speech")
    rows = []
    for index in range(3):
        soundfile.write(folder / f"{index}.wav", speech(2.0, seed=index), 16000)
        rows.append({"id": str(index), "path": f"{index}.wav", "seconds": 2.0})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def two_processes(data, tmp_path_factory) -> Path:
    """Folder of the runs of WORKER, started with the variables that torchrun sets."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", WORKER, str(data), str(out), str(Path(__file__).parent)]
    processes = []
    for rank in ("0", "1"):
        environment = os.environ | variables | {"RANK": rank, "LOCAL_RANK": rank}
        with (out / f"log-{rank}").open("w") as log:
            processes.append(subprocess.Popen(arguments, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        for process in processes:
            process.wait(timeout=280)
    finally:
        for process in processes:
            process.kill()
    for rank, process in enumerate(processes):
        assert process.returncode == 0, (out / f"log-{rank}").read_text()[-3000:]
    return out


def state_of(config: TrainConfig, run: Path, data: Path) -> dict[str, torch.Tensor]:
    """All that the last checkpoint of a run holds, read by one process."""
    trainer = Trainer(config, run, data)
    assert trainer.restore() and trainer.step == config.num_steps
    return trainer._state()


@pytest.mark.slow
def test_two_processes_with_ddp_equal_one(data, tmp_path, two_processes):
    train(SGD, tmp_path / "one", data)
    one, two = (state_of(SGD, run, data) for run in (tmp_path / "one", two_processes / "ddp"))
    assert one.keys() == two.keys()
    start = Trainer(SGD, tmp_path / "start", data)._state()
    for name in one:
        if "weights" in name:
            # Sums of four gradients in another order: float32 noise of updates that are up to 0.3 in norm.
            torch.testing.assert_close(two[name], one[name], rtol=0, atol=2e-6)
    assert max(float((one[name] - start[name]).abs().max()) for name in one if "weights" in name) > 1e-3
    rows, others = read_log(two_processes / "ddp"), read_log(tmp_path / "one")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()  # scales drawn at random are the same on both
        for name in row.keys() - {"audio_per_s", "elapsed_s"}:
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_an_rvq_is_the_same_in_every_process(two_processes, strategy):
    (start, state), (other_start, other) = (torch.load(two_processes / f"rvq-{strategy}-{rank}") for rank in (0, 1))
    names = [name for name in state if "codebook" in name]
    assert len(names) >= 2 and state.keys() == other.keys()
    for name in state:
        assert torch.equal(start[name], other_start[name]) and torch.equal(state[name], other[name]), name
    assert all(not torch.equal(start[name], state[name]) for name in names)


@pytest.mark.slow
def test_fsdp_on_two_processes_trains_saves_and_reloads(data, tmp_path, two_processes):
    train(ADAMW, tmp_path / "one", data)
    rows, others = read_log(two_processes / "fsdp"), read_log(tmp_path / "one")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]  # steps 3 and 4 after a restart
    for row, other in zip(rows, others, strict=True):
        for name in ("feature_matching", "wav", "stft", "discriminator", "norm", "discriminator_norm", "norm/encoder"):
            assert row[name] == pytest.approx(other[name], rel=2e-3), (row["step"], name)  # Adam magnifies noise
    shares = [int((two_processes / f"shares-{rank}").read_text()) for rank in (0, 1)]
    total = sum(parameter.numel() for parameter in Trainer(ADAMW, tmp_path, data).model.parameters())
    assert sum(shares) == total and max(shares) < 0.6 * total


@pytest.mark.slow
def test_one_process_continues_what_two_began(data, tmp_path, two_processes):
    shutil.copytree(two_processes / "fsdp", tmp_path / "run")
    longer = dataclasses.replace(ADAMW, num_steps=5, strategy="ddp")
    train(longer, tmp_path / "run", data, resume=True)
    train(longer, tmp_path / "one", data)
    last, expected = (read_log(tmp_path / name)[-1] for name in ("run", "one"))
    assert last["step"] == 5
    for name in ("feature_matching", "stft", "discriminator", "norm"):
        assert last[name] == pytest.approx(expected[name], rel=5e-3)
    assert [path.name for path in checkpoints(tmp_path / "run/checkpoints")] == ["step-00000004", "step-00000005"]


@pytest.mark.slow
def test_models_saved_by_two_processes_are_whole(data, two_processes):
    for name, config in (("ddp", SGD), ("fsdp", ADAMW), ("muon", MUON_FP16)):
        trainer = Trainer(config, two_processes / name, data)
        assert trainer.restore()
        saved, expected = (
            fused_state(model) for model in (load_model(two_processes / name / "model")[0], trainer.averaged_model())
        )
        assert saved.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(saved[key], expected[key])
    row = read_log(two_processes / "muon")[-1]
    assert row.get("skipped", 0) == 0 and 0 < row["norm"] < 1e3  # the loss scale is taken out again


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(two_processes):
    for rank in (0, 1):
        text = (two_processes / f"refused-{rank}").read_text()
        assert "micro_batches is 3, which 2 processes cannot share" in text and "multiple of 2" in text


def test_alone_there_is_nothing_to_share():
    module = nn.Linear(2, 2)
    assert distribute(module, ALONE, "fsdp", has_idle_parameters=False) is module
    assert ALONE.any(True) and not ALONE.any(False) and ALONE.mean({"a": 2.0}) == {"a": 2.0}
    with open_world("cpu") as world:
        assert world == World(0, 1, torch.device("cpu")) and world.is_main
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda, got 'tpu'"), open_world("tpu"):
        pass
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda was asked for, but torch finds none"), open_world("cuda"):
            pass


def test_gradients_flow_through_what_is_frozen_and_not_into_it():
    layer, value = nn.Linear(3, 1), torch.randn(2, 3, requires_grad=True)
    layer.bias.requires_grad_(False)
    with frozen(layer):
        output = layer(value).sum()
    output.backward()
    assert layer.weight.grad is None and value.grad is not None
    torch.testing.assert_close(value.grad, layer.weight.detach().expand(2, 3))
    assert layer.weight.requires_grad and not layer.bias.requires_grad
    assert not whole(layer.weight).requires_grad


@pytest.mark.gpu
def test_a_gpu_trains_as_the_cpu_does(data, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    train(SGD, tmp_path / "cpu", data)
    with open_world("cuda") as world:
        train(dataclasses.replace(SGD, optimizer="sgd"), tmp_path / "gpu", data, world=world)
    rows, others = (read_log(tmp_path / name) for name in ("gpu", "cpu"))
    for name in ("discriminator", "norm/encoder"):
        assert rows[0][name] == pytest.approx(others[0][name], rel=0.2)  # other noise is drawn on a GPU
