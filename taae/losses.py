"""Reconstruction losses of the small models: multi-resolution mel and STFT, and the waveform itself.

The paper's losses (Eq. 7-10) need a discriminator; these do not, and train a first model on a CPU.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from taae.audio import mel_filters


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconstructionLossConfig:
    """Weights and resolutions of `ReconstructionLoss`.

    Attributes:
        fft_sizes: Window lengths in samples; the hop is a quarter.
        num_mels: Mel bands at each of them.
        resolutions_per_step: How many of them a step draws at random; the expectation is that of all.
        log_floor: Added to magnitudes before the logarithm, about 40 dB below speech at -20 LUFS.
        mel_weight: Of the mean L1 distance of natural-log mel magnitudes.
        magnitude_weight: Of the L1 distance of magnitudes over the mean target magnitude.
        complex_weight: Of the L1 distance of complex bins with magnitudes raised to 0.3, which sees phase.
        wav_weight: Of the L1 distance of samples over the mean target magnitude.
        frame_pattern_weight: Of `frame_pattern_loss`.
        frame_samples: Its period: the samples of a latent frame.
    """

    fft_sizes: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    num_mels: tuple[int, ...] = (16, 32, 64, 80, 96)
    resolutions_per_step: int = 5
    log_floor: float = 1e-3
    mel_weight: float = 1.0
    magnitude_weight: float = 0.5
    complex_weight: float = 0.0
    wav_weight: float = 0.1
    frame_pattern_weight: float = 0.0
    frame_samples: int = 640

    def __post_init__(self) -> None:
        if len(self.fft_sizes) != len(self.num_mels) or not self.fft_sizes:
            raise ValueError(f"fft_sizes and num_mels must pair up, got {self.fft_sizes} and {self.num_mels}")
        if not 1 <= self.resolutions_per_step <= len(self.fft_sizes):
            raise ValueError(
                f"resolutions_per_step must be 1 ... {len(self.fft_sizes)}, got {self.resolutions_per_step}"
            )
        if self.frame_samples < 1:
            raise ValueError(f"frame_samples must be at least 1, got {self.frame_samples}")


class ReconstructionLoss(nn.Module):
    """Weighted terms of `ReconstructionLossConfig`, each a mean over the resolutions drawn."""

    def __init__(self, config: ReconstructionLossConfig, sample_rate_hz: int) -> None:
        super().__init__()
        self.config = config
        for size, num_mels in zip(config.fft_sizes, config.num_mels, strict=True):
            window = torch.hann_window(size)
            self.register_buffer(f"window_{size}", window / window.square().sum().sqrt(), persistent=False)
            filters = torch.from_numpy(mel_filters(sample_rate_hz, size, num_mels))
            # Unit sums, so that a mel band is a mean magnitude and one log_floor serves every resolution.
            filters = filters / filters.sum(dim=1, keepdim=True).clamp(min=1e-9)
            self.register_buffer(f"mel_{size}", filters.T.contiguous(), persistent=False)

    def forward(
        self, target: Float[Tensor, "b 1 n"], decoded: Float[Tensor, "b 1 n"], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses by name; their sum is what to minimise."""
        config = self.config
        drawn = torch.randperm(len(config.fft_sizes), generator=generator)[: config.resolutions_per_step]
        terms: dict[str, list[Tensor]] = {}
        for index in drawn.tolist():
            for name, value in self._spectral(target[:, 0], decoded[:, 0], config.fft_sizes[index]).items():
                terms.setdefault(name, []).append(value)
        losses = {name: torch.stack(values).mean() for name, values in terms.items()}
        if config.wav_weight:
            losses["wav"] = config.wav_weight * (target - decoded).abs().mean() / target.abs().mean().clamp(min=1e-4)
        if config.frame_pattern_weight:
            pattern = frame_pattern_loss(target, decoded, config.frame_samples)
            losses["frame_pattern"] = config.frame_pattern_weight * pattern
        return losses

    def _spectral(self, target: Tensor, decoded: Tensor, size: int) -> dict[str, Tensor]:
        config, window, mel = self.config, self.get_buffer(f"window_{size}"), self.get_buffer(f"mel_{size}")
        with torch.no_grad():
            target_bins, target_magnitude = _stft(target, window)
            target_log_mel = (target_magnitude @ mel + config.log_floor).log()
        bins, magnitude = _stft(decoded, window)
        losses = {}
        log_mel = (magnitude @ mel + config.log_floor).log()
        losses["mel"] = config.mel_weight * (log_mel - target_log_mel).abs().mean()
        if config.magnitude_weight:
            scale = target_magnitude.mean().clamp(min=1e-4)
            losses["magnitude"] = config.magnitude_weight * (magnitude - target_magnitude).abs().mean() / scale
        if config.complex_weight:
            compressed = target_bins * (target_magnitude + 1e-3)[..., None] ** -0.7
            error = bins * (magnitude + 1e-3)[..., None] ** -0.7 - compressed
            losses["complex"] = config.complex_weight * error.abs().mean() / compressed.abs().mean().clamp(min=1e-4)
        return losses


