"""Gradients are summed over processes during the backward pass, exactly, and whatever one of them lacks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from support.training_runs import Processes
from undiffuse.distributed import DistContext, GradientExchange, session

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from a server")


class Net(nn.Module):
    """Three buckets, a convolution that lies channels last, and parameters that not every pass uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 600, 3).to(memory_format=torch.channels_last)
        self.wide = nn.Linear(600, 700)
        self.other = nn.Linear(600, 700)
        self.never = nn.Linear(600, 5)

    def forward(self, x: Tensor, use_other: bool) -> Tensor:
        hidden = self.first(x).mean((2, 3))
        out = self.wide(hidden)
        return (out + self.other(hidden) if use_other else out).square().mean(1)


def images() -> Tensor:
    return torch.arange(5 * 25.0).reshape(5, 1, 5, 5) / 100


def expected() -> Iterator[Tensor | None]:
    """The gradient of the mean of all five images; only the second process uses `other`."""
    net = Net()
    (torch.cat([net(images()[:3], False), net(images()[3:], True)]).sum() / 5).backward()
    return (p.grad for p in net.parameters())


def exchange(folder: str, dtype: str) -> None:
    """Three images in parts of two and one here, two in one part there; one process fails in the second of three."""
    with session("cpu") as ranks:
        net, events = Net(), []
        sums = GradientExchange(net.parameters(), ranks, dtype)
        mine, use_other = (images()[:3], False) if ranks.is_main else (images()[3:], True)
        send = sums._send
        sums._send = lambda bucket: (events.append("sent"), send(bucket))[1]  # type: ignore
        for attempt in range(3):
            net.zero_grad(set_to_none=True)
            events.clear()
            pieces = mine.split(2)
            for number, piece in enumerate(pieces):
                if number + 1 == len(pieces):
                    sums.arm()
                (net(piece, use_other).sum() / 5).backward()
                events.append("backward")
            failed = attempt == 1 and ranks.rank == 1
            if failed:
                net.zero_grad(set_to_none=True)
            assert sums.finish(failed) is (attempt == 1)
            assert attempt != 1 or all(p.grad is None for p in net.parameters())
        found = {"gradients": [p.grad for p in net.parameters()], "events": events, "buckets": len(sums._buckets)}
        torch.save(found, Path(folder) / f"{ranks.rank}.pt")


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-6), ("bf16", 1e-2)])
def test_the_sums_are_the_gradients_of_the_whole_batch(tmp_path: Path, dtype: str, tolerance: float) -> None:
    assert Processes(exchange, str(tmp_path), dtype, world_size=2).join() == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for a, b, whole, parameter in zip(
        first["gradients"], second["gradients"], expected(), Net().parameters(), strict=True
    ):
        if whole is None:  # nobody used it: AdamW must not touch it
            assert a is None and b is None
            continue
        assert torch.equal(a, b) and a.dtype == torch.float32
        assert a.stride() == parameter.stride()
        assert float((a - whole).abs().max()) <= tolerance * float(whole.abs().max())
    if dtype == "fp32":  # the bucket with what only one process uses comes last, and holds up no other
        assert first["events"] == ["backward", "sent", "backward", "sent"]
        assert second["events"] == ["sent", "backward", "sent"]


def test_alone_it_does_nothing() -> None:
    net = Net()
    sums = GradientExchange(net.parameters(), DistContext())
    sums.arm()
    net(images(), True).sum().backward()
    before = [p.grad for p in net.parameters()]
    assert sums.finish() is False and sums.finish(failed=True) is True
    assert all(a is b for a, b in zip(before, (p.grad for p in net.parameters()), strict=True))
