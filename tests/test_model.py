"""The network: parameter counts of the paper, causality, receptive field, weight norm, and appendix B."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils import parametrize

from taae.checkpoint import random_model
from taae.config import ModelConfig, load_preset
from taae.model import TAAE, Conv, ConvTransposed, GatedMLP, LayerNorm, LayerScale, num_parameters
from taae.patching import patchify, unpatchify

TINY = ModelConfig(
    name="tiny", patch_samples=8, width=32, head_dim=16, rope_dims=8, depths=(1, 2), window=(3, 4), layer_scale_init=0.5
)
CAUSAL = dataclasses.replace(TINY, name="tiny-causal", window=(3, 0), is_causal=True)
SLOW = dataclasses.replace(TINY, name="tiny-12hz", strides=(1, 2, 2), depths=(1, 1, 1), latent_dim=8)


def tiny(config: ModelConfig = TINY, *, seed: int = 0) -> TAAE:
    """A model in float64 whose every parameter matters."""
    model = random_model(config, seed)[0].double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Size


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("paper-950m", 953_319_756),
        ("paper-540m", 537_263_436),
        ("paper-240m", 239_696_204),
        ("paper-causal", 953_319_756),
        # A.3 calls this the same count. Two more strided convolutions with 4 * 1024^2 weights, lengths and biases, and
        # 2 more latents in and out, make it 0.9 % more.
        ("paper-12hz", 953_319_756 + 2 * (4 * 1024**2 + 2 * 1024) + 2 * (2 * 3 * 1024) + 4),
        ("mini", None),
    ],
)
def test_parameter_counts_are_those_of_the_paper(preset, count):
    with torch.device("meta"):
        model = TAAE(load_preset(preset))
    if count is None:
        assert num_parameters(model) < 10e6  # two files of 16-bit weights of at most 40 MB
    else:
        assert num_parameters(model) == count


def test_the_halves_of_the_main_model_are_of_equal_size():
    with torch.device("meta"):
        model = TAAE(load_preset("paper-950m"))
    assert num_parameters(model.encoder) == pytest.approx(476.66e6, abs=5e3)
    assert num_parameters(model.decoder) == pytest.approx(476.66e6, abs=5e3)
    assert num_parameters(model.encoder.blocks[0][0]) == 16_791_040


# B.4


@given(st.integers(1, 3), st.integers(1, 50), st.integers(1, 9))
def test_patching_is_exactly_invertible(batch, n, patch_samples):
    wav = torch.arange(batch * n, dtype=torch.float32).view(batch, 1, n)
    patches = patchify(wav, patch_samples)
    assert patches.shape == (batch, math.ceil(n / patch_samples), patch_samples)
    back = unpatchify(patches)
    assert torch.equal(back[..., :n], wav)
    assert back[..., n:].count_nonzero() == 0
    frame, channel = (n - 1) // patch_samples, (n - 1) % patch_samples
    assert patches[0, frame, channel] == wav[0, 0, n - 1]


# Shapes and lengths


@pytest.mark.parametrize("config", [TINY, CAUSAL, SLOW], ids=lambda config: config.name)
@pytest.mark.parametrize("n", [1, 15, 16, 17, 24, 40, 333])
def test_any_length_gives_a_started_frame_and_whole_hops(config, n):
    model = tiny(config)
    wav = noise(2, 1, n)
    latents = model.encode_latents(wav)
    num_frames = math.ceil(n / config.hop_samples)
    assert latents.shape == (2, num_frames, config.latent_dim)
    assert model.decode_latents(latents.tanh()).shape == (2, 1, num_frames * config.hop_samples)
    # An odd number of patches is completed with zeros and not dropped.
    padded = torch.nn.functional.pad(wav, (0, -n % config.hop_samples))
    assert torch.equal(latents, model.encode_latents(padded))


def test_the_12_hz_model_has_8_latents_for_1280_samples():
    config = load_preset("paper-12hz")
    with torch.device("meta"):
        model = TAAE(config).fuse_weight_norm()
        latents = model.encode_latents(torch.zeros(1, 1, 16000))
        assert latents.shape == (1, 13, 8)
        assert model.decode_latents(latents).shape == (1, 1, 13 * 1280)


def test_items_of_a_batch_do_not_see_each_other():
    model = tiny()
    wav = noise(3, 1, 160)
    latents = model.encode_latents(wav)
    for item in range(3):
        torch.testing.assert_close(model.encode_latents(wav[item : item + 1])[0], latents[item], rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_the_backends_give_the_same_model(backend):
    model = tiny()
    wav = noise(1, 1, 16 * 300)
    expected = model.encode_latents(wav)
    model.backend = backend
    torch.testing.assert_close(model.encode_latents(wav), expected, rtol=0, atol=1e-12)


# Causality, latency and receptive field (A.4, B.2)


def changed_frames(run, signal: torch.Tensor, index: int) -> torch.Tensor:
    """Which frames of the result change when one frame of the input does."""
    before = run(signal)
    other = signal.clone()
    other[:, index] += 1.0
    return (run(other) - before).abs().amax(dim=(0, 2)) > 0


@pytest.mark.parametrize("sample", [0, 7, 8, 15, 16, 100, 159])
def test_the_causal_encoder_never_sees_the_future(sample):
    model = tiny(CAUSAL)
    wav = noise(1, 1, 160)
    changed = changed_frames(lambda wav: model.encode_latents(wav[:, None, :, 0]), wav[:, 0, :, None], sample)
    # The frame that holds the sample changes, none before: latency is one latent frame, 40 ms in the paper's model.
    assert changed.nonzero()[0].item() == sample // CAUSAL.hop_samples


@pytest.mark.parametrize("frame", [0, 1, 5, 9])
def test_the_causal_decoder_never_sees_the_future(frame):
    model = tiny(CAUSAL)
    changed = changed_frames(lambda codes: model.decode_latents(codes).transpose(1, 2), noise(1, 10, 6), frame)
    assert changed.nonzero()[0].item() == frame * CAUSAL.hop_samples


def test_the_causal_model_is_right_after_one_frame_of_input():
    model = tiny(CAUSAL)
    wav = noise(1, 1, 16 * 20)
    whole = model.decode_latents(model.encode_latents(wav).tanh())
    for num_frames in (1, 2, 11):
        n = num_frames * CAUSAL.hop_samples
        begun = model.decode_latents(model.encode_latents(wav[..., :n]).tanh())
        torch.testing.assert_close(begun, whole[..., :n], rtol=0, atol=1e-12)


def test_the_main_model_does_look_ahead():
    model = tiny(TINY)
    changed = changed_frames(lambda wav: model.encode_latents(wav[:, None, :, 0]), noise(1, 640, 1), 400)
    assert changed[: 400 // TINY.hop_samples].any()


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        CAUSAL,
        SLOW,
        dataclasses.replace(TINY, strides=(2, 3), window=(2, 5)),
        dataclasses.replace(TINY, strides=(4,), depths=(2,), window=(1, 1)),
        dataclasses.replace(TINY, strides=(1,), depths=(0,)),
    ],
    ids=lambda config: f"{config.strides} {config.window}",
)
def test_nothing_outside_the_stated_receptive_field_is_seen(config):
    model = tiny(config)
    before, after = config.receptive_frames
    num_frames = 2 * (before + after) + 9
    middle, hop = num_frames // 2, config.hop_samples

    def reaches(changed: torch.Tensor) -> tuple[int, int]:
        frames = changed.nonzero().flatten()
        return middle - int(frames[0]), int(frames[-1]) - middle

    encoded = changed_frames(
        lambda frames: model.encode_latents(frames.reshape(1, 1, -1)), noise(1, num_frames, hop), middle
    )
    decoded = changed_frames(
        lambda codes: model.decode_latents(codes).reshape(1, num_frames, hop),
        noise(1, num_frames, config.latent_dim),
        middle,
    )
    for ahead, behind in (reaches(encoded), reaches(decoded)):
        # What is changed reaches those frames that see it: `after` of them earlier and `before` later.
        assert 0 <= ahead <= after and 0 <= behind <= before
        # The statement is not much too large either, or long recordings would cost more than they must.
        assert ahead >= after - 12 and behind >= before - 12


def test_the_model_knows_distances_and_not_positions():
    # With zeros before it for longer than it can see, a signal has the same latents wherever it lies.
    model = tiny()
    before, after = TINY.receptive_frames
    wav = noise(1, 1, TINY.hop_samples * (before + after + 10))
    shift = 37
    moved = torch.nn.functional.pad(wav, (shift * TINY.hop_samples, 0))
    padded = torch.nn.functional.pad(wav, (before * TINY.hop_samples, 0))
    moved = torch.nn.functional.pad(moved, (before * TINY.hop_samples, 0))
    first, second = model.encode_latents(padded)[:, 2 * before :], model.encode_latents(moved)[:, 2 * before + shift :]
    torch.testing.assert_close(second, first, rtol=0, atol=1e-5)  # rotation angles are rounded to float32


def test_without_rotation_the_order_of_frames_means_nothing():
    model = tiny(dataclasses.replace(TINY, rope_dims=0))
    blind = model.encoder.blocks[1]
    stream = noise(1, 4, 32)
    order = torch.tensor([3, 1, 0, 2])
    # The window of (3, 4) holds all four frames.
    torch.testing.assert_close(blind(stream, "blocked")[:, order], blind(stream[:, order], "blocked"))
    sighted = tiny().encoder.blocks[1]
    assert not torch.allclose(sighted(stream, "blocked")[:, order], sighted(stream[:, order], "blocked"), atol=1e-3)


# Layers


def test_weight_norm_runs_over_dimension_0_of_transposed_convolutions_too():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TAAE(TINY)
    convolutions = [module for module in model.modules() if parametrize.is_parametrized(module, "weight")]
    assert len(convolutions) == 6  # 4 at the ends, one down, one up
    up = model.decoder.upsample[0].conv
    assert isinstance(up, torch.nn.ConvTranspose1d)
    for module in convolutions:
        length, direction = module.parametrizations.weight.original0, module.parametrizations.weight.original1
        assert length.shape == (direction.shape[0], 1, 1)
        with torch.no_grad():
            length.mul_(torch.linspace(0.5, 2, len(length))[:, None, None])
        norms = module.weight.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, length.flatten())
    assert up.weight.shape == (32, 32, 4)


@pytest.mark.parametrize("config", [TINY, CAUSAL, SLOW], ids=lambda config: config.name)
def test_fusing_weight_norm_leaves_the_outputs_and_removes_the_parametrisation(config):
    model = TAAE(config).double()
    wav = noise(1, 1, 200)
    latents = model.encode_latents(wav)
    decoded = model.decode_latents(latents.tanh())
    fused = model.fuse_weight_norm()
    assert fused is model
    assert not any("parametrizations" in key for key in model.state_dict())
    assert torch.equal(model.encode_latents(wav), latents)
    assert torch.equal(model.decode_latents(latents.tanh()), decoded)


def test_the_last_convolution_has_no_bias_so_that_zero_weights_decode_to_silence():
    model = TAAE(TINY).fuse_weight_norm()
    assert model.decoder.conv_out.conv.bias is None
    biases = [name for name, _ in model.named_parameters() if name.endswith("conv.bias")]
    assert len(biases) == 5


@pytest.mark.parametrize(("eps", "cap"), [(1e-2, 10.0), (1e-5, 316.228)])
def test_the_epsilon_of_layer_norm_caps_its_gain_as_b_1_says(eps, cap):
    # B.1 speaks of 40 dB and 100 dB, which counts eps as if outside the root: the gain is 1 / sqrt(eps), half of that.
    norm = LayerNorm(1024, eps).double()
    direction = noise(1, 1, 1024)
    direction = (direction - direction.mean()) / direction.std(correction=0)
    gains = [
        float(norm(level * direction).detach().std(correction=0)) / level for level in (1e-9, 1e-4, 1e-1, 1.0, 100.0)
    ]
    assert gains[0] == pytest.approx(cap, rel=1e-4)
    assert max(gains) <= cap * 1.0001 and gains == sorted(gains, reverse=True)
    assert gains[-1] * 100 == pytest.approx(1.0, rel=1e-5)


def test_silence_stays_silent_inside_a_layer_with_the_large_epsilon():
    loud, rounding = noise(1, 50, 32), 1e-5 * noise(1, 50, 32)
    gains = {}
    for eps in (1e-2, 1e-5):
        norm = LayerNorm(32, eps).double()
        gains[eps] = norm(rounding).std() / norm(loud).std()
    assert gains[1e-2] < 2e-4 and gains[1e-5] > 2e-3


def test_layer_norm_has_a_gain_and_no_bias():
    assert [name for name, _ in LayerNorm(8, 1e-2).named_parameters()] == ["gain"]


def test_the_gated_mlp_is_value_times_silu_of_gate():
    mlp = GatedMLP(TINY).double()
    stream = noise(1, 4, 32)
    weights, bias = mlp.to_value_and_gate.weight, mlp.to_value_and_gate.bias
    assert weights.shape == (2 * 4 * 32, 32)
    value, gate = stream @ weights[:128].T + bias[:128], stream @ weights[128:].T + bias[128:]
    expected = (value * gate * torch.sigmoid(gate)) @ mlp.to_out.weight.T + mlp.to_out.bias
    torch.testing.assert_close(mlp(stream), expected)


def test_a_layer_is_the_identity_where_layer_scale_is_zero():
    model = tiny()
    for module in model.modules():
        if isinstance(module, LayerScale):
            torch.nn.init.zeros_(module.scale)
    stream = noise(1, 9, 32)
    assert torch.equal(model.encoder.blocks[1](stream, "blocked"), stream)
    with torch.device("meta"):
        scales = [m.scale for m in TAAE(load_preset("paper-950m")).modules() if isinstance(m, LayerScale)]
    assert len(scales) == 2 * 56


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("is_causal", [False, True])
def test_strided_convolutions_are_those_of_torch_with_padding(stride, is_causal):
    down = Conv(4, 5, 2 * stride, stride=stride, is_causal=is_causal).double()
    up = ConvTransposed(4, stride=stride, is_causal=is_causal).double()
    stream = noise(1, 6 * stride, 4)
    padded = math.ceil(stride / 2)
    expected = torch.nn.functional.conv1d(
        torch.nn.functional.pad(stream.transpose(1, 2), (stride, 0)) if is_causal else stream.transpose(1, 2),
        down.conv.weight, down.conv.bias, stride=stride, padding=0 if is_causal else padded,
    )  # fmt: skip
    torch.testing.assert_close(down(stream), expected.transpose(1, 2))
    assert down(stream).shape[1] == 6
    raised = up(stream)
    assert raised.shape[1] == stride * stream.shape[1]
    if not is_causal and stride % 2 == 0:
        expected = torch.nn.functional.conv_transpose1d(
            stream.transpose(1, 2), up.conv.weight, up.conv.bias, stride=stride, padding=padded
        )
        torch.testing.assert_close(raised, expected.transpose(1, 2))


def test_every_parameter_gets_a_gradient():
    model = TAAE(TINY)
    wav = noise(2, 1, 160).float()
    model.decode_latents(model.encode_latents(wav).tanh()).abs().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_bfloat16_and_autocast_stay_near_float32():
    model = tiny().float()
    wav = noise(1, 1, 320).float()
    latents = model.encode_latents(wav)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = model.encode_latents(wav)
    half = model.bfloat16().encode_latents(wav.bfloat16())
    assert half.dtype == torch.bfloat16
    for other in (autocast, half):
        error = (other.float() - latents).norm() / latents.norm()
        assert 0 < error < 0.05  # 8 bits of mantissa through ten layers
    assert np.isfinite(half.float().detach().numpy()).all()
