"""Guidance by what was observed of an image, with a Gaussian in place of the clean images behind a noisy one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.editing.jacobian import Pull, informative, with_pull
from undiffuse.editing.operators import Operator
from undiffuse.guidance import Guided, Schedule
from undiffuse.noise_levels import Level, expand
from undiffuse.prediction import Guide, Prediction

OBSERVED = "observed"
"""The condition that holds the observation y [B, C, h, w]."""


class ObservationGuidance(Guided):
    """The score moves by grad log p(y | x_t) for y = A x0 + n, with p(x0 | x_t) taken as a Gaussian around the denoised
    image:

        p(y | x_t) = N(A x0(x_t), A S A^T + noise^2 I),
        gradient   = (d x0 / d x_t)^T A^T (A S A^T + noise^2 I)^-1 (y - A x0)

    `iterations` 0 takes S = r^2 I with r^2 = d^2 sigma^2 / (d^2 alpha^2 + sigma^2), d = `data_std` (Pi-GDM, Song et al.
    2023, where d = 1 and the step is scaled otherwise near pure noise). That is exact for data N(m, d^2 I). Along
    directions of a larger variance C, such as the brightness of a whole image, it moves x0 by up to C / d^2 times what
    is right, and few steps overshoot; a larger d is weaker and safer.
    More take S = (sigma^2 / alpha) d x0 / d x_t, the denoiser's own covariance (Tweedie), and solve by so many steps of
    conjugate gradients from 0, preconditioned by the solution for r^2 I (moment matching, Rozet et al. 2024): exact for
    any Gaussian once they are as many as observed numbers, and too weak before.
    For other data both are approximations. Neither acts at levels next to pure noise (`jacobian.NOISIEST`).

    `noise`  standard deviation of n in the unit of images in [-1, 1]; 0 for an exact observation
    `scale`  1 is Bayes' rule; 0 nothing

    A call of the denoiser costs a forward and 1 + `iterations` backward passes. The observation is the condition
    "observed". It goes outside any other guidance. `schedule`, `every` as in `Guided`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Operator,
        noise: float,
        *,
        data_std: float = 1.0,
        iterations: int = 0,
        scale: float = 1.0,
        schedule: Schedule | None = None,
        every: int = 1,
    ) -> None:
        super().__init__(denoiser, scale, schedule, every)
        if not 0 <= noise < math.inf or not 0 < data_std < math.inf:
            raise ValueError(
                f"the observation's noise is 0 or more and the data's standard deviation above 0; got {noise} and "
                f"{data_std}"
            )
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
            raise ValueError(f"the number of iterations is 0 (Pi-GDM) or more; got {iterations!r}")
        self.operator, self.noise, self.data_std, self.iterations = operator, float(noise), float(data_std), iterations

    @property
    def conditions(self) -> frozenset[str]:
        return self.denoiser.conditions | {OBSERVED}

    def __call__(self, x: Tensor, level: Level, cond: Condition | None = None) -> Prediction:
        weight = self.weight(level) * informative(level)
        if self.is_noop(weight):
            return self.denoiser(x, level, cond)
        if cond is None or OBSERVED not in cond:
            raise ValueError(f"guidance by an observation needs it: give cond={{{OBSERVED!r}: y}}")
        if not self.cache.should_compute(x, level, cond) and self.cache.kept is not None:
            prediction = self.denoiser(x, level, cond)
            gradient = expand(1 / level.sigma, x) * self.cache.kept
        else:
            prediction, pull = with_pull(
                lambda at, there: self.denoiser(at, there, cond), x, level, keep=self.iterations > 0
            )
            gradient = self._gradient(prediction.x0, level, cond[OBSERVED], pull)
            self.cache.kept = expand(level.sigma, x) * gradient if self.cache.every > 1 else None
        moved = expand(weight, x) * gradient
        return replace(prediction, guides=(*prediction.guides, Guide(lambda point, at: moved)))

    def _gradient(self, x0: Tensor, level: Level, observed: Tensor, pull: Pull) -> Tensor:
        residual = residual_of(self.operator, observed, x0)
        alpha, sigma = level.alpha, level.sigma
        spread = self.data_std**2 * sigma**2 / (self.data_std**2 * alpha**2 + sigma**2)

        def preconditioner(u: Tensor) -> Tensor:
            return self.operator.solve(u, spread, self.noise)

        def covariance(u: Tensor) -> Tensor:
            across = expand(sigma**2 / alpha, x0) * pull(self.operator.adjoint(u))
            return self.operator(across) + self.noise**2 * u

        found = (
            conjugate_gradient(covariance, preconditioner, residual, self.iterations)
            if self.iterations
            else preconditioner(residual)
        )
        return pull(self.operator.adjoint(found))


def residual_of(operator: Operator, observed: Tensor, x0: Tensor) -> Tensor:
    """y - A x0 [B, C, h, w]. ValueError for an observation that such images do not have."""
    expected = operator(x0)
    if observed.shape != expected.shape:
        raise ValueError(
            f"what was observed is {list(observed.shape)}, but images of {list(x0.shape)} are observed as "
            f"{list(expected.shape)}"
        )
    return observed - expected


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], preconditioner: Callable[[Tensor], Tensor], target: Tensor, iterations: int
) -> Tensor:
    """An approximate solution u [B, ...] of product(u) = target by conjugate gradients from 0, each image by itself.

    `alike` is about the inverse of the product (the preconditioner), and need not be near it in size. Along a direction
    in which the product is not positive, as a network's Jacobian may be, an image does not move, and begins anew.
    """
    found, rest = torch.zeros_like(target), target
    direction = towards = preconditioner(rest)
    size = _dot(rest, towards)
    for _ in range(iterations):
        image = product(direction)
        curvature = _dot(direction, image)
        going = (curvature > 0) & (size > 0)
        step = torch.where(going, size / torch.where(going, curvature, 1.0), 0.0)
        found, rest = found + step * direction, rest - step * image
        towards = preconditioner(rest)
        now = _dot(rest, towards)
        direction = towards + torch.where(going, now / torch.where(size > 0, size, 1.0), 0.0) * direction
        size = now
    return found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products, image by image, [B, 1, 1, 1]."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))
