"""What one can find out by playing with a bottleneck and a model: plain functions, each seen in a notebook.

Latents are (s, d) before tanh, tokens (s, k), as everywhere.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taae.config import BottleneckSpec
from taae.fsq import quantize, split_stages, tokenize
from taae.metrics import score


def level_row(spec_text: str, frame_rate_hz: float = 25.0) -> dict[str, Any]:
    """What a bottleneck costs: codes, bits with and without rounding up to whole bits (Eq. 5, 6), grid."""
    spec = BottleneckSpec.parse(spec_text)
    return {
        "bottleneck": str(spec),
        "codes_per_stage": spec.codebook_size,
        "grid_levels": spec.grid_levels,
        "bits_per_second": spec.bits_per_second(frame_rate_hz),
        "without_rounding": frame_rate_hz * spec.exact_bits_per_frame,
        "of_the_grid": frame_rate_hz * spec.dim * math.log2(spec.grid_levels),
        "redundancy": spec.exact_bits_per_frame / (spec.dim * math.log2(spec.grid_levels)) - 1,
    }


def lattice(levels: int) -> np.ndarray:
    """Positions of Eq. 1 with so many levels, in [-1, 1]."""
    values = torch.atanh(torch.linspace(-0.9999, 0.9999, 2000 * levels, dtype=torch.float64))
    return quantize(values[None, :, None], levels).unique().numpy()


def decomposition(value: float, spec_text: str) -> list[dict[str, Any]]:
    """How residual stages add up to one value in [-1, 1] (Eq. 3, 4): one row a stage.

    Raises:
        ValueError: If the value is outside [-1, 1].
    """
    if not -1 <= value <= 1:
        raise ValueError(f"value must be in [-1, 1], got {value}")
    spec = BottleneckSpec.parse(spec_text)
    digits = split_stages(torch.full((1, spec.dim), value, dtype=torch.float64), spec)[0, :, 0].tolist()
    total, rows = 0.0, []
    for stage, digit in enumerate(digits):
        step = 2 / ((spec.levels - 1) ** (stage + 1))
        part = (digit - (spec.levels - 1) // 2) * step if spec.num_stages > 1 else 2 * digit / (spec.levels - 1) - 1
        total += part
        rows.append({"stage": stage, "level": digit, "adds": part, "sum": total, "left": value - total})
    return rows


def sum_lattice(levels: int, num_stages: int) -> dict[str, Any]:
    """All sums of residual stages: how many are on the direct grid, beyond [-1, 1], and how often each is reached.

    Section 3.2.1: "rare combinations of tokens result in latents outside the bounds".
    """
    half = (levels - 1) // 2
    sums = Counter({0: 1})
    for stage in range(num_stages):
        step = (levels - 1) ** (num_stages - 1 - stage)
        grown: Counter[int] = Counter()
        for value, ways in sums.items():
            for digit in range(-half, half + 1):
                grown[value + digit * step] += ways
        sums = grown
    edge = ((levels - 1) ** num_stages) // 2
    inside = [value for value in sums if abs(value) <= edge]
    ways = sum(sums.values())
    return {
        "combinations": ways,
        "values": len(sums),
        "on_grid": len(inside),
        "share_outside": sum(count for value, count in sums.items() if abs(value) > edge) / ways,
    }


def clip_rate(latents: Tensor, spec_text: str) -> float:
    """Share of values whose residual stages, added up, leave [-1, 1] and have to be clipped; `latents` (s, d)."""
    spec = BottleneckSpec.parse(spec_text)
    half = (spec.levels - 1) // 2
    stages = split_stages(torch.tanh(latents.double()), spec) - half  # (s, k, d)
    steps = torch.tensor([(spec.levels - 1) ** (spec.num_stages - 1 - k) for k in range(spec.num_stages)])
    total = (stages * steps[:, None]).sum(dim=-2)
    return float((total.abs() > ((spec.levels - 1) ** spec.num_stages) // 2).double().mean())


def latents_of(codec: Any, wavs: Iterable[np.ndarray]) -> Tensor:
    """Latents (s, d) of wavs (n,) at the codec's rate, one after the other."""
    parts = []
    with torch.inference_mode():
        for wav in wavs:
            parts.append(
                codec.model.encode_latents(torch.from_numpy(wav).to(codec.device)[None, None])[0].float().cpu()
            )
    return torch.cat(parts)


