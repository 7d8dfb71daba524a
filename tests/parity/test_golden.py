"""What the published code computed from random weights of ours: latents, audio, tokens, operations, gradients."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from taae.attention import rotary_angles, rotate
from taae.codec import Codec, load_official
from taae.config import BottleneckSpec
from taae.fsq import quantize, tokenize
from taae.model import TAAE
from taae.official import read_official_config

SPEC = "1x17^6"


class Golden:
    """The folder `golden/tiny`: 0.47 million parameters, patch 40, window (7, 8)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config_path, self.weights_path = folder / "config.json", folder / "state_dict.safetensors"
        self.codec: Codec = load_official(self.config_path, self.weights_path)
        self.activations = dict(np.load(folder / "activations.npz"))

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.load(self.folder / f"{name}.npy"))


@pytest.fixture(scope="module")
def golden(shared) -> Golden:
    folder = shared / "reference" / "golden" / "tiny"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    return Golden(folder)


def assert_near(ours: torch.Tensor, published: torch.Tensor, atol: float = 2e-5) -> None:
    """float32 through four layers; 1e-4 is asked for."""
    torch.testing.assert_close(ours.detach(), published, rtol=0, atol=atol)


def test_the_configuration_is_read_as_written(golden):
    config = golden.codec.config
    assert (config.patch_samples, config.width, config.head_dim, config.rope_dims) == (40, 64, 32, 16)
    assert (config.strides, config.depths, config.window, config.latent_dim) == ((1, 2), (1, 2), (7, 8), 6)
    assert (config.fsq.train_levels, config.fsq.noise_probability, config.fsq.noise_mode) == ((17,), 0.5, "published")
    assert golden.codec.hop_samples == 80


def test_latents_are_those_of_the_published_code(golden):
    assert_near(golden.codec.model.encode_latents(golden["input"]), golden["latents"].transpose(1, 2))


def test_tokens_are_those_of_the_published_code_wherever_rounding_is_clear(golden):
    tokens, published = golden.codec.encode(golden["input"], SPEC), golden["tokens"]
    is_clear = (golden["margin"] > 1e-3).all(dim=1)
    assert is_clear.float().mean() > 0.9
    assert torch.equal(tokens[is_clear], published[is_clear])
    assert torch.equal(tokens, published)  # and here everywhere


def test_audio_is_that_of_the_published_code(golden):
    assert_near(golden.codec.model.decode_latents(golden["quantized"].transpose(1, 2)), golden["output"])
    assert_near(golden.codec.decode(golden["tokens"], SPEC), golden["output"])


def test_continuous_audio_is_that_of_the_published_code(golden):
    codes = torch.tanh(golden["latents"].transpose(1, 2))
    assert_near(golden.codec.model.decode_latents(codes), golden["output_continuous"])


def test_a_length_that_is_no_multiple_of_the_hop_is_padded_as_published(golden):
    wav = golden["input_odd"][None]
    assert wav.shape[-1] % golden.codec.hop_samples
    assert_near(
        golden.codec.model.encode_latents(wav), golden["latents_odd"].transpose(1, 2), 4e-5
    )  # latents reach 3.9
    tokens = golden.codec.encode(wav, SPEC)
    assert torch.equal(tokens, golden["tokens_odd"])
    assert_near(golden.codec.decode(tokens, SPEC), golden["output_odd"])


def test_the_window_is_not_dropped_as_in_the_published_code_without_flash_attention(golden):
    latents = golden.codec.model.encode_latents(golden["input"])
    dropped = golden["latents_window_dropped"].transpose(1, 2)
    assert (latents - dropped).norm() / latents.norm() > 0.2
    decoded = golden.codec.model.decode_latents(golden["quantized"].transpose(1, 2))
    assert (decoded - golden["output_window_dropped"]).norm() / decoded.norm() > 0.2


@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_every_backend_gives_the_published_numbers(golden, backend):
    model = load_official(golden.config_path, golden.weights_path).model
    model.backend = backend
    assert_near(model.encode_latents(golden["input"]), golden["latents"].transpose(1, 2))
    assert_near(model.decode_latents(golden["quantized"].transpose(1, 2)), golden["output"])


