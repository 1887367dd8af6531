"""Conditions of samples that are evaluated, drawn from reference images, and whether the samples obey them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.conditions import ModelConditions
from undiffuse.data import DataConfig, ImageDataset, Source
from undiffuse.data.given_conditions import sorted_conditions, with_arrays
from undiffuse.data.memory import as_data
from undiffuse.metrics import Estimate, MetricError
from undiffuse.metrics.adherence import MEASURES, edge_agreement, edge_maps, number_adherence
from undiffuse.models import DiffusionModel
from undiffuse.util.errors import ConfigError

if TYPE_CHECKING:
    from undiffuse.pipelines.given import GivenConditions

__all__ = ["Obedience", "conditions_of_data"]


def conditions_of_data(
    model: DiffusionModel,
    data: Any,
    condition: Any = None,
    *,
    count: int,
    labels: str = "auto",
    on_broken: Any = "refuse",
) -> GivenConditions | None:
    """Draws the conditions of a model's samples from images, with the classes that go with them.

    Args:
        model: The model.
        data: The images: a path, a name, an array [N, H, W, C] or a source.
        condition: Where their conditions are, as in training: "numbers:age", "image:maps/", several of these, or for an
            array a mapping. None looks for the model's numbers and labels in the data's own table.
        count: Number of samples; they get the conditions of as many images, evenly spaced over the data.
        labels: Where labels come from, see `undiffuse.data.open_data`.
        on_broken: "refuse" or "skip" images that lack a condition.

    Returns:
        A row for each sample; None for a model without conditions besides the class.

    Raises:
        ConfigError: The data lack a condition of the model, or have another one ("condition").
    """
    declared = model.conditions
    if not declared:
        if condition is not None:
            raise ConfigError("condition", "the model has no conditions besides the class: omit it")
        return None
    specs, arrays = sorted_conditions(condition if condition is not None else _usual(declared))
    dataset = _opened(model, data, specs, arrays, labels, on_broken)
    return _rows(model, dataset, count)


def _usual(declared: ModelConditions) -> list[str]:
    """Where the conditions of a model are in most data: in the columns of their names. A picture must be named."""
    if declared.image is not None:
        raise ConfigError(
            "condition",
            f"is missing: the model is conditioned on {declared.text()}; say where those of the reference images are, "
            f"for example {declared.image.kind}:FOLDER",
        )
    numbers = [] if declared.numbers is None else [f"numbers:{','.join(declared.numbers.names)}"]
    return [*numbers, *(["labels"] if declared.tags else [])]


def _opened(
    model: DiffusionModel, data: Any, specs: Sequence[str], arrays: Mapping[str, Any], labels: str, on_broken: Any
) -> ImageDataset:
    trained: Any = model.preparation
    config = DataConfig(
        path=str(data) if isinstance(data, str) or hasattr(data, "__fspath__") else "memory",
        labels=labels if model.num_classes is not None or model.conditions.tags else "none",
        size=model.spec.size,
        channels=model.image_shape[0],
        fit=trained.get("fit", "crop"),
        pad_value=trained.get("pad_value", 0),
        value_range=model.value_range,
        on_broken=on_broken,
        conditions=tuple(specs),
    )
    if config.path != "memory":
        if arrays:
            raise ConfigError("condition", "is in memory and the reference is not: give arrays of both, or paths")
        return config.build(model.labels)
    source = data if isinstance(data, Source) else as_data(data)
    if not isinstance(source, Source):
        raise ConfigError("condition", "needs reference images with a length: a path, an array or a source")
    return ImageDataset(config.checked(with_arrays(source, arrays) if arrays else source), config)


def _rows(model: DiffusionModel, dataset: ImageDataset, count: int) -> GivenConditions:
    from undiffuse.pipelines.given import GivenConditions

    declared, source = model.conditions, dataset.source
    found = source.conditions
    chosen = np.arange(count) * len(source) // count
    numbers = tags = None
    lacking = []
    if declared.numbers is not None:
        names = () if found is None else found.number_names
        if found is None or found.numbers is None or not set(declared.numbers.names) <= set(names):
            lacking.append(f"numbers {', '.join(declared.numbers.names)}")
        else:
            columns = [names.index(name) for name in declared.numbers.names]
            numbers = found.numbers[chosen][:, columns].astype(np.float64)
    if declared.tags:
        names = () if found is None else found.tag_names
        if found is None or found.tags is None or not set(names) <= set(declared.tags):
            lacking.append(f"labels {', '.join(declared.tags[:6])}")
        else:
            tags = np.zeros((count, len(declared.tags)), dtype=np.float32)
            tags[:, [declared.tags.index(name) for name in names]] = found.tags[chosen]
    partners = None if found is None else found.partners
    if declared.image is not None and (partners is None or partners.condition.channels != declared.image.channels):
        lacking.append(f"a picture ({declared.image.kind}, {declared.image.channels} channels)")
    if lacking:
        raise ConfigError("condition", f"is missing: {source.where} does not give {'; '.join(lacking)}")
    picture, names_of = None, ()  # type: Any, tuple[str, ...]
    if declared.image is not None and partners is not None and found is not None:
        source.conditions = replace(found, partners=replace(partners, condition=declared.image))

        def picture(row: int) -> NDArray[Any]:
            return dataset.partner(int(chosen[row]))

        names_of = tuple(partners.name(int(i)) for i in chosen)
    classes = None
    if model.num_classes is not None:
        if source.labels is None:
            raise ConfigError("labels", f"{source.where} has no classes, which the model needs with its conditions")
        classes = tuple(int(k) for k in source.labels[chosen])
    return GivenConditions(
        declared=declared, rows=count, numbers=numbers, tags=tags, picture=picture, picture_names=names_of,
        classes=classes, where=source.where,
    )  # fmt: skip


@dataclass
class Obedience:
    """Measures in samples what their conditions said.

    Numbers are measured where there is a measure of their name, see `undiffuse.metrics.adherence.MEASURES`, or one is
    given. The edges of an image are compared with a condition picture if that is a map of edges.

    Attributes:
        given: The conditions of the samples.
        measures: Functions of images uint8 [N, H, W, C] that return a number each, by the name of the number.
        edges: Whether the condition picture shows edges, white on black.
    """

    given: GivenConditions
    measures: Mapping[str, Any] = field(default_factory=dict)
    edges: bool = False
    _measured: dict[str, dict[int, float]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        declared = self.given.declared.numbers
        names = () if declared is None else declared.names
        known = {**MEASURES, **self.measures}
        self._known = {name: known[name] for name in names if name in known}

    def __bool__(self) -> bool:
        return bool(self._known) or self.edges

    def see(self, indices: Sequence[int], images: NDArray[np.uint8]) -> None:
        """Takes samples uint8 [B, H, W, C] and their numbers within the run."""
        for name, measure in self._known.items():
            values = np.asarray(measure(images), dtype=np.float64)
            if values.shape != (len(images),):
                raise MetricError(f"the measure of {name} returned {list(values.shape)}, expected [{len(images)}]")
            self._measured.setdefault(name, {}).update(zip(indices, values.tolist(), strict=True))
        if self.edges and self.given.picture is not None:
            wanted = np.stack([self.given.picture(self.given.row(i))[..., 0] > 127 for i in indices])
            scores = edge_agreement(wanted, edge_maps(images))
            self._measured.setdefault("edges", {}).update(zip(indices, scores.tolist(), strict=True))

    def estimates(self) -> list[Estimate]:
        """Returns the error and correlation of each number, and the F1 score of edges."""
        out: list[Estimate] = []
        declared = self.given.declared.numbers
        for name, values in self._measured.items():
            order = sorted(values)
            found = np.array([values[i] for i in order])
            if name == "edges" and name not in self._known:
                error = float(found.std(ddof=1) / len(found) ** 0.5) if len(found) > 1 else None
                out.append(Estimate(name="edges F1", value=float(found.mean()), stderr=error, n=len(found)))
                continue
            assert declared is not None
            assert self.given.numbers is not None
            column = declared.names.index(name)
            wanted = np.array([self.given.numbers[self.given.row(i), column] for i in order])
            out += number_adherence(wanted, found).estimates(name)
        return out
