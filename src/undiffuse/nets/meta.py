"""Builds networks without weights: their parameters have names and shapes, and take neither memory nor time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

Network = TypeVar("Network")


def build_on_meta(build: Callable[[], Network]) -> Network:
    """Build a network with its parameters on the device "meta"; no random numbers are drawn.

    Args:
        build: A function that builds the network.

    Returns:
        The network, to count or compare its parameters, or to give it weights by `load_state_dict(..., assign=True)`.
    """
    with torch.device("meta"), _LeftEmpty():
        return build()


class _LeftEmpty(TorchFunctionMode):
    """Skips all of `torch.nn.init`.

    There is nothing to fill, and on this device torch draws normal numbers through its compiler, whose import takes
    most of a second.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
