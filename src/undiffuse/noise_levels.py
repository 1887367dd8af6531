"""Noise levels, discrete noise schedules and strided sub-schedules.

A noise level is the pair (alpha, sigma) in x_t = alpha x_0 + sigma eps. Samplers compare levels by their log-SNR,
log(alpha^2 / sigma^2). A `DiscreteSchedule` is a finite variance-preserving sequence of T levels (alpha^2 + sigma^2 =
1) with the tables of its Gaussian posteriors in float64.

Index k = 0..T-1 is t - 1 in the papers: at index 0, one noising step has been applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undiffuse.schedules import NOISE_SCHEDULES, cosine_betas, linear_betas, schedule_levels

__all__ = [
    "NOISE_SCHEDULES", "Array", "DiscreteSchedule", "Index", "Level", "Transition", "cosine_betas", "ddim_spec",
    "diffuse", "expand",
    "linear_betas", "named_schedule", "respacing_indices",
]  # fmt: skip

Array = NDArray[np.float64]
Index = int | Tensor


@dataclass(frozen=True)
class Level:
    """Holds one noise level per sample.

    Attributes:
        alpha: Coefficient of the clean image, float64 on the CPU, [B], or [1] if the whole batch shares it.
        sigma: Coefficient of the noise, of the same shape.
    """

    alpha: Tensor
    sigma: Tensor

    @property
    def logsnr(self) -> Tensor:
        """Returns log(alpha^2 / sigma^2) [B]: +inf for a clean image, -inf for pure noise."""
        return 2 * (self.alpha.log() - self.sigma.log())

    @classmethod
    def from_alpha_bar(cls, alpha_bar: float | NDArray[np.floating] | Tensor) -> Level:
        """Returns the variance-preserving level with alpha^2 = `alpha_bar`, in [0, 1]."""
        alpha_bar = torch.as_tensor(alpha_bar, dtype=torch.float64).reshape(-1)
        return cls(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())

    @classmethod
    def from_logsnr(cls, logsnr: float | NDArray[np.floating] | Tensor) -> Level:
        """Returns the variance-preserving level with log(alpha^2 / sigma^2) = `logsnr`, which may be infinite."""
        logsnr = torch.as_tensor(logsnr, dtype=torch.float64).reshape(-1)
        return cls(torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt())

    @classmethod
    def from_ratio(cls, ratio: Tensor) -> Level:
        """Returns the variance-preserving level with sigma / alpha = `ratio` [B], finite numbers of 0 or more."""
        norm = (1 + ratio**2).sqrt()
        return cls(1 / norm, ratio / norm)

    @classmethod
    def clean(cls) -> Level:
        """Returns the level without noise: alpha = 1, sigma = 0."""
        return cls.from_alpha_bar(1.0)

    @classmethod
    def noise(cls) -> Level:
        """Returns the level of pure noise: alpha = 0, sigma = 1."""
        return cls.from_alpha_bar(0.0)


def expand(coefficient: Tensor, like: Tensor) -> Tensor | float:
    """Makes a coefficient multiply images by broadcasting.

    Args:
        coefficient: One value per sample, float64 [B], or one for all, [1].
        like: Images [B, C, H, W].

    Returns:
        A Python number for a shared coefficient. Otherwise a tensor [B, 1, 1, 1] in the precision and on the device of
        `like`; it is converted before it is moved, because some devices lack float64.

    Raises:
        ValueError: The number of coefficients is neither 1 nor the batch size.
    """
    if coefficient.numel() == 1:
        return float(coefficient)
    if coefficient.shape[0] != like.shape[0]:
        raise ValueError(f"{coefficient.shape[0]} noise levels were given for {like.shape[0]} images")
    return coefficient.to(like.dtype).to(like.device).reshape(-1, *[1] * (like.ndim - 1))


def diffuse(x0: Tensor, level: Level, noise: Tensor) -> Tensor:
    """Applies the forward process in closed form: x_t = alpha x_0 + sigma eps (DDPM eq. 4).

    Args:
        x0: Clean images [B, C, H, W].
        level: Their noise levels.
        noise: Standard normal noise eps [B, C, H, W].
    """
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * noise


@dataclass(frozen=True)
class Transition:
    """Describes a reverse step with its posterior (DDPM eq. 6-7). All tensors are [B] or [1], floats in float64.

        q(x_s | x_t, x_0) = N(coef_x0 x_0 + coef_xt x_t, posterior variance)

    Attributes:
        source: The level t that the step starts from.
        target: The level s that it ends on, which is cleaner.
        log_beta: Logarithm of the upper bound of the reverse variance.
        log_posterior_variance: Logarithm of the lower bound. The step onto the clean image, whose posterior variance is
            0, has the value of the step before it.
        posterior_variance: The posterior variance itself.
        coef_x0: Weight of x_0 in the posterior mean.
        coef_xt: Weight of x_t in the posterior mean.
        last: Whether the step ends on the clean image.
        source_index: Step number of the source in the trained chain.
        target_index: Step number of the target in the trained chain; -1 is the clean image.
    """

    source: Level
    target: Level
    log_beta: Tensor
    log_posterior_variance: Tensor
    posterior_variance: Tensor
    coef_x0: Tensor
    coef_xt: Tensor
    last: Tensor
    source_index: Tensor
    target_index: Tensor

    @property
    def adjacent(self) -> Tensor:
        """Returns, as bool [B], whether the step is one of the trained chain, not a stride over several."""
        return self.target_index == self.source_index - 1


class DiscreteSchedule:
    """Holds T variance-preserving levels and the tables of their posteriors (float64 NumPy arrays of length T).

    Attributes:
        betas: Variance that step k adds, 0 < beta <= 1.
        alphas_cumprod: abar_k = prod_{j<=k} (1 - beta_j) = alpha_k^2.
        posterior_variance: beta~_k = beta_k (1 - abar_{k-1}) / (1 - abar_k); 0 at k = 0.
        posterior_log_variance_clipped: Its logarithm, with entry 0 replaced by entry 1. With a single step it is log
            beta_0, the only variance there is.
        posterior_mean_coef1: Weight of x_0 in the posterior mean.
        posterior_mean_coef2: Weight of x_t in the posterior mean.
        indices: Step numbers in the trained chain, which has `parent_steps` steps.
    """

    def __init__(
        self,
        betas: Sequence[float] | Array,
        indices: Sequence[int] | None = None,
        parent_steps: int | None = None,
        alphas_cumprod: Array | None = None,
    ) -> None:
        """Computes the tables from the betas.

        Args:
            betas: Variances [T] of the forward steps, in (0, 1]; only the last may be 1.
            indices: Step numbers in the trained chain; default: 0..T-1.
            parent_steps: Length of the trained chain; default: T.
            alphas_cumprod: abar [T], for callers that know it more precisely than as a product of 1 - beta.

        Raises:
            ValueError: There are no betas, or one is out of range or too small for float64.
        """
        self.betas = np.asarray(betas, dtype=np.float64)
        if self.betas.ndim != 1 or len(self.betas) == 0:
            raise ValueError(f"betas must be a list of at least one number, got an array of shape {self.betas.shape}")
        wrong = ~((self.betas > 0) & (self.betas <= 1))
        wrong[:-1] |= self.betas[:-1] == 1  # later steps would have no image left
        if wrong.any():
            bad = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"every beta must be above 0 and below 1 (the last may be 1); beta number {bad} is {self.betas[bad]:g}"
            )
        self.steps = len(self.betas)
        self.indices = np.arange(self.steps) if indices is None else np.asarray(indices, dtype=np.int64)
        self.parent_steps = self.steps if parent_steps is None else parent_steps

        given = np.cumprod(1 - self.betas) if alphas_cumprod is None else alphas_cumprod
        self.alphas_cumprod: Array = np.asarray(given, dtype=np.float64)
        if self.alphas_cumprod[0] == 1:
            raise ValueError(f"the first beta, {self.betas[0]:g}, is too small to have an effect in float64")
        before = np.append(1.0, self.alphas_cumprod[:-1])
        self.posterior_variance = self.betas * (1 - before) / (1 - self.alphas_cumprod)
        clipped = np.append(
            self.posterior_variance[1] if self.steps > 1 else self.betas[0], self.posterior_variance[1:]
        )
        self.posterior_log_variance_clipped = np.log(clipped)
        self.posterior_mean_coef1 = self.betas * np.sqrt(before) / (1 - self.alphas_cumprod)
        self.posterior_mean_coef2 = (1 - before) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)

    def __len__(self) -> int:
        return self.steps

    @property
    def ends_in_noise(self) -> bool:
        """Returns whether the last level is pure noise (abar = 0)."""
        return bool(self.alphas_cumprod[-1] == 0)

    def __repr__(self) -> str:
        strided = "" if self.steps == self.parent_steps else f" of {self.parent_steps}"
        return (
            f"DiscreteSchedule({self.steps} steps{strided}, alpha_bar "
            f"{self.alphas_cumprod[0]:.6g}..{self.alphas_cumprod[-1]:.3g})"
        )

    def respaced(self, spec: str | int | Sequence[int]) -> DiscreteSchedule:
        """Returns the strided sub-chain that keeps the steps of `spec`; abar is preserved at every kept step.

        beta_i = 1 - abar_i / abar_previous (Improved DDPM, eq. 19); all posterior tables follow from these betas.

        Args:
            spec: The steps to keep, see `respacing_indices`.

        Raises:
            ValueError: This chain is already strided, or `spec` is invalid.
        """
        if self.steps != self.parent_steps:
            raise ValueError(
                f"this chain is already strided ({self.steps} of {self.parent_steps} steps): respace the full chain"
            )
        kept = respacing_indices(self.steps, spec)
        abar = self.alphas_cumprod[kept]
        betas = 1 - abar / np.append(1.0, abar[:-1])
        return DiscreteSchedule(betas, indices=kept, parent_steps=self.steps, alphas_cumprod=abar)

    def level(self, k: Index) -> Level:
        """Returns the level of step `k`: an int (shared by the batch) or a LongTensor [B]."""
        return Level.from_alpha_bar(self.alphas_cumprod[self._checked(k)])

    def transition(self, k: Index) -> Transition:
        """Returns the reverse step from level k (an int or a LongTensor [B]) to k - 1, or to the clean image."""
        at = self._checked(k)
        before = np.append(1.0, self.alphas_cumprod)[at]
        targets = np.append(-1, self.indices)[at]

        def gather(table: Array) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(table[at]))

        return Transition(
            source=Level.from_alpha_bar(self.alphas_cumprod[at]),
            target=Level.from_alpha_bar(before),
            log_beta=gather(self._log_betas),
            log_posterior_variance=gather(self.posterior_log_variance_clipped),
            posterior_variance=gather(self.posterior_variance),
            coef_x0=gather(self.posterior_mean_coef1),
            coef_xt=gather(self.posterior_mean_coef2),
            last=torch.from_numpy(at == 0),
            source_index=torch.from_numpy(self.indices[at]),
            target_index=torch.from_numpy(targets),
        )

    def index_of(self, level: Level) -> Tensor:
        """Returns the step numbers of levels by interpolation in log-SNR.

        Args:
            level: Levels [B] of any process.

        Returns:
            Step numbers [B] in float64, fractional between steps. The chain's own levels give whole numbers exactly;
            levels outside its range give its first or last step.
        """
        query = level.logsnr.numpy()
        index = np.interp(-np.clip(query, -_FAR, _FAR), -self._logsnr, np.arange(self.steps, dtype=np.float64))
        nearest = np.round(index)
        return torch.from_numpy(np.where(np.abs(index - nearest) < 1e-6, nearest, index))

    def _checked(self, k: Index) -> NDArray[np.int64]:
        at = np.atleast_1d(k.cpu().numpy() if isinstance(k, Tensor) else np.asarray(k, dtype=np.int64))
        if (at < 0).any() or (at >= self.steps).any():
            raise ValueError(f"step {at.tolist()} is out of range: this chain has the steps 0 to {self.steps - 1}")
        return at

    @cached_property
    def _log_betas(self) -> Array:
        return np.log(self.betas)

    @cached_property
    def _logsnr(self) -> Array:
        return np.clip(Level.from_alpha_bar(self.alphas_cumprod).logsnr.numpy(), -_FAR, _FAR)


_FAR = 200.0  # exceeds every log-SNR of a float64 chain; it replaces infinities in interpolation


def named_schedule(schedule: str, steps: int) -> DiscreteSchedule:
    """Builds the chain of a named schedule.

    Args:
        schedule: Name with modifiers, for example "linear" or "cosine+zero-terminal" (see `schedules`).
        steps: Number of steps, at least 1.

    Raises:
        ValueError: The schedule is unknown, or there are too few steps.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    betas, alphas_cumprod = schedule_levels(schedule, steps)
    return DiscreteSchedule(betas, alphas_cumprod=alphas_cumprod)


