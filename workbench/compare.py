"""One recording through the codec at several bitrates: everything the page shows, without a browser.

`compare` takes audio, `open_taae` a finished `.taae` file; both give a `Comparison`.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from taae import audio, bitstream, metrics
from taae.config import BottleneckSpec

if TYPE_CHECKING:
    from taae.codec import Codec

Progress = Callable[[float, str], None]  # fraction done, and a word on what is being done

MAX_FILE_BYTES = 64 * 2**20  # a recording of MAX_SECONDS by the page has 55 MB at 48 kHz
MAX_SECONDS = 600.0
MIN_SECONDS = 0.05

# The bitrates of the paper at 25 Hz (sections 3.2.2 and 4.3), lowest first, and the model without a quantiser.
BOTTLENECKS = ("1x6^6", "1x17^6", "2x5^6", "4x3^6", "continuous")

# A recording is played at its own rate; longer than this many samples (3 minutes at 48 kHz), at that of the codec,
# since a browser holds every version as 32-bit floats.
_MAX_FULL_RATE_SAMPLES = 180 * 48000
_LISTENING_RATES_HZ = (8000, 48000)  # what every browser can play

_ENCODING = 0.25  # share of the progress bar; decoding and measuring each version take the rest

_METRICS = ("stoi", "pesq_raw_nb", "si_sdr", "mel_distance", "stft_distance")


class SourceError(ValueError):
    """The recording cannot be used; the message is one sentence for the person who chose it."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """The recording after the codec at one bitrate.

    Attributes:
        label: In a listener's words, "0.7 kbit/s".
        bottleneck: "2x5^6", or "continuous".
        wav: (n,) float32 at `Comparison.sample_rate_hz`.
        data: The `.taae` file; None for the continuous bottleneck, which has no bits to store.
        tokens: (s, k) int64; None for the continuous bottleneck.
        payload_bits: Bits of the packed tokens; None for the continuous bottleneck.
        scores: Metric -> value, nan where it is not defined. Empty where there is no original.
        reasons: Metric -> why it has no value.
    """

    label: str
    bottleneck: str
    wav: np.ndarray
    data: bytes | None = None
    tokens: np.ndarray | None = None
    payload_bits: int | None = None
    scores: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A recording and its versions, all `(n,)` at `sample_rate_hz`, which is made for listening.

    Attributes:
        name: File name without its suffix.
        original: None when a `.taae` file was opened.
        duration_s: Of the recording.
        source_rate_hz: Of the recording, and what `.taae` files decode to.
        codec_rate_hz: Of the model; metrics and 16-bit PCM are counted at this rate.
        frame_rate_hz: Of the tokens.
        notes: Sentences on what was done to the recording.
    """

    name: str
    sample_rate_hz: int
    original: np.ndarray | None
    versions: list[Version]
    duration_s: float
    source_rate_hz: int
    codec_rate_hz: int
    frame_rate_hz: float
    notes: list[str] = field(default_factory=list)

    @property
    def pcm_bytes(self) -> int:
        """What the recording takes as 16-bit mono PCM at the codec's rate."""
        return 2 * math.ceil(self.duration_s * self.codec_rate_hz - 1e-6)

    def as_dict(self) -> dict[str, Any]:
        """The numbers, ready for JSON: no arrays of sound, no nan."""
        return {
            "name": self.name,
            "sample_rate_hz": self.sample_rate_hz,
            "duration_s": self.duration_s,
            "source_rate_hz": self.source_rate_hz,
            "codec_rate_hz": self.codec_rate_hz,
            "frame_rate_hz": self.frame_rate_hz,
            "pcm_bytes": self.pcm_bytes,
            "has_original": self.original is not None,
            "notes": self.notes,
            "versions": [self._version_dict(version) for version in self.versions],
        }

    def _version_dict(self, version: Version) -> dict[str, Any]:
        num_bytes = None if version.data is None else len(version.data)
        return {
            "label": version.label,
            "bottleneck": version.bottleneck,
            "payload_bits": version.payload_bits,
            "num_bytes": num_bytes,
            "bits_per_second": None if num_bytes is None else 8 * num_bytes / self.duration_s,
            "compression_ratio": None if num_bytes is None else self.pcm_bytes / num_bytes,
            "tokens": None if version.tokens is None else version.tokens.tolist(),
            "scores": {name: None if math.isnan(value) else value for name, value in version.scores.items()},
            "reasons": version.reasons,
        }


def bitrate_label(bottleneck: str, frame_rate_hz: float) -> str:
    """Say it in a listener's words: "0.7 kbit/s" for "2x5^6" at 25 Hz, "Continuous" for "continuous"."""
    spec = BottleneckSpec.parse(bottleneck)
    return "Continuous" if spec.is_continuous else f"{spec.bits_per_second(frame_rate_hz) / 1000:.4g} kbit/s"


