"""Finds out what labels mean, wherever they are stored: a class for every picture, several labels, or numbers.

Tables, fields of JSON, columns of Parquet, features and arrays all hold the same few forms. They are interpreted here.
"""

from __future__ import annotations

import ast
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from undiffuse.data.labels import class_table

__all__ = ["LABEL_KEYS", "LabelValues", "interpret_values", "is_nothing", "number_of", "plain", "simple"]

LABEL_KEYS = (
    "label", "class", "classname", "category", "labels", "classes", "target", "classid", "labelid", "labelname",
    "categoryname", "y", "dx", "diagnosis", "findinglabels", "tags", "species", "breed", "identity", "classlabel",
    "targets", "cls", "finelabel", "categories", "findings", "ans",
)  # fmt: skip
"""Names of the fields that hold labels, as `simple` writes them; the first one that is there is taken."""
NUMBER_KEYS = (
    "age", "ageapprox", "patientage", "angle", "yaw", "pitch", "roll", "year", "weight", "height", "length", "width",
    "temperature", "score", "brightness", "redshift", "mass", "latitude", "longitude", "price", "time",
)  # fmt: skip
"""Columns of these names hold numbers, even if few different ones."""
_SEVERAL = ("labels", "classes", "tags", "findinglabels", "findings", "categories", "attributes", "genres", "targets")
"""Fields of these names may hold several labels, separated by commas."""
_SPACED = ("tags", "findings", "attributes", "genres")
"""Fields of these names may hold several labels, separated by spaces."""
_NOTHING = {"", "nan", "null", "n/a", "<na>", "#n/a", "#na"}


@dataclass(frozen=True, kw_only=True)
class LabelValues:
    """What the labels of pictures mean.

    Attributes:
        kind: "class" (one each), "multi" (any number of tags each) or "numbers".
        values: by picture: a class name, a tuple of tags, or a tuple of numbers; None without a label.
        names: the tags, or the columns of numbers; () for classes.
        said: how several labels are written ("separated by '|'"), or what was translated.
        doubt: a question that the labels raise, or "".
    """

    kind: Literal["class", "multi", "numbers"]
    values: list[Any]
    names: tuple[str, ...] = ()
    said: str = ""
    doubt: str = ""


def simple(name: str) -> str:
    """The letters and digits of a name, in lower case: "Image_ID" is "imageid"."""
    return "".join(c for c in name.lower() if c.isalnum())


