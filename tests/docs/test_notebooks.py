"""The notebooks run from the first cell to the last, with small numbers, and show rich views of what they compute.

The cells are executed here, which needs no other package, and, where the extra `docs` is installed, in a Jupyter
kernel. The numbers of the cell that is tagged "parameters" are replaced, as papermill does.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.cli_runs import one_thread, write_model
from support.pages import ROOT
from support.variants import few
from undiffuse.data.fashion import FASHION_CLASSES
from undiffuse.models import load_model
from undiffuse.util.notebook import card

SMALL: dict[str, dict[str, Any]] = {
    "sample-and-guide": {"COUNT": 4, "STEPS": 2},
    "train-on-your-pictures": {"SIZE": 16, "IMAGES": 16, "WIDTH": 8, "STEPS": 2},
    "evaluate-and-compare": {"COUNT": 24, "REFERENCE": 40, "LIKELIHOOD": 2},
}


def cells(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    return found


def shown(value: Any) -> str:
    """What a notebook shows of the value of a cell."""
    for view in ("_repr_html_", "_repr_markdown_"):
        if hasattr(value, view):
            return str(getattr(value, view)())
    return "" if value is None else repr(value)


def run(name: str) -> list[str]:
    """Runs a notebook and returns what its cells show."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    out = []
    for number, cell in enumerate(cells(name)):
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        where = f"{name}, cell {number}"
        exec(compile(tree, where, "exec"), scope)
        if last is not None:
            out.append(shown(eval(compile(ast.Expression(last.value), where, "eval"), scope)))  # type: ignore[attr-defined]
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(SMALL[name]) <= set(scope)
            scope.update(SMALL[name])
    return out


def test_notebooks_are_committed_without_outputs() -> None:
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert [path.stem for path in notebooks] == sorted(SMALL)
    for path in notebooks:
        assert path.stat().st_size < 20_000
        for cell in cells(path.stem):
            assert not cell.get("outputs") and cell.get("execution_count") is None
        try:
            import nbformat
        except ImportError:
            continue
        nbformat.validate(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("name", list(SMALL))
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    if name == "evaluate-and-compare":
        _few_pictures(monkeypatch)
    with one_thread():
        views = run(name)
    pictures = [view for view in views if "data:image/png;base64," in view]
    if name == "sample-and-guide":
        assert len(pictures) == 2 and "2.73 million parameters" in views[0]
    elif name == "train-on-your-pictures":
        assert len(pictures) == 1 or len(pictures) == 2  # samples, and the loss curve where there is matplotlib
        assert any("circle, square, triangle" in view for view in views)
    else:
        assert sum("FD-fashion" in view for view in views) >= 2
        assert "bits/dim" in views[-1] and "<table>" in views[-1]


@pytest.mark.skipif(importlib.util.find_spec("nbclient") is None, reason='the extra "docs" is not installed')
@pytest.mark.parametrize("name", few(["sample-and-guide", "train-on-your-pictures"], count=1))
def test_a_notebook_runs_in_a_kernel(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel shows what a cell returns by its richest view, and says nothing on standard error."""
    import nbclient
    import nbformat

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    small = nbformat.v4.new_code_cell("\n".join(f"{key} = {value!r}" for key, value in SMALL[name].items()))
    tagged = next(k for k, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    notebook.cells.insert(tagged + 1, small)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data for output in outputs if output.output_type in ("execute_result", "display_data")]
    rich = [data for data in shown if "text/html" in data or "image/png" in data]
    assert len(rich) >= 3 and all("Path(" in data["text/plain"] for data in shown if data not in rich)
    assert not [output.text for output in outputs if output.get("name") == "stderr" and "Error" in output.text]


def _few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty random pictures take the place of Fashion-MNIST, which may have to be downloaded."""
    import undiffuse.data.opening as opening
    from undiffuse.data import ArraySource

    images, labels = np.random.default_rng(0).integers(0, 256, (60, 28, 28), np.uint8), np.arange(60) % 10
    source = ArraySource(images, labels, list(FASHION_CLASSES))
    monkeypatch.setattr(opening, "fashion_mnist", lambda *_, **__: source)


class _Balance(HTMLParser):
    """Fails if a tag is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_cards_are_whole_html_and_escape_what_they_show() -> None:
    text = card("a <b>", [("x", "<script>"), ("none", None)], notes=["1 < 2"], picture=b"\x89PNG")
    parser = _Balance()
    parser.feed(text)
    assert not parser.open
    assert "<script>" not in text and "&lt;script&gt;" in text and "none" not in text and "1 &lt; 2" in text


def test_a_model_is_short_in_a_notebook(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path / "model.safetensors"))
    assert len(repr(model)) < 200 and "\n" not in repr(model)
    view = model._repr_html_()
    assert len(view) < 2_000 and "1x8x8" in view and "20 " in view
