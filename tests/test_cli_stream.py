"""`taae stream` as users run it, and the packets that it sends."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from taae import packets
from taae.bitstream import Header, pack
from taae.checkpoint import load_model, save_model
from taae.cli import app
from taae.codec import Codec
from taae.config import BottleneckSpec, ModelConfig
from taae.model import TAAE
from taae.packets import PacketError, StreamHeader, read_frames, read_header
from taae.streaming import StreamingDecoder, StreamingEncoder

ROOT = Path(__file__).resolve().parents[1]
HOP = 640
SPECS = [BottleneckSpec.parse(text) for text in ("1x6^6", "1x17^6", "2x5^6", "4x3^6")]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny-causal"
    torch.manual_seed(0)
    config = ModelConfig(name="tiny-causal", width=32, head_dim=16, rope_dims=8, depths=(1, 1), window=(7, 0),
                         is_causal=True, layer_scale_init=0.5)  # fmt: skip
    save_model(TAAE(config), folder)
    return str(folder)


@pytest.fixture(scope="module")
def codec(model) -> Codec:
    return Codec(*load_model(model))


@pytest.fixture(scope="module")
def pcm(speech) -> np.ndarray:
    return np.rint(speech(3.01) * 32767).astype("<i2")


def run(*args: str, stdin: bytes, model: str):
    """The command in this process, unchecked as for users: typer hands over values that its annotations do not name."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        return CliRunner().invoke(app, ["stream", "--model", model, *args], input=stdin)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def succeed(*args: str, stdin: bytes, model: str) -> bytes:
    done = run(*args, stdin=stdin, model=model)
    assert done.exit_code == 0, done.exception
    return done.stdout_bytes


def heard(codec: Codec, pcm: np.ndarray, is_lost: np.ndarray | None = None, gain: float = 1.0) -> np.ndarray:
    """What the library makes of it, as int16."""
    tokens = codec.encode(torch.from_numpy(pcm.astype(np.float32) * (gain / 32768))[None, None])
    decoder = StreamingDecoder(codec)
    wav = decoder.push(tokens, None if is_lost is None else torch.from_numpy(is_lost)[None])
    return (wav[0, 0, : len(pcm)] * (32768 / gain)).round().clamp(-32768, 32767).numpy().astype("<i2")


