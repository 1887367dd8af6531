"""The sampling loop, DDIM encoding, and interpolation of latents."""

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
    """Holds the result of one sampling step.

    Attributes:
        index: Number of the step; 0 is the noisiest.
        total: Number of steps.
        x: Images [B, C, H, W] after the step.
        prediction: The prediction that the step used.
        nfe: Calls of the denoiser since the start, including this step's.
        level: The noise level of `x`.
    """

    index: int
    total: int
    x: Tensor
    prediction: Prediction
    nfe: int = 0
    level: Level | None = None


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
    """Follows `path` from noise to images and yields every step.

    Gradients are disabled within the steps; between them, the caller's setting is in effect.

    Args:
        denoiser: The model, with its guidance.
        path: The denoiser's own chain, a strided sub-chain, or a grid of any levels (`grids.grid`).
        solver: The sampling method.
        noise: Source of noise; image i gets the same noise in any batch.
        shape: (C, H, W) of an image.
        cond: Conditions by name, [B, ...] each.
        x_T: Initial noise [B, C, H, W]; default: drawn from `noise`.
        device: Device to sample on.

    Raises:
        ValueError: The path or a condition does not fit the denoiser, or `x_T` has the wrong shape.
    """
    check_path(denoiser, path, cond)
    x = noise.normal(shape, step=0, purpose="x_T", device=device) if x_T is None else x_T.to(device)
    if len(noise) != len(x) or tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(f"x_T has shape {list(x.shape)}; expected {[len(noise), *shape]} to match `noise` and `shape`")
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
        yield Step(index, path.steps, x, prediction, nfe, transition.target)


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
    """Returns the final images [B, C, H, W] in [-1, 1] of `sample` with the same arguments."""
    for step in sample(denoiser, path, solver, noise, shape, cond=cond, x_T=x_T, device=device):
        last = step
    return last.x


def encode(
    denoiser: Denoiser, path: NoisePath, x0: Tensor, *, cond: Condition | None = None, to_noise: bool = False
) -> Tensor:
    """Encodes images into latents that deterministic DDIM (eta = 0) decodes.

    The image is taken to be at the first level of the path and moved up level by level. The round-trip error is first
    order in 1 / steps.

    Args:
        denoiser: The model.
        path: The levels; encoding ends at the noisiest one, where decoding starts.
        x0: Images [B, C, H, W] in [-1, 1].
        cond: Conditions by name.
        to_noise: Take one more step, to pure noise, as the original code does. ADM found that reconstruction is better
            without this step.

    Returns:
        Latents x_T [B, C, H, W].
    """
    check_path(denoiser, path, cond)
    x = x0
    with torch.no_grad():
        for k in range(path.steps if to_noise else path.steps - 1):
            target = path.level(k + 1) if k + 1 < path.steps else Level.noise()
            x = ddim_move(denoiser(x, path.level(k), cond).guided_score(), target)
    return x


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Interpolates spherically between latents (DDIM, Appendix D.5): a at weight 0, b at weight 1.

        sin((1-w) th) / sin(th) a + sin(w th) / sin(th) b

    with th the angle between them, for each image. Unlike linear interpolation it keeps the norm that the model expects
    of noise.

    Args:
        a: Latents [B, C, H, W].
        b: Latents [B, C, H, W].
        weight: w, from 0 to 1.

    Raises:
        ValueError: Latents are zero or opposite to each other, so that there is no shortest arc.
    """
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    norms = flat_a.norm(dim=1) * flat_b.norm(dim=1)
    cosine = (flat_a * flat_b).sum(1) / norms
    if not bool((norms > 0).all()) or bool((cosine < -1 + 1e-7).any()):
        raise ValueError("cannot interpolate latents that are zero or opposite to each other: no shortest arc exists")
    angle = torch.acos(cosine.clamp(-1, 1)).reshape(-1, *[1] * (a.ndim - 1))
    sine = torch.sin(angle)
    nearly_parallel = sine < 1e-4  # the formula tends to linear interpolation
    safe = torch.where(nearly_parallel, torch.ones_like(sine), sine)
    left = torch.where(nearly_parallel, torch.full_like(sine, 1 - weight), torch.sin((1 - weight) * angle) / safe)
    right = torch.where(nearly_parallel, torch.full_like(sine, weight), torch.sin(weight * angle) / safe)
    return left * a + right * b


def check_path(denoiser: Denoiser, path: NoisePath, cond: Condition | None) -> None:
    """Raises ValueError unless the path belongs to the denoiser's chain and the denoiser accepts the conditions."""
    if path.parent_steps not in (None, denoiser.chain.steps):
        raise ValueError(
            f"the path belongs to a chain of {path.parent_steps} steps, but the model was trained on "
            f"{denoiser.chain.steps}; use denoiser.chain.respaced(...) or grids.grid(denoiser.chain, ...)"
        )
    unused = set(cond or {}) - denoiser.conditions
    if unused:
        raise ValueError(
            f"the model does not accept the condition {', '.join(sorted(unused))} (it accepts: "
            f"{', '.join(sorted(denoiser.conditions)) or 'none'}); remove it or add guidance that uses it"
        )
