"""Names for stretches of the program, put around functions of the library while it is profiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import record_function

from undiffuse.ema import EMA
from undiffuse.nets import blocks, packing
from undiffuse.nets.runner import NetworkRunner
from undiffuse.noise import NoiseSource
from undiffuse.training import engine
from undiffuse.training.run import Run
from undiffuse.training.tasks import DiffusionTask

PREFIX = "scope: "
_FUNCTIONS: tuple[tuple[Any, str, str], ...] = (
    (blocks, "norm_act", "norm blocks"),
    (packing, "filter_3x3", "convolutions"),
    (blocks, "multi_head_attention", "attention"),
    (NetworkRunner, "__call__", "network"),
    (NoiseSource, "normal", "noise"),
    (NoiseSource, "uniform", "noise"),
    (torch.Tensor, "backward", "backward"),
    (DiffusionTask, "losses", "objective"),
    (engine, "gradient_norm", "gradient norm"),
    (engine, "binned_sums", "statistics"),
    (Run, "inputs", "inputs"),
    (torch.optim.AdamW, "step", "optimiser"),
    (EMA, "update", "average"),
)


def named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function inside a scope."""

    @functools.wraps(function)
    def run(*args: Any, **keywords: Any) -> Any:
        with record_function(PREFIX + name):
            return function(*args, **keywords)

    return run


@contextmanager
def scopes() -> Iterator[None]:
    """Inside the block the library's functions have their names."""
    with ExitStack() as stack:
        for owner, attribute, name in _FUNCTIONS:
            stack.enter_context(patch.object(owner, attribute, named(getattr(owner, attribute), name)))
        yield
