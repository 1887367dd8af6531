"""Splits a training over all processes by FSDP2: each keeps some rows of every weight, moment and average.

Weights are gathered for one part of the network at a time, where it computes, and gradients are summed into the rows
that a process keeps. All tensors that are made from the parameters, like moments and averages, are split in the same
way: "DTensors", whose rows of this process are `rows_of(tensor).local`. Their `.item()`, `float()` and `bool()` would
answer for these rows only, so whatever decides about a step sums over the processes first.

References:
    Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel".
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from undiffuse.distributed.collectives import DistContext
from undiffuse.distributed.gradients import GRADIENT_DTYPES

__all__ = ["Rows", "ShardedGradients", "copy_rows_", "gathered", "is_sharded", "rows_of", "shard_"]


@dataclass(frozen=True)
class Rows:
    """The rows of a tensor that this process keeps.

    Attributes:
        local: The rows, sharing memory with the tensor.
        start: Number of the first of them in the whole tensor.
        shape: Shape of the whole tensor.
    """

    local: Tensor
    start: int
    shape: tuple[int, ...]


def is_sharded(tensor: Tensor) -> bool:
    """Returns whether a tensor is split over the processes."""
    return getattr(tensor, "placements", None) is not None


def rows_of(tensor: Tensor) -> Rows:
    """Returns the rows of a tensor that this process keeps: all of them if it is not split."""
    if not is_sharded(tensor):
        return Rows(tensor.detach(), 0, tuple(tensor.shape))
    split: Any = tensor.detach()
    each = -(-tensor.shape[0] // split.device_mesh.size())
    start = min(each * split.device_mesh.get_local_rank(), tensor.shape[0])
    return Rows(split.to_local(), start, tuple(tensor.shape))


def copy_rows_(tensor: Tensor, whole: Tensor) -> None:
    """Copies a whole tensor into one that may be split, in place: each process copies its rows."""
    mine = rows_of(tensor)
    with torch.no_grad():
        mine.local.copy_(whole if not is_sharded(tensor) else whole.narrow(0, mine.start, mine.local.shape[0]))


def gathered(tensors: Mapping[str, Tensor], ranks: DistContext) -> dict[str, Tensor]:
    """Returns whole tensors on the CPU of rank 0, and nothing in the other processes. All processes call it."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        split: Any = tensor.detach()
        with ranks.operation():
            whole = split.full_tensor() if is_sharded(tensor) else split
        if ranks.is_main:
            out[name] = whole.cpu()
    return out


def shard_(net: nn.Module, ranks: DistContext, gradient_dtype: str = "fp32") -> ShardedGradients:
    """Splits the parameters of a network over all processes, in place. All processes begin with rank 0's.

    Parts that are gathered at once are the elements of the network's `nn.ModuleList`s, and then what is left. The
    network need not fit into the device's memory, only its largest part.

    Args:
        net: The network, in the memory of the CPU or on the device. Its class becomes a subclass of its own.
        ranks: The processes, at least two.
        gradient_dtype: In which gradients are sent and summed, a key of `GRADIENT_DTYPES`.

    Returns:
        What sums the gradients.

    Raises:
        ValueError: This PyTorch is too old.
    """
    try:
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise ImportError("it cannot sum gradients")
    except ImportError as error:
        raise ValueError(f"this PyTorch ({torch.__version__}) is too old: sharding needs 2.9 or later") from error
    mesh = dist.init_device_mesh(ranks.device.type, (ranks.world_size,))
    policy = MixedPrecisionPolicy(reduce_dtype=GRADIENT_DTYPES[gradient_dtype])
    ranks.broadcast_([*net.parameters(), *net.buffers()])
    # FSDP2 refuses channels-last weights. Images stay channels last, and with them the feature maps.
    for parameter in net.parameters():
        parameter.data = parameter.data.contiguous()
    for part in [*_parts(net), net]:
        # Resharded after the forward pass, the root too: else averages copied into the weights would not be seen.
        module: Any = fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        module.set_gradient_divide_factor(1.0)  # losses are divided by the global batch already
        module.set_force_sum_reduction_for_comms(True)
    # No network of this package changes a result of its parts in place, which is what this warning is about.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    return ShardedGradients(net, ranks)


def _parts(net: nn.Module) -> Iterator[nn.Module]:
    """Elements of module lists, inner ones first; single layers stay with what calls them, which may use their weights.

    A part that is called by another way than its `forward` would not be gathered, so only lists count: their elements
    are called one after the other.
    """
    for module in reversed(list(net.modules())):
        for part in module if isinstance(module, nn.ModuleList) else ():
            if next(part.children(), None) is not None and next(part.parameters(), None) is not None:
                yield part


class ShardedGradients:
    """Sums the gradients of a network that is split over the processes; used like `GradientExchange`.

    Args:
        net: The network, see `shard_`.
        ranks: The processes.
    """

    def __init__(self, net: nn.Module, ranks: DistContext) -> None:
        self.ranks, self._net = ranks, net
        self._hook = net.register_forward_pre_hook(self._called, prepend=True)
        self._sync(False)

    def close(self) -> None:
        """Takes the hook away from the network."""
        self._hook.remove()

    def arm(self) -> None:
        """Lets the backward pass that follows sum what it and those before it have added."""
        self._sync(True)

    def finish(self, failed: bool = False) -> bool:
        """Ends an update, and returns that no process failed: see `give_up`."""
        self._sync(False)
        return failed

    def give_up(self, microbatch: int, problem: str) -> None:
        """Raises MemoryError: the others wait for this process inside the network, so a step cannot be repeated.

        Args:
            microbatch: Images at once that did not fit into memory.
            problem: The error's text.
        """
        fewer = f"set microbatch={-(-microbatch // 2)}"
        if microbatch == 1:
            fewer = "use more processes, activation checkpointing (use_checkpoint) or 16-bit precision"
        raise MemoryError(
            f"{microbatch} images at once do not fit into memory ({problem}), and a sharded run cannot try fewer: "
            f"{fewer} and repeat the command, which resumes from the last checkpoint"
        )

    def explain(self, error: BaseException) -> None:
        """Raises RankLostError if the network failed because another process died."""
        watch = self.ranks.job.watch if self.ranks.job is not None else None
        if watch is not None:
            watch.explain(error)

    def _sync(self, on: bool) -> None:
        net: Any = self._net
        net.set_requires_gradient_sync(on)

    def _called(self, *_: Any) -> None:
        """Counts a call of the network as an operation of all: a process that stands still before it is behind."""
        watch = self.ranks.job.watch if self.ranks.job is not None else None
        if watch is not None:
            watch.calls += 1
