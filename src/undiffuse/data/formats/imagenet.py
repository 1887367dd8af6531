"""ImageNet's 1,000 classes in the orders that data sets number them by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

from undiffuse.adapters import imagenet_classes

__all__ = ["COUNT", "devkit_order", "names", "translated"]

COUNT = imagenet_classes.COUNT


@lru_cache(maxsize=1)
def _synsets() -> dict[str, int]:
    """{WordNet id: its place in the sorted order}."""
    return {imagenet_classes.synset(k): k for k in range(COUNT)}


def names() -> list[str]:
    """The names of the classes in the sorted order of their WordNet ids, the order of nearly all data sets."""
    return list(imagenet_classes.names())


@lru_cache(maxsize=1)
def devkit_order() -> tuple[int, ...]:
    """The sorted place of each class of the development kit (map_clsloc.txt), which begins with the kit fox."""
    file = resources.files("undiffuse") / "assets" / "imagenet_devkit_order.txt"
    return tuple(_synsets()[synset] for synset in file.read_text(encoding="ascii").split())


def translated(values: Sequence[str], table: Sequence[str] | None) -> list[str]:
    """WordNet ids (``n02119789``, names of folders) as the names of an ImageNet class table; others unchanged."""
    if table is None or not values or len(table) != COUNT or tuple(table) != imagenet_classes.names():
        return list(values)
    known = _synsets()
    return [table[known[value]] if value in known else value for value in values]
