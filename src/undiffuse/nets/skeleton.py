"""A network without weights: its parameters have names and shapes, and take neither memory nor time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

Network = TypeVar("Network")


def skeleton(build: Callable[[], Network]) -> Network:
    """The network that `build` makes, its parameters on the device "meta": to count or compare them, or to be given
    weights by `load_state_dict(..., assign=True)`. Nothing is drawn.
    """
    with torch.device("meta"), _LeftEmpty():
        return build()


class _LeftEmpty(TorchFunctionMode):
    """Leaves out all of `torch.nn.init`.

    There is nothing to fill, and on this device torch fills with normal numbers by way of its compiler, whose import
    takes most of a second.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
