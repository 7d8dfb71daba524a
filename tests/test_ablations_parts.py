"""What the ablations are made of: the recogniser of the perceptual loss, noisy and far-field speech, pictures."""

import dataclasses
import json

import jiwer
import numpy as np
import plotly.graph_objects
import pytest
import soundfile
import torch

from taae.data import DataConfig
from taae.evaluate import Clip
from taae.losses import ReconstructionLossConfig
from taae.perceptual import perceptual_loss
from taae.recogniser import Recogniser, RecogniserConfig, load_recogniser
from taae.train import TrainConfig, Trainer
from workbench import ablations, ablations_recogniser, figures_ablations, robustness, rooms

SMALL = RecogniserConfig(channels=16, dilations=(1, 2, 1), num_mels=20)


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("recogniser")
    Recogniser(SMALL).save(folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory, speech):
    folder = tmp_path_factory.mktemp("clips")
    found = []
    for index in range(3):
        path = folder / f"{index}.wav"
        soundfile.write(path, speech(3.0, seed=index), 16000)
        found.append(Clip(id=str(index), path=path, language="en", speaker=str(index), seconds=3.0))
    return found


# The recogniser


def test_a_recogniser_is_read_as_it_was_written_and_stays_frozen(recogniser, speech):
    loaded = load_recogniser(recogniser)
    assert loaded.config == SMALL and not any(value.requires_grad for value in loaded.parameters())
    wav = torch.from_numpy(speech(1.0))[None, None].requires_grad_()
    layers = loaded(wav)
    assert [layer.shape for layer in layers] == [(1, 51, 16), (1, 51, 16), (1, 25, 16)]  # 50 Hz, 50 Hz, 25 Hz
    torch.manual_seed(0)
    again = Recogniser(SMALL).eval()
    torch.testing.assert_close(again(wav)[-1], layers[-1])
    perceptual_loss([layer.detach() * 0.5 for layer in layers], layers).backward()
    assert wav.grad.isfinite().all() and wav.grad.abs().sum() > 0
    silence = torch.zeros(1, 1, 16000, requires_grad=True)
    loaded(silence)[-1].sum().backward()
    assert silence.grad.isfinite().all()


