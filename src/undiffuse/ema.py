"""Exponential and power-function moving averages of a network's weights.

After update n (counted from 0), for every decay d:  average <- d_n average + (1 - d_n) weights, with

    d_n = min(d, (1 + n) / (10 + n))     (warm-up: the average of a short run is not the random initialisation)
    d_n = d                              (no warm-up, as in DDPM, Improved DDPM and ADM)

Power-function averages (Karras et al. 2024, section 3) give update tau of t a weight proportional to tau^gamma, so
their horizon grows with the length of the run. Their width is the standard deviation of this weight relative to t.
Snapshots of two of them yield an average of any width after training: see `power_combination`, used by
`training.posthoc`.

Averages are float32 for any precision of the forward pass. The caller passes the update number, so an average has no
state besides its tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def decay_name(decay: float) -> str:
    """Returns the decay as written in files: 0.9999 -> "0.9999"."""
    return format(decay, ".10g")


class Averages:
    """Maintains moving averages of a network's parameters; subclasses define the decay.

    Buffers are not averaged: the networks of this package have none.

    Args:
        net: The network.
        names: Names of the averages.

    Attributes:
        names: Names of the averages, in order.
        group: Prefix of the tensors' names in a checkpoint.
    """

    group = "ema"

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._parameters = dict(net.named_parameters())
        self._averages = {
            name: [p.detach().to(torch.float32, copy=True) for p in self._parameters.values()] for name in self.names
        }

    def decay_at(self, name: str, n: int) -> float:
        """Returns the decay d_n of update n = 0, 1, ..."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Moves every average towards the current weights; n = 0, 1, ... is the number of the update."""
        weights = [p.detach().float() for p in self._parameters.values()]
        for name, averages in self._averages.items():
            # lerp(a, w, 1 - d) = a + (1 - d)(w - a): one fused pass over all tensors
            torch._foreach_lerp_(averages, weights, 1.0 - self.decay_at(name, n))

    def weights(self, name: str) -> dict[str, Tensor]:
        """Returns an average by parameter name; the tensors are live, not copies. Raises ValueError for other names."""
        if name not in self._averages:
            raise ValueError(f"there is no average {name!r}; there are: {', '.join(self.names) or 'none'}")
        return dict(zip(self._parameters, self._averages[name], strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """Returns all averages (live tensors) by their names in a checkpoint, "<group>.<name>.<parameter>"."""
        return {
            f"{self.group}.{name}.{parameter}": tensor
            for name in self.names
            for parameter, tensor in self.weights(name).items()
        }

    @contextmanager
    def applied(self, name: str) -> Iterator[None]:
        """Puts the average `name` into the network inside the block and restores the trained weights afterwards."""
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
    """Maintains exponential averages, each named by its decay.

    Args:
        net: The network.
        decays: Distinct numbers in [0, 1).
        warmup: Whether early updates use a smaller decay, see the module.

    Raises:
        ValueError: A decay is out of range, or two are equal.
    """

    def __init__(self, net: nn.Module, decays: Sequence[float], warmup: bool = True) -> None:
        self.decays = {decay_name(d): float(d) for d in decays}
        if len(self.decays) != len(decays):
            raise ValueError(f"EMA decays must be distinct, got {tuple(decays)}")
        for d in decays:
            if not 0.0 <= d < 1.0:
                raise ValueError(f"an EMA decay must be in [0, 1), for example 0.9999; got {d}")
        self.warmup = warmup
        super().__init__(net, tuple(self.decays))

    def decay_at(self, name: str, n: int) -> float:
        """Returns the decay d_n of update n."""
        return min(self.decays[name], (1 + n) / (10 + n)) if self.warmup else self.decays[name]


class PowerEMA(Averages):
    """Maintains power-function averages, each named by its width, for example "0.05".

        average <- d average + (1 - d) weights,   d = (1 - 1 / t)^(gamma + 1)  at update t = 1, 2, ...

    (Karras et al. 2024, eq. 2). After t updates, tau has a weight ~ tau^gamma. The first update discards the initial
    weights.

    Args:
        net: The network.
        widths: Distinct widths, see `exponent_of`.

    Raises:
        ValueError: A width is out of range, or two are equal.
    """

    group = "posthoc"

    def __init__(self, net: nn.Module, widths: Sequence[float]) -> None:
        self.exponents = {decay_name(width): exponent_of(width) for width in widths}
        if len(self.exponents) != len(widths):
            raise ValueError(f"widths of averages must be distinct, got {tuple(widths)}")
        super().__init__(net, tuple(self.exponents))

    def decay_at(self, name: str, n: int) -> float:
        """Returns the decay of update n = t - 1."""
        return float((1 - 1 / (n + 1)) ** (self.exponents[name] + 1))


WIDEST = 12**-0.5  # width of the plain mean over the whole run, gamma = 0


def exponent_of(width: float) -> float:
    """Returns the exponent gamma of the power function tau^gamma on [0, t] whose standard deviation is `width` t.

    It is the positive root of g^3 + 7 g^2 + (16 - w^-2) g + (12 - w^-2) = 0, from w^2 = (g + 1) / ((g + 2)^2 (g + 3)).

    Raises:
        ValueError: `width` is not from 0.001 to 12^(-1/2) = 0.2887, where gamma is 0.
    """
    if not 1e-3 <= width <= WIDEST:
        raise ValueError(
            f"the relative width of an average must be from 0.001 to {WIDEST:.4f}, for example 0.1; got {width}"
        )
    inverse = float(width) ** -2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return max(float(roots.real.max()), 0.0)


def power_overlap(t_a: float, gamma_a: float, t_b: float, gamma_b: float) -> float:
    """Returns the inner product of two power-function profiles, densities on [0, t] (Karras et al. 2024, appendix C).

    It is the integral over tau of (g_a + 1) tau^g_a / t_a^(g_a + 1) (g_b + 1) tau^g_b / t_b^(g_b + 1), up to min(t_a,
    t_b).
    """
    ratio = t_a / t_b if t_a < t_b else t_b / t_a
    exponent = gamma_b if t_a < t_b else gamma_a
    both = (gamma_a + 1) * (gamma_b + 1)
    return float(both * ratio**exponent / ((gamma_a + gamma_b + 1) * max(t_a, t_b)))


def power_combination(
    snapshots: Sequence[tuple[float, float]], t: float, gamma: float
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], float]:
    """Finds the combination of snapshots that best approximates a profile.

    Least squares over the profiles, in float64: A X = B with A_ij = <p_i, p_j>, B_i = <p_i, p>.

    Args:
        snapshots: (t_i, gamma_i) of the snapshots.
        t: Time of the profile.
        gamma: Exponent of the profile.

    Returns:
        Weights [N] with sum 1, and the norm of the residual relative to that of the profile. The latter is about the
        relative error of the weights if the updates of a run were independent.

    Raises:
        ValueError: There are no snapshots.
    """
    if not snapshots:
        raise ValueError("snapshots is empty: an average needs at least one")
    a = np.array([[power_overlap(*one, *other) for other in snapshots] for one in snapshots])
    b = np.array([power_overlap(*one, t, gamma) for one in snapshots])
    scale = 1 / np.sqrt(np.diag(a))  # unit norms: otherwise the rounding of short profiles exceeds long ones
    solved = np.linalg.lstsq(a * scale * scale[:, None], b * scale, rcond=1e-14)[0] * scale
    weights = solved / solved.sum()
    own = power_overlap(t, gamma, t, gamma)
    left = own - 2 * weights @ b + weights @ a @ weights
    return weights, float(np.sqrt(max(left, 0.0) / own))
