"""Published stable-codec checkpoints, read strictly into our model (another spelling of the same weights)."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from taae.checkpoint import load_fused_state
from taae.config import FSQConfig, ModelConfig
from taae.model import TAAE

# A fine-tuning checkpoint holds averaged and trained weights and optimiser state; the average is what users want.
_PREFIXES = ("autoencoder_ema.ema_model.", "autoencoder.", "")

_LAYER_KEYS = {
    "pre_norm.gamma": "attention_norm.gain",
    "self_attn.to_qkv.weight": "attention.to_qkv.weight",
    "self_attn.to_out.weight": "attention.to_out.weight",
    "self_attn.q_norm.weight": "attention.q_norm.weight",
    "self_attn.q_norm.bias": "attention.q_norm.bias",
    "self_attn.k_norm.weight": "attention.k_norm.weight",
    "self_attn.k_norm.bias": "attention.k_norm.bias",
    "self_attn_scale.scale": "attention_scale.scale",
    "ff_norm.gamma": "mlp_norm.gain",
    "ff.ff.0.proj.weight": "mlp.to_value_and_gate.weight",
    "ff.ff.0.proj.bias": "mlp.to_value_and_gate.bias",
    "ff.ff.2.weight": "mlp.to_out.weight",
    "ff.ff.2.bias": "mlp.to_out.bias",
    "ff_scale.scale": "mlp_scale.scale",
}
_BUFFERS = ("pre_norm.beta", "ff_norm.beta", "rope.inv_freq")


def load_official_model(config_path: str | Path, weights_path: str | Path) -> tuple[TAAE, bytes]:
    """A model and its identity from `model_config.json` and `model.safetensors` or a torch checkpoint.

    Raises:
        ValueError: If a file is missing or damaged, the configuration is one we do not know, or a key is missing,
            unknown or of another shape. Nothing is skipped.
    """
    config = read_official_config(Path(config_path))
    state = _without_prefix(_one_spelling(_read_weights(Path(weights_path))))
    converted = convert_state(state, config)
    with torch.device("meta"):
        model = TAAE(config, is_fused=True)
    model.to_empty(device="cpu")
    load_fused_state(model, converted)
    # What the weights do not say by their names and shapes.
    digest = hashlib.sha256(repr((config.sample_rate_hz, config.head_dim, config.rope_dims, config.window)).encode())
    for key in sorted(state):
        digest.update(key.encode() + state[key].float().numpy().tobytes())
    return model.eval(), digest.digest()[:8]


def read_official_config(path: Path) -> ModelConfig:
    """A published `model_config.json` as our configuration.

    The head size 128 with 64 rotating dimensions is fixed in the published code; `_oracle` may name others.

    Raises:
        ValueError: If it is missing, or asks for something that TAAE does not have.
    """
    if not path.is_file():
        raise ValueError(f"no configuration at {path}; the published one is called model_config.json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values = values.get("config", values)
        model = values["model"]
        encoder, decoder = model["encoder"]["config"], model["decoder"]["config"]
        fsq = model["bottleneck"]["config"]
        oracle = values.get("_oracle", {})
        widths = {encoder["channels"] * mult for mult in encoder["c_mults"]}
        config = ModelConfig(
            name="stable-codec",
            sample_rate_hz=values["sample_rate"],
            patch_samples=model["pretransform"]["config"]["patch_size"],
            width=widths.pop(),
            head_dim=oracle.get("head_dim", 128),
            rope_dims=oracle.get("rope_dims", 64),
            strides=tuple(encoder["strides"]),
            depths=tuple(encoder["transformer_depths"]),
            latent_dim=model["latent_dim"],
            window=tuple(encoder.get("sliding_window", (63, 64))),
            fsq=FSQConfig(
                train_levels=(fsq["levels"],),
                noise_probability=fsq.get("noise_dropout", 0.5),
                noise_mode="published",
            ),
        )
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a stable-codec configuration: {error!r}") from None
    same = ("strides", "transformer_depths", "channels", "c_mults", "sliding_window")
    unlike = [key for key in same if encoder.get(key) != decoder.get(key)]
    unknown = [key for key in ("use_snake", "conformer", "use_dilated_conv", "differential") if encoder.get(key)]
    unknown += ["soft_clip"] * bool(model["decoder"].get("soft_clip"))
    if widths or unlike or unknown or not encoder.get("layer_scale", True):
        raise ValueError(
            f"{path} is not a TAAE of the paper: differs in {[*unlike, *unknown] or 'width or layer_scale'}"
        )
    return config


def convert_state(state: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Published keys (weight norm as `weight_g` and `weight_v`) to ours, weight norm fused.

    Every key must be used and every buffer hold its known value.

    Raises:
        ValueError: If a key is unknown or a buffer is not what the code assumes.
    """
    names = _module_names(config)
    converted: dict[str, Tensor] = {}
    lengths: dict[str, Tensor] = {}
    for key, value in state.items():
        value = value.float()
        prefix, layer, rest = _split_key(key, names)
        if prefix is None:
            raise ValueError(
                f"unknown key {key}: not a TAAE checkpoint of {config.depths} layers at strides {config.strides}"
            )
        if layer is not None:
            if rest in _BUFFERS:
                _check_buffer(key, value, config)
            elif rest in _LAYER_KEYS:
                converted[f"{prefix}.{layer}.{_LAYER_KEYS[rest]}"] = value
            else:
                raise ValueError(f"unknown key {key}: this layer has something that the paper's does not")
        elif rest == "weight_g":
            lengths[f"{prefix}.conv.weight"] = value
        elif rest in ("weight_v", "bias"):
            converted[f"{prefix}.conv.{rest.removesuffix('_v')}"] = value
        else:
            raise ValueError(f"unknown key {key}")
    for key, length in lengths.items():
        if key not in converted:
            raise ValueError(f"{key} has a length (weight_g) but no direction (weight_v)")
        direction = converted[key]
        converted[key] = length * direction / direction.norm(dim=(1, 2), keepdim=True)
    without = sorted(key for key in converted if key.endswith("conv.weight") and key not in lengths)
    if without:
        raise ValueError(f"{without[0]} has a direction (weight_v) but no length (weight_g)")
    return converted


