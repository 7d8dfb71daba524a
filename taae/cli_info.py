"""What `taae info` and `--json` say about a file or a model: plain values for JSON, measured and not assumed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from taae import bitstream
from taae.bitstream import HEADER_BYTES, MAGIC, BitstreamError, Header
from taae.config import BottleneckSpec, ModelConfig, load_preset, preset_names
from taae.token_file import parse_tokens

Record = dict[str, Any]

_OFFERED = ((1, 6), (1, 17), (2, 5), (4, 3))  # stages and levels: 400, 625, 700 and 1000 bit/s at 25 Hz and d = 6


def describe_bytes(data: bytes) -> Record:
    """What a `.taae` file or a token file holds; every token is read, so a damaged file does not pass.

    Raises:
        ValueError: If it is neither, or damaged.
    """
    if data[: len(MAGIC)] == MAGIC:
        bitstream.unpack(data)
        return describe_taae(data)
    if data[:2] == b"PK":
        return describe_tokens(data)
    raise BitstreamError(f"neither a .taae file nor a token file: it starts with {data[:4]!r}")


def describe_taae(data: bytes) -> Record:
    """Sizes and rates of a `.taae` file.

    `payload_bits` are k * ceil(log2 L^d) a frame, or the whole bytes of the entropy coder; `bits_per_second` is theirs
    over the exact duration, `file_bits_per_second` that of the whole file; `compression_ratio` compares the file with
    16-bit mono PCM at the recording's rate.

    Raises:
        BitstreamError: If it is damaged.
    """
    header = bitstream.read_header(data)
    payload_bits = 8 * (len(data) - HEADER_BYTES) if header.is_entropy_coded else header.packed_payload_bits
    seconds = header.num_samples / header.sample_rate_hz
    record = {"kind": "taae", "bytes": len(data)} | _describe_header(header, payload_bits)
    return record | {
        "is_entropy_coded": header.is_entropy_coded,
        "file_bits_per_second": 8 * len(data) / seconds if seconds else None,
        "compression_ratio": 2 * header.num_samples / len(data),
    }


def describe_tokens(data: bytes) -> Record:
    """Shape and rates of a token file; `payload_bits` is what its tokens take when packed.

    Raises:
        ValueError: If it is damaged, or tokens are outside their codebook.
    """
    header, tokens = parse_tokens(data)
    bitstream.pack(header, tokens)  # checks every token
    return {"kind": "tokens", "bytes": len(data)} | _describe_header(header, header.packed_payload_bits)


def _describe_header(header: Header, payload_bits: int) -> Record:
    spec = header.bottleneck
    seconds = header.num_samples / header.sample_rate_hz
    return {
        "model_id": header.model_id.hex(),
        "encoder_dtype": header.encoder_dtype,
        "bottleneck": str(spec),
        "tokens_shape": [header.num_frames, spec.num_stages],
        "codebook_size": spec.codebook_size,
        "bits_per_frame": spec.bits_per_frame,
        "payload_bits": payload_bits,
        "bits_per_second": payload_bits / seconds if seconds else None,
        "seconds": seconds,
        "num_samples": header.num_samples,
        "sample_rate_hz": header.sample_rate_hz,
        "gain_db": header.gain_db,
    }


def describe_model(source: str) -> Record:
    """Size, rates and reach of a model: a folder, an embedded model, or a preset, whose weights are not built.

    Raises:
        ValueError: If there is no such model, or its files are damaged.
    """
    import torch

    from taae.checkpoint import PRETRAINED, WEIGHTS, load_model
    from taae.model import TAAE, num_parameters

    has_weights = Path(source).is_dir() or (PRETRAINED / source / WEIGHTS).is_file()
    model_id = None
    if not has_weights and source in preset_names():
        config = load_preset(source)
    else:
        model, identity = load_model(source)
        config, model_id = model.config, identity.hex()
    with torch.device("meta"):
        parameters = num_parameters(TAAE(config))
    return {
        "kind": "model",
        "name": config.name,
        "model_id": model_id,
        "has_weights": has_weights,
        "num_parameters": parameters,
        "sample_rate_hz": config.sample_rate_hz,
        "hop_samples": config.hop_samples,
        "frame_rate_hz": config.frame_rate_hz,
        "latent_dim": config.latent_dim,
        "width": config.width,
        "depths": list(config.depths),
        "window": list(config.window),
        "is_causal": config.is_causal,
        "latency_ms": config.latency_ms,
        "receptive_frames": list(config.receptive_frames),
        "receptive_s": [frames / config.frame_rate_hz for frames in config.receptive_frames],
        "train_levels": list(config.fsq.train_levels),
        "bottlenecks": [_describe_bottleneck(spec, config) for spec in offered_bottlenecks(config)],
    }


def offered_bottlenecks(config: ModelConfig) -> list[BottleneckSpec]:
    """The quantisers of section 3.2.2 and Table 5 for this model's number of dimensions."""
    return [BottleneckSpec(stages, levels, config.latent_dim) for stages, levels in _OFFERED]


def _describe_bottleneck(spec: BottleneckSpec, config: ModelConfig) -> Record:
    return {
        "bottleneck": str(spec),
        "bits_per_second": spec.bits_per_second(config.frame_rate_hz),
        "exact_bits_per_second": spec.exact_bits_per_frame * config.frame_rate_hz,
        "codebook_size": spec.codebook_size,
    }


def table(record: Record) -> Iterable[str]:
    """Lines for a person, one per value and one per bottleneck."""
    for key, value in record.items():
        if key != "bottlenecks":
            yield f"{key.replace('_', ' '):22}{_text(value)}"
    for row in record.get("bottlenecks", []):
        exact = f"{row['exact_bits_per_second']:.1f} without ceilings"
        yield f"{row['bottleneck']:22}{row['bits_per_second']:g} bit/s, {exact}, {row['codebook_size']} codes a token"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}" if value.is_integer() else f"{value:.4g}"
    return "none" if value is None else str(value)
