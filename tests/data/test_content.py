"""Swapped images of equal size are noticed in every kind of container."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from undiffuse.data import index, open_data
from undiffuse.data.content import ContentIndex, Recheck, content_index

RNG = np.random.default_rng(5)
X = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
SWAPPED = X[[1, 0, 2, 3, 4, 5]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))


def bmp(image: np.ndarray) -> bytes:
    """A file whose size does not depend on its pixels."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "BMP")
    return file.getvalue()


def folder(path: Path, images: np.ndarray) -> None:
    path.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        (path / f"{i}.bmp").write_bytes(bmp(image))


def archive(path: Path, images: np.ndarray) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for i, image in enumerate(images):
            file.writestr(zipfile.ZipInfo(f"{i}.bmp"), bmp(image))


def shard(path: Path, images: np.ndarray) -> None:
    with tarfile.open(path, "w") as file:
        for i, image in enumerate(images):
            for ending, data in (("bmp", bmp(image)), ("cls", b"1" if i % 2 else b"0")):
                info = tarfile.TarInfo(f"{i:03d}.{ending}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))


def frames(path: Path, images: np.ndarray) -> None:
    first, *others = map(Image.fromarray, images)
    first.save(path, save_all=True, append_images=others)


def npz(path: Path, images: np.ndarray) -> None:
    np.savez(path, images=images)


def parquet(path: Path, images: np.ndarray) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    column = [{"bytes": bmp(image), "path": None} for image in images]
    writer.write_table(pyarrow.table({"image": column}), path, use_dictionary=False, compression="none")


def lmdb(path: Path, images: np.ndarray) -> None:
    library = pytest.importorskip("lmdb")
    from undiffuse.data.formats import lmdb as reader

    for environment in reader._OPEN.values():
        environment.close()
    reader._OPEN.clear()
    path.unlink(missing_ok=True)
    with library.open(str(path), subdir=False, map_size=1 << 20) as base, base.begin(write=True) as transaction:
        for i, image in enumerate(images):
            transaction.put(f"{i:03d}".encode(), bmp(image))
    Path(f"{path}-lock").unlink(missing_ok=True)


def hdf5(path: Path, images: np.ndarray) -> None:
    library = pytest.importorskip("h5py")
    with library.File(path, "w") as file:
        file["images"] = images


CASES: list[tuple[str, Callable[[Path, np.ndarray], None]]] = [
    ("folder", folder), ("a.zip", archive), ("a.tar", shard), ("a.tif", frames), ("a.npz", npz),
    ("a.parquet", parquet), ("a.lmdb", lmdb), ("a.h5", hdf5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write"), CASES)
def test_swapped_images_are_noticed(
    tmp_path: Path, name: str, write: Callable[[Path, np.ndarray], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("undiffuse.data.containers._SMALL", 0)  # so that checksums are kept
    path = tmp_path / name
    write(path, X)
    before = content_index(open_data(path, frames="all"))
    again = content_index(open_data(path, frames="all"))
    write(path, SWAPPED)
    source = open_data(path, frames="all")
    after = content_index(source)
    assert before is not None and again is not None and after is not None
    assert before.hash == again.hash != after.hash
    said = ContentIndex.of_arrays(before.arrays()).changes(after)
    assert said.startswith("2 images changed: " if after.what == "image" else "1 file changed: ")
    assert np.array_equal(np.asarray(source.image(0)), X[1])
    part = content_index(source.subset([5, 0]))
    assert part is not None and len(part.names) == (2 if after.what == "image" else 1)


def test_one_of_several_npz_files(tmp_path: Path) -> None:
    for i in range(3):
        npz(tmp_path / f"part{i}.npz", X)
    (tmp_path / "README.md").write_text("first")
    before, fingerprint = content_index(open_data(tmp_path)), open_data(tmp_path).fingerprint
    (tmp_path / "README.md").write_text("second")
    again = content_index(open_data(tmp_path))
    npz(tmp_path / "part1.npz", SWAPPED)
    after = content_index(open_data(tmp_path))
    assert before is not None and again is not None and after is not None
    assert before.hash == again.hash and before.changes(after) == "1 file changed: part1.npz"
    assert open_data(tmp_path).fingerprint != fingerprint


def test_a_large_folder_is_looked_at_while_the_training_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "FROM", 3)
    monkeypatch.setattr("undiffuse.data.containers.SETTLED", -10.0)
    folder(tmp_path / "data", X)
    first = content_index(open_data(tmp_path / "data"))
    assert first is not None and first.trusted is None
    quick = content_index(open_data(tmp_path / "data"))
    assert quick is not None and quick.trusted is not None and quick.hash == first.hash
    assert Recheck(quick.trusted).result() == ""
    for i in (1, 4):
        os.utime(tmp_path / "data" / f"{i}.bmp")
    assert Recheck(quick.trusted).result() == ""  # only their times have changed
    (tmp_path / "data" / "1.bmp").write_bytes(bmp(X[2]))  # in place: no folder changes
    stale = content_index(open_data(tmp_path / "data"))
    assert stale is not None and stale.trusted is not None and stale.hash == first.hash
    assert Recheck(stale.trusted).result() == "1 image changed: 1.bmp"
    now = content_index(open_data(tmp_path / "data"))
    assert now is not None and now.hash != first.hash and now.changes(first) == "1 image changed: 1.bmp"
