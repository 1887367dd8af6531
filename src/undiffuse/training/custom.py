"""A user's own parts of a training: optimizer, learning-rate schedule and density of noise levels, as callables.

They are recorded in checkpoints by their qualified names, and their state is saved and restored. A run that was begun
with such a part is only resumed with the same one. (An own loss belongs to the task, see `training.tasks`.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from undiffuse.training.companions import Trained
from undiffuse.util.errors import ConfigError

__all__ = ["Custom", "Density", "OptimizerFactory", "ScheduleFactory", "qualified_name"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
ScheduleFactory = Callable[[Optimizer], LRScheduler]
Density = Callable[[NDArray[np.float64]], Any]


@dataclass(frozen=True, kw_only=True)
class Custom:
    """A user's own parts of a training; None keeps the usual ones.

    Attributes:
        optimizer: Makes an optimizer of the parameters, for example
            `lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)`. Its learning rate is kept and multiplied by
            the warm-up and decay of the settings.
        lr_schedule: Makes a torch scheduler of the optimizer, for example
            `lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 1000)`. It is stepped once per update and
            replaces warm-up and decay.
        density: Quantile function of the noise levels in training: takes u [B] in (0, 1), float64, and returns
            ln(sigma / alpha) [B], rising in u. For example `lambda u: 4 * u - 3`.
    """

    optimizer: OptimizerFactory | None = None
    lr_schedule: ScheduleFactory | None = None
    density: Density | None = None

    def names(self) -> dict[str, str]:
        """Returns the qualified names of the parts that are given, as checkpoints record them."""
        parts = {"optimizer": self.optimizer, "lr_schedule": self.lr_schedule, "density": self.density}
        return {name: qualified_name(part) for name, part in parts.items() if part is not None}

    def make_optimizer(self, net: nn.Module | Trained) -> Optimizer:
        """Makes the optimizer.

        Raises:
            ConfigError: The callable returns something else, or an optimizer of other parameters.
        """
        assert self.optimizer is not None
        optimizer = self.optimizer(list(net.parameters()))
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(
                "optimizer",
                f"{qualified_name(self.optimizer)} returned a {type(optimizer).__name__}; expected a torch optimizer, "
                "for example optimizer=lambda params: torch.optim.SGD(params, lr=0.1)",
            )
        ours = {id(p) for p in net.parameters()}
        if any(id(p) not in ours for group in optimizer.param_groups for p in group["params"]):
            raise ConfigError("optimizer", "it holds parameters that are not those of the network")
        return optimizer

    def make_schedule(self, optimizer: Optimizer) -> LRScheduler | None:
        """Makes the learning-rate schedule, None if none is given.

        Raises:
            ConfigError: The callable returns something else, or a schedule that needs a metric.
        """
        if self.lr_schedule is None:
            return None
        schedule = self.lr_schedule(optimizer)
        if not isinstance(schedule, LRScheduler) or isinstance(schedule, ReduceLROnPlateau):
            raise ConfigError(
                "lr_schedule",
                f"{qualified_name(self.lr_schedule)} returned a {type(schedule).__name__}; expected a scheduler of "
                "torch.optim.lr_scheduler that is stepped by updates (not by a metric)",
            )
        return schedule


def qualified_name(part: Any) -> str:
    """Returns module and name of a callable; of an object, those of its class."""
    function = part if hasattr(part, "__qualname__") else getattr(part, "func", None) or type(part)
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(part).__qualname__)}"


def plain_state(state: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns what of a state changes and can be kept as JSON.

    Raises:
        ConfigError: A value is neither a number, text, None, nor a list or dictionary of these.
    """
    return {str(key): _plain(value, f"{where}: {key}") for key, value in state.items()}


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(one, where) for one in value]
    if isinstance(value, Mapping):
        return {"dict": [[_plain(key, where), _plain(one, where)] for key, one in value.items()]}
    if isinstance(value, np.generic):
        return value.item()
    raise ConfigError("optimizer", f"{where} holds a {type(value).__name__}, which a checkpoint cannot keep")


def restored(value: Any, like: Any = None) -> Any:
    """Returns the inverse of `plain_state` for one value.

    Args:
        value: The value in a checkpoint.
        like: A value whose types it should have, since JSON knows neither tuples nor kinds of dictionaries.
    """
    if isinstance(value, dict):
        known: Any = like if isinstance(like, Mapping) else {}
        pairs = {restored(key): one for key, one in value["dict"]}
        pairs = {key: restored(one, known.get(key)) for key, one in pairs.items()}
        kind: Any = type(like) if isinstance(like, Mapping) else dict
        return kind(pairs)
    if isinstance(value, list):
        known = like if isinstance(like, (list, tuple)) and len(like) == len(value) else [None] * len(value)
        items = [restored(one, other) for one, other in zip(value, known, strict=True)]
        return tuple(items) if isinstance(like, tuple) else items
    return value
