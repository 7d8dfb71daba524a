"""Steps recorded once and repeated on fixed memory: what CUDA graphs ask for, tried without a GPU, and on one."""

import dataclasses

import pytest
import torch

from taae.causal import CausalHalf
from taae.checkpoint import random_model
from taae.codec import Codec
from taae.config import ModelConfig
from taae.graphs import GraphedHalf
from taae.patching import patchify
from taae.streaming import StreamingDecoder, StreamingEncoder

CAUSAL = ModelConfig(
    name="tiny-causal", patch_samples=40, width=32, head_dim=16, rope_dims=8, depths=(1, 2), window=(5, 0),
    layer_scale_init=0.5, is_causal=True,
)  # fmt: skip


class Recorder:
    """What a CUDA graph is to its user: the same work on the same memory, whatever variables say by then."""

    def __init__(self) -> None:
        self.num_recorded = self.num_replayed = 0

    def __call__(self, compute):
        self.num_recorded += 1
        out = compute()

        def replay() -> None:
            self.num_replayed += 1
            out.copy_(compute())

        return replay, out


@pytest.fixture(scope="module")
def model():
    return random_model(CAUSAL)[0].requires_grad_(False)


@pytest.mark.parametrize("half_name", ["encoder", "decoder"])
def test_repeated_steps_give_what_plain_steps_give(model, half_name):
    half, generator = getattr(model, half_name), torch.Generator().manual_seed(0)
    if half_name == "encoder":
        stream = patchify(0.3 * torch.randn(2, 1, 80 * 60, generator=generator), 40)
    else:
        stream = 2 * torch.rand(2, 60, 6, generator=generator) - 1
    per_frame = stream.shape[1] // 60
    record = Recorder()
    plain, graphed = CausalHalf(half, CAUSAL, 2, 4), GraphedHalf(half, CAUSAL, 2, 4, record)
    expected, found, start = [], [], 0
    for frames in (1, 1, 4, 1, 3, 10, 1, 4, 1, 1, 1, 2, 7, 1, 4, 18):
        piece = stream[:, start * per_frame : (start + frames) * per_frame]
        expected.append(plain.run(piece))
        found.append(graphed.run(piece))
        start += frames
    assert start == 60 and graphed.num_frames == plain.num_frames == 60
    torch.testing.assert_close(torch.cat(found, 1), torch.cat(expected, 1), rtol=0, atol=0)
    assert record.num_recorded == 4 and record.num_replayed > 16  # 1, 2, 3 and 4 frames
    for each in (plain, graphed):
        each.reset(1)
    piece = stream[:, :per_frame]
    torch.testing.assert_close(graphed.run(piece), plain.run(piece), rtol=0, atol=0)
    for each in (plain, graphed):
        each.reset()
    torch.testing.assert_close(graphed.run(piece), plain.run(piece), rtol=0, atol=0)
    assert record.num_recorded == 4


def test_graphs_are_refused_where_there_is_no_gpu(model):
    for stream in (StreamingEncoder, StreamingDecoder):
        with pytest.raises(ValueError, match="use_graphs needs a codec on cuda, this one is on cpu; leave it off"):
            stream(Codec(model, b"12345678"), use_graphs=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_graphs_on_a_gpu_give_what_steps_give(dtype):
    codec = Codec(*random_model(dataclasses.replace(CAUSAL, width=64)), device="cuda", dtype=dtype)
    wav = 0.3 * torch.randn(2, 1, 80 * 40)
    tokens = [StreamingEncoder(codec, num_streams=2, use_graphs=use).push(wav) for use in (False, True)]
    assert (tokens[0] != tokens[1]).float().mean() < 0.02  # kernels may be chosen anew
    sounds = []
    for use in (False, True):
        decoder = StreamingDecoder(codec, num_streams=2, use_graphs=use)
        sounds.append(torch.cat([decoder.push(tokens[0][:, i : i + 1]) for i in range(40)], dim=-1))
    torch.testing.assert_close(*sounds, rtol=0, atol=1e-4 if dtype == "float32" else 0.05)