def is_nothing(cell: Any) -> bool:
    """Whether a cell means that there is no label: empty, None, NaN and the like."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return True
    return isinstance(cell, str) and cell.strip().lower() in _NOTHING


def number_of(cell: Any) -> float | None:
    """The number in a cell, also as text and with a decimal comma; None for anything else."""
    if isinstance(cell, (bool, int, float)):
        return float(cell)
    if not isinstance(cell, str):
        return None
    text = cell.strip()
    lowered = text.lower()
    if lowered in ("true", "false"):
        return float(lowered == "true")
    if "_" in text:
        return None  # Python's own notation
    try:
        return float(text)
    except ValueError:
        try:
            return float(text.replace(",", ".")) if text.count(",") == 1 else None
        except ValueError:
            return None


def plain(cell: Any) -> str:
    """A label as text; "2.0" is 2, as tables with gaps write whole numbers."""
    text = str(cell).strip()
    if isinstance(cell, bool) or text.lower() in ("true", "false"):
        return text.lower()
    value = number_of(cell)
    whole = value is not None and math.isfinite(value) and value == int(value)
    return str(int(value)) if whole and value is not None and not text.lstrip("-").isdigit() else text


def interpret_values(cells: Sequence[Any], head: str, where: str, classes: Sequence[str] | None = None) -> LabelValues:
    """What the labels in one column or field mean.

    Args:
        cells: a label for each picture: text, a number, a list, or nothing.
        head: the name of the column.
        where: what holds them, for messages.
        classes: the class names that several labels are taken from, if they are known.

    Raises:
        ValueError: Lists of lists or objects.
    """
    cells = _parsed_lists(cells)
    if any(isinstance(cell, dict) for cell in cells):
        raise ValueError(f"{where}: {head} holds objects, which are no labels")
    if any(isinstance(cell, list) for cell in cells):
        return _of_lists(cells, classes, where, head)
    unique = {cell: is_nothing(cell) for cell in dict.fromkeys(cells)}  # there may be a million cells
    present = [cell for cell in unique if not unique[cell]]
    numbers = [number_of(cell) if not isinstance(cell, bool) else None for cell in present]
    counts = Counter(cells)
    count, distinct = sum(counts[cell] for cell in present), len({str(cell) for cell in present})
    if present and None not in numbers:
        whole = all(value is not None and math.isfinite(value) and value == int(value) for value in numbers)
        key = simple(head) in LABEL_KEYS or head.startswith("column ")
        binary = {value for value in numbers if value is not None} <= {0.0, 1.0, -1.0}
        many = count >= 4 and distinct > max(2, count // 2)
        if not whole or (not key and many) or (simple(head) in NUMBER_KEYS and not binary):
            values = [None if is_nothing(cell) or not math.isfinite(number_of(cell) or 0.0) else (number_of(cell),)
                      for cell in cells]  # fmt: skip
            return LabelValues(kind="numbers", values=list(values), names=(head,))
        negative = sorted({int(value) for value in numbers if value is not None and value < 0})
        if negative == [-1] and {int(value) for value in numbers if value is not None} == {-1, 1}:
            pair = [None if is_nothing(cell) else head if number_of(cell) == 1 else f"not {head}" for cell in cells]
            return LabelValues(kind="class", values=list(pair), said=f"1 is {head!r}, -1 is 'not {head}'")
        if -1 in negative:
            cells = [None if not is_nothing(cell) and number_of(cell) == -1 else cell for cell in cells]
            distinct -= 1
        texts = _plain_texts(cells)
    else:
        texts = _plain_texts(cells)
        separator = _separator(texts, head)
        if separator is not None:
            tags = [None if text is None else _tags(text.split(separator)) for text in texts]
            named_as = "white space" if separator == " " else repr(separator)
            return _multi(tags, f"separated by {named_as}")
    doubt = ""
    if count >= 10 and distinct >= 0.9 * count:
        doubt = (
            f"{where}: {distinct:,} classes for {count:,} pictures: nearly every picture has a class of its own. "
            f"Is {head!r} the column of the labels?"
        )
    return LabelValues(kind="class", values=list(texts), doubt=doubt)


def _plain_texts(cells: Sequence[Any]) -> list[str | None]:
    found = {cell: None if is_nothing(cell) else plain(cell) for cell in dict.fromkeys(cells)}
    return [found[cell] for cell in cells]


def _separator(texts: Sequence[str | None], head: str) -> str | None:
    """What separates several labels in one text; None if every text is one label.

    Bars and semicolons occur in few names. Commas and spaces occur in many ("Paris, France"), so they separate labels
    only if the parts are numbers, or occur in several combinations.
    """
    present = Counter(text for text in texts if text)
    for separator in ("|", ";", ",", " "):
        joined = sum(count for text, count in present.items() if separator in text)
        if not joined:
            continue
        split = {text: set(_tags(text.split(separator))) for text in present}
        parts = {part for tags in split.values() for part in tags}
        if separator in "|;":
            if len(parts) < len(present) + joined:
                return separator
            continue
        if all(part.isdecimal() for part in parts):
            return separator
        shared = any(sum(part in tags for tags in split.values()) > 1 for part in parts)
        few = len(parts) <= len(present)
        several = simple(head) in _SEVERAL
        if shared and (few or several if separator == "," else few and simple(head) in _SPACED):
            return separator
    return None


def _parsed_lists(cells: Sequence[Any]) -> list[Any]:
    """Cells in which a list is written as text ('["a", "b"]', "['a', 'b']") as lists, if all are written so."""
    texts = [cell for cell in cells if not is_nothing(cell)]
    written = [isinstance(cell, str) and cell.strip()[:1] == "[" and cell.strip()[-1:] == "]" for cell in texts]
    if not texts or not all(written):
        return [list(cell) if isinstance(cell, (tuple, set)) else cell for cell in cells]
    lists = [None if is_nothing(cell) else _list_in(str(cell).strip()) for cell in cells]
    read = sum(item is not None for item in lists)
    return list(lists) if read == len(texts) else list(cells)


def _list_in(text: str) -> list[Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text) if len(text) < 100_000 else None  # literals only: nothing is executed
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = [word.strip().strip("'\"") for word in text[1:-1].split(",")]
    return found if isinstance(found, list) else None


def _of_lists(cells: Sequence[Any], classes: Sequence[str] | None, where: str, head: str) -> LabelValues:
    """Lists in cells: vectors of numbers, or names of several labels."""
    lists = [None if is_nothing(cell) else cell if isinstance(cell, list) else [cell] for cell in cells]
    flat = [item for cell in lists if cell for item in cell]
    if any(isinstance(item, (list, dict)) for item in flat):
        raise ValueError(f"{where}: {head} holds lists of lists or objects, which are no labels")
    if flat and all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in flat):
        lengths = {len(cell) for cell in lists if cell is not None}
        if len(lengths) == 1:
            wide = lengths.pop()
            values = [None if cell is None or not all(math.isfinite(v) for v in cell) else
                      tuple(float(v) for v in cell) for cell in lists]  # fmt: skip
            return LabelValues(kind="numbers", values=list(values), names=tuple(f"label[{k}]" for k in range(wide)))
    tags = [None if cell is None else _tags([plain(item) for item in cell]) for cell in lists]
    if classes is not None and {tag for picture in tags if picture for tag in picture} <= set(classes):
        return LabelValues(kind="multi", values=list(tags), names=tuple(dict.fromkeys(classes)), said="lists")
    return _multi(tags, "lists")


def _tags(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in words if word.strip()))


def _multi(tags: Sequence[tuple[str, ...] | None], said: str) -> LabelValues:
    names = tuple(class_table(tag for picture in tags if picture for tag in picture))
    return LabelValues(kind="multi", values=list(tags), names=names, said=said)
