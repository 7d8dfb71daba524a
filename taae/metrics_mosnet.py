"""MOSNet, the no-reference MOS predictor of Table 2, with the original Keras weights.

Source: Lo et al., "MOSNet: Deep Learning based Objective Assessment for Voice Conversion", Interspeech 2019, the
CNN-BLSTM; weights `pre_trained/cnn_blstm.h5` of github.com/lochenchou/MOSNet (MIT). Reading them needs h5py.
"""

import os
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS_VARIABLE = "TAAE_MOSNET"
_WIDTHS = (16, 32, 64, 128)
_NUM_FFT, _HOP_SAMPLES, _NUM_BINS = 512, 256, 257
_HOW_TO_GET = (
    "download pre_trained/cnn_blstm.h5 from github.com/lochenchou/MOSNet, "
    f"set {WEIGHTS_VARIABLE} to it, and pip install h5py"
)


class MOSNet(nn.Module):
    """Twelve convolutions over time and frequency, a BLSTM over time, a score a frame; 1.18 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, *(width for width in _WIDTHS for _ in range(3))]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=(1, 3 if index % 3 == 2 else 1))
            for index, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True))
        )
        self.lstm = nn.LSTM(4 * _WIDTHS[-1], 128, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(256, 128)
        self.score = nn.Linear(128, 1)

    def forward(self, magnitudes: Float[Tensor, "b t 257"]) -> Float[Tensor, "b t"]:
        """MOS of every frame; that of a clip is their mean."""
        features = magnitudes[:, None]
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d)
            features = functional.relu(convolution(_pad_like_keras(features, int(convolution.stride[1]))))
        # Keras keeps channels last, so a frame is flattened frequency first.
        features = features.permute(0, 2, 3, 1).flatten(2)  # (b, t, 4 * 128)
        return self.score(functional.relu(self.hidden(self.lstm(features)[0])))[..., 0]


def mosnet_score(wav: Float32[np.ndarray, " n"], weights: str | os.PathLike | None = None) -> float:
    """Predicted MOS, 1 to 5, of speech at 16 kHz.

    Args:
        wav: At 16 kHz.
        weights: The .h5 file; by default what the variable `TAAE_MOSNET` names.

    Raises:
        FileNotFoundError: If there are no weights.
        ImportError: If h5py is missing.
        ValueError: If the file holds no MOSNet.
    """
    magnitudes = torch.from_numpy(mosnet_magnitudes(wav))[None]
    path = find_weights(weights)
    with torch.inference_mode():
        return float(_load_cached(str(path), path.stat().st_mtime_ns)(magnitudes).mean())


def find_weights(weights: str | os.PathLike | None = None) -> Path:
    """Path of the weights.

    Raises:
        FileNotFoundError: If there are none; the message says how to get them.
    """
    named = weights or os.environ.get(WEIGHTS_VARIABLE)
    if not named:
        raise FileNotFoundError(f"MOSNet needs its weights: {_HOW_TO_GET}")
    if not Path(named).is_file():
        raise FileNotFoundError(f"no MOSNet weights at {named}: {_HOW_TO_GET}")
    return Path(named)


def load_mosnet(path: str | os.PathLike) -> MOSNet:
    """Read a Keras file, of weights or of a whole model.

    Raises:
        ImportError: If h5py is missing.
        ValueError: If the arrays in it are not those of the CNN-BLSTM.
    """
    model = MOSNet().eval()
    arrays = _read_keras(Path(path))
    targets = _targets(model)
    if [array.shape for array in arrays] != [shape for shape, _ in targets]:
        raise ValueError(
            f"{path} is not the CNN-BLSTM of MOSNet: expected {len(targets)} arrays, the first {targets[0][0]}; "
            f"got {len(arrays)}, the first {arrays[0].shape if arrays else 'none'}"
        )
    with torch.no_grad():
        for array, (_, parameter) in zip(arrays, targets, strict=True):
            values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
            # Keras stores (height, width, in, out) and (in, out); the order of LSTM gates is the same.
            parameter.copy_(
                values.permute(3, 2, 0, 1) if values.ndim == 4 else values.T if values.ndim == 2 else values
            )
    return model


def mosnet_magnitudes(wav: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, "t 257"]:
    """What the network was trained on: librosa's STFT of 512 points, hop 256, symmetric Hamming window, reflected ends.

    Raises:
        ValueError: If the clip is shorter than half a window, 257 samples.
    """
    if wav.size <= _NUM_FFT // 2:
        raise ValueError(f"MOSNet needs more than {_NUM_FFT // 2} samples, got {wav.size}")
    padded = np.pad(wav, _NUM_FFT // 2, mode="reflect")
    frames = sliding_window_view(padded, _NUM_FFT)[::_HOP_SAMPLES]
    return np.abs(np.fft.rfft(frames * np.hamming(_NUM_FFT))).astype(np.float32)


@lru_cache(maxsize=1)
def _load_cached(path: str, modified_ns: int) -> MOSNet:
    return load_mosnet(path)


def _pad_like_keras(features: Tensor, stride: int) -> Tensor:
    """Zeros so that ceil(width / stride) frequencies come out; an odd one goes to the right, as TensorFlow does."""
    width = features.shape[-1]
    total = max((-(-width // stride) - 1) * stride + 3 - width, 0)
    return functional.pad(features, (total // 2, total - total // 2, 1, 1))


def _targets(model: MOSNet) -> list[tuple[tuple[int, ...], Tensor]]:
    """Shape in Keras and our parameter, in the order of the file. Biases of torch's second kind become 0."""
    targets: list[tuple[tuple[int, ...], Tensor]] = []
    for convolution in model.convolutions:
        assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
        targets.append(((3, 3, convolution.in_channels, convolution.out_channels), convolution.weight))
        targets.append(((convolution.out_channels,), convolution.bias))
    for suffix in ("", "_reverse"):
        targets.append(((512, 512), getattr(model.lstm, f"weight_ih_l0{suffix}")))
        targets.append(((128, 512), getattr(model.lstm, f"weight_hh_l0{suffix}")))
        targets.append(((512,), getattr(model.lstm, f"bias_ih_l0{suffix}")))
        nn.init.zeros_(getattr(model.lstm, f"bias_hh_l0{suffix}"))
    for layer in (model.hidden, model.score):
        targets += [((layer.in_features, layer.out_features), layer.weight), ((layer.out_features,), layer.bias)]
    return targets


def _read_keras(path: Path) -> list[np.ndarray]:
    """All arrays in the order of the layers, which Keras keeps in attributes."""
    try:
        h5py: Any = import_module("h5py")
    except ImportError as error:
        raise ImportError("reading MOSNet's weights needs the package h5py: pip install h5py") from error
    try:
        with h5py.File(path, "r") as file:
            group = file["model_weights"] if "model_weights" in file else file
            layers = [group[_text(name)] for name in group.attrs["layer_names"]]
            return [np.asarray(layer[_text(name)]) for layer in layers for name in layer.attrs["weight_names"]]
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} is not a Keras file of weights: {error}") from None


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
