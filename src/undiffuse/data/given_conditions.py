"""Conditions given as Python objects: arrays of numbers, labels and pictures, an entry for each picture of a source."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from undiffuse.data.array_source import ArraySource
from undiffuse.data.condition_specs import _describe, pair_names, parse_condition
from undiffuse.data.conditions import Partners, PictureConditions
from undiffuse.data.labels import join_names
from undiffuse.data.sources import FileSource, Source
from undiffuse.util.errors import ConfigError

__all__ = ["sorted_conditions", "with_arrays"]

Given = str | Sequence[str] | Mapping[str, Any] | None


def sorted_conditions(given: Given) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Sorts what a user gives as `condition` into specifications and arrays.

    Args:
        given: "numbers:age", several of these, or a mapping: {"numbers": {"age": [...]}, "image": array or path}.

    Returns:
        Specifications for `condition_specs.attach`, and arrays for `with_arrays`.

    Raises:
        ConfigError: A kind of condition that does not exist ("condition").
    """
    if given is None:
        return (), {}
    if isinstance(given, str):
        return (str(parse_condition(given)),), {}
    if not isinstance(given, Mapping):
        return tuple(str(parse_condition(text)) for text in given), {}
    specs: list[str] = []
    arrays: dict[str, Any] = {}
    for kind, value in given.items():
        base = kind.partition("@")[0]
        if base == "low_res":
            specs.append(str(parse_condition(f"low_res:{value}")))
            continue
        if base not in ("labels", "numbers", "image", "map"):
            raise ConfigError("condition", f"{kind!r} is not possible; expected labels, numbers, image or map")
        if value is True and kind == "labels":
            specs.append("labels")
        elif isinstance(value, str):
            specs.append(str(parse_condition(f"{kind}:{value}")))
        else:
            arrays[kind] = value
    return tuple(specs), arrays


def with_arrays(source: Source, arrays: Mapping[str, Any]) -> Source:
    """Puts conditions in memory to the pictures of a source.

    Args:
        source: The N pictures.
        arrays: "numbers": {name: [N]}; "labels": N lists of names, or {name: [N] of 0 and 1}; "image" or "map": an
            array [N, H, W] or [N, H, W, C], or a source of which picture i belongs to picture i (or, where both are
            files, the one of the same stem). "image@LOW,HIGH" declares the values of black and white.

    Returns:
        The source with `conditions`.

    Raises:
        ConfigError: Other shapes, or as many entries as there are not pictures ("condition").
    """
    found: dict[str, Any] = {}
    for kind, value in arrays.items():
        if kind == "numbers":
            columns = _columns(kind, value, len(source))
            found |= {"numbers": np.stack(list(columns.values()), axis=1), "number_names": tuple(columns)}
        elif kind == "labels":
            tags, names = _tags(value, len(source))
            found |= {"tags": tags, "tag_names": names}
        else:
            if "partners" in found:
                raise ConfigError("condition", "gives two pictures: put their channels into one array")
            found["partners"] = _partners(source, kind, value)
    out = copy.copy(source)
    out.__dict__.pop("fingerprint", None)
    out.conditions = PictureConditions(**found)
    return out


def _columns(kind: str, value: Any, count: int) -> dict[str, NDArray[np.float32]]:
    if not isinstance(value, Mapping) or not value:
        raise ConfigError("condition", f'{kind} are given by their names: {{"{kind}": {{"age": [...]}}}}')
    out = {}
    for name, column in value.items():
        array = column.detach().cpu().numpy() if isinstance(column, torch.Tensor) else np.asarray(column)
        if array.shape != (count,) or array.dtype.kind not in "uifb":
            raise ConfigError(
                "condition", f"{kind}: expected {count:,} numbers as {name!r}, got {array.dtype} {list(array.shape)}"
            )
        out[str(name)] = array.astype(np.float32)
    return out


def _tags(value: Any, count: int) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    if isinstance(value, Mapping):
        columns = _columns("labels", value, count)
        hot = np.stack(list(columns.values()), axis=1)
        if not np.isin(hot, (0, 1)).all():
            raise ConfigError("condition", "labels by name are 0 or 1 for each image")
        return hot, tuple(columns)
    if isinstance(value, (str, np.ndarray, torch.Tensor)) or len(value) != count:
        expected = f"expected a list of names for each of {count:,} images, or 0 and 1 by name"
        raise ConfigError("condition", f"labels: {expected}")
    rows = [row.split("|") if isinstance(row, str) else list(row) for row in value]
    names = tuple(sorted({str(tag) for row in rows for tag in row}))
    if not names:
        raise ConfigError("condition", "labels: no image has any")
    place = {name: k for k, name in enumerate(names)}
    hot = np.zeros((count, len(names)), dtype=np.float32)
    for i, row in enumerate(rows):
        hot[i, [place[str(tag)] for tag in row]] = 1
    return hot, names


def _partners(source: Source, kind: str, value: Any) -> Partners:
    spec = parse_condition(f"{kind}:memory")
    if source.augments:
        raise ConfigError("condition", "a data set with random transforms of its own has no partner pictures")
    if not isinstance(value, Source):
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        ranged: tuple[float, float] | None = (0.0, 255.0) if spec.kind == "map" else None
        if spec.kind == "image" and spec.option:
            low, _, high = spec.option.partition(",")
            ranged = float(low), float(high)
        try:
            value = ArraySource(array, where=f"condition {spec.kind}", item_name=spec.kind, value_range=ranged)
        except ValueError as error:
            raise ConfigError("condition", str(error)) from error
    if isinstance(source, FileSource) and isinstance(value, FileSource):
        index = pair_names(source.names, value.names, kind)
        alone = [source.names[int(i)] for i in np.flatnonzero(index < 0)]
        if alone:
            raise ConfigError("condition", f"{kind}: {len(alone):,} images have no partner: {join_names(alone, 5)}")
    elif len(value) != len(source):
        raise ConfigError("condition", f"{kind}: {len(value):,} pictures for {len(source):,} images; expected one each")
    else:
        index = np.arange(len(source), dtype=np.int64)
    return Partners(source=value, index=index, condition=_describe(value, index, spec))
