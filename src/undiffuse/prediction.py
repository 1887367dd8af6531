"""Conversions of a denoiser's prediction to x0, noise, v, score and the reverse step.

At x = alpha x0 + sigma eps (variance preserving: alpha^2 + sigma^2 = 1):

    x0  = (x - sigma eps) / alpha      = alpha x - sigma v
    eps = (x - alpha x0) / sigma       = sigma x + alpha v
    v   = alpha eps - sigma x0                                (Salimans & Ho 2022)
    u   = eps - x0              x0 = (x - sigma u) / (alpha + sigma)            (velocity of flow matching)
    F   = (sigma x0 - d^2 alpha eps) / (d q),   q^2 = sigma^2 + d^2 alpha^2     (Karras et al. 2022, d is sigma_data)
          x0 = (d^2 alpha x + d sigma q F) / q^2,   eps = (sigma x - d alpha q F) / q^2
    c   : x0 = c_skip x / alpha + c_out c   (consistency models, Song et al. 2023, eq. 5), with s = sigma / alpha,
          c_skip = d^2 / ((s - s_min)^2 + d^2), c_out = d (s - s_min) / sqrt(s^2 + d^2): at s_min, x0 is x / alpha
    score = -eps / sigma; the prediction "score" is sigma times this, -eps

The formulas with u and F hold at any level, those with v where alpha^2 + sigma^2 = 1. F is -v for d = 1.

Each quantity is computed directly from the network's output, not through a third one: eps from eps is the identity
where sigma = 0 would divide by zero, and v is defined at both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from undiffuse.noise_levels import Level, Transition, expand

KINDS = ("x0", "eps", "v", "previous_mean", "velocity", "edm", "consistency", "score")


class ReverseVariance(Protocol):
    """Computes the variance of a reverse step; both methods return [B, C, H, W] or a shape that broadcasts to it."""

    def log_variance(self, transition: Transition, like: Tensor) -> Tensor:
        """Returns the clipped log variance that densities need."""

    def variance(self, transition: Transition, like: Tensor) -> Tensor:
        """Returns the variance by which guidance shifts the mean."""


@dataclass(frozen=True)
class FixedVariance:
    """Uses beta (FIXED_LARGE) or the posterior variance (FIXED_SMALL) of the step (DDPM section 3.2).

    The step onto the clean image uses the clipped posterior variance in both cases, for a better decoder.

    Attributes:
        kind: "fixed_large" or "fixed_small".
    """

    kind: str

    def log_variance(self, transition: Transition, like: Tensor) -> Tensor:
        """See `ReverseVariance.log_variance`."""
        table = transition.log_posterior_variance
        if self.kind == "fixed_large":
            table = torch.where(transition.last, table, transition.log_beta)
        return _tensor(table, like)

    def variance(self, transition: Transition, like: Tensor) -> Tensor:
        """See `ReverseVariance.variance`."""
        if self.kind == "fixed_large":
            return self.log_variance(transition, like).exp()
        return _tensor(transition.posterior_variance, like)  # 0 in the step onto the clean image


@dataclass(frozen=True)
class VarianceFraction:
    """Interpolates the learned variance (Improved DDPM eq. 15): log Sigma = v log beta + (1 - v) log beta~.

    v is a position between the bounds of the current step, so one prediction is valid for any stride.

    Attributes:
        fraction: v [B, C, H, W]; v = 1 is the upper bound beta. It is not clamped.
    """

    fraction: Tensor

    def log_variance(self, transition: Transition, like: Tensor) -> Tensor:
        """See `ReverseVariance.log_variance`."""
        low, high = _tensor(transition.log_posterior_variance, like), _tensor(transition.log_beta, like)
        return self.fraction * high + (1 - self.fraction) * low

    def variance(self, transition: Transition, like: Tensor) -> Tensor:
        """See `ReverseVariance.variance`."""
        return self.log_variance(transition, like).exp()


@dataclass(frozen=True)
class LearnedLogVariance:
    """Uses a directly predicted log variance.

    For strided steps, the variance follows from the uncertainty about the data: Sigma = beta~ + coef_x0^2 Var(x0 | x_t)
    of the trained step gives Var(x0 | x_t), which gives the variance of the current step (exact second moments, Bao et
    al. 2022). Var(x0 | x_t) is clamped to [0, sigma_t^2], its range for data of at most unit variance, because the
    trained step determines it poorly.

    Attributes:
        value: Log variance [B, C, H, W] of the reverse step `trained`.
        trained: The reverse step of the full chain.
    """

    value: Tensor
    trained: Transition | None

    def log_variance(self, transition: Transition, like: Tensor) -> Tensor:
        """See `ReverseVariance.log_variance`; raises ValueError between the trained steps."""
        if bool(transition.adjacent.all()):
            return self.value
        if self.trained is None:
            raise ValueError(
                "a directly learned variance is defined only at the trained steps, not between them; use a strided "
                "chain instead of a grid"
            )
        data_variance = (self.value.exp() - _tensor(self.trained.log_posterior_variance, like).exp()) / _tensor(
            self.trained.coef_x0**2, like
        )
        data_variance = data_variance.clamp(min=0).minimum(_tensor(transition.source.sigma**2, like))
        spread = _tensor(transition.coef_x0**2, like) * data_variance
        strided = (_tensor(transition.log_posterior_variance, like).exp() + spread).log()
        return torch.where(_rows(transition.adjacent, like), self.value, strided)

    def variance(self, transition: Transition, like: Tensor) -> Tensor:
        """See `ReverseVariance.variance`."""
        return self.log_variance(transition, like).exp()


@dataclass(frozen=True)
class Guide:
    """Holds a gradient of a log-probability with respect to the noisy image.

    Attributes:
        gradient: (x, level) -> gradient [B, C, H, W].
        at: Where the ancestral step takes it: "x_t" (as in the code released with ADM) or "mean" (Algorithm 1 of the
            paper: at the mean of the reverse step).
    """

    gradient: Callable[[Tensor, Level], Tensor]
    at: str = "x_t"


@dataclass(frozen=True)
class Prediction:
    """Holds a denoiser's prediction for noisy images and converts it.

    Attributes:
        x: Noisy images [B, C, H, W].
        level: Their noise levels.
        kind: What was predicted: "x0", "eps", "v", "velocity", "edm", "consistency", "score" (times sigma), or
            "previous_mean" (the mean of the trained reverse step).
        value: The prediction [B, C, H, W].
        variance: Variance of the reverse step; None if the model does not predict it.
        guides: Gradients that steer sampling. They are separate so that each sampler applies them in its exact form.
        trained: Reverse step of the trained chain from this level, needed by "previous_mean".
        direct_mean: The predicted mean. Clipping x0 does not change it (as in the original).
        noise: The noise [B, C, H, W] if it is known independently of `value` (guidance moves both).
        clip: How the denoiser clips x0; None if it does not.
        sigma_data: Standard deviation of the data, for "edm" and "consistency".
        sigma_min: sigma / alpha at which "consistency" returns its input.
        raw: The prediction before x0 was clipped, which guidance compares; None if it was not clipped.
    """

    x: Tensor
    level: Level
    kind: str
    value: Tensor
    variance: ReverseVariance | None = None
    guides: tuple[Guide, ...] = ()
    trained: Transition | None = None
    direct_mean: Tensor | None = None
    noise: Tensor | None = None
    clip: Callable[[Tensor], Tensor] | None = None
    sigma_data: float = 1.0
    sigma_min: float = 0.0
    raw: Prediction | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown prediction kind {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.kind == "previous_mean" and self.trained is None:
            raise ValueError("a predicted mean is defined only at the trained steps; use a strided chain")

    @property
    def _alpha(self) -> Tensor | float:
        return expand(self.level.alpha, self.x)

    @property
    def _sigma(self) -> Tensor | float:
        return expand(self.level.sigma, self.x)

    @cached_property
    def x0(self) -> Tensor:
        """Returns the denoised images E[x0 | x_t], [B, C, H, W]."""
        if self.kind == "x0":
            return self.value
        if self.kind in ("eps", "score"):
            clean, noise = 1 / self.level.alpha, self.level.sigma / self.level.alpha
            return expand(clean, self.x) * self.x - expand(noise, self.x) * self._given_noise
        if self.kind == "v":
            return self._alpha * self.x - self._sigma * self.value
        if self.kind == "velocity":
            return self._combined(1.0, -self.level.sigma, self.level.alpha + self.level.sigma)
        if self.kind == "edm":
            d, q = self.sigma_data, self._q
            return self._combined(d**2 * self.level.alpha, d * self.level.sigma * q, q**2)
        if self.kind == "consistency":
            d, s = self.sigma_data, self.level.sigma / self.level.alpha
            skip, out = d**2 / ((s - self.sigma_min) ** 2 + d**2), d * (s - self.sigma_min) / (s**2 + d**2).sqrt()
            return self._combined(skip / self.level.alpha, out, torch.ones_like(s))
        assert self.trained is not None  # checked when the prediction was made
        c0, ct = self.trained.coef_x0, self.trained.coef_xt
        return expand(1 / c0, self.x) * self.value - expand(ct / c0, self.x) * self.x

    @cached_property
    def eps(self) -> Tensor:
        """Returns the noise in x [B, C, H, W]."""
        if self.noise is not None:
            return self.noise
        if self.kind in ("eps", "score"):
            return self._given_noise
        if self.kind == "v":
            return self._sigma * self.x + self._alpha * self.value
        if self.kind == "velocity":
            return self._combined(1.0, self.level.alpha, self.level.alpha + self.level.sigma)
        if self.kind == "edm":
            d, q = self.sigma_data, self._q
            return self._combined(self.level.sigma, -d * self.level.alpha * q, q**2)
        return (self.x - self._alpha * self.x0) / self._sigma

    @property
    def _given_noise(self) -> Tensor:
        return -self.value if self.kind == "score" else self.value

    @property
    def _q(self) -> Tensor:
        return (self.level.sigma**2 + self.sigma_data**2 * self.level.alpha**2).sqrt()

    def _combined(self, of_x: Tensor | float, of_value: Tensor, over: Tensor) -> Tensor:
        """Returns (of_x x + of_value value) / over, with coefficients [B] or [1] in float64."""
        return expand(of_x / over, self.x) * self.x + expand(of_value / over, self.x) * self.value

    @property
    def v(self) -> Tensor:
        """Returns alpha eps - sigma x0 [B, C, H, W]."""
        if self.kind == "v":
            return self.value
        if self.kind in ("eps", "score"):
            return (self._given_noise - self._sigma * self.x) / self._alpha
        if self.kind in ("velocity", "edm"):  # their eps and x0 are accurate at both ends
            return self._alpha * self.eps - self._sigma * self.x0
        return (self._alpha * self.x - self.x0) / self._sigma

    @property
    def score(self) -> Tensor:
        """Returns grad log p_t(x) = -eps / sigma [B, C, H, W]."""
        return -self.eps / self._sigma

    def with_x0(self, x0: Tensor) -> Prediction:
        """Returns the prediction with another denoised image [B, C, H, W]; noise, v, score and mean follow from it."""
        return replace(self, kind="x0", value=x0, noise=None, raw=None)

    def detached(self) -> Prediction:
        """Detaches the prediction from the graph; the variance keeps its gradient (hybrid loss)."""
        mean = None if self.direct_mean is None else self.direct_mean.detach()
        return replace(self, value=self.value.detach(), direct_mean=mean, raw=None)

    def mean(self, transition: Transition) -> Tensor:
        """Returns the mean of the reverse step: coef_x0 x0 + coef_xt x (DDPM eq. 7 with the predicted x0)."""
        mean = expand(transition.coef_x0, self.x) * self.x0 + expand(transition.coef_xt, self.x) * self.x
        if self.direct_mean is None:
            return mean
        return torch.where(_rows(transition.adjacent, self.x), self.direct_mean, mean)

    def log_variance(self, transition: Transition) -> Tensor:
        """Returns the clipped log variance of the reverse step, broadcastable to [B, C, H, W]."""
        return self._variance.log_variance(transition, self.x)

    def step_variance(self, transition: Transition) -> Tensor:
        """Returns the variance by which guidance shifts the mean of the reverse step, broadcastable to [B, C, H, W]."""
        return self._variance.variance(transition, self.x)

    @property
    def _variance(self) -> ReverseVariance:
        return self.variance or FixedVariance("fixed_small")

    def guided_score(self, clip_after_guidance: bool = False) -> Prediction:
        """Applies the guides: their gradients g move the score (ADM, Algorithm 2).

            eps <- eps - sigma g,    x0 <- x0 + (sigma^2 / alpha) g

        As in the original, the new x0 is not clipped. Near pure noise, where the factor of g grows without bound, this
        can throw the image far off.

        Args:
            clip_after_guidance: Clip the new x0 as the denoiser does, and let the noise follow from it.

        Raises:
            ValueError: A guide takes its gradient at the mean of the reverse step.
        """
        if not self.guides:
            return self
        if any(guide.at != "x_t" for guide in self.guides):
            raise ValueError("guidance at the mean requires ancestral sampling; use at='x_t' with this sampler")
        gradient = sum(guide.gradient(self.x, self.level) for guide in self.guides)
        alpha, sigma = self.level.alpha, self.level.sigma
        # Pure noise carries no information about x0, so neither does a gradient with respect to x.
        factor = torch.where(alpha > 0, sigma**2 / alpha.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        x0 = self.x0 + expand(factor, self.x) * gradient
        unguided = replace(self, guides=(), direct_mean=None, raw=None)
        if clip_after_guidance and self.clip is not None:
            return unguided.with_x0(self.clip(x0))
        return replace(unguided, kind="x0", value=x0, noise=self.eps - self._sigma * gradient)


def _tensor(coefficient: Tensor, like: Tensor) -> Tensor:
    """Reshapes a float64 coefficient [B] or [1] to [B or 1, 1, ...] in the precision and on the device of `like`."""
    return coefficient.to(like.dtype).to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _rows(chosen: Tensor, like: Tensor) -> Tensor:
    """Reshapes a flag per sample [B] or [1] to [B or 1, 1, ...] on the device of `like`."""
    return chosen.to(like.device).reshape(-1, *[1] * (like.ndim - 1))
