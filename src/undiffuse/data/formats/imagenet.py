"""ImageNet's 1,000 classes in the orders that data sets number them by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

from undiffuse.adapters import imagenet_classes

__all__ = ["COUNT", "devkit_order", "names", "translated"]

COUNT = imagenet_classes.COUNT


def names() -> list[str]:
    """The names of the classes in the sorted order of their WordNet ids, the order of nearly all data sets."""
    return list(imagenet_classes.names())


@lru_cache(maxsize=1)
def devkit_order() -> tuple[int, ...]:
    """The sorted place of each class of the development kit (map_clsloc.txt), which begins with the kit fox."""
    file = resources.files("undiffuse") / "assets" / "imagenet_devkit_order.txt"
    place = {imagenet_classes.synset(k): k for k in range(COUNT)}
    return tuple(place[synset] for synset in file.read_text(encoding="ascii").split())


def translated(values: Sequence[str], table: Sequence[str] | None, names: Sequence[str] | None = None) -> list[str]:
    """Other names of ImageNet's classes as those of an ImageNet class table; anything else unchanged.

    WordNet ids ("n02119789", names of folders) and lists of synonyms ("tench, Tinca tinca", as Hugging Face and PyTorch
    have them) name a class whatever its number is. Numbers are never translated: their order is not known.

    Args:
        values: the names of the pictures' classes.
        table: the class table that they become names of.
        names: the class table of the format. If its names are ImageNet's in the sorted or in the development kit's
            order, a name that several classes share ("crane") is that of its place.
    """
    if table is None or not values or len(table) != COUNT or tuple(table) != imagenet_classes.names():
        return list(values)
    found = _by_place(names, table) if names is not None and len(names) == COUNT else {}
    for value in set(values).difference(table, found):
        classes = [] if value.strip().isdecimal() else imagenet_classes.exact(value)
        found[value] = table[classes[0]] if len(classes) == 1 else value
    return [found.get(value, value) for value in values]


def _by_place(names: Sequence[str], table: Sequence[str]) -> dict[str, str]:
    """{other name: name} if 19 of 20 names can mean the class that one of the orders has in their place."""
    meant = [set(imagenet_classes.exact(name)) for name in names]
    for order in (range(COUNT), devkit_order()):
        if sum(place in classes for place, classes in zip(order, meant, strict=True)) >= 0.95 * COUNT:
            return {name: table[place] for name, place in zip(names, order, strict=True)}
    return {}
