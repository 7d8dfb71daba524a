"""The paper's discriminator (section 3.3, B.5): complex STFTs at inharmonic resolutions, with a 2-D CNN each.

Encodec's is the same network at power-of-two sizes (Défossez et al. 2022, `msstftd.py` of facebookresearch/encodec):
`ENCODEC`, but for its first layer, which has no weight norm there. DAC's and BigVGAN's are in `discriminators_peers`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

_DILATIONS = (1, 2, 4)  # along time, in frames
_SLOPE = 0.2


def golden_ratio_sizes(longest_fft: int = 2296, count: int = 8) -> tuple[int, ...]:
    """FFT sizes whose hops shrink by the golden ratio, shortest first; the hop is half the size.

    Source: B.5. The defaults give the paper's {78, 126, 206, 334, 542, 876, 1418, 2296}: hops are 1148 / phi^k rounded
    down. Rounding to nearest gives other sizes, and so does starting from the printed shortest hop of 39 samples.

    Raises:
        ValueError: If the longest size is odd, or the shortest hop falls below one sample.
    """
    if longest_fft % 2 or count < 1:
        raise ValueError(f"longest_fft must be even and count at least 1, got {longest_fft} and {count}")
    golden_ratio = (1 + math.sqrt(5)) / 2
    hops = [math.floor(longest_fft / 2 / golden_ratio**power) for power in reversed(range(count))]
    if hops[0] < 1:
        raise ValueError(f"{count} sizes below {longest_fft} end in a hop of no samples; ask for fewer")
    return tuple(2 * hop for hop in hops)


class ScaleOutput(NamedTuple):
    """What one sub-discriminator says: logits (above 0 is "real") and the features of each layer before them."""

    logits: Tensor
    features: list[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class STFTDiscriminatorConfig:
    """An ensemble of STFT discriminators; the defaults are the paper's (section 3.3, 4.2, B.5).

    Attributes:
        fft_sizes: Window lengths in samples, one sub-discriminator each.
        hop_divisor: A hop is the window length over this.
        channels: Of every hidden layer.
        is_frequency_strided: Each dilated convolution halves the frequency axis, as in Encodec and in the release
            package; the paper does not say, and the published code of February 2026 does not.
        alpha: Exponent of Eq. 13; 0 leaves bins as they are.
        highest_hz: Bins above are not looked at; half the sample rate keeps all.
    """

    fft_sizes: tuple[int, ...] = golden_ratio_sizes()
    hop_divisor: int = 2
    channels: int = 256
    is_frequency_strided: bool = False
    alpha: float = 0.5
    sample_rate_hz: int = 16000
    highest_hz: float = 8000.0

    def __post_init__(self) -> None:
        if not self.fft_sizes or min(self.fft_sizes) < 4 or len(set(self.fft_sizes)) < len(self.fft_sizes):
            raise ValueError(f"fft_sizes must be different sizes of at least 4 samples, got {self.fft_sizes}")
        for key in ("hop_divisor", "channels", "sample_rate_hz"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        if any(size % self.hop_divisor for size in self.fft_sizes):
            raise ValueError(f"hop_divisor {self.hop_divisor} must divide every FFT size, got {self.fft_sizes}")
        if self.alpha < 0:
            raise ValueError(f"alpha must not be negative, got {self.alpha}")
        if not 0 < self.highest_hz <= self.sample_rate_hz / 2:
            raise ValueError(f"highest_hz must be in (0, {self.sample_rate_hz / 2:g}], got {self.highest_hz}")


# Section 3.4 of the Encodec paper: five scales, windows 128 ... 2048, hop a quarter, 32 channels.
ENCODEC = STFTDiscriminatorConfig(
    fft_sizes=(128, 256, 512, 1024, 2048), hop_divisor=4, channels=32, is_frequency_strided=True, alpha=0.0
)


class Ensemble(nn.Module):
    """Independent sub-discriminators; `forward` asks all of them, or those that `scales` names by index.

    Attributes:
        scale_names: One short name per sub-discriminator, such as its FFT size.
    """

    def __init__(self, members: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.scale_names = list(members)
        self.members = nn.ModuleList(members.values())

    @property
    def num_scales(self) -> int:
        return len(self.members)

    def forward(self, wav: Float[Tensor, "b 1 n"], scales: Sequence[int] | None = None) -> list[ScaleOutput]:
        """One output per scale asked, in that order.

        Raises:
            ValueError: If `wav` is shorter than a window.
        """
        return [self.members[index](wav) for index in (range(self.num_scales) if scales is None else scales)]


class STFTEnsemble(Ensemble):
    """One STFT discriminator per FFT size, which is its name; features are (b, channels, frames, bins)."""

    def __init__(self, config: STFTDiscriminatorConfig) -> None:
        super().__init__({str(size): _STFTDiscriminator(config, size) for size in config.fft_sizes})
        self.config = config


class _STFTDiscriminator(nn.Module):
    def __init__(self, config: STFTDiscriminatorConfig, fft_size: int) -> None:
        super().__init__()
        self.alpha, self.hop_samples = config.alpha, fft_size // config.hop_divisor
        self.num_bins = math.floor(config.highest_hz * fft_size / config.sample_rate_hz) + 1
        window = torch.hann_window(fft_size)
        # Unit energy, so that noise has bins of the same size at every resolution.
        self.register_buffer("window", window / window.square().sum().sqrt(), persistent=False)
        self.window: Tensor
        channels, stride = config.channels, (1, 2 if config.is_frequency_strided else 1)
        convs = [_conv(2, channels, (3, 9))]
        convs += [_conv(channels, channels, (3, 9), stride, dilation) for dilation in _DILATIONS]
        convs += [_conv(channels, channels, (3, 3))]
        self.convs = nn.ModuleList(convs)
        self.to_logits = _conv(channels, 1, (3, 3))

    def forward(self, wav: Tensor) -> ScaleOutput:
        hidden = self.scaled_spectrogram(wav)
        features = []
        for conv in self.convs:
            # In place: a convolution does not need its output to be differentiated, and memory is what limits here.
            hidden = F.leaky_relu(conv(hidden), _SLOPE, inplace=True)
            features.append(hidden)
        return ScaleOutput(self.to_logits(hidden), features)

    def scaled_spectrogram(self, wav: Tensor) -> Tensor:
        """Real and imaginary part of the bins of Eq. 13, (b, 2, frames, bins)."""
        size = len(self.window)
        if wav.shape[-1] < size:
            raise ValueError(f"wav has {wav.shape[-1]} samples, but the discriminator's window is {size}; use more")
        # Spectra need more than half precision, and torch.stft refuses bfloat16.
        with torch.autocast(wav.device.type, enabled=False):
            wav = wav[:, 0].to(torch.promote_types(wav.dtype, torch.float32))
            frames = torch.stft(
                wav, size, self.hop_samples, window=self.window.to(wav.dtype), center=False, return_complex=True
            )
            bins = frames.transpose(1, 2)[..., : self.num_bins]
            if self.alpha:
                bins = bins * (bins.abs() + 1e-6) ** self.alpha
            return torch.stack([bins.real, bins.imag], dim=1)


def _conv(inputs: int, outputs: int, kernel: tuple[int, int], stride=(1, 1), dilation: int = 1) -> nn.Module:
    padding = (dilation * (kernel[0] // 2), kernel[1] // 2)
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding, (dilation, 1)))
