"""The page on recipes describes every recipe."""

from __future__ import annotations

import re

from support.pages import text_of
from undiffuse import recipes


def test_every_recipe_belongs_to_a_row_and_every_row_has_one() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|", text_of("docs/recipes.md"), flags=re.MULTILINE)
    assert len(rows) >= 8
    names = recipes.names()
    for name in names:
        assert any(name.startswith(row) for row in rows), name
    for row in rows:
        assert any(name.startswith(row) for name in names), row
