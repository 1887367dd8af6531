"""Chooses noise levels for a model and a number of steps: a grid on which a solver of the flow errs least.

A fine solution of the probability flow from a few noises gives the denoised image D along the way. The error of one
step from lambda to lambda', lambda = log(alpha / sigma), is an integral of D minus what the step assumes:

    error of x' / alpha' = integral of e^-(lambda' - l) (D(l) - P(l)) dl

with P constant (DDIM) or the line through the last two levels (2M). It is linear in D at the fine levels, so the mean
squares of the errors of all possible steps follow from one matrix of inner products, without any further network call.
Dynamic programming then finds the levels whose errors have the least sum. An error of x / alpha shrinks on the way to
the image by c^2 / (c^2 + e^-2 lambda) in the mean square, as it does for Gaussian data of variance c^2.

These grids are an approximation, for other solvers more so. Therefore they and the named grids are tried by the solver
itself against the fine solution, and the best is measured again, beside all others, on fresh noise.

References:
    Chen et al. 2024, "On the Trajectory Regularity of ODE-based Diffusion Sampling" (levels by dynamic programming).
    Sabour et al. 2024, "Align Your Steps" (levels by a bound).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.grids import NoisePath, grid
from undiffuse.noise import Noise
from undiffuse.noise_levels import Array, DiscreteSchedule
from undiffuse.sampling import Step, sample
from undiffuse.solvers import Solver, build_solver

FINE = 96
"""Steps of the fine solution, among whose levels those of the grid are chosen."""
NAMED = ("logsnr", "karras", "chain", "uniform", "quadratic")
"""Grids by name that are tried beside the optimised ones, where the chain has them."""


@dataclass(frozen=True)
class Batch:
    """Holds images to measure by.

    Args:
        noise: Their noise.
        cond: The conditions [B] they are made under.
    """

    noise: Noise
    cond: Condition | None = None


@dataclass(frozen=True)
class Measured:
    """Holds how far the images of a grid are from the fine solution: root mean square over pixels in [-1, 1].

    Args:
        choice: On the images that the grid was chosen by.
        check: On fresh images.
        stderr: Standard error of `check` over the images.
    """

    choice: float
    check: float
    stderr: float


@dataclass(frozen=True)
class Tuned:
    """Holds the levels that were found.

    Args:
        spec: The grid, for `grids.grid`.
        tried: All grids that were tried, with their errors.
        nfe: Network calls for an image with that grid.
    """

    spec: str
    tried: Mapping[str, Measured]
    nfe: int


def tune(
    denoiser: Denoiser,
    solver: Solver,
    steps: int,
    choice: Batch,
    check: Batch,
    shape: Sequence[int],
    *,
    fine: int = FINE,
    device: torch.device | str = "cpu",
    progress: Callable[[float], None] = lambda part: None,
) -> Tuned:
    """Chooses the grid on which a solver errs least for a denoiser.

    Args:
        denoiser: The denoiser.
        solver: The solver, which must draw no noise.
        steps: Steps of the grid, 2 or more.
        choice: Images that the grid is chosen by.
        check: Fresh images for the errors that are reported, 2 or more.
        shape: Channels, height and width of an image.
        fine: Steps of the solution that all are compared with, more than `steps`.
        device: Where it runs.
        progress: Called with the part of the network calls that were made since the last call.

    Raises:
        ValueError: A number of steps that leaves nothing to choose, a solver that draws noise, or fewer than 2 images.
    """
    if not 2 <= steps < fine:
        raise ValueError(
            f"levels are chosen for 2 or more steps, fewer than the {fine} of the fine solution; got {steps}"
        )
    if len(check.noise) < 2:
        raise ValueError(f"2 or more images are needed to know an error's error; got {len(check.noise)}")
    path = grid(denoiser.chain, str(fine), "logsnr")
    named = {spec: grid(denoiser.chain, str(steps), spec) for spec in NAMED if _exists(spec, denoiser.chain, steps)}
    total = 2 * (fine + (len(named) + 2) * steps)
    done = 0

    def solved(by: Solver, way: NoisePath, batch: Batch, seen: list[Tensor] | None = None) -> Step:
        """Returns the last step; what was predicted at each one goes to `seen`."""
        nonlocal done
        for step in sample(denoiser, way, by, _Start(batch.noise), shape, cond=batch.cond, device=device):
            if seen is not None:
                seen.append(step.prediction.x0.cpu())
            done += 1
            progress(1 / total)
        if not bool(torch.isfinite(step.x).all()):
            raise ValueError(
                "images of the model are not finite, so no levels can be chosen: check the weights, or use float32 "
                "if you used half precision"
            )
        return step

    finely = build_solver("dpmpp-3m", bool(getattr(solver, "clip_after_guidance", False)))
    denoised: list[Tensor] = []
    truth = solved(finely, path, choice, denoised).x.cpu()
    levels = np.array([float(path.level(k).logsnr) for k in reversed(range(fine))])
    texts = dict.fromkeys(
        f"at:{','.join(f'{v:.4f}' for v in found)}" for found in optimised(levels, denoised, truth, steps)
    )
    tried = {spec: grid(denoiser.chain, str(steps), spec) for spec in texts} | named
    again = solved(finely, path, check).x.cpu()
    errors: dict[str, Measured] = {}
    nfe = 0
    for spec, way in tried.items():
        runs = [solved(solver, way, batch) for batch in (choice, check)]
        nfe = runs[1].nfe
        squares = [_squares(run.x, exactly) for run, exactly in zip(runs, (truth, again), strict=True)]
        mean = float(squares[1].mean())
        spread = float(squares[1].std()) / math.sqrt(len(squares[1]))
        root = math.sqrt(mean)
        errors[spec] = Measured(math.sqrt(float(squares[0].mean())), root, spread / (2 * root) if root > 0 else 0.0)
    progress(1 - done / total)  # where both ways to optimise found the same grid
    return Tuned(min(errors, key=lambda spec: errors[spec].choice), errors, nfe)


def optimised(levels: Array, denoised: Sequence[Tensor], truth: Tensor, steps: int) -> list[list[float]]:
    """Returns the log-SNRs of the levels that dynamic programming finds, for steps of first and of second order.

    Args:
        levels: Log-SNRs of the fine levels, noisiest first, [M].
        denoised: Denoised images at each of them, [B, C, H, W].
        truth: End of the fine solution, [B, C, H, W].
        steps: Number of levels to choose.
    """
    lam = levels / 2
    gram = np.zeros((len(lam), len(lam)))
    for b in range(len(truth)):  # image by image: all at once, in float64, could take more memory than sampling
        deviations = torch.stack([x0[b] - truth[b] for x0 in denoised]).flatten(1).double().numpy()
        gram += deviations @ deviations.T / (deviations.shape[1] * len(truth))
    variance = float(truth.double().flatten(1).var(dim=0).mean()) if len(truth) > 1 else 1.0
    first, second = _costs(lam, gram, max(variance, 1e-12))
    last = np.diag(gram)  # the step onto the clean image takes D for it
    # Roots add up as errors that pull the same way do, squares as independent ones.
    chosen = [_cheapest(np.sqrt(first), None, np.sqrt(last), steps), _cheapest(first, second, last, steps)]
    return [[float(levels[k]) for k in found] for found in chosen]


def _costs(lam: Array, gram: Array, variance: float) -> tuple[Array, Array]:
    """Returns mean square errors of steps i -> j: first order [i, j], 2M after p [p, i, j]; inf if impossible."""
    count = len(lam)
    h = lam[None, :] - lam[:, None]
    # W[j] @ D is the integral from the first level to level j, of D linear between levels.
    integral = np.zeros((count, count))
    for k in range(1, count):
        gap = h[k - 1, k]
        right = 1 + math.expm1(-gap) / gap
        integral[k] = math.exp(-gap) * integral[k - 1]
        integral[k, k - 1] += -math.expm1(-gap) - right
        integral[k, k] += right
    later = h > 0
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        gone = np.where(later, -np.expm1(-h), 0.0)  # 1 - e^-h
        error = integral[None] - np.where(later, np.exp(-h), 0.0)[:, :, None] * integral[:, None]
        at = np.arange(count)
        error[at, :, at] -= gone
        shrinks = variance / (variance + np.exp(-2 * lam))
        weighed = error @ gram
        constant = np.einsum("ijk,ijk->ij", weighed, error)
        # 2M adds (1 - e^-h) / 2 * h / h_p (D_i - D_p) to a constant's step.
        slope = (gone * h / 2)[None] / np.where(later, h, np.nan)[:, :, None]
        cross = weighed[at, :, at][None] - weighed.transpose(2, 0, 1)
        change = np.diag(gram)[None, :] + np.diag(gram)[:, None] - 2 * gram
        line = constant[None] - 2 * slope * cross + slope**2 * change[:, :, None]
    first = np.where(later, np.maximum(constant, 0) * shrinks[None], np.inf)
    possible = later[:, :, None] & later[None]
    return first, np.where(possible, np.maximum(np.nan_to_num(line), 0) * shrinks[None, None], np.inf)


def _cheapest(first: Array, second: Array | None, last: Array, steps: int) -> list[int]:
    """Returns the indices of `steps` levels from 0 on with the least sum of costs.

    `first` holds those of the first step (and of all if there is no `second`), `second` those of later ones, `last`
    that of the step onto the clean image.
    """
    best = np.full_like(first, np.inf)  # by the last two levels
    best[0] = first[0]
    before: list[Array] = []
    for _ in range(steps - 2):
        total = best[:, :, None] + (first[None] if second is None else second)
        before.append(total.argmin(axis=0))
        best = total.min(axis=0)
    total = best + last[None]
    i, j = np.unravel_index(int(total.argmin()), total.shape)
    found = [int(j), int(i)]
    for came in reversed(before):
        i, j = came[i, j], i
        found.append(int(i))
    return found[::-1]


def _squares(x: Tensor, truth: Tensor) -> Tensor:
    """Returns the mean square distance of each image [B]."""
    return (x.cpu().double() - truth.double()).square().flatten(1).mean(1)


def _exists(spec: str, chain: DiscreteSchedule, steps: int) -> bool:
    """Whether a named grid of so many steps exists: those by t need trained steps and some signal."""
    return spec in ("logsnr", "karras") or (steps <= chain.steps and (spec == "chain" or not chain.ends_in_noise))


@dataclass(frozen=True)
class _Start:
    """Gives the initial noise of images, and refuses to give any on the way."""

    noise: Noise

    def __len__(self) -> int:
        return len(self.noise)

    def normal(
        self, shape: Sequence[int], step: int = 0, purpose: str = "step", device: torch.device | str = "cpu"
    ) -> Tensor:
        if purpose != "x_T":
            raise ValueError(
                "this solver draws noise, so its images cannot be compared with those the flow makes of the same "
                "start: tune the levels for a solver of the flow, without churn or eta"
            )
        return self.noise.normal(shape, step=step, purpose=purpose, device=device)
