"""The codec: any audio in, as many samples out; pieces equal the whole; levels come back; nothing becomes NaN."""

import dataclasses
import math
import os

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import taae
from taae import codec as codec_module
from taae.audio import integrated_loudness, resample, to_mono
from taae.bitstream import HEADER_BYTES, BitstreamError, pack, read_header, unpack
from taae.checkpoint import random_model, save_model
from taae.codec import Codec
from taae.config import BottleneckSpec, ModelConfig
from taae.fsq import tokenize
from taae.model import TAAE

TINY = ModelConfig(
    name="tiny",
    patch_samples=40,
    width=32,
    head_dim=16,
    rope_dims=8,
    depths=(1, 1),
    window=(3, 4),
    layer_scale_init=0.5,
)
CAUSAL = dataclasses.replace(TINY, name="tiny-causal", window=(3, 0), is_causal=True)
FINE = "1x1025^6"  # steps of 1/512
RATES_HZ = [8000, 11025, 16000, 22050, 44100, 48000, 96000]


class Wire(TAAE):
    """A model that passes audio through its latents unchanged, so that only what is around it can change anything."""

    def encode_latents(self, wav):
        wav = torch.nn.functional.pad(wav, (0, -wav.shape[-1] % 6))
        return torch.atanh(wav.clamp(-0.9999, 0.9999)).view(len(wav), -1, 6)

    def decode_latents(self, codes):
        return codes.reshape(len(codes), 1, -1)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(*random_model(TINY))


@pytest.fixture(scope="module")
def wire() -> Codec:
    config = ModelConfig(name="wire", patch_samples=6, width=8, head_dim=8, rope_dims=8, strides=(1,), depths=(0,))
    return Codec(Wire(config), b"a wire..")


def ratio_db(reference: np.ndarray, degraded: np.ndarray) -> float:
    return 10 * math.log10(np.square(reference).mean() / np.square(reference - degraded).mean())


def rms_db(wav: np.ndarray) -> float:
    return 10 * math.log10(np.square(wav.astype(np.float64)).mean())


# What goes in comes out: rates, lengths, channels, types, levels


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_every_rate_comes_back_at_its_rate_and_level(wire, speech, rate_hz):
    wav = speech(2.0, rate_hz)
    # What a codec at 16 kHz can keep; the steps of the fine quantiser leave noise near -64 dB.
    expected = resample(resample(wav, rate_hz, 16000), 16000, rate_hz)[: len(wav)]
    back = wire.decompress(wire.compress(wav, FINE, sample_rate_hz=rate_hz))
    assert back.shape == (1, 1, len(wav)) and back.dtype == torch.float32
    assert ratio_db(expected, back[0, 0].numpy()) > 35
    assert rms_db(back[0, 0].numpy()) == pytest.approx(rms_db(wav), abs=0.2)


@pytest.mark.parametrize("level_db", [-40, -30, -10, 0])
def test_the_loudness_gain_is_stored_and_undone(wire, speech, level_db):
    wav = speech(2.0)
    wav = (wav / np.abs(wav).max() * 10 ** (level_db / 20)).astype(np.float32)
    seen = []
    encode = wire.model.encode_latents
    wire.model.encode_latents = lambda audio: (seen.append(audio), encode(audio))[1]
    try:
        data = wire.compress(wav, FINE)
    finally:
        del wire.model.encode_latents
    prepared = wav * 10 ** (read_header(data).gain_db / 20)
    heard = seen[0][0, 0].numpy()  # the first piece
    np.testing.assert_allclose(heard, prepared[: len(heard)], rtol=1e-5, atol=1e-9)
    assert np.abs(prepared).max() < 1
    # The published measure clamps to [-1, 1] what it has filtered, which loud peaks reach; measured 20 dB lower they do
    # not, and only an input that was as loud itself gets another gain.
    loudness = integrated_loudness(prepared / 10, 16000) + 20
    assert loudness == pytest.approx(-20, abs=0.02 if level_db < 0 else 0.4)
    back = wire.decompress(data)[0, 0].numpy()
    assert ratio_db(wav, back) > 35
    assert integrated_loudness(back, 16000) == pytest.approx(integrated_loudness(wav, 16000), abs=0.1)


