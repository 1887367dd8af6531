"""Weights drawn from their names, so that any implementation can be given the same ones."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch


def drawn(layout: Mapping[str, torch.Tensor], scale: float = 0.3) -> dict[str, torch.Tensor]:
    """A state dict of this layout: normal numbers times `scale`, around 1 for the weights of norms and layer scales."""
    state = {}
    for name, tensor in layout.items():
        r = scale * np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape))
        parent, _, last = name.rpartition(".")
        around_one = last in ("gamma", "lambda1") or (
            last == "weight" and ("norm" in parent.lower() or ".ln_" in f".{parent}")
        )
        state[name] = torch.from_numpy(np.asarray(1 + r if around_one else r, dtype="float32"))
    return state
