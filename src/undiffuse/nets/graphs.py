"""Records calls of networks as CUDA graphs, which launch hundreds of small operations at the cost of one.

A recorded call repeats the same operations on the same memory, so it holds for one shape of its inputs. Inputs are
copied into that memory and results out of it. Whatever cannot be recorded is called as usual.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from undiffuse.arithmetic import float32_switches
from undiffuse.kernels import choice

Function = Callable[..., tuple[Tensor, ...]]

MOST = 8
"""Recorded calls that are kept at once."""
_WARM = 2  # calls on another stream before a recording, as PyTorch's documentation asks for


class Graphs:
    """Calls functions of tensors, by a CUDA graph from the second call of a shape on.

    The functions may read other tensors, whose memory must stay in place: frozen weights. They may not read numbers
    back from the GPU.

    Attributes:
        reason: Why the last recording failed; "" if none did.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._recorded: OrderedDict[Any, _Recorded] = OrderedDict()
        self._seen: set[Any] = set()
        self._failed = False
        self._pool: Any = None

    def __call__(self, function: Function, *inputs: Tensor, name: Any = None) -> tuple[Tensor, ...]:
        """Returns what `function(*inputs)` returns; the results are no one else's memory.

        Args:
            function: A function of tensors to a tuple of tensors.
            *inputs: Its arguments.
            name: What tells this function from others; default the function itself.
        """
        if self._failed or not usable(inputs):
            return function(*inputs)
        key = (function if name is None else name, _circumstances(inputs))
        found = self._recorded.get(key)
        if found is None:
            if key not in self._seen:  # the first call builds kernels and may be the only one
                self._seen.add(key)
                return function(*inputs)
            found = self._record(key, function, inputs)
            if found is None:
                return function(*inputs)
        self._recorded.move_to_end(key)
        return found.replay(inputs)

    def clear(self) -> None:
        """Forgets all recordings, because what they read lies elsewhere now."""
        self._recorded.clear()
        self._seen.clear()

    def _record(self, key: Any, function: Function, inputs: tuple[Tensor, ...]) -> _Recorded | None:
        while len(self._recorded) >= MOST:
            self._recorded.popitem(last=False)
        try:
            with torch.inference_mode(False), torch.no_grad():
                self._pool = pool() if self._pool is None else self._pool
                self._recorded[key] = _Recorded(function, inputs, self._pool)
        except RuntimeError as error:  # too little memory, or an operation that cannot be recorded
            self.reason, self._failed = str(error).strip().split("\n")[0], True
            self._recorded.clear()
            return None
        return self._recorded[key]


class _Recorded:
    """One recorded call. All of them share a pool of memory, since each copies its results at once."""

    def __init__(self, function: Function, inputs: tuple[Tensor, ...], pool: Any) -> None:
        self._inputs = [torch.empty_like(part, requires_grad=False).copy_(part) for part in inputs]
        self._replay, self._results = capture(function, self._inputs, pool)

    def replay(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.inference_mode(False), torch.no_grad():
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given)
            self._replay()
            return tuple(result.clone() for result in self._results)


def usable(inputs: tuple[Tensor, ...]) -> bool:
    """Returns whether a call with these inputs may be a CUDA graph."""
    return (
        bool(inputs)
        and all(part.device.type == "cuda" and part.device == inputs[0].device for part in inputs)
        and not (torch.is_grad_enabled() and any(part.requires_grad for part in inputs))
        and choice.setting().pins.get("graphs") != "off"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.cuda.is_current_stream_capturing()
    )


def pool() -> Any:
    """Returns a new pool of memory."""
    return torch.cuda.graph_pool_handle()


def capture(function: Function, inputs: list[Tensor], pool: Any) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """Records `function(*inputs)`.

    Returns:
        What repeats the call with the present values of the inputs, and the results, which it overwrites.
    """
    with torch.cuda.device(inputs[0].device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            results = function(*inputs)
    return graph.replay, results


def _circumstances(inputs: tuple[Tensor, ...]) -> Any:
    """Everything beside the values of the inputs that decides which operations run."""
    shapes = tuple((part.shape, part.stride(), part.dtype, part.device) for part in inputs)
    device = inputs[0].device
    switches = tuple(sorted(float32_switches(device).items())) if device.type == "cuda" else ()
    return shapes, switches, choice.text(), torch.are_deterministic_algorithms_enabled()
