"""The solver of the probability flow's likelihood by itself: its tolerance, what it counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undiffuse.likelihood.runge_kutta import integrate


def test_the_tolerance_is_relative_where_numbers_are_large() -> None:
    def slope(x: Tensor, u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.ones(len(x), 1, dtype=torch.float64)

    found = integrate(slope, torch.tensor([[1.0], [1e4]], dtype=torch.float64), 0.0, 10.0, 1e-6)
    assert found.x.flatten().tolist() == pytest.approx([math.exp(10), 1e4 * math.exp(10)], rel=1e-4)
    assert found.nfe[1] < 1.2 * found.nfe[0]
    # and it is of an image as a whole: one number that moves among a hundred takes fewer steps than one alone
    one = torch.zeros(1, 100, dtype=torch.float64)
    one[0, 3] = 1
    among = integrate(slope, one, 0.0, 10.0, 1e-6)
    assert among.nfe[0] < 0.9 * found.nfe[0]


def test_the_last_short_step_is_not_called_forced() -> None:
    def slope(x: Tensor, u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.ones(len(x), 1, dtype=torch.float64)

    found = integrate(slope, torch.ones(2, 1, dtype=torch.float64), 0.0, 1.0, 1e-9)
    assert found.x.flatten().tolist() == pytest.approx([math.e] * 2, rel=1e-8)
    assert found.q.flatten().tolist() == pytest.approx([1.0] * 2)
    assert found.forced.tolist() == [0, 0]
