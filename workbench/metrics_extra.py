"""Metrics beyond the paper, each with its package and mode; optional, because their packages or weights are.

All are `(reference, degraded, sample_rate_hz) -> float` like those of `taae.metrics` and may be given to
`taae.evaluate.evaluate` as `extra`. No value of one package may be compared with that of another, nor with the paper.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from taae.audio import mel_filters, resample, to_mono
from taae.metrics import RATE_HZ, MetricError


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraMetric:
    """A metric and what it takes.

    Attributes:
        score: `(reference, degraded, sample_rate_hz) -> float`.
        package: Name and tested version.
        mode: Which of the package's scores this is, in which setting.
        modules: What must be importable.
        command: How to get that.
        better: Which values are better.
        needs_reference: Whether the original is looked at.
    """

    score: Callable[[Any, Any, int], float]
    package: str
    mode: str
    modules: tuple[str, ...]
    command: str
    better: str = "higher"
    needs_reference: bool = True

    def unavailable(self) -> str | None:
        """None, or what is missing and how to get it."""
        missing = [module for module in self.modules if find_spec(module) is None]
        return f"unavailable: needs {', '.join(missing)}, get it with: {self.command}" if missing else None


def dnsmos(reference: Any, degraded: Any, sample_rate_hz: int) -> float:
    """Overall quality by DNSMOS (P.835), 1 to 5, without a reference; the package repeats clips under 9 s.

    Raises:
        ImportError: If the package is missing; so do all of these.
    """
    return float(_import("dnsmos", "speechmos.dnsmos").run(_at_16k(degraded, sample_rate_hz), RATE_HZ)["ovrl_mos"])


def distillmos(reference: Any, degraded: Any, sample_rate_hz: int) -> float:
    """MOS by DistillMOS, 1 to 5, without a reference."""
    import torch

    wav = torch.from_numpy(_at_16k(degraded, sample_rate_hz))[None]
    with torch.inference_mode():
        return float(_distillmos()(wav))


def visqol(reference: Any, degraded: Any, sample_rate_hz: int) -> float:
    """MOS-LQO by ViSQOL, speech mode, 16 kHz; its polynomial mapping reads 1 to 2 above the lattice's."""
    pair = [_at_16k(wav, sample_rate_hz).astype(np.float64) for wav in (reference, degraded)]
    return float(_visqol().measure_from_arrays(*pair, sample_rate=RATE_HZ).moslqo)


def speaker_similarity(reference: Any, degraded: Any, sample_rate_hz: int) -> float:
    """Cosine of the voices' embeddings, up to 1: how much it is still the same talker.

    The network and weights are Resemblyzer's (GE2E, Wan et al. 2018); its front end is done here without WebRTC's voice
    detector: sound 40 dB below the loudest is cut out. On speech the two embeddings have a cosine above 0.98.

    Raises:
        ImportError: If the package is missing.
        MetricError: If a clip is silent.
    """
    a, b = (speaker_embedding(_at_16k(wav, sample_rate_hz)) for wav in (reference, degraded))
    return float(a @ b)


def f0_error(reference: Any, degraded: Any, sample_rate_hz: int) -> float:
    """Root mean square error of the pitch in cents, where both are voiced, by pYIN from 65 to 500 Hz.

    Raises:
        ImportError: If librosa is missing.
        MetricError: If no frame is voiced in both.
    """
    return f0_errors(reference, degraded, sample_rate_hz).rmse_cents


@dataclass(frozen=True, slots=True, kw_only=True)
class F0Errors:
    """Errors of pitch, over frames of 10 ms.

    Attributes:
        rmse_cents: Where both are voiced; 100 cents are a semitone.
        gross_share: Of those, how many are off by more than 20 %: octave errors, mostly.
        voicing_share: Of all frames, how many are voiced in one only.
    """

    rmse_cents: float
    gross_share: float
    voicing_share: float


def f0_errors(reference: Any, degraded: Any, sample_rate_hz: int) -> F0Errors:
    """Pitch errors of `degraded`; see `f0_error`."""
    librosa = _import("f0_error", "librosa")
    tracks = []
    for wav in (reference, degraded):
        f0, voiced, _ = librosa.pyin(
            *(_at_16k(wav, sample_rate_hz),), fmin=65, fmax=500, sr=RATE_HZ, frame_length=1024, hop_length=160
        )
        tracks.append((f0, voiced))
    (f0, voiced), (other_f0, other_voiced) = tracks
    num_frames = min(voiced.size, other_voiced.size)
    voiced, other_voiced = voiced[:num_frames], other_voiced[:num_frames]
    both = voiced & other_voiced
    if not both.any():
        raise MetricError("no frame is voiced in both clips")
    ratio = other_f0[:num_frames][both] / f0[:num_frames][both]
    return F0Errors(
        rmse_cents=float(np.sqrt(np.mean((1200 * np.log2(ratio)) ** 2))),
        gross_share=float(np.mean(np.abs(ratio - 1) > 0.2)),
        voicing_share=float(np.mean(voiced != other_voiced)),
    )


