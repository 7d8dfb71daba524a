"""Read, write, resample and level audio (section 4.1: 16 kHz speech).

Everything here is numpy; a `wav` is float32, `(channels, n)` for a file and `(n,)` once it is mono.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable
from io import BufferedIOBase, BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Float32
from scipy.signal import sosfilt

from taae.files import write_atomic

MAX_CHANNELS = 32
MIN_RATE_HZ, MAX_RATE_HZ = 1000, 768_000  # outside, a small file could ask for unbounded memory

# Float audio may overshoot full scale, but 64 times (36 dB) means integers that were never divided.
MAX_PEAK = 64.0

_CHUNK_SAMPLES = 1 << 20  # long files are read, written and measured in pieces of this size
_SPOOL_BYTES = 1 << 24  # an encoded file up to this size waits in memory, a longer one on disk
_INTEGER_SCALES = {"int8": (0, 2.0**7), "uint8": (128, 2.0**7), "int16": (0, 2.0**15), "int32": (0, 2.0**31)}
FORMATS = {  # suffix -> libsndfile format and subtype
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def as_channels(wav: Any) -> Float32[np.ndarray, "c n"]:
    """Turn what people call a waveform into float32 `(channels, n)`.

    Args:
        wav: numpy array, torch tensor or nested list, `(n,)`, `(channels, n)` or `(1, channels, n)`. int8, uint8, int16
            and int32 are scaled to [-1, 1]; floats keep their values, overshoot included.

    Raises:
        ValueError: If it is empty, of another rank or type, transposed, holds NaN or infinity, or exceeds `MAX_PEAK`.
    """
    if hasattr(wav, "detach"):  # a torch tensor; torch itself need not be imported here
        wav = wav.detach().cpu()
        wav = (wav.float() if "bfloat16" in str(wav.dtype) else wav).numpy()
    try:
        array = np.asarray(wav)
    except ValueError as error:
        raise ValueError(f"wav is not a regular array of numbers: {error}") from None

    name = array.dtype.name
    if name not in _INTEGER_SCALES and array.dtype.kind != "f":
        raise ValueError(f"wav must hold floats, int8, uint8, int16 or int32, got {name}, whose full scale is unknown")
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2:
        raise ValueError(f"wav must be (n,), (channels, n) or (1, channels, n), got shape {array.shape}")
    channels, n = array.shape
    if array.size == 0:
        raise ValueError(f"wav is empty: shape {array.shape}")
    if channels > 8 and channels > n:
        raise ValueError(f"wav looks transposed: expected (channels, n), got {array.shape}; pass wav.T")
    if channels > MAX_CHANNELS:
        raise ValueError(f"wav has {channels} channels, at most {MAX_CHANNELS} make sense; give a batch clip by clip")

    if name in _INTEGER_SCALES:
        offset, scale = _INTEGER_SCALES[name]
        return ((array.astype(np.float32) - offset) / scale).astype(np.float32)
    _check_values(array)
    return array.astype(np.float32, copy=False)


def _check_values(array: np.ndarray) -> None:
    low, high = float(array.min()), float(array.max())  # NaN passes through both, and no copy is made
    if not np.isfinite([low, high]).all():
        bad = ~np.isfinite(array)
        channel, sample = np.argwhere(bad)[0].tolist()
        raise ValueError(
            f"wav holds {bad.sum()} values that are NaN or infinite, "
            f"the first at sample {sample} of channel {channel} ({array[channel, sample]})"
        )
    if max(high, -low) > MAX_PEAK:
        raise ValueError(
            f"float wav must lie in [-1, 1] or a little beyond, its peak is {max(high, -low):.6g}; "
            "divide 16-bit values by 32768"
        )


def to_mono(wav: Any) -> Float32[np.ndarray, " n"]:
    """Average the channels: anything `as_channels` takes -> `(n,)` float32."""
    channels = as_channels(wav)
    return channels[0] if len(channels) == 1 else channels.mean(axis=0, dtype=np.float32)


def load_wav(source: str | os.PathLike | BufferedIOBase | bytes) -> tuple[Float32[np.ndarray, "c n"], int]:
    """Read wav, flac, ogg, opus, mp3 or anything else that libsndfile knows.

    Args:
        source: Path, binary file object (a pipe will do), or the bytes of a file.

    Returns:
        wav `(channels, n)` float32 and its sample rate in Hz.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, broken, or not audio.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        name = str(path)
        if not path.exists():
            raise FileNotFoundError(f"no such audio file: {name}")
        if path.is_dir():
            raise ValueError(f"expected an audio file, but {name} is a folder")
        with path.open("rb") as file:
            return _read(file, name)
    data = source if isinstance(source, bytes) else source.read()
    return _read(BytesIO(data), str(getattr(source, "name", "the given data")))


