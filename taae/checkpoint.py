"""A model is a folder: model.safetensors (weight norm fused) and config.json. Training state lies elsewhere.

The decoder may lie in a file of its own, decoder.safetensors, where one file would be too large for version control.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from taae.config import ModelConfig, from_dict, load_preset, preset_names
from taae.files import write_atomic
from taae.model import TAAE

WEIGHTS, DECODER, CONFIG = "model.safetensors", "decoder.safetensors", "config.json"
RVQ = "rvq.safetensors"  # beside the model folder of a run that had one
PRETRAINED = Path(__file__).parent / "pretrained"

logger = logging.getLogger(__name__)


def save_model(
    model: TAAE, folder: Path, dtype: torch.dtype = torch.float32, *, has_decoder_file: bool = False
) -> None:
    """Write a model folder; each file appears whole or not at all. Matrices get `dtype`, vectors stay float32."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for key, tensor in fused_state(model).items():
        tensors[key] = tensor.to(dtype if tensor.dim() > 1 else torch.float32).contiguous().cpu()
    config = json.dumps({"model": model.config.as_dict()}, indent=2) + "\n"
    apart = {key: value for key, value in tensors.items() if has_decoder_file and key.startswith("decoder.")}
    write_atomic(folder / WEIGHTS, save({key: tensors[key] for key in tensors if key not in apart}), force=True)
    if apart:
        write_atomic(folder / DECODER, save(apart), force=True)
    else:
        (folder / DECODER).unlink(missing_ok=True)
    write_atomic(folder / CONFIG, config.encode(), force=True)


def fused_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of `model` with weight-normed weights replaced by their values, as files hold it."""
    state = {key: value for key, value in model.state_dict().items() if ".parametrizations." not in key}
    return state | {f"{name}.weight": module.weight.detach() for name, module in _weight_normed(model)}


def load_fused_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """The inverse of `fused_state`, strict: weight-normed layers split the weight into length and direction again.

    Raises:
        ValueError: If keys or shapes differ; the text names the first of each.
    """
    expected = fused_state(model)
    missing, unknown = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or unknown:
        raise ValueError(
            f"weights do not fit the model: missing {missing[:3] or 'none'}, unknown {unknown[:3] or 'none'}"
        )
    wrong = [key for key in expected if expected[key].shape != state[key].shape]
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"weights do not fit the model: {key} is {tuple(state[key].shape)}, not {tuple(expected[key].shape)}"
        )
    with torch.no_grad():
        for name, module in _weight_normed(model):
            module.weight = state[f"{name}.weight"].to(module.weight)
        own = model.state_dict()
        model.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)


def _weight_normed(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if parametrize.is_parametrized(module, "weight")]


def load_model(source: str | Path) -> tuple[TAAE, bytes]:
    """A model for inference and its 8-byte identity, from a folder, the name of an embedded model or of a preset.

    A preset without embedded weights gets random ones (seed 0), and a warning says so.

    Raises:
        ValueError: If there is no such model, or its files are damaged or do not fit.
    """
    folder = Path(source)
    if (PRETRAINED / str(source) / WEIGHTS).is_file():
        folder = PRETRAINED / str(source)
    if folder.is_dir():
        return _load_folder(folder)
    if str(source) in preset_names():
        logger.warning("%s has no weights here: they are random, and what it decodes is noise", source)
        return random_model(load_preset(str(source)))
    embedded = sorted(path.parent.name for path in PRETRAINED.glob(f"*/{WEIGHTS}"))
    raise ValueError(
        f"no model {str(source)!r}; give a folder with {WEIGHTS} and {CONFIG}, an embedded model "
        f"({', '.join(embedded)}) or a preset ({', '.join(preset_names())})"
    )


def random_model(config: ModelConfig, seed: int = 0) -> tuple[TAAE, bytes]:
    """A model with random weights, the same for the same seed, and its identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TAAE(config, is_fused=True)
    identity = hashlib.sha256(f"random {seed} {config}".encode()).digest()[:8]
    return model.eval(), identity


def _load_folder(folder: Path) -> tuple[TAAE, bytes]:
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no model folder: it has no {name}")
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged: {error!r}") from None
    config = from_dict(values, str(folder / CONFIG))
    files = [folder / name for name in (WEIGHTS, DECODER) if (folder / name).is_file()]
    state: dict[str, Tensor] = {}
    for path in files:
        try:
            more = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        if twice := sorted(state.keys() & more.keys()):
            raise ValueError(f"{folder} holds weights twice: {twice[0]} is in {WEIGHTS} and in {DECODER}; remove one")
        state |= more
    with torch.device("meta"):
        model = TAAE(config, is_fused=True)
    model.to_empty(device="cpu")
    load_fused_state(model, {key: value.float() for key, value in state.items()})
    # The values as written: a field that a later version adds must not make old `.taae` files unreadable.
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files) + json.dumps(values, sort_keys=True).encode())
    return model.eval(), digest.digest()[:8]
