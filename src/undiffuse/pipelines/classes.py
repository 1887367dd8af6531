"""Finds classes by name or number, for a model or for the classifier that guides it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from undiffuse.models import ClassifierModel, DiffusionModel

if TYPE_CHECKING:
    from undiffuse.pipelines.pipeline import Pipeline

__all__ = ["choose_classes", "class_names", "class_numbers"]

Given = str | int | Sequence[str | int] | None


def class_numbers(model: DiffusionModel, given: Given, default: str | None = "all") -> list[int] | None:
    """Returns class numbers of a model.

    Args:
        model: The model whose classes are meant.
        given: Names, numbers, lists separated by commas, "all", or several of these. A name that contains a comma is
            understood if it is given whole.
        default: What None means.

    Returns:
        The numbers; None for an unconditional model, and where nothing was given and there is no default.

    Raises:
        ValueError: For a class that does not exist.
    """
    classes = model.num_classes
    if classes is None:
        if given:
            raise ValueError(f"the model has no classes, but {given!r} was given: leave the class out")
        return None
    if given is None and default is None:
        return None
    chosen: list[int] = []
    labels = [label.casefold() for label in model.labels or ()]
    for item in _items(given) or [str(default)]:
        text = str(item)
        for part in [text] if text.strip().casefold() in labels else text.split(","):
            chosen += range(classes) if part.strip().lower() == "all" else [model.class_index(part)]
    return chosen


def choose_classes(pipeline: Pipeline, given: Given) -> list[int] | None:
    """Returns class numbers as `class_numbers` does; for an unconditional model that a classifier guides, of that."""
    classifier = _with_classes(pipeline)
    if pipeline.model.num_classes is None and classifier is not None:
        if given is None:
            return list(range(classifier.num_classes or 0))
        return [classifier.class_index(part) for item in _items(given) for part in str(item).split(",")]
    return class_numbers(pipeline.model, given)


def class_names(pipeline: Pipeline) -> list[str] | None:
    """Returns the names of the classes of the model, or of the classifier that guides it; None without classes."""
    source = pipeline.model if pipeline.model.num_classes is not None else _with_classes(pipeline)
    if source is None or source.num_classes is None:
        return None
    return [source.label_name(k) for k in range(source.num_classes)]


def _with_classes(pipeline: Pipeline) -> ClassifierModel | None:
    """The first classifier that guides by classes; None if there are none, or only regressors."""
    guides = [pipeline.classifier, *pipeline.others]
    return next((one for one in guides if isinstance(one, ClassifierModel) and one.numbers is None), None)


def _items(given: Given) -> list[str | int]:
    if given is None:
        return []
    return [given] if isinstance(given, (str, int)) else list(given)
