"""Sums gradients over all processes while the backward pass is still at work.

Parameters are kept in buckets, at first in the reverse order of their registration and from the second update on in the
order in which gradients appeared in rank 0, so that a parameter without one holds up no other. A bucket is sent when
its last gradient is there and all buckets before it are on their way: every process sends the same buckets in the same
order. A process that runs out of memory sends zeros for what it lacks, so that no other waits for it, and all learn of
it in the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from undiffuse.distributed.collectives import DistContext

__all__ = ["GRADIENT_DTYPES", "GradientExchange"]

GRADIENT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_BUCKETS = 8
_BYTES = (2**20, 25 * 2**20)  # of a bucket: the link's full speed, and something left to send meanwhile


class _Bucket:
    """Parameters whose gradients are sent together."""

    def __init__(self) -> None:
        self.parameters: list[nn.Parameter] = []
        self.missing: set[int] = set()
        self.flat: Tensor | None = None
        self.work: Any = None


class GradientExchange:
    """Sums the gradients of a network over all processes.

    Use it once for each update: `arm` before the last backward pass, and then `finish`. Alone, both do nothing. A
    gradient that was sent is no longer in its parameter until `finish` puts the sum there.

    Args:
        parameters: Those of the network; the same in every process.
        ranks: The processes.
        dtype: In which gradients are sent and summed, a key of `GRADIENT_DTYPES`; they become float32 again.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: DistContext, dtype: str = "fp32") -> None:
        self.ranks, self._dtype = ranks, GRADIENT_DTYPES[dtype]
        self._parameters = [p for p in parameters if p.requires_grad]
        self._buckets: list[_Bucket] = []
        self._of: dict[int, _Bucket] = {}
        self._present: list[bool] = []
        self._armed = False
        self._sent = 0
        self._appeared: dict[int, None] | None = {}  # in the first exchange, the parameters in order
        self._hooks: list[Any] = []
        if ranks.world_size > 1:
            self._fill_buckets(self._parameters[::-1])
            self._hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in self._parameters]

    def close(self) -> None:
        """Takes the hooks away from the parameters."""
        for hook in self._hooks:
            hook.remove()

    def _fill_buckets(self, parameters: list[nn.Parameter]) -> None:
        self._buckets = []
        total = sum(p.numel() for p in self._parameters) * self._dtype.itemsize
        limit = min(max(total // _BUCKETS, _BYTES[0]), _BYTES[1])
        size = limit
        for parameter in parameters:
            if size >= limit:
                self._buckets.append(_Bucket())
                size = 0
            bucket = self._buckets[-1]
            bucket.parameters.append(parameter)
            self._of[id(parameter)] = bucket
            size += parameter.numel() * self._dtype.itemsize

    def arm(self) -> None:
        """Begins an exchange: gradients are sent as soon as the backward pass that follows has added to them."""
        self._sent, self._armed = 0, True
        self._present = []
        for bucket in self._buckets:
            bucket.missing = {id(parameter) for parameter in bucket.parameters}

    def explain(self, error: BaseException) -> None:
        """Raises RankLostError if `error` means that another process died: never, as none waits before `finish`."""

    def give_up(self, microbatch: int, problem: str) -> None:
        """Raises MemoryError if a step that did not fit into memory cannot be repeated with fewer images at once."""

    def finish(self, failed: bool = False) -> bool:
        """Sends what is left and waits for all sums, which become the gradients.

        A parameter keeps no gradient if it has none in any process.

        Args:
            failed: Whether this process could not compute its gradients; it must have let go of those it has.

        Returns:
            Whether some process failed. Then no parameter has a gradient.
        """
        ranks = self.ranks
        if ranks.world_size == 1:
            return failed
        if not self._armed:
            self.arm()
        self._armed = False
        while self._sent < len(self._buckets):
            self._send(self._buckets[self._sent])
        flags = torch.tensor([failed, *self._present], dtype=torch.float32, device=ranks.device)
        with ranks.operation():
            for bucket in self._buckets:
                bucket.work.wait()
            dist.all_reduce(flags)
            some_failed, *present = (flags > 0).tolist()
        number = 0
        for bucket in self._buckets:
            assert bucket.flat is not None
            for parameter, view in zip(bucket.parameters, self._views(bucket), strict=True):
                parameter.grad = view.to(parameter.dtype) if present[number] and not some_failed else None
                number += 1
            bucket.flat = bucket.work = None
        if self._appeared is not None and not some_failed:
            self._reorder(self._appeared)
        return bool(some_failed)

    def _reorder(self, appeared: dict[int, None]) -> None:
        """Fills the buckets anew in the order in which gradients appeared in rank 0, those without one last."""
        numbers = {id(parameter): number for number, parameter in enumerate(self._parameters)}
        first = self.ranks.broadcast_json([numbers[key] for key in appeared])
        rest = [number for number in reversed(range(len(self._parameters))) if number not in set(first)]
        self._fill_buckets([self._parameters[number] for number in [*first, *rest]])
        self._appeared = None

    def _arrived(self, parameter: Tensor) -> None:
        """Called by the backward pass when it has added to a gradient."""
        if not self._armed:
            return
        bucket = self._of[id(parameter)]
        if bucket.work is not None:
            raise RuntimeError(
                "a parameter got a gradient twice in one backward pass, after the first was sent to the other "
                "processes: call backward once in a loss of your own"
            )
        bucket.missing.discard(id(parameter))
        if self._appeared is not None:
            self._appeared[id(parameter)] = None
        while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
            self._send(self._buckets[self._sent])

    def _send(self, bucket: _Bucket) -> None:
        """Moves the gradients of a bucket into one tensor, zeros where there is none, and begins to sum it."""
        size = sum(parameter.numel() for parameter in bucket.parameters)
        bucket.flat = torch.empty(size, dtype=self._dtype, device=self.ranks.device)
        for parameter, view in zip(bucket.parameters, self._views(bucket), strict=True):
            self._present.append(parameter.grad is not None)
            view.zero_() if parameter.grad is None else view.copy_(parameter.grad)
            parameter.grad = None
        with self.ranks.operation():
            bucket.work = dist.all_reduce(bucket.flat, async_op=True)
        self._sent += 1

    def _views(self, bucket: _Bucket) -> list[Tensor]:
        """The part of each parameter in a bucket, laid out in memory as the parameter is."""
        assert bucket.flat is not None
        parts = bucket.flat.split([parameter.numel() for parameter in bucket.parameters])
        return [
            part.as_strided(p.shape, p.stride(), part.storage_offset()) if _is_dense(p) else part.view(p.shape)
            for part, p in zip(parts, bucket.parameters, strict=True)
        ]


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor fills its memory without gaps, in the usual order or channels last."""
    return tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
