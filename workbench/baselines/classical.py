"""Classical codecs as live peers: real programs of Debian, moved back by their delay."""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from taae.audio import load_wav, resample, save_wav, to_mono
from workbench.baselines.protocol import Encoded, Reconstructing, UnavailableError, fit

_TAIL_S = 0.5  # of silence behind the recording, so that the end is not lost in the delay

# Mode -> bits and seconds of a frame. Files fill every frame up to whole bytes, a channel would not.
_CODEC2_FRAMES = {
    "450": (18, 0.04),
    "700C": (28, 0.04),
    "1200": (48, 0.04),
    "1300": (52, 0.04),
    "1400": (56, 0.04),
    "1600": (64, 0.04),
    "2400": (48, 0.02),
    "3200": (64, 0.02),
}
CODEC2_MODES = tuple(_CODEC2_FRAMES)

# Mode in kbit/s -> bits of 20 ms, in the order of the frame types of 3GPP TS 26.101.
_AMR_FRAME_BITS = {
    "4.75": 95,
    "5.15": 103,
    "5.90": 118,
    "6.70": 134,
    "7.40": 148,
    "7.95": 159,
    "10.2": 204,
    "12.2": 244,
}
_AMR_BITS_BY_TYPE = dict(enumerate(_AMR_FRAME_BITS.values())) | {8: 39, 15: 0}  # and silence, and nothing
AMR_MODES = tuple(_AMR_FRAME_BITS)

# Mode -> bit/s, all at constant rate. "nb" is 8 kHz, "wb" 16 kHz; the digit is the encoder's quality.
_SPEEX_RATES = {"nb0": 2150, "nb1": 3950, "nb2": 5950, "nb3": 8000, "wb0": 3950, "wb2": 7750}
SPEEX_MODES = tuple(_SPEEX_RATES)
OPUS_MODES = ("6k", "9k", "12k", "16k")

# In samples at the codec's rate: found by `measure_delay` on read English with the versions of Debian 12 (codec2 1.0.5,
# speex 1.2.1, opencore-amr 0.1.6). Other modes give nothing late.
_DELAYS = {
    "Codec2 450": 240,
    "Codec2 700C": 254,
    "Codec2 1200": 175,
    "Codec2 1300": 177,
    "Codec2 1400": 174,
    "Codec2 1600": 172,
    "Codec2 2400": 159,
    "Codec2 3200": 159,
    "Speex nb0": 17,
    "Speex wb0": 27,
} | {f"AMR-NB {mode}": 40 for mode in AMR_MODES}


class _Program(Reconstructing):
    """One mode of a codec whose encoder and decoder are programs that read and write files."""

    family: str
    programs: tuple[str, ...]
    package: str
    modes: tuple[str, ...]

    def __init__(self, mode: str) -> None:
        if mode not in self.modes:
            raise ValueError(f"{self.family} mode must be one of {', '.join(self.modes)}; got {mode!r}")
        for program in self.programs:
            if shutil.which(program) is None:
                raise UnavailableError(self.family, program, f"apt-get install {self.package}")
        self.mode = mode
        self.delay_samples = _DELAYS.get(self.name, 0)

    @property
    def name(self) -> str:
        return f"{self.family} {self.mode}"

    @property
    def sample_rate_hz(self) -> int:
        return 8000

    @property
    def bitrates(self) -> Mapping[str, float]:
        return {self.mode: self._bits_per_second()}

    def encode(self, wav: np.ndarray, mode: str) -> Encoded:
        with tempfile.TemporaryDirectory() as folder:
            padded = np.pad(wav, (0, round(_TAIL_S * self.sample_rate_hz)))
            stream = self._encode(padded.clip(-1, 1), Path(folder))
        return Encoded(mode=mode, num_samples=len(wav), data=self._payload(stream, len(wav)), stream=stream)

    def decode(self, encoded: Encoded) -> np.ndarray:
        assert encoded.stream is not None
        with tempfile.TemporaryDirectory() as folder:
            decoded = self._decode(encoded.stream, Path(folder))
        return fit(decoded[self.delay_samples :], encoded.num_samples)

    def _bits_per_second(self) -> float:
        raise NotImplementedError

    def _encode(self, wav: np.ndarray, folder: Path) -> bytes:
        raise NotImplementedError

    def _decode(self, stream: bytes, folder: Path) -> np.ndarray:
        raise NotImplementedError

    def _payload(self, stream: bytes, num_samples: int) -> bytes:
        raise NotImplementedError