def respacing_indices(steps: int, spec: str | int | Sequence[int]) -> list[int]:
    """Returns the steps of a chain that a respacing keeps.

    Specifications:

        "250"               250 steps from the first to the last (fractional stride, rounded)
        "90,60,60,20,20"    five equal sections of the chain, least noisy first, each strided separately
        "ddim25"            every n-th step from step 0, with the n that gives 25 steps (it stops short of the last
        step)
        "leading50"         multiples of the integer steps // 50, from step 0 (diffusers; Lin et al. 2023, table 2);
                            "leading50+1" adds an offset of 1
        "trailing50"        every (steps / 50)-th step down from the last one, rounded (diffusers)
        "linspace50"        evenly from the first to the last step, rounded (diffusers)
        "at:0,10,999"       these steps; the same as a list or tuple of ints
        ""                  all steps

    The first three give exactly the grids of the original code.

    Args:
        steps: Length of the chain.
        spec: One of the specifications above; an int is a number of steps.

    Returns:
        The kept step numbers, ascending.

    Raises:
        ValueError: The specification is invalid for this chain; the message lists valid ones.
    """
    if isinstance(spec, bool) or not isinstance(spec, (str, int, Sequence)):
        raise ValueError(f"cannot read the respacing {spec!r}; expected for example '250', 'ddim25' or a list of steps")
    if isinstance(spec, int):
        return _sections(steps, [spec])
    if not isinstance(spec, str):
        return _explicit(steps, list(spec))
    text = spec.replace(" ", "")
    if not text:
        return list(range(steps))
    try:
        if text.startswith("ddim"):
            return _ddim(steps, int(text[4:]))
        for name in ("leading", "trailing", "linspace"):
            if text.startswith(name):
                return _spaced(steps, name, text.removeprefix(name))
        if text.startswith("at:"):
            return _explicit(steps, [int(part) for part in text[3:].split(",")])
        return _sections(steps, [int(part) for part in text.split(",")])
    except ValueError as error:
        if "invalid literal" not in str(error):
            raise
        raise ValueError(
            f"cannot read the respacing {spec!r}; expected a number of steps ('250'), sections ('90,60,60,20,20'), "
            "'ddim25', or explicit steps ('at:0,10,999')"
        ) from None


