"""Codecs that come as packages of their authors: SpeechTokenizer, SemantiCodec, and the published TAAE."""

import os
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from taae.audio import save_wav, to_mono
from workbench.baselines.neural import WEIGHTS
from workbench.baselines.protocol import Encoded, Reconstructing, UnavailableError, fit, pack_tokens


class SpeechTokenizer(Reconstructing):
    """SpeechTokenizer at 16 kHz (Zhang et al. 2023), the first 2 or 3 of 8 codebooks at 50 Hz: 1 and 1.5 kbit/s.

    Args:
        folder: With `config.json` and `SpeechTokenizer.pt`; by default `speechtokenizer` of `WEIGHTS`.
        device: Where it runs.

    Raises:
        UnavailableError: If the package or a file is missing.
    """

    name = "SpeechTokenizer"
    sample_rate_hz = 16_000
    bitrates: Mapping[str, float] = {"1000": 1000.0, "1500": 1500.0}

    def __init__(self, folder: str | os.PathLike | None = None, device: str = "cpu") -> None:
        path = Path(folder) if folder is not None else WEIGHTS / "speechtokenizer"
        config, weights = path / "config.json", path / "SpeechTokenizer.pt"
        if not config.is_file() or not weights.is_file():
            command = f"hf download fnlp/SpeechTokenizer --include 'speechtokenizer_hubert_avg/*' --local-dir {path}"
            raise UnavailableError(self.name, f"config.json and SpeechTokenizer.pt in {path}", command)
        package = _package(self.name, "speechtokenizer", "pip install speechtokenizer")
        self.device = device
        self.model = package.SpeechTokenizer.load_from_checkpoint(str(config), str(weights)).eval().to(device)

    def encode(self, wav: np.ndarray, mode: str) -> Encoded:
        import torch

        count = round(self.bitrates[mode] / 500)
        with torch.inference_mode():
            batch = torch.from_numpy(np.asarray(wav, np.float32))[None, None].to(self.device)
            codes = self.model.encode(batch, n_q=count)  # (k, 1, s)
        tokens = codes[:count, 0].cpu().numpy().astype(np.int64).T
        return Encoded(mode=mode, num_samples=len(wav), data=pack_tokens(tokens, (1024,) * count), tokens=tokens)

    def decode(self, encoded: Encoded) -> np.ndarray:
        import torch

        assert encoded.tokens is not None
        with torch.inference_mode():
            wav = self.model.decode(torch.from_numpy(encoded.tokens.T.copy())[:, None].to(self.device))
        return fit(wav.cpu().numpy().ravel(), encoded.num_samples)


class SemantiCodec(Reconstructing):
    """SemantiCodec at 16 kHz (Liu et al. 2024), 16384 semantic and 8192 acoustic codes, 25 or 50 tokens a second.

    A diffusion model draws what comes out: no SI-SDR, and another result every time but for torch's seed. The package
    reads a file and fetches its weights itself on first use.

    Raises:
        UnavailableError: If the package is missing.
    """

    name = "SemantiCodec"
    sample_rate_hz = 16_000
    bitrates: Mapping[str, float] = {"337.5": 337.5, "675": 675.0}

    def __init__(self) -> None:
        command = "pip install git+https://github.com/haoheliu/SemantiCodec-inference.git"
        self._package = _package(self.name, "semanticodec", command)
        self._models: dict[str, Any] = {}

    def encode(self, wav: np.ndarray, mode: str) -> Encoded:
        with tempfile.TemporaryDirectory() as folder:
            save_wav(Path(folder) / "in.wav", wav, self.sample_rate_hz)
            tokens = self._model(mode).encode(str(Path(folder) / "in.wav"))  # (1, s, 2)
        tokens = np.asarray(tokens.cpu())[0].astype(np.int64)
        return Encoded(mode=mode, num_samples=len(wav), data=pack_tokens(tokens, (16384, 8192)), tokens=tokens)

    def decode(self, encoded: Encoded) -> np.ndarray:
        import torch

        assert encoded.tokens is not None
        wav = self._model(encoded.mode).decode(torch.from_numpy(encoded.tokens)[None])
        return fit(np.asarray(wav, np.float32).ravel(), encoded.num_samples)

    def _model(self, mode: str) -> Any:
        if mode not in self._models:
            # A token pair, 27 bits, a frame: 12.5 or 25 frames a second.
            rate = {"337.5": 25, "675": 50}[mode]
            self._models[mode] = self._package.SemantiCodec(token_rate=rate, semantic_vocab_size=16384)
        return self._models[mode]


class Taae(Reconstructing):
    """A model of this project, by default the published stable-codec checkpoint through `taae.load_official`.

    Args:
        folder: With `model_config.json` and `model.ckpt` or `.safetensors`; by default `stable-codec-speech-16k` of
            `WEIGHTS`.
        device: Where it runs.

    Raises:
        UnavailableError: If a file is missing.
    """

    name = "stable-codec"

    def __init__(self, folder: str | os.PathLike | None = None, device: str = "cpu") -> None:
        import taae

        path = Path(folder) if folder is not None else WEIGHTS / "stable-codec-speech-16k"
        config = path / "model_config.json"
        weights = sorted([*path.glob("*.safetensors"), *path.glob("*.ckpt")])
        if not config.is_file() or not weights:
            command = f"hf download stabilityai/stable-codec-speech-16k --local-dir {path}"
            raise UnavailableError(self.name, f"model_config.json and model.ckpt in {path}", command)
        self.codec: Any = taae.load_official(config, weights[-1], device=device)

    @property
    def sample_rate_hz(self) -> int:
        return self.codec.sample_rate_hz

    @property
    def bitrates(self) -> Mapping[str, float]:
        from taae.config import BottleneckSpec

        specs = [BottleneckSpec.parse(f"{stages}^{self.codec.config.latent_dim}") for stages in ("1x6", "2x5")]
        return {str(spec): spec.bits_per_second(float(self.codec.frame_rate_hz)) for spec in specs}

    def encode(self, wav: np.ndarray, mode: str) -> Encoded:
        from taae import bitstream

        # With the loudness that the published encoder wants, and the gain that undoes it in the header.
        stream = self.codec.compress(wav, mode, sample_rate_hz=self.sample_rate_hz)
        header, tokens = bitstream.unpack(stream)
        spec = header.bottleneck
        data = pack_tokens(tokens, (spec.codebook_size,) * spec.num_stages)
        return Encoded(mode=mode, num_samples=len(wav), data=data, tokens=tokens, stream=stream)

    def decode(self, encoded: Encoded) -> np.ndarray:
        assert encoded.stream is not None
        return fit(to_mono(self.codec.decompress(encoded.stream)), encoded.num_samples)


def _package(name: str, module: str, command: str) -> Any:
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: torchaudio beside a CPU build of torch
        raise UnavailableError(name, f"the package {module} ({error})", command) from None
