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
from undiffuse.data.decoding import check_size, decode
from undiffuse.data.tables import read_table
from undiffuse.pictures.png import read_png_record
from undiffuse.util import limits
from undiffuse.util.limits import LIMITS, limit, load_npy, npz_headers, open_npz
from undiffuse.util.text import join_names, printable


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


def _npy(shape: str, dtype: str = "|u1") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_npy(f"({2**63}, 2)"), "ends before"),
        (_npy(f"({10**30},)"), "ends before"),
        (_npy("(1000,)"), "ends before"),
        (_npy("(-4, 2)"), "damaged|negative"),
        (_npy("('a',)"), "cannot be read"),
        (_npy("(4,)", "|O"), "not executed"),
        (b"\x93NUM", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_arrays_that_say_they_are_larger_or_other(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_npy(path, str(path))
    with pytest.raises(ValueError, match=words):
        load_npy(io.BytesIO(content), "it")
    for read in (open_npz, npz_headers):  # by its first bytes it is no npz, so nothing of it is read
        with pytest.raises(ValueError, match="no npz file"):
            read(path)
    packed = tmp_path / "a.npz"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("arr_0.npy", content)
    objects = b"|O" in content  # their header is read; the pickle is not
    with pytest.raises(ValueError, match="Object arrays" if objects else words):
        _ = open_npz(packed)["arr_0"] if objects else npz_headers(packed)
    assert (main(["inspect", str(packed)]) == 0) == objects


def test_an_array_and_a_zip_in_one_file_is_no_npz(tmp_path: Path) -> None:
    packed = tmp_path / "a.npz"
    np.savez(packed, arr_0=np.zeros(4))
    packed.write_bytes(_npy(f"({2**70}, 8)") + packed.read_bytes())
    with pytest.raises(ValueError, match="single array"):
        open_npz(packed)
    assert main(["inspect", str(packed)]) != 0


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


def test_a_name_has_no_lines(tmp_path: Path, capsys: Any) -> None:
    """A name that holds the end of a line cannot make a message of its own."""
    assert join_names(["a\nundiffuse: error: b\tc", "d"]) == "a\\nundiffuse: error: b\\tc, d"
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    (folder / "b\nundiffuse: error: c.png").write_bytes(b"no image")
    assert main(["train", str(folder), "--recipe", "tiny", "--size", "8", "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("undiffuse: error: ") for line in lines) == 1
    assert any("b\\nundiffuse: error: c.png" in line for line in lines)


def test_words_that_a_shell_made_of_names_are_escaped(capsys: Any) -> None:
    assert main(["inspect", "a", "b\x1b[31m.png"]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said and "\\x1b[31m" in said


def test_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    monkeypatch.setenv("UNDIFFUSE_MAX_PIXELS", "31")
    with pytest.raises(ValueError, match=r"64 pixels \(8x8, height x width\), more than the limit of 31"):
        decode(io.BytesIO(png()))
    assert np.asarray(decode(io.BytesIO(png()), max_pixels=32)).shape == (8, 8)
    with pytest.raises(ValueError, match=r"a\.png.*8x8.*more than 31.*UNDIFFUSE_MAX_PIXELS"):
        read_png_record(path)


def test_bytes_of_a_pixel_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of many channels takes the memory of many pixels."""
    monkeypatch.setenv("UNDIFFUSE_MAX_PIXELS", "1000")
    check_size(10, 100, bytes_each=8)
    with pytest.raises(ValueError, match=r"1,000 pixels of 9 bytes .* max_pixels=2000"):
        check_size(10, 100, bytes_each=9)


def test_every_limit_is_in_the_docs() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert [name for name in LIMITS if f"| `{name}` |" not in text] == []


def test_datasets_of_hdf5_that_take_no_room_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")

    def made(name: str, **arrays: Any) -> Path:
        with h5py.File(tmp_path / name, "w") as file:
            for key, options in arrays.items():
                file.create_dataset(key, **options)
        return tmp_path / name

    monkeypatch.setenv("UNDIFFUSE_MAX_PIXELS", "10000")
    large = made("large.h5", images={"shape": (3, 200, 200, 3), "dtype": "u1"})
    with pytest.raises(ValueError, match=r"images: an image of \[200, 200, 3\] .* 15,000 is more than 10,000"):
        open_data(large)
    bomb = made("bomb.h5", images={"data": np.zeros((500, 8, 8, 3), "u1"), "chunks": (500, 8, 8, 3), "compression": 9})
    with pytest.raises(ValueError, match=r"bomb\.h5: images unpacks to too many times .*UNDIFFUSE_MAX_RATIO"):
        open_data(bomb)
    monkeypatch.setenv("UNDIFFUSE_MAX_ROWS", "10")
    labels = made("labels.h5", images={"shape": (11, 8, 8), "dtype": "u1"}, labels={"shape": (11,), "dtype": "i8"})
    with pytest.raises(ValueError, match=r"labels has too many rows: 11 is more than 10"):
        open_data(labels)
    monkeypatch.setenv("UNDIFFUSE_MAX_ROWS", "11")
    assert len(open_data(labels)) == 11


def test_rows_and_pages_of_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    column = [{"bytes": png() + bytes(10**6), "path": "a.png"}, {"bytes": png(), "path": "b.png"}]
    parquet.write_table(pyarrow.table({"image": column, "label": [0, 1]}), path, compression="zstd")
    with pytest.raises(ValueError, match=r"a\.parquet: image\.bytes of row group 0 .*UNDIFFUSE_MAX_RATIO"):
        open_data(path)
    monkeypatch.setenv("UNDIFFUSE_MAX_RATIO", "1000000")
    assert len(open_data(path)) == 2
    monkeypatch.setenv("UNDIFFUSE_MAX_ROWS", "1")
    with pytest.raises(ValueError, match=r"a\.parquet.* has too many rows: 2 is more than 1"):
        open_data(path)
