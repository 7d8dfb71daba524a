"""Streaming steps as CUDA graphs: one launch for the hundreds of small kernels of a step (written, not timed by us).

A graph repeats its kernels on the same memory. So whatever changes from step to step is copied to fixed places first:
the piece, and the angles, slots and mask that the position decides. The past is changed in place already.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from taae.causal import CausalHalf, LayersStep
from taae.config import ModelConfig
from taae.model import Decoder, Encoder

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]


class GraphedHalf(CausalHalf):
    """A `CausalHalf` that records a graph for each number of rows, the first time that they come.

    Args:
        half: As for `CausalHalf`, like those after it.
        record: Gives a function that repeats a computation, and the tensor that it fills; CUDA's but in tests.
    """

    def __init__(
        self,
        half: Encoder | Decoder,
        config: ModelConfig,
        num_streams: int,
        max_frames: int,
        record: Record | None = None,
    ) -> None:
        super().__init__(half, config, num_streams, max_frames)
        self._record = record_cuda if record is None else record
        self._graphs: dict[int, _Graph] = {}

    def step(self, piece: Tensor) -> Tensor:
        rows = piece.shape[1]
        if rows not in self._graphs:
            self._graphs[rows] = _Graph(self._steps, piece, self._record)
        return self._graphs[rows].run(piece)


class _Graph:
    """One number of rows: fixed inputs, and what repeats the step on them."""

    def __init__(self, steps: Sequence[Any], piece: Tensor, record: Record) -> None:
        self.steps, self.piece = steps, piece.clone()
        self.places: dict[LayersStep, tuple[Tensor, ...]] = {}
        self.num_rows: dict[LayersStep, int] = {}
        before = [{name: _copy(value) for name, value in vars(step).items()} for step in steps]
        self._compute()  # finds the number of rows at each place
        self.replay, self.out = record(self._compute)
        for step, values in zip(steps, before, strict=True):  # that has moved the past on
            for name, value in values.items():
                if torch.is_tensor(value):
                    getattr(step, name).copy_(value)
                else:
                    setattr(step, name, value)

    def _compute(self) -> Tensor:
        stream = self.piece
        for step in self.steps:
            if not isinstance(step, LayersStep):
                stream = step.run(stream)
                continue
            if step not in self.places:
                self.num_rows[step] = stream.shape[1]
                self.places[step] = tuple(value.clone() for value in step.place(stream.shape[1]))
            stream = step.compute(stream, *self.places[step])
        return stream

    def run(self, piece: Tensor) -> Tensor:
        self.piece.copy_(piece)
        for step, places in self.places.items():
            for fixed, value in zip(places, step.place(self.num_rows[step]), strict=True):
                fixed.copy_(value)
        self.replay()
        return self.out.clone()


def _copy(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value


def record_cuda(compute: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A CUDA graph of `compute`, after runs on a stream of its own as torch wants them.

    Raises:
        RuntimeError: If there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("CUDA graphs need a CUDA device, and torch finds none here; leave use_graphs off")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            compute()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = compute()
    return graph.replay, out
