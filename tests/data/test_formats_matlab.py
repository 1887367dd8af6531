"""MATLAB files, written by SciPy and h5py and read picture by picture."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.formats_made import COUNT, GREY, NAMES, X, Y, check, pixels
from undiffuse.data import open_data
from undiffuse.data.formats import matfile

io = pytest.importorskip("scipy.io")
LAST = X.transpose(1, 2, 3, 0)


def test_svhn(tmp_path: Path) -> None:
    images = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    for part, chosen in (("train", slice(0, 3)), ("test", slice(3, 4))):
        x, y = images[chosen].transpose(1, 2, 3, 0), np.array([10, 1, 9, 10])[chosen, None].astype(np.uint8)
        io.savemat(tmp_path / f"{part}_32x32.mat", {"X": x, "y": y}, do_compression=True)
    digits = [str(k) for k in range(10)]
    check(open_data(tmp_path / "train_32x32.mat"), images[:3], [0, 1, 9], digits)
    source = open_data(tmp_path)
    check(source, images[:3], [0, 1, 9], digits)
    assert source.held_out == {"test": 1}
    assert any("10 is the digit 0" in note for note in source.notes)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_pictures_are_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool, large: bool
) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(matfile, "_IN_MEMORY", 100 if large else 1 << 20)
    io.savemat(tmp_path / "a.mat", {"labels": Y, "images": LAST, "names": "text", "s": {"a": 1}}, do_compression=packed)
    source = open_data(tmp_path / "a.mat")
    check(source, X, Y)
    assert np.array_equal(pixels(pickle.loads(pickle.dumps(source))), X) and not source.in_memory
    assert source.notes[0] == "images from images, whose last axis counts them"
    assert "arrays that are not read: names (text), s (struct)" in source.notes
    assert (tmp_path / "cache" / "unpacked").exists() == (packed and large)


@pytest.mark.parametrize(
    ("array", "images"),
    [
        (X, X),
        (X.transpose(0, 3, 1, 2), X),
        (GREY.transpose(1, 2, 0), GREY),
        (X.astype(np.float64), X.astype(np.float64)),
        ((GREY > 99).transpose(1, 2, 0), (GREY > 99) * np.uint8(255)),
    ],
)
@pytest.mark.parametrize("labelled", [False, True])
def test_the_axis_that_counts_is_found(tmp_path: Path, array: Any, images: Any, labelled: bool) -> None:
    io.savemat(tmp_path / "a.mat", {"X": array, **({"y": Y[:, None]} if labelled else {})})
    source = open_data(tmp_path / "a.mat")
    assert np.array_equal(pixels(source), images)
    assert (source.labels is not None) == labelled


def test_numbers_keep_the_type_they_have_in_matlab(tmp_path: Path) -> None:
    io.savemat(tmp_path / "a.mat", {"X": (GREY > 99).astype(np.float64).transpose(1, 2, 0)})
    assert open_data(tmp_path / "a.mat").value_range == (0, 1)  # doubles of 0 and 1, which may be stored as bytes


def test_parts_and_version_7_3(tmp_path: Path) -> None:
    io.savemat(tmp_path / "a.mat", {"XTrain": LAST, "YTrain": Y, "XTest": LAST[..., :3], "YTest": Y[:3]})
    source = open_data(tmp_path / "a.mat")
    check(source, X, Y)
    assert source.held_out == {"test": 3} and len(open_data(f"{tmp_path / 'a.mat'}:test")) == 3
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "b.mat", "w", userblock_size=512) as file:
        file["X"], file["y"] = LAST.T, Y[None].astype(np.uint8)
        file["t"] = np.array([[65]], np.uint16)
        file["t"].attrs["MATLAB_class"] = np.bytes_("char")
    with (tmp_path / "b.mat").open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64")
    source = open_data(tmp_path / "b.mat")
    check(source, X, Y)
    assert "arrays that are not read: t (char)" in source.notes


def test_what_cannot_be_read(tmp_path: Path) -> None:
    io.savemat(tmp_path / "old.mat", {"X": GREY[0]}, format="4")
    with pytest.raises(ValueError, match="of version 4. Save it with save"):
        open_data(tmp_path / "old.mat")
    io.savemat(tmp_path / "flat.mat", {"fea": GREY[:, :, :10].reshape(COUNT, -1), "gnd": Y})
    with pytest.raises(ValueError, match=r"fea \[12, 100\] may hold flattened pictures, by rows or by columns"):
        open_data(tmp_path / "flat.mat")
    io.savemat(tmp_path / "cut.mat", {"X": LAST})
    (tmp_path / "cut.mat").write_bytes((tmp_path / "cut.mat").read_bytes()[:-500])
    with pytest.raises(ValueError, match="cut.mat cannot be read as a MATLAB file: it was cut short"):
        open_data(tmp_path / "cut.mat")
    cells = np.array([NAMES[y] for y in Y], dtype=object)
    io.savemat(tmp_path / "cells.mat", {"X": LAST, "y": cells})
    assert "arrays that are not read: y (cell)" in open_data(tmp_path / "cells.mat").notes
