"""`--set path.to.field=value`: text to typed values, checked against the dataclasses a run is made of."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from undiffuse.cli import values

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
# Fields that follow from the data or have an option of their own: what to say instead.
_ELSEWHERE = {
    "net.image_size": "--size",
    "net.in_channels": "--channels",
    "net.out_channels": "the number of classes or process.variance",
    "net.num_classes": "the labels (--labels, --unconditional)",
    "net.super_resolution": "the recipe",
    "data.path": "DATA",
    "data.labels": "--labels",
    "data.size": "--size",
    "data.channels": "--channels",
    "data.seed": "--seed",
    "train.seed": "--seed",
    "train.device": "--device",
}


def apply(
    sections: Mapping[str, Any], sets: Sequence[tuple[str, str]], also: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """The sections (dataclasses by name; None where a section does not apply) with fields changed.

    `also` holds values by section and field that are changed in the same stroke, since some fit together only.
    ValueError for a field that does not exist (the possible ones are listed), a value of another type, or one that the
    dataclass itself refuses.
    """
    changes: dict[str, dict[str, Any]] = {section: dict(fields) for section, fields in (also or {}).items()}
    for path, text in sets:
        section, _, name = path.partition(".")
        target = _section(sections, path, section)
        hints = _hints(type(target))
        if path in _ELSEWHERE:
            raise ValueError(f"--set {path}: this follows from {_ELSEWHERE[path]}")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, 1)
            possible = ", ".join(sorted(n for n in hints if f"{section}.{n}" not in _ELSEWHERE))
            raise ValueError(
                f"--set {path}: {section} has no field {name!r}"
                + (f"; did you mean {section}.{near[0]}?" if near else ".")
                + f" Its fields are {possible}"
            )
        changes.setdefault(section, {})[name] = parse(text, hints[name], path)
    if "train" in changes:
        _one_end(changes["train"])
    out = dict(sections)
    for section, fields in changes.items():
        try:
            out[section] = dataclasses.replace(sections[section], **fields)
        except ValueError as error:
            given = ", ".join(name for name in fields if name not in (also or {}).get(section, {}))
            raise ValueError(f"{error}" + (f" (--set {section}: {given})" if given else "")) from error
    return out


def parse(text: str, hint: Any, path: str) -> Any:
    """`text` as a value of the annotated type `hint`. ValueError naming the field and what was expected."""
    found, value = _try(text.strip(), hint)
    if not found:
        raise ValueError(f"--set {path}={text}: expected {_words(hint)}")
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
    try:
        if hint is int:
            sign = -1 if text.startswith("-") else 1
            return True, sign * values.natural(text.lstrip("-"))
        if hint is float:
            return True, float(text)
    except (ValueError, TypeError, values.argparse.ArgumentTypeError):
        return False, None
    return hint is str, text


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(option) for option in inner)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is tuple:
        return f"a list of {'numbers' if inner[0] is float else 'whole numbers'} such as 1,2,4"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "none"}
    return plain.get(hint, str(hint))


def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _section(sections: Mapping[str, Any], path: str, name: str) -> Any:
    if name not in sections:
        possible = ", ".join(f"{known}.FIELD" for known, target in sections.items() if target is not None)
        raise ValueError(f"--set {path}: expected one of {possible}")
    if sections[name] is None:
        raise ValueError(f"--set {path}: a classifier has no {name}")
    return sections[name]


def _one_end(train: dict[str, Any]) -> None:
    """A run ends by images or by steps; naming one of them unsets the other."""
    if ("images" in train) != ("steps" in train):
        train.setdefault("images", None)
        train.setdefault("steps", None)
