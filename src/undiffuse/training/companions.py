"""Networks that belong to a run besides the one that is trained for use: kept in its checkpoints, not in its model.

They are of two kinds: networks that are trained together with it, by the same optimizer, and averages of it that follow
every update. A checkpoint holds their tensors as "companion.<name>.<parameter>".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Companions", "Trained", "companions_of"]


@dataclass(frozen=True)
class Companions:
    """The companions of a run.

    Attributes:
        trained: Networks that the optimizer updates, by name.
        averages: Exponential averages of the run's network, each with its decay per update, by name.
    """

    trained: Mapping[str, nn.Module] = field(default_factory=dict)
    averages: Mapping[str, tuple[nn.Module, float]] = field(default_factory=dict)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All companions by name."""
        return {**self.trained, **{name: module for name, (module, _) in self.averages.items()}}

    def tensors(self) -> dict[str, Tensor]:
        """Returns all tensors (live) by their names in a checkpoint."""
        return {
            f"companion.{name}.{key}": value
            for name, module in self.modules.items()
            for key, value in module.state_dict().items()
        }

    def to(self, device: torch.device) -> Companions:
        """Moves all companions to a device."""
        for module in self.modules.values():
            module.to(device=device)
        return self

    @torch.no_grad()
    def follow(self, net: nn.Module) -> None:
        """Moves the averages towards the network after an update."""
        for module, decay in self.averages.values():
            torch._foreach_lerp_(list(module.parameters()), [p.detach() for p in net.parameters()], 1.0 - decay)


class Trained:
    """The parameters that a run trains: those of its network, under their own names, then those of its companions.

    Args:
        net: The network.
        companions: Its companions.
    """

    def __init__(self, net: nn.Module, companions: Companions) -> None:
        self.net, self.companions = net, companions

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields names and parameters."""
        yield from self.net.named_parameters()
        for name, module in self.companions.trained.items():
            for key, parameter in module.named_parameters():
                yield f"companion.{name}.{key}", parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yields the parameters in the same order."""
        return (parameter for _, parameter in self.named_parameters())


def companions_of(task: Any) -> Companions:
    """Returns the companions of a task; most tasks have none."""
    return getattr(task, "companions", None) or Companions()
