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
_WAVES = ("Cos", "Sin")
"""Operations of which time embeddings are made."""


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
        self._waves: Any = None if precision == "fp32" else self._apart()

    def _apart(self) -> Any:
        """Makes the waves of the time embedding inputs of the graph; returns what computes them, in float32.

        In bfloat16, OpenVINO also rounds the angles, which are up to 1,000: the network would see another time.
        """
        import openvino

        whole = self._graph.clone()
        waves = [op for op in whole.get_ordered_ops() if op.get_type_name() in _WAVES]
        if not waves:
            return None
        found = openvino.Model([op.output(0) for op in waves], whole.get_parameters(), "waves")
        twins = [op for op in self._graph.get_ordered_ops() if op.get_type_name() in _WAVES]
        for number, op in enumerate(twins):
            given = openvino.opset13.parameter(op.get_output_partial_shape(0), np.float32, name=f"wave {number}")
            given.output(0).set_names({f"wave {number}"})
            for user in op.output(0).get_target_inputs():
                user.replace_source_output(given.output(0))
            self._graph.add_parameters([given])
        self._graph.validate_nodes_and_infer_types()
        settings = {**self._settings, "INFERENCE_PRECISION_HINT": _HINTS["fp32"]}
        return self._core.compile_model(found, "CPU", settings)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        if self._waves is not None:
            found = self._waves(dict(inputs))
            inputs = {**inputs, **{f"wave {number}": found[number] for number in range(len(found))}}
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
