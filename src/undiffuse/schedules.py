"""Noise schedules by name, and what turns one schedule into another.

A schedule is written BASE, BASE+MODIFIER or BASE+MODIFIER+MODIFIER, modifiers being applied in this order:

    linear, cosine, sigmoid     bases
    zero-terminal               rescaled so that the last level is pure noise (Lin et al. 2023)
    shift:64/256                log-SNR moved by 2 ln(64 / 256), for images of 256 pixels where the base suits 64
                                (Hoogeboom et al. 2023); any positive number or fraction

for instance "cosine+shift:64/256" or "linear+zero-terminal".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def linear_betas(steps: int) -> Array:
    """DDPM's schedule, 1e-4 to 0.02 for 1000 steps, scaled by 1000 / steps so that the path hardly depends on steps."""
    scale = 1000 / steps
    if scale * 0.02 > 1:
        raise ValueError(
            f"the linear schedule needs at least 20 steps (its last beta would be {scale * 0.02:g}); got {steps}"
        )
    return np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64)


def cosine_betas(steps: int, offset: float = 0.008, largest: float = 0.999) -> Array:
    """Improved DDPM's schedule (eq. 17): beta_t = min(1 - f(t/T) / f((t-1)/T), 0.999).

    f(u) = cos^2((u + s) / (1 + s) pi / 2) with s = `offset`.
    """

    def f(u: float) -> float:
        return float(np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2)

    return np.array([min(1 - f((i + 1) / steps) / f(i / steps), largest) for i in range(steps)], dtype=np.float64)


def sigmoid_betas(steps: int, start: float = -3.0, end: float = 3.0, largest: float = 0.999) -> Array:
    """The sigmoid schedule (Jabri et al. 2022): abar(u) = (s(end) - s(start + u (end - start))) / (s(end) - s(start)).

    s is the logistic function; betas are at most `largest`, since abar(1) = 0.
    """

    def f(u: float) -> float:
        low, here, high = (1 / (1 + math.exp(-z)) for z in (start, start + u * (end - start), end))
        return (high - here) / (high - low)

    return np.array([min(1 - f((i + 1) / steps) / f(i / steps), largest) for i in range(steps)], dtype=np.float64)


NOISE_SCHEDULES: dict[str, Callable[[int], Array]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "sigmoid": sigmoid_betas,
}


def zero_terminal(alphas_cumprod: Array) -> Array:
    """abar with its last entry 0 and its first one kept (Lin et al. 2023, Algorithm 1).

    r = sqrt(abar) is moved and stretched: r <- (r - r_T) r_1 / (r_1 - r_T). Such a chain begins sampling where training
    ended, at pure noise; it needs a network that predicts v, x0 or u, and grids that visit the last step.
    """
    root = np.sqrt(alphas_cumprod)
    if len(root) < 2:
        raise ValueError("a schedule that shall end in pure noise needs at least 2 steps")
    out: Array = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    out[0] = alphas_cumprod[0]
    return out


def shifted(alphas_cumprod: Array, ratio: float) -> Array:
    """abar with log-SNR moved by 2 ln(`ratio`): sigma / alpha of every level is divided by `ratio`."""
    signal = ratio**2 * alphas_cumprod
    return signal / (signal + 1 - alphas_cumprod)


def schedule_levels(spec: str, steps: int) -> tuple[Array, Array | None]:
    """(betas, abar) of a schedule with `steps` steps; abar is None where it is simply the product of 1 - beta.

    ValueError for a schedule that does not exist, told with those that do.
    """
    base, *modifiers = (part.strip() for part in str(spec).split("+"))
    if base not in NOISE_SCHEDULES:
        raise ValueError(
            f"unknown schedule {spec!r}; choose one of {', '.join(NOISE_SCHEDULES)}, with +zero-terminal or "
            "+shift:64/256 behind it, or give betas"
        )
    betas = NOISE_SCHEDULES[base](steps)
    if not modifiers:
        return betas, None
    abar: Array = np.asarray(np.cumprod(1 - betas), dtype=np.float64)
    for modifier in modifiers:
        name, _, argument = modifier.partition(":")
        if name == "zero-terminal" and not argument:
            abar = zero_terminal(abar)
        elif name == "shift":
            abar = shifted(abar, _ratio(argument, spec))
        else:
            raise ValueError(
                f"unknown part {modifier!r} of the schedule {spec!r}; possible are zero-terminal and shift:64/256"
            )
    return 1 - abar / np.append(1.0, abar[:-1]), abar


def _ratio(text: str, spec: str) -> float:
    above, _, below = text.partition("/")
    try:
        ratio = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        ratio = math.nan
    if not 1e-6 <= ratio <= 1e6:
        raise ValueError(f"cannot read the shift {text!r} of the schedule {spec!r}; give for instance shift:64/256")
    return ratio