def test_a_damaged_recogniser_is_refused(tmp_path, recogniser):
    with pytest.raises(ValueError, match="no recogniser at .*absent"):
        load_recogniser(tmp_path / "absent")
    (tmp_path / "config.json").write_text((recogniser / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="no recogniser at"):
        load_recogniser(tmp_path)


def test_the_perceptual_term_is_added_with_its_weight(clips, recogniser, tmp_path):
    rows = [{"id": clip.id, "path": str(clip.path), "seconds": 3.0} for clip in clips]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = TrainConfig(
        is_bf16=False,
        data=DataConfig(manifest="manifest.jsonl", segment_s=0.64, batch_size=2),
        loss=ReconstructionLossConfig(fft_sizes=(128, 512), num_mels=(16, 40), resolutions_per_step=2),
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
    numbers = {}
    for weight in (0.0, 0.5, 1.0):
        changed = dataclasses.replace(config, recogniser=str(recogniser) if weight else "", recogniser_weight=weight)
        numbers[weight] = Trainer(changed, tmp_path / "run", tmp_path).train_step()
    assert "perceptual" not in numbers[0.0] and numbers[0.5]["mel"] == numbers[1.0]["mel"] == numbers[0.0]["mel"]
    assert numbers[1.0]["perceptual"] == pytest.approx(2 * numbers[0.5]["perceptual"], rel=1e-6)
    assert 0.3 < numbers[1.0]["perceptual"] < 3  # relative distances of untrained layers
    with pytest.raises(ValueError, match="recogniser is for runs without"):
        from taae.adversarial import AdversarialConfig

        dataclasses.replace(config, recogniser="x", recogniser_weight=1.0, adversarial=AdversarialConfig())


def test_edit_distance_is_that_of_jiwer():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = (list(rng.integers(4, size=rng.integers(1, 9))) for _ in range(2))
        words = [" ".join(map(str, numbers)) for numbers in (first, second)]
        assert ablations_recogniser.edit_distance(first, second) == round(jiwer.wer(*words) * len(first))


@pytest.mark.slow
def test_the_recogniser_learns_to_write_what_it_hears(tmp_path, monkeypatch):
    """Letters are tones of 0.15 s with pauses; utterances that were held out are read."""
    rng, time_s, rows = np.random.default_rng(0), np.arange(2400) / 16000, []
    tones = {letter: 0.2 * np.sin(2 * np.pi * hz * time_s) for letter, hz in zip("aeo", (300, 900, 2700), strict=True)}
    for index in range(96):
        text = "".join(rng.choice(list(tones), size=20))
        wav = np.concatenate([np.concatenate([tones[letter], np.zeros(800)]) for letter in text])
        soundfile.write(tmp_path / f"{index}.wav", wav, 16000)
        rows.append({"id": str(index), "path": f"{index}.wav", "seconds": len(wav) / 16000, "transcript": text})
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(ablations_recogniser, "_HELD_OUT", 16)
    monkeypatch.setattr(ablations_recogniser, "RecogniserConfig", lambda: SMALL)
    out = tmp_path / "out" / "recogniser"
    options = {"num_steps": 150, "learning_rate": 1e-2, "say": lambda _: None}
    report = ablations_recogniser.train_recogniser(tmp_path / "manifest.jsonl", out, **options)
    # Guessing gets two of three letters wrong; 150 steps of 16 channels come to a third.
    assert report["letter_error_rate"] < 0.5 and report["num_utterances"] == 80
    assert load_recogniser(out).config == SMALL


# Robustness


class Passes:
    """A codec that changes nothing."""

    name = "wire"

    def reconstruct(self, wav, bottleneck, *, sample_rate_hz):
        return wav, None


def test_a_wire_scores_like_no_codec_and_noise_lowers_stoi(clips):
    wanted = robustness.conditions(["white"], [20.0, 0.0], [0.6])
    rows = robustness.measure([(Passes(), "x")], clips, wanted)
    assert len(rows) == 8 and {row["num_clips"] for row in rows} == {3}
    for none, wire in zip(rows[::2], rows[1::2], strict=True):
        assert (none["codec"], wire["codec"]) == (robustness.NO_CODEC, "wire x")
        assert none["stoi_clean"] == wire["stoi_clean"] and wire["stoi_input"] == pytest.approx(1.0, abs=1e-6)
    clean, quiet, loud, room = (row["stoi_clean"] for row in rows[::2])
    assert clean == pytest.approx(1.0, abs=1e-6)
    assert 0.99 > quiet > loud and room < 0.95
    assert rows[2]["snr_db"] == 20.0 and rows[6]["reverberation_s"] == 0.6 and rows[6]["noise"] is None
    assert rows[4]["stoi_clean_low"] <= rows[4]["stoi_clean"] <= rows[4]["stoi_clean_high"]


def test_conditions_are_arguments_of_make_variant():
    wanted = robustness.conditions(["white", "babble"], [5.0], [0.5])
    room = rooms.Room(reverberation_s=0.5)
    assert wanted == [{}, {"noise": "white", "snr_db": 5.0}, {"noise": "babble", "snr_db": 5.0}, {"room": room}]


def test_codecs_are_named_as_people_write_them():
    codec, mode = robustness.open_codec("mini 2x5^6")
    assert (codec.name, mode) == ("mini", "2x5^6")
    with pytest.raises(ValueError, match="no model 'maxi'"):
        robustness.open_codec("maxi 2x5^6")


# Pictures


def test_pictures_show_every_seed_and_say_toy():
    stored = ablations.load()
    names = [name for name in ablations.ablations()["fsq_vs_rvq"] if stored.of(name)]
    figure = figures_ablations.toy_bars(stored, names, ("stoi", "mel_distance"))
    assert isinstance(figure, plotly.graph_objects.Figure) and figure.layout.title.text.startswith("Toy models")
    assert len(figure.data) == 2 * 2 * len(names)
    first = figure.data[0]
    assert list(first.y) == list(stored.values("base", "2x5^6", "stoi").values())
    assert figure.data[1].error_y.array[0] == pytest.approx(ablations.spread(first.y)["sd"])


def test_curves_have_intervals_over_clips(clips):
    rows = robustness.measure([], clips, robustness.conditions(["white"], [0.0, 10.0], [0.3]))
    noise, room = figures_ablations.robustness_curves(rows), figures_ablations.room_curves(rows, "input")
    assert list(noise.data[0].x) == [0.0, 10.0] and noise.data[0].error_y.arrayminus[0] >= 0
    assert list(room.data[0].x) == [0.0, 0.3] and room.data[0].y[0] == pytest.approx(1.0, abs=1e-6)
    assert robustness.table_rows(rows)[1]["condition"] == "white noise, 0 dB"
