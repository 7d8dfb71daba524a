"""A model as ONNX: `encoder.onnx` (wav to latents) and `decoder.onnx` (codes to wav), any batch and length, float32.

The graphs hold the same layers. Only attention is written anew, as blocks of queries beside blocks of keys, which is
exact, of linear cost, and free of the loop over Python integers that a graph cannot hold. Quantising is not in the
graphs: `taae.fsq` does it, or Eq. 1 in any language.
"""

import tempfile
import warnings
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from taae.codec import Codec
from taae.config import ModelConfig
from taae.files import write_atomic
from taae.model import Decoder, Encoder, Layers, TransformerLayer

OPSET = 18
# Angles are the sum of a coarse and a fine one, both from float64: runtimes compute in float32, where a position times
# a frequency is off by 0.01 rad after an hour.
_FINE = _COARSE = 1024  # together 2^20 positions, 5.8 hours at 50 Hz; a longer recording is an error of the runtime


def export_onnx(codec: Codec, folder: str | Path, *, force: bool = False) -> dict[str, Path]:
    """Write both halves of a model.

    Inputs and outputs: `wav` (b, 1, n) to `latents` (b, ceil(n / hop_samples), d), before tanh; `codes` (b, s, d) in
    [-1, 1] to `wav` (b, 1, s * hop_samples). Name, rates and identity of the model are in the metadata.

    Returns:
        "encoder" and "decoder" with their files.

    Raises:
        ValueError: If the codec is not in float32 on a CPU.
        RuntimeError: If the package onnx is missing.
        FileExistsError: If a file exists and `force` is false.
    """
    try:
        import onnx
    except ImportError:
        raise RuntimeError("exporting needs the package onnx: pip install onnx") from None
    if codec.dtype != torch.float32 or codec.device.type != "cpu":
        raise ValueError(f"only float32 on a CPU is exported, got {codec.dtype} on {codec.device}; load the model so")
    if codec.is_fast:
        raise ValueError("packed layers cannot be exported; load the model with kernels='auto' or 'plain'")
    paths = {name: Path(folder) / f"{name}.onnx" for name in ("encoder", "decoder")}
    for path in paths.values():
        if path.exists() and not force:
            raise FileExistsError(f"{path} exists; choose another folder, or use force (--force) to overwrite it")
    config, model = codec.config, codec.model
    halves = {
        "encoder": (_EncoderGraph(model.encoder, config), torch.zeros(1, 1, 2 * config.hop_samples), "wav", "latents"),
        "decoder": (_DecoderGraph(model.decoder, config), torch.zeros(1, 2, config.latent_dim), "codes", "wav"),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name, (graph, example, source, target) in halves.items():
            file = str(Path(temporary) / f"{name}.onnx")
            _trace(graph, example, file, source, target)
            proto = onnx.load(file)
            metadata = {
                "model": codec.name,
                "model_id": codec.model_id.hex(),
                "sample_rate_hz": str(config.sample_rate_hz),
                "hop_samples": str(config.hop_samples),
                "is_causal": str(config.is_causal).lower(),
            }
            onnx.helper.set_model_props(proto, metadata)
            onnx.checker.check_model(proto)
            write_atomic(paths[name], proto.SerializeToString(), force=force)
    return paths


def _trace(graph: nn.Module, example: Tensor, file: str, source: str, target: str) -> None:
    with warnings.catch_warnings(), torch.inference_mode():
        # Deprecated, but in every torch that we allow. The newer exporter (dynamo=True) gives the same results, but
        # takes 20 times as long (20 s of processor time for a half of mini) and two packages more, and onnxruntime runs
        # what it writes 10 % slower (torch 2.13, onnxscript 0.7.2). For when a torch that we allow drops this one.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of assertions in torch and of jaxtyping
        warnings.filterwarnings("ignore", "Constant folding")
        torch.onnx.export(
            graph.eval(),
            (example,),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=[source],
            output_names=[target],
            dynamic_axes={name: {0: "b", 2 if name == "wav" else 1: f"{name}_length"} for name in (source, target)},
        )


def _blocks(half: Encoder | Decoder, config: ModelConfig) -> nn.ModuleList:
    return nn.ModuleList(_LayersGraph(block, config) for block in half.blocks if isinstance(block, Layers))


class _EncoderGraph(nn.Module):
    def __init__(self, encoder: Encoder, config: ModelConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self.blocks = _blocks(encoder, config)

    def forward(self, wav: Float[Tensor, "b 1 n"]) -> Tensor:
        wav = F.pad(wav, (0, -wav.shape[-1] % self.config.hop_samples))
        stream = self.encoder.conv_in(wav.reshape(wav.shape[0], -1, self.config.patch_samples))
        for downsample, layers in zip(self.encoder.downsample, self.blocks, strict=True):
            stream = layers(downsample(stream))
        return self.encoder.conv_out(stream)


class _DecoderGraph(nn.Module):
    def __init__(self, decoder: Decoder, config: ModelConfig) -> None:
        super().__init__()
        self.decoder = decoder
        self.blocks = _blocks(decoder, config)

    def forward(self, codes: Float[Tensor, "b s d"]) -> Tensor:
        stream = self.decoder.conv_in(codes)
        for layers, upsample in zip(self.blocks, self.decoder.upsample, strict=True):
            stream = upsample(layers(stream))
        patches = self.decoder.conv_out(stream)
        return patches.reshape(patches.shape[0], 1, -1)


class _LayersGraph(nn.Module):
    """`Layers` with angles from two tables, and attention in blocks."""

    fine: Tensor
    coarse: Tensor
    is_seen: Tensor

    def __init__(self, layers: Layers, config: ModelConfig) -> None:
        super().__init__()
        self.layers, self.left, self.right = layers, *config.window
        half = config.rope_dims // 2
        inverse = 10000.0 ** (-2 * torch.arange(half, dtype=torch.float64) / max(1, config.rope_dims))
        for name, positions in (("fine", torch.arange(_FINE)), ("coarse", _FINE * torch.arange(_COARSE))):
            angles = positions[:, None].double() * inverse
            self.register_buffer(name, torch.stack((angles.cos(), angles.sin())).float(), persistent=False)
        # Blocks of queries see the block of keys before them, their own and, unless causal, the one after.
        self.block = max(self.left, self.right, 1)
        self.num_parts = 3 if self.right else 2
        offset = torch.arange(self.num_parts * self.block) - self.block - torch.arange(self.block)[:, None]
        self.register_buffer("is_seen", (offset >= -self.left) & (offset <= self.right), persistent=False)

    def forward(self, stream: Tensor) -> Tensor:
        n = stream.shape[1]
        positions = torch.arange(n)
        fine_cos, fine_sin = self.fine[:, positions % _FINE]
        coarse_cos, coarse_sin = self.coarse[:, torch.div(positions, _FINE, rounding_mode="floor")]
        cos, sin = coarse_cos * fine_cos - coarse_sin * fine_sin, coarse_sin * fine_cos + coarse_cos * fine_sin
        angles = torch.stack((cos, sin))
        for layer in self.layers:
            assert isinstance(layer, TransformerLayer)
            stream = layer.finish(stream, self._attend(*layer.project(stream, angles)))
        return stream

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, h, n, e = q.shape
        block, parts = self.block, self.num_parts
        filled = -n % block
        queries = F.pad(q, (0, 0, 0, filled)).reshape(b, h, -1, block, e)  # (b, h, m, block, e)
        m = queries.shape[2]

        def neighbours(heads: Tensor) -> Tensor:
            padded = F.pad(heads, (0, 0, block, filled + (parts - 2) * block)).reshape(b, h, -1, block, e)
            return torch.cat([padded[:, :, part : part + m] for part in range(parts)], dim=3)

        scores = queries @ neighbours(k).transpose(-1, -2) * e**-0.5  # (b, h, m, block, parts * block)
        key = torch.arange(m)[:, None] * block + torch.arange(parts * block) - block
        is_there = ((key >= 0) & (key < n))[:, None]
        # A number and no infinity: queries that only fill up the last block may see no key at all.
        scores = scores.masked_fill(~(self.is_seen & is_there), -1e30)
        return (scores.softmax(dim=-1) @ neighbours(v)).reshape(b, h, -1, e)[:, :, :n]
