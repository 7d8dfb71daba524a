"""The verb `stream`: raw audio through the codec while it comes in."""

import io
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taae.batch import STREAM
from taae.cli_options import Bottleneck, Device, Dtype, DtypeOption, Model, load_codec, refuse_terminals

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from taae.codec import Codec
    from taae.packets import StreamHeader

    Frames = tuple[Tensor, Tensor]  # tokens (1, s, k), and which of the frames were lost, (1, s)

# At most two seconds at a time: a file on stdin is not held up by single frames, and a pipe gives what it has.
_READ_BYTES = 2 * 2 * 16000


def stream(
    bottleneck: Bottleneck = "2x5^6",
    encode: Annotated[bool, typer.Option("--encode", help="Only encode: write packets (docs/streaming.md).")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="Only decode: read packets.")] = False,
    microphone: Annotated[bool, typer.Option("--microphone", help="Listen to the microphone, not to stdin.")] = False,
    speaker: Annotated[bool, typer.Option("--speaker", help="Play, instead of writing to stdout.")] = False,
    loss: Annotated[float, typer.Option(min=0, max=1, help="Share of frames to lose on the way, at random.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of what is lost.")] = 0,
    gain_db: Annotated[
        float, typer.Option(min=-60, max=60, help="Applied before encoding, undone after; models expect -20 LUFS.")
    ] = 0.0,
    stats: Annotated[bool, typer.Option("--stats", help="Print a JSON object on stderr in the end.")] = False,
    model: Model = "mini-causal",
    device: Device = "cpu",
    dtype: DtypeOption = Dtype.float32,
) -> None:
    """Stream raw audio from stdin to stdout: mono, 16-bit little-endian, at the model's rate (16 kHz).

    As many samples come out as went in, one frame (40 ms) late. Lost frames are concealed. The model must be causal.

    Linux: arecord -t raw -f S16_LE -r 16000 | taae stream --loss 0.1 | aplay -t raw -f S16_LE -r 16000
    """
    if encode and decode:
        raise typer.BadParameter("--encode and --decode exclude each other; without them both are done")
    if (decode and microphone) or (encode and speaker):
        raise typer.BadParameter("packets come from stdin and go to stdout, not from a microphone or to a speaker")
    refuse_terminals("" if microphone else STREAM, "" if speaker else STREAM)
    from taae.config import BottleneckSpec
    from taae.packets import StreamHeader, read_header

    codec = load_codec(model, None, device, dtype, [] if decode else [bottleneck])
    meter = _Meter()
    if decode:
        header = read_header(_stdin())
        meter.num_samples = math.inf
        sent = _received_frames(codec, header)
    else:
        header = StreamHeader(model_id=codec.model_id, bottleneck=BottleneckSpec.parse(bottleneck), gain_db=gain_db)
        sent = _encoded_frames(codec, header, _microphone(codec) if microphone else _stdin_pcm(), meter)
    arrived = _with_losses(sent, loss, random.Random(seed), meter)
    if encode:
        _write_packets(header, arrived)
    else:
        _write_audio(codec, header, arrived, _speaker(codec) if speaker else _write_stdout, meter)
    if stats:
        print(json.dumps(meter.record(codec)), file=sys.stderr)


class _Meter:
    """Counts of samples and frames, and the time of each frame; the last hour is enough."""

    def __init__(self) -> None:
        self.num_samples: float = 0
        self.num_frames = self.num_lost = 0
        self.step_ms: dict[str, list[float]] = {"encode": [], "decode": []}

    def add(self, name: str, started: float, num_frames: int) -> None:
        if num_frames:
            self.step_ms[name].append(1000 * (time.perf_counter() - started) / num_frames)
            del self.step_ms[name][:-90_000]

    def record(self, codec: "Codec") -> dict[str, Any]:
        import numpy as np

        times = {
            f"{name}_ms_p{percent}": round(float(np.percentile(values, percent)), 3)
            for name, values in self.step_ms.items()
            if values
            for percent in (50, 99)
        }
        counts = {"frames": self.num_frames, "lost": self.num_lost}
        return counts | {"frame_ms": 1000 / codec.frame_rate_hz, "latency_ms": codec.config.latency_ms} | times


def _encoded_frames(
    codec: "Codec", header: "StreamHeader", pieces: "Iterable[np.ndarray]", meter: _Meter
) -> "Iterator[Frames]":
    import torch

    from taae.streaming import StreamingEncoder

    encoder = StreamingEncoder(codec, header.bottleneck)
    gain = _from_db(header.gain_db)

    def frames(tokens: "Tensor") -> "Frames":
        return tokens, torch.zeros(tokens.shape[:2], dtype=torch.bool)

    for pcm in pieces:
        meter.num_samples += len(pcm)
        started = time.perf_counter()
        tokens = encoder.push(torch.from_numpy(pcm.astype("float32"))[None, None] * (gain / 32768))
        meter.add("encode", started, tokens.shape[1])
        yield frames(tokens)
    yield frames(encoder.flush())


