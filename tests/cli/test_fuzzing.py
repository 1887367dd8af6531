"""Damaged files and odd values at every door: a clear refusal or a result, soon and in little memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support.fuzzing import LIMIT_BYTES, LIMIT_SECONDS, fuzz


@pytest.mark.skipif(sys.platform == "win32", reason="no alarms there")
def test_no_input_ends_in_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    report = fuzz(tmp_path, seconds=12, seed=20)
    assert not report.failures, report.text() + "\n" + report.failures[0][1]
    assert report.slowest < LIMIT_SECONDS
    assert report.grown < LIMIT_BYTES
    assert min(report.tried.values()) > 3
    for door, count in report.tried.items():
        assert report.refused[door] < count, f"{door}: nothing is accepted, so its honest inputs are wrong"
