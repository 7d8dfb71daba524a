"""Streaming: equal to the offline causal forward, 40 ms late, of constant size, and it outlives lost frames."""

import copy
import dataclasses
import functools
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taae.causal import CausalHalf
from taae.checkpoint import load_model, random_model
from taae.codec import Codec
from taae.config import BottleneckSpec, ModelConfig, load_preset
from taae.fsq import detokenize
from taae.model import TAAE
from taae.patching import patchify
from taae.streaming import CONCEALED_DECAY, CONCEALED_GAINS, StreamingDecoder, StreamingEncoder

CAUSAL = ModelConfig(
    name="tiny-causal",
    patch_samples=8,
    width=32,
    head_dim=16,
    rope_dims=8,
    depths=(1, 2),
    window=(5, 0),
    is_causal=True,
    layer_scale_init=0.5,
)
VARIANTS = [
    CAUSAL,
    dataclasses.replace(CAUSAL, strides=(2, 3), window=(2, 0)),
    dataclasses.replace(CAUSAL, strides=(1, 2, 2), depths=(1, 1, 1), latent_dim=8),
    dataclasses.replace(CAUSAL, strides=(4,), depths=(2,), window=(0, 0), rope_dims=0),
    dataclasses.replace(CAUSAL, strides=(1,), depths=(0,)),
]
# float32 through ten layers; the values are about 1.
TOLERANCE = 2e-5


@functools.cache
def tiny(config: ModelConfig = CAUSAL) -> TAAE:
    """A model whose every parameter matters."""
    model = random_model(config)[0]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(tiny(), b"tinytiny")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def frames(codec: Codec, num_frames: int, num_streams: int = 1) -> torch.Tensor:
    return codec.encode(noise(num_streams, 1, num_frames * codec.hop_samples))


def near_a_boundary(codec: Codec, wav: torch.Tensor, spec: BottleneckSpec) -> torch.Tensor:
    """Frames (b, s) with a latent so near to a boundary of the quantiser that rounding may move it across."""
    with torch.inference_mode():
        bounded = codec.model.encode_latents(wav).double().tanh()
    place = (spec.grid_levels - 1) * (bounded + 1) / 2 + 0.5
    return ((place - place.round()).abs() < TOLERANCE * spec.grid_levels).any(dim=-1)


def pushed(half, pieces) -> torch.Tensor:
    dim = 1 if isinstance(half, StreamingEncoder) else 2
    return torch.cat([half.push(piece) for piece in pieces] + [half.flush()], dim=dim)


# Equality with the offline forward


@pytest.mark.parametrize("config", VARIANTS, ids=lambda config: f"{config.strides} {config.window} {config.depths}")
@pytest.mark.parametrize("max_frames", [1, 3, 100])
def test_both_halves_are_the_offline_forward_in_float64(config, max_frames):
    model = random_model(config)[0].double()
    patches_per_frame = config.hop_samples // config.patch_samples
    wav = noise(2, 1, 41 * config.hop_samples).double()
    with torch.inference_mode():
        latents = model.encode_latents(wav)
        decoded = model.decode_latents(latents.tanh())
        encoder = CausalHalf(model.encoder, config, 2, max_frames)
        decoder = CausalHalf(model.decoder, config, 2, max_frames)
        cuts = [1, 1, 7, 2, 30]
        patches = patchify(wav, config.patch_samples).split([cut * patches_per_frame for cut in cuts], dim=1)
        streamed = torch.cat([encoder.run(piece) for piece in patches], dim=1)
        heard = torch.cat([decoder.run(piece) for piece in latents.tanh().split(cuts, dim=1)], dim=1)
    torch.testing.assert_close(streamed, latents, rtol=0, atol=1e-12)
    torch.testing.assert_close(heard.reshape(2, 1, -1), decoded, rtol=0, atol=1e-12)
    assert encoder.num_frames == decoder.num_frames == 41