def speaker_embedding(wav: np.ndarray) -> np.ndarray:
    """Voice of a clip (n,) at 16 kHz as a vector of length 1, (256,).

    Raises:
        ImportError: If Resemblyzer is missing.
        MetricError: If the clip is silent.
    """
    import torch

    lstm, linear = _speaker_network()
    mels = _speaker_mels(wav)
    # Pieces of 1.6 s every 0.77 s, as the package cuts them, the last one if it is three quarters full.
    starts = list(range(0, max(1, mels.shape[0] - 160 + 77 + 1), 77))
    if len(starts) > 1 and mels.shape[0] - starts[-1] < 120:
        starts.pop()
    mels = np.pad(mels, ((0, max(0, starts[-1] + 160 - mels.shape[0])), (0, 0)))
    pieces = torch.from_numpy(np.stack([mels[start : start + 160] for start in starts]))
    with torch.inference_mode():
        _, (hidden, _) = lstm(pieces)
        embeddings = torch.nn.functional.normalize(torch.relu(linear(hidden[-1])), dim=1)
    mean = embeddings.mean(0).double().numpy()
    return mean / np.linalg.norm(mean)


EXTRA: dict[str, ExtraMetric] = {
    "dnsmos": ExtraMetric(
        score=dnsmos,
        package="speechmos 0.0.1.1",
        mode="DNSMOS P.835, overall",
        modules=("speechmos", "onnxruntime", "librosa"),
        command="pip install speechmos",
        needs_reference=False,
    ),
    "distillmos": ExtraMetric(
        score=distillmos,
        package="distillmos 0.9.1",
        mode="distill_mos_v7",
        modules=("distillmos", "xls_r_sqa", "torchaudio"),
        command="pip install distillmos (and a torchaudio that fits the torch here)",
        needs_reference=False,
    ),
    "visqol": ExtraMetric(
        score=visqol,
        package="visqol-python 3.8.0",
        mode="speech, 16 kHz, polynomial mapping",
        modules=("visqol",),
        command="pip install visqol-python",
    ),
    "speaker_similarity": ExtraMetric(
        score=speaker_similarity,
        package="Resemblyzer 0.1.4",
        mode="cosine of d-vectors, energy gate",
        modules=("resemblyzer",),
        command="pip install --no-deps resemblyzer",
    ),
    "f0_error": ExtraMetric(
        score=f0_error,
        package="librosa 0.11",
        mode="pYIN, RMSE in cents where both are voiced",
        modules=("librosa",),
        command="pip install librosa",
        better="lower",
    ),
}


def available() -> dict[str, Callable[[Any, Any, int], float]]:
    """What works here, ready for `extra` of `taae.evaluate.evaluate`."""
    return {name: metric.score for name, metric in EXTRA.items() if metric.unavailable() is None}


def _at_16k(wav: Any, sample_rate_hz: int) -> np.ndarray:
    return resample(to_mono(wav), sample_rate_hz, RATE_HZ)


def _import(metric: str, module: str) -> Any:
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: torchaudio beside a CPU build of torch
        entry = EXTRA[metric]
        raise ImportError(
            f"{metric} unavailable: needs {entry.package} ({error}), get it with: {entry.command}"
        ) from None


@cache
def _distillmos() -> Any:
    return _import("distillmos", "distillmos").ConvTransformerSQAModel().eval()


@cache
def _visqol() -> Any:
    api = _import("visqol", "visqol").VisqolApi()
    api.create(mode="speech", use_lattice_model=False)
    return api


@cache
def _speaker_network() -> tuple[Any, Any]:
    """Three LSTM layers and a projection, with the weights that the installed package brings; it is not imported."""
    import torch

    spec = find_spec("resemblyzer")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"speaker_similarity {EXTRA['speaker_similarity'].unavailable()}")
    stored = torch.load(
        Path(next(iter(spec.submodule_search_locations))) / "pretrained.pt", map_location="cpu", weights_only=True
    )["model_state"]
    lstm, linear = torch.nn.LSTM(40, 256, 3, batch_first=True), torch.nn.Linear(256, 256)
    for name, module in (("lstm", lstm), ("linear", linear)):
        prefix = f"{name}."
        module.load_state_dict({k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)})
    return lstm.eval(), linear.eval()


def _speaker_mels(wav: np.ndarray) -> np.ndarray:
    """Power in 40 mel bands every 10 ms, (frames, 40) float32, of what is louder than -40 dB of the loudest 30 ms."""
    if not np.any(wav):
        raise MetricError("a silent clip has no speaker")
    level = float(np.sqrt(np.mean(wav.astype(np.float64) ** 2)))
    wav = wav * max(1.0, 10 ** (-30 / 20) / level)
    blocks = wav[: wav.size // 480 * 480].reshape(-1, 480)
    if len(blocks):
        energy = np.mean(blocks.astype(np.float64) ** 2, axis=1)
        is_sound = energy > energy.max() * 1e-4
        # Pauses up to 0.2 s stay, as the package keeps them.
        kept = np.convolve(is_sound, np.ones(7), mode="same") > 0
        wav = blocks[kept].ravel()
    padded = np.pad(wav, 200)
    frames = np.lib.stride_tricks.sliding_window_view(padded, 400)[::160]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    return (power @ mel_filters(RATE_HZ, 400, 40).T).astype(np.float32)
