"""Loss weightings by noise level, converted to what the network predicts.

In the literature a weighting is a factor on the squared error of the noise (or of x0) as a function of SNR. The errors
of all predictions at one x are multiples of each other; with a = alpha, b = sigma, a^2 + b^2 = 1 and e the error of v:

    error of eps = a e     of x0 = -b e     of u = (a + b) e     of F = -(q / d) e,  q^2 = b^2 + d^2 a^2
    error of the previous mean = -coef_x0 b e

A weighting is therefore stored as its factor on the error of v, which is finite at both ends (a = 0 and b = 0):

    name              factor on eps             on v (SNR = a^2 / b^2)
    eps               1                         a^2                           DDPM's simple loss (eq. 14)
    x0                1 / SNR                   b^2
    v                 1 + 1 / SNR               1                             also called SNR + 1
    velocity          (1 + b / a)^2             (a + b)^2                     flow matching
    edm               (b^2 / a^2 + d^2) / d^2   q^2 / d^2                     Karras et al. 2022
    truncated-snr     max(SNR, 1) / SNR         max(a^2, b^2)                 Salimans & Ho 2022
    min-snr:g         min(SNR, g) / SNR         min(a^2, g b^2)               Hang et al. 2023, g = 5
    soft-min-snr:g    g / (g + SNR)             g a^2 b^2 / (g b^2 + a^2)     Crowson et al. 2024, g = 4
    p2:c              1 / (1 + SNR)^c           a^2 b^(2c)                    Choi et al. 2022, c = 1

"native" applies no weighting: the squared error of the network's target counts the same at every level. The density of
the training levels multiplies all of this, see `timesteps`.
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
"""Per weighting: the default of its number (None if it has none), and the factor on the squared error of v as a
function of (a^2, b^2), the number and d."""

WEIGHTINGS = (NATIVE, *_FACTORS)


def parse_weighting(spec: str) -> tuple[str, float]:
    """Parses "min-snr:5" into ("min-snr", 5.0); raises ValueError, listing the weightings, for invalid text."""
    name, colon, text = str(spec).partition(":")
    if name not in WEIGHTINGS:
        raise ValueError(f"unknown weighting {spec!r}; choose one of {', '.join(WEIGHTINGS)}")
    default = None if name == NATIVE else _FACTORS[name][0]
    if not colon:
        return name, 1.0 if default is None else default
    if default is None:
        raise ValueError(f"the weighting {name!r} takes no number; got {spec!r}")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"the number of the weighting {spec!r} must be positive, for example {name}:{default:g}")
    return name, number


def loss_factor(
    spec: str, target: str, level: Level, *, sigma_data: float = 1.0, coef_x0: Tensor | None = None
) -> Tensor:
    """Returns the factor [B] (float64) on the squared error of a network.

    Args:
        spec: A weighting.
        target: What the network predicts.
        level: Variance-preserving levels [B].
        sigma_data: Standard deviation d of the data.
        coef_x0: The chain's posterior weights of x0 [B], required for target "previous_mean".
    """
    name, number = parse_weighting(spec)
    a2, b2 = level.alpha**2, level.sigma**2
    if name == NATIVE:
        return torch.ones_like(a2)
    return _FACTORS[name][1]((a2, b2), number, sigma_data) / _error_ratio(target, a2, b2, sigma_data, coef_x0)


def _error_ratio(target: str, a2: Tensor, b2: Tensor, d: float, coef_x0: Tensor | None) -> Tensor:
    """Returns the squared error of `target` relative to that of v, [B]."""
    if target == "previous_mean":
        if coef_x0 is None:
            raise ValueError("target 'previous_mean' requires coef_x0, which exists only at the steps of a chain")
        return coef_x0**2 * b2
    ratios = {
        "eps": a2,
        "score": a2,
        "x0": b2,
        "v": torch.ones_like(a2),
        "velocity": (a2.sqrt() + b2.sqrt()) ** 2,
        "edm": b2 / d**2 + a2,
    }
    return ratios[target]
