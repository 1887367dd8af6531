"""The fused norm on GPUs: which implementation is used, and whether Triton's works here."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from undiffuse.kernels.choice import Status, setting

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NEAR = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}  # of the largest result
_works: dict[tuple[int | None, torch.dtype], bool] = {}  # what `_try` found, by device and precision
_reason = ""  # why Triton's norm is not used


def triton_norm(x: Tensor) -> ModuleType | None:
    """Returns Triton's norm if it is selected and takes x; None if PyTorch's operations are to be used.

    It is tried once in a process for each device and precision. If it cannot be built or its results are wrong,
    PyTorch's operations are used.

    Args:
        x: Input of the norm [B, C, H, W], on a GPU.

    Raises:
        RuntimeError: UNDIFFUSE_KERNELS requires compiled kernels, and Triton's norm does not work.
    """
    if (
        torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or x.dtype not in _DTYPES
        or x.ndim != 4
        or not x.numel()
        or len(x) > 65535  # a limit of CUDA's grids
        or not x.is_contiguous(memory_format=torch.channels_last)
    ):
        return None
    return _selected(x.device, x.dtype)


def norm_status(device: torch.device | str = "cuda") -> Status:
    """Returns which norm a GPU uses, "triton" or "torch", and why.

    Args:
        device: The GPU.
    """
    found = _selected(torch.device(device), torch.bfloat16)
    if found is not None:
        return Status("triton", f"Triton {found.triton.__version__}")
    return Status("torch", "selected" if _pinned() == "torch" else _reason)


def _pinned() -> str | None:
    """The norm that UNDIFFUSE_KERNELS or `using` selects; None if nothing does."""
    chosen = setting()
    return chosen.pins.get("norm_act", "torch" if chosen.library == "pure" else None)


def _selected(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    if _pinned() == "torch":
        return None
    key = (device.index, dtype)
    if key not in _works:
        if torch.cuda.is_current_stream_capturing():  # nothing can be tried now
            return None
        _works[key] = _try(device, dtype)
    if _works[key]:
        from undiffuse.kernels import norm_act_triton

        return norm_act_triton
    if setting().library == "compiled" or _pinned() == "triton":
        raise RuntimeError(f"UNDIFFUSE_KERNELS requires Triton's norm, but {_reason}")
    return None


def _try(device: torch.device, dtype: torch.dtype) -> bool:
    """Compares Triton's norm and its gradient with PyTorch's on small inputs: one launch, and several."""
    global _reason
    try:
        from undiffuse.kernels import norm_act_triton

        for side in (8, 20):
            x, given, grad = _example(device, dtype, side)
            weight, bias, scale, shift = given
            y, moments = norm_act_triton.forward(x, weight, bias, scale, shift, 32, 1e-5, True)
            gx, sums = norm_act_triton.backward(grad, x, weight, bias, scale, shift, moments, 32, True)
            for found, expected in zip((y, gx, *sums), _expected(x, given, grad), strict=True):
                error = (found.double() - expected).abs().max()
                if not bool(error <= _NEAR[dtype] * expected.abs().max()):
                    _reason = f"Triton's norm is wrong here: its error is {float(error):.2g}"
                    return False
    except Exception as error:  # whatever a missing package, compiler or instruction raises
        first = next(iter(str(error).strip().splitlines()), "")
        _reason = f"Triton does not work here: {type(error).__name__}: {first}"
        return False
    return True


def _example(device: torch.device, dtype: torch.dtype, side: int) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Returns x [2, 96, side, side], (weight, bias, scale, shift) and a gradient."""
    made: dict[str, Any] = {"device": device, "dtype": torch.float32}
    size = 2 * 96 * side * side
    wave = torch.sin(torch.arange(size, **made) * 0.7).view(2, side, side, 96).permute(0, 3, 1, 2)
    channel = torch.linspace(-1, 1, 96, **made)
    both = torch.linspace(-0.5, 0.5, 4 * 96, **made).view(2, 2 * 96).chunk(2, dim=1)
    x = (wave + 2 * channel[:, None, None]).to(dtype).contiguous(memory_format=torch.channels_last)
    grad = wave.flip(1).to(dtype).contiguous(memory_format=torch.channels_last)
    return x, (1 + 0.5 * channel, channel, *both), grad


def _expected(x: Tensor, given: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    """The formula in float64: the result, its gradient, and the sums over pixels of dz u and dz [B, C]."""
    weight, bias, scale, shift = (part.double() for part in given)
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().double().requires_grad_()
        parts = x.unflatten(1, (32, -1))
        mean = parts.mean(dim=(2, 3, 4), keepdim=True)
        variance = (parts - mean).square().mean(dim=(2, 3, 4), keepdim=True)
        u = ((parts - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
        z = (u * weight[:, None, None] + bias[:, None, None]) * (1 + scale)[..., None, None] + shift[..., None, None]
        y = torch.nn.functional.silu(z)
        gx, dz = torch.autograd.grad(y, (x, z), grad.double())
    return [y.detach(), gx, (dz * u.detach()).sum((2, 3)), dz.sum((2, 3))]