@given(n=st.integers(1, 3000), rate_hz=st.sampled_from([1000, *RATES_HZ, 12345, 768000]))
@example(n=1, rate_hz=96000)
@example(n=160, rate_hz=16000)
@example(n=161, rate_hz=16000)
def test_exactly_as_many_samples_come_out_as_went_in(wire, n, rate_hz):
    wav = 0.1 * np.sin(np.arange(n, dtype=np.float32))
    data = wire.compress(wav, sample_rate_hz=rate_hz)
    assert wire.decompress(data).shape == (1, 1, n)
    header = read_header(data)
    assert (header.num_samples, header.sample_rate_hz) == (n, rate_hz)
    frames = math.ceil(math.ceil(n * 16000 / rate_hz) / 6)
    assert header.num_frames == frames
    assert len(data) == HEADER_BYTES + math.ceil(frames * 28 / 8)  # 2x5^6 is 2 * 14 bits a frame


def test_every_type_and_shape_of_the_same_audio_gives_the_same_file(codec, speech):
    wav = (np.round(speech(0.5) * 32767) / 32768).astype(np.float32)
    expected = codec.compress(wav)
    as_int16 = (wav * 32768).astype(np.int16)
    for same in (
        wav[None],
        wav[None, None],
        np.stack([wav, wav]),
        wav.astype(np.float64),
        as_int16,
        as_int16.astype(np.int32) * 65536,
        torch.from_numpy(wav),
        torch.from_numpy(wav)[None, None].requires_grad_(),
        torch.from_numpy(as_int16),
        wav[::-1][::-1],
    ):
        assert codec.compress(same) == expected


def test_channels_are_averaged(codec, speech):
    left, right = speech(0.5), speech(0.5, seed=1)
    stereo = np.stack([left, right])
    assert codec.compress(stereo) == codec.compress(to_mono(stereo)) == codec.compress((left + right) / 2)


# Strange audio


def strange(name: str) -> tuple[np.ndarray, int]:
    n, noise = 16000, np.random.default_rng(0).standard_normal(16000)
    time_s = np.arange(n) / 16000
    return {
        "digital zero": (np.zeros(n), 16000),
        "silence": (1e-5 * noise, 16000),
        "faint": (1e-30 * noise, 16000),
        "3 Hz": (0.5 * np.sin(2 * np.pi * 3 * time_s), 16000),
        "loud 3 Hz": (60 * np.sin(2 * np.pi * 3 * time_s), 16000),
        "constant": (np.full(n, 0.7), 16000),
        "10 ms": (0.1 * noise[:160], 16000),
        "10 ms at 8 kHz": (0.1 * noise[:80], 8000),
        "one sample": (np.array([0.5]), 16000),
        "one sample at 96 kHz": (np.array([0.5]), 96000),
        "clipped": (np.clip(10 * noise, -1, 1), 16000),
        "beyond full scale": (8 * np.clip(noise, -4, 4), 44100),
        "click": (np.eye(1, n, 5000)[0], 48000),
        "8 kHz": (0.1 * noise, 8000),
        "96 kHz": (0.1 * noise, 96000),
    }[name]


STRANGE = [
    "digital zero", "silence", "faint", "3 Hz", "loud 3 Hz", "constant", "10 ms", "10 ms at 8 kHz", "one sample",
    "one sample at 96 kHz", "clipped", "beyond full scale", "click", "8 kHz", "96 kHz",
]  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("bottleneck", ["2x5^6", "1x6^6", "continuous"])
def test_strange_audio_comes_back_finite_and_within_full_scale(codec, name, bottleneck):
    wav, rate_hz = strange(name)
    back, tokens = codec.reconstruct(wav.astype(np.float32), bottleneck, sample_rate_hz=rate_hz)
    assert back.shape == (1, 1, len(wav)) and back.isfinite().all() and back.abs().max() <= 1
    assert (tokens is None) == (bottleneck == "continuous")
    if tokens is not None:
        assert torch.equal(codec.decompress(codec.compress(wav, bottleneck, sample_rate_hz=rate_hz)), back)


