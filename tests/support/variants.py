"""Variants of a test, of which a few run by default and the others with `-m slow`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def few(variants: Iterable[Any], *, count: int, first: Iterable[int] = ()) -> list[Any]:
    """Returns variants for `pytest.mark.parametrize`, all but some of which are marked slow.

    Args:
        variants: Values, or tuples of values.
        count: How many run by default, from the beginning.
        first: Numbers of those that run by default, instead.
    """
    chosen = set(first) or set(range(count))
    return [
        value
        if number in chosen
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
        for number, value in enumerate(variants)
    ]
