"""Compiled 3x3 convolutions by Winograd's minimal filtering, with less than half of the multiplications."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.kernels import matrix_unit
from undiffuse.kernels.allocator import workspace
from undiffuse.kernels.autotune import PRECISIONS, Plan, current_plan
from undiffuse.kernels.choice import OPERATIONS, is_traced, library
from undiffuse.kernels.norm_act import LANES

PANEL = 32  # a constant of the C source
PLAIN = ([1, 1], [1, 1], [1, 1], 1)
"""Padding, stride, dilation and groups of these convolutions, as oneDNN's operations take them."""
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def conv_3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns conv(x) + bias [B, out, H, W] with stride 1 and padding 1. It can be differentiated twice.

    The compiled kernel computes float32 and bfloat16 inputs on a CPU, including autocast, and their gradients with
    respect to x, where it is the fastest (see `kernels.autotune`). PyTorch computes everything else.

    Args:
        x: Input [B, in, H, W].
        weight: Filters [out, in, 3, 3].
        bias: Bias [out], or None.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if dtype not in _NAMES or x.device.type != "cpu" or x.ndim != 4 or is_traced():
        return F.conv2d(x, weight, bias, padding=1)
    plan = current_plan()
    way = implementation("conv3x3", plan, x.shape, weight.shape[0], dtype)
    if way == "torch":
        return F.conv2d(x, weight, bias, padding=1)
    x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (x, weight, bias)):
        return _Conv3x3.apply(x, weight, bias, plan, way)
    return _convolved(way, x, weight, bias)


