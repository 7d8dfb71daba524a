"""The fast CPU layers against the plain ones, on every width of window, batch and thread; and what int8 is."""

import copy
import dataclasses
import threading

import pytest
import torch
from torch.nn import functional as F

import taae
from taae import fast, packed
from taae.attention import attend_rows, window_attention
from taae.checkpoint import random_model
from taae.codec import Codec
from taae.config import BottleneckSpec, ModelConfig
from taae.fast import FastLayer, FastLayers, speed_up
from taae.fsq import tokenize
from taae.model import num_parameters

TINY = ModelConfig(
    name="tiny", patch_samples=40, width=64, head_dim=16, rope_dims=8, depths=(2, 2), window=(7, 8),
    layer_scale_init=0.5,
)  # fmt: skip
CAUSAL = dataclasses.replace(TINY, name="tiny-causal", window=(7, 0), is_causal=True)
needs_packing = pytest.mark.skipif(not packed.is_available(), reason="this torch packs no linear layers")


def model_of(config: ModelConfig):
    """Random weights, and norms and scales that are not 1, so that folding them is seen."""
    model, identity = random_model(config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith((".gain", ".scale", "norm.weight", "norm.bias")):
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False), identity


@pytest.fixture(scope="module", params=[TINY, CAUSAL], ids=lambda config: config.name)
def plain(request):
    return model_of(request.param)[0]


