"""Neural codecs of the paper, and X-codec2 beyond it, through the classes of `transformers`, from a local folder.

Bitrates and sample rates come from the folder's configuration, never from here: a small model of the same class, as in
the tests, takes the same path.
"""

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from workbench.baselines.protocol import Encoded, Reconstructing, UnavailableError, fit, pack_tokens

WEIGHTS = Path(os.environ.get("TAAE_WEIGHTS", "weights"))


class TransformersCodec(Reconstructing):
    """A codec with a folder of weights as `save_pretrained` writes it; one token of each of some codebooks a frame.

    Args:
        folder: With config.json and the weights; by default a folder of `WEIGHTS` (variable TAAE_WEIGHTS).
        device: Where it runs.

    Raises:
        UnavailableError: If transformers or the folder is missing.
        ValueError: If the folder holds another model.
    """

    family: str
    class_name: str
    checkpoint: str
    num_codebooks: tuple[int, ...]  # one mode each; of Table 2 where the codec is in it

    def __init__(self, folder: str | os.PathLike | None = None, device: str = "cpu") -> None:
        path = Path(folder) if folder is not None else WEIGHTS / self.checkpoint.split("/")[1]
        try:
            transformers: Any = import_module("transformers")
        except ImportError:
            raise UnavailableError(self.family, "transformers", "pip install 'taae-workbench[baselines]'") from None
        if not (path / "config.json").is_file():
            command = f"hf download {self.checkpoint} --local-dir {path}"
            raise UnavailableError(self.family, f"{self.checkpoint} in {path}", command)
        model_type = getattr(transformers, self.class_name).config_class.model_type
        found = transformers.AutoConfig.from_pretrained(path, local_files_only=True).model_type
        if found != model_type:
            raise ValueError(f"{path} holds a model of type {found!r}, {self.family} needs {model_type!r}")
        self.folder, self.device = path, device
        # In evaluation mode: DAC would draw the number of codebooks at random.
        self.model: Any = getattr(transformers, self.class_name).from_pretrained(path, local_files_only=True).eval()
        self.model.to(device)

    @property
    def name(self) -> str:
        return self.family

    @property
    def sample_rate_hz(self) -> int:
        return int(self.model.config.sampling_rate)

    @property
    def bitrates(self) -> Mapping[str, float]:
        """Mode, its bits per second, -> the same as a number; Eq. 5."""
        rates = [self.frame_rate_hz * sum(map(_bits, self.codebook_sizes(k))) for k in self.num_codebooks]
        return {f"{rate:g}": rate for rate in rates}

    @property
    def frame_rate_hz(self) -> float:
        return self.sample_rate_hz / float(np.prod(self._ratios()))

    def codebook_sizes(self, num_codebooks: int) -> tuple[int, ...]:
        """Codes of each of the first codebooks."""
        return (int(self.model.config.codebook_size),) * num_codebooks

    def encode(self, wav: np.ndarray, mode: str) -> Encoded:
        import torch

        count = dict(zip(self.bitrates, self.num_codebooks, strict=True))[mode]
        with torch.inference_mode():
            codes = self._encode(torch.from_numpy(np.asarray(wav, np.float32))[None, None].to(self.device), count)
        tokens = codes.cpu().numpy().astype(np.int64).T  # (s, k)
        if tokens.shape[1] != count:
            raise RuntimeError(f"{self.name} gave {tokens.shape[1]} codebooks instead of {count}")
        data = pack_tokens(tokens, self.codebook_sizes(count))
        return Encoded(mode=mode, num_samples=len(wav), data=data, tokens=tokens)

    def decode(self, encoded: Encoded) -> np.ndarray:
        import torch

        assert encoded.tokens is not None
        with torch.inference_mode():
            wav = self._decode(torch.from_numpy(encoded.tokens.T.copy()).to(self.device))
        return fit(wav.float().cpu().numpy().ravel(), encoded.num_samples)

    def _ratios(self) -> Any:
        return self.model.config.upsampling_ratios

    def _encode(self, wav: Any, num_codebooks: int) -> Any:
        """Tensor (1, 1, n) -> codes (k, s)."""
        raise NotImplementedError

    def _decode(self, codes: Any) -> Any:
        """Codes (k, s) -> tensor with the samples."""
        raise NotImplementedError


