"""Fused group norm, scale and shift, and SiLU on a GPU, written in Triton; forward and backward.

Imported only where it is used, since importing Triton takes a while and not every PyTorch has it.

Images are channels-last: the numbers of a pixel lie side by side. A tile is some pixels times some channels of one
image. Sums are cut by the shape of one image alone and use no atomic additions, so results are the same at every call
and for any batch.

    u = (x - mean) / std,   v = weight u + bias,   z = v (1 + scale) + shift,   y = SiLU(z) or z
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, CHANNELS = 64, 64  # of a tile: 4096 numbers, 32 for each thread of four warps
_LANES = 8  # channels of a group's tile at least
_SIZES = ("pixels", "chunks", "groups", "per", "count")  # one program for all of their values
_SMALL = 256  # pixels up to which one program takes a whole group, and the norm is one launch


@triton.jit
def _silu(z):  # type: ignore[no-untyped-def]
    return z / (1.0 + tl.exp(-z))


@triton.jit
def _affine(  # type: ignore[no-untyped-def]
    weight_ptr, bias_ptr, scale_ptr, shift_ptr, stride, image, c, inside, CONDITIONED: tl.constexpr
):
    """Loads weight, bias, 1 + scale and shift of channels c."""
    weight = tl.load(weight_ptr + c, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + c, mask=inside, other=0.0).to(tl.float32)
    factor = tl.full(c.shape, 1.0, tl.float32)
    shift = tl.full(c.shape, 0.0, tl.float32)
    if CONDITIONED:
        factor += tl.load(scale_ptr + image * stride + c, mask=inside, other=0.0).to(tl.float32)
        shift += tl.load(shift_ptr + image * stride + c, mask=inside, other=0.0).to(tl.float32)
    return weight, bias, factor, shift


@triton.jit(do_not_specialize=_SIZES)
def _forward_group(  # type: ignore[no-untyped-def]
    x_ptr, y_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, stride, pixels, channels, count, eps,
    groups, per, WIDTH: tl.constexpr, ROWS: tl.constexpr, CONDITIONED: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """Everything for one group of one image: program (group, image)."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start = image * pixels * channels
    lane = tl.arange(0, WIDTH)
    c = group * per + lane
    inside = lane < per
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    row = 0
    while row < pixels:
        p = row + tl.arange(0, ROWS)
        mask = (p[:, None] < pixels) & inside[None, :]
        total += tl.load(x_ptr + start + p[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        row += ROWS
    mean = tl.sum(tl.sum(total, 1), 0) / count
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    row = 0
    while row < pixels:
        p = row + tl.arange(0, ROWS)
        mask = (p[:, None] < pixels) & inside[None, :]
        x = tl.load(x_ptr + start + p[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        apart = tl.where(mask, x - mean, 0.0)
        total += apart * apart
        row += ROWS
    rstd = 1.0 / tl.sqrt(tl.sum(tl.sum(total, 1), 0) / count + eps)
    tl.store(mean_ptr + image * groups + group, mean)
    tl.store(rstd_ptr + image * groups + group, rstd)
    weight, bias, factor, shift = _affine(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, stride, image, c, inside, CONDITIONED
    )
    row = 0
    while row < pixels:
        p = row + tl.arange(0, ROWS)
        mask = (p[:, None] < pixels) & inside[None, :]
        at = start + p[:, None] * channels + c[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        z = ((x - mean) * rstd * weight[None, :] + bias[None, :]) * factor[None, :] + shift[None, :]
        if ACT:
            z = _silu(z)
        tl.store(y_ptr + at, z.to(y_ptr.dtype.element_ty), mask=mask)
        row += ROWS


@triton.jit(do_not_specialize=_SIZES)
def _moments_of_tiles(  # type: ignore[no-untyped-def]
    x_ptr, part_ptr, pixels, channels, chunks, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """Mean and sum of squared deviations of each channel over the tile's pixels: program (chunk, block, image)."""
    chunk, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    p = chunk * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    mask = (p[:, None] < pixels) & inside[None, :]
    at = image * pixels * channels + p[:, None] * channels + c[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    rows = tl.minimum(pixels - chunk * ROWS, ROWS).to(tl.float32)
    mean = tl.sum(x, 0) / rows
    apart = tl.where(mask, x - mean[None, :], 0.0)
    to = part_ptr + (image * chunks + chunk) * 2 * channels + c
    tl.store(to, mean, mask=inside)
    tl.store(to + channels, tl.sum(apart * apart, 0), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def _moments_of_groups(  # type: ignore[no-untyped-def]
    part_ptr, mean_ptr, rstd_ptr, pixels, channels, chunks, count, eps,
    groups, per, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Combines the tiles' moments (Chan et al. 1979): program (group, image)."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    inside = lane < per
    start = part_ptr + image * chunks * 2 * channels + group * per
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    first = 0
    while first < chunks:
        k = first + tl.arange(0, BLOCK)
        mask = (k[:, None] < chunks) & inside[None, :]
        rows = tl.maximum(tl.minimum(pixels - k * ROWS, ROWS), 0).to(tl.float32)
        total += rows[:, None] * tl.load(start + k[:, None] * 2 * channels + lane[None, :], mask=mask, other=0.0)
        first += BLOCK
    mean = tl.sum(tl.sum(total, 1), 0) / count
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    first = 0
    while first < chunks:
        k = first + tl.arange(0, BLOCK)
        mask = (k[:, None] < chunks) & inside[None, :]
        rows = tl.maximum(tl.minimum(pixels - k * ROWS, ROWS), 0).to(tl.float32)
        at = start + k[:, None] * 2 * channels + lane[None, :]
        apart = tl.where(mask, tl.load(at, mask=mask, other=0.0) - mean, 0.0)
        total += tl.load(at + channels, mask=mask, other=0.0) + rows[:, None] * apart * apart
        first += BLOCK
    tl.store(mean_ptr + image * groups + group, mean)
    tl.store(rstd_ptr + image * groups + group, 1.0 / tl.sqrt(tl.sum(tl.sum(total, 1), 0) / count + eps))


@triton.jit(do_not_specialize=_SIZES)
def _apply(  # type: ignore[no-untyped-def]
    x_ptr, y_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, stride, pixels, channels,
    groups, per, ROWS: tl.constexpr, WIDTH: tl.constexpr, CONDITIONED: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """The result from the moments: program (chunk, block, image)."""
    image = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    mask = (p[:, None] < pixels) & inside[None, :]
    mean = tl.load(mean_ptr + image * groups + c // per, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + image * groups + c // per, mask=inside, other=0.0)
    weight, bias, factor, shift = _affine(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, stride, image, c, inside, CONDITIONED
    )
    at = image * pixels * channels + p[:, None] * channels + c[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    z = ((x - mean[None, :]) * rstd[None, :] * weight[None, :] + bias[None, :]) * factor[None, :] + shift[None, :]
    if ACT:
        z = _silu(z)
    tl.store(y_ptr + at, z.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_of_tile(  # type: ignore[no-untyped-def]
    x_ptr, grad_ptr, at, mask, mean, rstd, weight, bias, factor, shift, ACT: tl.constexpr
):
    """u and the gradient with respect to z of a tile, zero outside of it."""
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    dz = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
    u = (x - mean[None, :]) * rstd[None, :]
    if ACT:
        z = (u * weight[None, :] + bias[None, :]) * factor[None, :] + shift[None, :]
        s = 1.0 / (1.0 + tl.exp(-z))
        dz = dz * (s + z * s * (1.0 - s))
    return u, dz


@triton.jit(do_not_specialize=_SIZES)
def _sums_of_tiles(  # type: ignore[no-untyped-def]
    x_ptr, grad_ptr, part_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr,
    stride, pixels, channels, chunks,
    groups, per, ROWS: tl.constexpr, WIDTH: tl.constexpr, CONDITIONED: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """Sums of dz u and of dz over the tile's pixels, by channel: program (chunk, block, image)."""
    chunk, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    p = chunk * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    mask = (p[:, None] < pixels) & inside[None, :]
    mean = tl.load(mean_ptr + image * groups + c // per, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + image * groups + c // per, mask=inside, other=0.0)
    weight, bias, factor, shift = _affine(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, stride, image, c, inside, CONDITIONED
    )
    at = image * pixels * channels + p[:, None] * channels + c[None, :]
    u, dz = _gradient_of_tile(x_ptr, grad_ptr, at, mask, mean, rstd, weight, bias, factor, shift, ACT)
    to = part_ptr + (image * chunks + chunk) * 2 * channels + c
    tl.store(to, tl.sum(dz * u, 0), mask=inside)
    tl.store(to + channels, tl.sum(dz, 0), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def _sums_of_groups(  # type: ignore[no-untyped-def]
    part_ptr, gain_ptr, offset_ptr, along_ptr, level_ptr, weight_ptr, scale_ptr, stride, channels, chunks, count,
    groups, per, WIDTH: tl.constexpr, BLOCK: tl.constexpr, CONDITIONED: tl.constexpr,
):  # fmt: skip
    """Sums over all pixels by channel, and the means over the group that dx needs: program (group, image)."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    inside = lane < per
    c = group * per + lane
    start = part_ptr + image * chunks * 2 * channels + c
    gains = tl.zeros((BLOCK, WIDTH), tl.float32)
    offsets = tl.zeros((BLOCK, WIDTH), tl.float32)
    first = 0
    while first < chunks:
        k = first + tl.arange(0, BLOCK)
        mask = (k[:, None] < chunks) & inside[None, :]
        at = start[None, :] + k[:, None] * 2 * channels
        gains += tl.load(at, mask=mask, other=0.0)
        offsets += tl.load(at + channels, mask=mask, other=0.0)
        first += BLOCK
    gain, offset = tl.sum(gains, 0), tl.sum(offsets, 0)
    tl.store(gain_ptr + image * channels + c, gain, mask=inside)
    tl.store(offset_ptr + image * channels + c, offset, mask=inside)
    slope = tl.load(weight_ptr + c, mask=inside, other=0.0).to(tl.float32)
    if CONDITIONED:
        slope *= 1.0 + tl.load(scale_ptr + image * stride + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(along_ptr + image * groups + group, tl.sum(slope * gain, 0) / count)
    tl.store(level_ptr + image * groups + group, tl.sum(slope * offset, 0) / count)


@triton.jit(do_not_specialize=_SIZES)
def _gradient(  # type: ignore[no-untyped-def]
    x_ptr, grad_ptr, gx_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, along_ptr, level_ptr,
    stride, pixels, channels,
    groups, per, ROWS: tl.constexpr, WIDTH: tl.constexpr, CONDITIONED: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """dx = (dz weight (1 + scale) - level - u along) / std: program (chunk, block, image)."""
    image = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < channels
    mask = (p[:, None] < pixels) & inside[None, :]
    group = image * groups + c // per
    mean = tl.load(mean_ptr + group, mask=inside, other=0.0)
    rstd = tl.load(rstd_ptr + group, mask=inside, other=0.0)
    along = tl.load(along_ptr + group, mask=inside, other=0.0)
    level = tl.load(level_ptr + group, mask=inside, other=0.0)
    weight, bias, factor, shift = _affine(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, stride, image, c, inside, CONDITIONED
    )
    at = image * pixels * channels + p[:, None] * channels + c[None, :]
    u, dz = _gradient_of_tile(x_ptr, grad_ptr, at, mask, mean, rstd, weight, bias, factor, shift, ACT)
    gx = rstd[None, :] * (dz * (weight * factor)[None, :] - level[None, :] - u * along[None, :])
    tl.store(gx_ptr + at, gx.to(gx_ptr.dtype.element_ty), mask=mask)


def _conditions(scale: Tensor | None, shift: Tensor | None, other: Tensor) -> tuple[Tensor, Tensor, int, bool]:
    """Returns scale and shift [B, C] in one layout, and the distance of their rows; without them any tensor."""
    if scale is None or shift is None:
        return other, other, 0, False
    if scale.stride() != shift.stride() or scale.stride(1) != 1:
        scale, shift = scale.contiguous(), shift.contiguous()
    return scale, shift, scale.stride(0), True


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one, on which Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, groups: int, eps: float,
    act: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns the result, and mean and 1 / standard deviation of the groups [2, B, groups].

    Args:
        x: Input [B, C, H, W], channels-last.
        weight: Scale of the norm [C].
        bias: Shift of the norm [C].
        scale: Scale of each image [B, C], or None.
        shift: Shift of each image [B, C], or None.
        groups: Number of groups.
        eps: Constant added to the variance.
        act: Whether to apply SiLU.
    """
    b, channels, pixels, per = x.shape[0], x.shape[1], x.shape[2] * x.shape[3], x.shape[1] // groups
    count = float(pixels * per)
    y = torch.empty_like(x)  # keeps the layout
    moments = torch.empty(2, b, groups, dtype=torch.float32, device=x.device)
    mean, rstd = moments
    scale, shift, stride, conditioned = _conditions(scale, shift, weight)
    lanes = max(_LANES, triton.next_power_of_2(per))
    with _current(x.device):
        if pixels <= _SMALL:
            _forward_group[(groups, b)](
                x, y, weight, bias, scale, shift, mean, rstd, stride, pixels, channels, count, eps,
                groups=groups, per=per, WIDTH=lanes, ROWS=ROWS, CONDITIONED=conditioned, ACT=act,
            )  # fmt: skip
            return y, moments
        chunks, blocks = triton.cdiv(pixels, ROWS), triton.cdiv(channels, CHANNELS)
        parts = torch.empty(b, chunks, 2, channels, dtype=torch.float32, device=x.device)
        _moments_of_tiles[(chunks, blocks, b)](x, parts, pixels, channels, chunks, ROWS=ROWS, WIDTH=CHANNELS)
        _moments_of_groups[(groups, b)](
            parts, mean, rstd, pixels, channels, chunks, count, eps,
            groups=groups, per=per, ROWS=ROWS, WIDTH=lanes, BLOCK=ROWS,
        )  # fmt: skip
        _apply[(chunks, blocks, b)](
            x, y, weight, bias, scale, shift, mean, rstd, stride, pixels, channels,
            groups=groups, per=per, ROWS=ROWS, WIDTH=CHANNELS, CONDITIONED=conditioned, ACT=act,
        )  # fmt: skip
    return y, moments


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, moments: Tensor,
    groups: int, act: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns the gradient with respect to x, and the sums over pixels of dz u and of dz [2, B, C].

    Args:
        grad: Gradient with respect to the result [B, C, H, W], channels-last, in the precision of x.
        x: As in `forward`, and so are weight, bias, scale, shift, groups and act.
        weight: See `forward`.
        bias: See `forward`.
        scale: See `forward`.
        shift: See `forward`.
        moments: What `forward` returned.
        groups: See `forward`.
        act: See `forward`.
    """
    b, channels, pixels, per = x.shape[0], x.shape[1], x.shape[2] * x.shape[3], x.shape[1] // groups
    mean, rstd = moments
    scale, shift, stride, conditioned = _conditions(scale, shift, weight)
    chunks, blocks = triton.cdiv(pixels, ROWS), triton.cdiv(channels, CHANNELS)
    lanes = max(_LANES, triton.next_power_of_2(per))
    gx, count = torch.empty_like(x), float(pixels * per)
    parts = torch.empty(b, chunks, 2, channels, dtype=torch.float32, device=x.device)
    sums = torch.empty(2, b, channels, dtype=torch.float32, device=x.device)
    along, level = torch.empty(2, b, groups, dtype=torch.float32, device=x.device)
    sizes: dict[str, Any] = {"groups": groups, "per": per, "ROWS": ROWS, "WIDTH": CHANNELS}
    kind: dict[str, Any] = {"CONDITIONED": conditioned, "ACT": act}
    with _current(x.device):
        _sums_of_tiles[(chunks, blocks, b)](
            x, grad, parts, weight, bias, scale, shift, mean, rstd, stride, pixels, channels, chunks, **sizes, **kind
        )
        _sums_of_groups[(groups, b)](
            parts, sums[0], sums[1], along, level, weight, scale, stride, channels, chunks, count,
            groups=groups, per=per, WIDTH=lanes, CONDITIONED=conditioned, BLOCK=ROWS,
        )  # fmt: skip
        _gradient[(chunks, blocks, b)](
            x, grad, gx, weight, bias, scale, shift, mean, rstd, along, level, stride, pixels, channels, **sizes, **kind
        )
    return gx, sums
