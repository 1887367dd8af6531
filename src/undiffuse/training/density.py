"""From a density over noise levels (`timesteps`) to positions among the levels of a process."""

from __future__ import annotations

import numpy as np
import torch

from undiffuse.denoiser import ProcessConfig
from undiffuse.noise_levels import Level
from undiffuse.timesteps import Floats, Place, log_ratios, parse_density
from undiffuse.training.custom import Density
from undiffuse.util.errors import ConfigError


def placement(process: ProcessConfig, density: str | Density, *, whole: bool) -> Place | None:
    """Returns the function from (0, 1) to positions that draws noise levels with a density.

    Args:
        process: The process whose levels are drawn. Draws beyond the ends of a chain are its ends.
        density: A density by name, see `timesteps`, or a quantile function u [B] -> ln(sigma / alpha) [B].
        whole: Draw steps of the chain (int64) even where the process has levels between them.

    Returns:
        The function, or None for the steps of a chain with equal probability, which need none.

    Raises:
        ConfigError: The quantile function returns another shape or values that are not finite.
    """
    steps = process.steps
    if isinstance(density, str) and parse_density(density)[0] == "uniform":
        if whole:
            return None
        return lambda u: u * steps - 1  # from the clean image, position -1, to the last position
    preconditioning, chain = process.build_preconditioning(), process.chain()
    ends = (-0.5 * float(chain.level(0).logsnr), -0.5 * float(chain.level(steps - 1).logsnr))
    quantiles: Density = density if not isinstance(density, str) else (lambda u: log_ratios(str(density), u, ends))
    _checked(quantiles, np.array([0.25, 0.5, 0.75]))  # finds mistakes before the run

    def place(u: Floats) -> np.ndarray:
        ratio = torch.from_numpy(np.exp(_checked(quantiles, u)))
        norm = (1 + ratio**2).sqrt()
        level = Level(1 / norm, ratio / norm)
        if not whole:
            return preconditioning.position(level).numpy()
        return chain.index_of(level).round().long().numpy()

    return place


def _checked(quantiles: Density, u: Floats) -> Floats:
    values = np.asarray(quantiles(u), dtype=np.float64)
    if values.shape != u.shape or not np.isfinite(values).all():
        raise ConfigError(
            "density",
            f"for u of shape {list(u.shape)} it returned shape {list(values.shape)}, of which "
            f"{int(np.isfinite(values).sum())} are finite; expected one finite ln(sigma / alpha) for each u",
        )
    return values


def bin_of(position: torch.Tensor, steps: int, bins: int) -> torch.Tensor:
    """Which of `bins` equal parts of the chain's positions [B] each lies in, int64; beyond the ends: the outer ones."""
    return torch.div(position * bins, steps, rounding_mode="floor").clamp(0, bins - 1).long()


__all__ = ["bin_of", "placement"]
