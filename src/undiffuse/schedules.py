"""Noise schedules by name, and modifiers that change them.

A schedule is written BASE, BASE+MODIFIER or BASE+MODIFIER+MODIFIER; modifiers are applied in this order:

    linear, cosine, sigmoid     bases
    zero-terminal               rescales so that the last level is pure noise (Lin et al. 2023)
    shift:64/256                shifts log-SNR by 2 ln(64 / 256), for images of 256 pixels with a base that suits 64
                                (Hoogeboom et al. 2023); any positive number or fraction

For example: "cosine+shift:64/256", "linear+zero-terminal".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def linear_betas(steps: int) -> Array:
    """Returns DDPM's schedule [T], 1e-4 to 0.02 for 1000 steps.

    The betas are scaled by 1000 / steps, so that the path is nearly independent of the number of steps.

    Raises:
        ValueError: There are fewer than 20 steps, so that the last beta would exceed 1.
    """
    scale = 1000 / steps
    if scale * 0.02 > 1:
        raise ValueError(
            f"the linear schedule needs at least 20 steps (its last beta would be {scale * 0.02:g}); got {steps}"
        )
    return np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64)


def cosine_betas(steps: int, offset: float = 0.008, largest: float = 0.999) -> Array:
    """Returns Improved DDPM's schedule [T] (eq. 17): beta_t = min(1 - f(t/T) / f((t-1)/T), 0.999).

    f(u) = cos^2((u + s) / (1 + s) pi / 2) with s = `offset`; `largest` is the upper bound of the betas.
    """

    def f(u: float) -> float:
        return float(np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2)

    return np.array([min(1 - f((i + 1) / steps) / f(i / steps), largest) for i in range(steps)], dtype=np.float64)


def sigmoid_betas(steps: int, start: float = -3.0, end: float = 3.0, largest: float = 0.999) -> Array:
    """Returns the sigmoid schedule [T]: abar(u) = (s(end) - s(start + u (end - start))) / (s(end) - s(start)).

    s is the logistic function (Jabri et al. 2022). Betas are at most `largest`, since abar(1) = 0.
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
    """Returns abar with its last entry 0 and its first one unchanged (Lin et al. 2023, Algorithm 1).

    r = sqrt(abar) is shifted and stretched: r <- (r - r_T) r_1 / (r_1 - r_T). With such a chain, sampling starts where
    training ended, at pure noise. It requires a network that predicts v, x0 or u, and grids that include the last step.

    Args:
        alphas_cumprod: abar [T].

    Raises:
        ValueError: There are fewer than 2 steps.
    """
    root = np.sqrt(alphas_cumprod)
    if len(root) < 2:
        raise ValueError(f"a zero-terminal schedule needs at least 2 steps, got {len(root)}")
    out: Array = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    out[0] = alphas_cumprod[0]
    return out


def shifted(alphas_cumprod: Array, ratio: float) -> Array:
    """Returns abar with log-SNR shifted by 2 ln(`ratio`): sigma / alpha of every level is divided by `ratio`."""
    signal = ratio**2 * alphas_cumprod
    return signal / (signal + 1 - alphas_cumprod)


def schedule_levels(spec: str, steps: int) -> tuple[Array, Array | None]:
    """Returns the betas and abar of a schedule.

    Args:
        spec: Base with modifiers, for example "cosine+shift:64/256".
        steps: Number of steps T.

    Returns:
        (betas [T], abar [T]); abar is None where it is the product of 1 - beta.

    Raises:
        ValueError: The schedule does not exist; the message lists the existing ones.
    """
    base, *modifiers = (part.strip() for part in str(spec).split("+"))
    if base not in NOISE_SCHEDULES:
        raise ValueError(
            f"unknown schedule {spec!r}; choose one of {', '.join(NOISE_SCHEDULES)}, optionally with "
            "+zero-terminal or +shift:64/256, or give betas"
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
                f"unknown modifier {modifier!r} in the schedule {spec!r}; choose zero-terminal or shift:64/256"
            )
    return 1 - abar / np.append(1.0, abar[:-1]), abar


def _ratio(text: str, spec: str) -> float:
    above, _, below = text.partition("/")
    try:
        ratio = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        ratio = math.nan
    if not 1e-6 <= ratio <= 1e6:
        raise ValueError(f"cannot read the shift {text!r} of the schedule {spec!r}; expected for example shift:64/256")
    return ratio
