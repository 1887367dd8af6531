"""The Python examples of the README run as they are printed, and commands exist. tests/docs has those of the pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.cli_runs import one_thread
from undiffuse.cli import COMMANDS
from undiffuse.solvers.registry import SOLVERS

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"


def blocks(page: Path) -> list[str]:
    """The Python examples of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the reader's pictures in my_photos, grey as the shipped extractor wants them."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    (tmp_path / "my_photos").mkdir()
    for k in range(40):
        Image.fromarray(draw.integers(0, 256, (32, 32), np.uint8)).save(tmp_path / "my_photos" / f"{k}.png")
    with one_thread():
        yield tmp_path
    SOLVERS.pop("my-euler", None)


def test_the_five_jobs_of_the_readme(photos: Path) -> None:
    """Load and sample; guided; train on a folder; evaluate two sets; a solver by name. Each is a few lines."""
    found = blocks(README)
    assert len(found) == 5
    for block in found[:4]:
        assert len([line for line in block.splitlines() if line.strip()]) <= 6
    scope: dict[str, object] = {}
    for block in found:
        short = block.replace("images=20_000", "images=32, batch=8").replace("steps=20", "steps=3")
        short = short.replace(".sample(16)", ".sample(12, steps=2)").replace("sample(16,", "sample(4, steps=3,")
        exec(compile(short.replace('extractor="efflite"', 'extractor="fashion", size=32'), str(README), "exec"), scope)
    assert len(list((photos / "dresses").glob("*_seed0-*.png"))) == 4
    assert len(list((photos / "new_photos").glob("*seed*.png"))) == 12
    assert "my-euler" in SOLVERS


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"^    (?:.*-m )?undiffuse ([a-z-]+)", README.read_text(encoding="utf-8"), re.M)))
)
def test_every_command_the_readme_names_exists(command: str) -> None:
    assert command in COMMANDS
