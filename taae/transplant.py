"""Trained weights in another model, which begins where the first one ended: with half the patch, or causal (A.4).

Least squares on some minutes of speech make up for what no longer fits, taps of convolutions above all; training does
the rest.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from taae.checkpoint import fused_state, load_fused_state
from taae.config import ModelConfig
from taae.fsq import quantize
from taae.model import TAAE, ConvTransposed
from taae.patching import patchify

_KERNEL = 7  # of the convolutions from and to patches
_NEW_SCALE = 0.02  # of the branches of new layers
_RIDGE = 1e-3  # over the mean energy of what is regressed on


def grown_config(config: ModelConfig, depth: int = 1) -> ModelConfig:
    """The configuration of `grow`'s result: half the patch, a stride of 2 behind it, and `depth` layers outside."""
    if config.strides[0] != 1:
        raise ValueError(f"only models whose first stride is 1 can grow, got strides {config.strides}")
    if config.patch_samples % 2:
        raise ValueError(f"a patch of {config.patch_samples} samples has no half")
    return replace(
        config,
        patch_samples=config.patch_samples // 2,
        strides=(1, 2, *config.strides[1:]),
        depths=(depth, *config.depths),
    )


@torch.no_grad()
def grow(model: TAAE, wav: Float[Tensor, "b 1 n"], depth: int = 1, seed: int = 0) -> TAAE:
    """A model of `grown_config` that sounds like `model`, for training.

    The last convolution of a decoder writes `patch_samples` samples from `width` channels. Where the width is smaller,
    what it can write is a subspace, and speech itself, projected on it, loses most of its quality (EXPERIMENTS.md).
    Halving the patch doubles the rank. The layers stay as they are; outside of them come a change of rate by 2 and
    layers at the new rate, which do next to nothing until they are trained.

    Every second frame of the new rate is a frame of the old one, and the frames between are nearly zero. The
    convolutions keep the taps that fit the shorter reach; the least squares of `wav` make up for the others. Of `mini`,
    0.2 % of the decoded energy and 0.8 % of the variance of latents change.

    Args:
        model: Not causal, trained, on the CPU.
        wav: Some minutes of speech at its rate; the more, the surer the least squares.
        depth: Layers at the new rate.
        seed: Of the new layers.

    Raises:
        ValueError: If the model is causal or its sizes do not allow it.
    """
    config = model.config
    if config.is_causal:
        raise ValueError("a causal model cannot grow; grow the model that it comes from, and fine-tune that")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grown = TAAE(grown_config(config, depth))
        state = fused_state(grown)
        outermost = len(config.depths)  # the blocks of a decoder come in reverse
        for name, value in fused_state(model).items():
            state[_renamed(name)] = value
        for name, sizes in (
            ("encoder.downsample.1", (config.width, config.width, 4)),
            (f"decoder.upsample.{outermost - 1}", (config.width, config.width, 4)),
        ):
            weight = 0.002 * torch.randn(sizes)
            weight[:, :, 1] += torch.eye(config.width)  # the tap of the even frames
            state[f"{name}.conv.weight"], state[f"{name}.conv.bias"] = weight, torch.zeros(config.width)
    for name in state:
        if name.startswith(("encoder.blocks.0.", f"decoder.blocks.{outermost}.")) and name.endswith("_scale.scale"):
            state[name] = torch.full_like(state[name], _NEW_SCALE)
    state["encoder.conv_in.conv.weight"] = _input_taps(model, wav)
    state["decoder.conv_out.conv.weight"] = _output_taps(model, wav)
    load_fused_state(grown, state)
    return grown


def _renamed(name: str) -> str:
    """What a weight of the smaller model is called in the grown one."""
    parts = name.split(".")
    if parts[0] == "encoder" and parts[1] in ("blocks", "downsample"):
        parts[2] = str(int(parts[2]) + 1)
    return ".".join(parts)


