"""Images taken part of the way to noise and sampled from there (SDEdit, Meng et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.grids import Grid, NoisePath
from undiffuse.noise import Noise
from undiffuse.noise_levels import DiscreteSchedule, diffuse
from undiffuse.sampling import Step, sample
from undiffuse.solvers import Solver

__all__ = ["sdedit", "shortened", "steps_for"]


def steps_for(path: NoisePath, strength: float | None = None, logsnr: float | None = None) -> int:
    """Counts the last steps of a path that an image is taken up and down again.

    Args:
        path: The path.
        strength: The part of all steps, from 0 to 1.
        logsnr: Or the log-SNR to go to: the steps from the noisiest level that is no noisier.

    Raises:
        ValueError: Both or neither is given, or that is less than one step.
    """
    if (strength is None) == (logsnr is None):
        raise ValueError("give either a strength from 0 to 1 or a log-SNR")
    if strength is not None:
        if not 0 <= strength <= 1:
            raise ValueError(f"a strength is a part of the way to noise, from 0 to 1; got {strength:g}")
        steps = round(strength * path.steps)
        given = f"strength {strength:g}"
    else:
        steps = sum(float(path.level(k).logsnr) >= float(logsnr or 0) for k in range(path.steps))
        given = f"log-SNR {logsnr:g}"
    if steps == 0:
        raise ValueError(f"{given} is less than one of {path.steps} steps, which changes nothing: give more of either")
    return steps


def shortened(path: NoisePath, steps: int, chain: DiscreteSchedule) -> NoisePath:
    """Returns the last `steps` steps of a path, through the levels of `chain`, as a path of its own."""
    if not 1 <= steps <= path.steps:
        raise ValueError(f"a path of {path.steps} steps has no last {steps}")
    if steps == path.steps:
        return path
    if isinstance(path, DiscreteSchedule):
        return DiscreteSchedule(
            path.betas[:steps], path.indices[:steps].tolist(), path.parent_steps, path.alphas_cumprod[:steps]
        )
    levels = [path.level(k) for k in reversed(range(steps))] + [path.transition(0).target]
    alpha, sigma = [float(level.alpha) for level in levels], [float(level.sigma) for level in levels]
    return Grid(alpha, sigma, None if path.parent_steps is None else chain, path.spec)


def sdedit(
    denoiser: Denoiser,
    path: NoisePath,
    solver: Solver,
    noise: Noise,
    x0: Tensor,
    steps: int,
    *,
    cond: Condition | None = None,
) -> Iterator[Step]:
    """Diffuses images to a level of the path and samples from there (SDEdit, Meng et al. 2022).

    Few steps keep the image, many keep its coarse parts. All of them use nothing of it: that is `sampling.sample`.

    Args:
        denoiser: The denoiser, guided or not.
        path: The noise levels.
        solver: The sampling method.
        noise: The noise of the B images.
        x0: The images, [B, C, H, W] in [-1, 1].
        steps: How many of the path's steps are left at the level that they are taken to, see `steps_for`.
        cond: The conditions of the denoiser.

    Yields:
        Each step, as `sampling.sample` does.
    """
    way, shape = shortened(path, steps, denoiser.chain), tuple(x0.shape[1:])
    start = noise.normal(shape, step=0, purpose="x_T", device=x0.device).to(x0.dtype)
    if steps < path.steps:
        start = diffuse(x0, way.level(steps - 1), start)
    return sample(denoiser, way, solver, noise, shape, cond=cond, x_T=start, device=x0.device)
