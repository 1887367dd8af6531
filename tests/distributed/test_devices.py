"""Collective operations get tensors of the device, as NCCL demands: seen with tensors of a GPU that need none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from undiffuse import distributed
from undiffuse.distributed import DistContext, GradientExchange
from undiffuse.distributed.job import Job
from undiffuse.training import engine
from undiffuse.training.optim import gradient_norm
from undiffuse.util.launch import Launch

GPU = torch.device("cuda", 0)


class Done:
    """A finished operation."""

    def wait(self) -> None:
        """Nothing to wait for."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Tensor]]]:
    """The tensors of all collective operations, none of which does anything."""
    found: list[tuple[str, Tensor]] = []

    def note(name: str) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            tensors = [t for a in arguments for t in (a if isinstance(a, list) else [a]) if isinstance(t, Tensor)]
            found.extend((name, tensor) for tensor in tensors)
            return Done() if options.get("async_op") else None

        return operation

    for name in ("all_reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor"):
        monkeypatch.setattr(dist, name, note(name))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield found


def on_gpu() -> Tensor:
    return torch.ones(3, 2, device=GPU)


def exchange(ranks: DistContext) -> None:
    GradientExchange([nn.Parameter(on_gpu()), nn.Parameter(on_gpu())], ranks, "bf16").finish()


CASES: dict[str, Callable[[DistContext], Any]] = {
    "any": lambda ranks: ranks.any(True),
    "gather": lambda ranks: ranks.gather(torch.ones(3, 2)),
    "broadcast_json": lambda ranks: ranks.broadcast_json({"a": 1}),
    "barrier": lambda ranks: ranks.barrier(),
    "gradients": exchange,
    "agreement": lambda ranks: engine._agree(ranks, 1.0, False, torch.zeros(2, 5, dtype=torch.float64)),
    "norm": lambda ranks: gradient_norm([on_gpu()], ranks),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_get_tensors_of_the_device(name: str, seen: list[tuple[str, Tensor]]) -> None:
    ranks = DistContext(rank=0, world_size=2, device=GPU)
    with contextlib.suppress(DataDependentOutputException):  # where numbers are read back, which there are none of
        CASES[name](ranks)
    assert seen or name == "norm"  # a network that is not split needs no exchange for its norm
    assert [what for what, tensor in seen if tensor.device != GPU] == []


def test_gpus_use_nccl_and_their_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: opened.update(device=device))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **how: opened.update(backend=backend, **how))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(DistContext, "barrier", lambda self: None)
    monkeypatch.setenv("LOCAL_RANK", "3")
    for key, value in {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "h", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, value)

    @contextlib.contextmanager
    def joined() -> Iterator[Job]:
        yield Job(Launch(rank=3, world_size=4, local_rank=3, by="torchrun"), dist.HashStore())

    monkeypatch.setattr(distributed.collectives, "join", joined)
    with distributed.session() as ranks:
        assert ranks.device == torch.device("cuda", 3) == opened["device"]
    assert (opened["backend"], opened["rank"], opened["world_size"]) == ("nccl", 3, 4)