def _input_taps(model: TAAE, wav: Tensor) -> Tensor:
    """Weights of the convolution of half patches whose even frames are nearest to those of the old one."""
    conv, patch = model.encoder.conv_in.conv, model.config.patch_samples
    wanted = model.encoder.conv_in(patchify(wav, patch)) - conv.bias
    halves, centre = patchify(wav, patch // 2), _KERNEL // 2
    shifted = F.pad(halves, (0, 0, centre, centre)).unfold(1, _KERNEL, 2)[:, : wanted.shape[1]]  # (b, t, p/2, 7)
    # Half h of the patch j places away is 2 j + h half patches away.
    old = conv.weight.unflatten(1, (2, patch // 2))  # (w, h, p/2, j)
    taps = [old[:, tap % 2, :, tap // 2 + centre].T for tap in range(-centre, centre + 1)]
    fitted = _refit(shifted.transpose(2, 3).flatten(2), torch.cat(taps), wanted)
    return fitted.unflatten(0, (_KERNEL, patch // 2)).permute(2, 1, 0)


def _output_taps(model: TAAE, wav: Tensor) -> Tensor:
    """Weights of the convolution that writes half patches from old frames with zeros between them."""
    decoder, patch, centre = model.decoder, model.config.patch_samples, _KERNEL // 2
    seen: list[Tensor] = []
    hook = decoder.conv_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    codes = quantize(model.encode_latents(wav), max(model.config.fsq.train_levels))
    wanted = decoder(codes, model.backend).unflatten(-1, (2, patch // 2))  # (b, t, h, p/2)
    hook.remove()
    stream = F.pad(seen[0], (0, 0, centre, centre)).unfold(1, _KERNEL, 1)  # (b, t, w, 7)
    old = decoder.conv_out.conv.weight.unflatten(0, (2, patch // 2))  # (h, p/2, w, j)
    weight = torch.zeros(patch // 2, model.config.width, _KERNEL)
    for half in (0, 1):
        places = [place for place in range(_KERNEL) if 0 <= 2 * place - half - centre < _KERNEL]
        inputs = stream[..., places].transpose(2, 3).flatten(2)
        taps = old[half][:, :, places].permute(2, 1, 0).flatten(0, 1)
        fitted = _refit(inputs, taps, wanted[:, :, half]).unflatten(0, (len(places), -1))
        for place, tap in zip(places, fitted, strict=True):
            weight[:, :, 2 * place - half - centre] = tap.T
    return weight


@torch.no_grad()
def make_causal(model: TAAE, config: ModelConfig, wav: Float[Tensor, "b 1 n"]) -> TAAE:
    """A causal model with the weights of `model`, its convolutions fitted one after the other, from input to output.

    The same weights in causal convolutions are the same filters, late: by three patches at either end, by half a frame
    or more at every change of rate, and training has to undo all of it. Here every tap stays at its time. Those that
    lie ahead are gone; each convolution is fitted to what that of `model` puts out, from what reaches it in the past.

    Args:
        model: Not causal, trained, weight norm fused, on the CPU.
        config: Of the result: causal, any window, all else as in `model`.
        wav: Some minutes of speech at its rate.

    Raises:
        ValueError: If `model` is causal already or `config` is not, or their sizes differ.
    """
    if model.config.is_causal or not config.is_causal:
        raise ValueError("make_causal takes a model that is not causal and a configuration that is")
    causal = TAAE(config, is_fused=True)
    load_fused_state(causal, fused_state(model))
    grid = max(model.config.fsq.train_levels)

    def run(of: TAAE) -> None:
        of.decode_latents(quantize(of.encode_latents(wav), grid))

    for old, new in zip(_convolutions(model), _convolutions(causal), strict=True):
        (_, wanted), (stream, _) = _seen(old, lambda: run(model)), _seen(new, lambda: run(causal))
        fit = _fit_transposed if isinstance(new, ConvTransposed) else _fit
        fit(new, old, stream, wanted)
    return causal


def _convolutions(model: TAAE) -> Iterator[Any]:
    """From input to output."""
    encoder, decoder = model.encoder, model.decoder
    ordered = (encoder.conv_in, *encoder.downsample, encoder.conv_out)
    ordered += (decoder.conv_in, *decoder.upsample, decoder.conv_out)
    yield from (module for module in ordered if not isinstance(module, nn.Identity))


def _seen(module: nn.Module, run: Callable[[], None]) -> tuple[Tensor, Tensor]:
    """What goes into and comes out of `module` in a run."""
    seen: list[Any] = []
    hook = module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    run()
    hook.remove()
    return seen[0]


def _fit(new: Any, old: Any, stream: Tensor, wanted: Tensor) -> None:
    """Weights of a causal convolution of `stream` (b, t, i) for what another puts out, (b, t', o)."""
    kernel, (stride,) = new.conv.kernel_size[0], new.conv.stride
    late = new.padding[0] - old.padding[0]
    taps = F.pad(old.conv.weight, (late, -late))  # (o, i, k)
    windows = F.pad(stream, (0, 0, *new.padding)).unfold(1, kernel, stride)  # (b, t', i, k)
    bias = 0 if new.conv.bias is None else new.conv.bias
    fitted = _refit(windows.flatten(2), taps.flatten(1).T, wanted - bias)
    new.conv.weight.copy_(fitted.T.unflatten(1, (-1, kernel)))


def _fit_transposed(new: Any, old: Any, stream: Tensor, wanted: Tensor) -> None:
    """The same for a transposed one, whose output frame `stride * s + phase` sees the frames s and s - 1."""
    stride, weight = new.stride, new.conv.weight  # (i, o, 2 * stride)
    taps = F.pad(old.conv.weight, (0, old.skip))[..., old.skip :]
    inputs = torch.cat([stream, F.pad(stream, (0, 0, 1, -1))], dim=-1)
    for phase in range(stride):
        prior = torch.cat([taps[..., phase], taps[..., phase + stride]])
        fitted = _refit(inputs, prior, wanted[:, phase::stride] - new.conv.bias)
        weight[..., phase], weight[..., phase + stride] = fitted.chunk(2)


def _refit(inputs: Tensor, taps: Tensor, wanted: Tensor) -> Tensor:
    """`taps` (i, o) plus the ridge regression on `inputs` (b, t, i) of what they leave of `wanted` (b, t, o)."""
    inputs, left = inputs.flatten(0, 1), (wanted - inputs @ taps).flatten(0, 1)
    moments = inputs.T @ inputs
    moments.diagonal().add_(_RIDGE * moments.diagonal().mean())
    return taps + torch.linalg.solve(moments, inputs.T @ left)
