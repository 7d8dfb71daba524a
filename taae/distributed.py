"""One process or many: what torchrun started, DDP or FSDP2 around a model, and the few sums that the loop needs.

A run is one batch, cut into micro-batches; processes share them out, so the same recipe trains the same on any number.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

logger = logging.getLogger(__name__)

STRATEGIES = ("ddp", "fsdp")


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run, as one of them sees it."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this process writes what a run has once: log, pictures, models."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag if self.size == 1 else bool(self._reduce([float(flag)], dist.ReduceOp.MAX)[0])

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Means over all processes, which must hold the same names in the same order."""
        if self.size == 1:
            return values
        totals = self._reduce(list(values.values()), dist.ReduceOp.SUM)
        return {name: total / self.size for name, total in zip(values, totals, strict=True)}

    def wait(self) -> None:
        """Return once every process has come here."""
        if self.size > 1:
            dist.barrier()

    def _reduce(self, values: list[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        # On the CPU, by gloo: a GPU need not stop for it.
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers, op=operation)
        return numbers.tolist()


ALONE = World()


@contextmanager
def open_world(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started, or be the only one.

    Args:
        device: "cpu", "cuda", or "auto" for a GPU where torch finds one; each process of a node takes its own.

    Raises:
        ValueError: If the device is unknown or not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch finds none here; choose cpu")
    is_cuda = device != "cpu" and torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    if is_cuda and local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} of this node has no GPU, there are {torch.cuda.device_count()}; "
            "lower torchrun's --nproc-per-node"
        )
    chosen = torch.device("cuda", local) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(chosen)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World(device=chosen)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()


def distribute(
    module: nn.Module, world: World, strategy: str, blocks: Iterable[nn.Module] = (), *, has_idle_parameters: bool
) -> nn.Module:
    """Wrap a module whose `forward` is what is trained; of one process, itself.

    Args:
        module: On the device of `world`.
        world: Who shares it.
        strategy: "ddp" keeps the whole module in every process, "fsdp" (FSDP2) a share of every parameter.
        blocks: Parts that FSDP2 gathers and frees one by one.
        has_idle_parameters: Whether some parameters take no part in some steps.
    """
    if world.size == 1:
        return module
    if strategy == "ddp":
        # Buffers are constants here, or (of an RVQ) updated alike in every process. Without device_ids the module stays
        # on the device it is on.
        return nn.parallel.DistributedDataParallel(
            module, broadcast_buffers=False, find_unused_parameters=has_idle_parameters
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


@contextmanager
def gradient_sync(wrapped: nn.Module, is_last: bool) -> Iterator[None]:
    """Let processes exchange gradients only in the last of a step's micro-batches."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(wrapped, nn.parallel.DistributedDataParallel) and not is_last:
        with wrapped.no_sync():
            yield
        return
    if isinstance(wrapped, FSDPModule):
        wrapped.set_requires_gradient_sync(is_last)
    yield


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradients for the parameters of `module` inside; they still flow through it."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor on the CPU, wherever its shares are; every process must ask."""
    from torch.distributed.tensor import DTensor

    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()
