"""bfloat16 on a processor that does not compute in it: what float32 gives, rounded, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.nets.test_prepared_networks import CONFIGS
from undiffuse.nets import runner as runners
from undiffuse.nets.emulation import EmulatedBFloat16
from undiffuse.nets.runner import NetworkRunner, prepare_for_inference


@pytest.fixture(autouse=True)
def no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "computes_bfloat16", lambda: False)


def exact(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """The function of inputs rounded to bfloat16, in float64."""
    return function(*(value.bfloat16().double() for value in inputs))


CALLS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "3x3": (lambda x, w, b: F.conv2d(x, w, b, padding=1), [(2, 32, 6, 6), (32, 32, 3, 3), (32,)]),
    "3x3 without bias": (lambda x, w: F.conv2d(x, w, padding=(1, 1)), [(2, 32, 6, 6), (32, 32, 3, 3)]),
    "stride 2": (lambda x, w: F.conv2d(x, w, None, 2, 1), [(2, 4, 6, 6), (4, 4, 3, 3)]),
    "no padding": (F.conv2d, [(2, 4, 6, 6), (4, 4, 3, 3)]),
    "1x1": (F.conv2d, [(2, 4, 6, 6), (8, 4, 1, 1), (8,)]),
    "conv1d": (F.conv1d, [(2, 4, 6), (8, 4, 1), (8,)]),
    "linear": (F.linear, [(3, 16), (8, 16), (8,)]),
    "bmm": (torch.bmm, [(2, 3, 4), (2, 4, 5)]),
    "operator": (lambda a, b: a @ b, [(2, 3, 4), (2, 4, 5)]),
    "attention": (F.scaled_dot_product_attention, [(1, 2, 5, 8)] * 3),
}


@pytest.mark.parametrize("under_autocast", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_products_of_rounded_inputs(name: str, under_autocast: bool) -> None:
    function, shapes = CALLS[name]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    doubles = [value.detach().bfloat16().double().requires_grad_() for value in inputs]
    given = inputs if under_autocast else [value.bfloat16() for value in inputs]
    with torch.autocast("cpu", torch.bfloat16, enabled=under_autocast), EmulatedBFloat16():
        out = function(*given)
    expected = function(*doubles)
    assert out.dtype == torch.bfloat16
    assert (out - expected).abs().max() < 5e-3 * expected.abs().max()
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    found = torch.autograd.grad((out * weights).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights.bfloat16()).sum(), doubles)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() < 2e-2 * other.abs().max()


def test_other_precisions_are_left_alone() -> None:
    x = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    weight = torch.linspace(-1, 1, 27).view(1, 3, 3, 3)
    with EmulatedBFloat16():
        assert torch.equal(F.conv2d(x, weight, padding=1), torch.conv2d(x, weight, padding=1))
        assert F.linear(x.double(), torch.eye(4).double()).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
            assert F.linear(x, torch.eye(4)).dtype == torch.float32


@pytest.mark.parametrize("name", CONFIGS)
def test_networks(name: str) -> None:
    torch.manual_seed(0)
    net: Any = CONFIGS[name].build()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    x, t, cpu = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 700.0]), torch.device("cpu")
    results = {}
    for way in ("fp32", "emulated", "PyTorch"):
        net.zero_grad(set_to_none=True)
        runner = NetworkRunner(net, "fp32" if way == "fp32" else "bf16", cpu)
        runner._emulates = way == "emulated"
        out = runner(x, t)
        out.square().mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        results[way] = out.detach(), gradient
    apart = {
        way: [
            float((one - exact).norm() / exact.norm()) for one, exact in zip(results[way], results["fp32"], strict=True)
        ]
        for way in ("emulated", "PyTorch")
    }
    for ours, theirs in zip(apart["emulated"], apart["PyTorch"], strict=True):
        assert 1e-4 < ours < 1.3 * theirs  # as inexact as bfloat16 is, and no more
    with torch.no_grad():
        ready = prepare_for_inference(net, "bf16", "cpu", gradient=True)(x, t)
    assert float((ready - results["fp32"][0]).norm() / results["fp32"][0].norm()) < 1.3 * apart["PyTorch"][0]


def test_it_is_not_used_where_bfloat16_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    net = CONFIGS["adm"].build()
    assert NetworkRunner(net, "bf16", torch.device("cpu"))._emulates
    assert not NetworkRunner(net, "fp32", torch.device("cpu"))._emulates
    monkeypatch.setattr(runners, "computes_bfloat16", lambda: True)
    assert not NetworkRunner(net, "bf16", torch.device("cpu"))._emulates
