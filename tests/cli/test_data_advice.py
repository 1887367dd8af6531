"""What `inspect` says of data is what `train` does: the command it prints works, and nothing is taken wrongly."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.cli_runs import call
from undiffuse.data import open_data

SMALL = ("--recipe", "tiny", "--width", 8, "--images", 4, "--batch", 2, "--device", "cpu", "--ema", "none")


def folder(place: Path, count: int = 4) -> Path:
    """A folder of small random pictures 0.png, 1.png, ..."""
    place.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / f"{i}.png")
    return place


def suggested(data: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, list[str]]:
    """What `inspect` prints, and the words of the command it suggests, without "undiffuse train"."""
    assert call("inspect", data) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("  undiffuse train "))
    return text, shlex.split(line)[2:]


def trained(words: list[str], tmp_path: Path) -> int:
    """The exit status of the suggested command, made small."""
    return call("train", *words, *SMALL, "--out", tmp_path / "run")


def test_rows_of_a_table_without_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder(tmp_path / "d")
    rows = [f"{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(5)]
    (data / "labels.csv").write_text("\n".join(["image,label", *rows]))
    text, words = suggested(data, capsys)
    assert "left out     1: 4.png (in labels.csv, but not there)" in text
    assert words[-2:] == ["--on-broken", "skip"]
    assert trained(words, tmp_path) == 0
    assert call("train", data, *SMALL, "--out", tmp_path / "refused") == 2


def test_values_that_are_not_numbers_in_arrays_are_found_before_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.random.default_rng(0).random((8, 8, 8, 1), dtype=np.float32)
    values[3, 0, 0] = np.nan
    np.savez(tmp_path / "v.npz", images=values)
    text, words = suggested(tmp_path / "v.npz", capsys)
    assert "broken       1: v.npz[3] (1 of 64 values are NaN or infinite)" in text
    assert call("train", tmp_path / "v.npz", *SMALL, "--out", tmp_path / "refused") == 2
    assert "v.npz[3] (1 of 64 values are NaN or infinite)" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
    assert trained(words, tmp_path) == 0


def test_one_image_in_an_array_is_not_a_set_of_narrow_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "one.npy", np.zeros((16, 16, 3), np.uint8))
    for command in ("inspect", "train"):
        assert call(command, tmp_path / "one.npy") != 0
        assert "looks like one image of 3 channels" in capsys.readouterr().err
    assert len(open_data(tmp_path / "one.npy", layout="HWC")) == 16
