"""The documentation site: every page is in the navigation, every link has a target, and the site builds in strict mode.

The site itself is built where the extra `docs` is installed; the other checks need nothing.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.pages import ALL, PAGES, ROOT, anchors, text_of

NAVIGATION = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_every_page_is_in_the_navigation() -> None:
    assert sorted(f"docs/{page}" for page in NAVIGATION) == PAGES
    assert len(set(NAVIGATION)) == len(NAVIGATION)


@pytest.mark.parametrize("page", ALL)
def test_links_have_targets(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, name = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if name:
            assert name in anchors(file), f"{page}: {target}"


def test_every_picture_is_used() -> None:
    """Pictures in docs/ that no page shows are left over."""
    text = "\n".join(text_of(page) for page in ALL)
    for picture in (ROOT / "docs").rglob("*.png"):
        assert picture.name in text, picture


@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason='the extra "docs" is not installed')
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="?([^"\s>]+)', html)
        loaded += re.findall(
            r'<link\b(?=[^>]*rel="?(?:stylesheet|icon|preload|preconnect))[^>]*\bhref="?([^"\s>]+)', html
        )
        assert not [name for name in loaded if name.startswith(("http:", "https:", "//"))], page
    train = (tmp_path / "site" / "api" / "training.html").read_text(encoding="utf-8")
    assert 'id="undiffuse.training.face.train"' in train and "callbacks" in train


@pytest.mark.skipif(importlib.util.find_spec("griffe") is None, reason='the extra "docs" is not installed')
def test_docstrings_name_the_parameters_that_functions_have(caplog: pytest.LogCaptureFixture) -> None:
    import griffe

    def parse(item: griffe.Object | griffe.Alias) -> int:
        count = 0
        for member in item.members.values():
            if not member.is_alias:
                if member.docstring is not None:
                    member.docstring.parse("google")
                    count += 1
                count += parse(member)
        return count

    caplog.set_level("WARNING")
    package = griffe.load("undiffuse", search_paths=[str(ROOT / "src")], docstring_parser="google")
    assert parse(package) > 3000
    assert not caplog.messages
