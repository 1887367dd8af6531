"""Compiled convolutions, their gradients, and attention in bfloat16 on the matrix unit of Intel processors (AMX)."""

from __future__ import annotations

import ctypes
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.kernels.allocator import workspace
from undiffuse.kernels.choice import library

BLOCK = 32  # a constant of the C source; channels are multiples of it


def suits(channels: int, out_channels: int, dtype: torch.dtype) -> bool:
    """Returns whether there are compiled convolutions here between these numbers of channels in that precision."""
    if dtype != torch.bfloat16 or channels % BLOCK or out_channels % BLOCK:
        return False
    lib = _library()
    return lib is not None and _is_right(lib)


def pack(weight: Tensor, *, turned: bool = False) -> Tensor:
    """Lays the weight of a convolution out for `convolution` (3x3) or `product` (1x1).

    Args:
        weight: Filters [out, in, k, k] in bfloat16; channels-last is fastest.
        turned: Whether for the gradient with respect to the input: from outputs to inputs, taps in reverse order.

    Returns:
        bfloat16 [out * in * k * k].
    """
    if weight.dtype != torch.bfloat16:
        raise ValueError(f"expected a weight in bfloat16, got {weight.dtype}")
    if weight.stride(2) != weight.shape[3] * weight.stride(3):  # taps are not at equal distances
        weight = weight.contiguous()
    out, channels, height, width = weight.shape
    by_out, by_in, _, by_tap = weight.stride()
    taps, at = height * width, weight.data_ptr()
    if turned:
        out, channels, by_out, by_in = channels, out, by_in, by_out
        at, by_tap = at + 2 * (taps - 1) * by_tap, -by_tap
    packed = torch.empty(weight.numel(), dtype=torch.bfloat16)
    _needed().undiffuse_tiles_pack(
        at, packed.data_ptr(), channels, out, taps, by_out, by_in, by_tap, torch.get_num_threads()
    )
    return packed


