"""The one sampling loop, DDIM encoding, and interpolation of latents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.grids import NoisePath
from undiffuse.noise import Noise
from undiffuse.noise_levels import Level
from undiffuse.prediction import Prediction
from undiffuse.solvers import Solver, ddim_move


@dataclass(frozen=True)
class Step:
    """A finished step: `index` of `total` (0 is the noisiest), the image x [B, C, H, W] after it, its prediction.

    `nfe`  of the denoiser since the start, this step's included
    """

    index: int
    total: int
    x: Tensor
    prediction: Prediction
    nfe: int = 0


def sample(
    denoiser: Denoiser,
    path: NoisePath,
    solver: Solver,
    noise: Noise,
    shape: Sequence[int],
    *,
    cond: Condition | None = None,
    x_T: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[Step]:
    """Go down `path` from noise to images, yielding every step.

    `path`   the denoiser's own chain, a strided sub-chain of it, or a grid of any levels (`grids.grid`)
    `noise`  numbers of the images; image i gets the same noise whatever else is in the batch
    `shape`  (C, H, W) of an image
    `x_T`    [B, C, H, W] to start from instead of the noise source's own

    Gradients are off inside the steps and as the caller left them between the steps.
    """
    check_path(denoiser, path, cond)
    x = noise.normal(shape, step=0, purpose="x_T", device=device) if x_T is None else x_T.to(device)
    if len(noise) != len(x) or tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(f"x_T is {list(x.shape)}, but {len(noise)} images of {list(shape)} are to be sampled")
    state = solver.init(x, path)
    nfe = 0

    def denoise(x: Tensor, level: Level) -> Prediction:
        nonlocal nfe
        nfe += 1
        return denoiser(x, level, cond)

    for index in range(path.steps):

        def draw(number: int = 0, index: int = index) -> Tensor:
            purpose = f"step+{number}" if number else "step"
            return noise.normal(shape, step=index, purpose=purpose, device=device)

        with torch.no_grad():
            transition = path.transition(path.steps - 1 - index)
            x, state, prediction = solver.step(denoise, x, transition, state, draw)
        yield Step(index, path.steps, x, prediction, nfe)


def generate(
    denoiser: Denoiser,
    path: NoisePath,
    solver: Solver,
    noise: Noise,
    shape: Sequence[int],
    *,
    cond: Condition | None = None,
    x_T: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The images [B, C, H, W] in [-1, 1] at the end of `sample` with the same arguments."""
    for step in sample(denoiser, path, solver, noise, shape, cond=cond, x_T=x_T, device=device):
        last = step
    return last.x


def encode(
    denoiser: Denoiser, path: NoisePath, x0: Tensor, *, cond: Condition | None = None, to_noise: bool = False
) -> Tensor:
    """Deterministic DDIM encoding of images x0 [B, C, H, W] into latents x_T that DDIM (eta = 0) decodes again.

    The image is taken to be at the chain's first level and carried up level by level; the error of going up and down
    again is first order in 1 / steps. It ends at the path's noisiest level, where decoding starts. `to_noise` goes
    one step further, to pure noise, as the original code does (ADM found that leaving this step out reconstructs
    better).
    """
    check_path(denoiser, path, cond)
    x = x0
    with torch.no_grad():
        for k in range(path.steps if to_noise else path.steps - 1):
            target = path.level(k + 1) if k + 1 < path.steps else Level.noise()
            x = ddim_move(denoiser(x, path.level(k), cond).guided_score(), target)
    return x


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Spherical interpolation of latents [B, C, H, W] (DDIM, Appendix D.5): a at weight 0, b at weight 1.

    sin((1-w) th) / sin(th) a + sin(w th) / sin(th) b with th the angle between them, image by image; it keeps the
    norm that the model expects of noise, which a straight line does not. ValueError for latents that are zero or
    opposite to each other, between which there is no such way.
    """
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    norms = flat_a.norm(dim=1) * flat_b.norm(dim=1)
    cosine = (flat_a * flat_b).sum(1) / norms
    if not bool((norms > 0).all()) or bool((cosine < -1 + 1e-7).any()):
        raise ValueError("these latents are zero or opposite to each other: there is no shortest arc between them")
    angle = torch.acos(cosine.clamp(-1, 1)).reshape(-1, *[1] * (a.ndim - 1))
    sine = torch.sin(angle)
    nearly_parallel = sine < 1e-4  # the formula's limit is the straight line
    safe = torch.where(nearly_parallel, torch.ones_like(sine), sine)
    left = torch.where(nearly_parallel, torch.full_like(sine, 1 - weight), torch.sin((1 - weight) * angle) / safe)
    right = torch.where(nearly_parallel, torch.full_like(sine, weight), torch.sin(weight * angle) / safe)
    return left * a + right * b


def check_path(denoiser: Denoiser, path: NoisePath, cond: Condition | None) -> None:
    """ValueError unless the path is one of the denoiser's own and it can use the conditions."""
    if path.parent_steps not in (None, denoiser.chain.steps):
        raise ValueError(
            f"the path goes through a chain of {path.parent_steps} steps, but the model was trained on "
            f"{denoiser.chain.steps}; take denoiser.chain.respaced(...) or grids.grid(denoiser.chain, ...)"
        )
    unused = set(cond or {}) - denoiser.conditions
    if unused:
        raise ValueError(
            f"the model cannot use the condition {', '.join(sorted(unused))} (it takes "
            f"{', '.join(sorted(denoiser.conditions)) or 'none'}); leave it out or add guidance that uses it"
        )
