"""The transformer layers for inference on a CPU: folded, packed, in tiles, on as many Python threads as torch has.

What is linear and fixed is multiplied into the matrices once: norm gains and LayerScale. Rows go through a layer in
tiles that fit the caches; each thread keeps its tiles from layer to layer and meets the others once a layer, when all
keys and values are there. That is faster than OpenMP inside every operator, which meets at each of twenty a layer.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taae.attention import Backend, attend_rows, rotary_angles
from taae.model import TAAE, Layers, TransformerLayer
from taae.packed import Weights, has_bfloat16, is_available, pack

Kernels = Literal["auto", "plain", "fast"]

logger = logging.getLogger(__name__)

_TILE_VALUES = 2**18  # values of one tile of the stream: 256 rows of 1024
_BLOCK = 128
_SMALLEST_TILE = 64  # rows; matrix products of fewer are slow


def is_fast_wanted(device: torch.device, dtype: str, kernels: Kernels) -> bool:
    """Whether a codec gets `speed_up`.

    Raises:
        ValueError: If the arguments do not go together.
        RuntimeError: If this torch lacks the operators, and there is no plain way.
    """
    if kernels not in get_args(Kernels):
        raise ValueError(f"kernels must be one of {', '.join(get_args(Kernels))}, got {kernels!r}")
    if dtype == "int8" and (kernels == "plain" or device.type != "cpu"):
        raise ValueError(f"int8 needs fast kernels on a cpu, got {kernels} ones on {device}; choose bfloat16")
    if kernels == "fast" and (dtype == "float16" or device.type != "cpu"):
        raise ValueError(f"fast kernels take float32, bfloat16 or int8 on a cpu, got {dtype} on {device}")
    wants_fast = kernels == "fast" or (kernels == "auto" and dtype in ("bfloat16", "int8") and device.type == "cpu")
    if not wants_fast or is_available():
        return wants_fast
    if kernels == "fast" or dtype == "int8":
        raise RuntimeError(f"torch {torch.__version__} packs no linear layers here; choose kernels='plain' and float32")
    logger.info("torch %s packs no linear layers here: plain ones in %s", torch.__version__, dtype)
    return False


def speed_up(model: TAAE, weights: Weights) -> TAAE:
    """Replace every transformer layer of `model` by a `FastLayer`. Returns the model, whose plain weights are gone.

    The stream is in bfloat16 with bfloat16 or int8 weights where the processor has it, else in float32.

    Raises:
        ValueError: If that was done before.
    """
    dtype = torch.float32 if weights == "float32" or not has_bfloat16() else torch.bfloat16
    if weights == "bfloat16" and dtype == torch.float32:
        weights = "float32"
    if any(isinstance(module, FastLayer) for module in model.modules()):
        raise ValueError(f"the layers of {model.config.name} are packed already; load the model anew")
    model.requires_grad_(False)
    for half in (model.encoder, model.decoder):
        for index, layers in enumerate(half.blocks):
            assert isinstance(layers, Layers)
            for place, layer in enumerate(layers):
                assert isinstance(layer, TransformerLayer)
                layers[place] = FastLayer(layer, weights, dtype)  # one by one, so that memory holds no second model
            half.blocks[index] = FastLayers(layers)
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            module.to(dtype)
    return model


class FastLayer(TransformerLayer):
    """A `TransformerLayer` with folded and packed weights; inference only."""

    def __init__(self, layer: TransformerLayer, weights: Weights, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # none of the parent's parameters
        attention, mlp = layer.attention, layer.mlp
        self.window = layer.window
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.eps = layer.attention_norm.eps, layer.mlp_norm.eps
        self.q_norm, self.k_norm = attention.q_norm.to(dtype), attention.k_norm.to(dtype)
        value, gate = (mlp.to_value_and_gate.weight * layer.mlp_norm.gain).chunk(2)
        value_bias, gate_bias = mlp.to_value_and_gate.bias.chunk(2)
        scales = layer.attention_scale.scale[:, None], layer.mlp_scale.scale[:, None]
        self.to_qkv = pack(attention.to_qkv.weight * layer.attention_norm.gain, None, weights)
        self.to_out = pack(scales[0] * attention.to_out.weight, None, weights)
        self.to_value, self.to_gate = pack(value, value_bias, weights), pack(gate, gate_bias, weights)
        self.to_stream = pack(scales[1] * mlp.to_out.weight, scales[1][:, 0] * mlp.to_out.bias, weights)

    def project(self, stream: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, width = stream.shape
        qkv = self.to_qkv(F.layer_norm(stream, (width,), None, None, self.eps[0]))
        q, k, v = qkv.view(b, n, 3, self.num_heads, self.head_dim).unbind(2)
        angles = angles.to(stream.dtype)[:, :, None]  # (2, n, 1, r)
        q, k = (_rotate_rows(heads, angles) for heads in (self.q_norm(q), self.k_norm(k)))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def finish(self, stream: Tensor, heads: Tensor) -> Tensor:
        stream = self.to_out.add(heads.transpose(1, 2).reshape(stream.shape), stream)
        normed = F.layer_norm(stream, stream.shape[-1:], None, None, self.eps[1])
        return self.to_stream.add(self.to_value.mul(normed, self.to_gate.swish(normed)), stream)


def _rotate_rows(heads: Tensor, angles: Tensor) -> Tensor:
    """`taae.attention.rotate` in place, for (b, n, h, e)."""
    half = angles.shape[-1]
    cos, sin = angles
    first, second = heads[..., :half], heads[..., half : 2 * half]
    old = first * sin
    first.mul_(cos).sub_(second * sin)
    second.mul_(cos).add_(old)
    return heads


class FastLayers(Layers):
    """`Layers` of `FastLayer`: in tiles and on threads where the input is long enough."""

    def __init__(self, layers: Layers) -> None:
        nn.ModuleList.__init__(self, layers)
        self.rope_dims = layers.rope_dims

    def forward(self, stream: Tensor, backend: Backend) -> Tensor:
        if backend not in ("auto", "blocked") or not len(self):
            return super().forward(stream, backend)
        b, n, width = stream.shape
        num_threads = torch.get_num_threads()
        if b * n < 2 * _BLOCK:  # OpenMP has no more to lose
            num_threads = 1
        per_item = -(-n // max(_BLOCK, _TILE_VALUES // width))
        per_item = max(per_item, min(-(-num_threads // b), n // _SMALLEST_TILE), 1)  # work for every thread
        if b == 1 and per_item > num_threads:
            per_item = -(-per_item // num_threads) * num_threads  # and as much for each
        rows = -(-n // per_item)
        tiles = [(item, start, min(start + rows, n)) for item in range(b) for start in range(0, n, rows)]
        return _Pass(self, stream.contiguous(), tiles, min(num_threads, len(tiles))).run()


class _Pass:
    """One stream (b, n, width) through all layers of a block."""

    def __init__(self, layers: FastLayers, stream: Tensor, tiles: list[tuple[int, int, int]], num_threads: int) -> None:
        layer = layers[0]
        assert isinstance(layer, FastLayer)
        b, n, width = stream.shape
        self.layers, self.stream, self.tiles, self.num_threads = layers, stream, tiles, num_threads
        self.angles = rotary_angles(n, layers.rope_dims, stream.device)
        # Two layers' worth: the next layer's keys are written while a slower thread still reads this one's.
        shape = min(2, num_threads), 2, b, layer.num_heads, n, layer.head_dim
        self.cache = stream.new_empty(shape)
        self.out = torch.empty_like(stream)
        self.barrier = threading.Barrier(num_threads)

    def run(self) -> Tensor:
        if self.num_threads == 1:
            self._run_tiles(self.tiles)
        else:
            share = -(-len(self.tiles) // self.num_threads)
            parts = [self.tiles[share * i : share * (i + 1)] for i in range(self.num_threads)]
            _run_together([lambda part=part: self._guarded(part) for part in parts])
        return self.out

    def _guarded(self, tiles: list[tuple[int, int, int]]) -> None:
        try:
            self._run_tiles(tiles)
        except BaseException:
            self.barrier.abort()  # or the others wait for ever
            raise

    def _run_tiles(self, tiles: list[tuple[int, int, int]]) -> None:
        streams = [self.stream[item : item + 1, start:stop] for item, start, stop in tiles]
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, FastLayer)
            keys, values = self.cache[number % len(self.cache)]
            queries = []
            for (item, start, stop), stream in zip(tiles, streams, strict=True):
                q, k, v = layer.project(stream, self.angles[:, start:stop])
                keys[item, :, start:stop], values[item, :, start:stop] = k[0], v[0]
                queries.append(q)
            self.barrier.wait()
            for index, (item, start, _) in enumerate(tiles):
                heads = _attend(layer, queries[index], keys[item : item + 1], values[item : item + 1], start)
                streams[index] = layer.finish(streams[index], heads)
        for (item, start, stop), stream in zip(tiles, streams, strict=True):
            self.out[item, start:stop] = stream[0]


def _attend(layer: FastLayer, q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
    left, right = layer.window
    # Short blocks compute fewer scores in vain, long ones make fewer calls; this is what 16 and 3 heads like best.
    size = min(256, max(64, 1024 // layer.num_heads))
    pieces = []
    for offset in range(0, q.shape[2], size):
        block = q[:, :, offset : offset + size]
        pieces.append(attend_rows(block, k, v, start=start + offset, left=left, right=right))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


_turn = threading.Lock()  # two passes at once would each hold threads that the other waits for


def _run_together(jobs: list[Callable[[], None]]) -> None:
    """Run every job at the same time, each on a thread that has torch to itself."""
    is_inference = torch.is_inference_mode_enabled()

    def run(job: Callable[[], None]) -> None:
        with torch.inference_mode(is_inference), torch.no_grad():
            job()

    with _turn:
        futures = [_threads(len(jobs)).submit(run, job) for job in jobs]
        errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Threads whose operators run on one core each. They last; a new one costs more than a layer."""
    everywhere = torch.get_num_threads()
    ready = threading.Barrier(count + 1)

    def alone() -> None:
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="taae-layers", initializer=alone)
    for _ in range(count):
        pool.submit(lambda: None)
    ready.wait()
    torch.set_num_threads(everywhere)  # it is a thread's own, but also what later threads begin with
    return pool
