"""The conditions of a plan: which labels and columns a request takes of the data, and what the model declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from undiffuse.conditions import ModelConditions
from undiffuse.data import DataConfig, ImageDataset, Source
from undiffuse.data.condition_specs import ConditionSpec, attach, parse_condition
from undiffuse.data.conditions import model_conditions
from undiffuse.data.tables import parse_spec
from undiffuse.data.torch_dataset import StreamDataset
from undiffuse.nets import NetworkSpec, UNetConfig
from undiffuse.recipes import Recipe
from undiffuse.training.conditions import fitted
from undiffuse.training.finetune import PretrainedInit
from undiffuse.training.request import TrainRequest
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import join_names

__all__ = ["DROPOUT", "MEMORY", "attached", "declared", "into", "unused", "wanted"]

DROPOUT = 0.1
"""Share of the images trained without their conditions where none is given (Ho & Salimans 2022, section 4.1)."""
MEMORY = "memory"
"""Stands for the path of a condition that is in memory."""


def wanted(request: TrainRequest) -> tuple[str, tuple[str, ...]]:
    """Returns where labels come from, and the conditions that are taken from the data.

    With conditions named, only they count: classes and labels are used if "labels" is among them.
    """
    if request.unconditional:
        return "none", ()
    specs = [parse_condition(text) for text in request.condition]
    if not specs:
        return request.labels, ()
    named = next((spec for spec in specs if spec.kind == "labels"), None)
    how = "none" if named is None else named.where or request.labels
    how = request.labels if named is not None and named.where == MEMORY else how
    table = parse_spec(request.labels)
    if table is not None:  # columns without a table are those of the one that the labels name
        begin = f"{table.file}:{table.file_column}" if table.file_column else table.file
        specs = [
            replace(spec, where=f"{begin}:{spec.where}")
            if spec.kind == "numbers" and spec.where != MEMORY and parse_spec(spec.where) is None
            else spec
            for spec in specs
        ]
    specs = [spec for spec in specs if spec.kind != "low_res"]  # made from the pictures themselves
    kept = [replace(spec, where="") if spec.kind == "labels" else spec for spec in specs if spec.where != MEMORY]
    return how, tuple(map(str, kept))


def regresses(request: TrainRequest, own: bool) -> bool:
    """Returns whether a request is for a regressor: a classifier with numbers in the place of classes.

    Raises:
        ConfigError: A classifier of other conditions, or with a network of one's `own` ("condition").
    """
    if request.kind != "classifier" or not request.condition:
        return False
    kinds = {parse_condition(text).kind for text in request.condition}
    if kinds == {"labels"}:
        return False
    if kinds != {"numbers"}:
        raise ConfigError(
            "condition",
            f"a classifier predicts classes or numbers, not {join_names(sorted(kinds))}: name numbers:COLUMN",
        )
    if own:
        raise ConfigError("condition", "a regressor is trained with the network of a recipe: leave your network out")
    return True


def attached(
    request: TrainRequest, source: Source, specs: tuple[str, ...], stream: bool
) -> tuple[Source, tuple[str, ...]]:
    """Puts the conditions to the pictures of a first look; the classes of maps that it finds are then settled.

    Raises:
        ConfigError: The data are a `stream`, of which it is not known which pictures they hold ("condition").
    """
    if not specs:
        return source, specs
    if stream:
        raise ConfigError("condition", "needs data with a length; an iterable data set has none")
    how, _ = wanted(request)
    out = attach(source, DataConfig(path=request.data, labels=how, conditions=specs, **request.reading))
    partners = None if out.conditions is None else out.conditions.partners
    settled = []
    for spec in map(parse_condition, specs):
        if spec.kind == "map" and partners is not None:
            values = partners.condition.values
            spec = replace(spec, option=",".join(map(str, values)))
        settled.append(str(spec))
    return out, tuple(settled)


def declared(dataset: ImageDataset | StreamDataset, init: PretrainedInit | None, model: str) -> ModelConditions:
    """Returns what a model trained on these pictures is conditioned on.

    Args:
        dataset: The pictures.
        init: The model that the run starts from; None without one.
        model: What messages call it.

    Raises:
        ConfigError: The data's conditions are not those of the model ("condition").
    """
    try:
        found = model_conditions(None if isinstance(dataset, StreamDataset) else dataset.source.conditions)
    except ValueError as error:
        raise ConfigError("condition", str(error)) from error
    return found if init is None else fitted(found, init.conditions, model)


def into(recipe: Recipe, conditions: ModelConditions, request: TrainRequest, own: bool) -> Recipe:
    """Returns a recipe for a model of these conditions.

    Args:
        recipe: The recipe.
        conditions: What the model is conditioned on besides the class.
        request: Tells the share of the images trained without, by default `DROPOUT`, and 0 for a network of one's own,
            of which it is not known what it does with NaN; and whether the model enlarges small images ("low_res").
        own: Whether the network is one's own.

    Raises:
        ConfigError: The recipe's network takes no such conditions ("condition").
    """
    dropout = request.label_dropout
    low = next((int(s.where) for s in map(parse_condition, request.condition) if s.kind == "low_res"), None)
    if low is not None:
        recipe = _enlarging(recipe, low, own)
    if not conditions:
        return recipe
    if recipe.kind == "classifier":
        return recipe.with_regression(conditions.widths["num_numbers"])
    if own:
        return recipe if dropout is None else replace(recipe, label_dropout=dropout)
    return recipe.with_conditions(conditions.widths, DROPOUT if dropout is None else dropout)


def _enlarging(recipe: Recipe, low: int, own: bool) -> Recipe:
    """A recipe for a super-resolution model that enlarges images of `low` pixels on their shorter side."""
    if own or not isinstance(recipe.net, UNetConfig):
        raise ConfigError("condition", "low_res needs ADM's U-Net: choose another recipe, and no network of your own")
    if low >= min(recipe.net.size):
        height, width = recipe.net.size
        raise ConfigError("condition", f"low_res:{low} must be smaller than the images, {height}x{width}")
    return replace(recipe, net=replace(recipe.net, super_resolution=True), low_size=low)


def unused(source: Any, spec: NetworkSpec | None, conditions: ModelConditions) -> list[str]:
    """Says which labels and numbers of the data a model does not use."""
    out = []
    if spec is not None and spec.num_classes is None and source.label_names is not None:
        count = f"{len(source.label_names):,} classes"
        out.append(f"the labels of the data ({count}) are not used: the network takes no `y`")
    if source.vectors is not None and not conditions:
        what = "labels, several for each image," if source.multi_hot else "numbers"
        named = f" ({join_names(source.vector_names, 10)})" if source.vector_names else ""
        columns = ",".join(source.vector_names or ["COLUMN"])
        how = "labels" if source.multi_hot else f"numbers:{columns}"
        out.append(f'the {what}{named} are not used: condition="{how}" conditions the model on them')
    return out


def check_classes(request: TrainRequest, spec: NetworkSpec | None, classes: int | None) -> None:
    """Refuses a network that does not take the classes that the user named as a condition.

    Raises:
        ConfigError: It does not ("condition").
    """
    named = any(parse_condition(text).kind == "labels" for text in request.condition)
    if named and classes is not None and spec is not None and spec.num_classes is None:
        raise ConfigError(
            "condition",
            "names labels, which the network does not take: name a parameter of its forward y, or omit labels",
        )


def widths_of(source: Source | None) -> Mapping[str, int]:
    """The widths of the conditions of pictures, for a network that does not say its own."""
    found = None if source is None else source.conditions
    if not found:
        return {}
    return {
        "num_tags": len(found.tag_names),
        "num_numbers": len(found.number_names),
        "cond_channels": found.partners.condition.planes if found.partners is not None else 0,
    }


def specs_in_memory(arrays: Mapping[str, Any]) -> tuple[str, ...]:
    """How a request notes conditions that are in memory."""
    return tuple(str(ConditionSpec(kind=kind.partition("@")[0], where=MEMORY)) for kind in arrays)  # type: ignore[arg-type]
