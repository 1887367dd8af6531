"""Tables and arrays that somebody made up: a ValueError that names the file."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from undiffuse.data import open_data
from undiffuse.data.tables import read_table

IMAGES = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "a.png," + "y" * 200_000),
        ("x.csv", 'a.png,"' + "y\n" * 100_000),
        ("x.tsv", "a.png\t" + "y" * 200_000),
        ("x.jsonl", "[" * 100_000 + "]" * 100_000),
        ("x.jsonl", '{"file": "a.png", "label": ' + "1" * 5000 + "}"),
        ("x.jsonl", "{"),
    ],
)
def test_tables(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}, line \d+: this is no"):
        read_table(text.encode(), name)


def member(header: bytes, data: bytes = b"") -> bytes:
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def array(value: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "members",
    [
        {"arr_0": b"no array"},
        {"arr_0.npy": b"no array"},
        {"arr_0.npy": b""},
        {"arr_0.npy": b"\x93NUMPY\x01\x00"},
        {"arr_0.npy": member(b"{'descr': '|u1', (((")},
        {"arr_0.npy": member(b"\xff\xfe'''")},
        {"arr_0.npy": member(b"   if x:\n  y\n z")},
        {"arr_0.npy": member(b"{'descr': '|u1', 'fortran_order': False, 'shape': ()}", b"x")},
        {"arr_0.npy": member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 2, 2)}", b"x")},
        {"arr_0.npy": member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (10, 8, 8, 3)}", b"x")},
        {"arr_0.npy": member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999, 9999999, 99, 3)}", b"x")},
        {"arr_0.npy": member(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"x")},
        {"arr_0.npy": array(np.zeros((4, 0, 8, 3), np.uint8))},
        {"arr_0.npy": array(np.zeros((4, 8, 0), np.uint8))},
        {"arr_0.npy": array(IMAGES), "arr_1": b"no array"},
        {"arr_0.npy": array(IMAGES), "arr_1.npy": array(np.array(1))},
        {"arr_0.npy": array(IMAGES), "arr_1.npy": array(np.zeros(4, int)), "label_names.npy": array(np.array("a"))},
        {"arr_0.npy": array(IMAGES), "arr_1.npy": array(np.zeros(4, int)), "label_names.npy": array(np.array(3.5))},
        {"arr_0.npy": array(IMAGES), "arr_1.npy": array(np.zeros(4, int)), "label_names": b"a"},
    ],
)
def test_arrays(members: dict[str, bytes], compression: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match="x.npz"):
        open_data(tmp_path / "x.npz")


def test_an_array_cut_short_is_not_read_from_what_follows(tmp_path: Path) -> None:
    """The file is long enough for the images, but its member is not."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (4, 8, 8, 3)}", b"x"))
        archive.writestr("other.npy", array(np.zeros(5000)))
    with pytest.raises(ValueError, match="x.npz"):
        open_data(tmp_path / "x.npz")