class EnCodec(TransformersCodec):
    """EnCodec at 24 kHz (Defossez et al. 2022), 2 and 4 codebooks: 1.5 and 3 kbit/s."""

    family, class_name, checkpoint, num_codebooks = "EnCodec", "EncodecModel", "facebook/encodec_24khz", (2, 4)

    def _encode(self, wav: Any, num_codebooks: int) -> Any:
        rate = self.frame_rate_hz * sum(map(_bits, self.codebook_sizes(num_codebooks)))
        coded = self.model.encode(wav, bandwidth=rate / 1000)
        return coded.audio_codes[0, 0]  # one chunk, one recording

    def _decode(self, codes: Any) -> Any:
        return self.model.decode(codes[None, None], [None]).audio_values


class Dac(TransformersCodec):
    """DAC at 16 kHz (Kumar et al. 2023), 2 and 4 codebooks: 1 and 2 kbit/s. It gives some samples less than it got."""

    family, class_name, checkpoint, num_codebooks = "DAC", "DacModel", "descript/dac_16khz", (2, 4)

    def _ratios(self) -> Any:
        return self.model.config.downsampling_ratios

    def _encode(self, wav: Any, num_codebooks: int) -> Any:
        import torch

        missing = -wav.shape[-1] % int(np.prod(self._ratios()))
        return self.model.encode(torch.nn.functional.pad(wav, (0, missing)), n_quantizers=num_codebooks).audio_codes[0]

    def _decode(self, codes: Any) -> Any:
        return self.model.decode(audio_codes=codes[None]).audio_values


class Mimi(TransformersCodec):
    """Mimi at 24 kHz (Defossez et al. 2024), 4 and 8 codebooks at 12.5 Hz: 550 and 1100 bit/s."""

    family, class_name, checkpoint, num_codebooks = "Mimi", "MimiModel", "kyutai/mimi", (4, 8)

    @property
    def frame_rate_hz(self) -> float:
        return float(self.model.config.frame_rate)

    def _encode(self, wav: Any, num_codebooks: int) -> Any:
        # Without the argument all 32 codebooks of the checkpoint come out.
        return self.model.encode(wav, num_quantizers=num_codebooks).audio_codes[0]

    def _decode(self, codes: Any) -> Any:
        return self.model.decode(codes[None]).audio_values


class XCodec2(TransformersCodec):
    """X-codec2 at 16 kHz (Ye et al. 2025), one codebook of 4^8 at 50 Hz: 800 bit/s. Not in the paper."""

    family, class_name, checkpoint, num_codebooks = "X-codec2", "Xcodec2Model", "HKUSTAudio/xcodec2-hf", (1,)

    def codebook_sizes(self, num_codebooks: int) -> tuple[int, ...]:
        return (int(np.prod(self.model.config.quantization_levels)),) * num_codebooks

    def _ratios(self) -> Any:
        return self.model.config.downsampling_ratios

    def _encode(self, wav: Any, num_codebooks: int) -> Any:
        import torch

        # As `Xcodec2FeatureExtractor`, which asks for torchaudio; the original took this extractor, which does not.
        hop = int(np.prod(self._ratios()))
        padded = torch.nn.functional.pad(wav, (0, 1 + -(wav.shape[-1] + 1) % hop))
        extractor: Any = import_module("transformers").SeamlessM4TFeatureExtractor()
        around = np.pad(padded[0, 0].cpu().numpy(), hop // 2)
        features = extractor(around, sampling_rate=self.sample_rate_hz, return_tensors="pt").input_features
        return self.model.encode(padded, features.to(self.device)).audio_codes[0]

    def _decode(self, codes: Any) -> Any:
        return self.model.decode(audio_codes=codes[None]).audio_values


def _bits(codebook_size: int) -> int:
    return (codebook_size - 1).bit_length()
