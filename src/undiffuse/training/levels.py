"""From a density over noise levels (`timesteps`) to positions among the levels of a process."""

from __future__ import annotations

import numpy as np
import torch

from undiffuse.denoiser import ProcessConfig
from undiffuse.levels import Level
from undiffuse.timesteps import Floats, Place, log_ratios, parse_density


def placement(process: ProcessConfig, density: str, *, whole: bool) -> Place | None:
    """The function from (0, 1) to positions that draws noise levels of `process` with `density`.

    `whole` asks for steps of the chain (int64) also where the process has levels between them. None: the steps of a
    chain, all alike, which need no function. Draws beyond a chain's ends are its ends.
    """
    steps = process.steps
    if parse_density(density)[0] == "uniform":
        if whole:
            return None
        return lambda u: u * steps - 1  # from the clean image, position -1, to the last position
    family, chain = process.levels(), process.chain()
    ends = (-0.5 * float(chain.level(0).logsnr), -0.5 * float(chain.level(steps - 1).logsnr))
    log_ratios(density, np.array([0.5]), ends)  # says now what is wrong with it

    def place(u: Floats) -> np.ndarray:
        ratio = torch.from_numpy(np.exp(log_ratios(density, u, ends)))
        norm = (1 + ratio**2).sqrt()
        level = Level(1 / norm, ratio / norm)
        if not whole:
            return family.position(level).numpy()
        return chain.index_of(level).round().long().numpy()

    return place


def bin_of(position: torch.Tensor, steps: int, bins: int) -> torch.Tensor:
    """Which of `bins` equal parts of the chain's positions [B] each lies in, int64; beyond the ends: the outer ones."""
    return torch.div(position * bins, steps, rounding_mode="floor").clamp(0, bins - 1).long()


__all__ = ["bin_of", "placement"]
