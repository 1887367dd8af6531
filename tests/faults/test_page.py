"""The page says what the record says."""

from __future__ import annotations

import json

from faults.page import DOCS, KINDS, page
from fuzz.page import DOORS, read


def test_the_page_is_made_of_its_record() -> None:
    content = json.loads((DOCS / "faults.json").read_text(encoding="utf-8"))
    assert set(content) <= set(KINDS)
    assert set(read()) <= set(DOORS)
    assert page(content, read()) == (DOCS / "faults.md").read_text(encoding="utf-8")