def _convolved(way: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv(x) + bias by one of our kernels."""
    if way == "amx":
        return matrix_unit.convolution(x, matrix_unit.pack(weight), weight.shape[0], bias)
    return filter_3x3(x, taps(weight), bias)


def _input_gradient(way: str, grad: Tensor, weight: Tensor) -> Tensor:
    if way == "amx":
        return matrix_unit.convolution(grad, matrix_unit.pack(weight, turned=True), weight.shape[1], None)
    return filter_3x3(grad, turned(weight), None)


def _weight_gradient(way: str, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    return matrix_unit.weight_gradient(x, grad) if way == "amx" else weight_gradient(x, grad)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, way: str) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.plan = plan  # gradients are computed outside the block that uses it
        return _convolved(way, x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():  # for a second derivative
            with torch.enable_grad():
                y = F.conv2d(x, weight, None if bias is None else bias.to(x.dtype), padding=1)
            wanted = [part for part, needed in zip((x, weight, bias), needs, strict=False) if needed]
            found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
            return (*(next(found) if needed else None for needed in needs[:3]), None, None)
        grad = grad.to(x.dtype)
        by = implementation("conv3x3_grad", ctx.plan, grad.shape, x.shape[1], x.dtype) if needs[0] else "torch"
        fast = by != "torch"
        wanted = needs[1] or needs[2]
        way = implementation("conv3x3_weight", ctx.plan, x.shape, grad.shape[1], x.dtype) if wanted else "torch"
        light = way != "torch"
        gx = gw = gb = None
        if (needs[0] and not fast) or (wanted and not light):
            gx, gw, gb = torch.ops.aten.convolution_backward(
                grad, x, weight, None if bias is None else bias.shape, (1, 1), (1, 1), (1, 1), False, (0, 0), 1,
                (needs[0] and not fast, needs[1] and not light, needs[2] and not light),
            )  # fmt: skip
        if fast:
            gx = _input_gradient(by, grad, weight)
        if light:
            parts = _weight_gradient(way, x, grad)
            gw, gb = (part if needed else None for part, needed in zip(parts, needs[1:3], strict=True))
            gw = None if gw is None else gw.to(weight.dtype)
        return gx, gw, None if gb is None else gb.to(bias.dtype), None, None


def implementation(
    operation: str, plan: Plan, size: torch.Size | Sequence[int], out_channels: int, dtype: torch.dtype
) -> str:
    """Returns the implementation that a plan has for an operation.

    Args:
        operation: A key of `OPERATIONS`.
        plan: The plan.
        size: Shape of the input [B, C, H, W].
        out_channels: Channels of the output.
        dtype: The precision.

    Returns:
        "winograd" (`filter_3x3`), "amx" (`matrix_unit`), "packed" (oneDNN with packed weights) or "torch" (PyTorch's
        convolution).
    """
    batch, channels, height, width = size
    ways = possible(operation, channels, out_channels, dtype)
    if 0 in size or not suits_winograd(channels, out_channels, dtype):
        return "packed" if "packed" in ways else "torch"
    if operation == "conv3x3_weight" and len(ways) == 1:
        return ways[0]
    key = (operation, PRECISIONS[dtype], channels, out_channels, height, width)
    return plan.choose(key, batch, ways, _trial(operation, dtype))


def possible(operation: str, channels: int, out_channels: int, dtype: torch.dtype) -> tuple[str, ...]:
    """Returns the implementations of an operation that are possible here."""
    weights = operation == "conv3x3_weight"
    here = {
        "winograd": has_weight_gradient(channels, out_channels, dtype) if weights else _function(dtype) is not None,
        "amx": matrix_unit.suits(channels, out_channels, dtype),
    }
    return tuple(way for way in OPERATIONS[operation] if here.get(way, True))


def has_winograd(channels: int, out_channels: int, dtype: torch.dtype) -> bool:
    """Returns whether there is a compiled convolution between these numbers of channels in that precision."""
    return suits_winograd(channels, out_channels, dtype) and _function(dtype) is not None


def has_weight_gradient(channels: int, out_channels: int, dtype: torch.dtype) -> bool:
    """Returns whether there is a compiled gradient of the weights, see `weight_gradient`."""
    suits = dtype == torch.float32 and not channels % LANES and not out_channels % PANEL
    return suits and _weights() is not None


def weight_gradient(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of a convolution's weights [out, in, 3, 3] and bias [out], for stride 1 and padding 1.

    They do not depend on the number of threads.

    Args:
        x: Input [B, in, H, W] in float32.
        grad: Gradient with respect to the output [B, out, H, W], likewise.

    Raises:
        ValueError: There is no kernel for this precision or shape.
    """
    batch, channels, height, width = x.shape
    out, lib = grad.shape[1], library()
    if lib is None or not has_weight_gradient(channels, out, x.dtype) or grad.dtype != x.dtype:
        raise ValueError(f"no compiled gradient for {channels} and {out} channels in {x.dtype} and {grad.dtype}")
    x, grad = (part.contiguous(memory_format=torch.channels_last) for part in (x, grad))
    found, bias = torch.empty((3, 3, channels, out), dtype=x.dtype), torch.empty(out, dtype=x.dtype)
    work = workspace(int(lib.undiffuse_weights_space(channels, out)))
    lib.undiffuse_weights_f32(
        x.data_ptr(), grad.data_ptr(), found.data_ptr(), bias.data_ptr(), work.data_ptr(), batch, height, width,
        channels, out, torch.get_num_threads(),
    )  # fmt: skip
    return found.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last), bias


def _weights() -> ctypes._NamedFuncPointer | None:
    lib = library()
    return None if lib is None else getattr(lib, "undiffuse_weights_f32", None)


def suits_winograd(channels: int, out_channels: int, dtype: torch.dtype) -> bool:
    """Returns whether the compiled convolution, where there is one, takes such weights."""
    return dtype in _NAMES and not channels % PANEL and not out_channels % LANES


