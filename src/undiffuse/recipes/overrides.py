"""Overrides `section.field = value` for the dataclasses of a recipe, from text or from Python values."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from undiffuse.util.errors import ConfigError
from undiffuse.util.text import shown

__all__ = ["apply", "parse"]

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_INTEGER = re.compile(r"(-?)(\d+)([km]?)", re.IGNORECASE)
_MOST_DIGITS = 30

# Fields that follow from the data or have an argument of their own: what decides them instead.
_DECIDED_BY = {
    "net.image_size": "size",
    "net.in_channels": "channels",
    "net.out_channels": "the number of classes or process.variance",
    "net.num_classes": "the labels of the data (labels, unconditional)",
    "net.super_resolution": "the recipe",
    "net.num_tags": "the conditions",
    "net.num_numbers": "the conditions",
    "net.cond_channels": "the conditions",
    "data.path": "the data",
    "data.labels": "labels",
    "data.size": "size",
    "data.channels": "channels",
    "data.seed": "seed",
    "train.seed": "seed",
    "train.device": "device",
}


def apply(
    sections: Mapping[str, Any], overrides: Mapping[str, Any], also: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Returns the sections of a recipe with some of their fields changed.

    Args:
        sections: Dataclasses by name ("net", "process", "objective", "train", "data"); None where a section does not
            exist, as the objective of a classifier.
        overrides: Values by path, for example {"train.lr": 2e-4, "net.dropout": "0.1"}. Text is parsed as the type of
            the field; other values are taken as they are.
        also: Values by section and field that are changed in the same step, because some fields only fit together.

    Raises:
        ConfigError: A field does not exist, is decided by another argument, or cannot have this value. Its `field` is
            the path.
    """
    changes: dict[str, dict[str, Any]] = {section: dict(fields) for section, fields in (also or {}).items()}
    paths: dict[str, list[str]] = {}
    for path, value in overrides.items():
        section, _, name = path.partition(".")
        hints = _hints(type(_section(sections, path, section)))
        if path in _DECIDED_BY:
            raise ConfigError(path, f"this follows from {_DECIDED_BY[path]}; it cannot be set")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            possible = ", ".join(sorted(n for n in hints if f"{section}.{n}" not in _DECIDED_BY))
            raise ConfigError(
                path,
                f"{section} has no field {name!r}"
                + (f"; did you mean {section}.{near[0]}?" if near else ".")
                + f" Its fields are {possible}",
            )
        typed = parse(value, hints[name], path) if isinstance(value, str) else value
        changes.setdefault(section, {})[name] = typed
        paths.setdefault(section, []).append(path)
    if "train" in changes:
        _one_end(changes["train"])
    out = dict(sections)
    for section, fields in changes.items():
        try:
            out[section] = dataclasses.replace(sections[section], **fields)
        except (TypeError, ValueError) as error:
            if section in paths:
                raise ConfigError(", ".join(paths[section]), str(error)) from error
            raise
    return out


def parse(text: str, hint: Any, path: str) -> Any:
    """Parses text as a value of an annotated type.

    Args:
        text: The value, for example "0.1", "none", "1,2,2" or "200k".
        hint: The type: int, float, bool, str, a Literal, a tuple or a union of these.
        path: Path of the field, for the error.

    Raises:
        ConfigError: The text is not such a value.
    """
    found, value = _try(text.strip(), hint)
    if not found:
        raise ConfigError(path, f"expected {_words(hint)}, got {shown(text)}")
    return value


def _try(text: str, hint: Any) -> tuple[bool, Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if type(None) in inner and text.lower() in ("none", "null"):
            return True, None
        for option in inner:
            if option is not type(None):
                found, value = _try(text, option)
                if found:
                    return found, value
        return False, None
    if origin is Literal:
        return text in inner, text
    if origin is tuple:
        parts = [part for part in text.strip("()[] ").replace("x", ",").split(",") if part.strip()]
        kinds = [inner[0]] * len(parts) if inner[-1] is Ellipsis else list(inner)
        if len(parts) != len(kinds):
            return False, None
        items = [_try(part.strip(), kind) for part, kind in zip(parts, kinds, strict=True)]
        return all(found for found, _ in items), tuple(value for _, value in items)
    if hint is bool:
        return text.lower() in _WORDS, _WORDS.get(text.lower())
    if hint is int:
        return _integer(text)
    if hint is float:
        try:
            return True, float(text)
        except ValueError:
            return False, None
    return hint is str, text


def _integer(text: str) -> tuple[bool, int | None]:
    """A whole number; 200_000, 200k and 2M are understood. Python refuses to read numbers of thousands of digits."""
    match = _INTEGER.fullmatch(text.replace("_", "")) if text.isascii() else None
    if match is None or len(match[2]) > _MOST_DIGITS:
        return False, None
    number = int(match[2]) * {"": 1, "k": 1_000, "m": 1_000_000}[match[3].lower()]
    return True, -number if match[1] else number


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(option) for option in inner)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is tuple:
        return f"a list of {'numbers' if inner[0] is float else 'whole numbers'}, for example 1,2,4"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "none"}
    return plain.get(hint, str(hint))


def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _section(sections: Mapping[str, Any], path: str, name: str) -> Any:
    if name not in sections:
        possible = ", ".join(f"{known}.FIELD" for known, target in sections.items() if target is not None)
        raise ConfigError(path, f"expected one of {possible}")
    if sections[name] is None:
        raise ConfigError(path, f"this run has no {name}: a classifier has no objective, a given network no settings")
    return sections[name]


def _one_end(train: dict[str, Any]) -> None:
    """A run ends by images or by steps; naming one of them unsets the other."""
    if ("images" in train) != ("steps" in train):
        train.setdefault("images", None)
        train.setdefault("steps", None)
