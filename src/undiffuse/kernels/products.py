"""Compiled 1x1 convolutions: products of a matrix of pixels and a matrix of weights that is laid out in panels."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.kernels import matrix_unit
from undiffuse.kernels.autotune import PRECISIONS, Plan
from undiffuse.kernels.choice import OPERATIONS, library
from undiffuse.kernels.convolution import PANEL
from undiffuse.kernels.norm_act import LANES

LEAST_ROWS = 8  # a constant of the C source
_PAIR = {torch.float32: 1, torch.bfloat16: 2}  # weights of a result that lie side by side
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def implementation(plan: Plan, size: torch.Size, out_channels: int, dtype: torch.dtype) -> str:
    """Returns the implementation of a 1x1 convolution that a plan has.

    Args:
        plan: The plan.
        size: Shape of the input [B, C, H, W].
        out_channels: Channels of the output.
        dtype: The precision.

    Returns:
        "blocked" (`product`), "amx" (`matrix_unit`) or "packed" (oneDNN with packed weights).
    """
    batch, channels, height, width = size
    ways = possible(height * width, channels, out_channels, dtype)
    if batch == 0 or len(ways) == 1:
        return "packed"
    key = ("conv1x1_packed", PRECISIONS[dtype], channels, out_channels, height, width)
    return plan.choose(key, batch, ways, _trial(dtype))


def possible(pixels: int, channels: int, out_channels: int, dtype: torch.dtype) -> tuple[str, ...]:
    """Returns the implementations for images of so many pixels; the batch makes no difference."""
    here = {
        "blocked": pixels >= LEAST_ROWS and has_product(channels, out_channels, dtype),
        "amx": pixels >= matrix_unit.BLOCK and matrix_unit.suits(channels, out_channels, dtype),
    }
    return tuple(way for way in OPERATIONS["conv1x1_packed"] if here.get(way, True))


def has_product(channels: int, out_channels: int, dtype: torch.dtype) -> bool:
    """Returns whether there is a compiled product of such weights, which gives the results of PyTorch's."""
    if dtype not in _NAMES or channels % _PAIR[dtype] or out_channels % LANES:
        return False
    return _function(dtype) is not None and _is_right(dtype)


def laid_out(way: str, weight: Tensor) -> Tensor:
    """Returns weights [out, in] in the layout of an implementation."""
    if way == "amx":
        return matrix_unit.pack(weight[:, :, None, None])
    return panels(weight) if way == "blocked" else pack_matrix(weight)


def plain(way: str, weight: Tensor, out_channels: int) -> Tensor:
    """Returns the weights [out, in] from the layout of an implementation."""
    if way == "amx":
        return matrix_unit.unpack(weight, out_channels, 1)[:, :, 0]
    if way == "blocked":
        return matrix(weight, out_channels)
    return weight.to_dense() if weight.layout != torch.strided else weight


def by(way: str) -> Callable[..., Tensor]:
    """Returns `product`, or the product of the matrix unit."""
    return matrix_unit.product if way == "amx" else product


def panels(weight: Tensor) -> Tensor:
    """Lays weights [out, in] out as `product` wants them: panels of 32 results, the last maybe of 16, [out * in]."""
    whole, pair = len(weight) // PANEL * PANEL, _PAIR[weight.dtype]
    return torch.cat([_panels(part, pair) for part in (weight[:whole], weight[whole:]) if len(part)])


def _panels(weight: Tensor, pair: int) -> Tensor:
    out, channels = weight.shape
    width = PANEL if out % PANEL == 0 else LANES
    return weight.reshape(out // width, width, channels // pair, pair).permute(0, 2, 1, 3).flatten()


def matrix(laid_out: Tensor, out_channels: int) -> Tensor:
    """Returns the weights [out, in] that `panels` laid out."""
    channels, pair = len(laid_out) // out_channels, _PAIR[laid_out.dtype]
    whole = out_channels // PANEL * PANEL
    parts = ((laid_out[: whole * channels], PANEL), (laid_out[whole * channels :], LANES))
    return torch.cat([
        part.view(-1, channels // pair, width, pair).permute(0, 2, 1, 3).reshape(-1, channels)
        for part, width in parts if len(part)
    ])  # fmt: skip


def product(x: Tensor, weight: Tensor, out: int, bias: Tensor | None, base: Tensor | None = None) -> Tensor:
    """Returns x w^T + bias + base [..., out], without gradients.

    Use it only if `has_product` is True. Results depend neither on the number of threads nor on the number of rows.

    Args:
        x: Rows [..., in], `LEAST_ROWS` or more, in the weights' precision.
        weight: Weights [out * in] from `panels`.
        out: The number of results.
        bias: Bias [out] in float32, or None.
        base: Summand [..., out], or None.

    Raises:
        ValueError: There is no kernel for this precision or shape.
    """
    channels = x.shape[-1]
    count, function = x.numel() // max(1, channels), _function(x.dtype)
    if function is None or weight.dtype != x.dtype or len(weight) != out * channels or count < LEAST_ROWS:
        raise ValueError(
            f"no compiled product of {list(x.shape)} in {x.dtype} with {len(weight)} weights of {weight.dtype}"
        )
    x = x.contiguous()
    y = torch.empty((*x.shape[:-1], out), dtype=x.dtype)
    if base is not None:
        base = base.to(x.dtype).contiguous()
    function(
        x.data_ptr(), y.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(),
        None if base is None else base.data_ptr(), count, channels, out, torch.get_num_threads(),
    )  # fmt: skip
    return y


def _trial(dtype: torch.dtype) -> Callable[[str, int, int, int, int], Callable[[], object]]:
    """Returns what makes calls to time, see `timing.Trial`."""

    def trial(way: str, batch: int, channels: int, height: int, width: int) -> Callable[[], object]:
        channels = max(channels, LANES)
        x = torch.full((batch, height, width, channels), 0.5, dtype=dtype)
        weight = torch.full((channels, channels), 1 / channels, dtype=dtype)
        if way == "blocked":
            blocked, bias = panels(weight), torch.zeros(channels)
            return lambda: product(x, blocked, channels, bias)
        if way == "amx":
            tiles, bias = matrix_unit.pack(weight[:, :, None, None]), torch.zeros(channels)
            return lambda: matrix_unit.product(x, tiles, channels, bias)
        packed, zeros = pack_matrix(weight), torch.zeros(channels, dtype=dtype)
        return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, zeros, "none", [], "")

    return trial


def pack_matrix(weight: Tensor) -> Tensor:
    """Returns weights [out, in] in oneDNN's layout, which hardly depends on the number of rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, 1024)


@functools.lru_cache
def _is_right(dtype: torch.dtype) -> bool:
    """Compares the kernel with PyTorch's product once in a process: a whole and a half panel, and rows left over."""
    channels, out, rows = 6, PANEL + LANES, LEAST_ROWS + 3
    x, weight, base = (
        torch.linspace(-1, 1, one * two).view(one, two).to(dtype)
        for one, two in ((rows, channels), (out, channels), (rows, out))
    )
    bias = torch.linspace(0, 1, out)
    found = product(x, panels(weight), out, bias, base).double()
    expected = F.linear(x.double(), weight.double(), bias.double()) + base.double()
    return bool(torch.allclose(found, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05))


def _function(dtype: torch.dtype) -> ctypes._NamedFuncPointer | None:
    lib = library()
    return None if lib is None else getattr(lib, f"undiffuse_product_{_NAMES[dtype]}", None)
