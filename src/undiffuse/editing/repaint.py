"""Inpainting by putting the known part in after every step, and going back and forth (RePaint, Lugmayr et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.editing.mask import Mask
from undiffuse.grids import NoisePath
from undiffuse.noise import Noise
from undiffuse.noise_levels import Level, diffuse
from undiffuse.prediction import Prediction
from undiffuse.sampling import Step, check_path
from undiffuse.solvers import Solver
from undiffuse.solvers.edm import noised


def repaint(
    denoiser: Denoiser,
    path: NoisePath,
    solver: Solver,
    noise: Noise,
    known: Tensor,
    mask: Mask,
    *,
    cond: Condition | None = None,
    jump: int = 10,
    resamples: int = 10,
) -> Iterator[Step]:
    """Images that are `known` [B, C, H, W] where the mask says so and sampled elsewhere, going down `path`.

    After every step the known part is replaced by alpha known + sigma z of the level reached. Every stretch of `jump`
    steps is gone `resamples` times, with x noised back up to its beginning in between, which brings the two parts into
    better agreement than plain replacement (`resamples` 1). Costs `resamples` times the steps. It is not exact, however
    often, because the known part is seen through noise drawn anew at every level: on Gaussian data, in 50 steps, ten
    resamples take off a fifth of plain replacement's bias in stretches of 10 steps and three quarters in stretches of
    one. Long stretches mix more between distant images.

    Yields every step, as `sampling.sample`; steps of repeated stretches count.
    """
    if jump < 1 or resamples < 1:
        raise ValueError(f"a stretch has 1 or more steps and is gone 1 or more times; got {jump} and {resamples}")
    check_path(denoiser, path, cond)
    if len(noise) != len(known):
        raise ValueError(f"{len(known)} known images are given, and noise for {len(noise)}")
    shape, device = tuple(known.shape[1:]), known.device

    def drawn(purpose: str, step: int) -> Tensor:
        return noise.normal(shape, step=step, purpose=purpose, device=device).to(known.dtype)

    nfe = 0

    def denoise(x: Tensor, level: Level) -> Prediction:
        nonlocal nfe
        nfe += 1
        return denoiser(x, level, cond)

    x = mask.merged(diffuse(known, path.level(path.steps - 1), drawn("known-x_T", 0)), drawn("x_T", 0))
    count, total = 0, path.steps * resamples
    for top in range(path.steps, 0, -jump):
        bottom = max(top - jump, 0)
        for again in range(resamples):
            if again:
                x = noised(x, _level(path, bottom), _level(path, top), drawn("jump", count))
            state = solver.init(x, path)
            for k in reversed(range(bottom, top)):

                def draw(number: int = 0, count: int = count) -> Tensor:
                    return drawn(f"step+{number}" if number else "step", count)

                with torch.no_grad():
                    transition = path.transition(k)
                    x, state, prediction = solver.step(denoise, x, transition, state, draw)
                    x = mask.merged(diffuse(known, transition.target, drawn("known", count)), x)
                yield Step(count, total, x, prediction, nfe, transition.target)
                count += 1


def _level(path: NoisePath, left: int) -> Level:
    """The level from which `left` transitions are left."""
    return path.level(left - 1) if left else path.transition(0).target
