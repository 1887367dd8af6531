"""PNG with provenance: exact pixels, exact records, whole files only, and no silent overwriting."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from undiffuse.pictures import read_record, save_png
from undiffuse.pictures.png import is_whole_png
from undiffuse.util.files import atomic_file, remove_leftovers

RECORD = {
    "seed": 0,
    "index": 17,
    "model": "e3b0c442",
    "solver": {"name": "ddim", "eta": 0.1},
    "guidance": None,
    "class_name": "caf\u00e9 \u65e5\u672c \U0001f457",
    "steps": [10, 20, 2**60],
    "clip": True,
    "tiny": 1e-300,
}


def image(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pixels_and_record_come_back(tmp_path: Path, channels: int, mode: str) -> None:
    file = save_png(tmp_path / "new" / "a.png", image(channels), RECORD)
    with Image.open(file) as picture:
        assert picture.mode == mode
        assert np.array_equal(np.asarray(picture).reshape(5, 7, channels), image(channels))
    assert read_record(file) == RECORD
    assert [f.name for f in file.parent.iterdir()] == ["a.png"]


def test_tensor_and_pil_are_pictures_too(tmp_path: Path) -> None:
    save_png(tmp_path / "t.png", torch.from_numpy(image()))
    save_png(tmp_path / "p.png", Image.fromarray(image()))
    assert (tmp_path / "t.png").read_bytes() == (tmp_path / "p.png").read_bytes()


def test_record_is_plain_text_any_tool_can_read(tmp_path: Path) -> None:
    file = save_png(tmp_path / "a.png", image(), {"seed": 3, "name": "\u00e9"})
    with Image.open(file) as picture:
        assert picture.info["undiffuse"] == '{"seed": 3, "name": "\\u00e9"}'


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (float("nan"), "'a.b'"),
        (float("inf"), "'a.b'"),
        (np.int64(3), "'a.b' is int64"),
        (torch.zeros(1), "'a.b' is Tensor"),
        (Path("x"), "'a.b'"),
        (b"x", "'a.b' is bytes"),
        ([1, {2}], r"'a.b\[1\]' is set"),
        ({1: 2}, "keys are text"),
        ("\ud800", "half a character"),
    ],
)
def test_what_json_cannot_hold_is_named(tmp_path: Path, value: object, where: str) -> None:
    with pytest.raises(ValueError, match=where):
        save_png(tmp_path / "a.png", image(), {"a": {"b": value}})
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_kept_unless_told(tmp_path: Path) -> None:
    file = save_png(tmp_path / "a.png", image(), {"seed": 1})
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_png(file, image(), {"seed": 2})
    assert read_record(file) == {"seed": 1}
    save_png(file, image(), {"seed": 2}, overwrite=True)
    assert read_record(file) == {"seed": 2}


def test_wrong_suffix_image_and_files_without_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png"):
        save_png(tmp_path / "a.jpg", image())
    with pytest.raises(ValueError, match="to_uint8"):
        save_png(tmp_path / "a.png", image() / 255.0)
    for name, text in (("plain", None), ("broken", "{"), ("list", "[1]")):
        info = PngInfo()
        if text is not None:
            info.add_text("undiffuse", text)
        Image.fromarray(image()).save(tmp_path / f"{name}.png", pnginfo=info)
        with pytest.raises(ValueError, match="no undiffuse record"):
            read_record(tmp_path / f"{name}.png")
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "none.png")


def test_a_cut_file_is_not_whole(tmp_path: Path) -> None:
    file = save_png(tmp_path / "a.png", image())
    data = file.read_bytes()
    assert is_whole_png(file)
    for cut in (b"", data[:4], data[:-1], data[: len(data) // 2], b"\0" * len(data), data[:-12] + b"\0" * 12):
        file.write_bytes(cut)
        assert not is_whole_png(file)
    assert not is_whole_png(tmp_path / "none.png")


def test_atomic_file_leaves_the_old_one_when_interrupted(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_file(target, overwrite=True) as file:
        file.write(b"half")
        file.flush()
        assert target.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old" and [f.name for f in tmp_path.iterdir()] == ["a.bin"]


def test_leftovers_are_removed_by_age_and_nothing_else_is(tmp_path: Path) -> None:
    old, new, other = tmp_path / ".undiffuse-aa.tmp", tmp_path / ".undiffuse-bb.tmp", tmp_path / "mine.tmp"
    for file in (old, new, other):
        file.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    assert remove_leftovers(tmp_path, older_than=3600) == 1 and not old.exists()
    assert remove_leftovers(tmp_path) == 1 and not new.exists() and other.exists()
    assert remove_leftovers(tmp_path / "nowhere") == 0
