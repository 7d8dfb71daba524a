"""A part of a recording: found by seeking, mixed to mono, and brought to another rate as if all of it had been."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from os import PathLike
from typing import BinaryIO, cast

import numpy as np
import soundfile
from jaxtyping import Float32

from taae.audio import check_rates, resample, to_mono

# Beyond the segment on either side: soxr's filter reaches less far, and a lossy decoder that sought has settled.
_MARGIN_S = 0.1


@contextmanager
def open_sound(source: str | PathLike | BufferedIOBase, name: str = "") -> Iterator[soundfile.SoundFile]:
    """Open wav, flac, ogg, opus, mp3 or what else libsndfile knows; whatever is wrong with it becomes a ValueError.

    Args:
        source: Path or binary file object.
        name: What errors call it; the path by default.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not audio, is empty or is damaged; also when that shows inside the `with` block.
    """
    name = name or str(source)
    if not isinstance(source, BufferedIOBase):
        with open(source, "rb"):
            pass  # libsndfile calls a missing file a system error
    try:
        with soundfile.SoundFile(cast(BinaryIO, source)) as sound:
            if sound.frames <= 0:
                raise ValueError("it holds no samples")
            check_rates(sound.samplerate)
            yield sound
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:  # TypeError: headerless .raw
        raise ValueError(f"cannot read {name} as audio: {getattr(error, 'error_string', error)}") from None


def num_samples_at(sound: soundfile.SoundFile, rate_hz: int) -> int:
    """How many samples the whole recording has at `rate_hz`, as `audio.resample` counts them."""
    return -(-sound.frames * rate_hz // sound.samplerate)


def read_segment(sound: soundfile.SoundFile, start: int, stop: int, rate_hz: int) -> Float32[np.ndarray, " n"]:
    """Samples `start` to `stop` of what the whole recording would be in mono at `rate_hz`.

    Args:
        sound: From `open_sound`, in whose block errors get the name of the file.
        start: First sample, at `rate_hz`.
        stop: One after the last, at most `num_samples_at(sound, rate_hz)`.
        rate_hz: Wanted sample rate.

    Raises:
        ValueError: If the recording ends before its header says, or holds NaN or infinity.
    """
    common = math.gcd(sound.samplerate, rate_hz)
    # Every `taken` samples of the file become `made`; whole such blocks keep the phase of the resampler.
    taken, made = sound.samplerate // common, rate_hz // common
    margin = math.ceil(_MARGIN_S * rate_hz)
    first, last = max(0, start - margin) // made, -(-(stop + margin) // made)
    sound.seek(first * taken)
    block = sound.read((last - first) * taken, dtype="float32", always_2d=True)
    promised = min(last * taken, sound.frames) - first * taken
    if len(block) < promised:
        raise ValueError(f"it ends at sample {first * taken + len(block)}, its header promises {sound.frames}")
    wav = resample(to_mono(block.T), sound.samplerate, rate_hz)
    return wav[start - first * made : stop - first * made]
