"""bfloat16 on processors that do not compute in it.

PyTorch then computes convolutions and products in bfloat16 number by number, ten to fifty times slower than in float32.
Here their inputs are rounded to bfloat16, the sums are made in float32, and results are rounded again: what processors
with bfloat16 arithmetic do as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from undiffuse.kernels.convolution import conv_3x3

_PRODUCTS: frozenset[Any] = frozenset({
    F.conv1d, F.conv2d, F.linear, F.scaled_dot_product_attention, torch.baddbmm, torch.bmm, torch.einsum, torch.matmul,
    Tensor.matmul, Tensor.__matmul__, Tensor.bmm,
})  # fmt: skip


class EmulatedBFloat16(TorchFunctionMode):
    """Inside the block, products and convolutions in bfloat16 are computed in float32 from rounded inputs.

    It acts on calls under autocast to bfloat16, and on inputs that are bfloat16 already. Gradients follow.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func not in _PRODUCTS or not _is_bfloat16((*args, *given.values())):
            return func(*args, **given)
        with torch.autocast("cpu", enabled=False):
            args, given = tuple(map(_rounded, args)), {name: _rounded(value) for name, value in given.items()}
            if func is F.conv2d and _is_3x3(args, given):
                weight, bias = args[1], given.get("bias", args[2] if len(args) > 2 else None)
                return conv_3x3(args[0], weight, bias).bfloat16()
            return func(*args, **given).bfloat16()


def _is_bfloat16(values: tuple[Any, ...]) -> bool:
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return any(isinstance(value, Tensor) and value.dtype == torch.bfloat16 for value in values)


def _rounded(value: Any) -> Any:
    """Returns a tensor's nearest bfloat16 numbers in float32; anything else as it is."""
    if isinstance(value, Tensor) and value.dtype in (torch.float32, torch.bfloat16):
        return value.bfloat16().float()
    return value


def _is_3x3(args: tuple[Any, ...], given: dict[str, Any]) -> bool:
    """Returns whether a call of conv2d, as the library's layers make it, is one of stride 1 and padding 1."""
    plain = len(args) <= 3 and set(given) <= {"bias", "padding"} and given.get("padding") in (1, (1, 1))
    return plain and args[0].ndim == 4 and tuple(args[1].shape[2:]) == (3, 3)
