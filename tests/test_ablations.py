"""The ablations: variants are what they say, runs resume and are not repeated, stored results fit their recipes."""

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.stats
import soundfile
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from taae import codec
from taae.config import from_dict, load_preset
from taae.data import DataConfig
from taae.fsq import quantize, quantize_hybrid
from taae.losses import ReconstructionLossConfig
from taae.recipe import model_config
from taae.rvq import RVQConfig
from taae.train import TrainConfig, Trainer
from taae.training_state import checkpoints
from workbench import ablations, ablations_run, cli, published, tables_ablations, tables_facts
from workbench.ablations import Result, Results
from workbench.verdicts import TREND

TINY = TrainConfig(
    num_steps=12,
    warmup_steps=0,
    is_bf16=False,
    adamw_lr=5e-3,
    rvq=RVQConfig(num_stages=2, codebook_size=8, commitment_weight=0.5),
    data=DataConfig(manifest="speech/train/manifest.jsonl", segment_s=0.32, batch_size=4),
    loss=ReconstructionLossConfig(fft_sizes=(128, 512), num_mels=(16, 40), resolutions_per_step=1),
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


@pytest.fixture(scope="module")
def spoken(tmp_path_factory, speech):
    """A shared folder with three recordings of 6 s, the same ones to train and to measure on."""
    root = tmp_path_factory.mktemp("shared")
    for part in ("train", "dev"):
        folder = root / "speech" / part
        folder.mkdir(parents=True)
        rows = []
        for index in range(3):
            soundfile.write(folder / f"{index}.wav", speech(6.0, seed=index), 16000)
            rows.append({"id": str(index), "path": f"{index}.wav", "seconds": 6.0, "speaker": str(index)})
            rows[-1] |= {"language": "en"}
        (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def made(values: dict[str, list[float]], metric: str = "stoi", mode: str = "2x5^6") -> Results:
    """Results with one metric: variant -> value of each seed."""
    runs = [
        Result(
            variant=name,
            seed=seed,
            num_steps=300,
            recipe_sha256="",
            num_parameters=2_000_000,
            train_cpu_s=1.0,
            losses={},
            scores={mode: {metric: value}},
            bits={mode: {"bits": 20.0}},
            latency={},
        )
        for name, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    return Results(command="", setup={"crops_per_step": 2, "segment_s": 5.12, "num_steps": 300, "clips": []}, runs=runs)


# Variants


def changes(name: str) -> dict:
    """What differs from the base, in recipe and model."""
    before, after = (ablations.recipe(variant, 1, 300) for variant in ("base", name))
    found = {}
    for first, second in ((before, after), (model_config(before), model_config(after))):
        first, second = dataclasses.asdict(first), dataclasses.asdict(second)
        first.pop("model", None), second.pop("model", None)
        found |= {key: second[key] for key in first if first[key] != second[key]}
    return found


def test_a_variant_differs_from_the_base_in_what_it_names_and_in_nothing_else():
    assert {key: value["noise_probability"] for key, value in changes("noise").items()} == {"fsq": 1.0}
    assert {key: value["noise_probability"] for key, value in changes("straight-through").items()} == {"fsq": 0.0}
    assert changes("window-64") == {"window": (31, 32)} and changes("window-256") == {"window": (127, 128)}
    assert changes("causal") == {"is_causal": True, "window": (63, 0)}
    assert set(changes("size-large")) == {"width", "depths"}
    assert set(changes("rvq")) == {"rvq"} and set(changes("rvq-wide")) == {"rvq", "latent_dim"}
    assert set(changes("rate-12")) == {"strides", "depths", "latent_dim", "fsq"}
    assert set(changes("perceptual")) - set(changes("continued")) == {"recogniser", "recogniser_weight"}
    assert changes("perceptual").items() >= changes("continued").items()


def test_the_base_is_the_papers_bottleneck_window_and_rate():
    base, paper = model_config(ablations.recipe("base", 0, 300)), load_preset("paper-950m")
    for key in ("window", "latent_dim", "fsq", "frame_rate_hz", "patch_samples", "is_causal"):
        assert getattr(base, key) == getattr(paper, key)
    assert model_config(ablations.recipe("rate-12", 0, 300)).frame_rate_hz == load_preset("paper-12hz").frame_rate_hz
    crop_frames = ablations.recipe("base", 0, 300).data.segment_s * base.sample_rate_hz / base.patch_samples
    assert crop_frames == 256  # at 50 Hz, so that 64, 128 and 256 keys all differ in training


def test_rvq_has_as_many_bits_as_fsq_at_700():
    for name in ("rvq", "rvq-wide"):
        config = ablations.recipe(name, 0, 300)
        assert config.rvq.build(model_config(config).latent_dim).bits_per_second(25.0) == 700


@pytest.mark.parametrize("levels", [5, 9, 17])
def test_the_four_ways_to_train_fsq_are_what_their_names_say(levels):
    latents = torch.randn(64, 5, 6, generator=torch.Generator().manual_seed(0))
    codes = {}
    for name in ablations.ablations()["fsq_training"]:
        fsq = model_config(ablations.recipe(name, 0, 300)).fsq
        options = {"noise_probability": fsq.noise_probability, "noise_mode": fsq.noise_mode}
        codes[name] = quantize_hybrid(latents, levels, generator=torch.Generator().manual_seed(1), **options)
    torch.testing.assert_close(codes["straight-through"], quantize(latents, levels))
    torch.testing.assert_close(codes["no-emulation"], latents.tanh())
    errors = (codes["noise"] - latents.tanh()) * (levels - 1)  # uniform in [-1, 1]: half a step
    assert errors.abs().max() <= 1.0001
    assert scipy.stats.kstest(errors.flatten().numpy(), scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3
    is_rounded = (codes["base"] - quantize(latents, levels)).abs().amax(dim=(1, 2)) < 1e-5
    assert 20 <= int(is_rounded.sum()) <= 44  # of 64 items, half


def test_names_are_chosen_with_what_they_start_from():
    assert ablations.choose(["perceptual_loss"]) == ["base", "continued", "perceptual"]
    assert ablations.choose(["noise", "window"]) == ["base", "noise", "window-64", "window-256"]
    assert set(ablations.choose([])) == set(ablations.variants())
    with pytest.raises(ValueError, match="no ablation 'windows'; there are floor, fsq_vs_rvq"):
        ablations.choose(["windows"])


def test_a_recipe_is_known_by_its_content_and_not_by_its_folder(tmp_path):
    first = ablations.recipe_sha256("continued", 0, 300)
    assert ablations.recipe("continued", 0, 300, tmp_path).init == str(tmp_path / "base-300-seed0")
    others = {ablations.recipe_sha256(*key) for key in (("continued", 1, 300), ("continued", 0, 301), ("base", 0, 300))}
    assert len(others | {first}) == 4 and ablations.recipe_sha256("continued", 0, 300) == first


# An RVQ in the trainer


def test_an_rvq_learns_beside_the_autoencoder_and_resumes_to_the_bit(spoken, tmp_path, caplog):
    whole = Trainer(TINY, tmp_path / "whole", spoken)
    before = whole.rvq.stages[0].codebook.clone()
    rows = [whole.train_step() for _ in range(8)]
    assert all(row["commitment"] > 0 and "codebook/entropy" not in row for row in rows)
    assert not torch.equal(whole.rvq.stages[0].codebook, before)

    (tmp_path / "part").mkdir()
    part = Trainer(TINY, tmp_path / "part", spoken)
    [part.train_step() for _ in range(3)]
    part.save()
    again = Trainer(TINY, tmp_path / "part", spoken)
    assert again.restore() and [again.train_step() for _ in range(5)] == rows[3:]
    for name, value in whole.rvq.state_dict().items():
        assert torch.equal(value, again.rvq.state_dict()[name]), name
    again.save()
    stored = load_file(tmp_path / "part" / "rvq.safetensors")
    assert torch.equal(stored["stages.1.codebook"], whole.rvq.stages[1].codebook)
    codec.load(tmp_path / "part" / "model")
    assert "was trained with an RVQ, whose rvq.safetensors is not read" in caplog.text


def test_the_gradient_of_the_decoder_passes_the_rvq(spoken, tmp_path):
    trainer = Trainer(dataclasses.replace(TINY, rvq=RVQConfig(commitment_weight=0.0)), tmp_path, spoken)
    wav = torch.from_numpy(trainer.crops[0].batch(0))
    reconstructed = trainer.codec.wrapped(wav, 5, torch.Generator())
    assert float(reconstructed.rvq_loss.detach()) == 0 and reconstructed.decoded.shape == wav.shape
    reconstructed.decoded.square().sum().backward()
    assert trainer.model.encoder.conv_in.conv.bias.grad.abs().sum() > 0


def test_an_impossible_rvq_is_refused():
    with pytest.raises(ValueError, match="num_stages and codebook_size must be at least 1"):
        RVQConfig(num_stages=0)
    with pytest.raises(ValueError, match="recogniser and recogniser_weight go together"):
        TrainConfig(recogniser="runs/recogniser")


# Running


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_ablation_runs_resumes_and_is_not_repeated(spoken, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    said: list[str] = []
    options = {"seeds": 1, "num_steps": 4, "shared": spoken, "num_clips": 1, "say": said.append}
    whole = ablations_run.ablate(["rvq", "continued"], out=tmp_path / "a", results=tmp_path / "a.json", **options)
    assert [run.variant for run in whole.runs] == ["base", "rvq", "continued"]
    assert [run.num_steps for run in whole.runs] == [4, 4, 2]
    assert said[0].startswith("3 runs, 3 to train: about") and len(said) == 4

    # The same, cut off in its third step; then once more without time, and at last to its end.
    def cut_off(trainer: Trainer) -> dict[str, float]:
        if trainer.step == 2:
            trainer.save()
            raise RuntimeError("power cut")
        return train_step(trainer)

    train_step = Trainer.train_step
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", cut_off)
        with pytest.raises(RuntimeError, match="power cut"):
            ablations_run.ablate(["rvq"], out=tmp_path / "b", results=tmp_path / "b.json", **options)
    late = ablations_run.ablate(["rvq"], out=tmp_path / "b", results=tmp_path / "b.json", limit_s=0, **options)
    assert late.runs == () and said[-1] == "the time is over; 1 runs are left for another call"
    assert [path.name for path in checkpoints(tmp_path / "b" / "rvq-4-seed0" / "checkpoints")] == ["step-00000002"]
    done = ablations_run.ablate(["rvq"], out=tmp_path / "b", results=tmp_path / "b.json", **options)
    weights = [tmp_path / name / "rvq-4-seed0" / "model" / "model.safetensors" for name in "ab"]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert done.runs[0].scores["rvq"] == pytest.approx(whole.of("rvq")[0].scores["rvq"], rel=1e-9, abs=1e-12)

    monkeypatch.setattr(ablations_run, "_train_and_measure", lambda *args: pytest.fail("trained again"))
    again = ablations_run.ablate(["rvq", "continued"], out=tmp_path / "a", results=tmp_path / "c.json", **options)
    assert again == whole and (tmp_path / "c.json").read_text() == (tmp_path / "a.json").read_text()
    assert ablations.load(tmp_path / "a.json").values("rvq", "rvq", "stoi")[0] == pytest.approx(
        whole.runs[1].scores["rvq"]["stoi"], rel=1e-5
    )
    with pytest.raises(ValueError, match="holds a run of another recipe or on other data"):
        ablations_run.ablate(["rvq"], out=tmp_path / "a", results=tmp_path / "d.json", **(options | {"num_clips": 2}))


def test_without_speech_nothing_starts(tmp_path):
    with pytest.raises(ValueError, match="need speech/train/manifest.jsonl below the shared folder; set TAAE_SHARED"):
        ablations_run.ablate(shared=tmp_path, out=tmp_path / "out", results=tmp_path / "r.json")


def test_the_command_lists_the_ablations():
    answer = CliRunner().invoke(cli.app, ["ablate", "--list"])
    assert answer.exit_code == 0
    assert "window            window-64 (64 keys), base (" in answer.output


def test_latency_counts_what_is_ahead():
    import taae
    from taae.checkpoint import random_model
    from taae.codec import Codec

    tiny = {"width": 32, "head_dim": 16, "rope_dims": 8, "patch_samples": 320, "strides": [1, 2], "depths": [1, 1]}
    for window, is_causal, frames in (((7, 0), True, 1), ((7, 8), False, 2 * (8 * 1.5 + 12) + 1)):
        values = load_preset("mini").as_dict() | tiny | {"window": window, "is_causal": is_causal}
        found = ablations_run.latency(Codec(*random_model(from_dict(values))), seconds=1, repeats=1)
        assert found["lookahead_s"] == pytest.approx(frames / 25) and found["cpu_s_per_s"] > 0
    assert taae.load("mini").frame_rate_hz == 25


def test_use_of_a_quantiser_is_counted_in_bits():
    even = np.stack([np.arange(500) % 5, np.arange(500) // 5 % 5], axis=1)
    found = ablations_run.quantiser_use(even, 5)
    assert found["bits"] == pytest.approx(2 * math.log2(5)) and found["bits_share"] == pytest.approx(1)
    assert found["used_share"] == 1 and found["num_frames"] == 500
    half = ablations_run.quantiser_use(np.array([[0], [1]] * 10), 4)
    assert half["bits"] == pytest.approx(1) and half["capacity"] == 2 and half["used_share"] == 0.5


# Results


def test_differences_are_those_of_a_paired_t_test():
    results = made({"base": [0.50, 0.55, 0.53], "noise": [0.52, 0.56, 0.56]})
    found = ablations.difference(results, "noise", "base", ("2x5^6", "2x5^6"), "stoi")
    interval = scipy.stats.ttest_rel([0.52, 0.56, 0.56], [0.50, 0.55, 0.53]).confidence_interval()
    assert found["mean"] == pytest.approx(0.02) and found["num_seeds"] == 3
    assert found["mean"] + found["half_width"] == pytest.approx(interval.high)
    one = ablations.difference(made({"base": [0.5], "noise": [0.6]}), "noise", "base", ("2x5^6",) * 2, "stoi")
    assert one["half_width"] == math.inf
    assert ablations.spread([1.0, 3.0]) == {"mean": 2.0, "sd": pytest.approx(math.sqrt(2)), "num_seeds": 2}


def test_toy_rows_are_judged_by_their_order_and_say_that_they_are_toys():
    ordered = made({"size-small": [0.50, 0.52], "base": [0.55, 0.57], "size-large": [0.60, 0.62]})
    cells = {cell.id: cell for cell in tables_facts.table04(ordered).cells}
    stoi = [cells[f"table04/{size}/stoi"] for size in ("240m", "540m", "950m")]
    assert [cell.verdict for cell in stoi] == [TREND] * 3
    assert [cell.ours for cell in stoi] == pytest.approx([0.51, 0.56, 0.61])
    assert all("toy model (2.0M parameters, 300 steps): mean of 2 seeds" in cell.reason for cell in stoi)
    turned = made({"size-small": [0.60], "base": [0.55], "size-large": [0.5]})
    outcome = tables_facts.table04(turned)
    assert [c.verdict for c in outcome.cells if c.column == "STOI"] == ["differs"] * 3
    assert outcome.notes[0].startswith("Toy models, not the paper's: small 2.0M")
    close = made({"size-small": [0.50, 0.60], "base": [0.54, 0.58], "size-large": [0.60, 0.62]})
    reasons = [c.reason for c in tables_facts.table04(close).cells if c.column == "STOI" and c.row == "240M"]
    assert "within the spread of seeds" in reasons[0]


def test_a_metric_that_prefers_noise_orders_nothing():
    values = {"size-small": [0.8], "base": [0.9], "size-large": [1.0], "untrained": [1.3]}
    cells = [c for c in tables_facts.table04(made(values, "pesq_raw_nb")).cells if c.column == "PESQ"]
    assert {cell.verdict for cell in cells} == {"not run"}
    assert cells[0].reason.startswith("PESQ gives this toy model 0.80 and an untrained one 1.30")
    fine = tables_facts.table04(made(values | {"untrained": [0.1]}, "pesq_raw_nb"))
    assert [c.verdict for c in fine.cells if c.column == "PESQ"] == [TREND] * 3
    phase = tables_facts.table04(made({name: [-40.0] for name in values}, "si_sdr"))
    assert "losses leave phase free" in next(c.reason for c in phase.cells if c.column == "SI-SDR")


def test_rows_that_are_not_trained_say_how_to_train_them():
    cells = tables_ablations.toy_cells("table05", tables_ablations.RATES, made({"base": [0.5]}))
    missing = [cell for cell in cells if cell.row == "12.5 Hz 4x8" and cell.column == "STOI"]
    assert missing[0].ours is None and missing[0].reason.endswith("python -m workbench ablate rate-12")


def test_every_variant_of_the_tables_is_one_and_has_its_bottleneck():
    for rows in (
        tables_ablations.SIZES,
        tables_ablations.PERCEPTUAL,
        tables_ablations.RATES,
        tables_ablations.CAUSAL,
    ):
        for name, mode in rows.values():
            assert mode in ablations.variants()[name].bottlenecks
    for table, rows in (("table03", tables_ablations.PERCEPTUAL), ("table05", tables_ablations.RATES)):
        assert set(rows) == set(published.table(table).rows)


def test_the_stored_results_fit_the_recipes_and_the_command_that_made_them():
    stored = ablations.load()
    data = json.loads(ablations.RESULTS.read_text())
    words = stored.command.split()
    assert words[:4] == ["python", "-m", "workbench", "ablate"]
    seeds, steps = (int(words[words.index(f"--{key}") + 1]) for key in ("seeds", "steps"))
    assert steps == stored.setup["num_steps"]
    keys = [(run.variant, run.seed) for run in stored.runs]
    assert len(set(keys)) == len(keys) and {seed for _, seed in keys} <= set(range(seeds))
    for run in stored.runs:
        assert run.recipe_sha256 == ablations.recipe_sha256(run.variant, run.seed, steps), run.variant
        assert run.num_steps == ablations.recipe(run.variant, run.seed, steps).num_steps
    summary = stored.summary()
    assert data["summary"].keys() == summary.keys()
    for name, modes in summary.items():
        for mode, metrics in modes.items():
            for metric, about in metrics.items():  # of runs that were rounded to six digits
                assert data["summary"][name][mode][metric] == pytest.approx(about, rel=1e-3, abs=1e-3), (name, metric)
    of_base = stored.of("base")
    assert all(0.5 < run.scores["2x5^6"]["stoi"] < 0.8 for run in of_base) and of_base  # random weights: 0.3 to 0.4


def test_the_stored_results_were_made_with_the_speech_that_is_here(shared):
    import hashlib

    manifest = shared / ablations.TRAIN
    if not manifest.is_file():
        pytest.skip(f"needs {manifest}")
    setup = ablations.load().setup
    assert hashlib.sha256(manifest.read_bytes()).hexdigest() == setup["train_sha256"]
    clips = ablations_run.development_clips(shared, len(setup["clips"]))
    assert [clip.id for clip in clips] == setup["clips"] and len({clip.speaker for clip in clips}) > 8
