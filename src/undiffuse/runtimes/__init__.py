"""Programs that run a network: PyTorch with this package's kernels, or another one, one a file.

`load_runner` returns what a `ChainDenoiser` calls. Only the calls of the network leave PyTorch: solvers, guidance and
the gradients of classifiers stay there. To add a runtime, write a file here with a function
`load(model, precision, device, *, gradient, consume)` and add an entry to `runtime_specs.RUNTIMES`.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from undiffuse.models import DiffusionModel
from undiffuse.runtime_specs import RUNTIMES, check_runtime

__all__ = ["load_runner"]


def load_runner(
    model: DiffusionModel,
    name: str,
    precision: str,
    device: torch.device,
    *,
    gradient: bool = False,
    consume: bool = False,
) -> Any:
    """Makes a network ready to be called by a runtime.

    Args:
        model: The model.
        name: One of `RUNTIMES`.
        precision: "fp32", "bf16" or "fp16".
        device: The device to run on.
        gradient: Whether results are differentiated with respect to the image.
        consume: Whether the model's own weights may be given up, see `nets.prepare_for_inference`.

    Returns:
        A callable like `nets.NetworkRunner`, with its attributes `conditions` and `footprint`.

    Raises:
        ConfigError: See `check_runtime`.
        ValueError: The network cannot be exported.
    """
    check_runtime(name, precision, device.type, gradient)
    module = importlib.import_module(RUNTIMES[name].module)
    return module.load(model, precision, device, gradient=gradient, consume=consume)
