"""The README's Python example runs and gives what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_example_runs_and_draws_ten_different_pictures() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 1
    code = [line for line in blocks[0].splitlines() if line and not line.startswith(("import", "from"))]
    assert len(code) <= 10  # "ten lines"
    scope: dict[str, object] = {}
    exec(compile(blocks[0], str(README), "exec"), scope)
    pixels = scope["pixels"]
    assert isinstance(pixels, torch.Tensor)
    assert pixels.shape == (10, 32, 32, 1)
    assert pixels.dtype == torch.uint8
    assert len({bytes(p.numpy().tobytes()) for p in pixels}) == 10
    assert pixels.float().std() > 20  # not blank


@pytest.mark.parametrize("command", re.findall(r"undiffuse ([a-z-]+)", README.read_text(encoding="utf-8")))
def test_every_command_the_readme_names_exists(command: str) -> None:
    from undiffuse.cli import COMMANDS

    assert command in COMMANDS
