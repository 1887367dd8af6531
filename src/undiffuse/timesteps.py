"""Which timesteps are trained: uniform, antithetic, stratified, or importance-sampled by the loss's second moment.

Every sampler maps the uniform numbers of the global batch to timesteps, so that the draw of image n of a run is a
function of the seed and n, and all ranks agree without talking.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class TimestepSampler(Protocol):
    """`sample(u [B] in (0,1))` -> (timesteps [B], weights [B] that keep the expected loss unbiased)."""

    def sample(self, u: Floats) -> tuple[Ints, Floats]: ...
    def update(self, t: Ints, losses: Floats) -> None: ...
    def state_dict(self) -> dict[str, NDArray[np.generic]]: ...
    def load_state_dict(self, state: dict[str, NDArray[np.generic]]) -> None: ...


class Uniform:
    """Every timestep with the same probability, independently."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def place(self, u: Floats) -> Floats:
        """Where in (0, 1) each image's timestep lies; other samplers couple the images of a batch here."""
        return u

    def sample(self, u: Floats) -> tuple[Ints, Floats]:
        t = np.minimum((self.place(u) * self.steps).astype(np.int64), self.steps - 1)
        return t, np.ones(len(t))

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


SAMPLERS = {
    "uniform": Uniform,
    "antithetic": Antithetic,
    "stratified": Stratified,
    "loss-second-moment": LossSecondMoment,
}


def make_timestep_sampler(name: str, steps: int) -> TimestepSampler:
    """The sampler called `name` for a chain of `steps` timesteps."""
    if name not in SAMPLERS:
        raise ValueError(f"unknown timestep sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name](steps)
