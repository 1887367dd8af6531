"""Diffusion problems with closed-form solutions: Gaussian mixtures as tiny images.

    x0 ~ sum_k w_k N(m_k, C_k) in R^D, D = C*H*W, and x = alpha x0 + sigma eps. With V_k = alpha^2 C_k + sigma^2 I:

    log p(x)   = logsumexp_k [log w_k + log N(x; alpha m_k, V_k)],   r_k = softmax of the same terms
    score      = sum_k r_k s_k,   s_k = V_k^-1 (alpha m_k - x)
    E[x0 | x]  = sum_k r_k mu_k,  mu_k = m_k + alpha C_k V_k^-1 (x - alpha m_k)
    Var(x0|x)  = sum_k r_k (diag(C_k - alpha^2 C_k V_k^-1 C_k) + mu_k^2) - E[x0|x]^2   (per dimension)
    p(y | x)   = sum_{k in y} r_k,   gradient of its log = sum_{k in y} r_k s_k / p(y|x) - score

Everything is computed in the dtype of x, normally float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import DiscreteSchedule, Level, Transition
from undiffuse.prediction import FixedVariance, Prediction


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture over images.

    Attributes:
        shape: (C, H, W) of an image; D = C*H*W.
        weights: Weights of the components [K].
        means: Means [K, D].
        variances: Eigenvalues of the covariances [K, D].
        rotations: Matrices [K, D, D] with the eigenvectors as columns; None for axis-aligned components.
        labels: The class of each component [K].
    """

    shape: tuple[int, int, int]
    weights: Tensor
    means: Tensor
    variances: Tensor
    rotations: Tensor | None = None
    labels: tuple[int, ...] = ()

    @classmethod
    def scalar(
        cls, weights: Sequence[float], means: Sequence[float], deviations: Sequence[float], labels: Sequence[int] = ()
    ) -> Mixture:
        """Returns a mixture over images of a single number."""
        column = [torch.tensor(v, dtype=torch.float64)[:, None] for v in (means, deviations)]
        return cls(
            (1, 1, 1), torch.tensor(weights, dtype=torch.float64), column[0], column[1] ** 2, None, tuple(labels)
        )

    @classmethod
    def random(cls, shape: tuple[int, int, int], components: int, seed: int, classes: int = 1) -> Mixture:
        """Returns a mixture with random means, orientations and spectra; component k has class k mod `classes`."""
        g = torch.Generator().manual_seed(seed)
        d = math.prod(shape)
        means = 0.6 * torch.randn(components, d, generator=g, dtype=torch.float64)
        variances = torch.rand(components, d, generator=g, dtype=torch.float64) * 0.2 + 0.02
        rotations = torch.linalg.qr(torch.randn(components, d, d, generator=g, dtype=torch.float64))[0]
        weights = torch.rand(components, generator=g, dtype=torch.float64) + 0.5
        return cls(
            shape, weights / weights.sum(), means, variances, rotations, tuple(k % classes for k in range(components))
        )

    @property
    def dimension(self) -> int:
        return math.prod(self.shape)

    def of_class(self, label: int) -> Mixture:
        """Returns the distribution of one class."""
        keep = [k for k, own in enumerate(self.labels) if own == label]
        rotations = None if self.rotations is None else self.rotations[keep]
        weights = self.weights[keep] / self.weights[keep].sum()
        return Mixture(self.shape, weights, self.means[keep], self.variances[keep], rotations, (label,) * len(keep))

    def sample(self, count: int, seed: int) -> Tensor:
        """Draws x0 [count, C, H, W]."""
        g = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.weights, count, replacement=True, generator=g)
        z = torch.randn(count, self.dimension, generator=g, dtype=torch.float64) * self.variances[k].sqrt()
        if self.rotations is not None:
            z = torch.einsum("bij,bj->bi", self.rotations[k], z)
        return (self.means[k] + z).reshape(count, *self.shape)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Returns the mean [D] and covariance [D, D] of x0."""
        rotations = (
            torch.eye(self.dimension, dtype=torch.float64).expand(len(self.weights), -1, -1)
            if self.rotations is None
            else self.rotations
        )
        covariances = torch.einsum("kij,kj,klj->kil", rotations, self.variances, rotations)
        mean = self.weights @ self.means
        spread = torch.einsum("k,ki,kj->ij", self.weights, self.means, self.means)
        return mean, torch.einsum("k,kij->ij", self.weights, covariances) + spread - torch.outer(mean, mean)

    def _terms(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Returns log joint [B, K], residual in eigenbases and eigenvalues of V [B, K, D], alpha, sigma [B, 1, 1]."""
        alpha, sigma = (v.to(x.dtype).reshape(-1, 1, 1) for v in (alpha, sigma))
        residual = x.reshape(len(x), 1, -1) - alpha * self.means.to(x.dtype)
        if self.rotations is not None:
            residual = torch.einsum("kji,bkj->bki", self.rotations.to(x.dtype), residual)
        v = alpha**2 * self.variances.to(x.dtype) + sigma**2
        log_normal = -0.5 * (residual**2 / v + v.log() + math.log(2 * math.pi)).sum(-1)
        return self.weights.to(x.dtype).log() + log_normal, residual, v, alpha, sigma

    def _back(self, eigen: Tensor) -> Tensor:
        """Converts eigenbasis coordinates [B, K, D] to vectors."""
        return eigen if self.rotations is None else torch.einsum("kij,bkj->bki", self.rotations.to(eigen.dtype), eigen)

    def log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns log p(x) [B] in nats at the level (alpha, sigma); alpha 1 and sigma 0 is the data itself."""
        return self._terms(x, alpha, sigma)[0].logsumexp(1)

    def score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns grad log p(x), of x's shape."""
        joint, residual, v, _, _ = self._terms(x, alpha, sigma)
        return torch.einsum("bk,bki->bi", joint.softmax(1), self._back(-residual / v)).reshape(x.shape)

    def eps(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns the exact noise prediction E[eps | x] = -sigma score."""
        return -sigma.to(x.dtype).reshape(-1, 1, 1, 1) * self.score(x, alpha, sigma)

    def _conditional_means(self, residual: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
        return self.means.to(v.dtype) + self._back(alpha * self.variances.to(v.dtype) / v * residual)

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns E[x0 | x], of x's shape."""
        joint, residual, v, alpha, _ = self._terms(x, alpha, sigma)
        mu = self._conditional_means(residual, v, alpha)
        return torch.einsum("bk,bki->bi", joint.softmax(1), mu).reshape(x.shape)

    def variance(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns Var(x0 | x) of each dimension, of x's shape."""
        joint, residual, v, alpha, sigma = self._terms(x, alpha, sigma)
        mu = self._conditional_means(residual, v, alpha)
        own = self.variances.to(v.dtype) * sigma**2 / v  # eigenvalues of C - alpha^2 C V^-1 C
        if self.rotations is not None:
            own = torch.einsum("kij,bkj->bki", self.rotations.to(v.dtype) ** 2, own)
        r = joint.softmax(1)
        mean = torch.einsum("bk,bki->bi", r, mu)
        return (torch.einsum("bk,bki->bi", r, own + (mu - mean[:, None]) ** 2)).reshape(x.shape)

    def class_log_posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns log p(y | x) [B, number of classes]."""
        joint = self._terms(x, alpha, sigma)[0]
        classes = max(self.labels) + 1
        members = [[k for k, own in enumerate(self.labels) if own == label] for label in range(classes)]
        by_class = torch.stack([joint[:, keep].logsumexp(1) for keep in members], dim=1)
        return by_class - by_class.logsumexp(1, keepdim=True)

    def class_gradient(self, x: Tensor, y: int, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns grad_x log p(y | x), of x's shape."""
        return self.of_class(y).score(x, alpha, sigma) - self.score(x, alpha, sigma)

    def class_gradients(self, x: Tensor, level: Level, y: Tensor) -> Tensor:
        """Returns grad_x log p(y | x) with one class per row, y [B]: the exact classifier in the form for guidance."""
        each = torch.stack([self.class_gradient(x, k, level.alpha, level.sigma) for k in range(max(self.labels) + 1)])
        return each[y, torch.arange(len(x))]


class _AtTimes(nn.Module):
    """Finds the level for a network's time input, which is the original step index times `scale`."""

    def __init__(self, mixture: Mixture, chain: DiscreteSchedule, scale: float = 1.0) -> None:
        super().__init__()
        self.mixture, self.chain, self.scale = mixture, chain, scale
        self.position = {int(index): k for k, index in enumerate(chain.indices)}
        self.times: list[Tensor] = []  # the time input of each call

    def steps(self, t: Tensor) -> Tensor:
        self.times.append(t.detach().clone())
        return torch.tensor([self.position[round(float(v) / self.scale)] for v in t.cpu()])

    def level(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k = self.steps(t)
        level: Level = self.chain.level(k)
        return k, level.alpha, level.sigma


class OracleNet(_AtTimes):
    """The exact network of a chain: net(x [B, C, H, W], t [B]) -> [B, C or 2C, H, W].

    Args:
        mixture: The data.
        chain: The noise levels.
        target: What the network predicts: "eps", "x0", "v" or "previous_mean".
        fraction: None for a network without a variance output; "optimal" for the variance that minimizes the bound on
            this chain, beta~ + coef_x0^2 Var(x0 | x), output as the interpolation 2v - 1; or a constant v.
        scale: Factor of the step index in the time input.
    """

    def __init__(
        self,
        mixture: Mixture,
        chain: DiscreteSchedule,
        target: str = "eps",
        fraction: str | float | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(mixture, chain, scale)
        self.target, self.fraction = target, fraction

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        k, alpha, sigma = self.level(t)
        wide = lambda v: torch.as_tensor(v, dtype=x.dtype).reshape(-1, 1, 1, 1)  # noqa: E731
        x0, eps = self.mixture.denoised(x, alpha, sigma), self.mixture.eps(x, alpha, sigma)
        out = {
            "x0": x0,
            "eps": eps,
            "v": wide(alpha) * eps - wide(sigma) * x0,
            "previous_mean": wide(self.chain.posterior_mean_coef1[k]) * x0
            + wide(self.chain.posterior_mean_coef2[k]) * x,
        }[self.target]
        if self.fraction is None:
            return out
        return torch.cat([out, 2 * self._fraction(x, k, alpha, sigma) - 1], dim=1)

    def _fraction(self, x: Tensor, k: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        if self.fraction != "optimal":
            return torch.full_like(x, float(self.fraction))  # type: ignore[arg-type]
        wide = lambda v: torch.as_tensor(v, dtype=x.dtype).reshape(-1, 1, 1, 1)  # noqa: E731
        spread = self.mixture.variance(x, alpha, sigma)
        best = wide(self.chain.posterior_variance[k]) + wide(self.chain.posterior_mean_coef1[k]) ** 2 * spread
        low, high = wide(self.chain.posterior_log_variance_clipped[k]), wide(self.chain.betas[k]).log()
        return (best.log() - low) / (high - low)


class OracleClassifier(_AtTimes):
    """The exact noisy classifier: net(x, t) -> log p(y | x_t) [B, classes], differentiable in x."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        _, alpha, sigma = self.level(t)
        return self.mixture.class_log_posterior(x, alpha, sigma)


@dataclass(frozen=True)
class OptimalVariance:
    """The reverse variance that matches the exact second moment: beta~ + coef_x0^2 `data`, data = Var(x0 | x_t)."""

    data: Tensor

    def variance(self, transition: Transition, like: Tensor) -> Tensor:
        posterior = torch.where(transition.last, 0.0, transition.log_posterior_variance.exp())
        posterior, weight = (v.to(like.dtype).reshape(-1, 1, 1, 1) for v in (posterior, transition.coef_x0**2))
        return posterior + weight * self.data

    def log_variance(self, transition: Transition, like: Tensor) -> Tensor:
        return self.variance(transition, like).log()


class OracleDenoiser:
    """The exact denoiser of a mixture at any level, as a `Denoiser`. `calls` records the batch size of each call.

    Args:
        mixture: The data.
        chain: The noise levels.
        variance: "fixed_large", "fixed_small", or "optimal" (the exact second moment at x, which a network learns).
        conditional: Whether the condition y selects the denoiser of a class for each row; a number beyond the classes
            (a null class) selects the whole mixture.
    """

    def __init__(
        self, mixture: Mixture, chain: DiscreteSchedule, variance: str = "fixed_small", conditional: bool = False
    ) -> None:
        self.mixture, self.chain, self.variance = mixture, chain, variance
        self.conditions = frozenset({"y"}) if conditional else frozenset()
        self.calls: list[int] = []

    def __call__(self, x: Tensor, level: Level, cond: Mapping[str, Tensor] | None = None) -> Prediction:
        self.calls.append(len(x))
        mixtures = {k: self.mixture.of_class(k) for k in self.mixture.labels}
        y = cond["y"].tolist() if cond and self.conditions else [-1] * len(x)
        found = {k: mixtures.get(k, self.mixture) for k in set(y)}
        of_row = torch.tensor([list(found).index(k) for k in y])

        def by_row(what: str) -> Tensor:
            each = torch.stack([getattr(m, what)(x, level.alpha, level.sigma) for m in found.values()])
            return each[of_row, torch.arange(len(x))]

        variance: Any = FixedVariance(self.variance)
        if self.variance == "optimal":
            variance = OptimalVariance(by_row("variance"))
        return Prediction(x, level, "eps", by_row("eps"), variance)


class Noise64:
    """A noise source in float64, for tests whose errors are smaller than float32 rounding."""

    def __init__(self, seed: int, count: int) -> None:
        self.source = NoiseSource(seed, range(count))

    def __len__(self) -> int:
        return len(self.source)

    def normal(self, shape: Sequence[int], step: int = 0, purpose: str = "step", device: Any = "cpu") -> Tensor:
        return self.source.normal(shape, step=step, purpose=purpose, device=device).double()


def wasserstein1(a: Tensor, b: Tensor) -> float:
    """Returns the W1 distance of two equally large sets of numbers: the mean difference of the sorted values."""
    return (a.flatten().sort().values - b.flatten().sort().values).abs().mean().item()
