"""The codecs that a study can name, behind one method: "taae 2x5^6", "taae 2x5^6 runs/mine", "opus 6k", "mimi 1100".

TAAE's second word is a bottleneck, its third a model's name or folder (the embedded one by default). The others are
those of `workbench.baselines`: programs by mode, models whose weights lie here by bits per second.
"""

import math
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from taae.codec import Codec
    from workbench.baselines.protocol import Reconstructing

_PROGRAMS = {"codec2": "Codec2", "opus": "Opus", "speex": "Speex", "amr-nb": "AmrNb"}
_MODELS = {
    "encodec": ("neural", "EnCodec"),
    "dac": ("neural", "Dac"),
    "mimi": ("neural", "Mimi"),
    "xcodec2": ("neural", "XCodec2"),
    "speechtokenizer": ("packages", "SpeechTokenizer"),
    "semanticodec": ("packages", "SemantiCodec"),
}


class SpeechPeer(Protocol):
    """A codec at one bitrate.

    Attributes:
        identity: Two codecs of the same identity give the same sound for the same wav: model, version, setting.
        bits_per_second: Nominal, of the tokens; nan where it is not known.
    """

    @property
    def identity(self) -> str: ...
    @property
    def bits_per_second(self) -> float: ...

    def reconstruct(self, wav: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """What comes out for `wav` (n,): as long, at the same rate, not late."""
        ...


def open_codec(text: str) -> SpeechPeer:
    """The codec that `text` names.

    Raises:
        ValueError: If there is no such codec or setting.
        RuntimeError: If its program or its weights are not here; the text says how to get them.
    """
    family, *words = text.split()
    if family == "taae" and len(words) in (1, 2):
        return _Taae(*words)
    if family in _PROGRAMS and len(words) == 1:
        baselines = import_module("workbench.baselines")
        codec = getattr(baselines, _PROGRAMS[family])(words[0])
        return _Baseline(codec, next(iter(codec.bitrates)))
    if family in _MODELS and len(words) == 1:
        module, name = _MODELS[family]
        return _Baseline(getattr(import_module(f"workbench.baselines.{module}"), name)(), words[0])
    known = ", ".join(["taae", *_PROGRAMS, *_MODELS])
    raise ValueError(
        f"no codec {text!r}; write a family and a setting, such as 'taae 2x5^6', 'codec2 700C' or 'opus 6k' "
        f"(families: {known}), or name a folder of files"
    )


class _Taae:
    def __init__(self, bottleneck: str, model: str = "mini") -> None:
        from taae.config import BottleneckSpec

        self.spec = BottleneckSpec.parse(bottleneck)
        self.codec = _load(model)
        if not self.spec.is_continuous and self.spec.dim != self.codec.config.latent_dim:
            raise ValueError(
                f"taae {bottleneck}: the model {self.codec.name} has {self.codec.config.latent_dim} dimensions, "
                f"not {self.spec.dim}"
            )

    @property
    def identity(self) -> str:
        return f"taae {self.spec} {self.codec.model_id.hex()}"

    @property
    def bits_per_second(self) -> float:
        return math.nan if self.spec.is_continuous else self.spec.bits_per_second(self.codec.frame_rate_hz)

    def reconstruct(self, wav: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        return np.asarray(self.codec.reconstruct(wav, str(self.spec), sample_rate_hz=sample_rate_hz)[0]).reshape(-1)


class _Baseline:
    """A codec of `workbench.baselines`; each takes back its own delay."""

    def __init__(self, codec: "Reconstructing", mode: str) -> None:
        if mode not in codec.bitrates:
            raise ValueError(f"{codec.name} has the modes {', '.join(codec.bitrates)}; got {mode!r}")
        self.codec, self.mode = codec, mode

    @property
    def identity(self) -> str:
        # Weights are known by their files: another download is another codec.
        folder = getattr(self.codec, "folder", None)
        files = sorted(Path(folder).iterdir()) if folder else []
        weights = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
        return " ".join([self.codec.name, self.mode, str(self.codec.delay_samples), *weights])

    @property
    def bits_per_second(self) -> float:
        return float(self.codec.bitrates[self.mode])

    def reconstruct(self, wav: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        return self.codec.reconstruct(wav, self.mode, sample_rate_hz=sample_rate_hz)[0]


@cache
def _load(model: str) -> "Codec":
    import taae

    return taae.load(model)
