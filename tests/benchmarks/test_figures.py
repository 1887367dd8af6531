"""Every figure of the README and the docs is listed with its command and sources, and agrees with them (by hash)."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = _tool()


def shown() -> set[str]:
    """The figures that pages show, by their place below docs/."""
    found = set()
    for page in PAGES:
        for target in SHOWN.findall(page.read_text(encoding="utf-8")):
            if "://" not in target:
                found.add(str((page.parent / target).resolve().relative_to(ROOT / "docs")))
    return found


def test_every_figure_that_a_page_shows_is_listed() -> None:
    assert shown() <= set(TOOL.table())


def test_every_picture_of_the_docs_is_shown_or_goes() -> None:
    pictures = {path.name for ending in ("png", "svg", "gif", "jpg") for path in (ROOT / "docs").glob(f"*.{ending}")}
    assert pictures == shown()


def test_every_figure_agrees_with_its_sources() -> None:
    assert TOOL.faults() == []


def test_every_command_names_a_script_or_command_that_exists() -> None:
    from undiffuse.cli import COMMANDS

    for name, entry in TOOL.table().items():
        assert entry["sources"] or entry["reason"], name
        words = entry["command"].split()
        if words[0] == "undiffuse":
            assert words[1] in COMMANDS
        else:
            assert words[0] in ("python", "python3")
            assert (ROOT / words[1]).is_file()


@pytest.mark.parametrize("change", ["source", "figure", "missing"])
def test_a_change_is_found(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("a.png", "a.json"):
        (docs / name).write_text(name)
    sources = {"docs/a.json": TOOL.hash_of(docs / "a.json")}
    entry = {"command": "python a.py", "sources": sources, "sha256": TOOL.hash_of(docs / "a.png")}
    (docs / "figures.json").write_text(json.dumps({"a.png": entry}))
    for name, value in (("ROOT", tmp_path), ("DOCS", docs), ("TABLE", docs / "figures.json")):
        monkeypatch.setattr(TOOL, name, value)
    assert TOOL.faults() == []
    if change == "missing":
        (docs / "a.png").unlink()
    else:
        (docs / ("a.json" if change == "source" else "a.png")).write_text("other")
    (fault,) = TOOL.faults()
    assert {"source": "older than its source", "figure": "not the figure", "missing": "missing"}[change] in fault
    if change == "source":
        TOOL.note("a.png")
        assert TOOL.faults() == []
