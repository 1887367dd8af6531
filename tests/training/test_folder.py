"""A run's folder that already holds something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from undiffuse.training import TrainConfig
from undiffuse.training.folder import RunFolder

CONFIG = TrainConfig(images=128, batch=64)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "model.safetensors", "loss_curve.png"])
def test_files_of_something_else_are_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{name} of something else"):
        RunFolder(tmp_path, CONFIG).resume({})
    assert (tmp_path / name).read_text() == "mine"


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"train": {}}))
    (tmp_path / "metrics.jsonl").write_text("")
    assert RunFolder(tmp_path, CONFIG).resume({}) is None
    (tmp_path / "notes.txt").write_text("mine")
    assert RunFolder(tmp_path, CONFIG).resume({}) is None


def test_an_empty_folder_is_vacant(tmp_path: Path) -> None:
    assert RunFolder(tmp_path, CONFIG).resume({}) is None
