"""Timestep samplers for training, and densities over noise levels.

Samplers draw timesteps uniformly, antithetically, stratified, or by importance (the loss's second moment). Each maps
the uniform numbers of the global batch to timesteps, so the draw of image n of a run is a function of the seed and n,
and all ranks agree without communication.

A density says how often each noise level is drawn, as the quantiles of ln(sigma / alpha):

    uniform                  even over the steps of a chain, or over the positions of a continuous preconditioning
    lognormal:m,s            ln(sigma / alpha) ~ N(m, s^2); default -1.2,1.2 (Karras et al. 2022)
    logitnormal:m,s          t = sigma / (alpha + sigma), logit(t) ~ N(m, s^2); default 0,1 (Esser et al. 2024). Since
                             logit(t) = ln(sigma / alpha), this is lognormal with other defaults
    uniform-logsnr:low,high  log-SNR even between two ends; default: the ends of the process

A density is part of the objective: unlike importance sampling, it does not weight its draws back to uniform ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Place = Callable[[Floats], NDArray[np.generic]]


class TimestepSampler(Protocol):
    """Draws the timesteps of a training batch."""

    def sample(self, u: Floats) -> tuple[NDArray[np.generic], Floats]:
        """Maps uniform numbers u [B] in (0, 1) to timesteps.

        Returns:
            Timesteps [B] (step numbers, or float64 positions of continuous levels), and weights [B] that keep the
            expected loss unbiased.
        """

    def update(self, t: Ints, losses: Floats) -> None:
        """Records the unweighted losses [B] of timesteps t [B]."""

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """Returns the state to save, by name."""

    def load_state_dict(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Restores a saved state."""