def samples(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<i2").astype(np.int32)


# The command


def test_as_many_samples_come_out_as_went_in_and_they_are_the_decoded_ones(codec, model, pcm):
    out = succeed(stdin=pcm.tobytes(), model=model)
    assert len(out) == 2 * len(pcm)
    assert np.abs(samples(out) - heard(codec, pcm)).max() <= 1
    assert np.abs(samples(out)).max() > 50


def test_the_gain_is_undone_after_decoding(codec, model, pcm):
    out = succeed("--gain-db", "6", stdin=pcm.tobytes(), model=model)
    assert np.abs(samples(out) - heard(codec, pcm, gain=10**0.3)).max() <= 1
    assert not np.array_equal(samples(out), heard(codec, pcm))


def test_a_tenth_of_the_frames_lost_plays_through(codec, model, pcm):
    done = run("--loss", "0.1", "--seed", "3", "--stats", stdin=pcm.tobytes(), model=model)
    stats = json.loads(done.stderr)
    num_frames = -(-len(pcm) // HOP)
    assert stats["frames"] == num_frames == 76
    assert 1 <= stats["lost"] <= 20 and stats["latency_ms"] == stats["frame_ms"] == 40
    assert 0 < stats["decode_ms_p50"] <= stats["decode_ms_p99"]
    import random

    draws = random.Random(3)
    is_lost = np.array([draws.random() < 0.1 for _ in range(num_frames)])
    assert stats["lost"] == is_lost.sum()
    assert np.abs(samples(done.stdout_bytes) - heard(codec, pcm, is_lost)).max() <= 1


def test_everything_lost_is_silence(model, pcm):
    out = succeed("--loss", "1", stdin=pcm.tobytes(), model=model)
    assert len(out) == 2 * len(pcm) and not any(out)


@pytest.mark.parametrize("loss", ["0", "0.2"])
def test_packets_between_two_processes_give_what_one_process_gives(codec, model, pcm, loss):
    whole = pcm[: 70 * HOP]
    options = ("--loss", loss, "--seed", "5", "--gain-db", "-3")
    sent = succeed("--encode", *options, stdin=whole.tobytes(), model=model)
    out = succeed("--decode", stdin=sent, model=model)
    direct = succeed(*options, stdin=whole.tobytes(), model=model)
    num_packets = (len(sent) - 21) // 6  # 28 bits and a number of two bytes
    assert num_packets == 70 if loss == "0" else 40 < num_packets < 70
    # Frames lost before the first packet and after the last are nothing that the receiver can know.
    assert len(direct) - len(out) <= 3 * 2 * HOP
    if loss == "0":
        assert np.abs(samples(out) - samples(direct)).max() <= 1


def test_the_channel_may_lose_what_is_received_too(codec, model, pcm):
    sent = succeed("--encode", stdin=pcm.tobytes(), model=model)
    out = succeed("--decode", "--loss", "0.1", "--seed", "3", stdin=sent, model=model)
    direct = succeed("--loss", "0.1", "--seed", "3", stdin=pcm.tobytes(), model=model)
    assert np.abs(samples(out)[: len(pcm)] - samples(direct)).max() <= 1


def test_a_pipe_is_answered_frame_by_frame_before_it_ends(codec, model, pcm):
    command = [sys.executable, "-m", "taae.cli", "stream", "--model", model]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdin is not None and process.stdout is not None
        out = b""
        for start in range(0, 10 * HOP, HOP):
            process.stdin.write(pcm[start : start + HOP].tobytes())
            process.stdin.flush()
            out += process.stdout.read(2 * HOP)  # would wait for ever if more were needed
        process.stdin.write(pcm[10 * HOP : 10 * HOP + 100].tobytes()[:-1])
        process.stdin.close()
        rest = process.stdout.read()
        assert process.wait(60) == 1  # it ended within a sample
    assert np.abs(samples(out) - heard(codec, pcm[: 10 * HOP])).max() <= 1
    assert rest == b""


def complaint(*args: str, stdin: bytes = b"", model: str) -> str:
    done = run(*args, stdin=stdin, model=model)
    assert done.exit_code != 0
    return str(done.exception) if done.exit_code == 1 else done.stderr


def test_what_cannot_be_streamed_is_said(model, pcm, monkeypatch):
    assert "mini cannot stream: it is not causal" in complaint(stdin=pcm.tobytes(), model="mini")
    assert "stdin is a WAV file" in complaint(stdin=b"RIFF" + bytes(100), model=model)
    assert "ended within a sample" in complaint(stdin=bytes(1281), model=model)
    assert "exclude each other" in complaint("--encode", "--decode", model=model)
    assert "not from a microphone" in complaint("--decode", "--microphone", model=model)
    assert "1x6^8 has 8 dimensions" in complaint("--bottleneck", "1x6^8", model=model)
    assert "not a stream of packets" in complaint("--decode", stdin=pcm.tobytes(), model=model)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "need sounddevice and PortAudio" in complaint("--microphone", model=model)


def test_packets_of_another_model_are_refused(model, pcm):
    header = StreamHeader(model_id=b"another!", bottleneck=SPECS[0])
    assert "noise of them; choose the sender's" in complaint("--decode", stdin=header.dump(), model=model)


# Packets


@settings(max_examples=40)
@given(st.sampled_from(SPECS), st.data())
def test_packets_hold_the_bits_of_a_taae_file(spec, data):
    header = StreamHeader(model_id=b"tinytiny", bottleneck=spec, gain_db=-2.5)
    tokens = data.draw(
        st.lists(st.integers(0, spec.codebook_size - 1), min_size=spec.num_stages, max_size=spec.num_stages)
    )
    number = data.draw(st.integers(0, 2**20))
    packet = header.dump_packet(number, tokens)
    assert len(packet) == header.packet_bytes == 2 + -(-spec.bits_per_frame // 8)
    assert header.parse_packet(packet) == (number % 2**16, tokens)
    file = Header(
        model_id=b"tinytiny", sample_rate_hz=16000, num_samples=640, num_frames=1, bottleneck=spec, gain_db=0.0
    )
    assert packet[2:] == pack(file, np.array([tokens]))[39:]


def test_the_document_s_example_is_what_is_written():
    header = StreamHeader(model_id=b"example!", bottleneck=BottleneckSpec.parse("2x5^6"), gain_db=-3.5)
    blocks = (ROOT / "docs" / "streaming.md").read_text().split("```hex\n")[1:]
    assert bytes.fromhex(blocks[0].split("```")[0]) == header.dump()
    assert bytes.fromhex(blocks[1].split("```")[0]) == header.dump_packet(258, [1, 15624])
    assert read_header(io.BytesIO(header.dump())) == header


def frames_of(numbers: list[int]) -> list[int | None]:
    """Frames that a receiver of these packets gets, each with its own number as its token."""
    header = StreamHeader(model_id=b"tinytiny", bottleneck=SPECS[1])
    data = b"".join(header.dump_packet(number, [number]) for number in numbers)
    return [None if frame is None else frame[0] for frame in read_frames(io.BytesIO(data), header)]


def test_missing_packets_leave_gaps_and_late_ones_are_left_out():
    assert frames_of([0, 1, 2]) == [0, 1, 2]
    assert frames_of([7, 8, 11]) == [7, 8, None, None, 11]
    assert frames_of([0, 3, 1, 3, 4]) == [0, None, None, 3, 4]
    assert frames_of([65535, 65537]) == [65535, None, 65537]
    assert frames_of([0, packets.MAX_GAP_FRAMES + 2, packets.MAX_GAP_FRAMES + 3])[1:] == [252, 253]
    assert frames_of([0, packets.MAX_GAP_FRAMES + 1])[1:] == [None] * packets.MAX_GAP_FRAMES + [251]


def test_a_damaged_packet_is_a_lost_one_and_half_a_packet_is_none():
    header = StreamHeader(model_id=b"tinytiny", bottleneck=SPECS[0])
    data = header.dump_packet(0, [5]) + b"\0\1\xff\xff" + header.dump_packet(2, [6]) + b"\0\3\0"
    assert list(read_frames(io.BytesIO(data), header)) == [[5], None, [6]]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a stream of packets"),
        (b"TAASxx", "not a stream of packets"),
        (b"TAAS\x02" + bytes(16), "version 2, expected 1"),
        (b"TAAS\x01tinytiny\x02\x00\x04\x06" + bytes(4), "odd number of levels"),
        (b"TAAS\x01tinytiny\x01\x00\x06\x06\x7f\xc0\x00\x00", "gain_db"),
    ],
)
def test_a_damaged_header_is_refused(data, words):
    with pytest.raises(PacketError, match=words):
        read_header(io.BytesIO(data))


def test_tokens_that_do_not_fit_are_not_sent():
    header = StreamHeader(model_id=b"tinytiny", bottleneck=SPECS[0])
    for tokens in ([6**6], [-1], [1, 2], []):
        with pytest.raises(ValueError, match="1 tokens below 46656"):
            header.dump_packet(0, tokens)


def test_the_streams_of_the_library_are_those_of_the_command(codec, model, pcm):
    tokens = StreamingEncoder(codec).push(torch.from_numpy(pcm[: 20 * HOP] / np.float32(32768))[None, None])
    sent = succeed("--encode", stdin=pcm[: 20 * HOP].tobytes(), model=model)
    file = io.BytesIO(sent)
    assert list(read_frames(file, read_header(file))) == tokens[0].tolist()
