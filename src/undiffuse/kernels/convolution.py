"""3x3 convolutions by Winograd's minimal filtering, compiled: less than half of the multiplications."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from undiffuse.kernels.choice import library
from undiffuse.kernels.norm_act import LANES

BLOCK, ROWS, PANEL, SKEW = 16, 8, 32, 32  # tiles at a time, and constants of the source
LEAST = {torch.float32: 256, torch.bfloat16: 512}
"""Tiles of 2x2 results from which on it beats oneDNN: the filters are transformed at each call."""
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def filters_fast(size: torch.Size | tuple[int, ...], out_channels: int, dtype: torch.dtype) -> bool:
    """Whether there is a compiled kernel for inputs [B, C, H, W] in that precision, and it is worth while."""
    batch, channels, height, width = size
    tiles = batch * -(-height // 2) * -(-width // 2)
    if dtype not in LEAST or tiles < LEAST[dtype] or channels % PANEL or out_channels % LANES:
        return False
    return _function(dtype) is not None


def taps(weight: Tensor) -> Tensor:
    """A convolution's weight [out, in, 3, 3] as `filter_3x3` wants it, [3, 3, in, out]."""
    return weight.permute(2, 3, 1, 0).contiguous()


def filter_3x3(x: Tensor, weight: Tensor, bias: Tensor | None, base: Tensor | None = None) -> Tensor:
    """conv(x) + bias + base [B, out, H, W] of stride 1 and padding 1, without gradients.

    x [B, in, H, W] and base, channels-last in the weight's precision; weight [3, 3, in, out] from `taps`; bias [out].
    Only where `filters_fast` says so. Results depend neither on the number of threads nor on the batch.
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
