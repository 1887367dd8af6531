"""What float32 means: PyTorch's global switches can make "float32" layers compute in TF32 or bfloat16.

There is an old switch (`torch.set_float32_matmul_precision`) and new ones (`fp32_precision` of `torch.backends` and its
parts); PyTorch refuses to read the old one after the new ones were set. A program that sets them changes every network
in the process, on a CPU too: a linear layer then has errors of 2e-3, and results depend on the batch.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from undiffuse.util.errors import Advice

__all__ = ["advise_on_bfloat16", "computes_bfloat16", "exact_float32", "float32_switches", "steady_float32"]

_PLAIN = ("none", "ieee")


def _switches(device: str) -> dict[str, tuple[Any, Any]]:
    """The switches of a kind of device by operation: (the switch, the one it inherits from); {} before PyTorch 2.9."""
    backends: Any = torch.backends
    if not hasattr(getattr(backends, "mkldnn", None), "matmul"):
        return {}
    if device == "cpu":
        part = backends.mkldnn
        return {name: (getattr(part, name), part) for name in ("matmul", "conv", "rnn")}
    if device == "cuda":
        part = backends.cudnn
        return {"matmul": (backends.cuda.matmul, part), "conv": (part.conv, part), "rnn": (part.rnn, part)}
    return {}


def float32_switches(device: torch.device | str) -> dict[str, str]:
    """Returns the operations that do not compute in plain float32 on a device now, for example {"matmul": "bf16"}.

    Args:
        device: The device. A GPU's convolutions use TF32 by default.
    """
    kind = torch.device(device).type
    switches = _switches(kind)
    if switches:
        found = {name: str(own.fp32_precision) for name, (own, _) in switches.items()}
    else:
        found = {} if kind == "mps" else {"matmul": _LEGACY[torch.get_float32_matmul_precision()]}
        found |= {"conv": "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"} if kind == "cuda" else {}
    return {name: value for name, value in found.items() if value not in _PLAIN}


_LEGACY = {"highest": "ieee", "high": "tf32", "medium": "bf16"}


@contextmanager
def exact_float32(device: torch.device | str) -> Iterator[None]:
    """Inside the context float32 on a device is plain IEEE arithmetic; on leaving it the switches are as before.

    Args:
        device: The device that the computation runs on.
    """
    device = torch.device(device)
    if not float32_switches(device):
        yield
        return
    switches = _switches(device.type)
    before = {name: (str(own.fp32_precision), str(parent.fp32_precision)) for name, (own, parent) in switches.items()}
    legacy = _legacy_precision()
    cudnn = torch.backends.cudnn.allow_tf32 if not switches else None
    try:
        if legacy is not None:
            torch.set_float32_matmul_precision("highest")
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = False
        for own, _ in switches.values():
            if own.fp32_precision not in _PLAIN:
                own.fp32_precision = "ieee"
        yield
    finally:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy)
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = cudnn
        for name, (own, _) in switches.items():
            value, inherited = before[name]
            if own.fp32_precision != value:  # a switch that follows another is to follow it again
                own.fp32_precision = "none" if value == inherited else value


def steady_float32(device: torch.device | str) -> Any:
    """Returns a context in which the caller's switches do not change what networks compute on a CPU.

    On a GPU the switches stay as they are, because TF32 is a choice of speed there; `float32_switches` records it.

    Args:
        device: The device that the computation runs on.
    """
    return exact_float32(device) if torch.device(device).type == "cpu" else nullcontext()


def _legacy_precision() -> str | None:
    """The old switch; None where PyTorch does not answer because the new ones were set."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def computes_bfloat16() -> bool:
    """Returns whether this CPU has bfloat16 arithmetic, as far as oneDNN can tell."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is None or not torch.backends.mkldnn.is_available() or bool(supported())


@functools.lru_cache
def advise_on_bfloat16() -> None:
    """Warns, once in a process, if this CPU has no bfloat16 arithmetic, so that bfloat16 is not faster than float32."""
    if not computes_bfloat16():
        warnings.warn(
            "this CPU has no bfloat16 arithmetic: precision bf16 is emulated, which saves memory but no time",
            Advice,
            stacklevel=3,
        )
