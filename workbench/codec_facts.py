"""Facts about codecs that need no weights: sizes, receptive fields, latency (Tables 4, 10, 11 and 12).

Those of TAAE come from the presets, those of Encodec, DAC and Mimi from their classes in `transformers`.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from taae.config import ModelConfig, load_preset

# Column of Table 11 -> value and where it is from; None where the reason says why there is none.
Fields = dict[str, tuple[float | str | None, str]]


@cache
def parameters(size: str) -> float:
    """Millions of parameters of a preset of Table 4, "240M" and such, built without memory."""
    import torch

    from taae.model import TAAE, num_parameters

    with torch.device("meta"):
        return num_parameters(TAAE(load_preset(f"paper-{size.lower()}"))) / 1e6


@cache
def peer_parameters(name: str) -> float | None:
    """Millions of parameters of a codec's class, built without memory; None without transformers or such a class."""
    try:
        import transformers
    except ImportError:
        return None
    import torch

    classes: dict[str, Callable[[Any], Any]] = {
        "Encodec": lambda t: t.EncodecModel(t.EncodecConfig()),
        "Mimi": lambda t: t.MimiModel(t.MimiConfig()),
        "DAC": lambda t: t.DacModel(_dac_config(t)),
    }
    if name not in classes:
        return None
    with torch.device("meta"):
        model = classes[name](transformers)
    return sum(p.numel() for p in model.parameters()) / 1e6


def total_receptive_field_s(config: ModelConfig, *, at_latent_rate_only: bool = False) -> float:
    """Sum over all attention layers of encoder and decoder of what each can see (B.2.1), in seconds."""
    keys = sum(config.window) + 1
    total = 0.0
    for block, depth in enumerate(config.depths):
        rate_hz = config.sample_rate_hz / config.patch_samples / math.prod(config.strides[: block + 1])
        if not at_latent_rate_only or rate_hz == config.frame_rate_hz:
            total += 2 * depth * keys / rate_hz
    return total


def dac_receptive_fields_s(ratios: tuple[int, ...] = (2, 4, 5, 8), sample_rate_hz: int = 16_000) -> tuple[float, float]:
    """Largest of a layer, and total, of a DAC with these strides: kernels 7, dilations 1, 3, 9, strided kernels 2s."""
    largest, total, jump = 0, 1, 1

    def add(kernel: int, dilation: int = 1) -> None:
        nonlocal largest, total
        largest = max(largest, ((kernel - 1) * dilation + 1) * jump)
        total += (kernel - 1) * dilation * jump

    add(7)
    for stride in ratios:
        for dilation in (1, 3, 9):
            add(7, dilation)
        add(2 * stride)
        jump *= stride
    add(3)
    add(7)
    for stride in reversed(ratios):
        add(2)  # a transposed kernel of 2s reaches two frames of its input
        jump //= stride
        for dilation in (1, 3, 9):
            add(7, dilation)
    add(7)
    return largest / sample_rate_hz, total / sample_rate_hz


def taae_fields(preset: str) -> Fields:
    """Columns of Table 11 for a preset."""
    config = load_preset(preset)
    per_layer = (sum(config.window) + 1) / config.frame_rate_hz
    reason = f"preset {preset}"
    return {
        "Max Per-Layer RF": (per_layer, f"{reason}: {sum(config.window) + 1} keys at {config.frame_rate_hz:g} Hz"),
        "Total RF": (total_receptive_field_s(config), f"{reason}: all layers; see the note"),
        "Causal": ("Yes" if config.is_causal else "No", reason),
        "Latency": ("N/A" if config.latency_ms is None else config.latency_ms, f"{reason}: one latent frame"),
        "Chunked Inference": ("No", "pieces overlap by the receptive field and give what one pass gives"),
    }


def _mimi_fields() -> Fields:
    config = _config("MimiConfig")
    if config is None:
        return {}
    per_layer = config.sliding_window / config.frame_rate
    reason = "MimiConfig of transformers"
    return {
        "Max Per-Layer RF": (per_layer, f"{reason}: {config.sliding_window} keys at {config.frame_rate:g} Hz"),
        "Total RF": (2 * config.num_hidden_layers * per_layer, f"{reason}: encoder and decoder transformer"),
        "Causal": ("Yes" if config.use_causal_conv else "No", reason),
        "Latency": (1000 / config.frame_rate, f"{reason}: one frame"),
    }


def _encodec_fields() -> Fields:
    config = _config("EncodecConfig")
    if config is None:
        return {}
    reason = f"EncodecConfig of transformers: {config.num_lstm_layers} LSTM layers"
    unlimited = ("Unlimited", reason) if config.num_lstm_layers else (None, "")
    frame_ms = 1000 * math.prod(config.upsampling_ratios) / config.sampling_rate
    return {
        "Max Per-Layer RF": unlimited,
        "Total RF": unlimited,
        "Causal": ("Yes" if config.use_causal_conv else "No", "EncodecConfig of transformers"),
        "Latency": (frame_ms, "EncodecConfig of transformers: one frame"),
    }


def _dac_fields() -> Fields:
    largest, total = dac_receptive_fields_s()
    reason = "kernels and dilations of DAC at strides 2, 4, 5, 8"
    return {
        "Max Per-Layer RF": (largest, reason),
        "Total RF": (total, reason),
        "Causal": ("No", "its convolutions are centred"),
        "Latency": (total / 2, f"half of the total: {reason}"),
    }


# Columns of Table 11 for other codecs; empty without transformers.
PEER_FIELDS: dict[str, Callable[[], Fields]] = {
    "Encodec": _encodec_fields,
    "DAC": _dac_fields,
    "Mimi": _mimi_fields,
}


def _config(name: str) -> Any:
    try:
        import transformers
    except ImportError:
        return None
    return getattr(transformers, name)()


def _dac_config(transformers: Any) -> Any:
    """Of the published 16 kHz model."""
    return transformers.DacConfig(downsampling_ratios=[2, 4, 5, 8], n_codebooks=12, sampling_rate=16_000)