@settings(max_examples=25)
@given(
    cuts=st.lists(st.integers(0, 200), max_size=12),
    max_frames=st.integers(1, 9),
    bottleneck=st.sampled_from(["1x6^6", "2x5^6", "1x17^6"]),
)
def test_any_cut_of_the_audio_gives_the_tokens_and_the_audio_of_the_whole(cuts, max_frames, bottleneck):
    codec = Codec(tiny(), b"tinytiny")
    wav = noise(1, 1, sum(cuts) + 1)
    offline = codec.encode(wav, bottleneck)
    encoder = StreamingEncoder(codec, bottleneck, max_frames=max_frames)
    tokens = pushed(encoder, wav.split([*cuts, 1], dim=-1))
    assert tokens.shape == offline.shape
    differ = (tokens != offline).any(dim=-1)
    assert not (differ & ~near_a_boundary(codec, wav, BottleneckSpec.parse(bottleneck))).any()
    decoder = StreamingDecoder(codec, bottleneck, max_frames=max_frames)
    frame_cuts = [cut for cut in cuts if cut < offline.shape[1]][:1]
    pieces = offline.split([*frame_cuts, offline.shape[1] - sum(frame_cuts)], dim=1)
    torch.testing.assert_close(pushed(decoder, pieces), codec.decode(offline, bottleneck), rtol=0, atol=TOLERANCE)


