"""Compiled 3x3 convolutions by Winograd's minimal filtering, with less than half of the multiplications."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.kernels.choice import library
from undiffuse.kernels.norm_act import LANES

BLOCK, ROWS, PANEL, SKEW = 16, 8, 32, 32  # tiles per block, and constants of the C source
LEAST = 256
"""Number of 2x2 output tiles from which the kernel is faster than oneDNN; each call transforms the filters."""
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def conv_3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns conv(x) + bias [B, out, H, W] with stride 1 and padding 1. It can be differentiated twice.

    The compiled kernel computes large float32 and bfloat16 inputs on a CPU, including autocast, and their gradients
    with respect to x. PyTorch computes everything else.

    Args:
        x: Input [B, in, H, W].
        weight: Filters [out, in, 3, 3].
        bias: Bias [out], or None.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if (
        dtype not in _NAMES
        or x.device.type != "cpu"
        or x.ndim != 4
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or not filters_fast(x.shape, weight.shape[0], dtype)
    ):
        return F.conv2d(x, weight, bias, padding=1)
    x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (x, weight, bias)):
        return _Conv3x3.apply(x, weight, bias)
    return filter_3x3(x, taps(weight), bias)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return filter_3x3(x, taps(weight), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():  # for a second derivative
            with torch.enable_grad():
                y = F.conv2d(x, weight, None if bias is None else bias.to(x.dtype), padding=1)
            wanted = [part for part, needed in zip((x, weight, bias), needs, strict=True) if needed]
            found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
            return tuple(next(found) if needed else None for needed in needs)
        grad = grad.to(x.dtype)
        fast = needs[0] and filters_fast(grad.shape, x.shape[1], x.dtype)
        gx, gw, gb = torch.ops.aten.convolution_backward(
            grad, x, weight, None if bias is None else bias.shape, (1, 1), (1, 1), (1, 1), False, (0, 0), 1,
            (needs[0] and not fast, needs[1], needs[2]),
        )  # fmt: skip
        if fast:  # convolution with the flipped filters, from outputs to inputs
            gx = filter_3x3(grad, weight.flip(2, 3).permute(2, 3, 0, 1).contiguous(), None)
        return gx, gw, None if gb is None else gb.to(bias.dtype)


def filters_fast(size: torch.Size | tuple[int, ...], out_channels: int, dtype: torch.dtype) -> bool:
    """Returns whether a compiled kernel exists for inputs [B, C, H, W] of this precision and is faster."""
    batch, channels, height, width = size
    tiles = batch * -(-height // 2) * -(-width // 2)
    if dtype not in _NAMES or tiles < LEAST or channels % PANEL or out_channels % LANES:
        return False
    return _function(dtype) is not None


def taps(weight: Tensor) -> Tensor:
    """Transposes a convolution's weight [out, in, 3, 3] to [3, 3, in, out] for `filter_3x3`."""
    return weight.permute(2, 3, 1, 0).contiguous()


def filter_3x3(x: Tensor, weight: Tensor, bias: Tensor | None, base: Tensor | None = None) -> Tensor:
    """Returns conv(x) + bias + base [B, out, H, W] with stride 1 and padding 1, without gradients.

    Use it only if `filters_fast` is True. Results depend neither on the number of threads nor on the batch.

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
    own = 16 * (BLOCK * PANEL + BLOCK * (channels + SKEW) + SKEW)
    work = torch.empty(threads * own, dtype=torch.float32)
    transformed = torch.empty(16 * channels * out, dtype=x.dtype)
    if bias is not None:
        bias = bias.float()
    if base is not None:
        base = base.to(x.dtype).contiguous(memory_format=torch.channels_last)
    function(
        x.data_ptr(), y.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(),
        None if base is None else base.data_ptr(), transformed.data_ptr(), work.data_ptr(),
        batch, height, width, channels, out, BLOCK, threads,
    )  # fmt: skip
    return y


def _function(dtype: torch.dtype) -> ctypes._NamedFuncPointer | None:
    lib = library()
    return None if lib is None else getattr(lib, f"undiffuse_convolution_{_NAMES[dtype]}", None)
