"""Large runs of samples say how much disk space they take, and when it does not suffice."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from undiffuse.pipelines.run import disk


def test_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2_000_000_000))
    folder = tmp_path / "not" / "there"
    assert disk(20, (1, 32, 32), "png", folder) is None
    assert disk(50_000, (3, 64, 64), "npz", folder) == "up to 614 MB"
    assert disk(50_000, (3, 64, 64), "tiff", folder) == "up to 2.5 GB; only 2.0 GB free"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1_000))
    assert disk(20, (1, 32, 32), "png", folder) == "up to 0.0205 MB; only 0.001 MB free"