def is_taae(path: Path) -> bool:
    """Whether the file is, or by its name wants to be, a `.taae` file."""
    with path.open("rb") as file:
        return path.suffix.lower() == ".taae" or file.read(4) == bitstream.MAGIC


def compare(codec: "Codec", path: Path, bottlenecks: Sequence[str], progress: Progress | None = None) -> Comparison:
    """Code a recording at every one of `bottlenecks`, lowest bitrate first, and measure the result.

    What is heard was decoded from the very bytes that `Version.data` holds.

    Args:
        codec: From `taae.load`.
        path: An audio file that libsndfile reads.
        bottlenecks: Specs such as "2x5^6", or "continuous".
        progress: Called with the fraction done and what is being done.

    Raises:
        SourceError: If the file is too large, too long, too short or not audio, or no bitrate was chosen.
    """
    progress = progress or _no_progress
    specs = _ordered(bottlenecks, codec.frame_rate_hz)
    progress(0.0, "Reading the recording")
    wav, source_rate_hz, notes = _read(path)
    rate_hz = _listening_rate(source_rate_hz, len(wav), codec.sample_rate_hz)
    if rate_hz != source_rate_hz:
        notes.append(f"Played here at {rate_hz / 1000:g} kHz; the .taae files decode to {source_rate_hz / 1000:g} kHz.")
    original = _at_rate(wav, source_rate_hz, rate_hz)
    reference = _at_rate(wav, source_rate_hz, metrics.RATE_HZ)
    files = _compressed(codec, wav, specs, source_rate_hz, progress)
    versions = []
    for index, spec in enumerate(specs):
        label = bitrate_label(spec, codec.frame_rate_hz)
        where = "without a quantiser" if spec == "continuous" else f"at {label}"
        report = _part_of(progress, index, len(specs), where)
        coded, tokens, payload_bits = _decoded(codec, wav, files.get(spec), source_rate_hz, report)
        report(0.8, "Measuring")
        reasons: dict[str, str] = {}
        scores = _score(reference, _at_rate(coded, source_rate_hz, metrics.RATE_HZ), reasons)
        versions.append(
            Version(
                label=label,
                bottleneck=spec,
                wav=_at_rate(coded, source_rate_hz, rate_hz),
                data=files.get(spec),
                tokens=tokens,
                payload_bits=payload_bits,
                scores=scores,
                reasons=reasons,
            )
        )
    progress(1.0, "Done")
    notes += _equal_sounds(versions)
    return Comparison(
        name=path.stem,
        sample_rate_hz=rate_hz,
        original=original,
        versions=versions,
        duration_s=len(wav) / source_rate_hz,
        source_rate_hz=source_rate_hz,
        codec_rate_hz=codec.sample_rate_hz,
        frame_rate_hz=codec.frame_rate_hz,
        notes=notes,
    )


def open_taae(codec: "Codec", path: Path, progress: Progress | None = None) -> Comparison:
    """Decode a `.taae` file. There is no original, so there are no metrics.

    Raises:
        SourceError: If the file is damaged, too long, empty, or written by another model.
    """
    progress = progress or _no_progress
    _check_size(path)
    data = path.read_bytes()
    try:
        header = bitstream.read_header(data)
        _check_duration(header.num_samples / header.sample_rate_hz)
        # A small header may promise more tokens than its samples need; decoding is bounded by the duration instead.
        max_frames = math.ceil((MAX_SECONDS + 1) * codec.frame_rate_hz)
        header, tokens = bitstream.unpack(data, max_frames=max_frames)
        label = bitrate_label(str(header.bottleneck), codec.frame_rate_hz)
        report = _part_of(progress, 0, 1, f"at {label}")
        wav = audio.to_mono(codec.decompress(data, progress=lambda fraction: report(fraction, "Decoding")))
    except SourceError:
        raise
    except ValueError as error:  # BitstreamError too
        raise SourceError(f"{path.name} cannot be decoded: {error}") from error
    rate_hz = _listening_rate(header.sample_rate_hz, len(wav), codec.sample_rate_hz)
    return Comparison(
        name=path.stem,
        sample_rate_hz=rate_hz,
        original=None,
        versions=[
            Version(
                label=label,
                bottleneck=str(header.bottleneck),
                wav=_at_rate(wav, header.sample_rate_hz, rate_hz),
                data=data,
                tokens=tokens,
                payload_bits=8 * (len(data) - bitstream.HEADER_BYTES)
                if header.is_entropy_coded
                else header.packed_payload_bits,
            )
        ],
        duration_s=header.num_samples / header.sample_rate_hz,
        source_rate_hz=header.sample_rate_hz,
        codec_rate_hz=codec.sample_rate_hz,
        frame_rate_hz=codec.frame_rate_hz,
        notes=["A .taae file holds no original, so there is nothing to compare with or to measure against."],
    )


