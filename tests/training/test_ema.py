"""Moving averages of weights against their closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from undiffuse.ema import EMA


def moving_net() -> tuple[nn.Linear, torch.Tensor]:
    net = nn.Linear(3, 2)
    path = torch.randn((12, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(path[0])
    return net, path


def test_closed_form_without_warm_up() -> None:
    """a_n = d^n w_0 + sum_k (1 - d) d^(n-1-k) w_{k+1}."""
    net, path = moving_net()
    ema = EMA(net, [0.8, 0.5], warmup=False)
    steps = len(path) - 1
    for n in range(steps):
        with torch.no_grad():
            net.weight.copy_(path[n + 1])
        ema.update(n)
    for name, d in (("0.8", 0.8), ("0.5", 0.5)):
        powers = torch.tensor([(1 - d) * d ** (steps - 1 - k) for k in range(steps)], dtype=torch.float64)
        expected = d**steps * path[0] + (powers[:, None, None] * path[1:]).sum(0)
        torch.testing.assert_close(ema.weights(name)["weight"].double(), expected, atol=1e-6, rtol=1e-6)


def test_warm_up_follows_its_formula() -> None:
    net, path = moving_net()
    ema = EMA(net, [0.9999])
    expected = path[0].clone()
    for n in range(len(path) - 1):
        d = min(0.9999, (1 + n) / (10 + n))
        assert ema.decay_at("0.9999", n) == d
        expected = d * expected + (1 - d) * path[n + 1]
        with torch.no_grad():
            net.weight.copy_(path[n + 1])
        ema.update(n)
    torch.testing.assert_close(ema.weights("0.9999")["weight"].double(), expected, atol=1e-6, rtol=1e-6)
    assert ema.decay_at("0.9999", 10**6) == 0.9999
    # without warm-up a short run would still be its initialisation: that is what the warm-up is for
    assert (ema.weights("0.9999")["weight"] - path[0]).abs().max() > 0.1


def test_applied_swaps_and_restores() -> None:
    net, path = moving_net()
    ema = EMA(net, [0.9])
    with torch.no_grad():
        net.weight.copy_(path[1])
    before = net.weight.detach().clone()
    with ema.applied("0.9"):
        assert torch.equal(net.weight, path[0].float())
    assert torch.equal(net.weight, before)
    with pytest.raises(ZeroDivisionError), ema.applied("0.9"):
        _ = 1 / 0
    assert torch.equal(net.weight, before)


def test_averages_are_float32_and_named_as_in_files() -> None:
    net = nn.Linear(2, 2).to(torch.bfloat16)
    ema = EMA(net, [0.9999, 0.5])
    assert set(ema.tensors()) == {f"ema.{d}.{p}" for d in ("0.9999", "0.5") for p in ("weight", "bias")}
    assert all(t.dtype == torch.float32 for t in ema.tensors().values())


@pytest.mark.parametrize(("decays", "message"), [((1.0,), "0.9999"), ((-0.1,), "0.9999"), ((0.9, 0.9), "distinct")])
def test_bad_decays(decays: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMA(nn.Linear(1, 1), decays)


def test_unknown_average_says_which_there_are() -> None:
    with pytest.raises(ValueError, match=r"'0.5'; there are: 0.9"):
        EMA(nn.Linear(1, 1), [0.9]).weights("0.5")
