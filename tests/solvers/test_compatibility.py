"""Every prediction x variance x solver x guidance runs and agrees with its oracle, or is refused with a reason."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import compatibility
from support.compatibility import Cell, cells, outcome
from undiffuse.guidance import ClassifierFree
from undiffuse.solvers.registry import SOLVERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
# Solvers that look at levels between those of the path, where a network that predicts the previous mean has no answer.
LEAVE = {"dpm-2", "dpmpp-2s", "dpmpp-3m", "deis", "ab3", "pndm", "restart", "bosh3"}
STRIDE = 23  # of the cells, every so many-th by default, prime to the length of every axis; all in the slow test


def reason(cell: Cell) -> str | None:
    """Why a cell must be refused, as a part of the message; None where it must run."""
    if cell.preconditioning != "chain":
        if cell.variance in ("learned_range", "learned"):
            return "is learned from the bound, a sum over the steps of a chain"
        if cell.kind == "previous_mean":
            return "is the mean of a chain's step"
        if cell.preconditioning == "flow" and cell.kind in ("eps", "score"):
            return "says nothing at t = 1, which is pure noise"
    off = cell.place == "between" or cell.solver in LEAVE
    at_mean = cell.guidance == "classifier at the mean" and cell.solver != "ddpm"
    if cell.kind == "previous_mean" and off:
        if at_mean and cell.place == "trained":
            return "guidance at the mean requires ancestral sampling"  # asked before the path is left
        return "a predicted mean is defined only at the trained steps"
    if at_mean:
        return "guidance at the mean requires ancestral sampling"
    if cell.variance == "learned" and cell.solver == "ddpm" and cell.place == "between":
        return "a directly learned variance is defined only at the trained steps"
    return None


def check(some: list[Cell]) -> Counter[str]:
    """How often each outcome came; AssertionError where one is not as it should be."""
    found: Counter[str] = Counter()
    for cell in some:
        why, message = reason(cell), outcome(cell)
        assert (message == "") if why is None else (why in message), (cell, why, message)
        found["runs" if why is None else why] += 1
    return found


EVERY = list(cells())


def test_a_part_of_the_matrix() -> None:
    found = check(EVERY[::STRIDE])
    assert found["runs"] > 300
    assert len(found) == 7  # all reasons came up
    some = EVERY[::STRIDE]
    for axis in ("preconditioning", "kind", "variance", "solver", "guidance", "place"):
        assert {getattr(cell, axis) for cell in some} == {getattr(cell, axis) for cell in EVERY}


@pytest.mark.slow
def test_the_whole_matrix_and_its_page() -> None:
    found = check(EVERY)
    assert sum(found.values()) == len(EVERY) == 6 * 7 * 5 * len(SOLVERS) * 7 * 2
    assert compatibility.page(EVERY, reason) == PAGE.read_text(encoding="utf-8")


def test_the_page_says_what_is_refused() -> None:
    """The page is made from `reason`, to which the other tests hold every cell."""
    assert compatibility.page(EVERY, reason) == PAGE.read_text(encoding="utf-8")


def test_a_wrong_coefficient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is sharp enough to see a mistake of a few per cent in a guidance, a conversion and a variance."""
    cell = Cell("chain", "v", "learned_range", "dpmpp-2m", "cfg", "trained")
    ancestral = Cell("chain", "v", "learned_range", "ddpm", "none", "trained")
    check([cell, ancestral])
    call = ClassifierFree.weight
    with monkeypatch.context() as patch:
        patch.setattr(ClassifierFree, "weight", lambda self, level: 1.03 * call(self, level))
        with pytest.raises(AssertionError, match=re.escape("cfg")):
            outcome(cell)
    with monkeypatch.context() as patch:
        image = property(lambda self: 1.02 * (self._alpha * self.x - self._sigma * self.v))
        patch.setattr(compatibility.Prediction, "x0", image)
        with pytest.raises(AssertionError, match="dpmpp-2m"):
            outcome(cell)
    with monkeypatch.context() as patch:
        patch.setattr(compatibility.Perfect, "__call__", _with_fraction(0.4, compatibility.Perfect.__call__))
        with pytest.raises(AssertionError, match="ddpm"):
            outcome(ancestral)


def _with_fraction(fraction: float, call: Any) -> Any:
    """The network with another output for the variance."""

    def changed(self: Any, seen: Tensor, told: Tensor, y: Tensor | None = None) -> Tensor:
        out = call(self, seen, told, y)
        return torch.cat([out[:, :1], torch.full_like(out[:, 1:], 2 * fraction - 1)], dim=1)

    return changed
