"""Collective operations on tensors. Every process must call them in the same order."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from undiffuse.distributed.job import TIMEOUT, Job, join
from undiffuse.util.launch import Launch, launch


@dataclass(frozen=True, kw_only=True)
class DistContext:
    """Identifies this process among `world_size` processes and provides their collective operations.

    Attributes:
        rank: Number of this process.
        world_size: Number of processes.
        local_rank: Number of this process on its machine.
        device: Device of this process.
        job: The processes, watched; None for a process alone.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    job: Job | None = None

    @property
    def is_main(self) -> bool:
        """Returns whether this is rank 0, the process that writes files and reports."""
        return self.rank == 0

    def only_user(self, folder: str | os.PathLike[str], doing: str) -> AbstractContextManager[None]:
        """See `Job.only_user`."""
        return (self.job or Job(Launch())).only_user(folder, doing)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sums `tensor` over all ranks in place; every rank gets the same bits."""
        if self.world_size > 1:
            with self.operation():
                dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Returns True on every rank if `flag` is true on at least one."""
        if self.world_size == 1:
            return flag
        with self.operation():
            return bool(self.sum_(torch.tensor(float(flag), device=self.device)).item() > 0)

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenates tensors [n_r, ...] of all ranks along the first axis, in order of rank; n_r may differ."""
        if self.world_size == 1:
            return tensor
        with self.operation():
            lengths = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.world_size)]
            dist.all_gather(lengths, torch.tensor([tensor.shape[0]], dtype=torch.int64, device=self.device))
            counts = [int(n.item()) for n in lengths]
            # all_gather requires equal shapes: pad to the longest, then cut
            padded = torch.zeros((max(counts), *tensor.shape[1:]), dtype=tensor.dtype, device=self.device)
            padded[: tensor.shape[0]] = tensor
            parts = [torch.empty_like(padded) for _ in range(self.world_size)]
            dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]).to(tensor.device)

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Copies the tensors of rank 0 to every rank, in place."""
        if self.world_size == 1:
            return
        for tensor in tensors:
            sent = tensor.detach().to(self.device).contiguous()
            with self.operation():
                dist.broadcast(sent, src=0)
            with torch.no_grad():
                tensor.copy_(sent)

    def broadcast_json(self, value: Any) -> Any:
        """Returns the JSON value of rank 0 on every rank; the argument of the other ranks is ignored."""
        if self.world_size == 1:
            return value
        data = json.dumps(value).encode() if self.is_main else b""
        with self.operation():
            length = torch.tensor([len(data)], dtype=torch.int64, device=self.device)
            dist.broadcast(length, src=0)
            content = torch.zeros(int(length.item()), dtype=torch.uint8, device=self.device)
            if self.is_main:
                content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            dist.broadcast(content, src=0)
            return json.loads(bytes(content.cpu().numpy()).decode())

    def gather_json(self, value: Any) -> list[Any]:
        """Returns the JSON values of all ranks, in their order, on every rank."""
        return [value] if self.job is None else self.job.gather_json(value)

    @property
    def is_lost(self) -> bool:
        """Whether another process has died or failed, so that this one is about to end."""
        return self.job is not None and self.job.watch is not None and self.job.watch.failure is not None

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A block in which this process waits for a disk: it has a minute if another dies, and does not stand still."""
        watch = self.job.watch if self.job is not None else None
        if watch is None:
            yield
            return
        watch.saving = True
        try:
            yield
        finally:
            watch.saving = False

    def barrier(self) -> None:
        """Waits until every rank has arrived."""
        if self.world_size > 1:
            with self.operation():
                dist.all_reduce(torch.zeros(1, device=self.device))

    def operation(self) -> AbstractContextManager[None]:
        """A block with an operation of all processes: a failure is explained if one of them is lost."""
        watch = self.job.watch if self.job is not None else None
        return nullcontext() if watch is None else watch.operation()


def resolve_device(name: str | None, local_rank: int | None = None) -> torch.device:
    """Returns the device to run on.

    Args:
        name: A device for PyTorch ("cpu", "cuda", "cuda:1", "mps"). None and "auto" choose the best available: CUDA,
            then MPS, then CPU.
        local_rank: Number of this process on its machine, which chooses its GPU; by default as it was started.

    Raises:
        ValueError: The device is unknown or not available; the message names what is.
    """
    if name in (None, "auto"):
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(str(name))
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; expected auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {name!r} is not available: this PyTorch sees no CUDA device; use the device cpu")
        if local_rank is None:
            own = launch()
            alone = own.by == "srun" and torch.cuda.device_count() == 1  # Slurm can show each task its own GPU only
            local_rank = 0 if alone else own.local_rank
        index = device.index if device.index is not None else local_rank
        if index >= torch.cuda.device_count():
            raise ValueError(
                f"process {local_rank} of this machine needs CUDA device {index}, but only "
                f"{torch.cuda.device_count()} are visible: start at most one process per device (torchrun "
                "--nproc-per-node), or check CUDA_VISIBLE_DEVICES"
            )
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' is not available in this PyTorch; use the device cpu")
    return device


@contextmanager
def session(device: str | None = None) -> Iterator[DistContext]:
    """Joins the processes that were started together (see `join`) and opens their process group inside the block.

    The backend is gloo on CPU and NCCL on CUDA. An existing process group is used and not destroyed.

    Args:
        device: See `resolve_device`.

    Raises:
        ValueError: The environment is incomplete, or the device does not support several processes.
    """
    with join() as job:
        where = resolve_device(device)
        if job.world_size == 1:
            yield DistContext(device=where)
            return
        if where.type == "mps":
            raise ValueError("several processes can use cpu or cuda, not mps; use one process or the device cpu")
        ranks = DistContext(
            rank=job.rank, world_size=job.world_size, local_rank=job.launch.local_rank, device=where, job=job
        )
        if dist.is_initialized():
            yield ranks
            return
        if where.type == "cuda":
            torch.cuda.set_device(where)
        backend, store = "nccl" if where.type == "cuda" else "gloo", dist.PrefixStore(job.new_key(), job.store)
        dist.init_process_group(backend, store=store, rank=job.rank, world_size=job.world_size, timeout=TIMEOUT)
        try:
            ranks.barrier()
            yield ranks
            ranks.barrier()  # a process that ends early would look like one that died
        finally:
            dist.destroy_process_group()
