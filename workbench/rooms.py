"""Noisy and far-field versions of clean speech, for the question of robustness that the paper leaves open.

Noise is mixed at a ratio of energies; a room is a box whose walls are mirrors (Allen and Berkley, "Image method for
efficiently simulating small-room acoustics", 1979), with the delays between samples of Peterson 1986.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.signal import butter, oaconvolve, sosfilt

from taae.audio import load_wav, resample, save_wav, to_mono
from taae.evaluate import Clip

SPEED_OF_SOUND_M_S = 343.0
Noise = Literal["white", "speech-shaped", "babble"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A box with one talker and one microphone; lengths in metres.

    Raises:
        ValueError: If a position is not inside, or no wall could give this reverberation.
    """

    size_m: tuple[float, float, float] = (6.0, 5.0, 3.0)
    talker_m: tuple[float, float, float] = (1.5, 2.0, 1.6)
    microphone_m: tuple[float, float, float] = (4.5, 3.2, 1.2)
    reverberation_s: float = 0.5  # until the energy has fallen by 60 dB

    def __post_init__(self) -> None:
        for position in (self.talker_m, self.microphone_m):
            if not all(0 < x < length for x, length in zip(position, self.size_m, strict=True)):
                raise ValueError(f"{position} is not inside a room of {self.size_m} m")
        if self.reverberation_s <= 0 or not 0 < self.absorption < 1:
            raise ValueError(f"no wall gives {self.reverberation_s} s in a room of {self.size_m} m")

    @property
    def absorption(self) -> float:
        """Share of energy that a wall takes, the same for all, by Eyring's formula."""
        x, y, z = self.size_m
        surface = 2 * (x * y + y * z + z * x)
        decay = 24 * np.log(10) * x * y * z / (SPEED_OF_SOUND_M_S * surface * self.reverberation_s)
        return float(1 - np.exp(-decay))


def impulse_response(room: Room, sample_rate_hz: int = 16_000) -> np.ndarray:
    """What the microphone hears of a click, (n,) float64; the direct sound has amplitude 1 / (4 pi metres).

    Every image of the talker within the reverberation time is one reflected click, high-passed at 50 Hz as a whole,
    because images add up to a constant that no room has.
    """
    num_samples = int(np.ceil(room.reverberation_s * sample_rate_hz)) + 128
    reach_m = num_samples / sample_rate_hz * SPEED_OF_SOUND_M_S
    squares, signs = [], []
    reflection = np.sqrt(1 - room.absorption)
    for length, talker, microphone in zip(room.size_m, room.talker_m, room.microphone_m, strict=True):
        count = int(np.ceil(reach_m / (2 * length))) + 1
        n = np.arange(-count, count + 1)
        # Two images a period: the talker itself and its mirror at 0, with |2n| and |2n - 1| reflections on this axis.
        offsets = np.concatenate([2 * n * length + talker, 2 * n * length - talker]) - microphone
        bounces = np.concatenate([np.abs(2 * n), np.abs(2 * n - 1)])
        squares.append(offsets**2)
        signs.append(reflection**bounces)
    distance_m = np.sqrt(squares[0][:, None, None] + squares[1][:, None] + squares[2]).ravel()
    amplitude = (signs[0][:, None, None] * signs[1][:, None] * signs[2]).ravel() / (4 * np.pi * distance_m)
    near = distance_m < reach_m
    return _highpass(
        _clicks(distance_m[near] / SPEED_OF_SOUND_M_S * sample_rate_hz, amplitude[near], num_samples), sample_rate_hz
    )


def far_field(wav: np.ndarray, room: Room, sample_rate_hz: int = 16_000) -> np.ndarray:
    """Speech (n,) in the room, as long and as loud as it was, the direct sound where it was."""
    response = impulse_response(room, sample_rate_hz)
    distance_m = np.linalg.norm(np.subtract(room.talker_m, room.microphone_m))
    delay = round(float(distance_m) / SPEED_OF_SOUND_M_S * sample_rate_hz)
    wet = oaconvolve(wav.astype(np.float64), response)[delay : delay + wav.size]
    return (wet * _rms(wav) / max(_rms(wet), 1e-12)).astype(np.float32)


