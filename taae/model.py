"""The Transformer Audio AutoEncoder: section 3.1, figure 1, appendices A.3, A.4, B.1, B.4.

Sizes and windows come from `ModelConfig`. Everything inside is (b, t, width); only convolutions see (b, width, t).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from taae.attention import Backend, rotary_angles, rotate, window_attention
from taae.config import ModelConfig
from taae.patching import patchify, unpatchify


class LayerNorm(nn.Module):
    """Layer norm of the residual stream with a gain only and a large epsilon.

    eps 1e-2 on the variance caps the gain at 1 / sqrt(eps) = 10; at 1e-5 silence is amplified to full scale (B.1).
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, stream: Tensor) -> Tensor:
        return F.layer_norm(stream, self.gain.shape, self.gain.to(stream.dtype), None, self.eps)


class LayerScale(nn.Module):
    """One learned factor per channel of a residual branch (Touvron et al. 2021)."""

    def __init__(self, width: int, init: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), init))

    def forward(self, branch: Tensor) -> Tensor:
        return self.scale * branch


class Attention(nn.Module):
    """Sliding-window self-attention with QK-norm and rotary positions on part of each head (section 3.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim, self.num_heads = config.head_dim, config.num_heads
        self.to_qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.q_norm = nn.LayerNorm(config.head_dim, eps=1e-6)
        self.k_norm = nn.LayerNorm(config.head_dim, eps=1e-6)
        self.to_out = nn.Linear(config.width, config.width, bias=False)

    def project(self, stream: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (b, h, n, e), the first two normalised and rotated."""
        b, n, _ = stream.shape
        q, k, v = self.to_qkv(stream).view(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = rotate(self.q_norm(q), angles), rotate(self.k_norm(k), angles)
        return q.to(v.dtype), k.to(v.dtype), v  # autocast keeps layer norms in float32

    def merge(self, heads: Tensor) -> Tensor:
        """Results of the heads (b, h, n, e) to the stream's channels (b, n, width)."""
        b, _, n, _ = heads.shape
        return self.to_out(heads.transpose(1, 2).reshape(b, n, -1))


class GatedMLP(nn.Module):
    """Reverse bottleneck: value * SiLU(gate), `ff_mult` times wider inside (section 3.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.to_value_and_gate = nn.Linear(config.width, 2 * config.ff_mult * config.width)
        self.to_out = nn.Linear(config.ff_mult * config.width, config.width)

    def forward(self, stream: Tensor) -> Tensor:
        value, gate = self.to_value_and_gate(stream).chunk(2, dim=-1)
        return self.to_out(value * F.silu(gate))


class TransformerLayer(nn.Module):
    """x + s1 * Attention(LN(x)), then x + s2 * MLP(LN(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.window = config.window
        self.attention_norm = LayerNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.attention_scale = LayerScale(config.width, config.layer_scale_init)
        self.mlp_norm = LayerNorm(config.width, config.norm_eps)
        self.mlp = GatedMLP(config)
        self.mlp_scale = LayerScale(config.width, config.layer_scale_init)

    def project(self, stream: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Everything before attention: queries, keys and values (b, h, n, e), rotated."""
        return self.attention.project(self.attention_norm(stream), angles)

    def finish(self, stream: Tensor, heads: Tensor) -> Tensor:
        """Everything after attention, whose results are `heads` (b, h, n, e)."""
        stream = stream + self.attention_scale(self.attention.merge(heads))
        return stream + self.mlp_scale(self.mlp(self.mlp_norm(stream)))

    def forward(self, stream: Tensor, angles: Tensor, backend: Backend) -> Tensor:
        q, k, v = self.project(stream, angles)
        heads = window_attention(q, k, v, left=self.window[0], right=self.window[1], backend=backend)
        return self.finish(stream, heads)


class Layers(nn.ModuleList):
    """The transformer layers of one block; positions count the block's own frames."""

    def __init__(self, config: ModelConfig, depth: int) -> None:
        super().__init__(TransformerLayer(config) for _ in range(depth))
        self.rope_dims = config.rope_dims

    def forward(self, stream: Tensor, backend: Backend) -> Tensor:
        angles = rotary_angles(stream.shape[1], self.rope_dims, stream.device)
        for layer in self:
            stream = layer(stream, angles, backend)
        return stream


class Conv(nn.Module):
    """Convolution over time on (b, t, channels): stride 1, or 2x and more downsampling.

    Centred padding as published; all of it before the signal when causal (A.4).
    """

    def __init__(self, dim_in: int, dim_out: int, kernel: int, *, stride: int, is_causal: bool, bias: bool = True):
        super().__init__()
        total = kernel - stride
        self.padding = (total, 0) if is_causal else ((total + 1) // 2, total // 2 if stride == 1 else (total + 1) // 2)
        self.conv = nn.Conv1d(dim_in, dim_out, kernel, stride=stride, bias=bias)

    def forward(self, stream: Tensor) -> Tensor:
        return self.conv(F.pad(stream.transpose(1, 2), self.padding)).transpose(1, 2)


class ConvTransposed(nn.Module):
    """Transposed convolution: exactly `stride` frames out for each frame in."""

    def __init__(self, width: int, *, stride: int, is_causal: bool) -> None:
        super().__init__()
        self.stride = stride
        self.skip = 0 if is_causal else (stride + 1) // 2
        self.conv = nn.ConvTranspose1d(width, width, 2 * stride, stride=stride)

    def forward(self, stream: Tensor) -> Tensor:
        full = self.conv(stream.transpose(1, 2))
        return full[..., self.skip : self.skip + self.stride * stream.shape[1]].transpose(1, 2)


class Encoder(nn.Module):
    """Patches to latents: convolution in, blocks of [downsampling, layers], convolution to the latents."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        causal = config.is_causal
        self.conv_in = Conv(config.patch_samples, config.width, 7, stride=1, is_causal=causal)
        self.downsample = nn.ModuleList(
            Conv(config.width, config.width, 2 * stride, stride=stride, is_causal=causal)
            if stride > 1
            else nn.Identity()
            for stride in config.strides
        )
        self.blocks = nn.ModuleList(Layers(config, depth) for depth in config.depths)
        self.conv_out = Conv(config.width, config.latent_dim, 3, stride=1, is_causal=causal)

    def forward(self, patches: Tensor, backend: Backend) -> Tensor:
        stream = self.conv_in(patches)
        for downsample, layers in zip(self.downsample, self.blocks, strict=True):
            stream = layers(downsample(stream), backend)
        return self.conv_out(stream)


class Decoder(nn.Module):
    """Codes to patches: the encoder mirrored, with the upsampling at the end of each block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        causal = config.is_causal
        self.conv_in = Conv(config.latent_dim, config.width, 3, stride=1, is_causal=causal)
        self.blocks = nn.ModuleList(Layers(config, depth) for depth in reversed(config.depths))
        self.upsample = nn.ModuleList(
            ConvTransposed(config.width, stride=stride, is_causal=causal) if stride > 1 else nn.Identity()
            for stride in reversed(config.strides)
        )
        self.conv_out = Conv(config.width, config.patch_samples, 7, stride=1, is_causal=causal, bias=False)

    def forward(self, codes: Tensor, backend: Backend) -> Tensor:
        stream = self.conv_in(codes)
        for layers, upsample in zip(self.blocks, self.upsample, strict=True):
            stream = upsample(layers(stream, backend))
        return self.conv_out(stream)


class TAAE(nn.Module):
    """Encoder and decoder of a `ModelConfig`; the bottleneck between them is in `taae.fsq`.

    Every convolution is weight-normed for training, over dimension 0 as published; of the transposed ones that is the
    *input* channel.

    Args:
        config: Sizes, window and the rest.
        is_fused: Build plain convolutions, for inference on the weights that `fuse_weight_norm` leaves.

    Attributes:
        backend: Attention backend of every layer; "auto" decides by device and logs it once.
    """

    def __init__(self, config: ModelConfig, *, is_fused: bool = False) -> None:
        super().__init__()
        self.config = config
        self.backend: Backend = "auto"
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if not is_fused:
            # Imported here because it brings in torch's compiler, 1.5 s of processor time that inference can save.
            from torch.nn.utils.parametrizations import weight_norm

            for module in self.modules():
                if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                    weight_norm(module)

    def encode_latents(self, wav: Float[Tensor, "b 1 n"]) -> Float[Tensor, "b s d"]:
        """Audio at the model's rate to latents before tanh, s = ceil(n / hop_samples); the end is zero-padded."""
        wav = F.pad(wav, (0, -wav.shape[-1] % self.config.hop_samples))
        return self.encoder(patchify(wav, self.config.patch_samples), self.backend)

    def decode_latents(self, codes: Float[Tensor, "b s d"]) -> Float[Tensor, "b 1 n"]:
        """Codes in [-1, 1] to audio, n = s * hop_samples. The output is not limited to [-1, 1]."""
        return unpatchify(self.decoder(codes, self.backend))

    def fuse_weight_norm(self) -> "TAAE":
        """Replace every weight-normed weight by its value, for inference. Returns itself."""
        for module in self.modules():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
        return self


def num_parameters(model: nn.Module) -> int:
    """Trainable values, as the paper counts them: 953,319,756 for `paper-950m`."""
    return sum(parameter.numel() for parameter in model.parameters())