def _received_frames(codec: "Codec", header: "StreamHeader") -> "Iterator[Frames]":
    import torch

    from taae.packets import PacketError, read_frames

    if header.model_id != codec.model_id:
        raise PacketError(
            f"the packets are of model {header.model_id.hex()}, {codec.name} is {codec.model_id.hex()} and would make "
            "noise of them; choose the sender's with --model"
        )
    for frame in read_frames(_stdin(), header):
        tokens = [0] * header.bottleneck.num_stages if frame is None else frame
        yield torch.tensor([[tokens]]), torch.tensor([[frame is None]])


def _with_losses(frames: "Iterable[Frames]", loss: float, draws: random.Random, meter: _Meter) -> "Iterator[Frames]":
    """One draw a frame, so that the same frames are lost whatever the size of the pieces."""
    import torch

    for tokens, is_lost in frames:
        is_lost = is_lost | torch.tensor([[draws.random() < loss for _ in range(tokens.shape[1])]], dtype=torch.bool)
        meter.num_frames += tokens.shape[1]
        meter.num_lost += int(is_lost.sum())
        yield tokens, is_lost


def _write_packets(header: "StreamHeader", frames: "Iterable[Frames]") -> None:
    _write_stdout(header.dump())
    number = 0
    for tokens, is_lost in frames:
        packets = [
            header.dump_packet(index, frame)
            for index, (frame, lost) in enumerate(zip(tokens[0].tolist(), is_lost[0].tolist(), strict=True), number)
            if not lost
        ]
        number += tokens.shape[1]
        _write_stdout(b"".join(packets))


def _write_audio(
    codec: "Codec", header: "StreamHeader", frames: "Iterable[Frames]", write: Callable[[bytes], Any], meter: _Meter
) -> None:
    from taae.streaming import StreamingDecoder

    decoder = StreamingDecoder(codec, header.bottleneck)
    gain = _from_db(header.gain_db)
    num_written = 0
    for tokens, is_lost in frames:
        started = time.perf_counter()
        wav = decoder.push(tokens, is_lost)
        meter.add("decode", started, tokens.shape[1])
        pcm = (wav[0, 0] * (32768 / gain)).round().clamp(-32768, 32767)
        pcm = pcm[: int(min(len(pcm), meter.num_samples - num_written))]
        num_written += len(pcm)
        write(pcm.numpy().astype("<i2").tobytes())


def _from_db(gain_db: float) -> float:
    return 10 ** (gain_db / 20)


def _stdin() -> io.BufferedIOBase:
    assert isinstance(sys.stdin.buffer, io.BufferedIOBase)
    return sys.stdin.buffer


def _stdin_pcm() -> "Iterator[np.ndarray]":
    """Samples as they come, (n,) int16."""
    import numpy as np

    data, is_first = b"", True
    while more := _stdin().read1(_READ_BYTES):
        data += more
        if is_first and data.startswith(b"RIFF"):
            raise ValueError(
                "stdin is a WAV file, not raw audio; convert it: ffmpeg -i FILE -f s16le -ac 1 -ar 16000 -"
            )
        is_first = False
        whole = len(data) - len(data) % 2
        yield np.frombuffer(data[:whole], "<i2")
        data = data[whole:]
    if data:
        raise ValueError("stdin ended within a sample; expected 16-bit mono at the model's rate")


def _write_stdout(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _microphone(codec: "Codec") -> "Iterator[np.ndarray]":
    """Frames of the default input, until interrupted."""
    import numpy as np

    device = _sounddevice().RawInputStream
    with device(samplerate=codec.sample_rate_hz, channels=1, dtype="int16", blocksize=codec.hop_samples) as source:
        while True:
            data, _ = source.read(codec.hop_samples)
            yield np.frombuffer(bytes(data), np.int16)


def _speaker(codec: "Codec") -> Callable[[bytes], Any]:
    player = _sounddevice().RawOutputStream(samplerate=codec.sample_rate_hz, channels=1, dtype="int16")
    player.start()
    return player.write


def _sounddevice() -> Any:
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # the package, or the library PortAudio that it binds
        raise RuntimeError(
            f"the microphone and the speaker need sounddevice and PortAudio ({error}): pip install sounddevice, "
            "apt-get install libportaudio2; or pipe arecord and aplay"
        ) from None
    return sounddevice
