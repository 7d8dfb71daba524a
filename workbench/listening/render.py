"""Stimuli of a study: codecs run on demand, anchors, level matching; cached by content, equal in all but their sound.

All sounds of an item are mono 24-bit wav files of the same rate and length, so neither size nor format tells them
apart. What a browser gets is `salted_wav`: the same sound under dither of its own, so that the hidden reference and the
labelled one differ in bytes. A program that subtracts two of them can still find the pair whose difference is only
dither at -138 dB: two sounds that must sound alike cannot be made unlike for a computer.
"""

import hashlib
import io
import json
import logging
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile

from taae.audio import integrated_loudness, load_wav, resample, to_mono
from taae.files import write_atomic
from workbench.listening import anchors
from workbench.listening.peers import SpeechPeer, open_codec
from workbench.listening.study import ANCHORS, MAX_ITEM_S, REFERENCE, Item, Study, System
from workbench.listening.study_file import AUDIO_SUFFIXES

logger = logging.getLogger(__name__)

Progress = Callable[[float, str], None]

RATES_HZ = (8000, 48000)  # what every browser plays as it is
MIN_ITEM_S, LONGEST_ITEM_S = 0.5, 60.0
PEAK = 0.98

_VERSION = 1  # of what is in the cache; raise it when the same codec would render something else
_EDGE_S = 0.01  # fade where an excerpt was cut out of a recording
_LENGTH_TOLERANCE_S = 0.1
_LATE_S = 0.01
_FULL_SCALE = 2**23


@dataclass(frozen=True, kw_only=True, slots=True)
class Stimulus:
    """One sound of a study, ready to play (24-bit wav).

    Attributes:
        item: Name of the item.
        system: "reference", "anchor35", "anchor70", or the name of a system.
        path: Named by its content hash.
        sha256: Of the file.
        seconds: Duration.
        sample_rate_hz: The same for all stimuli of an item.
        gain_db: What level matching applied.
        lufs: Loudness that resulted.
        bits_per_second: Of the tokens; nan where it is not known.
    """

    item: str
    system: str
    path: str
    sha256: str
    seconds: float
    sample_rate_hz: int
    gain_db: float
    lufs: float
    bits_per_second: float


