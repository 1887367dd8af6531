"""A minute of damaged files and odd values at every door: a clear refusal or a result, soon and in little memory."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from fuzz.damage import ByteRandom, damaged
from fuzz.engine import LIMIT_BYTES, LIMIT_SECONDS, door_names, fuzz
from fuzz.page import DOORS

GROUPS = {
    "own files": (
        "checkpoint",
        "manifest",
        "latents",
        "record",
        "run",
        "report",
        "samples",
        "rows",
        "frontier",
        "evaluation",
        "reference",
        "cached",
        "sharded",
    ),
    "settings": ("options", "settings", "words", "path", "arguments"),
    "data": ("npz", "npy", "zip", "packed", "tar", "table", "parquet", "folder", "format", "inspect"),
    "other programs": ("weights", "torchscript", "like", "diffusers", "safetensors", "answer"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="no alarms there")
@pytest.mark.parametrize("group", GROUPS)
def test_no_input_ends_in_a_traceback(group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    report = fuzz(tmp_path, seconds=15, seed=20, only=GROUPS[group])
    assert not report.failures, report.text() + "\n" + report.failures[0][1]
    assert report.slowest < LIMIT_SECONDS
    assert report.grown < LIMIT_BYTES
    for door in GROUPS[group]:
        accepted = report.tried[door] - report.refused[door]
        assert accepted or report.tried[door] < 300, f"{door}: nothing is accepted, so its honest inputs are wrong"


def test_every_door_is_in_a_group() -> None:
    assert sorted(door_names()) == sorted(door for group in GROUPS.values() for door in group) == sorted(DOORS)


def test_bytes_steer_the_choices() -> None:
    seed, honest = bytes(4), bytes(range(100))
    results = {damaged(ByteRandom(seed + bytes([k] * 12)), honest) for k in range(40)}
    assert len(results) > 20
    assert damaged(ByteRandom(seed + b"abc"), honest) == damaged(ByteRandom(seed + b"abc"), honest)
    assert 0 <= ByteRandom(b"").random() < 1
    assert sorted(ByteRandom(bytes(60)).sample(range(10), 10)) == list(range(10))
    assert isinstance(ByteRandom(b"12345678"), random.Random)
