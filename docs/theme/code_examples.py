"""Shows the code under "Example:" of docstrings as code, not as prose: an extension of griffe, see mkdocs.yml."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Examples?:\n((?: {4}.*(?:\n|$)|\n(?= {4}))+)", flags=re.MULTILINE)


class CodeExamples(griffe.Extension):
    """Fences the block below "Example:" in every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites one docstring before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(match: re.Match[str]) -> str:
    block = match[1].rstrip("\n")
    return f"Example:\n    ```python\n{block}\n    ```\n" + "\n" * (len(match[1]) - len(block) > 1)