class Uniform:
    """Draws every timestep with the same probability, independently.

    Args:
        steps: Number of timesteps.
        density: Increasing function from (0, 1) to positions of noise levels; default: even over the steps.
    """

    def __init__(self, steps: int, density: Place | None = None) -> None:
        self.steps = steps
        self.density = density

    def place(self, u: Floats) -> Floats:
        """Returns where in (0, 1) each image's timestep lies; subclasses couple the images of a batch here."""
        return u

    def sample(self, u: Floats) -> tuple[NDArray[np.generic], Floats]:
        """See `TimestepSampler.sample`; all weights are 1."""
        placed = self.place(u)
        if self.density is not None:
            return self.density(placed), np.ones(len(placed))
        return np.minimum((placed * self.steps).astype(np.int64), self.steps - 1), np.ones(len(placed))

    def update(self, t: Ints, losses: Floats) -> None:
        """Ignores losses."""

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """Returns no state."""
        return {}

    def load_state_dict(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Raises ValueError if there is any state to restore."""
        if state:
            raise ValueError(
                f"the timestep sampler {type(self).__name__.lower()!r} has no state to restore, got {sorted(state)}"
            )


class Antithetic(Uniform):
    """Draws pairs t, T - 1 - t (the DDIM authors' code): each batch covers both halves of the chain evenly."""

    def place(self, u: Floats) -> Floats:
        """Mirrors every second number of the batch: u, 1 - u."""
        out = u.copy()
        pairs = len(u) // 2
        out[1 : 2 * pairs : 2] = 1 - u[0 : 2 * pairs : 2]
        return out


class Stratified(Uniform):
    """Shifts an even comb by one uniform number: u_i = (u_0 + i / B) mod 1, the uniform draw of lowest variance."""

    def place(self, u: Floats) -> Floats:
        """Returns (u_0 + i / B) mod 1."""
        return (u[0] + np.arange(len(u)) / len(u)) % 1.0


class LossSecondMoment:
    """Draws timesteps by importance for the variational bound: p_t ~ sqrt(E[L_t^2]) (Improved DDPM eq. 18).

    Sampling is uniform until every timestep has `history` losses; then p = (1 - uniform) w / sum(w) + uniform / T with
    w_t the root mean square of the history of t. `update` expects unweighted losses of all ranks, in the same order on
    each rank.

    Args:
        steps: Number of timesteps T.
        history: Number of losses kept per timestep.
        uniform: Share of uniform draws, in [0, 1].
    """

    def __init__(self, steps: int, history: int = 10, uniform: float = 0.001) -> None:
        self.steps = steps
        self.uniform = uniform
        self.losses = np.zeros((steps, history))
        self.counts = np.zeros(steps, dtype=np.int64)

    def probabilities(self) -> Floats:
        """Returns the probability of each timestep [T]."""
        if (self.counts < self.losses.shape[1]).any():
            return np.full(self.steps, 1 / self.steps)
        root_mean_square = np.sqrt(np.mean(self.losses**2, axis=1))
        total = root_mean_square.sum()
        if total == 0:
            return np.full(self.steps, 1 / self.steps)
        return (1 - self.uniform) * root_mean_square / total + self.uniform / self.steps

    def sample(self, u: Floats) -> tuple[Ints, Floats]:
        """See `TimestepSampler.sample`; the weights are 1 / (T p_t)."""
        p = self.probabilities()
        t = np.minimum(np.searchsorted(np.cumsum(p), u, side="right"), self.steps - 1).astype(np.int64)
        return t, 1 / (self.steps * p[t])

    def update(self, t: Ints, losses: Floats) -> None:
        """Adds finite losses [B] to the histories of timesteps t [B]."""
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            if not np.isfinite(loss):
                continue  # the engine counts and reports bad batches
            if self.counts[step] < self.losses.shape[1]:
                self.losses[step, self.counts[step]] = loss
                self.counts[step] += 1
            else:
                self.losses[step, :-1] = self.losses[step, 1:]
                self.losses[step, -1] = loss

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """Returns the losses [T, history] and their counts [T]."""
        return {"losses": self.losses.copy(), "counts": self.counts.copy()}

    def load_state_dict(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Restores the histories; raises ValueError if they have another shape."""
        if set(state) != {"losses", "counts"} or state["losses"].shape != self.losses.shape:
            raise ValueError(
                f"the saved loss history does not fit: expected {self.steps} timesteps with {self.losses.shape[1]} "
                "losses each"
            )
        self.losses = np.array(state["losses"], dtype=np.float64)
        self.counts = np.array(state["counts"], dtype=np.int64)


def make_timestep_sampler(name: str, steps: int, density: Place | None = None) -> TimestepSampler:
    """Builds a timestep sampler.

    Args:
        name: One of `SAMPLERS`.
        steps: Number of timesteps.
        density: See `Uniform`; None is even over the timesteps.

    Raises:
        ValueError: The name is unknown, or the sampler cannot have a density.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown timestep sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
    if name == "loss-second-moment":
        if density is not None:
            raise ValueError(
                "loss-second-moment draws the steps of a chain by their losses, so it accepts neither a density nor "
                "continuous levels; choose uniform, antithetic or stratified"
            )
        return LossSecondMoment(steps)
    return _EVEN[name](steps, density)


_EVEN: dict[str, type[Uniform]] = {"uniform": Uniform, "antithetic": Antithetic, "stratified": Stratified}
SAMPLERS = (*_EVEN, "loss-second-moment")
DENSITIES: dict[str, tuple[float, ...]] = {
    "uniform": (),
    "lognormal": (-1.2, 1.2),
    "logitnormal": (0.0, 1.0),
    "uniform-logsnr": (),
}
"""Densities by name, with their default numbers."""


def parse_density(spec: str) -> tuple[str, tuple[float, ...]]:
    """Parses "lognormal" or "lognormal:-1.2,1.2" into ("lognormal", (-1.2, 1.2)); raises ValueError for other text."""
    name, colon, text = str(spec).partition(":")
    if name not in DENSITIES:
        raise ValueError(f"unknown density of noise levels {spec!r}; choose one of {', '.join(DENSITIES)}")
    if not colon:
        return name, DENSITIES[name]
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    fits = len(numbers) == 2 and all(math.isfinite(number) for number in numbers) and name != "uniform"
    if fits and name == "uniform-logsnr":
        fits = numbers[0] < numbers[1]
    elif fits:
        fits = numbers[1] > 0
    if not fits:
        expected = {"uniform": "uniform, without numbers", "uniform-logsnr": "uniform-logsnr:-10,10 (low, high)"}
        raise ValueError(f"cannot read the density {spec!r}; expected {expected.get(name, f'{name}:mean,deviation')}")
    return name, numbers


def log_ratios(spec: str, u: Floats, ends: tuple[float, float]) -> Floats:
    """Returns the quantiles of ln(sigma / alpha) under a density.

    Args:
        spec: A density other than "uniform", which depends on the steps of the process.
        u: Shares [B] in (0, 1).
        ends: ln(sigma / alpha) at both ends of the process, for "uniform-logsnr" without numbers.

    Returns:
        The values [B] below which the shares u of the draws lie.

    Raises:
        ValueError: The density is "uniform", or it needs the ends and one is infinite.
    """
    name, numbers = parse_density(spec)
    if name == "uniform":
        raise ValueError("the density 'uniform' depends on the steps of the process, not on ln(sigma / alpha)")
    if name == "uniform-logsnr":
        low, high = ends if not numbers else (-numbers[1] / 2, -numbers[0] / 2)
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(
                "the noise levels of this process end in pure noise, whose log-SNR is infinite; give both ends, for "
                "example uniform-logsnr:-10,10"
            )
        return low + u * (high - low)
    normal = NormalDist(*numbers)
    inside = np.clip(u, 1e-12, 1 - 1e-12)
    return np.array([normal.inv_cdf(float(share)) for share in inside])
