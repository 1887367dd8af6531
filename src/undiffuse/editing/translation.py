"""Images carried from one class to another: encoded under the one, decoded under the other."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.editing.variation import shortened
from undiffuse.grids import Path
from undiffuse.noise import Noise
from undiffuse.sampling import Step, encode, sample
from undiffuse.solvers import DDIM, Solver


def translate(
    denoiser: Denoiser,
    path: Path,
    noise: Noise,
    x0: Tensor,
    source: Condition | None,
    target: Condition | None,
    *,
    steps: int | None = None,
    decoder: Denoiser | None = None,
    solver: Solver | None = None,
) -> Iterator[Step]:
    """Encode images x0 [B, C, H, W] under `source` by DDIM and decode them under `target`, without noise.

    Both ways are deterministic flows, and the latent between them keeps what the classes share (DDIM section 5.4; Su et
    al. 2022, "Dual Diffusion Implicit Bridges"). With target = source it is reconstruction, and what differs from x0
    is the error of the two ways, of first order in 1 / steps. `noise` numbers the images; none is drawn.

    `steps`    of the path's last ones, that far up (`steps_for`; default: to the noisiest level)
    `decoder`  for the way back, such as a guided one (default: the denoiser); `solver` (default: DDIM)
    """
    way = shortened(path, path.steps if steps is None else steps, denoiser.chain)
    latent = encode(denoiser, way, x0, cond=source)
    return sample(
        decoder or denoiser, way, solver or DDIM(), noise, tuple(x0.shape[1:]), cond=target, x_T=latent,
        device=x0.device,
    )  # fmt: skip