def ddim_spec(steps: int, count: int) -> str:
    """Returns the respacing of about `count` steps that suits DDIM.

    It is the original's "ddimN" where an integer stride keeps `count` steps. That grid stops short of the noisiest
    step, which is hardly usable with guidance on a cosine chain. Otherwise it is the fractional grid.
    """
    if count >= steps:
        return ""
    kept = {len(range(0, steps, stride)) for stride in range(1, steps)}
    return f"ddim{count}" if count in kept else str(count)


def _spaced(steps: int, name: str, rest: str) -> list[int]:
    """Returns the steps of diffusers' `timestep_spacing`; `rest` is their number, with an offset for "leading"."""
    text, _, offset = rest.partition("+")
    count, moved = int(text), int(offset or 0)
    if not 1 <= count <= steps:
        raise ValueError(f"the number of steps must be from 1 to {steps}, got {count}")
    if name == "leading":
        kept = np.arange(count) * (steps // count) + moved
    elif name == "trailing":
        kept = np.round(np.arange(steps, 0, -steps / count))[:count].astype(np.int64)[::-1] - 1
    else:
        kept = np.round(np.linspace(0, steps - 1, count)).astype(np.int64)
    if kept[-1] >= steps:
        raise ValueError(f"{name}{rest} exceeds the last of {steps} steps: use fewer steps or a smaller offset")
    return [int(k) for k in kept]


def _explicit(steps: int, kept: list[int]) -> list[int]:
    whole = all(isinstance(k, (int, np.integer)) and not isinstance(k, bool) for k in kept)
    if not whole or not kept or sorted(set(kept)) != sorted(kept) or min(kept) < 0 or max(kept) >= steps:
        raise ValueError(f"explicit steps must be one or more distinct numbers from 0 to {steps - 1}, got {kept}")
    return sorted(int(k) for k in kept)


def _ddim(steps: int, count: int) -> list[int]:
    possible: dict[int, int] = {}
    for stride in range(1, steps):  # the original has no "ddim1"
        possible.setdefault(len(range(0, steps, stride)), stride)
    if count not in possible:
        near = sorted(possible, key=lambda n: abs(n - count))[:8]
        raise ValueError(
            f"no integer stride keeps {count} of {steps} steps; the nearest N for 'ddimN' are "
            f"{', '.join(map(str, sorted(near)))}; or use '{min(max(count, 1), steps)}' for a fractional stride"
        )
    return list(range(0, steps, possible[count]))


def _sections(steps: int, counts: list[int]) -> list[int]:
    if min(counts) < 0 or sum(counts) == 0:
        raise ValueError(f"the number of steps must be from 1 to {steps}, got {','.join(map(str, counts))}")
    size, extra = divmod(steps, len(counts))
    kept: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        length = size + (i < extra)
        if count > length:
            raise ValueError(
                f"section {i + 1} of {len(counts)} cannot keep {count} steps: it has {length} of the {steps}; "
                f"give at most {length} there"
            )
        stride = 1.0 if count <= 1 else (length - 1) / (count - 1)
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))  # running sum and round-half-even as in the original grids
            position += stride
        start += length
    return sorted(set(kept))
