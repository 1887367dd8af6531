"""Runs networks by ONNX Runtime on a CPU, in float32."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from undiffuse.runtimes.base import GraphRunner

if TYPE_CHECKING:
    from undiffuse.models import DiffusionModel


def load(
    model: DiffusionModel, precision: str, device: torch.device, *, gradient: bool = False, consume: bool = False
) -> GraphRunner:
    """Prepares the network, see `load_runner`."""
    return GraphRunner(model, "onnxruntime", _Session, precision, consume=consume)


class _Session:
    """A graph that ONNX Runtime has loaded, with as many threads as PyTorch uses."""

    def __init__(self, graph: Path, precision: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors only
        if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":  # the machine is busy, see `cli.waiting`
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._session.run(None, dict(inputs))[0]
