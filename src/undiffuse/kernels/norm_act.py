"""Fused group norm, scale and shift, and SiLU."""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.kernels.choice import is_traced, library

LANES = 16  # channels per vector in the compiled kernels
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


def norm_act(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    act: bool = True,
) -> Tensor:
    """Returns SiLU(GN(x) (1 + scale) + shift) [B, C, H, W] in the precision of x.

    Statistics and intermediate values are float32, or float64 if x is. The result can be differentiated twice with
    respect to all inputs. The compiled kernel computes channels-last float32 and bfloat16 inputs on a CPU, Triton
    channels-last inputs on a GPU (`kernels.gpu`); `norm_act_pure` computes everything else.

    Args:
        x: Input [B, C, H, W] in any floating-point precision.
        groups: Number of groups.
        weight: Scale of the norm [C].
        bias: Shift of the norm [C].
        eps: Constant added to the variance.
        scale: Per-image scale [B, C] in float32; None if and only if `shift` is.
        shift: Per-image shift [B, C] in float32, or None.
        act: Whether to apply SiLU.
    """
    fused = _library(x) if x.is_cpu else _triton(x)
    if fused is None:
        return norm_act_pure(x, groups, weight, bias, eps, scale, shift, act)
    inputs = (x, weight, bias, scale, shift)
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in inputs):
        return _NormAct.apply(*inputs, groups, eps, act, fused)
    if isinstance(fused, ModuleType):
        return fused.forward(*inputs, groups, eps, act)[0]
    return _forward(fused, *inputs, groups, eps, act)[0]


class FixedNorm:
    """`norm_act` with parameters that never change, without gradients: what does not depend on the input is done once.

    Args:
        groups: Number of groups.
        weight: Scale of the norm [C].
        bias: Shift of the norm [C].
        eps: Constant added to the variance.
    """

    def __init__(self, groups: int, weight: Tensor, bias: Tensor, eps: float) -> None:
        self.groups, self.eps = groups, eps
        self.weight, self.bias = weight.detach().float().contiguous(), bias.detach().float().contiguous()
        self._addresses = self.weight.data_ptr(), self.bias.data_ptr()

    def __call__(self, x: Tensor, scale: Tensor | None, shift: Tensor | None, act: bool) -> Tensor:
        """See `norm_act`."""
        lib = _library(x)
        if lib is None:
            return norm_act(x, self.groups, self.weight, self.bias, self.eps, scale=scale, shift=shift, act=act)
        return _call(lib, x, *self._addresses, scale, shift, self.groups, self.eps, act)[0]


def norm_act_pure(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    act: bool,
) -> Tensor:
    """Computes `norm_act` with PyTorch's operations."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    h = F.group_norm(wide, groups, weight.to(wide.dtype), bias.to(wide.dtype), eps)
    del wide
    keeps = torch.is_grad_enabled() or torch.compiler.is_compiling()  # intermediate values are needed
    if scale is not None and shift is not None:
        factor, summand = (part.to(h.dtype)[:, :, None, None] for part in (1 + scale, shift))
        h = torch.addcmul(summand, h, factor) if keeps else h.mul_(factor).add_(summand)
    if act:
        h = F.silu(h, inplace=not keeps)
    return h.to(x.dtype)


def _library(x: Tensor) -> ctypes.CDLL | None:
    if (
        not x.is_cpu
        or x.dtype not in _NAMES
        or x.ndim != 4
        or x.shape[1] % LANES
        or not x.is_contiguous(memory_format=torch.channels_last)
        or is_traced()
    ):
        return None
    return library()


def _triton(x: Tensor) -> ModuleType | None:
    if x.device.type != "cuda" or torch.compiler.is_compiling():
        return None
    from undiffuse.kernels.gpu import triton_norm

    return triton_norm(x)


def _forward(
    lib: ctypes.CDLL,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    act: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the result, and a tensor that starts with mean and 1 / standard deviation, both [B, groups]."""
    kept: list[Tensor] = []
    return _call(lib, x, _float(weight, kept), _float(bias, kept), scale, shift, groups, eps, act)


def _call(
    lib: ctypes.CDLL,
    x: Tensor,
    weight_at: int,
    bias_at: int,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    act: bool,
) -> tuple[Tensor, Tensor]:
    b, c, height, width = x.shape
    pixels, count = height * width, b * groups
    y = torch.empty_like(x)
    moments = torch.empty(2 * count + _work(b, pixels, c, 3), dtype=torch.float32)
    at = moments.data_ptr()
    scale_at, shift_at, stride, _kept = _conditions(scale, shift)
    function = lib.undiffuse_forward_f32 if x.dtype == torch.float32 else lib.undiffuse_forward_bf16
    function(
        x.data_ptr(), y.data_ptr(), weight_at, bias_at, scale_at, shift_at, stride,
        at, at + 4 * count, at + 8 * count, b, pixels, c, groups, eps, act, torch.get_num_threads(),
    )  # fmt: skip
    return y, moments


