"""Trained weights in another model: what it codes and how it sounds stays as near as its shape allows."""

import dataclasses

import pytest
import torch

from taae import transplant
from taae.checkpoint import random_model
from taae.config import FSQConfig, ModelConfig
from taae.fsq import quantize
from taae.model import TAAE, ConvTransposed
from taae.transplant import grow, grown_config, make_causal
from workbench.bias import speech_clips

TINY = ModelConfig(
    name="tiny",
    patch_samples=40,
    width=32,
    head_dim=16,
    rope_dims=8,
    depths=(1, 2),
    window=(3, 4),
    layer_scale_init=0.5,
)


@pytest.fixture(scope="module")
def speech():
    clips = [torch.from_numpy(clip[:32000]).float() for clip in speech_clips()[:4]]
    return torch.stack(clips)[:, None]


def model_with_taps(taps):
    """Random but for the convolutions at the patches, whose taps are scaled."""
    model = random_model(TINY, seed=3)[0]
    with torch.no_grad():
        for conv in (model.encoder.conv_in.conv, model.decoder.conv_out.conv):
            conv.weight.mul_(torch.tensor(taps))
    return model


def changes(model, grown, wav):
    """Shares of the variance of latents and of the decoded energy that differ."""
    with torch.no_grad():
        latents, grown_latents = model.encode_latents(wav), grown.encode_latents(wav)
        codes = quantize(latents, 17)
        before, after = model.decode_latents(codes), grown.decode_latents(codes)
    return (
        float((grown_latents - latents).square().mean() / latents.var()),
        float((after - before).square().sum() / before.square().sum()),
    )


def test_where_the_old_taps_fit_nothing_changes(speech, monkeypatch):
    monkeypatch.setattr(transplant, "_NEW_SCALE", 0.0)
    model = model_with_taps([0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    grown = grow(model, speech)
    assert grown.config == grown_config(TINY)
    assert (grown.config.patch_samples, grown.config.strides, grown.config.depths) == (20, (1, 2, 2), (1, 1, 2))
    assert grown.config.hop_samples == TINY.hop_samples
    of_latents, of_sound = changes(model, grown, speech)
    assert of_latents < 1e-3 and of_sound < 1e-3, "what is left is the noise on the frames between"


def test_least_squares_make_up_for_taps_that_no_longer_fit(speech, monkeypatch):
    model = model_with_taps([0.1, 0.3, 0.6, 1.0, 0.6, 0.3, 0.1])
    fitted = changes(model, grow(model, speech), speech)
    monkeypatch.setattr(transplant, "_RIDGE", 1e9)  # nothing but the taps that are left
    cut = changes(model, grow(model, speech), speech)
    assert fitted[0] < cut[0] < 0.5 and fitted[1] < 0.8 * cut[1] < 0.5


def test_growing_is_repeatable_and_leaves_the_model_alone(speech):
    model = model_with_taps([0.1, 0.3, 0.6, 1.0, 0.6, 0.3, 0.1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    first = grow(model, speech).state_dict()
    torch.manual_seed(2)
    second = grow(model, speech).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_causal": True, "window": (7, 0)}, "a causal model cannot grow"),
        ({"strides": (2, 2)}, r"first stride is 1 can grow, got strides \(2, 2\)"),
        ({"patch_samples": 35}, "a patch of 35 samples has no half"),
    ],
)
def test_what_cannot_grow_is_refused(speech, change, message):
    model = random_model(dataclasses.replace(TINY, **change))[0]
    with pytest.raises(ValueError, match=message):
        grow(model, speech)


def causal_config(config):
    return dataclasses.replace(config, is_causal=True, window=(7, 0))


def without_future(model):
    """`model` with zeros for all that looks ahead, but for its padding."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, ConvTransposed):
                module.conv.weight[..., : module.skip] = 0
            elif hasattr(module, "padding") and hasattr(module, "conv"):
                ahead = module.conv.kernel_size[0] - module.conv.stride[0] - module.padding[0]
                module.conv.weight[..., module.conv.kernel_size[0] - ahead :] = 0
    return model


@pytest.mark.parametrize("strides", [(1, 2), (2, 3), (1, 4)])
def test_what_does_not_look_ahead_is_causal_without_a_change(speech, strides):
    config = dataclasses.replace(TINY, strides=strides, window=(7, 0), fsq=FSQConfig(train_levels=(9999,)))
    model = without_future(random_model(config, seed=5)[0])
    wav = speech[..., : 12 * config.hop_samples]
    of_latents, of_sound = changes(model, make_causal(model, causal_config(config), speech), wav)
    assert of_latents < 1e-6 and of_sound < 1e-6


def test_the_past_says_more_than_the_same_filters_late(speech):
    model = model_with_taps([0.1, 0.3, 0.6, 1.0, 0.6, 0.3, 0.1])
    late = TAAE(causal_config(TINY), is_fused=True)
    late.load_state_dict(model.state_dict())
    fitted = make_causal(model, causal_config(TINY), speech)
    assert fitted.config.is_causal and fitted.config.window == (7, 0)
    of_fitted, of_late = changes(model, fitted, speech), changes(model, late, speech)
    assert of_fitted[0] < 0.7 * of_late[0] and of_fitted[1] < 0.7 * of_late[1]

    changed = speech.clone()
    changed[..., 16000:] = 0
    with torch.no_grad():
        latents, others = fitted.encode_latents(speech), fitted.encode_latents(changed)
    assert torch.equal(latents[:, :200], others[:, :200]) and not torch.equal(latents, others)


def test_only_a_model_that_is_not_causal_is_made_causal(speech):
    model = random_model(TINY)[0]
    with pytest.raises(ValueError, match="takes a model that is not causal and a configuration that is"):
        make_causal(model, TINY, speech)
    with pytest.raises(ValueError, match="takes a model that is not causal and a configuration that is"):
        make_causal(random_model(causal_config(TINY))[0], causal_config(TINY), speech)
    with pytest.raises(ValueError, match="weights do not fit the model"):
        make_causal(model, dataclasses.replace(causal_config(TINY), width=64), speech)
