"""DDIM: a non-Markovian family with the marginals of DDPM, deterministic at eta = 0 (Song, Meng & Ermon 2020)."""

from __future__ import annotations

from torch import Tensor

from undiffuse.grids import NoisePath
from undiffuse.noise_levels import Transition, expand
from undiffuse.prediction import Prediction
from undiffuse.solvers.base import Denoise, Draw, ddim_move


class DDIM:
    """Applies DDIM's update, deterministic or with noise (equations 12 and 16 of the paper).

        x_s = alpha_s x0 + sqrt(sigma_s^2 - n^2) eps + n z,  n = eta (sigma_s / sigma_t) sqrt(1 - abar_t / abar_s)

    Guides move the score (ADM, Algorithm 2).

    Args:
        eta: Noise, at least 0. 0 is deterministic: the Euler method in sigma / alpha. 1 is ancestral sampling with the
            posterior variance. n is at most sigma_s.
        clip_after_guidance: Clip x0 again after guidance, which the original does not. Use it on grids that include the
            last step of a cosine chain, where guidance can otherwise throw the image far off.
    """

    name = "ddim"

    def __init__(self, eta: float = 0.0, clip_after_guidance: bool = False) -> None:
        if not eta >= 0:
            raise ValueError(f"eta must be at least 0 (0: deterministic, 1: ancestral); got {eta}")
        self.eta = eta
        self.clip_after_guidance = clip_after_guidance

    def init(self, x: Tensor, path: NoisePath) -> None:
        """Returns no state."""
        return None

    def step(
        self, denoise: Denoise, x: Tensor, transition: Transition, state: None, draw: Draw
    ) -> tuple[Tensor, None, Prediction]:
        """See `Solver.step`."""
        prediction = denoise(x, transition.source).guided_score(self.clip_after_guidance)
        source, target = transition.source, transition.target
        if self.eta == 0:
            return ddim_move(prediction, target), None, prediction
        ratio = (source.alpha / target.alpha) ** 2
        noise_std = (self.eta * (target.sigma / source.sigma) * (1 - ratio).sqrt()).minimum(target.sigma)
        direction = (target.sigma**2 - noise_std**2).sqrt()
        mean = expand(target.alpha, x) * prediction.x0 + expand(direction, x) * prediction.eps
        return mean + expand(noise_std, x) * draw(), None, prediction
