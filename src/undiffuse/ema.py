"""Exponential moving averages of a network's weights, several horizons at once.

After update number n (counted from 0), for every decay d:  average <- d_n average + (1 - d_n) weights, with

    d_n = min(d, (1 + n) / (10 + n))     (warm-up: the average of a short run is not the random initialisation)
    d_n = d                              (no warm-up, as in DDPM, Improved DDPM and ADM)

Power-function averages (Karras et al. 2024, section 3) have no horizon but a shape: update number tau of t has a weight
proportional to tau^gamma, so they forget the beginning in proportion to the length of the run. Their width is the
standard deviation of that weight relative to t. Snapshots of two of them give an average of any width afterwards:
`power_combination`, used by `training.posthoc`.

Averages are float32 whatever the precision of the forward pass. The update number is given by the caller, so an average
has no state beside its tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def decay_name(decay: float) -> str:
    """The decay as written in files: 0.9999 -> "0.9999"."""
    return format(decay, ".10g")


class Averages:
    """Moving averages of `net`'s parameters (buffers are not averaged: the networks of this project have none).

    `names`, in their order; a subclass says how fast each moves. `group` begins their tensors' names in a checkpoint.
    """

    group = "ema"

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._parameters = dict(net.named_parameters())
        self._averages = {
            name: [p.detach().to(torch.float32, copy=True) for p in self._parameters.values()] for name in self.names
        }

    def decay_at(self, name: str, n: int) -> float:
        """The decay d_n used by update number n = 0, 1, ..."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Update number n = 0, 1, ...: moves every average towards the present weights."""
        weights = [p.detach().float() for p in self._parameters.values()]
        for name, averages in self._averages.items():
            # lerp(a, w, 1 - d) = a + (1 - d)(w - a): one fused pass over all tensors
            torch._foreach_lerp_(averages, weights, 1.0 - self.decay_at(name, n))

    def weights(self, name: str) -> dict[str, Tensor]:
        """The average called `name`, by parameter name; the tensors are the live ones, not copies."""
        if name not in self._averages:
            raise ValueError(f"there is no average {name!r}; there are: {', '.join(self.names) or 'none'}")
        return dict(zip(self._parameters, self._averages[name], strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """All averages (live tensors) as "<group>.<name>.<parameter>", the names they have in a checkpoint."""
        return {
            f"{self.group}.{name}.{parameter}": tensor
            for name in self.names
            for parameter, tensor in self.weights(name).items()
        }

    @contextmanager
    def applied(self, name: str) -> Iterator[None]:
        """Inside the block the network carries the average `name`; on leaving it the trained weights are back."""
        averages = self.weights(name)
        kept = {key: p.detach().clone() for key, p in self._parameters.items()}
        try:
            self._copy(averages)
            yield
        finally:
            self._copy(kept)

    @torch.no_grad()
    def _copy(self, source: dict[str, Tensor]) -> None:
        for key, p in self._parameters.items():
            p.copy_(source[key])


class EMA(Averages):
    """Exponential averages, each called by its decay. decays: numbers in [0, 1), all different. warmup: see above."""

    def __init__(self, net: nn.Module, decays: Sequence[float], warmup: bool = True) -> None:
        self.decays = {decay_name(d): float(d) for d in decays}
        if len(self.decays) != len(decays):
            raise ValueError(f"EMA decays must differ from each other, got {tuple(decays)}")
        for d in decays:
            if not 0.0 <= d < 1.0:
                raise ValueError(f"an EMA decay must be in [0, 1), for instance 0.9999; got {d}")
        self.warmup = warmup
        super().__init__(net, tuple(self.decays))

    def decay_at(self, name: str, n: int) -> float:
        return min(self.decays[name], (1 + n) / (10 + n)) if self.warmup else self.decays[name]


class PowerEMA(Averages):
    """Power-function averages, each called by its width, such as "0.05": after t updates tau has weight ~ tau^gamma.

        average <- d average + (1 - d) weights,   d = (1 - 1 / t)^(gamma + 1)  at update t = 1, 2, ...

    (Karras et al. 2024, eq. 2). The first update forgets the initial weights. widths: all different, see `exponent_of`.
    """

    group = "posthoc"

    def __init__(self, net: nn.Module, widths: Sequence[float]) -> None:
        self.exponents = {decay_name(width): exponent_of(width) for width in widths}
        if len(self.exponents) != len(widths):
            raise ValueError(f"widths of averages must differ from each other, got {tuple(widths)}")
        super().__init__(net, tuple(self.exponents))

    def decay_at(self, name: str, n: int) -> float:
        return float((1 - 1 / (n + 1)) ** (self.exponents[name] + 1))


WIDEST = 12**-0.5  # the width of a plain mean over the whole run, gamma = 0


def exponent_of(width: float) -> float:
    """gamma of the power function tau^gamma on [0, t] whose standard deviation is `width` t.

    The positive root of g^3 + 7 g^2 + (16 - w^-2) g + (12 - w^-2) = 0, from
    w^2 = (g + 1) / ((g + 2)^2 (g + 3)). ValueError unless 0.001 <= width <= 12^(-1/2) = 0.2887, where gamma is 0.
    """
    if not 1e-3 <= width <= WIDEST:
        raise ValueError(
            f"the relative width of an average must be from 0.001 to {WIDEST:.4f}, such as 0.1; got {width}"
        )
    inverse = float(width) ** -2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return max(float(roots.real.max()), 0.0)


def power_overlap(t_a: float, gamma_a: float, t_b: float, gamma_b: float) -> float:
    """Inner product of two power-function profiles, each a density on [0, t] (Karras et al. 2024, appendix C).

    Integral over tau of (g_a + 1) tau^g_a / t_a^(g_a + 1) (g_b + 1) tau^g_b / t_b^(g_b + 1), up to min(t_a, t_b).
    """
    ratio = t_a / t_b if t_a < t_b else t_b / t_a
    exponent = gamma_b if t_a < t_b else gamma_a
    both = (gamma_a + 1) * (gamma_b + 1)
    return float(both * ratio**exponent / ((gamma_a + gamma_b + 1) * max(t_a, t_b)))


def power_combination(
    snapshots: Sequence[tuple[float, float]], t: float, gamma: float
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], float]:
    """Weights [N], of sum 1, that make the profile (t, gamma) from snapshots (t_i, gamma_i), and how well they do.

    Least squares over the profiles, in float64: A X = B with A_ij = <p_i, p_j>, B_i = <p_i, p>. The second value is the
    norm of what is left, relative to the norm of the profile wanted: about the relative error of the weights if the
    updates of a run were independent.
    """
    if not snapshots:
        raise ValueError("there are no snapshots to make an average from")
    a = np.array([[power_overlap(*one, *other) for other in snapshots] for one in snapshots])
    b = np.array([power_overlap(*one, t, gamma) for one in snapshots])
    scale = 1 / np.sqrt(np.diag(a))  # profiles of unit norm, or the long ones would drown in the short ones' rounding
    solved = np.linalg.lstsq(a * scale * scale[:, None], b * scale, rcond=1e-14)[0] * scale
    weights = solved / solved.sum()
    own = power_overlap(t, gamma, t, gamma)
    left = own - 2 * weights @ b + weights @ a @ weights
    return weights, float(np.sqrt(max(left, 0.0) / own))
