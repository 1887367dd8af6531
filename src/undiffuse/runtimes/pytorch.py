"""Runs networks by PyTorch with this package's kernels, see `nets.runner`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from undiffuse.nets.runner import NetworkRunner, prepare_for_inference

if TYPE_CHECKING:
    from undiffuse.models import DiffusionModel


def load(
    model: DiffusionModel, precision: str, device: torch.device, *, gradient: bool = False, consume: bool = False
) -> NetworkRunner:
    """Prepares the network, see `load_runner`."""
    return prepare_for_inference(model.net, precision, device, gradient=gradient, consume=consume)