class Codec2(_Program):
    """Codec2, the vocoder of amateur radio: 8 kHz, one mode a bitrate (Debian package codec2).

    Its waveforms do not match the original's, so a metric that compares sample by sample is meaningless for it.

    Raises:
        ValueError: If there is no such mode.
        UnavailableError: If c2enc or c2dec is not installed.
    """

    family, programs, package, modes = "Codec2", ("c2enc", "c2dec"), "codec2", CODEC2_MODES

    def _bits_per_second(self) -> float:
        bits, seconds = _CODEC2_FRAMES[self.mode]
        return round(bits / seconds, 6)

    def _encode(self, wav: np.ndarray, folder: Path) -> bytes:
        np.rint(wav * 32767).astype("<i2").tofile(folder / "in.raw")
        _run("c2enc", self.mode, folder / "in.raw", folder / "coded")
        return (folder / "coded").read_bytes()

    def _decode(self, stream: bytes, folder: Path) -> np.ndarray:
        (folder / "coded").write_bytes(stream)
        _run("c2dec", self.mode, folder / "coded", folder / "out.raw")
        return np.fromfile(folder / "out.raw", "<i2").astype(np.float32) / 32768

    def _payload(self, stream: bytes, num_samples: int) -> bytes:
        bits, seconds = _CODEC2_FRAMES[self.mode]
        return _unpadded(stream, bits, num_samples / self.sample_rate_hz / seconds)


