"""Exponential moving averages of a network's weights, several horizons at once.

After update number n (counted from 0), for every decay d:  average <- d_n average + (1 - d_n) weights, with

    d_n = min(d, (1 + n) / (10 + n))     (warm-up: the average of a short run is not the random initialisation)
    d_n = d                              (no warm-up, as in DDPM, Improved DDPM and ADM)

Averages are float32 whatever the precision of the forward pass. The update number is given by the caller, so an `EMA`
has no state beside its tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def decay_name(decay: float) -> str:
    """The decay as written in files: 0.9999 -> "0.9999"."""
    return format(decay, ".10g")


class EMA:
    """Moving averages of `net`'s parameters (buffers are not averaged: the networks of this project have none).

    decays: numbers in [0, 1), all different. warmup: see the module's docstring.
    """

    def __init__(self, net: nn.Module, decays: Sequence[float], warmup: bool = True) -> None:
        self.decays = {decay_name(d): float(d) for d in decays}
        if len(self.decays) != len(decays):
            raise ValueError(f"EMA decays must differ from each other, got {tuple(decays)}")
        for d in decays:
            if not 0.0 <= d < 1.0:
                raise ValueError(f"an EMA decay must be in [0, 1), for instance 0.9999; got {d}")
        self.warmup = warmup
        self._parameters = dict(net.named_parameters())
        self._averages = {
            name: [p.detach().to(torch.float32, copy=True) for p in self._parameters.values()] for name in self.decays
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the averages, in the order given."""
        return tuple(self.decays)

    def decay_at(self, name: str, n: int) -> float:
        """The decay d_n used by update number n = 0, 1, ..."""
        return min(self.decays[name], (1 + n) / (10 + n)) if self.warmup else self.decays[name]

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
        """All averages (live tensors) as "ema.<decay>.<parameter>", the names they have in a checkpoint."""
        return {
            f"ema.{name}.{parameter}": tensor for name in self.names for parameter, tensor in self.weights(name).items()
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
