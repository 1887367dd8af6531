"""Small files that unpack to much, archives that lead out of themselves, names that play with a terminal."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from undiffuse import checkpoints
from undiffuse.cli import main
from undiffuse.data import open_data
from undiffuse.data.tables import read_table
from undiffuse.util import limits
from undiffuse.util.limits import LIMITS, limit, npz_headers, open_npz
from undiffuse.util.text import printable


@pytest.fixture(autouse=True)
def no_free_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Bombs of the tests are small; the limits are the same."""
    monkeypatch.setattr(limits, "_FREE", 1 << 14)
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))


def png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, format="PNG")
    return file.getvalue()


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_bomb_among_the_images_is_a_broken_image(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.png": png(), "b.png": bytes(10_000_000)})
    with pytest.raises(ValueError, match=r"b\.png.*too many times its packed size.*UNDIFFUSE_MAX_RATIO"):
        source = open_data(path)
        source.image(1)


def test_a_bomb_of_a_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.png": png(), "labels.csv": b"a.png,1\n" * 1_000_000})
    with pytest.raises(ValueError, match=r"labels\.csv.*UNDIFFUSE_MAX_RATIO"):
        open_data(path, labels="labels.csv")
    monkeypatch.setenv("UNDIFFUSE_MAX_RATIO", "100000")
    monkeypatch.setenv("UNDIFFUSE_MAX_TABLE", "1000000")
    with pytest.raises(ValueError, match=r"labels\.csv.*UNDIFFUSE_MAX_TABLE"):
        open_data(path, labels="labels.csv")


def test_rows_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_MAX_ROWS", "10")
    with pytest.raises(ValueError, match=r"x\.csv has too many rows: 11 is more than 10"):
        read_table(b"a,b\n" * 11, "x.csv")


def test_a_bomb_of_an_npz_is_refused_by_all_who_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, arr_0=np.zeros((40_000, 8, 8, 1), np.uint8))
    for read in (open_npz, open_data, npz_headers):
        with pytest.raises(ValueError, match=r"arr_0\.npy.*UNDIFFUSE_MAX_RATIO"):
            read(path)
    monkeypatch.setenv("UNDIFFUSE_MAX_RATIO", "100000")
    assert npz_headers(path) == {"arr_0": (np.dtype(np.uint8), (40_000, 8, 8, 1))}
    assert len(open_data(path)) == 40_000


def test_a_bomb_of_a_gzip_is_refused(tmp_path: Path) -> None:
    header = b"\0\0\x08\x03" + struct.pack(">3I", 40_000, 8, 8)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(header + bytes(40_000 * 64)))
    with pytest.raises(ValueError, match="UNDIFFUSE_MAX_RATIO"):
        open_data(path)


def test_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "a.zip", {f"{k}.png": png() for k in range(5)})
    monkeypatch.setenv("UNDIFFUSE_MAX_MEMBERS", "4")
    with pytest.raises(ValueError, match="too many members: 5 is more than 4"):
        open_data(path)


@pytest.mark.parametrize("header", [2**40, 70_000_000])
def test_headers_of_safetensors(tmp_path: Path, header: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_MAX_HEADER", "1000")
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", min(header, 5000)) + b"{" + b" " * 4998 + b"}")
    if header == 2**40:
        path.write_bytes(struct.pack("<Q", header) + b"{}")
    with pytest.raises(checkpoints.CheckpointError, match=r"header ends after it|UNDIFFUSE_MAX_HEADER"):
        checkpoints.read(path)


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "x/../../a.png", "C:/a.png", "..\\a.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_lead_out_are_refused_by_name(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        make_zip(path, {"b.png": png(), name: png()})
    else:
        with tarfile.open(path, "w") as archive:
            for member in ("b.png", name):
                info = tarfile.TarInfo(member)
                info.size = len(png())
                archive.addfile(info, io.BytesIO(png()))
    with pytest.raises(ValueError, match="leads out of the archive"):
        open_data(path)


def test_limits_are_whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LIMITS:
        assert limit(name) == LIMITS[name]
        monkeypatch.setenv(name, "7")
        assert limit(name) == 7
        monkeypatch.setenv(name, "many")
        with pytest.raises(ValueError, match=f"{name} must be a whole number above 0, got 'many'"):
            limit(name)


def test_control_characters_are_escaped_on_the_terminal(tmp_path: Path, capsys: Any) -> None:
    assert printable("a\x1b[2J\r\x9bb\u202e\udc80") == "a\\x1b[2J\\r\\x9bb\\u202e\\udc80"
    assert printable("Größe 猫 👩\u200d🚀\n\tx") == "Größe 猫 👩\u200d🚀\n\tx"
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a\x1b[31m.png").write_bytes(b"no image")
    main(["inspect", str(folder)])
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    assert "\\x1b[31m" in told.out + told.err