class AmrNb(_Program):
    """AMR narrow band, the codec of GSM telephones: 8 kHz, 20 ms (Debian package sox, which brings opencore-amrnb).

    sox sends less than the mode's rate in pauses (discontinuous transmission); what was sent is what is counted.

    Raises:
        ValueError: If there is no such mode.
        UnavailableError: If sox is not installed, or cannot write AMR.
    """

    family, programs, package, modes = "AMR-NB", ("sox",), "sox", AMR_MODES

    def __init__(self, mode: str) -> None:
        super().__init__(mode)
        formats = subprocess.run(["sox", "--help"], capture_output=True, text=True).stdout
        if "amr-nb" not in formats:
            raise UnavailableError(self.family, "a sox that writes AMR", "apt-get install libsox-fmt-all")

    def _bits_per_second(self) -> float:
        return 50.0 * _AMR_FRAME_BITS[self.mode]

    def _encode(self, wav: np.ndarray, folder: Path) -> bytes:
        save_wav(folder / "in.wav", wav, self.sample_rate_hz)
        _run("sox", folder / "in.wav", "-C", str(AMR_MODES.index(self.mode)), folder / "coded.amr-nb")
        return (folder / "coded.amr-nb").read_bytes()

    def _decode(self, stream: bytes, folder: Path) -> np.ndarray:
        (folder / "coded.amr-nb").write_bytes(stream)
        _run("sox", folder / "coded.amr-nb", folder / "out.wav")
        return _read(folder / "out.wav", self.sample_rate_hz)

    def _payload(self, stream: bytes, num_samples: int) -> bytes:
        rest, frames = stream.removeprefix(b"#!AMR\n"), []
        while rest and len(frames) < num_samples / self.sample_rate_hz / 0.02:
            bits = _AMR_BITS_BY_TYPE[rest[0] >> 3 & 15]
            num_bytes = -(-bits // 8)
            frames.append(np.unpackbits(np.frombuffer(rest[1 : 1 + num_bytes], np.uint8))[:bits])
            rest = rest[1 + num_bytes :]
        return np.packbits(np.concatenate(frames)).tobytes()


class Speex(_Program):
    """Speex at constant rate, 8 or 16 kHz (Debian package speex). Quality 0 is a vocoder and matches no waveform.

    Raises:
        ValueError: If there is no such mode.
        UnavailableError: If speexenc or speexdec is not installed.
    """

    family, programs, package, modes = "Speex", ("speexenc", "speexdec"), "speex", SPEEX_MODES

    @property
    def sample_rate_hz(self) -> int:
        return 16_000 if self.mode.startswith("wb") else 8000

    def _bits_per_second(self) -> float:
        return float(_SPEEX_RATES[self.mode])

    def _encode(self, wav: np.ndarray, folder: Path) -> bytes:
        save_wav(folder / "in.wav", wav, self.sample_rate_hz)
        band = "--wideband" if self.mode.startswith("wb") else "--narrowband"
        _run("speexenc", band, "--quality", self.mode[2:], folder / "in.wav", folder / "coded.spx")
        return (folder / "coded.spx").read_bytes()

    def _decode(self, stream: bytes, folder: Path) -> np.ndarray:
        (folder / "coded.spx").write_bytes(stream)
        _run("speexdec", folder / "coded.spx", folder / "out.wav")
        return _read(folder / "out.wav", self.sample_rate_hz)

    def _payload(self, stream: bytes, num_samples: int) -> bytes:
        # Every packet is filled up to whole bytes; frames of 20 ms have `bits`.
        bits = round(self._bits_per_second() * 0.02)
        return _unpadded(b"".join(ogg_packets(stream)[2:]), bits, num_samples / self.sample_rate_hz / 0.02)


class Opus(_Program):
    """Opus by opusenc at a variable rate around the mode's (Debian package opus-tools); what it sent is what it cost.

    Decoded at 48 kHz and resampled by us, because opusdec resamples badly.

    Raises:
        ValueError: If there is no such mode.
        UnavailableError: If opusenc or opusdec is not installed.
    """

    family, programs, package, modes = "Opus", ("opusenc", "opusdec"), "opus-tools", OPUS_MODES

    @property
    def sample_rate_hz(self) -> int:
        return 16_000

    def _bits_per_second(self) -> float:
        return 1000.0 * int(self.mode.rstrip("k"))

    def _encode(self, wav: np.ndarray, folder: Path) -> bytes:
        save_wav(folder / "in.wav", wav, self.sample_rate_hz)
        _run("opusenc", "--quiet", "--bitrate", self.mode.rstrip("k"), folder / "in.wav", folder / "coded.opus")
        return (folder / "coded.opus").read_bytes()

    def _decode(self, stream: bytes, folder: Path) -> np.ndarray:
        (folder / "coded.opus").write_bytes(stream)
        _run("opusdec", "--quiet", "--rate", "48000", folder / "coded.opus", folder / "out.wav")
        return _read(folder / "out.wav", self.sample_rate_hz)

    def _payload(self, stream: bytes, num_samples: int) -> bytes:
        packets = ogg_packets(stream)[2:]
        return b"".join(packets[: -(-num_samples // (self.sample_rate_hz // 50))])


def ogg_packets(data: bytes) -> list[bytes]:
    """Packets of an Ogg file with one stream; the first two of Opus and Speex are headers.

    Raises:
        ValueError: If a page does not start where it should.
    """
    packets, position, open_packet = [], 0, b""
    while position < len(data):
        if data[position : position + 4] != b"OggS":
            raise ValueError(f"no Ogg page at byte {position}")
        num_segments = data[position + 26]
        sizes = data[position + 27 : position + 27 + num_segments]
        position += 27 + num_segments
        for size in sizes:
            open_packet += data[position : position + size]
            position += size
            if size < 255:  # a packet ends with a segment that is not full
                packets.append(open_packet)
                open_packet = b""
    return packets


def _unpadded(data: bytes, frame_bits: int, num_frames: float) -> bytes:
    """The bits of as many frames as the recording needs, packed; in `data` each is filled up to whole bytes."""
    frame_bytes = -(-frame_bits // 8)
    count = min(int(np.ceil(num_frames - 1e-9)), len(data) // frame_bytes)
    frames = np.frombuffer(data[: count * frame_bytes], np.uint8).reshape(count, frame_bytes)
    return np.packbits(np.unpackbits(frames, axis=1)[:, :frame_bits].ravel()).tobytes()


def _read(path: Path, sample_rate_hz: int) -> np.ndarray:
    wav, rate_hz = load_wav(path)
    return resample(to_mono(wav), rate_hz, sample_rate_hz)


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"{command[0]} failed: {reason[-1] if reason else f'exit code {done.returncode}'}")