def _module_names(config: ModelConfig) -> dict[str, str]:
    """Published module names to ours; names of transformer blocks end with a dot and take a layer number."""
    last = len(config.strides)
    names = {"encoder.layers.0": "encoder.conv_in", "decoder.layers.0": "decoder.conv_in"}
    for block in range(last):
        names[f"encoder.layers.{block + 1}.layers.1"] = f"encoder.downsample.{block}"
        names[f"encoder.layers.{block + 1}.layers.2."] = f"encoder.blocks.{block}"
        names[f"decoder.layers.{block + 1}.layers.0."] = f"decoder.blocks.{block}"
        names[f"decoder.layers.{block + 1}.layers.2"] = f"decoder.upsample.{block}"
    # The published lists hold an activation between the last block and the last convolution.
    names[f"encoder.layers.{last + 2}"] = "encoder.conv_out"
    names[f"decoder.layers.{last + 2}"] = "decoder.conv_out"
    return names


def _split_key(key: str, names: dict[str, str]) -> tuple[str | None, int | None, str]:
    for published, ours in names.items():
        if published.endswith("."):
            match = re.fullmatch(re.escape(published) + r"(\d+)\.(.+)", key)
            if match and int(match[1]) > 0:
                return ours, int(match[1]) - 1, match[2]
        elif key.startswith(f"{published}.") and key.count(".") == published.count(".") + 1:
            return ours, None, key[len(published) + 1 :]
    return None, None, key


def _check_buffer(key: str, value: Tensor, config: ModelConfig) -> None:
    expected = torch.zeros_like(value)
    if key.endswith("inv_freq"):
        expected = 10000.0 ** (-torch.arange(0, config.rope_dims, 2).double() / config.rope_dims)
    if value.shape != expected.shape or not torch.allclose(value.double(), expected.double(), rtol=1e-2, atol=1e-6):
        raise ValueError(f"{key} holds other values than the paper's model has; it cannot be converted")


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"no weights at {path}; the published ones are model.safetensors or model.ckpt")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint: {error}") from None
    except Exception as error:  # torch raises pickle.UnpicklingError for anything but plain tensors
        raise ValueError(f"{path} is no checkpoint of plain tensors: {error}") from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state_dict of tensors")
    return state


def _one_spelling(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name weight norm as older torch does, so that the same weights have the same identity."""
    newer = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new, old in newer.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    return state


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        chosen = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(f"{prefix}encoder.")}
        chosen |= {key[len(prefix) :]: value for key, value in state.items() if key.startswith(f"{prefix}decoder.")}
        if chosen:
            if prefix:
                return chosen  # the wrapper's other keys are losses, discriminators and optimisers
            unknown = sorted(set(state) - set(chosen))
            unknown = [key for key in unknown if not key.startswith(("bottleneck.", "pretransform."))]
            if unknown:
                raise ValueError(f"unknown key {unknown[0]}: not a stable-codec autoencoder")
            return chosen
    raise ValueError(f"no encoder or decoder weights; the first keys are {sorted(state)[:3]}")
