"""Records: JSON objects that say how something was made, checked when they are written and when they are read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from undiffuse.util.text import shorten

__all__ = ["ABSENT", "Difference", "check_record", "difference_text", "differences", "flat", "parse_json", "read_json"]

DEEPEST = 64
"""The deepest nesting that is accepted in a file; the library itself writes three or four levels."""


class _Absent:
    """The type of `ABSENT`."""

    def __repr__(self) -> str:
        return "not set"


ABSENT = _Absent()
"""Stands for an entry that a record does not have; None is a value."""


class Difference(NamedTuple):
    """One entry in which two records differ: its dotted name and both values, `ABSENT` where a record lacks it."""

    name: str
    there: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.name}: {_short(self.there)} there, {_short(self.here)} now"


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[Difference]:
    """Compares two records entry by entry, inside nested objects too.

    Args:
        there: The record that exists already.
        here: The new record.

    Returns:
        The entries that differ, sorted by name; names of nested entries are joined by dots ("solver.eta").
    """
    a, b = flat(there), flat(here)
    names = sorted({*a, *b})
    found = [Difference(name, a.get(name, ABSENT), b.get(name, ABSENT)) for name in names]
    return [item for item in found if item.there != item.here]


def difference_text(items: list[Difference]) -> str:
    """Formats differences for a message, one indented line each."""
    return "\n".join(f"  {item}" for item in items)


def parse_json(text: str | bytes, where: str) -> Any:
    """Parses JSON that came from a file.

    NaN, numbers of thousands of digits and nesting that would exhaust the stack are refused; the library writes none.

    Args:
        text: The JSON text.
        where: What messages call it, for example the path of its file.

    Raises:
        ValueError: The text is not JSON of this kind; the message begins with `where`.
    """

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON number")

    try:
        value = json.loads(text, parse_constant=constant)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply to be read") from None
    except ValueError as error:
        raise ValueError(f"{where} is not readable JSON ({error})") from error
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return value
    raise ValueError(f"{where} is nested too deeply to be read")


def read_json(text: str | bytes, where: str) -> dict[str, Any]:
    """Parses a JSON object that came from a file.

    Args:
        text: The JSON text.
        where: What messages call it.

    Raises:
        ValueError: The text is not JSON, or not a JSON object.
    """
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise ValueError(f"{where} should hold a JSON object, but holds a {type(value).__name__}")
    return value


def check_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Copies a record into plain values that JSON gives back unchanged; tuples become lists.

    Raises:
        ValueError: An entry is not text, a finite number, true, false, null, or a list or dict of these; the message
            names it.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"a record is a dict of settings, not {type(record).__name__}.")
    plain: dict[str, Any] = _plain(record, "")
    return plain


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        if value.isascii() or value.encode("utf-8", "ignore").decode("utf-8") == value:
            return str(value)
        raise ValueError(f"record entry {where!r} is text with half a character (an unpaired surrogate): {value!r}.")
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{k}]") for k, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(
                    f"record keys are text, but {key!r} in {where or 'the record'} is {type(key).__name__}: use str()."
                )
        return {key: _plain(item, f"{where}.{key}" if where else key) for key, item in value.items()}
    raise ValueError(
        f"record entry {where!r} is {type(value).__name__} {value!r}, which JSON cannot hold: use text, numbers, "
        "True, False, None, or lists and dicts of these (int(...), float(...), str(...) and .tolist() convert)."
    )


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested objects as one dict with dotted names, "solver.eta" for example."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value} if prefix else {}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _short(value: Any) -> str:
    """A value for a message: hashes are cut to 12 digits, long values to 80 characters."""
    if isinstance(value, str) and len(value) == 64 and all(c in "0123456789abcdef" for c in value):
        return f"{value[:12]}..."
    text = ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
    return shorten(text, 80)
