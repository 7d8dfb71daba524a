"""HuBERT units and their HiFi-GAN vocoder, the comparison of A.7, from the files that SpeechGPT published."""

import json
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from workbench.baselines.neural import WEIGHTS
from workbench.baselines.protocol import Encoded, Reconstructing, UnavailableError, fit, pack_tokens

_SLOPE = 0.1


class HubertUnits(Reconstructing):
    """HuBERT-base features of one layer, k-means units at 50 Hz (500 bit/s for 1000), and a vocoder for units.

    Runs of one unit are merged and their durations predicted anew, as the vocoder was trained: what comes out is cut or
    filled to the length that went in, and no metric that compares sample by sample means anything (Table 8).

    Args:
        folder: With `hubert/` (config.json and weights as of transformers), `kmeans.npy` (units, features), and the
            vocoder's `config.json` and `vocoder.pt`; by default `hubert-units` of `WEIGHTS`.
        layer: Of HuBERT, whose output is clustered, counted from 1. SpeechGPT's is 11.
        device: Where it runs.

    Raises:
        UnavailableError: If transformers or a file is missing.
    """

    name = "HuBERT + unit HiFi-GAN"
    sample_rate_hz = 16_000

    def __init__(self, folder: str | os.PathLike | None = None, layer: int = 11, device: str = "cpu") -> None:
        path = Path(folder) if folder is not None else WEIGHTS / "hubert-units"
        try:
            transformers: Any = import_module("transformers")
        except ImportError:
            raise UnavailableError(self.name, "transformers", "pip install 'taae-workbench[baselines]'") from None
        for part, command in {
            "hubert/config.json": f"hf download facebook/hubert-base-ls960 --local-dir {path}/hubert",
            "kmeans.npy": f"numpy.save('{path}/kmeans.npy', joblib.load(SPEECHGPT_KMEANS).cluster_centers_)",
            "config.json": f"hf download fnlp/SpeechGPT-7B-cm-unit-vocoder config.json --local-dir {path}",
            "vocoder.pt": f"save SpeechGPT's vocoder g_00500000 as {path}/vocoder.pt",
        }.items():
            if not (path / part).is_file():
                raise UnavailableError(self.name, str(path / part), command)
        self.layer, self.device = layer, device
        self.hubert: Any = transformers.HubertModel.from_pretrained(path / "hubert", local_files_only=True).eval()
        self.hubert.to(device)
        self.centres = torch.from_numpy(np.load(path / "kmeans.npy", allow_pickle=False)).float().to(device)
        self.vocoder = load_vocoder(path / "config.json", path / "vocoder.pt").to(device)

    @property
    def bitrates(self) -> Mapping[str, float]:
        rate = 50.0 * (len(self.centres) - 1).bit_length()
        return {f"{rate:g}": rate}

    def encode(self, wav: np.ndarray, mode: str) -> Encoded:
        with torch.inference_mode():
            batch = torch.from_numpy(np.asarray(wav, np.float32))[None].to(self.device)
            features = self.hubert(batch, output_hidden_states=True).hidden_states[self.layer][0]  # (s, d)
            units = torch.cdist(features, self.centres).argmin(-1)
        tokens = units.cpu().numpy()[:, None]
        data = pack_tokens(tokens, (len(self.centres),))
        return Encoded(mode=mode, num_samples=len(wav), data=data, tokens=tokens)

    def decode(self, encoded: Encoded) -> np.ndarray:
        assert encoded.tokens is not None
        units = torch.from_numpy(encoded.tokens[:, 0]).to(self.device)
        with torch.inference_mode():
            wav = self.vocoder(torch.unique_consecutive(units))
        return fit(wav.cpu().numpy(), encoded.num_samples)


class UnitHiFiGAN(nn.Module):
    """Embedding of units, their durations, and a HiFi-GAN; names are those of the fairseq checkpoint.

    Source: Polyak et al. 2021; the code vocoder of fairseq, and Kong et al. 2020 for the generator.

    Args:
        config: The vocoder's config.json.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        size, channels = config["embedding_dim"], config["upsample_initial_channel"]
        self.dict = nn.Embedding(config["num_embeddings"], size)
        durations: Mapping[str, Any] = config["dur_predictor_params"]
        self.dur_predictor = _Durations(size, durations["var_pred_hidden_dim"], durations["var_pred_kernel_size"])
        self.conv_pre = nn.Conv1d(config.get("model_in_dim", size), channels, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config["upsample_rates"], config["upsample_kernel_sizes"], strict=True):
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2))
            channels //= 2
            for size, dilations in zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True):
                self.resblocks.append(_ResidualBlock(channels, size, dilations))
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3)

    def forward(self, units: Tensor) -> Tensor:
        """Units without repetitions (s,) -> wav (n,)."""
        embedded = self.dict(units)[None]  # (1, s, d)
        frames = torch.round(torch.exp(self.dur_predictor(embedded)) - 1).long().clamp(min=1)[0]
        return self.generate(embedded.repeat_interleave(frames, dim=1).transpose(1, 2))[0]

    def generate(self, features: Tensor) -> Tensor:
        """Features (b, d, frames) -> wav (b, n)."""
        features = self.conv_pre(features)
        per_scale = len(self.resblocks) // len(self.ups)
        for scale, up in enumerate(self.ups):
            features = up(functional.leaky_relu(features, _SLOPE))
            blocks = self.resblocks[scale * per_scale : (scale + 1) * per_scale]
            features = torch.stack([block(features) for block in blocks]).mean(0)
        # The slope of the last one is torch's default, as in the published HiFi-GAN.
        return torch.tanh(self.conv_post(functional.leaky_relu(features)))[:, 0]


class _Durations(nn.Module):
    """Log of one plus the frames of each unit."""

    def __init__(self, size: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv1d(size, hidden, kernel, padding=(kernel - 1) // 2), nn.ReLU())
        self.ln1 = nn.LayerNorm(hidden)
        self.conv2 = nn.Sequential(nn.Conv1d(hidden, hidden, kernel, padding=1), nn.ReLU())
        self.ln2 = nn.LayerNorm(hidden)
        self.proj = nn.Linear(hidden, 1)

    def forward(self, embedded: Tensor) -> Tensor:
        features = self.ln1(self.conv1(embedded.transpose(1, 2)).transpose(1, 2))
        features = self.ln2(self.conv2(features.transpose(1, 2)).transpose(1, 2))
        return self.proj(features)[..., 0]


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, kernel: int, dilations: list[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=(kernel - 1) * d // 2) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations)

    def forward(self, features: Tensor) -> Tensor:
        for first, second in zip(self.convs1, self.convs2, strict=True):
            hidden = first(functional.leaky_relu(features, _SLOPE))
            features = features + second(functional.leaky_relu(hidden, _SLOPE))
        return features


def load_vocoder(config_path: str | os.PathLike, weights_path: str | os.PathLike) -> UnitHiFiGAN:
    """Read a fairseq checkpoint: a dictionary with "generator", weights of convolutions split by weight norm.

    Raises:
        ValueError: If names or shapes are not those of the configuration.
    """
    config = json.loads(Path(config_path).read_text())
    stored = torch.load(weights_path, map_location="cpu", weights_only=True)
    weights = dict(stored.get("generator", stored))
    for name in [name for name in weights if name.endswith(".weight_g")]:
        stem = name.removesuffix("_g")
        direction, length = weights.pop(f"{stem}_v"), weights.pop(name)
        weights[stem] = torch._weight_norm(direction, length, 0)
    model = UnitHiFiGAN(config).eval()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{weights_path} does not fit {config_path}: {error}") from None
    return model
