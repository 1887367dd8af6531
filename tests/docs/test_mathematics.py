"""Every value on the page on mathematics is what its expression gives."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch

from support.pages import python_blocks, text_of

PAGE = "docs/mathematics.md"
ROWS = re.findall(r"^\| (.+?) \| `(.+?)` \| (\S+) \|$", text_of(PAGE), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def scope() -> Iterator[dict[str, object]]:
    names: dict[str, object] = {}
    before = torch.get_default_dtype()
    for block in python_blocks(PAGE):
        exec(compile(block, PAGE, "exec"), names)
    yield names
    torch.set_default_dtype(before)


def test_the_page_has_its_values() -> None:
    assert len(ROWS) >= 40


@pytest.mark.parametrize(("what", "expression", "shown"), ROWS, ids=[row[0] for row in ROWS])
def test_values(scope: dict[str, object], what: str, expression: str, shown: str) -> None:
    assert float(eval(expression, scope)) == pytest.approx(float(shown), rel=1e-6, abs=1e-12)
