"""Selection of the kernels: by the environment, by a block of code, and by availability."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from undiffuse.kernels.building import Unavailable, load

CHOICES = ("auto", "pure", "compiled")
TIMING = ("rule", "timed", "measure")
OPERATIONS: dict[str, tuple[str, ...]] = {
    "conv3x3": ("winograd", "amx", "torch"),
    "conv3x3_packed": ("winograd", "amx", "packed", "torch"),
    "conv3x3_grad": ("winograd", "amx", "torch"),
    "conv3x3_weight": ("winograd", "amx", "torch"),
    "conv1x1_packed": ("blocked", "amx", "packed"),
    "attention": ("fused", "products", "amx"),
    "attention_grad": ("fused", "products"),
}
"""The operations with several implementations, and these: our kernel ("blocked": for matrices), our kernel for the
matrix unit of Intel processors in bfloat16, oneDNN with packed weights, PyTorch's operation; PyTorch's fused attention,
two plain products with a softmax between them.

"conv3x3" is a 3x3 convolution with the weights as they are, "conv3x3_packed" one in a network prepared for inference,
"conv3x3_grad" the gradient of a 3x3 convolution with respect to its input, "conv3x3_weight" to its weights and bias.
"conv1x1_packed" is a 1x1 convolution in a network prepared for inference. "attention" is attention in bfloat16 without
gradients, "attention_grad" the same with its backward pass.
"""
GPU: dict[str, tuple[str, ...]] = {"norm_act": ("triton", "torch"), "graphs": ("on", "off")}
"""What can be pinned on GPUs: who computes norms and what follows them, and whether calls are CUDA graphs."""
_UNSET: Any = object()
_chosen: str | None = None  # set by `using`
_library: ctypes.CDLL | None = _UNSET  # set after the first attempt to build; None if it failed
_reason = ""  # why it failed
_active: ctypes.CDLL | None = _UNSET  # result of `library` until the choice changes


@dataclass(frozen=True)
class Status:
    """Describes the kernels in use.

    Attributes:
        active: "compiled" or "pure".
        reason: The reason; for compiled kernels, the path of the library.
    """

    active: str
    reason: str


@dataclass(frozen=True)
class Setting:
    """What UNDIFFUSE_KERNELS or `using` says.

    Attributes:
        library: One of `CHOICES`: whether compiled kernels are used.
        timing: "timed" (the default) times implementations once and remembers the times, "measure" times all of them
            again, "rule" times nothing and decides by a rule of thumb. None if the text has none of these words.
        pins: The implementation to use, by operation.
    """

    library: str = "auto"
    timing: str | None = None
    pins: Mapping[str, str] = field(default_factory=dict)


@functools.lru_cache
def parse(text: str, name: str = "UNDIFFUSE_KERNELS") -> Setting:
    """Reads a setting: words of `CHOICES` ("off" is "pure") and `TIMING`, and OPERATION=IMPLEMENTATION, with commas.

    Raises:
        ValueError: The text has an unknown word.
    """
    which, pins = "auto", {}
    timing: str | None = None
    for word in filter(None, (part.strip() for part in text.strip().lower().split(","))):
        operation, pinned, way = (part.strip() for part in word.partition("="))
        if word in CHOICES or word == "off":
            which = "pure" if word == "off" else word
        elif word in TIMING:
            timing = word
        elif pinned and operation in {**OPERATIONS, **GPU}:
            ways = {**OPERATIONS, **GPU}[operation]
            if way not in ways:
                raise ValueError(f"{name} has {word!r}; {operation} is one of {', '.join(ways)}")
            pins[operation] = way
        else:
            raise ValueError(
                f"{name} is {text!r}; expected one of {', '.join(CHOICES)}, off, {', '.join(TIMING)}, or an operation "
                f"and its implementation such as conv3x3=torch (operations: {', '.join([*OPERATIONS, *GPU])}), with "
                "commas between"
            )
    return Setting(which, timing, pins)


def setting() -> Setting:
    """Returns the setting made by `using` or UNDIFFUSE_KERNELS. Raises ValueError if it has an unknown word."""
    return parse(text())


def timing() -> str:
    """Returns one of `TIMING`: the word of `using`, or else of UNDIFFUSE_KERNELS, or else "timed"."""
    return setting().timing or parse(os.environ.get("UNDIFFUSE_KERNELS", "")).timing or "timed"


def text() -> str:
    """Returns the setting as it was given to `using` or to UNDIFFUSE_KERNELS."""
    return _chosen or os.environ.get("UNDIFFUSE_KERNELS", "")


def is_traced() -> bool:
    """Returns whether the calls being made are recorded by a compiler, an exporter or a transform of functions."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    )


def choice() -> str:
    """Returns whether compiled kernels are wanted, one of `CHOICES`."""
    return setting().library


def library() -> ctypes.CDLL | None:
    """Returns the compiled kernels, built and loaded by the first call; None if they are not selected or not available.

    Raises:
        RuntimeError: They are required, but not available.
    """
    global _active, _library, _reason
    if _active is not _UNSET:  # a fast path: this is called hundreds of times per second
        return _active
    wanted = choice()
    if wanted != "pure" and _library is _UNSET:
        try:
            _library = load()
        except Unavailable as error:
            _library, _reason = None, str(error)
    if wanted == "compiled" and _library is None:
        raise RuntimeError(
            f"UNDIFFUSE_KERNELS=compiled, but {_reason}. Unset it to use PyTorch's operations, which do the same work"
        )
    _active = None if wanted == "pure" else _library
    return _active


def status() -> Status:
    """Returns the kernels in use and the reason."""
    if choice() == "pure":
        return Status("pure", "selected")
    found = library()
    return Status("compiled", str(found._name)) if found is not None else Status("pure", _reason)


@contextmanager
def using(wanted: str) -> Iterator[None]:
    """Applies a setting of UNDIFFUSE_KERNELS inside the block, for the whole process; overrides the environment.

    Args:
        wanted: For example "pure", "compiled", "auto", "timed" or "conv3x3=torch,conv3x3_packed=packed".

    Raises:
        ValueError: `wanted` has an unknown word.
    """
    global _active, _chosen
    parse(wanted, "the setting of the kernels")
    before, _chosen, _active = _chosen, wanted, _UNSET
    try:
        yield
    finally:
        _chosen, _active = before, _UNSET