@pytest.mark.parametrize("name", ["digital zero", "silence", "faint", "3 Hz"])
def test_what_has_no_loudness_keeps_its_level(wire, name):
    wav, rate_hz = strange(name)
    back = wire.decompress(wire.compress(wav.astype(np.float32), FINE, sample_rate_hz=rate_hz))[0, 0].numpy()
    assert (
        np.abs(back - wav).max()
        <= 1 / 1024 / min(1.0, 10 ** (read_header(wire.compress(wav, FINE)).gain_db / 20)) + 1e-6
    )
    if name != "3 Hz":
        assert read_header(wire.compress(wav, FINE)).gain_db == 0
        assert np.abs(back).max() == 0  # below half a step


@pytest.mark.parametrize(
    ("wav", "why"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros((2, 0), np.float32), "empty"),
        (np.array([0, np.nan], np.float32), "NaN or infinite"),
        (torch.tensor([0, torch.inf]), "NaN or infinite"),
        (np.full(100, 3000.0, np.float32), "divide 16-bit values by 32768"),
        (np.zeros((2, 2, 100), np.float32), r"got shape \(2, 2, 100\)"),
        (np.zeros((100, 2), np.float32), "transposed"),
        (np.array(["a"]), "floats"),
    ],
)
def test_audio_that_is_none_is_refused_with_the_reason(codec, wav, why, unchecked):
    for run in (codec.compress, codec.reconstruct):
        with pytest.raises(ValueError, match=why):
            run(wav)


def test_encode_refuses_what_is_no_batch_of_audio(codec, unchecked):
    for wav, why in (
        (torch.zeros(1, 2, 100), r"must be \(batch, 1, samples\), got \(1, 2, 100\)"),
        (torch.zeros(100), "must be"),
        (torch.zeros(1, 1, 0), "empty"),
        (torch.zeros(0, 1, 100), "empty"),
        (torch.zeros(1, 1, 100, dtype=torch.int16), "divide int16 by 32768"),
        (torch.full((1, 1, 100), torch.nan), "100 values that are NaN"),
    ):
        with pytest.raises(ValueError, match=why):
            codec.encode(wav)


def test_a_whole_rate_may_be_a_float(codec, speech, unchecked):
    wav = speech(0.2, 22050)
    assert codec.compress(wav, sample_rate_hz=22050.0) == codec.compress(wav, sample_rate_hz=22050)


@pytest.mark.parametrize("rate_hz", [0, -16000, 999, 10**6, 16000.5])
def test_an_impossible_rate_is_refused(codec, rate_hz, unchecked):
    for run in (codec.compress, codec.reconstruct):
        with pytest.raises(ValueError, match="rate"):
            run(np.zeros(100, np.float32), sample_rate_hz=rate_hz)


# Tokens


def test_encode_and_decode_are_model_and_quantiser(codec):
    wav = 0.3 * torch.randn(2, 1, 801, generator=torch.Generator().manual_seed(0))
    for text in ("1x6^6", "1x17^6", "2x5^6", "4x3^6"):
        spec = BottleneckSpec.parse(text)
        tokens = codec.encode(wav, text)
        assert torch.equal(tokens, tokenize(codec.model.encode_latents(wav), spec))
        assert tokens.shape == (2, 11, spec.num_stages) and tokens.dtype == torch.int64
        decoded = codec.decode(tokens, spec)
        assert decoded.shape == (2, 1, 11 * 80)
    assert torch.equal(codec.decode(codec.encode(wav, "4x3^6"), "4x3^6"), codec.decode(codec.encode(wav), "2x5^6"))


def test_the_decoded_audio_can_be_used_in_training(codec):
    decoded = codec.decode(torch.zeros(1, 3, 2, dtype=torch.int64))
    weight = torch.ones(1, requires_grad=True)
    (decoded * weight).square().sum().backward()
    assert weight.grad is not None and weight.grad.isfinite().all()


def test_items_of_a_batch_get_the_tokens_they_have_alone(codec):
    generator = torch.Generator().manual_seed(0)
    wavs = [0.3 * torch.randn(1, n, generator=generator) for n in (900, 80, 900, 33, 81, 900)]
    together = codec.encode_batch(wavs)
    alone = [codec.encode(wav[None])[0] for wav in wavs]
    for ours, expected in zip(together, alone, strict=True):
        assert torch.equal(ours, expected)
    for ours, tokens in zip(codec.decode_batch(together), alone, strict=True):
        torch.testing.assert_close(ours, codec.decode(tokens[None])[0], rtol=0, atol=1e-5)
    wavs[0] = 100 * wavs[0]  # a loud neighbour
    assert torch.equal(codec.encode_batch(wavs)[2], alone[2])


