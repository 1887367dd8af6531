"""Conditions in training: what a batch gives a network, which of it is dropped, and rows that previews are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.conditions import ModelConditions
from undiffuse.data import Batch, ImageDataset
from undiffuse.noise import NoiseSource
from undiffuse.util.errors import ConfigError

if TYPE_CHECKING:
    from undiffuse.nets import NetworkSpec

__all__ = ["ConditionRows", "check_network", "condition_tensors", "drop_conditions", "fitted"]

_MOST_ROWS = 512
"""Conditions of the data that previews and quick evaluations cycle through."""


def condition_tensors(declared: ModelConditions, batch: Batch, device: torch.device | str) -> dict[str, Tensor]:
    """Returns a batch's conditions as a network takes them.

    Args:
        declared: What the model is conditioned on.
        batch: The batch, as the data give it.
        device: Where the tensors are.

    Returns:
        By keyword: "tags" [b, L] and "numbers" [b, K] float32 (normalised), "cond_image" float32 [b, planes, H, W].

    Raises:
        ValueError: The data lack a condition.
    """
    out: dict[str, Tensor] = {}
    held = {"tags": batch.tags, "numbers": batch.numbers, "cond_image": batch.cond_images}
    for name in declared.keywords:
        value = held[name]
        if value is None:
            raise ValueError(f"the model is conditioned on {declared.text()}, but the data have no {name}")
        if name == "numbers" and declared.numbers is not None:
            out[name] = declared.numbers.normalised(value).to(device)
        elif name == "cond_image" and declared.image is not None:
            out[name] = declared.image.tensor(value, device)
        else:
            out[name] = value.float().to(device)
    return out


def drop_conditions(
    cond: Mapping[str, Tensor],
    labels: Tensor | None,
    null_class: int | None,
    share: float,
    source: NoiseSource,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Drops conditions of some images, so that the network learns to do without them.

    A model of one condition drops it with probability `share`. One of several drops all of them together with that
    probability, and each of them (each number too) by itself with the same: both the unconditional model that
    guidance contrasts with and every partial set of conditions are trained.

    Args:
        cond: Tensors by keyword, see `condition_tensors`.
        labels: Classes [b], or None.
        null_class: The class that means "no class".
        share: Probability, 0 to 1.
        source: The noise of these images: what is dropped is a function of (seed, position) alone.

    Returns:
        The conditions with NaN where they are dropped, and the classes with the null class.
    """

    def chosen(purpose: str, like: Tensor) -> Tensor:
        return (source.uniform(0, purpose) < share).to(like.device)

    columns = sum(value.shape[1] if name == "numbers" else 1 for name, value in cond.items())
    several = columns + (labels is not None) > 1
    everything = source.uniform(0, "conditions") < share if several else None

    def dropped(purpose: str, like: Tensor) -> Tensor:
        one = chosen(purpose, like)
        return one if everything is None else one | everything.to(like.device)

    if labels is not None and null_class is not None:
        labels = torch.where(dropped("label", labels), null_class, labels)
    out = {}
    for name, value in cond.items():
        if name == "numbers":
            gone = torch.stack([dropped(f"numbers/{k}", value) for k in range(value.shape[1])], dim=1)
        else:
            gone = dropped(name, value).reshape(-1, *[1] * (value.ndim - 1))
        out[name] = torch.where(gone, torch.nan, value)
    return out, labels


def check_network(accepted: frozenset[str], spec: NetworkSpec, declared: ModelConditions, what: str) -> None:
    """Checks that a network takes the conditions of the data.

    Args:
        accepted: Names of the conditions that the network accepts.
        spec: What the network says of itself.
        declared: The conditions of the data.
        what: What messages call the network.

    Raises:
        ConfigError: It does not take one, or takes another number of them ("condition").
    """
    widths = dict(zip(("tags", "numbers", "cond_image"), declared.widths.values(), strict=True))
    for name, width in widths.items():
        if width and name not in accepted:
            raise ConfigError(
                "condition",
                f"{what} does not take {name} ({declared.text()}): name a parameter of its forward {name}, or train "
                "without this condition",
            )
        if spec.width_of(name) not in (0, width) or (name in accepted and not width):
            raise ConfigError(
                "condition", f"{what} takes {name} of {spec.width_of(name) or 'some width'}, the data have {width}"
            )


@dataclass(frozen=True)
class ConditionRows:
    """Conditions of some pictures of the data, in turn for the images of a preview or a quick evaluation.

    Attributes:
        cond: Tensors by keyword on the CPU, n rows each.
        labels: Classes [n]; None without.
        names: What each row is called.
    """

    cond: Mapping[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, declared: ModelConditions, dataset: Any, count: int) -> ConditionRows:
        """Takes the conditions of at most `count` pictures, evenly spaced over the data."""
        if not isinstance(dataset, ImageDataset):
            return cls()
        n = min(count, _MOST_ROWS, len(dataset))
        chosen = (np.arange(n) * len(dataset) // n).tolist()
        found, source = dataset.source.conditions, dataset.source
        if not found or not declared:
            return cls()
        rows = np.array(chosen, dtype=np.int64)
        batch = Batch(
            images=torch.zeros(0), labels=None, positions=torch.zeros(0), indices=torch.from_numpy(rows), names=(),
            numbers=None if found.numbers is None else torch.from_numpy(found.numbers[rows]),
            tags=None if found.tags is None else torch.from_numpy(found.tags[rows]),
            cond_images=None if found.partners is None
            else torch.from_numpy(np.stack([dataset.partner(i) for i in chosen])),
        )  # fmt: skip
        labels = None if source.labels is None else torch.from_numpy(source.labels[rows])
        return cls(condition_tensors(declared, batch, "cpu"), labels, tuple(source.name(i) for i in chosen))

    def __bool__(self) -> bool:
        return bool(self.cond)

    def take(self, numbers: Sequence[int], device: torch.device | str) -> dict[str, Tensor]:
        """Returns the conditions of images by number, on the device, with the class as "y" where there is one."""
        every = {**self.cond, **({} if self.labels is None else {"y": self.labels})}
        length = len(next(iter(every.values())))
        index = torch.tensor([i % length for i in numbers])
        return {name: value[index].to(device) for name, value in every.items()}


def fitted(declared: ModelConditions, kept: ModelConditions, model: str) -> ModelConditions:
    """Returns the conditions of a fine-tuned model: of the same kinds as before, with the normalisation it was trained
    with.

    Args:
        declared: The conditions of the data.
        kept: Those of the model that the run starts from.
        model: What messages call it.

    Raises:
        ConfigError: They are of other kinds, or have other names ("condition").
    """
    names = [
        (c.tags, c.numbers.names if c.numbers else (), c.image.kind if c.image else "", c.widths)
        for c in (declared, kept)
    ]
    if names[0] != names[1]:
        ours = declared.text() or "nothing but the class"
        raise ConfigError(
            "condition",
            f"{model} is conditioned on {kept.text() or 'nothing but the class'}, the data give {ours}: fine-tuning "
            "keeps the conditions of the model",
        )
    return kept