def _read(file: BufferedIOBase, name: str) -> tuple[np.ndarray, int]:
    if not file.seekable():  # a named pipe
        file = BytesIO(file.read())
    if not file.read(1):
        raise ValueError(f"{name} is empty")
    file.seek(0)
    blocks = []
    try:
        with soundfile.SoundFile(cast(BinaryIO, file)) as sound:
            rate = sound.samplerate
            if sound.channels > MAX_CHANNELS:
                raise ValueError(f"{name} has {sound.channels} channels, more than {MAX_CHANNELS}")
            # In blocks, because a broken header may promise more samples than memory holds.
            while len(block := sound.read(_CHUNK_SAMPLES, dtype="float32", always_2d=True)):
                blocks.append(block)
    except (soundfile.SoundFileError, TypeError, RuntimeError) as error:  # TypeError: headerless .raw
        reason = getattr(error, "error_string", error)
        raise ValueError(f"cannot read {name} as audio: {reason}") from None
    if not blocks:
        raise ValueError(f"{name} holds no samples")
    wav = np.ascontiguousarray(np.concatenate(blocks).T)
    try:
        _check_values(wav)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return wav, rate


def check_rates(*rates_hz: int) -> None:
    """Refuse sample rates that are not whole numbers from 1 kHz to 768 kHz.

    Raises:
        ValueError: As it says.
    """
    for rate in rates_hz:
        if int(rate) != rate or not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
            raise ValueError(f"a sample rate must be a whole number from {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz, got {rate}")


