"""What a denoiser says about a noisy image, as a value from which x0, noise, v, score and the reverse step follow.

Conversions at x = alpha x0 + sigma eps (variance preserving: alpha^2 + sigma^2 = 1):

    x0  = (x - sigma eps) / alpha      = alpha x - sigma v
    eps = (x - alpha x0) / sigma       = sigma x + alpha v
    v   = alpha eps - sigma x0                                (Salimans & Ho 2022)
    u   = eps - x0              x0 = (x - sigma u) / (alpha + sigma)            (flow matching's velocity)
    F   = (sigma x0 - d^2 alpha eps) / (d q),   q^2 = sigma^2 + d^2 alpha^2     (Karras et al. 2022, d their sigma_data)
          x0 = (d^2 alpha x + d sigma q F) / q^2,   eps = (sigma x - d alpha q F) / q^2
    c   : x0 = c_skip x / alpha + c_out c   (consistency models, Song et al. 2023, eq. 5), with s = sigma / alpha,
          c_skip = d^2 / ((s - s_min)^2 + d^2), c_out = d (s - s_min) / sqrt(s^2 + d^2): at s_min x0 is x / alpha
    score = -eps / sigma

The formulas with u and F hold at any level, those with v where alpha^2 + sigma^2 = 1. F is -v for d = 1.

Each is computed from what the network gave, not through a third quantity: eps from eps is the identity where
sigma = 0 would divide by zero, and v is defined at both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from undiffuse.noise_levels import Level, Transition, expand

KINDS = ("x0", "eps", "v", "previous_mean", "velocity", "edm", "consistency")


class ReverseVariance(Protocol):
    """How the variance of a reverse step is found; both methods return [B, C, H, W] or something that broadcasts.

    `log_variance` is the clipped one that densities need; `variance` the one by which a mean is shifted.
    """

    def log_variance(self, transition: Transition, like: Tensor) -> Tensor: ...
    def variance(self, transition: Transition, like: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class FixedVariance:
    """beta ("fixed_large", FIXED_LARGE) or the posterior variance ("fixed_small", FIXED_SMALL) of the step (DDPM
    section 3.2).

    The step onto the clean image uses the clipped posterior variance in both cases, for a better decoder.
    """

    kind: str

    def log_variance(self, transition: Transition, like: Tensor) -> Tensor:
        table = transition.log_posterior_variance
        if self.kind == "fixed_large":
            table = torch.where(transition.last, table, transition.log_beta)
        return _tensor(table, like)

    def variance(self, transition: Transition, like: Tensor) -> Tensor:
        if self.kind == "fixed_large":
            return self.log_variance(transition, like).exp()
        return _tensor(transition.posterior_variance, like)  # 0 in the step onto the clean image


@dataclass(frozen=True)
class VarianceFraction:
    """Learned by interpolation (Improved DDPM eq. 15): log Sigma = v log beta + (1 - v) log beta~, v [B, C, H, W].

    v is a position between the bounds of whichever step is taken, so one prediction serves any stride. v = 1 is the
    upper bound beta; it is not clamped.
    """

    fraction: Tensor

    def log_variance(self, transition: Transition, like: Tensor) -> Tensor:
        low, high = _tensor(transition.log_posterior_variance, like), _tensor(transition.log_beta, like)
        return self.fraction * high + (1 - self.fraction) * low

    def variance(self, transition: Transition, like: Tensor) -> Tensor:
        return self.log_variance(transition, like).exp()


@dataclass(frozen=True)
class LearnedLogVariance:
    """Learned directly: the network's log variance [B, C, H, W] of the reverse step `trained` of the full chain.

    For another stride the variance is carried over through the data's own uncertainty: from
    Sigma = beta~ + coef_x0^2 Var(x0 | x_t) of the trained step follows Var(x0 | x_t), and with it the variance of the
    step taken (exact second moments, Bao et al. 2022). Var(x0 | x_t) is kept in [0, sigma_t^2], its range for data of
    at most unit variance, because the trained step determines it poorly.
    """

    value: Tensor
    trained: Transition | None

    def log_variance(self, transition: Transition, like: Tensor) -> Tensor:
        if bool(transition.adjacent.all()):
            return self.value
        if self.trained is None:
            raise ValueError("a directly learned variance is defined at the steps of its chain only, not between them")
        data_variance = (self.value.exp() - _tensor(self.trained.log_posterior_variance, like).exp()) / _tensor(
            self.trained.coef_x0**2, like
        )
        data_variance = data_variance.clamp(min=0).minimum(_tensor(transition.source.sigma**2, like))
        spread = _tensor(transition.coef_x0**2, like) * data_variance
        strided = (_tensor(transition.log_posterior_variance, like).exp() + spread).log()
        return torch.where(_rows(transition.adjacent, like), self.value, strided)

    def variance(self, transition: Transition, like: Tensor) -> Tensor:
        return self.log_variance(transition, like).exp()


@dataclass(frozen=True)
class Guide:
    """A gradient of some log-probability with respect to the noisy image: `gradient(x, level)` -> [B, C, H, W].

    `at` says where the ancestral step takes it: "x_t" (as released by ADM's authors) or "mean" (their paper's
    Algorithm 1: at the mean of the reverse step).
    """

    gradient: Callable[[Tensor, Level], Tensor]
    at: str = "x_t"


@dataclass(frozen=True)
class Prediction:
    """A denoiser's answer at noisy image `x` [B, C, H, W] of noise level `level`.

    `kind`, `value`  what was predicted ("x0", "eps", "v", "velocity", "edm", "consistency", or "previous_mean": the
                     mean of the trained reverse step) [B, C, H, W]
    `variance`       of the reverse step, None if the model has no say
    `guides`         gradients that steer sampling, kept apart so that each sampler applies them in its exact form
    `trained`        the trained chain's own reverse step from this level (needed by "previous_mean")
    `direct_mean`    the mean as predicted, which clipping of x0 leaves alone (as in the original)
    `noise`          the noise [B, C, H, W] where it is known beside `value` (guidance moves both)
    `clip`           how the denoiser clips x0, None if it does not
    `sigma_data`     the standard deviation of the data that "edm" and "consistency" refer to
    `sigma_min`      sigma / alpha at which "consistency" returns its input
    `raw`            the same prediction before x0 was clipped, None where it was not: what guidance compares
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
            raise ValueError(f"unknown prediction {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.kind == "previous_mean" and self.trained is None:
            raise ValueError("a prediction of the previous mean is defined at the steps of its chain only")

    @property
    def _alpha(self) -> Tensor | float:
        return expand(self.level.alpha, self.x)

    @property
    def _sigma(self) -> Tensor | float:
        return expand(self.level.sigma, self.x)

    @cached_property
    def x0(self) -> Tensor:
        """The denoised image E[x0 | x_t] [B, C, H, W]."""
        if self.kind == "x0":
            return self.value
        if self.kind == "eps":
            level = self.level
            return expand(1 / level.alpha, self.x) * self.x - expand(level.sigma / level.alpha, self.x) * self.value
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
        """The noise in x [B, C, H, W]."""
        if self.noise is not None:
            return self.noise
        if self.kind == "eps":
            return self.value
        if self.kind == "v":
            return self._sigma * self.x + self._alpha * self.value
        if self.kind == "velocity":
            return self._combined(1.0, self.level.alpha, self.level.alpha + self.level.sigma)
        if self.kind == "edm":
            d, q = self.sigma_data, self._q
            return self._combined(self.level.sigma, -d * self.level.alpha * q, q**2)
        return (self.x - self._alpha * self.x0) / self._sigma

    @property
    def _q(self) -> Tensor:
        return (self.level.sigma**2 + self.sigma_data**2 * self.level.alpha**2).sqrt()

    def _combined(self, of_x: Tensor | float, of_value: Tensor, over: Tensor) -> Tensor:
        """(of_x x + of_value value) / over, with coefficients [B] or [1] in float64."""
        return expand(of_x / over, self.x) * self.x + expand(of_value / over, self.x) * self.value

    @property
    def v(self) -> Tensor:
        """alpha eps - sigma x0 [B, C, H, W]."""
        if self.kind == "v":
            return self.value
        if self.kind == "eps":
            return (self.value - self._sigma * self.x) / self._alpha
        if self.kind in ("velocity", "edm"):  # whose eps and x0 are both good at either end
            return self._alpha * self.eps - self._sigma * self.x0
        return (self._alpha * self.x - self.x0) / self._sigma

    @property
    def score(self) -> Tensor:
        """grad log p_t(x) = -eps / sigma [B, C, H, W]."""
        return -self.eps / self._sigma

    def with_x0(self, x0: Tensor) -> Prediction:
        """The same prediction with another denoised image; noise, v, score and mean follow it."""
        return replace(self, kind="x0", value=x0, noise=None, raw=None)

    def detached(self) -> Prediction:
        """The same with no gradient through what was predicted; the variance keeps its own (hybrid loss)."""
        mean = None if self.direct_mean is None else self.direct_mean.detach()
        return replace(self, value=self.value.detach(), direct_mean=mean, raw=None)

    def mean(self, transition: Transition) -> Tensor:
        """Mean of the reverse step: coef_x0 x0 + coef_xt x (DDPM eq. 7 with the predicted x0)."""
        mean = expand(transition.coef_x0, self.x) * self.x0 + expand(transition.coef_xt, self.x) * self.x
        if self.direct_mean is None:
            return mean
        return torch.where(_rows(transition.adjacent, self.x), self.direct_mean, mean)

    def log_variance(self, transition: Transition) -> Tensor:
        """Log variance of the reverse step, clipped for densities, [B, C, H, W] or broadcastable to it."""
        return self._variance.log_variance(transition, self.x)

    def step_variance(self, transition: Transition) -> Tensor:
        """Variance of the reverse step, by which guidance shifts its mean, [B, C, H, W] or broadcastable to it."""
        return self._variance.variance(transition, self.x)

    @property
    def _variance(self) -> ReverseVariance:
        return self.variance or FixedVariance("fixed_small")

    def guided_score(self, clip_after_guidance: bool = False) -> Prediction:
        """The prediction whose score is moved by the guides' gradients g (ADM, Algorithm 2).

            eps <- eps - sigma g,    x0 <- x0 + (sigma^2 / alpha) g

        The moved x0 is not clipped again, as in the original; near pure noise, where the factor of g grows without
        bound, that can throw the image far off. `clip_after_guidance` clips it as the denoiser does and lets the noise
        follow.
        """
        if not self.guides:
            return self
        if any(guide.at != "x_t" for guide in self.guides):
            raise ValueError("guidance at the mean exists for ancestral sampling only; use at='x_t' with this sampler")
        gradient = sum(guide.gradient(self.x, self.level) for guide in self.guides)
        alpha, sigma = self.level.alpha, self.level.sigma
        # At pure noise x says nothing of x0, and neither does a gradient with respect to x.
        factor = torch.where(alpha > 0, sigma**2 / alpha.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        x0 = self.x0 + expand(factor, self.x) * gradient
        unguided = replace(self, guides=(), direct_mean=None, raw=None)
        if clip_after_guidance and self.clip is not None:
            return unguided.with_x0(self.clip(x0))
        return replace(unguided, kind="x0", value=x0, noise=self.eps - self._sigma * gradient)


def _tensor(coefficient: Tensor, like: Tensor) -> Tensor:
    """A float64 coefficient [B] or [1] as [B or 1, 1, ...] in like's precision and place."""
    return coefficient.to(like.dtype).to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def _rows(chosen: Tensor, like: Tensor) -> Tensor:
    """A flag a sample [B] or [1] as [B or 1, 1, ...] in like's place."""
    return chosen.to(like.device).reshape(-1, *[1] * (like.ndim - 1))