@pytest.mark.parametrize(
    ("tokens", "bottleneck", "why"),
    [
        (torch.zeros(1, 3, 1, dtype=torch.int64), "2x5^6", "has 2 tokens a frame"),
        (torch.full((1, 3, 1), 6**6), "1x6^6", "lie in 0 ... 46655"),
        (torch.zeros(1, 3, 1, dtype=torch.int64), "1x4^8", "8 dimensions, tiny has 6"),
        (torch.zeros(1, 3, 1, dtype=torch.int64), "continuous", "has no tokens"),
        (torch.zeros(1, 0, 2, dtype=torch.int64), "2x5^6", "no tokens to decode"),
        (torch.zeros(1, 3, 2), "2x5^6", "must be integers"),
        (torch.zeros(3, 2, dtype=torch.int64), "2x5^6", "must be integers"),
        (torch.zeros(1, 3, 2, dtype=torch.int64), "2x5", "must read"),
    ],
)
def test_impossible_tokens_are_refused(codec, tokens, bottleneck, why, unchecked):
    with pytest.raises(ValueError, match=why):
        codec.decode(tokens, bottleneck)


# Long recordings


@pytest.mark.parametrize("config", [TINY, CAUSAL], ids=lambda config: config.name)
def test_pieces_give_what_the_whole_gives(config):
    codec = Codec(*random_model(config))
    num_frames = 12_000
    wav = 0.3 * torch.randn(1, 1, num_frames * codec.hop_samples - 17, generator=torch.Generator().manual_seed(0))
    pieces = list(codec._pieces(num_frames, None))
    assert len(pieces) == 3
    assert [start for start, *_ in pieces] == [0, *(stop for _, stop, *_ in pieces[:-1])] and pieces[-1][
        1
    ] == num_frames
    latents, whole = codec._encode_latents(wav, None), codec.model.encode_latents(wav)
    torch.testing.assert_close(latents, whole, rtol=0, atol=1e-5)  # what the module promises
    tokens = codec.encode(wav, "1x17^6")
    # A difference of 1e-5 moves a value over a boundary once in several thousand.
    assert (tokens != tokenize(whole, BottleneckSpec.parse("1x17^6"))).float().mean() < 1e-3
    torch.testing.assert_close(
        codec.decode(tokens, "1x17^6"),
        codec.model.decode_latents(codec_module.detokenize(tokens, BottleneckSpec.parse("1x17^6"))),
        rtol=0,
        atol=1e-5,
    )


def test_a_piece_never_grows_with_the_recording():
    for config in (TINY, taae.config.load_preset("paper-950m"), taae.config.load_preset("paper-causal")):
        with torch.device("meta"):
            codec = Codec.__new__(Codec)
        codec.config = config
        for num_frames in (1, 4500, 30_000, 1_000_000):
            longest = max(last - first for _, _, first, last in codec._pieces(num_frames, None))
            assert longest <= 2 * max(4500, sum(config.receptive_frames))


def test_files_and_blocks_give_what_memory_gives(codec, speech, tmp_path):
    wav = speech(63.0, 22050)  # three pieces of the tiny model, which has 200 frames a second
    path = tmp_path / "long.wav"
    soundfile.write(path, wav, 22050, "FLOAT")
    data = codec.compress(wav, sample_rate_hz=22050)
    assert codec.compress_file(path) == data
    whole = codec.decompress(data)[0, 0].numpy()
    blocks = list(codec.decompress_blocks(data))
    assert len(blocks) > 1
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)
    with pytest.raises(FileNotFoundError):
        codec.compress_file(tmp_path / "absent.wav")
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(ValueError, match="cannot read .*text.wav as audio"):
        codec.compress_file(tmp_path / "text.wav")