def frame_pattern_loss(target: Float[Tensor, "b 1 n"], decoded: Float[Tensor, "b 1 n"], frame_samples: int) -> Tensor:
    """How differently energy falls on the samples of a frame, on average over all frames of a batch.

    A decoder that writes frames through one matrix may write some of their samples louder than others, in every frame:
    noise that pulses at the frame rate, which spectral losses hardly see. The energies of a frame over their mean are
    averaged over frames, for the samples and for their first and second differences; the loss is the mean squared
    difference of the logarithms, 0 for a batch of any speech with itself, 0.02 between two batches of 1000 frames.

    Raises:
        ValueError: If the crops are shorter than two frames.
    """
    if target.shape[-1] < 2 * frame_samples:
        raise ValueError(f"crops need {2 * frame_samples} samples at least, got {target.shape[-1]}")
    distances = []
    for order in range(3):
        folded = []
        # What is silent has no pattern; decoded noise that is softer than speech still has one.
        for wav, floor in ((target, 0.02), (decoded, 0.005)):
            energies = wav[:, 0].diff(order).square()
            frames = energies[:, : energies.shape[1] // frame_samples * frame_samples].reshape(-1, frame_samples)
            mean = frames.mean(dim=1, keepdim=True)
            folded.append((frames / (mean + 1e-9), mean > floor * mean.detach().mean()))
        (wanted, is_loud), (made, is_made) = folded
        kept = (is_loud & is_made).to(made.dtype)
        num_kept = kept.sum().clamp(min=1)
        logs = [((frames * kept).sum(dim=0) / num_kept + 1e-2).log() for frames in (wanted, made)]
        distances.append((logs[0] - logs[1]).square().mean())
    return torch.stack(distances).mean()


def wav_l1_loss(target: Float[Tensor, "b 1 n"], decoded: Float[Tensor, "b 1 n"]) -> Tensor:
    """L1(x, x^) of Eq. 8: the mean distance of samples."""
    return (target - decoded).abs().mean()


def stft_l1_loss(
    target: Float[Tensor, "b 1 n"], decoded: Float[Tensor, "b 1 n"], fft_size: int = 2048, hop_samples: int = 512
) -> Tensor:
    """L1(|X|, |X^|) of Eq. 8: the mean distance of STFT magnitudes, with the resolution of section 4.2.

    The window is not normalised, so at this size the term is 10 to 30 times as large as `wav_l1_loss`.
    """
    window = torch.hann_window(fft_size, dtype=decoded.dtype, device=decoded.device)

    def magnitude(wav: Tensor) -> Tensor:
        bins = torch.stft(wav[:, 0], fft_size, hop_samples, window=window, return_complex=True)
        # Clamped inside the root, whose gradient at silence would be infinite.
        return torch.view_as_real(bins).square().sum(dim=-1).clamp(min=1e-8).sqrt()

    return (magnitude(target) - magnitude(decoded)).abs().mean()


def _stft(wav: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Bins (b, frames, f, 2) and magnitudes (b, frames, f); the gradient at silence is finite."""
    size = len(window)
    bins = torch.stft(wav, size, size // 4, window=window, center=True, pad_mode="constant", return_complex=True)
    bins = torch.view_as_real(bins.transpose(1, 2))
    return bins, (bins.square().sum(dim=-1) + 1e-10).sqrt()