def unpack(packed: Tensor, out_channels: int, taps: int) -> Tensor:
    """Returns the weight [out, in, taps] that `pack` laid out."""
    channels = len(packed) // (out_channels * taps)
    tiles = packed.view(out_channels // BLOCK, taps, channels // BLOCK, 2, BLOCK // 2, BLOCK // 2, 2)
    # panel, tap, part of the inputs, half of the panel, pair, result, one of the pair
    return tiles.permute(0, 3, 5, 2, 4, 6, 1).reshape(out_channels, channels, taps)


def convolution(x: Tensor, weight: Tensor, out: int, bias: Tensor | None, base: Tensor | None = None) -> Tensor:
    """Returns conv(x) + bias + base [B, out, H, W] with stride 1 and padding 1, without gradients.

    Use it only where `suits` is True. Results depend neither on the number of threads nor on the batch.

    Args:
        x: Input [B, in, H, W] in bfloat16.
        weight: Filters from `pack`.
        out: Channels of the output.
        bias: Bias [out], or None.
        base: Summand [B, out, H, W], or None.
    """
    lib = _needed()
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    _check(x, weight, 9 * channels * out)
    y = torch.empty((batch, out, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    work = workspace(_space(batch, height, width, channels))
    bias = None if bias is None else bias.float()
    if base is not None:
        base = base.to(x.dtype).contiguous(memory_format=torch.channels_last)
    lib.undiffuse_tiles_convolution(
        x.data_ptr(), y.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(),
        None if base is None else base.data_ptr(), work.data_ptr(), batch, height, width, channels, out,
        torch.get_num_threads(),
    )  # fmt: skip
    return y


def product(x: Tensor, weight: Tensor, out: int, bias: Tensor | None, base: Tensor | None = None) -> Tensor:
    """Returns x w^T + bias + base [..., out] for rows x [..., in], at least `BLOCK` of them; see `convolution`."""
    lib = _needed()
    channels = x.shape[-1]
    _check(x, weight, channels * out)
    rows = x.numel() // channels
    if rows < BLOCK:
        raise ValueError(f"{rows} rows, expected {BLOCK} or more")
    x = x.contiguous()
    y = torch.empty((*x.shape[:-1], out), dtype=x.dtype)
    bias = None if bias is None else bias.float()
    if base is not None:
        base = base.to(x.dtype).contiguous()
    lib.undiffuse_tiles_product(
        x.data_ptr(), y.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(),
        None if base is None else base.data_ptr(), rows, channels, out, torch.get_num_threads(),
    )  # fmt: skip
    return y


def weight_gradient(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of a 3x3 convolution's weights [out, in, 3, 3] and bias [out] in float32.

    They do not depend on the number of threads.

    Args:
        x: Input [B, in, H, W] in bfloat16.
        grad: Gradient with respect to the output [B, out, H, W], likewise.
    """
    lib = _needed()
    x, grad = (part.contiguous(memory_format=torch.channels_last) for part in (x, grad))
    (batch, channels, height, width), out = x.shape, grad.shape[1]
    _check(x, grad, grad.numel())
    found, bias = torch.empty((3, 3, channels, out)), torch.empty(out)
    work = workspace(int(lib.undiffuse_tiles_weights_space(width, channels, out)))
    lib.undiffuse_tiles_weights(
        x.data_ptr(), grad.data_ptr(), found.data_ptr(), bias.data_ptr(), work.data_ptr(), batch, height, width,
        channels, out, torch.get_num_threads(),
    )  # fmt: skip
    return found.permute(3, 2, 0, 1), bias


def suits_attention(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Returns whether `attention` computes this."""
    length, width = q.shape[2:]
    fits = q.shape == k.shape == v.shape and q.stride() == k.stride() == v.stride() and q.stride(3) == 1
    return fits and not length % BLOCK and suits(width, BLOCK, q.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(D)) v [B, heads, L, D] in bfloat16, without gradients, for what `suits_attention`.

    In memory it is [B, L, heads, D]. It depends neither on the number of threads nor on the batch.
    """
    if not suits_attention(q, k, v):
        raise ValueError(f"no compiled attention for {list(q.shape)}, strides {q.stride()}, in {q.dtype}")
    lib, threads = _needed(), torch.get_num_threads()
    batch, heads, length, width = q.shape
    by_image, by_head, by_row, _ = q.stride()
    y = torch.empty((batch, length, heads, width), dtype=q.dtype)
    work = workspace(int(lib.undiffuse_tiles_attention_space(length, width, threads)))
    lib.undiffuse_tiles_attention(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), y.data_ptr(), work.data_ptr(), batch, heads, length, width, by_image,
        by_head, by_row, width**-0.5, threads,
    )  # fmt: skip
    return y.transpose(1, 2)


def _check(x: Tensor, other: Tensor, count: int) -> None:
    if x.dtype != torch.bfloat16 or other.dtype != torch.bfloat16 or other.numel() != count:
        raise ValueError(
            f"expected two tensors in bfloat16, the second of {count} numbers; got {x.dtype}, and {other.numel()} in "
            f"{other.dtype}"
        )


@functools.lru_cache(1024)
def _space(batch: int, height: int, width: int, channels: int) -> int:
    return int(_needed().undiffuse_tiles_space(batch, height, width, channels))


def _library() -> ctypes.CDLL | None:
    lib = library()
    return lib if lib is not None and _is_granted(lib) else None


def _needed() -> ctypes.CDLL:
    lib = _library()
    if lib is None:
        raise ValueError("there are no compiled convolutions for a matrix unit here")
    return lib


@functools.lru_cache
def _is_granted(lib: ctypes.CDLL) -> bool:
    """Whether the library has these functions, and the system lets the process use the unit."""
    refused = getattr(lib, "undiffuse_tiles_refused", None)
    return refused is not None and refused() == 0


@functools.lru_cache
def _is_right(lib: ctypes.CDLL) -> bool:
    """Compares a convolution with PyTorch's once in a process."""
    x, weight = (
        torch.linspace(-1, 1, rows * BLOCK * side).sin().view(rows, BLOCK, *size).bfloat16()
        for rows, side, size in ((2, 15, (3, 5)), (BLOCK, 9, (3, 3)))
    )
    found = convolution(x, pack(weight), BLOCK, None).double()
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    return bool(torch.allclose(found, expected, rtol=0, atol=0.01 * float(expected.abs().max())))