@pytest.fixture
def threads():
    """`threads(n)` sets torch's number; afterwards it is what it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Attention in rows


@pytest.mark.parametrize(("left", "right"), [(63, 64), (63, 0), (0, 0), (5, 300)])
def test_rows_by_themselves_attend_as_in_the_whole(left, right):
    q, k, v = (torch.randn(2, 3, 200, 16, dtype=torch.float64) for _ in range(3))
    whole = window_attention(q, k, v, left=left, right=right, backend="reference")
    for start, stop in ((0, 1), (0, 200), (37, 101), (150, 200)):
        rows = attend_rows(q[:, :, start:stop], k, v, start=start, left=left, right=right)
        torch.testing.assert_close(rows, whole[:, :, start:stop], rtol=0, atol=2e-6)  # the softmax is in float32


# Float32: the plain path up to rounding


@needs_packing
@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (1, 63), (1, 500), (3, 40), (2, 333), (5, 129)])
def test_float32_layers_give_what_plain_ones_give(plain, threads, monkeypatch, num_threads, batch, frames):
    monkeypatch.setattr(fast, "_TILE_VALUES", 64 * 50)  # many tiles
    threads(num_threads)
    quick = speed_up(copy.deepcopy(plain), "float32")
    assert all(isinstance(layers, FastLayers) for layers in (*quick.encoder.blocks, *quick.decoder.blocks))
    wav = noise(batch, 1, 80 * frames)
    with torch.inference_mode():
        latents = quick.encode_latents(wav)
        torch.testing.assert_close(latents, plain.encode_latents(wav), rtol=0, atol=2e-5)
        codes = latents.tanh()
        torch.testing.assert_close(quick.decode_latents(codes), plain.decode_latents(codes), rtol=0, atol=2e-5)
    assert torch.get_num_threads() == num_threads


@needs_packing
def test_the_dense_reference_backend_runs_in_fast_layers_too(plain):
    quick = speed_up(copy.deepcopy(plain), "float32")
    wav = noise(2, 1, 80 * 150)
    blocked = quick.encode_latents(wav)
    quick.backend = "reference"
    torch.testing.assert_close(quick.encode_latents(wav), blocked, rtol=0, atol=2e-5)


@needs_packing
def test_the_two_halves_of_a_layer_are_the_layer(plain):
    quick = speed_up(copy.deepcopy(plain), "float32")
    stream, angles = noise(2, 30, 64), torch.randn(2, 30, 4)
    for ours, theirs in zip(quick.encoder.blocks[0], plain.encoder.blocks[0], strict=True):
        for mine, wanted in zip(ours.project(stream, angles), theirs.project(stream, angles), strict=True):
            torch.testing.assert_close(mine, wanted, rtol=0, atol=2e-5)
        heads = noise(2, 4, 30, 16)
        torch.testing.assert_close(ours.finish(stream, heads), theirs.finish(stream, heads), rtol=0, atol=2e-5)


@needs_packing
def test_float32_tokens_are_those_of_the_plain_path_on_speech(shared):
    codecs = [taae.load(kernels=kernels) for kernels in ("plain", "fast")]
    assert [codec.precision for codec in codecs] == ["float32"] * 2
    assert [codec.is_fast for codec in codecs] == [False, True]
    wav = speech_of(shared)
    latents = [codec._encode_latents(wav, None) for codec in codecs]
    torch.testing.assert_close(*latents, rtol=0, atol=5e-5)
    spec = BottleneckSpec.parse("1x17^6")
    differ = tokenize(latents[0], spec) != tokenize(latents[1], spec)
    assert not differ[~near_a_boundary(latents[0], spec)].any() and differ.float().mean() < 0.005


def speech_of(shared) -> torch.Tensor:
    from taae.audio import load_wav, to_mono

    path = sorted((shared / "speech/dev/en").rglob("*.flac"))[0]
    wav, rate_hz = load_wav(path)
    assert rate_hz == 16000
    return torch.from_numpy(to_mono(wav))[None, None]


def near_a_boundary(latents: torch.Tensor, spec: BottleneckSpec, margin: float = 1e-5) -> torch.Tensor:
    """Frames (b, s, 1) with a value that rounding may move into the next cell, before or after tanh."""
    at = (spec.grid_levels - 1) * (latents.double().tanh() + 1) / 2
    return ((at + 0.5) % 1).sub(0.5).abs().sub(0.5).abs().lt(margin * spec.grid_levels).any(-1, keepdim=True)


# The policy: float32 tokens do not depend on how they were computed


@pytest.mark.parametrize("bottleneck", ["2x5^6", "1x17^6"])
def test_float32_tokens_do_not_depend_on_backend_batch_or_threads(shared, threads, bottleneck):
    codec, wav = taae.load(), speech_of(shared)[..., :96_000]
    spec = BottleneckSpec.parse(bottleneck)
    expected = codec.encode(wav, spec)
    safe = ~near_a_boundary(codec._encode_latents(wav, None), spec)
    assert safe.float().mean() > 0.95
    for num_threads in (1, 2):
        threads(num_threads)
        for backend in ("reference", "blocked"):
            codec.model.backend = backend
            for batch in (1, 3):
                rows = torch.cat([wav, *(noise(1, 1, 96_000, seed=i) for i in range(1, batch))])
                tokens = codec.encode(rows, spec)[:1]
                assert torch.equal(tokens[safe.expand_as(tokens)], expected[safe.expand_as(expected)])


# Half precision and int8


@needs_packing
@pytest.mark.parametrize(("dtype", "decoded_db"), [("bfloat16", 25), ("int8", 20)])
def test_lower_precision_is_near_the_reference(plain, dtype, decoded_db):
    codec = Codec(copy.deepcopy(plain), b"12345678", dtype=dtype)
    assert codec.is_fast and codec.precision in (dtype, "float32")
    codes = torch.rand(1, 300, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = plain.decode_latents(codes)
    error = codec.model.decode_latents(codes.to(codec.dtype)).float() - wanted
    ratio_db = 10 * torch.log10(wanted.square().mean() / error.square().mean())
    assert ratio_db > decoded_db  # 8 bits of mantissa; 8 bits with a step for each row and output


@needs_packing
def test_int8_is_the_rounded_weights_and_rows_and_nothing_else():
    weight, bias, rows = noise(24, 40), noise(24, seed=1), 5 * noise(7, 40, seed=2)
    step = rows.abs().amax(1, keepdim=True).double() / 127
    scale = weight.abs().amax(1).double() / 127
    integers = (rows.double() / step).round() @ (weight.double() / scale[:, None]).round().T
    expected = (integers * step * scale + bias).float()
    for layer in (packed.pack(weight, bias, "int8"), packed._RoundedLinear(weight, bias)):
        torch.testing.assert_close(layer(rows), expected, rtol=1e-5, atol=1e-5)
    # A row does not know its neighbours: a loud one changes nothing.
    layer = packed.pack(weight, bias, "int8")
    assert torch.equal(layer(torch.cat((rows, 1000 * rows)))[:7], layer(rows))
    assert layer(torch.zeros(2, 40)).equal(bias.expand(2, -1))


@needs_packing
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_what_follows_a_packed_layer_is_what_its_name_says(weights):
    dtype = torch.bfloat16 if weights == "bfloat16" else torch.float32
    if weights == "bfloat16" and not packed.has_bfloat16():
        pytest.skip("this processor does not multiply bfloat16")
    layer = packed.pack(noise(24, 40), noise(24, seed=1), weights)
    rows, other = noise(2, 7, 40, seed=2).to(dtype), noise(2, 7, 24, seed=3).to(dtype)
    before = other.clone()
    alone = layer(rows).float()
    tolerance = {"rtol": 0.02, "atol": 0.01} if weights == "bfloat16" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(layer.swish(rows).float(), F.silu(alone), **tolerance)
    torch.testing.assert_close(layer.mul(rows, other).float(), alone * other.float(), **tolerance)
    torch.testing.assert_close(layer.add(rows, other).float(), alone + other.float(), **tolerance)
    assert torch.equal(other, before)


@needs_packing
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_packed_weights_count_as_parameters_and_replace_the_plain_ones(plain, weights):
    quick = speed_up(copy.deepcopy(plain), weights)
    assert sum(p.numel() for p in quick.parameters() if p.dim() > 1) == sum(
        p.numel() for p in plain.parameters() if p.dim() > 1
    )
    assert num_parameters(quick) <= num_parameters(plain) * 1.05
    with pytest.raises(ValueError, match="the layers of tiny.* are packed already; load the model anew"):
        speed_up(quick, weights)


@pytest.mark.parametrize("missing", ["bfloat16", "int8", "both"])
@needs_packing
def test_processors_without_the_instructions_are_right_too(plain, monkeypatch, missing):
    if missing in ("bfloat16", "both"):
        monkeypatch.setattr(fast, "has_bfloat16", lambda: False)
        monkeypatch.setattr("taae.codec.has_bfloat16", lambda: False)
    if missing in ("int8", "both"):
        monkeypatch.setattr(packed, "has_int8", lambda: False)
    wav = noise(1, 1, 80 * 100)
    wanted = plain.encode_latents(wav)
    codec = Codec(copy.deepcopy(plain), b"12345678", dtype="int8")
    assert codec.precision == "int8"
    assert codec.dtype == (torch.bfloat16 if missing == "int8" and packed.has_bfloat16() else torch.float32)
    assert (codec._encode_latents(wav, None) - wanted).square().mean() < 0.01 * wanted.square().mean()
    if missing != "int8":
        codec = Codec(copy.deepcopy(plain), b"12345678", dtype="bfloat16")
        assert (codec.precision, codec.dtype) == ("float32", torch.float32)  # and files say so
        torch.testing.assert_close(codec._encode_latents(wav, None), wanted, rtol=0, atol=2e-5)


def test_a_torch_without_the_operators_uses_plain_layers_or_says_that_it_cannot(plain, monkeypatch):
    monkeypatch.setattr(fast, "is_available", lambda: False)
    codec = Codec(copy.deepcopy(plain), b"12345678", dtype="bfloat16")
    assert not codec.is_fast and codec.precision == "bfloat16"
    for options in ({"dtype": "int8"}, {"kernels": "fast"}):
        with pytest.raises(RuntimeError, match="packs no linear layers here; choose kernels='plain' and float32"):
            Codec(copy.deepcopy(plain), b"12345678", **options)


@needs_packing
def test_int8_and_bfloat16_rows_of_a_file_are_named_in_it(speech):
    from taae.bitstream import read_header, unpack
    from taae.token_file import dump_tokens, parse_tokens

    reference = taae.load()
    for dtype in ("float32", "bfloat16", "int8"):
        codec = taae.load(dtype=dtype)
        data = codec.compress(speech(1.0))
        assert read_header(data).encoder_dtype == codec.precision
        assert parse_tokens(dump_tokens(*unpack(data)))[0].encoder_dtype == codec.precision
        assert reference.decompress(data).isfinite().all()  # any codec of the model reads it


# Threads


@needs_packing
def test_passes_of_several_threads_at_once_do_not_wait_for_each_other_for_ever(plain, threads, monkeypatch):
    monkeypatch.setattr(fast, "_TILE_VALUES", 64 * 50)
    threads(2)
    quick = speed_up(copy.deepcopy(plain), "float32")
    wavs = [noise(1, 1, 80 * 400, seed=seed) for seed in range(4)]
    expected = [plain.encode_latents(wav) for wav in wavs]
    found: dict[int, torch.Tensor] = {}
    workers = [
        threading.Thread(target=lambda i=i: found.update({i: quick.encode_latents(wavs[i])}), daemon=True)
        for i in range(len(wavs))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    for index, wanted in enumerate(expected):
        torch.testing.assert_close(found[index], wanted, rtol=0, atol=2e-5)


@needs_packing
def test_an_error_in_one_thread_reaches_the_caller_and_the_next_pass_works(plain, threads, monkeypatch):
    monkeypatch.setattr(fast, "_TILE_VALUES", 64 * 50)
    threads(2)
    quick = speed_up(copy.deepcopy(plain), "float32")
    wav = noise(1, 1, 80 * 400)
    expected = quick.encode_latents(wav)
    finish, calls = FastLayer.finish, []

    def fail_once(self, stream, heads):
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            raise RuntimeError("out of luck")
        return finish(self, stream, heads)

    with monkeypatch.context() as patched:
        patched.setattr(FastLayer, "finish", fail_once)
        with pytest.raises(RuntimeError, match="out of luck"):
            quick.encode_latents(wav)
    assert all(name.startswith("taae-layers") for name in calls)
    assert torch.equal(quick.encode_latents(wav), expected)