def test_progress_rises_to_one(codec):
    wav = np.zeros(12_000 * codec.hop_samples, np.float32)
    steps: dict[str, list[float]] = {"compress": [], "decompress": [], "reconstruct": []}
    data = codec.compress(wav, progress=steps["compress"].append)
    codec.decompress(data, progress=steps["decompress"].append)
    codec.reconstruct(wav, progress=steps["reconstruct"].append)
    for done in steps.values():
        assert len(done) >= 3 and done == sorted(done) and done[-1] == 1.0 and done[0] > 0


# Files


@pytest.mark.parametrize("bottleneck", ["1x6^6", "1x17^6", "2x5^6", "4x3^6"])
@pytest.mark.parametrize("entropy", [False, True])
def test_decompress_of_compress_is_reconstruct(codec, speech, bottleneck, entropy):
    wav = speech(1.0, 22050)
    data = codec.compress(wav, bottleneck, sample_rate_hz=22050, entropy=entropy)
    back, tokens = codec.reconstruct(wav, bottleneck, sample_rate_hz=22050)
    assert torch.equal(codec.decompress(data), back)
    header, stored = unpack(data)
    np.testing.assert_array_equal(stored, tokens.numpy())
    assert header.bottleneck == BottleneckSpec.parse(bottleneck) and header.model_id == codec.model_id
    if not entropy:
        assert len(data) == HEADER_BYTES + math.ceil(len(stored) * header.bottleneck.bits_per_frame / 8)
    else:
        assert len(data) <= len(codec.compress(wav, bottleneck, sample_rate_hz=22050))


def test_a_file_of_another_model_is_refused(codec, speech):
    data = codec.compress(speech(0.2))
    other = Codec(*random_model(TINY, seed=1))
    with pytest.raises(BitstreamError, match="model"):
        other.decompress(data)
    with pytest.raises(BitstreamError, match="model"):
        other.decompress_blocks(data)


def test_the_tokens_of_a_file_of_another_model_are_not_even_read(codec, speech, monkeypatch):
    data = codec.compress(speech(0.2), entropy=True)
    monkeypatch.setattr("taae.codec.unpack", None)
    with pytest.raises(BitstreamError, match="model"):
        Codec(*random_model(TINY, seed=1)).decompress(data)


def test_a_file_whose_frames_and_samples_disagree_is_refused(codec):
    header, tokens = unpack(codec.compress(np.zeros(800, np.float32)))
    for num_samples in (1, 720, 801, 10**9):
        with pytest.raises(BitstreamError, match="a faulty program wrote it"):
            codec.decompress(pack(dataclasses.replace(header, num_samples=num_samples), tokens))


@pytest.mark.parametrize("rate_hz", [16000, 44100])
@pytest.mark.parametrize("gain_db", [-770.0, -200.0, 200.0, 770.0])
def test_a_file_with_an_absurd_gain_decodes_to_finite_audio(wire, gain_db, rate_hz, monkeypatch):
    decode = wire.model.decode_latents
    monkeypatch.setattr(wire.model, "decode_latents", lambda codes: 20 * decode(codes))  # beyond full scale
    wav = np.random.default_rng(0).standard_normal(8000).clip(-1, 1)
    header, tokens = unpack(wire.compress(wav, sample_rate_hz=rate_hz))
    data = pack(dataclasses.replace(header, gain_db=gain_db), tokens)
    for back in (wire.decompress(data)[0, 0].numpy(), np.concatenate(list(wire.decompress_blocks(data)))):
        assert len(back) == 8000 and np.isfinite(back).all() and np.abs(back).max() <= 1


def test_continuous_has_no_file(codec):
    with pytest.raises(ValueError, match="no tokens to store"):
        codec.compress(np.zeros(100, np.float32), "continuous")
    with pytest.raises(ValueError, match="8 dimensions, tiny has 6"):
        codec.compress(np.zeros(100, np.float32), "1x4^8")


# Loading