def _compressed(
    codec: "Codec", wav: np.ndarray, specs: Sequence[str], rate_hz: int, progress: Progress
) -> dict[str, bytes]:
    """The file of every bottleneck that has one; the encoder runs once for all."""
    stored = [spec for spec in specs if spec != "continuous"]
    if not stored:
        return {}

    def report(part: float) -> None:
        progress(_ENCODING * part, "Encoding")

    return dict(zip(stored, codec.compress_each(wav, stored, sample_rate_hz=rate_hz, progress=report), strict=True))


def _decoded(
    codec: "Codec", wav: np.ndarray, data: bytes | None, rate_hz: int, report: Progress
) -> tuple[np.ndarray, np.ndarray | None, int | None]:
    """Gives the decoded wav (n,), its tokens and their packed bits; without a file, the continuous version of `wav`."""

    def tell(part: float) -> None:
        report(0.8 * part, "Decoding")

    tell(0.0)
    if data is None:
        coded, _ = codec.reconstruct(wav, "continuous", sample_rate_hz=rate_hz, progress=tell)
        return audio.to_mono(coded), None, None
    header, tokens = bitstream.unpack(data)
    return audio.to_mono(codec.decompress(data, progress=tell)), tokens, header.packed_payload_bits


def _equal_sounds(versions: Sequence[Version]) -> list[str]:
    """Names bitrates that nobody can tell apart: 1x17^6, 2x5^6 and 4x3^6 are one grid (section 3.2.1)."""
    groups: list[list[Version]] = []
    for version in versions:
        group = next((group for group in groups if np.array_equal(group[0].wav, version.wav)), None)
        if group is None:
            groups.append([version])
        else:
            group.append(version)
    return [
        f"{', '.join(version.label for version in group[:-1])} and {group[-1].label} sound exactly alike: "
        "they cut the same grid of values into tokens in different ways."
        for group in groups
        if len(group) > 1
    ]


def _read(path: Path) -> tuple[np.ndarray, int, list[str]]:
    """Gives the recording as (n,), its rate, and notes on it."""
    _check_size(path)
    try:
        _check_duration(soundfile.info(path).duration)
    except (soundfile.SoundFileError, TypeError, RuntimeError):
        pass  # load_wav says what is wrong
    file = io.BytesIO(path.read_bytes())
    file.name = path.name  # the person must not read where on the server the file lies
    try:
        channels, rate_hz = audio.load_wav(file)
    except ValueError as error:
        raise SourceError(str(error)) from error
    _check_duration(channels.shape[1] / rate_hz)
    notes = [f"The {len(channels)} channels were averaged: the codec is mono."] if len(channels) > 1 else []
    return audio.to_mono(channels), rate_hz, notes


def _check_size(path: Path) -> None:
    num_bytes = path.stat().st_size
    if num_bytes > MAX_FILE_BYTES:
        megabytes, limit = math.ceil(num_bytes / 2**20), MAX_FILE_BYTES // 2**20
        raise SourceError(f"{path.name} has {megabytes} MB; at most {limit} MB, please.")


def _check_duration(seconds: float) -> None:
    if seconds > MAX_SECONDS:
        lasts = f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
        raise SourceError(f"The recording lasts {lasts} minutes; at most {MAX_SECONDS / 60:.0f}, please.")
    if seconds < MIN_SECONDS:
        raise SourceError(f"The recording lasts {1000 * seconds:.0f} ms; at least {1000 * MIN_SECONDS:.0f} ms, please.")


def _ordered(bottlenecks: Sequence[str], frame_rate_hz: float) -> list[str]:
    if not bottlenecks:
        raise SourceError("Choose at least one bitrate.")
    try:
        specs = {str(BottleneckSpec.parse(text)): BottleneckSpec.parse(text) for text in bottlenecks}
    except ValueError as error:
        raise SourceError(str(error)) from error

    def bits(text: str) -> float:
        return math.inf if specs[text].is_continuous else specs[text].bits_per_second(frame_rate_hz)

    return sorted(specs, key=bits)


def _listening_rate(source_rate_hz: int, num_samples: int, codec_rate_hz: int) -> int:
    low, high = _LISTENING_RATES_HZ
    if num_samples > _MAX_FULL_RATE_SAMPLES or source_rate_hz < low:
        return codec_rate_hz
    return min(source_rate_hz, high)


def _at_rate(wav: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    return wav if from_hz == to_hz else audio.resample(wav, from_hz, to_hz)


def _score(reference: np.ndarray, coded: np.ndarray, reasons: dict[str, str]) -> dict[str, float]:
    scores = {}
    for name in _METRICS:
        try:
            scores |= metrics.score(reference, coded, metrics.RATE_HZ, [name], reasons=reasons)
        except (ImportError, ValueError) as error:  # no package, or the clip is too short
            scores[name] = float("nan")
            reasons[name] = str(error)
    return scores


def _part_of(progress: Progress, index: int, count: int, where: str) -> Progress:
    def report(fraction: float, what: str) -> None:
        progress(_ENCODING + (1 - _ENCODING) * (index + fraction) / count, f"{what} {where}")

    return report


def _no_progress(fraction: float, what: str) -> None:
    pass
