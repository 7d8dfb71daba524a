"""What the epsilon of layer norm does to silence (appendix B.1): gains, levels inside the encoder, gradients."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taae.config import load_preset
from taae.fsq import quantize_hybrid
from taae.model import TAAE, LayerNorm
from workbench.bias import SAMPLE_RATE_HZ

ROUNDING_STEP = 2.0**-15  # of 16-bit audio


def layer_norm_gain_db(eps: float, input_rms: np.ndarray) -> np.ndarray:
    """Level of a layer norm's output over that of its input, measured on random vectors of `input_rms`, in dB.

    Its limit for silence is 1 / sqrt(eps): the epsilon is added to the variance, under the root.
    """
    norm = LayerNorm(256, eps)
    vectors = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    vectors = vectors - vectors.mean(dim=1, keepdim=True)
    vectors = vectors / vectors.square().mean(dim=1, keepdim=True).sqrt()
    with torch.no_grad():
        gains = [float(norm(rms * vectors).square().mean().sqrt() / rms) for rms in input_rms.tolist()]
    return 20 * np.log10(gains)


def batches(speech: np.ndarray, *, seconds: float = 2.56, batch_size: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """From speech to nothing, (b, 1, n) each: as it comes, 60 dB below that, 16-bit rounding noise, and zeros.

    Raises:
        ValueError: If `speech` is too short.
    """
    n = round(seconds * SAMPLE_RATE_HZ)
    if len(speech) < batch_size * n:
        raise ValueError(f"speech must last {batch_size * seconds:g} s, got {len(speech) / SAMPLE_RATE_HZ:.3g} s")
    wav = torch.from_numpy(speech[: batch_size * n].copy()).reshape(batch_size, 1, n).float()
    generator = torch.Generator().manual_seed(seed)
    rounding = torch.randint(-1, 2, wav.shape, generator=generator) * ROUNDING_STEP
    return {"speech": wav, "speech - 60 dB": wav / 1000, "rounding noise": rounding, "zeros": torch.zeros_like(wav)}


def toy_model(
    eps: float, *, width: int = 64, depths: tuple[int, int] = (2, 4), has_bias: bool = True, seed: int = 0
) -> TAAE:
    """The paper's architecture in small with random weights; LayerScale starts at 1, so that every branch is heard.

    Without `has_bias` the first convolution adds nothing, so that silence is still silent when it meets a layer norm.
    """
    config = dataclasses.replace(
        load_preset("paper-240m"),
        name=f"toy, epsilon {eps:g}",
        width=width,
        head_dim=32,
        rope_dims=16,
        depths=depths,
        norm_eps=eps,
        layer_scale_init=1.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TAAE(config)
    if not has_bias and model.encoder.conv_in.conv.bias is not None:
        nn.init.zeros_(model.encoder.conv_in.conv.bias)
    return model


def measure(eps: float, inputs: dict[str, Tensor], *, has_bias: bool, seed: int = 0) -> list[dict[str, Any]]:
    """What each batch does to a fresh model: how loud silence gets inside, and how large its gradients are.

    Args:
        eps: Of every layer norm of the residual stream.
        inputs: From `batches`; "zeros" is what the others are compared with.
        has_bias: As in `toy_model`.
        seed: Of the weights and of quantisation noise.

    Returns:
        One row a batch: eps, batch, input_db (RMS), norm_gain_db (largest of any frame in the encoder's first layer
        norm), latents_db (RMS of the difference from those of zeros, before tanh: what the signal can still say),
        gradient_norm (of the encoder, for L1 over the mean magnitude of speech, so that rows compare).
    """
    model = toy_model(eps, has_bias=has_bias, seed=seed)
    scale = inputs["speech"].abs().mean()
    with torch.no_grad():
        rest = model.encode_latents(inputs["zeros"])
    streams: list[tuple[Tensor, Tensor]] = []
    first_norm = next(module for module in model.encoder.modules() if isinstance(module, LayerNorm))
    first_norm.register_forward_hook(lambda _, args, out: streams.append((args[0].detach(), out.detach())))
    rows = []
    for name, wav in inputs.items():
        streams.clear()
        latents = model.encode_latents(wav)
        codes = quantize_hybrid(latents, 17, generator=torch.Generator().manual_seed(seed))
        loss = (model.decode_latents(codes) - wav).abs().mean() / scale
        model.zero_grad()
        loss.backward()
        gradients = [p.grad.square().sum() for p in model.encoder.parameters() if p.grad is not None]
        (stream, normed), deviation = streams[0], (latents.detach() - rest)
        rows.append(
            {
                "eps": eps,
                "batch": name,
                "input_db": _db(wav),
                "norm_gain_db": 20 * float((normed.std(dim=-1) / stream.std(dim=-1).clamp(min=1e-20)).max().log10()),
                "latents_db": _db(deviation),
                "gradient_norm": float(torch.stack(gradients).sum().sqrt()),
            }
        )
    return rows


def train(
    eps: float, speech: np.ndarray, *, num_steps: int, silent_share: float, batch_size: int = 4, seed: int = 0
) -> list[dict[str, float]]:
    """Train the toy on crops of which a share is rounding noise: loss on the speech among them, and gradient norms.

    AdamW at 8e-4 (section 4.2), L1 of samples and of STFT magnitudes; the draws are the same for every epsilon.

    Returns:
        One row a step: step, loss, gradient_norm.

    Raises:
        ValueError: If `silent_share` leaves no speech.
    """
    if not 0 <= silent_share < 1:
        raise ValueError(f"silent_share must be in [0, 1), got {silent_share}")
    model = toy_model(eps, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-4, weight_decay=0.01)
    window = torch.hann_window(512)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    n = round(1.28 * SAMPLE_RATE_HZ)
    num_silent = round(silent_share * batch_size)
    rows = []
    for step in range(num_steps):
        starts = rng.integers(0, len(speech) - n, batch_size)
        wav = torch.from_numpy(np.stack([speech[start : start + n] for start in starts]))[:, None].float()
        wav[:num_silent] = torch.randint(-1, 2, wav[:num_silent].shape, generator=generator) * ROUNDING_STEP
        codes = quantize_hybrid(model.encode_latents(wav), 17, generator=generator)
        decoded = model.decode_latents(codes)
        loss = (decoded - wav).abs().mean()
        spectra = [torch.stft(part[:, 0], 512, 128, window=window, return_complex=True) for part in (decoded, wav)]
        loss = loss + (_magnitude(spectra[0]) - _magnitude(spectra[1])).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rows.append({"step": step, "loss": float(loss.detach()), "gradient_norm": float(norm)})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows of `measure` as text for people."""
    return [
        {
            "epsilon": f"{row['eps']:g}",
            "batch": row["batch"],
            "input, dB": _text(row["input_db"]),
            "gain of the first layer norm, dB": _text(row["norm_gain_db"]),
            "what it moves the latents by, dB": _text(row["latents_db"]),
            "gradient norm of the encoder": f"{row['gradient_norm']:.3g}",
        }
        for row in rows
    ]


def _text(level_db: float) -> str:
    return f"{level_db:.1f}" if np.isfinite(level_db) else "nothing"


def _magnitude(bins: Tensor) -> Tensor:
    return (torch.view_as_real(bins).square().sum(dim=-1) + 1e-10).sqrt()


def _db(values: Tensor) -> float:
    rms = float(values.square().mean().sqrt())
    return 20 * float(np.log10(rms)) if rms else -np.inf