def render_study(study: Study, folder: str | Path, progress: Progress | None = None) -> list[Stimulus]:
    """Every stimulus of every item, from the cache where it is there (slow: call it from a thread).

    Args:
        study: What to render.
        folder: Sounds go to `folder/stimuli`, what codecs gave to `folder/cache`.
        progress: Called with the fraction done and what is being done.

    Raises:
        ValueError: If a file or a codec is not usable; the text names study, item and remedy.
        RuntimeError: If a codec's program or weights are missing.
    """
    progress = progress or (lambda fraction, what: None)
    folder = Path(folder)
    for name in ("stimuli", "cache"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    items = [*study.items, *study.training_items]
    if not items or not study.systems:
        raise ValueError(f"study {study.name!r} needs at least one item and one system")
    progress(0.0, "Reading the recordings")
    references = {item.name: _reference(study, item) for item in items}
    # Opened before the first sound is rendered, so that a missing program is found in a second and not in an hour.
    codecs = {system.name: open_codec(system.codec) for system in study.systems if system.codec}
    stimuli: list[Stimulus] = []
    for index, item in enumerate(items):
        wav, rate_hz = references[item.name]

        def report(part: float, system: str, index: int = index, item: Item = item) -> None:
            progress((index + part) / len(items), f"{item.name}: {system}")

        stimuli += _render_item(study, item, wav, rate_hz, codecs, folder, report)
    progress(1.0, "Done")
    return stimuli


def salted_wav(path: str | Path, salt: bytes) -> bytes:
    """The bytes to send for one slot: the sound with dither of its own, so that no two slots are equal in bytes.

    Triangular dither of one step of 24 bits (-138 dB), seeded by the salt: the same salt gives the same bytes. Give a
    salt that no one can guess and that stays for (session, trial, slot), such as an HMAC of the three.
    """
    samples, rate_hz = soundfile.read(path, dtype="int32")
    steps = np.asarray(samples, dtype=np.int32) >> 8
    generator = np.random.default_rng(list(hashlib.sha256(salt).digest()))
    coins = generator.integers(0, 2, (2, len(steps)), dtype=np.int32)
    return _wav_bytes(np.clip(steps + coins[0] - coins[1], -_FULL_SCALE, _FULL_SCALE - 1), rate_hz)


def _render_item(
    study: Study,
    item: Item,
    reference: np.ndarray,
    rate_hz: int,
    codecs: Mapping[str, SpeechPeer],
    folder: Path,
    report: Callable[[float, str], None],
) -> list[Stimulus]:
    where = f"study {study.name!r}, item {item.name!r}"
    reference_lufs = integrated_loudness(reference, rate_hz)
    if reference_lufs == -math.inf:
        raise ValueError(f"{where}: the reference {item.reference} is silent; take another excerpt")
    reference_gain_db = study.loudness_lufs - reference_lufs
    levelled: dict[str, tuple[np.ndarray, float]] = {REFERENCE: (reference, reference_gain_db)}
    bits: dict[str, float] = {}
    for name, cutoff_hz in ((name, hz) for hz, name in ANCHORS.items() if hz in study.anchors_hz):
        try:
            levelled[name] = (anchors.low_pass(reference, rate_hz, cutoff_hz), reference_gain_db)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    for index, system in enumerate(study.systems):
        report(index / len(study.systems), system.name)
        if system.codec:
            wav, bits[system.name] = _coded(codecs[system.name], reference, rate_hz, folder / "cache")
        else:
            wav = _file_of(system, item, where, rate_hz, len(reference))
        _warn_if_late(reference, wav, rate_hz, f"{where}, system {system.name!r}")
        lufs = integrated_loudness(wav, rate_hz)
        if lufs == -math.inf:
            logger.warning("%s: system %r is silent", where, system.name)
        is_matched = study.matches_level and lufs > -math.inf
        levelled[system.name] = (wav, study.loudness_lufs - lufs if is_matched else reference_gain_db)
    # One gain for all keeps levels equal where the loudest peak would clip.
    loudest = max(float(np.abs(wav).max()) * 10 ** (gain_db / 20) for wav, gain_db in levelled.values())
    down_db = min(0.0, 20 * math.log10(PEAK / loudest))
    return [
        _stored(item, name, wav, gain_db + down_db, rate_hz, bits.get(name, math.nan), folder / "stimuli")
        for name, (wav, gain_db) in levelled.items()
    ]


def _reference(study: Study, item: Item) -> tuple[np.ndarray, int]:
    """The excerpt as (n,) and its rate, which is the rate of all sounds of the item."""
    where = f"study {study.name!r}, item {item.name!r}"
    try:
        channels, source_hz = load_wav(item.reference)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    wav = to_mono(channels)
    first, last = round(item.start_s * source_hz), round(item.stop_s * source_hz) or len(wav)
    if last > len(wav):
        raise ValueError(f"{where}: stop_s is {item.stop_s:g}, the recording ends at {len(wav) / source_hz:.3f} s")
    wav = wav[first:last].copy()
    seconds = len(wav) / source_hz
    if not MIN_ITEM_S <= seconds <= LONGEST_ITEM_S:
        raise ValueError(
            f"{where}: lasts {seconds:.2f} s, may last {MIN_ITEM_S:g} to {LONGEST_ITEM_S:g} s; set start_s and stop_s"
        )
    if study.is_strict and seconds > MAX_ITEM_S + 0.001:
        raise ValueError(
            f"{where}: lasts {seconds:.1f} s, BS.1534-3 allows {MAX_ITEM_S:g} s; set start_s and stop_s, "
            "or is_strict = false"
        )
    edge = min(round(_EDGE_S * source_hz), len(wav) // 2)
    ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / edge)).astype(np.float32)
    if item.start_s:
        wav[:edge] *= ramp
    if item.stop_s:
        wav[-edge:] *= ramp[::-1]
    rate_hz = min(max(source_hz, RATES_HZ[0]), RATES_HZ[1])
    return resample(wav, source_hz, rate_hz), rate_hz


def _coded(codec: SpeechPeer, wav: np.ndarray, rate_hz: int, folder: Path) -> tuple[np.ndarray, float]:
    """What a codec makes of `wav`, from the cache if it was asked before."""
    identity = [_VERSION, codec.identity, rate_hz, hashlib.sha256(wav.tobytes()).hexdigest()]
    path = folder / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False), codec.bits_per_second
    coded = to_mono(codec.reconstruct(wav, rate_hz))
    if len(coded) != len(wav):
        raise RuntimeError(
            f"{codec.identity} gave {len(coded)} samples for {len(wav)}; this is a mistake in its adapter"
        )
    buffer = io.BytesIO()
    np.save(buffer, coded)
    write_atomic(path, buffer.getvalue(), force=True)
    return coded, codec.bits_per_second