def test_speech_through_trained_weights_gives_no_other_tokens(speech):
    trained, identity = load_model("mini")
    # Read causally, its weights make no good codec, but numbers of the size that training gives them.
    model = TAAE(dataclasses.replace(trained.config, window=(31, 0), is_causal=True), is_fused=True)
    model.load_state_dict(trained.state_dict())
    codec = Codec(model, identity)
    wav = torch.from_numpy(speech(6.0))[None, None]
    offline = codec.encode(wav, "1x17^6")
    tokens = pushed(StreamingEncoder(codec, "1x17^6", max_frames=1), wav.split(480, dim=-1))
    differ = (tokens != offline).any(dim=-1)
    assert not (differ & ~near_a_boundary(codec, wav, BottleneckSpec.parse("1x17^6"))).any()
    assert len(tokens[0].unique()) > 100  # of 150: a model that hears nothing would pass too
    heard = pushed(StreamingDecoder(codec, "1x17^6", max_frames=1), offline.split(1, dim=1))
    torch.testing.assert_close(heard, codec.decode(offline, "1x17^6"), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_packed_layers_stream_what_they_give_offline(dtype):
    plain = Codec(tiny(), b"tinytiny")
    fast = Codec(copy.deepcopy(tiny()), b"tinytiny", dtype=dtype, kernels="fast")
    wav = noise(1, 1, 41 * fast.hop_samples)
    tokens = plain.encode(wav)
    heard = pushed(StreamingDecoder(fast, max_frames=3), tokens.split(5, dim=1))
    offline = fast.decode(tokens)
    # bfloat16 has 8 bits of mantissa, and sums of other shapes round in another order, layer after layer.
    error = (heard - offline).square().mean().sqrt() / offline.square().mean().sqrt()
    assert error < (1e-5 if fast.dtype == torch.float32 else 0.02)
    streamed = pushed(StreamingEncoder(fast, max_frames=3), wav.split(100, dim=-1))
    assert (streamed == fast.encode(wav)).float().mean() > (0.99 if dtype == "float32" else 0.8)
    assert heard.abs().max() > 0.01


# Latency


def test_the_paper_s_causal_model_is_40_ms_late():
    assert load_preset("paper-causal").latency_ms == 40


def test_sample_by_sample_the_latency_is_one_latent_frame_and_no_less(codec):
    hop = codec.hop_samples
    encoder, decoder = StreamingEncoder(codec), StreamingDecoder(codec)
    num_out, latencies = 0, []
    for num_in, sample in enumerate(noise(1, 1, 5 * hop).split(1, dim=-1), start=1):
        heard = decoder.push(encoder.push(sample)).shape[-1]
        # Sample m of the output belongs to sample m of the input, which had been heard when m + 1 had been pushed.
        latencies += [num_in - m for m in range(num_out, num_out + heard)]
        num_out += heard
    assert max(latencies) == hop and min(latencies) == 1
    assert num_out == 5 * hop


@pytest.mark.parametrize("sample", [0, 15, 16, 37, 95])
def test_an_impulse_changes_its_own_frame_and_none_before(codec, sample):
    hop = codec.hop_samples
    wav = noise(1, 1, 8 * hop)
    struck = wav.clone()
    struck[..., sample] += 1.0

    def heard(wav: torch.Tensor) -> torch.Tensor:
        latents = CausalHalf(codec.model.encoder, codec.config, 1, 1).run(patchify(wav, 8))
        return CausalHalf(codec.model.decoder, codec.config, 1, 1).run(latents.tanh()).flatten()

    with torch.inference_mode():
        changed = (heard(struck) != heard(wav)).nonzero().flatten()
    begin = sample // hop * hop
    # The very first sample of the frame moves too, so it could not have been given out before the last one came.
    assert int(changed[0]) == begin


# A long time, and many streams


@pytest.mark.slow
def test_an_hour_takes_the_memory_of_a_second_and_ends_as_exact_as_it_began():
    config = dataclasses.replace(CAUSAL, window=(15, 0), depths=(1, 1))
    codec = Codec(tiny(config), b"tinytiny")
    encoder, decoder = StreamingEncoder(codec, max_frames=100), StreamingDecoder(codec, max_frames=100)
    before, _ = config.receptive_frames
    hop = codec.hop_samples
    piece = noise(1, 1, 100 * hop)

    def resident_bytes() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(30):
        decoder.push(encoder.push(piece))
    sizes = encoder.state_bytes, decoder.state_bytes, resident_bytes()
    for _ in range(870):
        decoder.push(encoder.push(piece))
    assert encoder.num_frames == decoder.num_frames == 90_000  # an hour at 25 Hz
    assert (encoder.state_bytes, decoder.state_bytes) == sizes[:2]
    if os.path.exists("/proc/self/statm"):
        assert resident_bytes() - sizes[2] < 8e6  # one byte a sample would be 1.4 MB, one float a latent 2.2 MB more

    recent = piece.repeat(1, 1, 2 + before // 100)
    tokens = pushed(encoder, [noise(1, 1, 50 * hop, seed=1)])
    offline = codec.encode(torch.cat((recent, noise(1, 1, 50 * hop, seed=1)), dim=-1))[:, -50:]
    assert (tokens == offline).all(dim=-1).float().mean() >= 0.96  # angles are rounded to float32
    late = StreamingDecoder(codec, max_frames=100)
    late._half._steps[1].next_position = 10**9  # a year and a quarter
    torch.testing.assert_close(
        pushed(late, [offline]), pushed(StreamingDecoder(codec), [offline]), rtol=0, atol=TOLERANCE
    )


def test_streams_of_one_codec_do_not_hear_each_other(codec):
    wavs = [noise(1, 1, 200, seed=seed) for seed in range(5)]
    alone = [pushed(StreamingEncoder(codec), [wav]) for wav in wavs]
    encoders = [StreamingEncoder(codec) for _ in wavs]
    parts = [[] for _ in wavs]
    for start in range(0, 200, 23):
        for encoder, part, wav in zip(encoders, parts, wavs, strict=True):
            part.append(encoder.push(wav[..., start : start + 23]))
    for encoder, part, expected in zip(encoders, parts, alone, strict=True):
        assert torch.equal(torch.cat([*part, encoder.flush()], dim=1), expected)


def test_a_batch_of_streams_is_each_of_them_and_one_can_begin_anew(codec):
    wav, hop = noise(3, 1, 20 * codec.hop_samples), codec.hop_samples
    encoder, decoder = StreamingEncoder(codec, num_streams=3), StreamingDecoder(codec, num_streams=3)
    tokens = encoder.push(wav[..., : 9 * hop])
    heard = decoder.push(tokens)
    for stream in (encoder, decoder):
        stream.reset(1)
    later = encoder.push(wav[..., 9 * hop :])
    heard_later = decoder.push(later)
    for row in range(3):
        offline = codec.encode(wav[row : row + 1])[0]
        assert torch.equal(tokens[row], offline[:9])
        torch.testing.assert_close(heard[row], codec.decode(offline[None])[0, :, : 9 * hop], rtol=0, atol=TOLERANCE)
        if row == 1:
            offline = codec.encode(wav[row : row + 1, :, 9 * hop :])[0]
            whole = codec.decode(offline[None])[0]
        else:
            whole = codec.decode(offline[None])[0, :, 9 * hop :]
            offline = offline[9:]
        assert torch.equal(later[row], offline)
        torch.testing.assert_close(heard_later[row], whole, rtol=0, atol=TOLERANCE)


def test_flush_completes_the_last_frame_with_zeros_and_begins_anew(codec):
    wav = noise(1, 1, 5 * codec.hop_samples + 3)
    encoder = StreamingEncoder(codec)
    first = encoder.push(wav)
    assert first.shape[1] == encoder.num_frames == 5
    assert torch.equal(torch.cat((first, encoder.flush()), dim=1), codec.encode(wav))
    assert encoder.num_frames == 0 and encoder.flush().shape == (1, 0, 2)
    assert torch.equal(pushed(encoder, [wav]), codec.encode(wav))


def test_the_bitrate_may_change_on_the_way(codec):
    wav, hop = noise(1, 1, 12 * codec.hop_samples), codec.hop_samples
    encoder, decoder = StreamingEncoder(codec, "2x5^6"), StreamingDecoder(codec, "2x5^6")
    first = encoder.push(wav[..., : 6 * hop])
    heard = [decoder.push(first)]
    encoder.bottleneck = decoder.bottleneck = "1x6^6"
    second = encoder.push(wav[..., 6 * hop :])
    heard.append(decoder.push(second))
    assert torch.equal(first, codec.encode(wav, "2x5^6")[:, :6])
    assert torch.equal(second, codec.encode(wav, "1x6^6")[:, 6:])
    codes = [detokenize(tokens, BottleneckSpec.parse(spec)) for tokens, spec in ((first, "2x5^6"), (second, "1x6^6"))]
    with torch.inference_mode():
        expected = codec.model.decode_latents(torch.cat(codes, dim=1))
    torch.testing.assert_close(torch.cat(heard, dim=-1), expected, rtol=0, atol=TOLERANCE)


# Lost frames


def test_after_a_loss_the_stream_goes_on_and_in_the_end_is_what_it_would_have_been(codec):
    before, _ = codec.config.receptive_frames
    num_frames, hop = 20 + 2 + before + 10, codec.hop_samples
    tokens = frames(codec, num_frames)
    is_lost = torch.zeros(1, num_frames, dtype=torch.bool)
    is_lost[:, 20:22] = True
    whole = pushed(StreamingDecoder(codec), [tokens])
    heard = StreamingDecoder(codec).push(tokens, is_lost)
    assert heard.shape == whole.shape
    assert torch.equal(heard[..., : 20 * hop], whole[..., : 20 * hop])
    assert not torch.equal(heard[..., 20 * hop : 22 * hop], whole[..., 20 * hop : 22 * hop])
    torch.testing.assert_close(
        heard[..., (22 + before) * hop :], whole[..., (22 + before) * hop :], rtol=0, atol=TOLERANCE
    )


def concealed_codes(codec: Codec, before: torch.Tensor, num_lost: int, after: torch.Tensor) -> torch.Tensor:
    """Audio (n,) of the codes that a decoder is given around a loss, at their full level."""
    first, last = (detokenize(tokens, BottleneckSpec.parse("2x5^6")) for tokens in (before, after))
    lost = [first[:, -1:] * CONCEALED_DECAY**count for count in range(1, num_lost + 1)]
    with torch.inference_mode():
        return codec.model.decode_latents(torch.cat([first, *lost, last], dim=1))[0, 0]


def test_a_lost_frame_repeats_the_last_one_weaker_and_a_long_loss_fades_to_silence(codec):
    tokens, hop = frames(codec, 10), codec.hop_samples
    decoder = StreamingDecoder(codec)
    decoder.push(tokens)
    concealed = decoder.conceal(8).reshape(8, hop)
    expected = concealed_codes(codec, tokens, 8, tokens[:, :0]).reshape(-1, hop)[10:]
    # The last sample of every frame has come down to its level; the first frame is not attenuated at all.
    torch.testing.assert_close(concealed[0], expected[0], rtol=0, atol=TOLERANCE)
    levels = torch.tensor((*CONCEALED_GAINS, 0.0, 0.0, 0.0))
    torch.testing.assert_close(concealed[:, -1], levels * expected[:, -1], rtol=0, atol=TOLERANCE)
    assert concealed[5:].count_nonzero() == 0
    assert list(CONCEALED_GAINS) == sorted(CONCEALED_GAINS, reverse=True) and CONCEALED_GAINS[-1] == 0


def test_after_a_long_loss_the_level_is_back_within_an_eighth_of_a_frame(codec):
    tokens, hop = frames(codec, 3), codec.hop_samples
    decoder = StreamingDecoder(codec)
    decoder.push(tokens)
    decoder.conceal(8)
    back = decoder.push(tokens)[0, 0]
    expected = concealed_codes(codec, tokens, 8, tokens)[11 * hop :]
    torch.testing.assert_close(back[hop // 8 - 1 :], expected[hop // 8 - 1 :], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(back[0], 8 / hop * expected[0], rtol=0, atol=TOLERANCE)


def test_frames_lost_before_the_first_that_arrives_are_silent(codec):
    tokens, hop = frames(codec, 6), codec.hop_samples
    is_lost = torch.tensor([[True, True, False, False, False, False]])
    heard = StreamingDecoder(codec).push(tokens, is_lost)[0, 0]
    assert heard[: 2 * hop].count_nonzero() == 0
    assert heard[2 * hop :].count_nonzero() > 0


def test_every_stream_of_a_batch_has_losses_of_its_own(codec):
    tokens = frames(codec, 30, num_streams=3)
    is_lost = torch.from_numpy(np.random.default_rng(0).random((3, 30)) < 0.3)
    together = StreamingDecoder(codec, num_streams=3).push(tokens, is_lost)
    for row in range(3):
        alone = StreamingDecoder(codec)
        pieces = [
            alone.push(tokens[row : row + 1, frame : frame + 1], is_lost[row : row + 1, frame : frame + 1])
            for frame in range(30)
        ]
        torch.testing.assert_close(torch.cat(pieces, dim=-1)[0], together[row], rtol=0, atol=TOLERANCE)


def test_what_a_lost_frame_held_is_not_looked_at(codec):
    tokens = frames(codec, 10)
    is_lost = torch.arange(10)[None] % 3 == 1
    damaged = tokens.masked_fill(is_lost[..., None], -(10**9))
    assert torch.equal(StreamingDecoder(codec).push(damaged, is_lost), StreamingDecoder(codec).push(tokens, is_lost))


# Refusals


def test_a_model_that_looks_ahead_is_refused(unchecked):
    codec = Codec(*random_model(dataclasses.replace(CAUSAL, name="acausal", is_causal=False, window=(5, 5))))
    for half in (StreamingEncoder, StreamingDecoder):
        with pytest.raises(ValueError, match="acausal cannot stream: it is not causal .* choose a causal model"):
            half(codec)
    with pytest.raises(ValueError, match="acausal is not causal"):
        CausalHalf(codec.model.encoder, codec.config, 1, 1)


@pytest.mark.parametrize(("bottleneck", "words"), [("continuous", "no tokens"), ("1x6^8", "8 dim"), ("3x", "3x")])
def test_a_bottleneck_that_does_not_fit_is_refused(codec, bottleneck, words):
    decoder = StreamingDecoder(codec)
    for run in (
        lambda: StreamingEncoder(codec, bottleneck),
        lambda: setattr(decoder, "bottleneck", bottleneck),
    ):
        with pytest.raises(ValueError, match=words):
            run()
    assert str(decoder.bottleneck) == "2x5^6"


@pytest.mark.parametrize(
    ("wav", "words"),
    [
        (torch.zeros(2, 1, 5), r"wav must be \(1, 1, samples\), got \(2, 1, 5\)"),
        (torch.zeros(16), "wav must be"),
        (torch.zeros(1, 1, 4, dtype=torch.int16), "divide int16 by 32768"),
        (torch.tensor([[[0.0, torch.nan, torch.inf]]]), "2 values that are NaN"),
    ],
)
def test_a_piece_that_is_refused_leaves_the_stream_as_it_was(unchecked, codec, wav, words):
    good = noise(1, 1, 100)
    encoder = StreamingEncoder(codec)
    first = encoder.push(good[..., :50])
    with pytest.raises(ValueError, match=words):
        encoder.push(wav)
    assert torch.equal(torch.cat((first, encoder.push(good[..., 50:]), encoder.flush()), dim=1), codec.encode(good))


def test_tokens_that_are_refused_leave_the_stream_as_it_was(unchecked, codec):
    tokens = frames(codec, 4)
    decoder = StreamingDecoder(codec)
    first = decoder.push(tokens[:, :2])
    for wrong in (tokens + 5**6, tokens[..., :1], tokens.float(), tokens.repeat(2, 1, 1)):
        with pytest.raises(ValueError, match="tokens"):
            decoder.push(wrong)
    whole = StreamingDecoder(codec).push(tokens)
    torch.testing.assert_close(torch.cat((first, decoder.push(tokens[:, 2:])), dim=-1), whole, rtol=0, atol=TOLERANCE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_streams_run_on_a_gpu_as_on_the_processor(codec):
    other = Codec(random_model(CAUSAL)[0], b"tinytiny", device="cuda")
    other.model.load_state_dict(codec.model.state_dict())
    tokens = frames(codec, 20)
    heard = pushed(StreamingDecoder(other), tokens.split(1, dim=1))
    torch.testing.assert_close(heard, codec.decode(tokens), rtol=0, atol=1e-3)  # TF32 and other kernels
