"""Images encoded under one condition and decoded under another (dual diffusion implicit bridges, Su et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.editing.sdedit import shortened
from undiffuse.grids import NoisePath
from undiffuse.guidance import Guided
from undiffuse.noise import Noise
from undiffuse.sampling import Step, encode, sample
from undiffuse.solvers import DDIM, Solver

__all__ = ["ddib", "unguided"]


def ddib(
    denoiser: Denoiser,
    path: NoisePath,
    noise: Noise,
    x0: Tensor,
    source: Condition | None,
    target: Condition | None,
    *,
    steps: int | None = None,
    decoder: Denoiser | None = None,
    solver: Solver | None = None,
) -> Iterator[Step]:
    """Encodes images under one condition by DDIM and decodes them under another, without noise.

    Both ways are deterministic flows, and the latent between them keeps what the classes share. With equal conditions
    it is reconstruction, and what differs from x0 is the error of the two ways, of first order in 1 / steps.

    Args:
        denoiser: The denoiser of the way up.
        path: The noise levels.
        noise: Numbers the images; none is drawn.
        x0: The images, [B, C, H, W] in [-1, 1].
        source: Their conditions.
        target: The conditions of the results.
        steps: How many of the path's last steps to take, see `steps_for`; by default all.
        decoder: The denoiser of the way back, for example a guided one; by default the same.
        solver: The solver of the way back; by default DDIM.

    Yields:
        Each step of the way back, as `sampling.sample` does.

    References:
        Song et al. 2021, "Denoising Diffusion Implicit Models", section 5.4; Su et al. 2022, "Dual Diffusion Implicit
        Bridges for Image-to-Image Translation".
    """
    way = shortened(path, path.steps if steps is None else steps, denoiser.chain)
    latent = encode(denoiser, way, x0, cond=source)
    return sample(
        decoder or denoiser, way, solver or DDIM(), noise, tuple(x0.shape[1:]), cond=target, x_T=latent,
        device=x0.device,
    )  # fmt: skip


def unguided(denoiser: Denoiser) -> Denoiser:
    """Returns the denoiser within all guidance."""
    while isinstance(denoiser, Guided):
        denoiser = denoiser.denoiser
    return denoiser
