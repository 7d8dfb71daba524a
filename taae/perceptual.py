"""Losses that listen (section 3.4): Eq. 9 over any frozen feature extractor, and a CTC head that reads the latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from taae.fsq import at_least_float32

_BLANK = 0  # CTC's "no new symbol"; the alphabet begins at 1


def perceptual_loss(target: list[Tensor], decoded: list[Tensor]) -> Tensor:
    """Eq. 9: mean |C(x) - C(x^)| / mean |C(x)| of every layer, averaged over layers; means run over the whole batch.

    Args:
        target: Features of the target, one tensor per layer; compute them without gradients.
        decoded: Features of the decoded speech.
    """
    terms = []
    for target_layer, decoded_layer in zip(map(at_least_float32, target), map(at_least_float32, decoded), strict=True):
        distance = (target_layer - decoded_layer).abs().mean()
        terms.append(distance / target_layer.abs().mean().clamp(min=1e-5))
    return torch.stack(terms).mean()


class WavLM(nn.Module):
    """A frozen WavLM (Chen et al. 2022) as feature extractor; the paper takes WavLM-Large.

    Its weights never change and it never drops layers or masks, but gradients reach the speech it hears.

    Raises:
        ValueError: If the folder holds no complete WavLM.
        RuntimeError: If transformers is not installed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"no WavLM at {folder}: it has no config.json; download the model (microsoft/wavlm-large on the "
                "Hugging Face hub is the paper's) and give its folder"
            )
        try:
            from transformers import WavLMModel
        except ImportError as error:
            raise RuntimeError("WavLM needs transformers: pip install transformers") from error
        try:
            loaded: Any = WavLMModel.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
            )
        except OSError as error:
            raise ValueError(f"no WavLM at {folder}: {error}") from None
        model, info = loaded
        # transformers fills what is missing with random numbers and only warns.
        absent = sorted(info["missing_keys"])
        if absent or info["mismatched_keys"]:
            raise ValueError(
                f"{folder} holds no complete WavLM: {len(absent)} weights are missing (first {absent[:1]}), "
                f"{len(info['mismatched_keys'])} have another shape"
            )
        self.model = model.requires_grad_(False).eval()
        # Models with layer norms in their convolutions (Large) were trained on standardised speech, the others not.
        self.is_standardised = model.config.feat_extract_norm == "layer"

    def train(self, mode: bool = True) -> "WavLM":
        """Stays in inference mode, whatever a training loop says."""
        return super().train(False)

    def forward(self, wav: Float[Tensor, "b 1 n"]) -> list[Tensor]:
        """Outputs of every transformer layer at 50 Hz, (b, t, c) each, of 16 kHz speech.

        The published code standardises a batch as a whole; here it is every item by itself, as WavLM was trained.
        """
        wav = wav[:, 0]
        if self.is_standardised:
            mean, variance = wav.mean(dim=1, keepdim=True), wav.var(dim=1, keepdim=True, unbiased=False)
            wav = (wav - mean) / (variance + 1e-7).sqrt()
        outputs: list[Tensor] = []
        # Not transformers' `hidden_states`, the last of which is before or after a layer norm depending on the version.
        hooks = [
            layer.register_forward_hook(lambda _, __, output: outputs.append(output[0]))
            for layer in self.model.encoder.layers
        ]
        try:
            self.model(wav)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class CTCConfig:
    """What the CTC head reads out of the latents.

    Attributes:
        symbols: The characters of the transcripts in lower case, or with `is_phonemes` names parted by spaces.
        is_phonemes: Transcripts are names parted by spaces, such as "HH AH0 L OW1".
        channels: Of the two hidden layers, 256 in the published code.
    """

    symbols: str = " 'abcdefghijklmnopqrstuvwxyz"
    is_phonemes: bool = False
    channels: int = 256

    def __post_init__(self) -> None:
        if not self.alphabet or len(set(self.alphabet)) < len(self.alphabet):
            raise ValueError(f"symbols must be different and at least one, got {self.symbols!r}")
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")

    @property
    def alphabet(self) -> list[str]:
        return self.symbols.split() if self.is_phonemes else list(self.symbols)


class CTCHead(nn.Module):
    """Reads symbols from pre-bottleneck latents, frame by frame: tanh, two hidden layers, log-probabilities.

    Trained with the codec so that latents carry what was said. Its parameters belong in the codec's optimiser; those of
    the published code are in none.
    """

    def __init__(self, config: CTCConfig, latent_dim: int) -> None:
        super().__init__()
        self.config = config
        self.alphabet = config.alphabet
        self.index = {symbol: number for number, symbol in enumerate(self.alphabet, start=_BLANK + 1)}
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, config.channels),
            nn.SiLU(),
            nn.Linear(config.channels, config.channels),
            nn.SiLU(),
            nn.Linear(config.channels, 1 + len(self.alphabet)),
        )

    def forward(self, latents: Float[Tensor, "b s d"]) -> Float[Tensor, "b s symbols"]:
        """Log-probabilities of the blank (index 0) and each symbol."""
        return at_least_float32(self.layers(latents.tanh())).log_softmax(dim=-1)

    def loss(self, latents: Float[Tensor, "b s d"], transcripts: Sequence[str], num_frames: Sequence[int]) -> Tensor:
        """Negative log-likelihood per symbol (Graves et al. 2006), averaged over the batch.

        A transcript must say what its item's first `num_frames` latents say, so use whole utterances: a random crop of
        one has no known transcript. At 25 Hz some are too fast to be aligned; `is_readable` tells, and they add 0.

        Raises:
            ValueError: If a transcript has a phoneme that the alphabet lacks.
        """
        targets = [self.encode(transcript) for transcript in transcripts]
        return F.ctc_loss(
            self(latents).transpose(0, 1),
            torch.tensor([number for target in targets for number in target], dtype=torch.long, device=latents.device),
            torch.tensor(num_frames, dtype=torch.long),
            torch.tensor([len(target) for target in targets], dtype=torch.long),
            blank=_BLANK,
            zero_infinity=True,
        )

    def encode(self, transcript: str) -> list[int]:
        """Numbers of the symbols; characters that are not in the alphabet, such as punctuation, are left out.

        Raises:
            ValueError: If the transcript has a phoneme that the alphabet lacks.
        """
        if not self.config.is_phonemes:
            kept = "".join(symbol for symbol in transcript.lower() if symbol in self.index or symbol.isspace())
            return [self.index[symbol] for symbol in " ".join(kept.split()) if symbol in self.index]
        unknown = sorted(set(transcript.split()) - set(self.alphabet))
        if unknown:
            raise ValueError(f"phonemes {unknown} are not in the alphabet {' '.join(self.alphabet)}")
        return [self.index[symbol] for symbol in transcript.split()]

    def is_readable(self, transcript: str, num_frames: int) -> bool:
        """Whether CTC can align it: one latent for each symbol, and one more between equal neighbours."""
        numbers = self.encode(transcript)
        repeats = sum(a == b for a, b in zip(numbers, numbers[1:], strict=False))
        return len(numbers) + repeats <= num_frames

    def transcribe(self, latents: Float[Tensor, "b s d"]) -> list[str]:
        """The likeliest symbol of each latent, with repeats merged and blanks left out."""
        best = self(latents).argmax(dim=-1)
        texts = []
        for row in best:
            numbers = [number for number in row.unique_consecutive().tolist() if number != _BLANK]
            texts.append((" " if self.config.is_phonemes else "").join(self.alphabet[n - 1] for n in numbers))
        return texts