def _work(batch: int, pixels: int, channels: int, rows: int) -> int:
    """Returns the floats of working memory: `rows` plus two per chunk of pixels (chunk_pixels in the C source)."""
    chunks = -(-pixels // max(8, 16384 // channels))
    return batch * (2 * chunks + rows) * channels


def _backward(
    lib: ctypes.CDLL,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    moments: Tensor,
    groups: int,
    act: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the gradient with respect to x, and those of the normalised x's factor and summand [2, B, C]."""
    b, c, height, width = x.shape
    pixels = height * width
    gx = torch.empty_like(x)
    sums = torch.empty(2, b, c, dtype=torch.float32)
    work = torch.empty(_work(b, pixels, c, 4), dtype=torch.float32)
    at = moments.data_ptr()
    scale_at, shift_at, stride, kept = _conditions(scale, shift)
    getattr(lib, f"undiffuse_backward_{_NAMES[x.dtype]}")(
        x.data_ptr(), grad.data_ptr(), gx.data_ptr(), _float(weight, kept), _float(bias, kept), scale_at, shift_at,
        stride, at, at + 4 * b * groups, sums.data_ptr(), sums[1].data_ptr(), work.data_ptr(),
        b, pixels, c, groups, act, torch.get_num_threads(),
    )  # fmt: skip
    return gx, sums


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        groups: int,
        eps: float,
        act: bool,
        fused: ctypes.CDLL | ModuleType,
    ) -> Tensor:
        if isinstance(fused, ModuleType):
            y, moments = fused.forward(x, weight, bias, scale, shift, groups, eps, act)
        else:
            y, moments = _forward(fused, x, weight, bias, scale, shift, groups, eps, act)
            moments = moments[: 2 * len(x) * groups].clone()
        ctx.save_for_backward(x, weight, bias, scale, shift, moments)
        ctx.groups, ctx.eps, ctx.act, ctx.fused = groups, eps, act, fused
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, bias, scale, shift, moments = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative
            return (*_differentiable(ctx, grad, x, weight, bias, scale, shift), None, None, None, None)
        grad = grad.to(x.dtype).contiguous(memory_format=torch.channels_last)
        if isinstance(ctx.fused, ModuleType):
            gx, sums = ctx.fused.backward(grad, x, weight, bias, scale, shift, moments, ctx.groups, ctx.act)
        else:
            gx, sums = _backward(ctx.fused, grad, x, weight, bias, scale, shift, moments, ctx.groups, ctx.act)
        gain, offset = sums  # gradients of the normalised x's factor and summand, per image and channel
        if scale is None:
            return gx, gain.sum(0), offset.sum(0), None, None, None, None, None, None
        factor = 1 + scale
        return (
            gx,
            (gain * factor).sum(0),
            (offset * factor).sum(0),
            torch.addcmul(gain * weight, offset, bias),
            offset,
            None,
            None,
            None,
            None,
        )


def _differentiable(ctx: Any, grad: Tensor, *inputs: Tensor | None) -> tuple[Tensor | None, ...]:
    """Returns the gradients by PyTorch's operations, which can be differentiated again."""
    x, weight, bias, scale, shift = inputs
    assert x is not None and weight is not None and bias is not None
    with torch.enable_grad():
        y = norm_act_pure(x, ctx.groups, weight, bias, ctx.eps, scale, shift, ctx.act)
        needs = ctx.needs_input_grad
        wanted = [part for part, needed in zip(inputs, needs, strict=False) if needed and part is not None]
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True, allow_unused=True))
    return tuple(next(found) if needed else None for needed in needs[: len(inputs)])


def _conditions(scale: Tensor | None, shift: Tensor | None) -> tuple[int | None, int | None, int, list[Tensor]]:
    """Returns the addresses of scale and shift, their common stride, and the tensors that must stay alive meanwhile."""
    if scale is None or shift is None:
        return None, None, 0, []
    (stride, step), kept = scale.stride(), [scale, shift]
    if step != 1 or shift.stride() != (stride, 1) or not scale.dtype == shift.dtype == torch.float32:
        kept = [scale.float().contiguous(), shift.float().contiguous()]
        stride = kept[0].stride(0)
    return kept[0].data_ptr(), kept[1].data_ptr(), stride, kept


def _float(parameter: Tensor, kept: list[Tensor]) -> int:
    if parameter.dtype != torch.float32 or not parameter.is_contiguous():
        parameter = parameter.float().contiguous()
        kept.append(parameter)
    return parameter.data_ptr()