def test_load_takes_a_folder_and_its_files_decode_after_reloading(tmp_path, speech):
    save_model(random_model(TINY)[0], tmp_path)
    data = taae.load(tmp_path).compress(speech(0.3))
    codec = taae.load(str(tmp_path), device="cpu", dtype="float32")
    assert codec.decompress(data).shape == (1, 1, 4800)
    assert (codec.name, codec.sample_rate_hz, codec.hop_samples, codec.frame_rate_hz) == ("tiny", 16000, 80, 200.0)
    assert not any(parameter.requires_grad for parameter in codec.model.parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_half_precision_decodes_near_float32(tmp_path, speech, dtype):
    save_model(random_model(TINY)[0], tmp_path)
    full, half = taae.load(tmp_path), taae.load(tmp_path, dtype=dtype)
    data = full.compress(speech(1.0))
    back = half.decompress(data)
    assert back.dtype == torch.float32 and back.isfinite().all()
    assert ratio_db(full.decompress(data).numpy(), back.numpy()) > 25  # bf16 has 8 bits of mantissa
    assert half.decompress(half.compress(speech(1.0))).isfinite().all()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"dtype": "int4"}, "dtype must be one of float32, bfloat16, float16, int8, got 'int4'"),
        ({"dtype": "int8", "kernels": "plain"}, "int8 needs fast kernels on a cpu, got plain ones on cpu"),
        ({"dtype": "float16", "kernels": "fast"}, "fast kernels take float32, bfloat16 or int8"),
        ({"device": "toaster"}, "device must be one that torch knows"),
        pytest.param(
            {"device": "cuda"},
            "torch finds none here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_impossible_devices_and_types_are_refused(options, why):
    with pytest.raises(ValueError, match=why):
        Codec(*random_model(TINY), **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_files_of_the_cpu(speech):
    cpu, gpu = (Codec(*random_model(TINY), device=device) for device in ("cpu", "cuda"))
    wav = speech(2.0)
    tokens = [unpack(codec.compress(wav, "1x17^6"))[1] for codec in (cpu, gpu)]
    assert (tokens[0] != tokens[1]).mean() < 0.01  # float32 sums in another order
    data = cpu.compress(wav)
    torch.testing.assert_close(gpu.decompress(data), cpu.decompress(data), rtol=0, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("backend", ["auto", "blocked", "flex"])
def test_half_precision_on_a_gpu_decodes_items_of_any_length_near_the_cpu(dtype, backend):
    cpu = Codec(*random_model(TINY))
    gpu = Codec(*random_model(TINY), device="cuda", dtype=dtype)
    gpu.model.backend = backend
    generator = torch.Generator().manual_seed(0)
    tokens = cpu.encode_batch([0.3 * torch.randn(1, n, generator=generator) for n in (900, 33, 8000, 900)])
    for ours, expected in zip(gpu.decode_batch(tokens), cpu.decode_batch(tokens), strict=True):
        assert ours.shape == expected.shape
        assert ratio_db(expected.numpy(), ours.numpy()) > (25 if dtype == "bfloat16" else 35)  # 8 and 11 bits


@pytest.mark.slow
def test_the_main_model_encodes_and_decodes_ten_seconds_in_float32_and_bfloat16(speech):
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 6 * 2**30:
        pytest.skip("needs 6 GB of free memory")
    codec = taae.load("paper-950m")
    wav, decoded = torch.from_numpy(speech(10.0))[None, None], {}
    tokens = torch.randint(5**6, (1, 250, 2))
    for dtype in ("float32", "bfloat16"):
        codec = Codec(codec.model, codec.model_id, dtype=dtype)
        assert codec.encode(wav).shape == (1, 250, 2)
        decoded[dtype] = codec.decode(tokens)
        assert decoded[dtype].shape == (1, 1, 160_000) and decoded[dtype].isfinite().all()
    assert ratio_db(decoded["float32"].numpy(), decoded["bfloat16"].numpy()) > 20  # 8 bits of mantissa, 28 layers


def test_compressing_at_several_bitrates_at_once_gives_the_files_of_each(codec, speech):
    wav = speech(1.3)
    specs = ["1x6^6", "2x5^6", "4x3^6"]
    assert codec.compress_each(wav, specs) == [codec.compress(wav, spec) for spec in specs]


def test_a_model_that_gives_nan_is_an_error_and_not_tokens(codec):
    broken = Codec(*random_model(codec.config))
    broken.model.encoder.conv_out.conv.bias.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="NaN or infinite latents"):
        broken.encode(torch.zeros(1, 1, 1000))


def test_an_array_instead_of_a_tensor_is_named(codec, unchecked):
    with pytest.raises(ValueError, match="torch tensor, got ndarray"):
        codec.encode(np.zeros((1, 1, 1000), np.float32))