def add_noise(wav: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Mix so that speech has `snr_db` more energy than noise, over the whole clip. Scaled down where it would clip.

    Raises:
        ValueError: If the noise is shorter than the speech, or either is silent.
    """
    if noise.size < wav.size or not np.any(wav) or not np.any(noise[: wav.size]):
        raise ValueError(f"need sound in both and noise of {wav.size} samples at least, got {noise.size}")
    noise = noise[: wav.size].astype(np.float64)
    mixed = wav + noise * _rms(wav) / _rms(noise) * 10 ** (-snr_db / 20)
    return (mixed / max(1.0, np.abs(mixed).max() / 0.99)).astype(np.float32)


def make_noise(
    kind: Noise, num_samples: int, rng: np.random.Generator, talkers: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """Noise (n,): white; with the long-term spectrum of `talkers`; or up to eight of them at once ("babble").

    Raises:
        ValueError: If speech is needed and there is none.
    """
    white = rng.standard_normal(num_samples)
    if kind == "white":
        return white
    if not talkers:
        raise ValueError(f"{kind} noise is made of other recordings, and there are none")
    if kind == "babble":
        order = rng.permutation(len(talkers))[:8]
        voices = [np.roll(np.resize(talkers[i], num_samples), rng.integers(num_samples)) for i in order]
        return np.sum([voice / max(_rms(voice), 1e-12) for voice in voices], axis=0)
    power = np.mean([np.abs(np.fft.rfft(np.resize(talker, 1 << 17))) ** 2 for talker in talkers], axis=0)
    # 64 Hz wide, so that no single voice can be heard in it.
    smooth = np.convolve(np.pad(power, 512, mode="reflect"), np.ones(1025) / 1025, mode="valid")
    filtered = np.fft.rfft(white)
    gain = np.interp(np.linspace(0, 1, filtered.size), np.linspace(0, 1, smooth.size), np.sqrt(smooth))
    return np.fft.irfft(filtered * gain, num_samples)


def make_variant(
    clips: Sequence[Clip],
    out: Path,
    *,
    noise: Noise | None = None,
    snr_db: float = 10.0,
    room: Room | None = None,
    seed: int = 0,
) -> None:
    """Write every clip at 16 kHz in a room, with noise, or both, and `out/manifest.jsonl` with "clean_path" for each.

    Babble and speech-shaped noise come from the other speakers of the list, seeded by clip.

    Raises:
        ValueError: If neither noise nor room is given, or other speakers are missing.
    """
    if noise is None and room is None:
        raise ValueError("choose noise, a room or both")
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, clip in enumerate(clips):
        wav = _load(clip.path)
        if room is not None:
            wav = far_field(wav, room)
        if noise is not None:
            rng = np.random.default_rng([seed, index])
            others = [other for other in clips if other.speaker != clip.speaker]
            some = [others[i] for i in rng.permutation(len(others))[:8]] if noise != "white" else []
            wav = add_noise(wav, make_noise(noise, wav.size, rng, [_load(other.path) for other in some]), snr_db)
        path = out.resolve() / f"{clip.id.replace('/', '_')}.flac"
        save_wav(path, wav, 16_000, force=True)
        row = {"id": clip.id, "path": str(path), "language": clip.language, "speaker": clip.speaker}
        row |= {"seconds": wav.size / 16_000, "clean_path": str(clip.path.resolve()), "noise": noise}
        row |= {"snr_db": snr_db if noise else None, "reverberation_s": room.reverberation_s if room else None}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    (out / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")


def _load(path: Path) -> np.ndarray:
    wav, rate_hz = load_wav(path)
    return resample(to_mono(wav), rate_hz, 16_000)


def _rms(wav: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wav, dtype=np.float64))))


def _highpass(response: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    return np.asarray(sosfilt(butter(2, 50, "highpass", fs=sample_rate_hz, output="sos"), response))


def _clicks(times: np.ndarray, amplitudes: np.ndarray, num_samples: int, half_width: int = 40) -> np.ndarray:
    """Clicks at times between samples, each a windowed sinc."""
    response = np.zeros(num_samples + 2 * half_width)
    taps = np.arange(-half_width + 1, half_width + 1)
    for first in range(0, times.size, 20_000):  # bounded memory
        some = times[first : first + 20_000]
        whole = np.floor(some).astype(np.int64)
        at = taps - (some - whole)[:, None]
        shape = np.sinc(at) * (0.5 + 0.5 * np.cos(np.pi * at / half_width))
        indices = (whole[:, None] + taps + half_width).ravel()
        inside = indices < response.size
        values = (shape * amplitudes[first : first + 20_000, None]).ravel()
        response += np.bincount(indices[inside], values[inside], minlength=response.size)
    return response[half_width : half_width + num_samples]
