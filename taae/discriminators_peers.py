"""Discriminators of DAC and BigVGAN, for the study of their bias (B.5), and the one place that builds any by name.

Sources: `dac/model/discriminator.py` of descriptinc/descript-audio-codec with the STFT of descriptinc/audiotools (Kumar
et al. 2023), and `discriminators.py` of NVIDIA/BigVGAN (Lee et al. 2022), whose multi-period part is HiFi-GAN's.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from taae.config import build
from taae.discriminators import ENCODEC, Ensemble, ScaleOutput, STFTDiscriminatorConfig, STFTEnsemble

_SLOPE = 0.1
_DAC_BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))  # shares of the frequency axis


def _check_positive(config: Any) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if min(value if isinstance(value, tuple) else (value,), default=1) < 1:
            raise ValueError(f"{field.name} must be positive, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DACConfig:
    """Five periods and three multi-band complex STFTs, as published for 16, 24 and 44.1 kHz alike.

    Attributes:
        periods: In samples.
        fft_sizes: Window lengths in samples; the hop is a quarter.
        channels: Of the STFT parts and of the first layer of the periods, whose last ones have 32 times as many.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    fft_sizes: tuple[int, ...] = (2048, 1024, 512)
    channels: int = 32

    def __post_init__(self) -> None:
        _check_positive(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class BigVGANConfig:
    """Five periods and three magnitude STFTs, as published for 24 kHz (before its second version's CQT).

    Attributes:
        periods: In samples.
        fft_sizes: In samples; window and hop of the same place in the next two belong to it.
        hop_samples: Distances of windows.
        window_samples: Lengths of the windows, which are rectangular, in the middle of each FFT.
        channels: As in `DACConfig`.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    fft_sizes: tuple[int, ...] = (1024, 2048, 512)
    hop_samples: tuple[int, ...] = (120, 240, 50)
    window_samples: tuple[int, ...] = (600, 1200, 240)
    channels: int = 32

    def __post_init__(self) -> None:
        _check_positive(self)
        if not len(self.fft_sizes) == len(self.hop_samples) == len(self.window_samples):
            raise ValueError(
                "fft_sizes, hop_samples and window_samples must pair up, got "
                f"{self.fft_sizes}, {self.hop_samples} and {self.window_samples}"
            )
        if any(window > size for window, size in zip(self.window_samples, self.fft_sizes, strict=True)):
            raise ValueError(f"a window cannot exceed its FFT, got {self.window_samples} and {self.fft_sizes}")


DiscriminatorConfig = STFTDiscriminatorConfig | DACConfig | BigVGANConfig

_PUBLISHED: dict[str, DiscriminatorConfig] = {
    "paper": STFTDiscriminatorConfig(),
    "encodec": ENCODEC,
    "dac": DACConfig(),
    "bigvgan": BigVGANConfig(),
}


def discriminator_config(name: str, changes: Mapping[str, Any]) -> DiscriminatorConfig:
    """The published configuration of "paper", "encodec", "dac" or "bigvgan", with `changes` such as {"channels": 16}.

    Raises:
        ValueError: If there is no such architecture, or a change has a key that it does not know or a wrong value.
    """
    if name not in _PUBLISHED:
        raise ValueError(f"no discriminator {name!r}; there are {', '.join(_PUBLISHED)}")
    published = _PUBLISHED[name]
    return build(type(published), dataclasses.asdict(published) | dict(changes), f"discriminator {name!r}")


def build_discriminator(name: str, **changes: Any) -> Ensemble:
    """A fresh discriminator, such as `build_discriminator("paper", channels=16, is_frequency_strided=True)`.

    Raises:
        ValueError: As `discriminator_config`.
    """
    config = discriminator_config(name, changes)
    if isinstance(config, STFTDiscriminatorConfig):
        return STFTEnsemble(config)
    return DACDiscriminator(config) if isinstance(config, DACConfig) else BigVGANDiscriminator(config)


class DACDiscriminator(Ensemble):
    """Multi-period and multi-band STFT discriminators, "period 2" ... "stft 512", behind a peak normalisation."""

    def __init__(self, config: DACConfig) -> None:
        members: dict[str, nn.Module] = {}
        for period in config.periods:
            members[f"period {period}"] = _Period(period, config.channels, is_dac=True)
        for size in config.fft_sizes:
            members[f"stft {size}"] = _MultiBandSTFT(size, config.channels)
        super().__init__(members)
        self.config = config

    def forward(self, wav: Float[Tensor, "b 1 n"], scales: Sequence[int] | None = None) -> list[ScaleOutput]:
        wav = wav - wav.mean(dim=-1, keepdim=True)
        return super().forward(0.8 * wav / (wav.abs().amax(dim=-1, keepdim=True) + 1e-9), scales)


class BigVGANDiscriminator(Ensemble):
    """Multi-period and multi-resolution discriminators; as published, the logits count as the last feature."""

    def __init__(self, config: BigVGANConfig) -> None:
        members: dict[str, nn.Module] = {}
        for period in config.periods:
            members[f"period {period}"] = _Period(period, config.channels, is_dac=False)
        for size, hop, window in zip(config.fft_sizes, config.hop_samples, config.window_samples, strict=True):
            members[f"stft {size}"] = _MagnitudeSTFT(size, hop, window, config.channels)
        super().__init__(members)
        self.config = config


class _Period(nn.Module):
    """Every `period`-th sample is a row of its own, and convolutions run along the rows."""

    def __init__(self, period: int, channels: int, is_dac: bool) -> None:
        super().__init__()
        self.period, self.is_dac = period, is_dac
        widths = [1, channels, 4 * channels, 16 * channels, 32 * channels, 32 * channels]
        self.convs = nn.ModuleList(
            _conv(widths[layer], widths[layer + 1], (5, 1), (1 if layer == 4 else 3, 1)) for layer in range(5)
        )
        self.to_logits = _conv(widths[-1], 1, (3, 1))

    def forward(self, wav: Tensor) -> ScaleOutput:
        missing = self.period - wav.shape[-1] % self.period
        if missing < self.period or self.is_dac:  # DAC's adds a whole period where none is missing
            wav = F.pad(wav, (0, missing), mode="reflect")
        features = _features(self.convs, rearrange(wav, "b c (t period) -> b c t period", period=self.period))
        logits = self.to_logits(features[-1])
        return ScaleOutput(logits, features if self.is_dac else [*features, logits])


class _MultiBandSTFT(nn.Module):
    def __init__(self, fft_size: int, channels: int) -> None:
        super().__init__()
        self.hop_samples = fft_size // 4
        self.register_buffer("window", torch.hann_window(fft_size), persistent=False)
        self.window: Tensor
        num_bins = fft_size // 2 + 1
        self.bands = [(int(low * num_bins), int(high * num_bins)) for low, high in _DAC_BANDS]
        self.band_convs = nn.ModuleList(_stft_convs(2, channels) for _ in self.bands)
        self.to_logits = _conv(channels, 1, (3, 3))

    def forward(self, wav: Tensor) -> ScaleOutput:
        size, hop = len(self.window), self.hop_samples
        padding = (size - hop) // 2
        bins = _stft(wav, self.window, hop, (padding, padding + (-wav.shape[-1]) % hop))
        spectrogram = rearrange(torch.view_as_real(bins), "b f t part -> b part t f")
        bands = [
            _features(convs.children(), spectrogram[..., low:high])
            for convs, (low, high) in zip(self.band_convs, self.bands, strict=True)
        ]
        logits = self.to_logits(torch.cat([features[-1] for features in bands], dim=-1))
        return ScaleOutput(logits, [feature for features in bands for feature in features])


class _MagnitudeSTFT(nn.Module):
    def __init__(self, fft_size: int, hop_samples: int, window_samples: int, channels: int) -> None:
        super().__init__()
        self.hop_samples = hop_samples
        before = (fft_size - window_samples) // 2
        window = F.pad(torch.ones(window_samples), (before, fft_size - window_samples - before))
        self.register_buffer("window", window, persistent=False)
        self.window: Tensor
        self.convs = _stft_convs(1, channels)
        self.to_logits = _conv(channels, 1, (3, 3))

    def forward(self, wav: Tensor) -> ScaleOutput:
        padding = (len(self.window) - self.hop_samples) // 2
        magnitude = _stft(wav, self.window, self.hop_samples, (padding, padding)).abs()
        features = _features(self.convs, magnitude[:, None])  # (b, 1, f, t): its kernels are 9 wide along time
        logits = self.to_logits(features[-1])
        return ScaleOutput(logits, [*features, logits])


def _stft_convs(inputs: int, channels: int) -> nn.ModuleList:
    strided = [_conv(channels, channels, (3, 9), (1, 2)) for _ in range(3)]
    return nn.ModuleList([_conv(inputs, channels, (3, 9)), *strided, _conv(channels, channels, (3, 3))])


def _features(convs: Iterable[nn.Module], hidden: Tensor) -> list[Tensor]:
    features = []
    for conv in convs:
        hidden = F.leaky_relu(conv(hidden), _SLOPE, inplace=True)
        features.append(hidden)
    return features


def _stft(wav: Tensor, window: Tensor, hop_samples: int, padding: tuple[int, int]) -> Tensor:
    """Complex bins (b, f, t) of the mirrored `wav`; float32 or wider also under autocast."""
    if wav.shape[-1] <= max(padding):
        raise ValueError(
            f"wav has {wav.shape[-1]} samples, but a discriminator with windows of {len(window)} needs more than "
            f"{max(padding)}"
        )
    with torch.autocast(wav.device.type, enabled=False):
        wav = wav[:, 0].to(torch.promote_types(wav.dtype, torch.float32))
        padded = F.pad(wav, padding, mode="reflect")
        window = window.to(wav.dtype)
        return torch.stft(padded, len(window), hop_samples, window=window, center=False, return_complex=True)


def _conv(inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)) -> nn.Module:
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, stride, (kernel[0] // 2, kernel[1] // 2)))
