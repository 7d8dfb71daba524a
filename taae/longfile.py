"""Recordings of any length: read, resampled and written in blocks, so that memory does not grow with them."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr

from taae.audio import check_rates

_BLOCK_SAMPLES = 1 << 20


@contextmanager
def mono_memmap(path: str | os.PathLike, rate_hz: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """An audio file as mono float32 (n,) at `rate_hz` in a temporary file, its own rate and its number of samples.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not audio, is empty, or holds NaN or infinity.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such audio file: {path}")
    with tempfile.TemporaryFile() as scratch:
        try:
            with soundfile.SoundFile(path) as sound:
                source_rate_hz, num_samples = sound.samplerate, 0

                def blocks() -> Iterator[np.ndarray]:
                    nonlocal num_samples
                    while len(block := sound.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)):
                        num_samples += len(block)
                        if not np.isfinite(block).all():
                            raise ValueError("it holds values that are NaN or infinite")
                        yield block.T.mean(axis=0, dtype=np.float32)

                for block in resample_blocks(blocks(), source_rate_hz, rate_hz):
                    scratch.write(block.tobytes())
        except (soundfile.SoundFileError, TypeError, ValueError) as error:
            raise ValueError(f"cannot read {path} as audio: {getattr(error, 'error_string', error)}") from None
        if num_samples == 0:
            raise ValueError(f"{path} holds no samples")
        scratch.flush()
        yield np.memmap(scratch, dtype=np.float32, mode="r+"), source_rate_hz, num_samples


def resample_blocks(blocks: Iterable[np.ndarray], from_hz: int, to_hz: int) -> Iterator[np.ndarray]:
    """`audio.resample` on consecutive blocks (n,): the same ceil(n * to_hz / from_hz) samples in all."""
    check_rates(from_hz, to_hz)
    if from_hz == to_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="VHQ")
    num_in = num_out = 0
    for block in blocks:
        num_in += len(block)
        resampled = stream.resample_chunk(np.ascontiguousarray(block, dtype=np.float32))
        num_out += len(resampled)
        yield resampled
    # As in `audio.resample`: soxr rounds its length, so give it the silence that follows and cut.
    silence = np.zeros(from_hz // to_hz + 2, np.float32)
    yield from take([stream.resample_chunk(silence, last=True)], -(-num_in * to_hz // from_hz) - num_out)


def take(blocks: Iterable[np.ndarray], num_samples: int) -> Iterator[np.ndarray]:
    """The first `num_samples` of consecutive blocks."""
    for block in blocks:
        yield block[:num_samples]
        num_samples -= min(num_samples, len(block))