def _file_of(system: System, item: Item, where: str, rate_hz: int, num_samples: int) -> np.ndarray:
    """The file that somebody rendered, at the rate and length of the reference."""
    if system.name in item.files:
        path = Path(item.files[system.name])
    else:
        found = [path for path in sorted(Path(system.folder).glob("*")) if path.stem == item.name]
        found = [path for path in found if path.suffix.lower() in AUDIO_SUFFIXES]
        if len(found) != 1:
            what = "no file" if not found else f"{len(found)} files"
            raise ValueError(f"{where}: {what} called {item.name}.wav (or flac, ...) in {system.folder}; expected one")
        path = found[0]
    try:
        channels, source_hz = load_wav(path)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{where}, system {system.name!r}: {error}") from None
    wav = resample(to_mono(channels), source_hz, rate_hz)
    if abs(len(wav) - num_samples) > _LENGTH_TOLERANCE_S * rate_hz:
        raise ValueError(
            f"{where}, system {system.name!r}: {path} lasts {len(wav) / rate_hz:.2f} s, the reference "
            f"{num_samples / rate_hz:.2f} s; they must agree to {_LENGTH_TOLERANCE_S:g} s and begin together"
        )
    return np.pad(wav[:num_samples], (0, max(0, num_samples - len(wav))))


def _stored(
    item: Item, system: str, wav: np.ndarray, gain_db: float, rate_hz: int, bits_per_second: float, folder: Path
) -> Stimulus:
    levelled = wav.astype(np.float64) * 10 ** (gain_db / 20)
    # Dither hides which sounds came from 16-bit files and which from a decoder; seeded, so that it can be made again.
    dither = np.random.default_rng(len(wav)).triangular(-1, 0, 1, len(wav))
    data = _wav_bytes(np.rint(levelled * (_FULL_SCALE - 1) + dither).astype(np.int32), rate_hz)
    sha256 = hashlib.sha256(data).hexdigest()
    path = folder / f"{sha256}.wav"
    if not path.is_file():
        write_atomic(path, data, force=True)
    return Stimulus(
        item=item.name,
        system=system,
        path=str(path.resolve()),
        sha256=sha256,
        seconds=len(wav) / rate_hz,
        sample_rate_hz=rate_hz,
        gain_db=gain_db,
        lufs=integrated_loudness(levelled, rate_hz),
        bits_per_second=bits_per_second,
    )


def _wav_bytes(steps: np.ndarray, rate_hz: int) -> bytes:
    """A mono 24-bit wav of integers; its header depends on the length and the rate alone."""
    size = 3 * len(steps)
    body = steps.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes() + b"\0" * (size % 2)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate_hz, 3 * rate_hz, 3, 24)
    data = struct.pack("<4sI", b"data", size)
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data) + len(body), b"WAVE") + form + data + body


def _warn_if_late(reference: np.ndarray, wav: np.ndarray, rate_hz: int, where: str) -> None:
    """A sound that is late jumps at every switch, which gives it away; envelopes tell by how much."""
    hop = max(1, rate_hz // 1000)
    before, after = (_envelope(sound, hop) for sound in (reference, wav))
    size = 2 * max(len(before), len(after))
    correlation = np.fft.irfft(np.fft.rfft(after, size) * np.fft.rfft(before, size).conj(), size)
    lag = int(correlation.argmax())
    lag_s = (lag - size if lag > size // 2 else lag) * hop / rate_hz
    if abs(lag_s) > _LATE_S:
        logger.warning(
            "%s: %.0f ms %s than the reference", where, 1000 * abs(lag_s), "later" if lag_s > 0 else "earlier"
        )


def _envelope(wav: np.ndarray, hop: int) -> np.ndarray:
    blocks = wav[: len(wav) // hop * hop].reshape(-1, hop).astype(np.float64)
    smooth = np.convolve((blocks**2).mean(axis=1), _window(), mode="same") ** 0.5
    return smooth - smooth.mean()


@cache
def _window() -> np.ndarray:
    window = np.hanning(20)
    return window / window.sum()
