"""Recipes: Python functions that return frozen configurations, by name.

    fashion-mnist-32, smoke            the shipped models, and a run of two minutes
    emoji-*                            models of emoji in colour (examples/emoji.py makes the data set)
    tiny                               a small model of any images, grey or colour, for a CPU
    general-*                          models of your own images; -v, -edm, -flow with newer processes than ADM's
    ddpm-*, improved-*, adm-*, edm-*   the published models, with the papers' settings and results; not run here

A recipe holds everything about a run except the data. Looking one up builds nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

from undiffuse.recipes import adm, classifiers, consistency, ddpm, emoji, fashion_mnist, general, improved, modern
from undiffuse.recipes.base import Preparation, Recipe
from undiffuse.recipes.general import for_data

RECIPES: dict[str, Callable[[], Recipe]] = {
    "fashion-mnist-32": fashion_mnist.fashion_mnist_32,
    "fashion-mnist-32-classifier": fashion_mnist.fashion_mnist_32_classifier,
    "fashion-mnist-32-judge": fashion_mnist.fashion_mnist_32_judge,
    "smoke": fashion_mnist.smoke,
    **emoji.RECIPES,
    **general.RECIPES,
    **modern.RECIPES,
    **ddpm.RECIPES,
    **improved.RECIPES,
    **adm.RECIPES,
    **classifiers.RECIPES,
    **consistency.RECIPES,
}


def names() -> list[str]:
    """Returns the names of all recipes: our own first, then the published ones in the order of the papers."""
    return list(RECIPES)


def get(name: str) -> Recipe:
    """Returns the recipe of this name; ValueError for an unknown name suggests similar ones."""
    if name in RECIPES:
        return RECIPES[name]()
    wanted = name.strip().casefold()
    words = re.findall("[a-z0-9]+", wanted)
    near = [known for known in RECIPES if words and all(word in known for word in words)]
    near += [known for known in difflib.get_close_matches(wanted, RECIPES, n=5, cutoff=0.5) if known not in near]
    if near:
        raise ValueError(f"there is no recipe {name!r}; did you mean {' or '.join(near[:8])}?")
    raise ValueError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")


__all__ = ["RECIPES", "Preparation", "Recipe", "for_data", "get", "names"]