def test_every_operation_gives_the_published_activation(golden):
    model, ours = golden.codec.model, {}

    def keep(name, module, transposed=False):
        def hook(_module, _inputs, output):
            ours[name] = output.transpose(1, 2) if transposed else output

        return module.register_forward_hook(hook)

    encoder, decoder = model.encoder, model.decoder
    layer = encoder.blocks[0][0]
    hooks = [
        keep("encoder.layers.0", encoder.conv_in, True),
        keep("enc0.pre_norm", layer.attention_norm),
        keep("enc0.to_qkv", layer.attention.to_qkv),
        keep("enc0.self_attn", layer.attention.to_out),
        keep("enc0.ff", layer.mlp),
        keep("enc0.out", layer),
        keep("encoder.layers.1", encoder.blocks[0], True),
        keep("enc.down", encoder.downsample[1], True),
        keep("encoder.layers.2", encoder.blocks[1], True),
        keep("decoder.layers.0", decoder.conv_in, True),
        keep("dec.up", decoder.upsample[0], True),
        keep("decoder.layers.2", decoder.blocks[1], True),
    ]
    with torch.no_grad():
        model.encode_latents(golden["input"])
        model.decode_latents(golden["quantized"].transpose(1, 2))
    for hook in hooks:
        hook.remove()
    ours["decoder.layers.1"] = ours["dec.up"]  # the published decoder block ends with its upsampling

    q, k, _ = ours["enc0.to_qkv"].view(2, 80, 3, 2, 32).permute(2, 0, 3, 1, 4)
    angles = rotary_angles(80, 16, q.device)
    ours["enc0.q_rot"] = rotate(layer.attention.q_norm(q), angles)
    ours["enc0.k_rot"] = rotate(layer.attention.k_norm(k), angles)
    assert set(ours) == set(golden.activations)
    for name, published in golden.activations.items():
        assert_near(ours[name], torch.from_numpy(published))


CONVOLUTIONS = {
    "encoder.conv_in.conv": "encoder.layers.0",
    "encoder.downsample.1.conv": "encoder.layers.2.layers.1",
    "encoder.conv_out.conv": "encoder.layers.4",
    "decoder.conv_in.conv": "decoder.layers.0",
    "decoder.upsample.0.conv": "decoder.layers.1.layers.2",
    "decoder.conv_out.conv": "decoder.layers.4",
}
LAYER = {
    "attention_norm.gain": "pre_norm.gamma",
    "attention_scale.scale": "self_attn_scale.scale",
    "mlp_norm.gain": "ff_norm.gamma",
    "mlp_scale.scale": "ff_scale.scale",
    "mlp.to_value_and_gate": "ff.ff.0.proj",
    "mlp.to_out": "ff.ff.2",
    ".attention.": ".self_attn.",
    ".parametrizations.weight.original0": ".weight_g",
    ".parametrizations.weight.original1": ".weight_v",
}


def published_name(name: str) -> str:
    """The published name of one of our parameters, written apart from the converter."""

    def block(match: re.Match) -> str:
        inside = 2 if match[1] == "encoder" else 0
        return f"{match[1]}.layers.{int(match[2]) + 1}.layers.{inside}.{int(match[3]) + 1}"

    name = re.sub(r"(encoder|decoder)\.blocks\.(\d)\.(\d)", block, name)
    for ours, published in (CONVOLUTIONS | LAYER).items():
        name = name.replace(ours, published)
    return name


def test_every_gradient_has_the_published_norm(golden):
    model = TAAE(read_official_config(golden.config_path))
    state = load_file(golden.weights_path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[published_name(name)])
    wav = golden["input"]
    latents = model.encode_latents(wav)
    codes = torch.tanh(latents) + (quantize(latents, 17) - torch.tanh(latents)).detach()
    loss = (model.decode_latents(codes) - wav).abs().mean()
    loss.backward()
    stats = json.loads(golden.config_path.read_text())["stats"]
    assert float(loss.detach()) == pytest.approx(stats["l1_loss"], rel=1e-5)
    published = json.loads((golden.folder / "grad_norms.json").read_text())
    ours = {published_name(name): float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    assert set(ours) == set(published)
    for name, norm in published.items():
        assert ours[name] == pytest.approx(norm, rel=1e-4), name


def test_silence_has_the_published_latents(golden):
    # The recorded frame is one in the middle of silence, further from both ends than the encoder sees.
    stats = json.loads(golden.config_path.read_text())["stats"]
    latents = golden.codec.model.encode_latents(torch.zeros(1, 1, 80 * 80))
    np.testing.assert_allclose(latents[0, 40].tolist(), stats["silence_latents_first_frame"], atol=2e-5)


def test_bfloat16_decodes_near_the_published_audio(golden):
    codec = load_official(golden.config_path, golden.weights_path, dtype="bfloat16")
    error = (codec.decode(golden["tokens"], SPEC) - golden["output"]).norm() / golden["output"].norm()
    assert 1e-4 < error < 0.03  # 8 bits of mantissa


def test_the_residual_spec_of_the_published_codec_decodes_to_the_same_audio(golden):
    # 2x5^6 and 4x3^6 lie on the grid of 17 levels, so that they decode to what the model was trained with.
    latents = golden.codec.model.encode_latents(golden["input"])
    for text in ("2x5^6", "4x3^6"):
        tokens = tokenize(latents, BottleneckSpec.parse(text))
        assert_near(golden.codec.decode(tokens, text), golden["output"])
