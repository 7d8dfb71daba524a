"""Numbers of a tiny model of ours, kept to notice when they move: `python tests/golden/make.py` writes them anew.

The commit that changes them says why they moved.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from taae.codec import Codec
from taae.config import ModelConfig
from taae.model import TAAE

PATH = Path(__file__).parent / "tiny.safetensors"

CONFIG = ModelConfig(
    name="golden",
    patch_samples=20,
    width=16,
    head_dim=8,
    rope_dims=4,
    depths=(1, 2),
    window=(5, 6),
    layer_scale_init=1.0,
)
CAUSAL = ModelConfig(
    name="golden", patch_samples=20, width=16, head_dim=8, rope_dims=4, depths=(1, 1), window=(5, 0), is_causal=True
)


def noise(count: int, start: int) -> Tensor:
    """Numbers in [-1, 1] that look like noise and that no library's random generator can change."""
    positions = np.arange(start, start + count, dtype=np.float64)
    return torch.from_numpy(2 * (np.sin(positions * 12.9898) * 43758.5453 % 1) - 1).float()


def build(config: ModelConfig) -> Codec:
    """A codec whose weights are given by a formula."""
    model, start = TAAE(config).fuse_weight_norm(), 0
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = noise(parameter.numel(), start).view_as(parameter)
            if name.endswith(("gain", "norm.weight", "scale")):
                parameter.copy_(1 + values / 4)
            else:
                parameter.copy_(values * (1.3 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.1))
            start += parameter.numel()
    return Codec(model, b"golden 1")


def compute() -> dict[str, Tensor]:
    """Audio in; latents, tokens, audio out and a file, by name."""
    codec = build(CONFIG)
    wav = noise(1990, 7)[None, None]
    latents = codec.model.encode_latents(wav)
    tokens = codec.encode(wav, "1x17^6")
    data = codec.compress(0.2 * wav[0], "2x5^6", sample_rate_hz=22050)
    causal = build(CAUSAL).model
    return {
        "latents": latents,
        "tokens": tokens,
        "decoded": codec.decode(tokens, "1x17^6"),
        "file": torch.tensor(list(data), dtype=torch.uint8),
        "decompressed": codec.decompress(data),
        "causal_latents": causal.encode_latents(wav[..., :800]),
        "causal_decoded": causal.decode_latents(torch.tanh(latents[:, :20])),
    }


if __name__ == "__main__":
    save_file({name: value.detach().contiguous() for name, value in compute().items()}, PATH)
    print(f"{PATH}: {PATH.stat().st_size} bytes")