def resample(wav: Float[np.ndarray, "*b n"], from_hz: int, to_hz: int) -> Float32[np.ndarray, "*b m"]:
    """Change the sample rate with soxr's very-high-quality linear-phase filter, without delay.

    Args:
        wav: `(..., n)`.
        from_hz: Its sample rate.
        to_hz: The wanted one.

    Returns:
        `(..., ceil(n * to_hz / from_hz))` float32.

    Raises:
        ValueError: If a rate is not a whole number from 1 kHz to 768 kHz.
    """
    check_rates(from_hz, to_hz)
    wav = np.asarray(wav, dtype=np.float32)
    from_hz, to_hz = int(from_hz), int(to_hz)
    if from_hz == to_hz:
        return wav
    *batch, n = wav.shape
    num_out = -(-n * to_hz // from_hz)
    # soxr rounds its length, so give it the silence that follows and cut.
    silence = np.zeros((*batch, from_hz // to_hz + 2), np.float32)
    padded = np.concatenate([wav, silence], axis=-1).reshape(-1, n + silence.shape[-1])
    resampled = soxr.resample(padded.T, from_hz, to_hz, quality="VHQ")
    return np.ascontiguousarray(resampled.T[:, :num_out]).reshape(*batch, num_out)


def save_wav(
    target: str | os.PathLike | BufferedIOBase,
    wav: Any,
    sample_rate_hz: int,
    *,
    file_format: str | None = None,
    is_float: bool = False,
    force: bool = False,
) -> None:
    """Write audio, the whole file or nothing; 16-bit values clip at full scale and never wrap around.

    Args:
        target: Path, or a binary file object (a pipe will do).
        wav: Anything `as_channels` takes.
        sample_rate_hz: Its rate. Ogg Opus and MP3 allow only some rates.
        file_format: "wav", "flac", "ogg" (Vorbis), "opus" or "mp3"; by default the suffix, "wav" for a file object.
        is_float: Write a 32-bit float wav, unclipped.
        force: Replace an existing file.

    Raises:
        ValueError: If the format is unknown or cannot hold this audio.
        FileExistsError: If the path exists and `force` is false.
        OSError: If the folder is missing, the disk full, and so on.
    """
    is_path = isinstance(target, str | os.PathLike)
    suffix = (file_format or (Path(target).suffix.lstrip(".") if is_path else "wav")).lower()
    if suffix not in FORMATS:
        raise ValueError(f"cannot write audio as {suffix!r}; choose one of {', '.join(FORMATS)}")
    if is_float and suffix != "wav":
        raise ValueError(f"only wav holds floats here, not {suffix}")
    with encode_blocks([as_channels(wav)], sample_rate_hz, suffix, is_float=is_float) as file:
        if is_path:
            write_atomic(target, file, force=force)
        else:
            shutil.copyfileobj(file, target)


def encode_blocks(
    blocks: Iterable[Float32[np.ndarray, "c _"]], sample_rate_hz: int, file_format: str, *, is_float: bool = False
) -> BinaryIO:
    """A temporary audio file, at its beginning, from consecutive blocks `(channels, n)`, at least one; see `save_wav`.

    On disk once it is long. Temporary, because libsndfile goes back to the header, which a pipe cannot.

    Raises:
        ValueError: If the format cannot hold this audio.
    """
    container, subtype = FORMATS[file_format]
    file, blocks = cast(BinaryIO, tempfile.SpooledTemporaryFile(_SPOOL_BYTES)), iter(blocks)
    first = next(blocks)
    try:
        with soundfile.SoundFile(
            file, "w", sample_rate_hz, len(first), "FLOAT" if is_float else subtype, format=container
        ) as sound:
            for block in chain([first], blocks):
                # In pieces: libsndfile 1.2.2 overflows its stack when it gets a long Vorbis file at once.
                for start in range(0, block.shape[1], _CHUNK_SAMPLES // 16):
                    piece = block[:, start : start + _CHUNK_SAMPLES // 16].T
                    if subtype == "PCM_16" and not is_float:
                        # libsndfile scales by 32767 here, which would change a 16-bit file that passes through.
                        piece = np.clip(np.rint(piece * 32768), -32768, 32767).astype(np.int16)
                    elif not is_float:
                        piece = np.clip(piece, -1, 1)
                    sound.write(piece)
        file.seek(0)
        return file
    except (soundfile.SoundFileError, TypeError) as error:
        file.close()
        reason = getattr(error, "error_string", error)
        raise ValueError(
            f"cannot write {len(first)} channels at {sample_rate_hz} Hz as {file_format}: {reason}"
        ) from None


def integrated_loudness(wav: Any, sample_rate_hz: int) -> float:
    """Gated loudness of ITU-R BS.1770 in LUFS, as the published code measures it.

    K-weighting by a shelf of +4 dB at 1500 Hz and a high-pass at 38 Hz, both clamped to [-1, 1]; blocks of 400 ms every
    100 ms; gates at -70 LUFS and at 10 LU below the mean. A clip under 400 ms is one block. Memory stays bounded.

    Args:
        wav: Mono, `(n,)`.
        sample_rate_hz: Above 3000.

    Returns:
        LUFS, or -inf when every block is gated (silence, or only frequencies below hearing).

    Raises:
        ValueError: If `wav` is not mono audio or the rate is too low for the filters.
    """
    energies = _block_energies(_mono(wav), sample_rate_hz)
    loud = energies[_lufs(energies) > -70]
    if loud.size == 0:
        return -np.inf
    loud = loud[_lufs(loud) > _lufs(loud.mean()) - 10]
    return float(_lufs(loud.mean()))


def loudness_gain(wav: Any, sample_rate_hz: int, target_lufs: float = -20.0) -> float:
    """Linear gain that brings speech to `target_lufs`, as in front of the published encoder.

    The gain is 1 when the mean square is below 1e-6 (silence) or when every block is gated (a faint 3 Hz tone). Where
    the peak would reach 1, the gain takes it to 0.95 instead. Always finite and positive.

    Args:
        wav: Mono, `(n,)`.
        sample_rate_hz: Above 3000.
        target_lufs: Wanted loudness.

    Raises:
        ValueError: As for `integrated_loudness`.
    """
    mono = _mono(wav)
    pieces = (mono[start : start + _CHUNK_SAMPLES] for start in range(0, mono.size, _CHUNK_SAMPLES))
    if sum(float(np.dot(piece, piece)) for piece in pieces) / mono.size < 1e-6:
        return 1.0
    loudness = integrated_loudness(mono, sample_rate_hz)
    if loudness == -np.inf:
        return 1.0
    gain = 10 ** ((target_lufs - loudness) / 20)
    peak = max(float(mono.max()), -float(mono.min()))
    return 0.95 / peak if gain * peak >= 1 else gain


def mel_filters(sample_rate_hz: int, num_fft: int, num_mels: int) -> Float32[np.ndarray, "mels bins"]:
    """Triangular filters of unit area, evenly spaced on the Slaney mel scale from 0 Hz to half the sample rate.

    Equal to `librosa.filters.mel(sr=sample_rate_hz, n_fft=num_fft, n_mels=num_mels)`; bins = num_fft // 2 + 1.
    """
    # Linear up to 1 kHz (15 mels), then 27 mels for every factor of 6.4.
    top_hz = sample_rate_hz / 2
    top_mel = 0.015 * top_hz if top_hz < 1000 else 15 + 27 * np.log(top_hz / 1000) / np.log(6.4)
    mels = np.linspace(0, top_mel, num_mels + 2)
    edges_hz = np.where(mels < 15, mels / 0.015, 1000 * 6.4 ** ((mels - 15) / 27))
    bins_hz = np.arange(num_fft // 2 + 1) * sample_rate_hz / num_fft
    low, centre, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising, falling = (bins_hz - low) / (centre - low), (high - bins_hz) / (high - centre)
    return (np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)).astype(np.float32)


def _mono(wav: Any) -> np.ndarray:
    channels = as_channels(wav)
    if len(channels) != 1:
        raise ValueError(f"loudness is measured on one channel, got {len(channels)}; use to_mono first")
    return channels[0]


def _lufs(energy: Any) -> Any:
    return -0.691 + 10 * np.log10(np.maximum(energy, 1e-30))


def _block_energies(mono: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Mean square of every K-weighted block, filtered piece by piece with the filters' state carried over."""
    if sample_rate_hz <= 3000:
        raise ValueError(f"loudness needs a sample rate above 3000 Hz, got {sample_rate_hz}")
    block = round(0.4 * sample_rate_hz)
    step = round(block * 0.25)
    block = min(block, mono.size)
    shelf, highpass = _shelf(sample_rate_hz), _highpass(sample_rate_hz)
    shelf_state = highpass_state = np.zeros((1, 2))
    squares = np.zeros(0)
    energies = []
    for start in range(0, mono.size, _CHUNK_SAMPLES):
        piece = mono[start : start + _CHUNK_SAMPLES].astype(np.float64)
        piece, shelf_state = sosfilt(shelf, piece, zi=shelf_state)
        piece, highpass_state = sosfilt(highpass, np.clip(piece, -1, 1), zi=highpass_state)
        squares = np.concatenate([squares, np.clip(piece, -1, 1) ** 2])
        num_blocks = max(0, (squares.size - block) // step + 1)
        first = np.arange(num_blocks) * step
        total = np.concatenate([[0.0], np.cumsum(squares)])
        energies.append((total[first + block] - total[first]) / block)
        squares = squares[num_blocks * step :]
    return np.concatenate(energies)


def _shelf(rate_hz: int, gain_db: float = 4.0, cutoff_hz: float = 1500.0, quality: float = 0.5**0.5) -> np.ndarray:
    """High shelf of the RBJ cookbook as one second-order section (BS.1770, stage 1)."""
    amp, w = 10 ** (gain_db / 40), 2 * np.pi * cutoff_hz / rate_hz
    slope = np.sqrt(amp) * np.sin(w) / quality
    plus, minus, cos = amp + 1, amp - 1, np.cos(w)
    b = [amp * (plus + minus * cos + slope), -2 * amp * (minus + plus * cos), amp * (plus + minus * cos - slope)]
    a = [plus - minus * cos + slope, 2 * (minus - plus * cos), plus - minus * cos - slope]
    return np.array([[*b, *a]]) / a[0]


def _highpass(rate_hz: int, cutoff_hz: float = 38.0, quality: float = 0.5) -> np.ndarray:
    """High-pass of the RBJ cookbook as one second-order section (BS.1770, stage 2)."""
    w = 2 * np.pi * cutoff_hz / rate_hz
    alpha, cos = np.sin(w) / (2 * quality), np.cos(w)
    b = [(1 + cos) / 2, -(1 + cos), (1 + cos) / 2]
    a = [1 + alpha, -2 * cos, 1 - alpha]
    return np.array([[*b, *a]]) / a[0]
