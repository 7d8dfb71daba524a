"""A small speech recogniser whose layers stand in for WavLM's (Eq. 9) where nothing may be downloaded.

It is no WavLM: some minutes of training on transcripts teach it letters and little else.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from taae.audio import mel_filters
from taae.config import build
from taae.files import write_atomic
from taae.perceptual import CTCConfig, CTCHead

_FFT_SIZE, _HOP = 512, 160
# Mean and deviation of log-mel magnitudes of speech at -20 LUFS, so that the first layer sees numbers around 1.
_MEAN, _DEVIATION = -5.9, 1.8


@dataclass(frozen=True, slots=True, kw_only=True)
class RecogniserConfig:
    """Sizes of a `Recogniser`.

    Attributes:
        channels: Of every layer.
        dilations: One residual layer each, half of them (rounded up) at 50 Hz, the others at 25 Hz.
        head: What it writes.
    """

    channels: int = 128
    dilations: tuple[int, ...] = (1, 2, 1, 2, 4)
    num_mels: int = 64
    head: CTCConfig = field(default_factory=CTCConfig)

    def __post_init__(self) -> None:
        if min(self.channels, self.num_mels) < 1 or not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"channels, num_mels and dilations must be at least 1, got {self}")


class Recogniser(nn.Module):
    """Log-mel frames, dilated convolutions, and letters by CTC; 16 kHz, letters at 25 Hz."""

    def __init__(self, config: RecogniserConfig) -> None:
        super().__init__()
        self.config = config
        filters = torch.from_numpy(mel_filters(16_000, _FFT_SIZE, config.num_mels))
        self.register_buffer("filters", filters.T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(_FFT_SIZE), persistent=False)
        self.conv_in = nn.Conv1d(config.num_mels, config.channels, 5, stride=2, padding=2)
        self.downsample = nn.Conv1d(config.channels, config.channels, 4, stride=2, padding=1)
        self.layers = nn.ModuleList(_Layer(config.channels, dilation) for dilation in config.dilations)
        self.head = CTCHead(config.head, config.channels)

    def forward(self, wav: Float[Tensor, "b 1 n"]) -> list[Tensor]:
        """Output of every layer, (b, t, channels) at 50 or 25 Hz, of 16 kHz speech."""
        bins = torch.stft(
            wav[:, 0], _FFT_SIZE, _HOP, window=self.get_buffer("window"), pad_mode="constant", return_complex=True
        )
        magnitude = (torch.view_as_real(bins).square().sum(dim=-1) + 1e-8).sqrt()  # finite gradient at silence
        mel = (magnitude.transpose(1, 2) @ self.get_buffer("filters") + 1e-4).log()
        stream = F.silu(self.conv_in((mel.transpose(1, 2) - _MEAN) / _DEVIATION))
        outputs, half = [], -(-len(self.layers) // 2)
        for index, layer in enumerate(self.layers):
            if index == half:
                stream = self.downsample(stream)
            stream = layer(stream)
            outputs.append(stream.transpose(1, 2))
        return outputs

    def save(self, folder: Path) -> None:
        """Write model.safetensors and config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "config.json", (json.dumps(asdict(self.config), indent=2) + "\n").encode(), force=True)
        write_atomic(folder / "model.safetensors", save(self.state_dict()), force=True)


def load_recogniser(folder: Path) -> Recogniser:
    """A frozen recogniser; gradients still reach the speech that it hears.

    Raises:
        ValueError: If the folder holds none, or it is damaged.
    """
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        recogniser = Recogniser(build(RecogniserConfig, values, str(folder / "config.json")))
        recogniser.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"no recogniser at {folder}: {error}") from None
    return recogniser.requires_grad_(False).eval()


class _Layer(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 5, padding=2 * dilation, dilation=dilation)
        self.norm = nn.BatchNorm1d(channels)
        self.out = nn.Conv1d(channels, channels, 1)

    def forward(self, stream: Tensor) -> Tensor:
        return stream + self.out(F.silu(self.norm(self.conv(stream))))