def level_use(latents: Tensor, levels: int) -> np.ndarray:
    """Share of each level in each dimension, (d, levels), rows sum to 1."""
    grid = quantize(latents[None], levels)[0]
    places = ((grid + 1) * (levels - 1) / 2).round().long()
    return np.stack([np.bincount(column.numpy(), minlength=levels) / len(column) for column in places.T])


def code_counts(latents: Tensor, spec_text: str) -> np.ndarray:
    """How often the codes of the first stage occur, most frequent first; codes that never occur are left out."""
    tokens = tokenize(latents[None], BottleneckSpec.parse(spec_text))[0, :, 0].numpy()
    return np.sort(np.unique(tokens, return_counts=True)[1])[::-1]


def bigrams(tokens: np.ndarray, count: int = 10) -> list[dict[str, Any]]:
    """The most frequent pairs of neighbours in tokens (s,), and how much more often than by chance they come."""
    singles = Counter(tokens.tolist())
    pairs = Counter(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))
    total = len(tokens) - 1
    return [
        {
            "first": first,
            "second": second,
            "times": times,
            "lift": times * len(tokens) ** 2 / (total * singles[first] * singles[second]),
        }
        for (first, second), times in pairs.most_common(count)
    ]


def sound_of_code(codec: Any, token: int, spec_text: str, num_frames: int = 25) -> np.ndarray:
    """What the decoder makes of one code, repeated: (n,) at the codec's rate."""
    spec = BottleneckSpec.parse(spec_text)
    if not 0 <= token < spec.codebook_size:
        raise ValueError(f"a token of {spec} is 0 ... {spec.codebook_size - 1}, got {token}")
    middle = (spec.codebook_size - 1) // 2
    tokens = torch.full((1, num_frames, spec.num_stages), middle, dtype=torch.int64)
    tokens[..., 0] = token
    return codec.decode(tokens, spec)[0, 0].numpy()


def traverse(codec: Any, wav: np.ndarray, dim: int, values: Sequence[float]) -> list[np.ndarray]:
    """Decode `wav` (n,) with one dimension of its codes set to each value in [-1, 1], the others as they are.

    Raises:
        ValueError: If the model has no such dimension.
    """
    if not 0 <= dim < codec.config.latent_dim:
        raise ValueError(f"the model has the dimensions 0 ... {codec.config.latent_dim - 1}, got {dim}")
    bounded = torch.tanh(latents_of(codec, [wav]))[None]  # (1, s, d)
    sounds = []
    with torch.inference_mode():
        for value in values:
            codes = bounded.clone()
            codes[..., dim] = value
            sounds.append(codec.model.decode_latents(codes.to(codec.device))[0, 0, : len(wav)].float().cpu().numpy())
    return sounds


def level_effects(codec: Any, wav: np.ndarray, step: float = 0.25) -> list[dict[str, Any]]:
    """What one step in each dimension does to the sound: level and brightness, before against after."""
    bounded = torch.tanh(latents_of(codec, [wav]))[None]
    rows = []
    with torch.inference_mode():
        plain = codec.model.decode_latents(bounded.to(codec.device))[0, 0].float().cpu().numpy()
        for dim in range(bounded.shape[-1]):
            moved = bounded.clone()
            moved[..., dim] = (moved[..., dim] + step).clamp(-1, 1)
            sound = codec.model.decode_latents(moved.to(codec.device))[0, 0].float().cpu().numpy()
            change = 10 * math.log10(float(np.mean((sound - plain) ** 2) / np.mean(plain**2)) + 1e-12)
            level = 20 * math.log10(float(np.std(sound) / np.std(plain)) + 1e-12)
            rows.append(
                {"dimension": dim, "change_db": change, "level_db": level, "centroid_hz": _centroid(sound, codec)}
            )
    return rows


