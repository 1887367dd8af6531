"""Which timesteps are trained: uniform, antithetic, stratified, or importance-sampled by the loss's second moment; and
with which density over noise levels.

Every sampler maps the uniform numbers of the global batch to timesteps, so that the draw of image n of a run is a
function of the seed and n, and all ranks agree without talking.

A density says how often each noise level is drawn, as the quantiles of ln(sigma / alpha):

    uniform                  even over the steps of a chain, or over the positions of a continuous preconditioning
    lognormal:m,s            ln(sigma / alpha) ~ N(m, s^2); -1.2,1.2 (Karras et al. 2022)
    logitnormal:m,s          t = sigma / (alpha + sigma), logit(t) ~ N(m, s^2); 0,1 (Esser et al. 2024). logit(t) is
                             ln(sigma / alpha), so this is the same family with other usual numbers
    uniform-logsnr:low,high  log-SNR even between two ends; the process's own ends if none are given

A density is part of what is optimised: its draws are not weighted back to uniform ones, as those of importance
sampling are.
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
    """`sample(u [B] in (0,1))` -> (timesteps [B], weights [B] that keep the expected loss unbiased).

    Timesteps are whole step numbers, or float64 positions of continuous levels.
    """

    def sample(self, u: Floats) -> tuple[NDArray[np.generic], Floats]: ...
    def update(self, t: Ints, losses: Floats) -> None: ...
    def state_dict(self) -> dict[str, NDArray[np.generic]]: ...
    def load_state_dict(self, state: dict[str, NDArray[np.generic]]) -> None: ...


class Uniform:
    """Every timestep with the same probability, independently.

    `density`  where in the levels a number of (0, 1) lies, rising, if not evenly over the steps
    """

    def __init__(self, steps: int, density: Place | None = None) -> None:
        self.steps = steps
        self.density = density

    def place(self, u: Floats) -> Floats:
        """Where in (0, 1) each image's timestep lies; other samplers couple the images of a batch here."""
        return u

    def sample(self, u: Floats) -> tuple[NDArray[np.generic], Floats]:
        placed = self.place(u)
        if self.density is not None:
            return self.density(placed), np.ones(len(placed))
        return np.minimum((placed * self.steps).astype(np.int64), self.steps - 1), np.ones(len(placed))

    def update(self, t: Ints, losses: Floats) -> None:
        """Nothing is learned from losses."""

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        return {}

    def load_state_dict(self, state: dict[str, NDArray[np.generic]]) -> None:
        if state:
            raise ValueError(f"a {type(self).__name__.lower()} timestep sampler has no state, got {sorted(state)}")


class Antithetic(Uniform):
    """Pairs t, T - 1 - t (the DDIM authors' code): each batch covers both halves of the chain evenly."""

    def place(self, u: Floats) -> Floats:
        out = u.copy()
        pairs = len(u) // 2
        out[1 : 2 * pairs : 2] = 1 - u[0 : 2 * pairs : 2]
        return out


class Stratified(Uniform):
    """One uniform shift of an even comb, u_i = (u_0 + i / B) mod 1: the lowest-variance uniform draw of B timesteps."""

    def place(self, u: Floats) -> Floats:
        return (u[0] + np.arange(len(u)) / len(u)) % 1.0


class LossSecondMoment:
    """Importance sampling for the variational bound (Improved DDPM eq. 18): p_t ~ sqrt(E[L_t^2]).

    The last `history` losses of every timestep are kept. Until every timestep has that many, sampling is uniform;
    then p = (1 - uniform) w / sum(w) + uniform / T with w_t the root mean square of the history of t. Losses must be
    given before weighting, those of all ranks in the same order on each rank.
    """

    def __init__(self, steps: int, history: int = 10, uniform: float = 0.001) -> None:
        self.steps = steps
        self.uniform = uniform
        self.losses = np.zeros((steps, history))
        self.counts = np.zeros(steps, dtype=np.int64)

    def probabilities(self) -> Floats:
        """Probability of each timestep [T]."""
        if (self.counts < self.losses.shape[1]).any():
            return np.full(self.steps, 1 / self.steps)
        root_mean_square = np.sqrt(np.mean(self.losses**2, axis=1))
        total = root_mean_square.sum()
        if total == 0:
            return np.full(self.steps, 1 / self.steps)
        return (1 - self.uniform) * root_mean_square / total + self.uniform / self.steps

    def sample(self, u: Floats) -> tuple[Ints, Floats]:
        p = self.probabilities()
        t = np.minimum(np.searchsorted(np.cumsum(p), u, side="right"), self.steps - 1).astype(np.int64)
        return t, 1 / (self.steps * p[t])

    def update(self, t: Ints, losses: Floats) -> None:
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            if not np.isfinite(loss):
                continue  # one bad batch must not poison the history; the engine counts and reports it
            if self.counts[step] < self.losses.shape[1]:
                self.losses[step, self.counts[step]] = loss
                self.counts[step] += 1
            else:
                self.losses[step, :-1] = self.losses[step, 1:]
                self.losses[step, -1] = loss

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        return {"losses": self.losses.copy(), "counts": self.counts.copy()}

    def load_state_dict(self, state: dict[str, NDArray[np.generic]]) -> None:
        if set(state) != {"losses", "counts"} or state["losses"].shape != self.losses.shape:
            raise ValueError(
                f"the saved loss history does not fit {self.steps} timesteps with {self.losses.shape[1]} losses each"
            )
        self.losses = np.array(state["losses"], dtype=np.float64)
        self.counts = np.array(state["counts"], dtype=np.int64)


def make_timestep_sampler(name: str, steps: int, density: Place | None = None) -> TimestepSampler:
    """The sampler called `name` for a chain of `steps` timesteps; `density` as in `Uniform`, None: even over them."""
    if name not in SAMPLERS:
        raise ValueError(f"unknown timestep sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
    if name == "loss-second-moment":
        if density is not None:
            raise ValueError(
                "loss-second-moment draws the steps of a chain by their losses, so it takes no density and no "
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
"""Densities by name, with the numbers they have where none are given."""


def parse_density(spec: str) -> tuple[str, tuple[float, ...]]:
    """("lognormal", (-1.2, 1.2)) of "lognormal" or "lognormal:-1.2,1.2". ValueError for what is no density."""
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
        expected = {"uniform": "uniform, which has no numbers", "uniform-logsnr": "uniform-logsnr:-10,10 (low, high)"}
        raise ValueError(f"cannot read the density {spec!r}; expected {expected.get(name, f'{name}:mean,deviation')}")
    return name, numbers


def log_ratios(spec: str, u: Floats, ends: tuple[float, float]) -> Floats:
    """ln(sigma / alpha) [B] below which the share u [B] in (0, 1) of a density's draws lies.

    `ends` are the process's own, for "uniform-logsnr" without numbers; they must be finite then (ValueError). "uniform"
    depends on the process and is not for here.
    """
    name, numbers = parse_density(spec)
    if name == "uniform":
        raise ValueError("the uniform density goes by the steps of the process, not by ln(sigma / alpha)")
    if name == "uniform-logsnr":
        low, high = ends if not numbers else (-numbers[1] / 2, -numbers[0] / 2)
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(
                "the noise levels of this process end in pure noise, whose log-SNR is not finite; give the ends, such "
                "as uniform-logsnr:-10,10"
            )
        return low + u * (high - low)
    normal = NormalDist(*numbers)
    inside = np.clip(u, 1e-12, 1 - 1e-12)
    return np.array([normal.inv_cdf(float(share)) for share in inside])
