"""Runs networks by OpenVINO on a CPU.

The precision is pinned: by default OpenVINO computes a float32 graph in bfloat16 on processors that can. A graph is
compiled for the size of a batch, which is up to a third faster than one for any size; the last two sizes are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from undiffuse.runtimes.base import GraphRunner

if TYPE_CHECKING:
    from undiffuse.models import DiffusionModel

_HINTS = {"fp32": "f32", "bf16": "bf16"}
_KEPT = 2
"""Sizes of batches whose compiled graphs are kept: usually the batch of a run and the rest at its end."""


def load(
    model: DiffusionModel, precision: str, device: torch.device, *, gradient: bool = False, consume: bool = False
) -> GraphRunner:
    """Prepares the network, see `load_runner`."""
    return GraphRunner(model, "openvino", _Session, precision, consume=consume)


class _Session:
    """A graph that OpenVINO has read, with as many threads as PyTorch uses."""

    def __init__(self, graph: Path, precision: str) -> None:
        import openvino

        self._core: Any = openvino.Core()
        self._graph: Any = self._core.read_model(graph)
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
            "CACHE_DIR": str(graph.parent / "openvino"),
        }
        self._compiled: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        shapes = tuple((name, value.shape) for name, value in inputs.items())
        request = self._compiled.get(shapes)
        if request is None:
            while len(self._compiled) >= _KEPT:
                self._compiled.popitem(last=False)
            fixed = self._graph.clone()
            fixed.reshape({name: list(value.shape) for name, value in inputs.items()})
            request = self._core.compile_model(fixed, "CPU", self._settings).create_infer_request()
            self._compiled[shapes] = request
        self._compiled.move_to_end(shapes)
        return np.array(request.infer(dict(inputs), share_inputs=True, share_outputs=True)[0])
