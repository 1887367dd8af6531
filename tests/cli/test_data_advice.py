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


def split_set(place: Path, parts: tuple[str, ...] = ("train", "test")) -> Path:
    """Parts that hold files of the same names, and a table for each, with opposite labels."""
    for k, part in enumerate(parts):
        folder(place / part)
        rows = [f"{i}.png,{'cat' if (i + k) % 2 else 'dog'}" for i in range(4)]
        (place / f"{part}.csv").write_text("\n".join(["image,label", *rows]))
    return place


def labels(data: str, table: str) -> list[str]:
    """The class names of all images."""
    source = open_data(data, labels=table)
    assert source.labels is not None and source.label_names is not None
    return [source.label_names[k] for k in source.labels]


def test_each_part_has_the_labels_of_its_own_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files of the same names in train/ and test/: the table of the one says nothing of the other."""
    data = split_set(tmp_path / "d")
    assert labels(str(data), "train.csv") == ["dog", "cat", "dog", "cat"]
    assert labels(f"{data}:test", "train.csv") == ["cat", "dog", "cat", "dog"]  # those of test.csv
    assert labels(f"{data}:test", "test.csv") == ["cat", "dog", "cat", "dog"]
    assert call("inspect", data, "--labels", "train.csv") == 0
    line = next(li for li in capsys.readouterr().out.splitlines() if li.startswith("  undiffuse train "))
    assert trained(shlex.split(line)[2:], tmp_path) == 0
    (data / "test.csv").unlink()
    with pytest.raises(ValueError, match=r"train\.csv is the table of another part.*test\.csv"):
        open_data(f"{data}:test", labels="train.csv")


def test_a_table_without_parts_for_files_of_the_same_names_is_refused(tmp_path: Path) -> None:
    data = split_set(tmp_path / "d")
    (data / "train.csv").rename(data / "labels.csv")
    with pytest.raises(ValueError, match=r"labels\.csv names 0\.png, which may be train/0\.png or test/0\.png"):
        open_data(data)
    rows = [f"{part}/{i}.png,{part}" for part in ("train", "test") for i in range(4)]
    (data / "labels.csv").write_text("\n".join(["image,label", *rows]))
    assert labels(str(data), "auto") == ["train"] * 4
    assert labels(f"{data}:test", "auto") == ["test"] * 4


def test_a_table_inside_the_folder_of_its_part(tmp_path: Path) -> None:
    data = split_set(tmp_path / "d")
    for part in ("train", "test"):
        (data / f"{part}.csv").rename(data / part / "labels.csv")
    assert labels(str(data), "auto") == ["dog", "cat", "dog", "cat"]
    assert labels(f"{data}:test", "auto") == ["cat", "dog", "cat", "dog"]


def test_tables_of_other_names_are_suggested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder(tmp_path / "d")
    (data / "annotations.csv").write_text("image,label\n" + "\n".join(f"{i}.png,{i % 2}" for i in range(4)))
    (data / "readme.txt").write_text("Four random images.\n")
    text, _ = suggested(data, capsys)
    flat = " ".join(text.split())
    assert "annotations.csv is not used, but names the images; --labels annotations.csv takes it" in flat
    assert "readme.txt" not in text
    assert labels(str(data), "annotations.csv") == ["0", "1", "0", "1"]


def test_the_validation_part_is_suggested_before_the_test_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test", "val"):
        folder(tmp_path / "d" / part)
    _, words = suggested(tmp_path / "d", capsys)
    assert words[-1].endswith("d:val")


def test_pictures_of_8_bits_among_deeper_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A range for the deep ones would make the others nearly black: it is not suggested, and its effect is said."""
    data = folder(tmp_path / "d")
    for i in range(4):
        Image.fromarray(np.full((8, 8), 1000 * i, np.uint16)).save(data / f"deep{i}.png")
    text, words = suggested(data, capsys)
    assert "there are 8-bit images too" in " ".join(text.split())
    assert not any("range" in word for word in words)
    assert call("inspect", data, "--range", "0,4095") == 0
    assert "4 8-bit images: 0 becomes 0 and 255 becomes 16 of 255" in " ".join(capsys.readouterr().out.split())