def _trial(operation: str, dtype: torch.dtype) -> Callable[[str, int, int, int, int], Callable[[], object]]:
    """Returns what makes calls of an operation to time, see `timing.Trial`."""

    @functools.lru_cache(1)
    def weight_of(channels: int) -> Tensor:  # one for all implementations and sizes: it may be large
        weight = torch.full((channels, channels, 3, 3), 1 / channels, dtype=dtype)
        return weight.contiguous(memory_format=torch.channels_last)

    @functools.lru_cache(2)
    def filters_of(way: str, channels: int) -> Tensor:
        weight = weight_of(channels)
        return matrix_unit.pack(weight) if way == "amx" else taps(weight)

    def trial(way: str, batch: int, channels: int, height: int, width: int) -> Callable[[], object]:
        channels = max(channels, PANEL)
        x = torch.full((batch, channels, height, width), 0.5, dtype=dtype).contiguous(memory_format=torch.channels_last)
        weight, bias = weight_of(channels), torch.zeros(channels, dtype=dtype)
        if operation == "conv3x3_weight":
            if way != "torch":
                return lambda: _weight_gradient(way, x, x)
            return lambda: torch.ops.aten.convolution_backward(
                x, x, weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (False, True, False)
            )
        if operation == "conv3x3_grad":
            if way != "torch":
                return lambda: _input_gradient(way, x, weight)
            return lambda: torch.ops.aten.convolution_backward(
                x, x, weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (True, False, False)
            )
        if way == "torch":
            return lambda: F.conv2d(x, weight, bias, padding=1)
        if way == "packed":
            packed = pack_filters(weight, x.shape)
            return lambda: torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *PLAIN, "none", [], "")
        if operation == "conv3x3":
            return lambda: _convolved(way, x, weight, bias)
        filters = filters_of(way, channels)
        if way == "amx":
            return lambda: matrix_unit.convolution(x, filters, channels, bias)
        return lambda: filter_3x3(x, filters, bias)

    return trial


def pack_filters(weight: Tensor, size: Sequence[int], how: Sequence[Any] = PLAIN) -> Tensor:
    """Returns a convolution's weight in oneDNN's layout for inputs of a size [B, C, H, W]."""
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *how, list(size))


def taps(weight: Tensor) -> Tensor:
    """Transposes a convolution's weight [out, in, 3, 3] to [3, 3, in, out] for `filter_3x3`."""
    return weight.permute(2, 3, 1, 0).contiguous()


def turned(weight: Tensor) -> Tensor:
    """A convolution's weight as `filter_3x3` wants it for the gradient: turned round, from outputs to inputs."""
    return weight.flip(2, 3).permute(2, 3, 0, 1).contiguous()


def filter_3x3(x: Tensor, weight: Tensor, bias: Tensor | None, base: Tensor | None = None) -> Tensor:
    """Returns conv(x) + bias + base [B, out, H, W] with stride 1 and padding 1, without gradients.

    Use it only if `has_winograd` is True. Results depend neither on the number of threads nor on the batch.

    Args:
        x: Input [B, in, H, W], channels-last, in the weight's precision.
        weight: Filters [3, 3, in, out] from `taps`.
        bias: Bias [out], or None.
        base: Summand [B, out, H, W], channels-last, or None.

    Raises:
        ValueError: There is no kernel for this precision or shape.
    """
    batch, channels, height, width = x.shape
    out = weight.shape[3]
    function = _function(x.dtype)
    if function is None or weight.shape != (3, 3, channels, out) or weight.dtype != x.dtype:
        raise ValueError(f"no compiled convolution for {x.dtype} and a weight {list(weight.shape)} of {weight.dtype}")
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty((batch, out, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    size = (batch, height, width, channels, out)
    work = workspace(_space(*size, threads))
    if bias is not None:
        bias = bias.float()
    if base is not None:
        base = base.to(x.dtype).contiguous(memory_format=torch.channels_last)
    function(
        x.data_ptr(), y.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(),
        None if base is None else base.data_ptr(), work.data_ptr(), *size, threads,
    )  # fmt: skip
    return y


@functools.lru_cache(1024)
def _space(*size: int) -> int:
    lib = library()
    return 0 if lib is None else int(lib.undiffuse_convolution_space(*size))


def _function(dtype: torch.dtype) -> ctypes._NamedFuncPointer | None:
    lib = library()
    return None if lib is None else getattr(lib, f"undiffuse_convolution_{_NAMES[dtype]}", None)
