"""How much each noise level counts in the simple loss: weightings, converted to whatever the network predicts.

In the literature a weighting is a factor on the squared error of the noise (or of x0) as a function of SNR. Errors of
all predictions of one x are multiples of each other; with a = alpha, b = sigma, a^2 + b^2 = 1 and e the error of v:

    error of eps = a e     of x0 = -b e     of u = (a + b) e     of F = -(q / d) e,  q^2 = b^2 + d^2 a^2
    error of the previous mean = -coef_x0 b e

So a weighting is kept as its factor on the error of v, which is finite at both ends (a = 0 and b = 0) for all of them:

    name              factor on eps             on v (SNR = a^2 / b^2)
    eps               1                         a^2                           DDPM's simple loss (eq. 14)
    x0                1 / SNR                   b^2
    v                 1 + 1 / SNR               1                             also called SNR + 1
    u                 (1 + b / a)^2             (a + b)^2                     flow matching
    edm               (b^2 / a^2 + d^2) / d^2   q^2 / d^2                     Karras et al. 2022
    truncated-snr     max(SNR, 1) / SNR         max(a^2, b^2)                 Salimans & Ho 2022
    min-snr:g         min(SNR, g) / SNR         min(a^2, g b^2)               Hang et al. 2023, g = 5
    soft-min-snr:g    g / (g + SNR)             g a^2 b^2 / (g b^2 + a^2)     Crowson et al. 2024, g = 4
    p2:c              1 / (1 + SNR)^c           a^2 b^(2c)                    Choi et al. 2022, c = 1

"native" is no weighting: the network's own target counts the same at every level. How often a level is drawn multiplies
all this; see `timesteps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from undiffuse.noise_levels import Level

NATIVE = "native"
_Squares = tuple[Tensor, Tensor]


def _soft(squares: _Squares, g: float, d: float) -> Tensor:
    a2, b2 = squares
    return g * a2 * b2 / (g * b2 + a2)


_FACTORS: dict[str, tuple[float | None, Callable[[_Squares, float, float], Tensor]]] = {
    "eps": (None, lambda s, c, d: s[0]),
    "x0": (None, lambda s, c, d: s[1]),
    "v": (None, lambda s, c, d: torch.ones_like(s[0])),
    "velocity": (None, lambda s, c, d: (s[0].sqrt() + s[1].sqrt()) ** 2),
    "edm": (None, lambda s, c, d: (s[1] + d**2 * s[0]) / d**2),
    "truncated-snr": (None, lambda s, c, d: torch.maximum(s[0], s[1])),
    "min-snr": (5.0, lambda s, c, d: torch.minimum(s[0], c * s[1])),
    "soft-min-snr": (4.0, _soft),
    "p2": (1.0, lambda s, c, d: s[0] * s[1] ** c),
}
"""By name: the default of its number (None: it has none), and the factor on v's error from (a^2, b^2), number, d."""

WEIGHTINGS = (NATIVE, *_FACTORS)


def parse_weighting(spec: str) -> tuple[str, float]:
    """("min-snr", 5.0) of "min-snr:5". ValueError, with what is possible, for anything that is no weighting."""
    name, colon, text = str(spec).partition(":")
    if name not in WEIGHTINGS:
        raise ValueError(f"unknown weighting {spec!r}; choose one of {', '.join(WEIGHTINGS)}")
    default = None if name == NATIVE else _FACTORS[name][0]
    if not colon:
        return name, 1.0 if default is None else default
    if default is None:
        raise ValueError(f"the weighting {name!r} has no number; got {spec!r}")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"the number of the weighting {spec!r} must be positive, such as {name}:{default:g}")
    return name, number


def loss_factor(
    spec: str, target: str, level: Level, *, sigma_data: float = 1.0, coef_x0: Tensor | None = None
) -> Tensor:
    """Factor [B] (float64) on the squared error of a network that predicts `target` at variance-preserving levels.

    `coef_x0` [B] is the chain's posterior weight of x0, needed for target "previous_mean".
    """
    name, number = parse_weighting(spec)
    a2, b2 = level.alpha**2, level.sigma**2
    if name == NATIVE:
        return torch.ones_like(a2)
    return _FACTORS[name][1]((a2, b2), number, sigma_data) / _error_ratio(target, a2, b2, sigma_data, coef_x0)


def _error_ratio(target: str, a2: Tensor, b2: Tensor, d: float, coef_x0: Tensor | None) -> Tensor:
    """Squared error of `target` over that of v, [B]."""
    if target == "previous_mean":
        if coef_x0 is None:
            raise ValueError("the error of a previous mean is known at the steps of a chain only: give coef_x0")
        return coef_x0**2 * b2
    ratios = {
        "eps": a2,
        "x0": b2,
        "v": torch.ones_like(a2),
        "velocity": (a2.sqrt() + b2.sqrt()) ** 2,
        "edm": b2 / d**2 + a2,
    }
    return ratios[target]
