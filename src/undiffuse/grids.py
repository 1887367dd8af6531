"""Sampling paths through arbitrary noise levels, also between the trained steps.

A `Grid` offers a sampler the same as a `DiscreteSchedule`: levels, and the transitions between them. `grid` spaces its
levels evenly in log-SNR, in EDM's root of sigma / alpha, in t or in the root of t, or takes explicit levels. For a
level between two trained steps, the network receives a fractional step number (`preconditioning.TimeAdapter`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undiffuse.grid_specs import GRIDS
from undiffuse.noise_levels import Array, DiscreteSchedule, Index, Level, Transition

FARTHEST = 80.0
"""Largest sigma / alpha at which "logsnr" and "karras" grids start by default (EDM's sigma_max). A cosine chain reaches
20,000; nothing of the image is left at these levels, yet spacing by sigma would put most steps there."""


class Grid:
    """Holds the levels of a sampling path: transition `steps` - 1 comes first, transition 0 last, as in a chain.

    Attributes:
        steps: Number of transitions.
        parent_steps: Length of the trained chain that the grid belongs to; None if it fits any model.
        spec: The text that the grid was made from.
    """

    def __init__(
        self,
        alpha: Sequence[float] | Array,
        sigma: Sequence[float] | Array,
        chain: DiscreteSchedule | None = None,
        spec: str = "",
    ) -> None:
        """Checks and stores the levels.

        Args:
            alpha: alphas of the levels, noisiest first; the last level is where the path ends, usually the clean image
                (1, 0). The path need not be variance preserving.
            sigma: sigmas of the levels.
            chain: The trained chain, for the step numbers that the network receives.
            spec: The text that the grid was made from.

        Raises:
            ValueError: There are fewer than two levels, a number is negative or not finite, or a level is not cleaner
                than the one before it.
        """
        given = [np.asarray(values, dtype=np.float64) for values in (alpha, sigma)]
        if given[0].ndim != 1 or given[0].shape != given[1].shape or len(given[0]) < 2:
            raise ValueError(
                "alpha and sigma must be lists of the same length, at least 2; got shapes "
                f"{given[0].shape} and {given[1].shape}"
            )
        self._alpha, self._sigma = given[0][::-1].copy(), given[1][::-1].copy()
        with np.errstate(divide="ignore"):
            self._logsnr = 2 * (np.log(self._alpha) - np.log(self._sigma))
        if not (np.isfinite(given).all() and min(given[0].min(), given[1].min()) >= 0):
            raise ValueError("alpha and sigma must be finite numbers of 0 or more")
        if not (self._logsnr[:-1] > self._logsnr[1:]).all():
            raise ValueError(
                "the levels of a grid must go from noisy to clean, with increasing log-SNR; got "
                + ", ".join(f"{value:.4g}" for value in self._logsnr[::-1])
            )
        self.steps = len(self._alpha) - 1
        self.parent_steps = None if chain is None else chain.steps
        self.spec = spec
        if chain is None:
            self._indices = np.append(-1.0, np.arange(self.steps))
        else:
            found = chain.index_of(Level(torch.from_numpy(self._alpha), torch.from_numpy(self._sigma))).numpy()
            self._indices = np.where(self._sigma > 0, found, -1.0)

    def __len__(self) -> int:
        return self.steps

    def __repr__(self) -> str:
        return f"Grid({self.steps} steps, log-SNR {self._logsnr[-1]:.4g}..{self._logsnr[0]:.4g})"

    def level(self, k: Index) -> Level:
        """Returns the level where transition `k` starts.

        Args:
            k: Number of the transition, an int or a LongTensor [B]: 0 is the cleanest, `steps` - 1 the noisiest.
        """
        return self._level(self._checked(k) + 1)

    def transition(self, k: Index) -> Transition:
        """Returns the reverse step `k`, from its level to the next cleaner one.

        With t the source and s the target, sigma_{t|s}^2 = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2. The posterior
        variance is sigma_{t|s}^2 sigma_s^2 / sigma_t^2. The upper bound of the reverse variance is the variance that is
        exact for data of unit variance (beta on a variance-preserving path).

        Args:
            k: Number of the transition, an int or a LongTensor [B].
        """
        at = self._checked(k)
        alpha, sigma, logsnr = self._alpha, self._sigma, self._logsnr
        kept = -np.expm1(logsnr[at + 1] - logsnr[at])  # sigma_{t|s}^2 / sigma_t^2, without cancellation
        posterior = kept * sigma[at] ** 2
        coef_x0 = alpha[at] * kept
        upper = posterior + coef_x0**2 / (1 + alpha[at + 1] ** 2 / sigma[at + 1] ** 2)
        coef_xt = alpha[at + 1] / alpha[at] * (sigma[at] / sigma[at + 1]) ** 2
        last = sigma[at] == 0
        # As in a chain, the step onto the clean image has the clipped variance of the step before it.
        before = self._posterior(1) if self.steps > 1 else upper
        return Transition(
            source=self._level(at + 1),
            target=self._level(at),
            log_beta=torch.from_numpy(np.log(upper)),
            log_posterior_variance=torch.from_numpy(np.log(np.where(last, before, posterior))),
            posterior_variance=torch.from_numpy(posterior),
            coef_x0=torch.from_numpy(coef_x0),
            coef_xt=torch.from_numpy(coef_xt),
            last=torch.from_numpy(last),
            source_index=torch.from_numpy(self._indices[at + 1]),
            target_index=torch.from_numpy(self._indices[at]),
        )

    def _posterior(self, k: int) -> float:
        return float(-np.expm1(self._logsnr[k + 1] - self._logsnr[k]) * self._sigma[k] ** 2)

    def _level(self, at: NDArray[np.int64]) -> Level:
        return Level(torch.from_numpy(self._alpha[at]), torch.from_numpy(self._sigma[at]))

    def _checked(self, k: Index) -> NDArray[np.int64]:
        at = np.atleast_1d(k.cpu().numpy() if isinstance(k, Tensor) else np.asarray(k, dtype=np.int64))
        if (at < 0).any() or (at >= self.steps).any():
            raise ValueError(f"step {at.tolist()} is out of range: this grid has the steps 0 to {self.steps - 1}")
        return at


NoisePath = DiscreteSchedule | Grid
"""A sequence of noise levels that a sampler follows from noise to image."""


def grid(chain: DiscreteSchedule, steps: str | int | Sequence[int], spec: str = "chain") -> NoisePath:
    """Builds the sampling path through the levels of a trained chain, ending on the clean image.

    Spacings:

        "chain"                `chain.respaced(steps)`: the original's spacings; `steps` may be any of its
        specifications
        "chain:leading+1"      the trained steps that diffusers uses: "leading" with its offset, "trailing" or
        "linspace";
                               `steps` is a plain number
        "logsnr"               even in log-SNR
        "karras:rho=7"         even in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5)
        "uniform"              even in t, both ends included; "trailing" leaves out the first trained step (t = 0),
                               "leading" the last (Lin et al. 2023, table 2)
        "uniform:shift=3"      the same, then sigma / alpha times the shift, as in diffusers' flow-matching schedulers
                               (Esser et al. 2024, section 5.3.2)
        "quadratic"            even in the root of t (DDIM, D.2)
        "at:-8,-4,-1,2,8"      these log-SNRs; `steps` must be their number

    "logsnr" and "karras" accept the log-SNR of both ends: "logsnr:from=-8,to=9". The defaults are the ends of the
    chain, but nothing noisier than `FARTHEST`.

    Args:
        chain: The trained chain.
        steps: Number of steps; for "chain" any respacing (see `noise_levels.respacing_indices`).
        spec: One of the spacings above.

    Raises:
        ValueError: `steps` or `spec` is invalid.
    """
    if not isinstance(spec, str):
        raise ValueError(f"a grid is given as text, for example 'karras:rho=7'; got {spec!r}")
    name, _, rest = spec.replace(" ", "").partition(":")
    if name not in GRIDS:
        raise ValueError(f"unknown grid {name!r}; choose one of {', '.join(GRIDS)}")
    if name == "chain":
        return chain.respaced(_chain_steps(steps, rest))
    count = _count(steps, name)
    if name == "at":
        return _levels(chain, _explicit(rest, count), spec)
    options = _options(name, rest)
    if name in ("logsnr", "karras"):
        ends = chain.level(torch.tensor([chain.steps - 1, 0])).logsnr.tolist()
        first = options.get("from", max(ends[0], -2 * math.log(FARTHEST)))
        last = options.get("to", ends[1])
        if not (math.isfinite(first) and math.isfinite(last) and first < last):
            raise ValueError(
                f"the grid {name!r} must start at a lower log-SNR than it ends; got from={first:g}, to={last:g}"
            )
        rho = options.get("rho", 7.0)
        return _levels(chain, _spread(first, last, count, rho if name == "karras" else None), spec)
    shift = options.get("shift", 1.0)
    return _at_times(chain, _times(name, chain.steps, count, shift), spec, shift)


def _chain_steps(steps: str | int | Sequence[int], spacing: str) -> str | int | Sequence[int]:
    """Joins a number of steps and a spacing into a respacing; returns any other `steps` unchanged."""
    name, plus, offset = spacing.partition("+")
    if not spacing or (isinstance(steps, str) and not steps.strip().isdecimal()) or isinstance(steps, (list, tuple)):
        return steps
    if name not in ("leading", "trailing", "linspace") or (plus and not offset.isdecimal()):
        raise ValueError(
            f"unknown spacing {spacing!r} of the grid 'chain'; choose one of leading, leading+1, trailing, linspace"
        )
    return f"{name}{str(steps).strip()}{plus}{offset}"


def _spread(first: float, last: float, count: int, rho: float | None) -> Array:
    """Returns log-SNRs from first to last: even, or with `rho` even in (sigma / alpha)^(1 / rho)."""
    if rho is None:
        return np.linspace(first, last, count, dtype=np.float64)
    roots = np.linspace(math.exp(-first / 2 / rho), math.exp(-last / 2 / rho), count, dtype=np.float64)
    inner = -2 * rho * np.log(roots)
    return np.concatenate([[first], inner[1:-1], [last]])[:count] if count > 1 else np.array([first])


def _times(name: str, total: int, count: int, shift: float = 1.0) -> Array:
    """Returns step numbers from noisy to clean, which may be fractional.

    With a shift above 1, the first trained step is shifted before the steps are spread, and again with all others, as
    in diffusers' flow-matching schedulers.
    """
    if count > total:
        raise ValueError(f"the grid {name!r} can have at most the {total} trained steps; got {count}")
    if name == "trailing":
        return total - np.arange(count, dtype=np.float64) * (total / count) - 1
    if name == "leading":
        return np.arange(count, dtype=np.float64)[::-1] * (total / count)
    if shift != 1:
        last = max(0.0, shift / (1 + (shift - 1) / total) - 1)
        return np.linspace(total - 1, last, count, dtype=np.float64)
    fractions = np.linspace(1, 0, count, dtype=np.float64)
    return (total - 1) * (fractions**2 if name == "quadratic" else fractions)


def _at_times(chain: DiscreteSchedule, times: Array, spec: str, shift: float = 1.0) -> Grid:
    """Builds the grid at step numbers: whole ones are exactly the chain's levels, others interpolate in log-SNR.

    `shift` is a factor of sigma / alpha.
    """
    logsnr = chain.level(torch.arange(chain.steps)).logsnr.numpy()
    whole = np.abs(times - np.round(times)) < 1e-9
    below = np.floor(times + 1e-9).astype(np.int64)
    above = np.minimum(below + 1, chain.steps - 1)
    if not np.isfinite(logsnr[above[~whole]]).all():
        raise ValueError(
            f"the grid {spec!r} with {len(times)} steps needs a level between pure noise, where this chain ends, and "
            "the step before it; choose a number of steps that fall on trained ones, or the grid 'logsnr' or 'karras'"
        )
    part = np.where(whole, 0.0, times - below)
    with np.errstate(invalid="ignore"):
        between = np.where(whole, 0.0, (1 - part) * logsnr[below] + part * logsnr[above])
    level, own = Level.from_logsnr(between), chain.level(torch.from_numpy(np.round(times).astype(np.int64)))
    alpha, sigma = (np.where(whole, a, b) for a, b in ((own.alpha, level.alpha), (own.sigma, level.sigma)))
    if shift != 1:
        norm = np.hypot(alpha, shift * sigma)
        alpha, sigma = alpha / norm, shift * sigma / norm
    return Grid(np.append(alpha, 1.0), np.append(sigma, 0.0), chain, spec)


def _levels(chain: DiscreteSchedule, logsnr: Array, spec: str) -> Grid:
    level = Level.from_logsnr(logsnr)
    return Grid(np.append(level.alpha.numpy(), 1.0), np.append(level.sigma.numpy(), 0.0), chain, spec)


def _count(steps: str | int | Sequence[int], name: str) -> int:
    """Reads a plain number of steps."""
    text = steps.strip() if isinstance(steps, str) else steps
    if isinstance(text, str) and text.isdecimal():
        text = int(text)
    if isinstance(text, bool) or not isinstance(text, int) or not 1 <= text <= 1_000_000:
        raise ValueError(f"the grid {name!r} needs a plain number of steps, for example 20; got {steps!r}")
    return text


def _explicit(text: str, count: int) -> Array:
    try:
        values = sorted(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"cannot read log-SNRs from 'at:{text}'; expected for example at:-8,-4,-1,2,8") from None
    if len(values) != count:
        raise ValueError(f"'at:{text}' has {len(values)} levels, but steps is {count}; the two must agree")
    return np.array(values)


def _options(name: str, text: str) -> dict[str, float]:
    known = {"karras": ("from", "to", "rho"), "logsnr": ("from", "to"), "uniform": ("shift",)}.get(name, ())
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise ValueError(f"the grid {name!r} has no option {key!r} (it has: {', '.join(known) or 'none'})")
        try:
            found[key] = float(value)
        except ValueError:
            raise ValueError(f"the grid {name!r}: {key}={value!r} is not a number") from None
    for key in ("rho", "shift"):
        if not 0 < found.get(key, 1.0) < math.inf:
            raise ValueError(f"the grid {name!r}: {key} must be above 0; got {found[key]:g}")
    return found