def rate_distortion(codec: Any, wavs: Sequence[np.ndarray], specs: Sequence[str]) -> list[dict[str, Any]]:
    """Quality of each bottleneck on wavs (n,) at the codec's rate; "continuous" is the limit without quantisation."""
    rows = []
    for text in specs:
        spec = BottleneckSpec.parse(text)
        scores = []
        for wav in wavs:
            decoded, _ = codec.reconstruct(wav, spec, sample_rate_hz=codec.sample_rate_hz)
            scores.append(score(wav, decoded, codec.sample_rate_hz, ["stoi", "mel_distance"]))
        rate = math.inf if spec.is_continuous else spec.bits_per_second(codec.frame_rate_hz)
        is_trained = not spec.is_continuous and spec.grid_levels in codec.config.fsq.train_levels
        means = {name: float(np.mean([s[name] for s in scores])) for name in scores[0]}
        rows.append({"bottleneck": text, "bits_per_second": rate, "trained": "yes" if is_trained else "no"} | means)
    return rows


def three_fsqs(latents: Tensor, levels: int) -> list[dict[str, Any]]:
    """Four quantisers on the same latents (s, d).

    The paper's (Eq. 1, ties go up); that of the published code, the same but for ties, which go to even; that of
    vector-quantize-pytorch, which widens tanh a little and for even L is not symmetric; and its `preserve_symmetry`.

    Raises:
        ImportError: If vector-quantize-pytorch is missing.
    """
    bounded, quantisers = torch.tanh(latents.double()), _four_quantisers(latents, levels)
    ours = quantisers["Eq. 1"]
    rows = []
    for name, codes in quantisers.items():
        positions = (codes * 1e6).round().unique() / 1e6  # float32 rounding makes no new position
        rows.append(
            {
                "quantiser": name,
                "positions": len(positions),
                "lowest": float(positions.min()),
                "highest": float(positions.max()),
                "same_as_Eq_1": float((codes - ours).abs().lt(1e-6).double().mean()),
                "rms_error": float((codes - bounded).pow(2).mean().sqrt()),
            }
        )
    return rows


def staircases(levels: int, num_points: int = 801) -> dict[str, tuple[list[float], list[float]]]:
    """What each quantiser of `three_fsqs` makes of every value: name -> (tanh of the latent, position).

    Raises:
        ImportError: If vector-quantize-pytorch is missing.
    """
    bounded = torch.linspace(-0.999, 0.999, num_points, dtype=torch.float64)
    found = _four_quantisers(torch.atanh(bounded)[:, None], levels)
    return {name: (bounded.tolist(), codes[:, 0].tolist()) for name, codes in found.items()}


def _four_quantisers(latents: Tensor, levels: int) -> dict[str, Tensor]:
    try:
        from vector_quantize_pytorch import FSQ
    except ImportError:
        raise ImportError("comparing needs vector-quantize-pytorch: pip install vector-quantize-pytorch") from None
    bounded = torch.tanh(latents.double())
    half = (levels - 1) / 2
    ours = quantize(latents[None], levels)[0].double()
    published = torch.round((bounded + 1) * half) / half - 1
    quantisers = {"Eq. 1": ours, "published code": published}
    for name, preserves in (("vector-quantize-pytorch", False), ("the same, preserve_symmetry", True)):
        peer = FSQ([levels] * latents.shape[-1], preserve_symmetry=preserves).eval()
        with torch.inference_mode():
            quantisers[name] = peer.quantize(latents[None].float())[0].double()
    return quantisers


def _centroid(sound: np.ndarray, codec: Any) -> float:
    power = np.abs(np.fft.rfft(sound)) ** 2
    return float((np.fft.rfftfreq(len(sound), 1 / codec.sample_rate_hz) * power).sum() / power.sum())
