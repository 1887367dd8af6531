"""`convert` writes what others read, whole or not at all; the command line agrees with the library."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.cli_runs import call
from support.formats_made import COUNT, GREY, NAMES, X, Y, check, classes, pixels, png, write_pngs
from undiffuse.data import ArraySource, Source, convert, open_data

TARGETS = ("folder", "zip", "webdataset", "parquet")


def source() -> Source:
    return ArraySource(X, Y.astype(np.int64), NAMES)


def made(path: Path, to: str, of: Source | None = None, **keywords: object) -> Source:
    if to == "parquet":
        pytest.importorskip("pyarrow")
    convert(source() if of is None else of, path, to, **keywords)  # type: ignore[arg-type]
    return open_data(path)


@pytest.mark.parametrize("to", TARGETS)
def test_there_and_back(tmp_path: Path, to: str) -> None:
    back = made(tmp_path / "out", to, shard_size=5)
    check(back, names=NAMES)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]  # nothing half-written is left beside it
    vectors = ArraySource(X)
    vectors.vectors = np.linspace(0, 1, 2 * COUNT, dtype=np.float32).reshape(COUNT, 2)
    again = made(tmp_path / "vectors", to, vectors)
    assert np.array_equal(pixels(again), X) and again.vectors is not None
    assert np.allclose(again.vectors, vectors.vectors)
    plain = made(tmp_path / "plain", to, ArraySource(GREY))
    check(plain, GREY, None)


@pytest.mark.parametrize("to", TARGETS)
def test_several_labels_and_one_number_come_back(tmp_path: Path, to: str) -> None:
    tags = ArraySource(X)
    tags.vectors = np.array([[i % 2, i % 3 == 0, 0] for i in range(COUNT)], dtype=np.float32)
    tags.vector_names, tags.multi_hot = ["wet", "big", "never"], True
    again = made(tmp_path / "tags", to, tags)
    assert again.vectors is not None and np.array_equal(again.vectors, tags.vectors)
    assert again.multi_hot and again.vector_names == tags.vector_names
    one = ArraySource(X)
    one.vectors, one.vector_names = np.arange(20, 20 + COUNT, dtype=np.float32)[:, None], ["age"]
    again = made(tmp_path / "one", to, one)
    assert again.vectors is not None and np.array_equal(again.vectors, one.vectors)
    if to in ("folder", "zip"):
        assert again.vector_names == ["age"]


@pytest.mark.parametrize("to", ["folder", "webdataset", "parquet"])
def test_files_are_copied_byte_by_byte(tmp_path: Path, to: str) -> None:
    (tmp_path / "in").mkdir()
    contents = []
    for i in range(3):
        file = io.BytesIO()
        Image.fromarray(X[i]).save(file, "JPEG" if i else "PNG")
        contents.append(file.getvalue())
        (tmp_path / "in" / f"{i}.{'jpeg' if i else 'png'}").write_bytes(file.getvalue())
    if to == "parquet":
        pytest.importorskip("pyarrow")
    done = convert(open_data(tmp_path / "in"), tmp_path / "out", to)  # type: ignore[arg-type]
    assert (done.images, done.copied, done.reduced) == (3, 3, 0)
    back = open_data(tmp_path / "out")
    assert [back.encoded(i) for i in range(3)] == contents


def test_layouts_that_others_expect(tmp_path: Path) -> None:
    convert(source(), tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        content = json.loads(archive.read("dataset.json"))
        assert content["labels"][1] == ["00000/img00000001.png", int(Y[1])]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert np.array_equal(np.asarray(Image.open(archive.open("00000/img00000001.png"))), X[1])
    convert(source(), tmp_path / "w", "webdataset", shard_size=5)
    assert sorted(file.name for file in (tmp_path / "w").iterdir()) == [
        "classes.txt", *(f"shard-00000{k}.tar" for k in range(3))
    ]  # fmt: skip
    with tarfile.open(tmp_path / "w" / "shard-000001.tar") as archive:
        assert archive.getnames()[:3] == ["00000005.png", "00000005.cls", "00000005.json"]
        cls, record = (archive.extractfile(name) for name in archive.getnames()[1:3])
        assert cls is not None and cls.read() == str(Y[5]).encode()
        assert record is not None and json.loads(record.read()) == {"label": NAMES[Y[5]], "name": "image[5]"}
    convert(source(), tmp_path / "f", "folder")
    line = json.loads((tmp_path / "f" / "metadata.jsonl").read_text().splitlines()[2])
    assert line == {"file_name": "00000/img00000002.png", "label": NAMES[Y[2]], "name": "image[2]"}


def test_parquet_has_the_features_of_the_hub(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    convert(source(), tmp_path / "p", "parquet", shard_size=5)
    files = sorted(file.name for file in (tmp_path / "p" / "data").iterdir())
    assert files == [f"train-0000{k}-of-00003.parquet" for k in range(3)]
    table = parquet.read_table(tmp_path / "p" / "data" / files[0])
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"} and features["label"] == {"names": NAMES, "_type": "ClassLabel"}
    assert table.column("image")[0].as_py() == {"bytes": png(X[0]), "path": "img00000000.png"}


def test_deep_pixels(tmp_path: Path) -> None:
    deep = ArraySource(GREY.astype(np.uint16) * 257, value_range=(0, 65535))
    back = made(tmp_path / "a", "folder", deep)
    assert np.array_equal(pixels(back), GREY.astype(np.uint16) * 257)
    real = ArraySource(GREY.astype(np.float32) / 255, value_range=(0, 1))
    done = convert(real, tmp_path / "b")
    assert done.reduced == COUNT
    assert np.array_equal(pixels(open_data(tmp_path / "b")), GREY)
    with pytest.raises(ValueError, match="7 channels, which no PNG holds"):
        convert(ArraySource(np.zeros((2, 6, 6, 7), np.uint8)), tmp_path / "c")


def test_sizes(tmp_path: Path) -> None:
    write_pngs(tmp_path / "in", ["a.png"], X[:1])
    (tmp_path / "in" / "b.png").write_bytes(png(X[1, :8]))
    mixed = open_data(tmp_path / "in")
    with pytest.raises(ValueError, match="pictures of one size: a.png is 10x14, b.png is 8x14"):
        convert(mixed, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
    convert(mixed, tmp_path / "a.zip", size=8)
    assert open_data(tmp_path / "a.zip").stored_size(1) == (8, 8)


@pytest.mark.parametrize("to", TARGETS)
def test_nothing_is_replaced_and_nothing_half_written(tmp_path: Path, to: str) -> None:
    if to == "parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        convert(source(), tmp_path / "there", to)  # type: ignore[arg-type]
    write_pngs(tmp_path / "in", [f"{i}.png" for i in range(4)], X[:4])
    (tmp_path / "in" / "2.png").write_bytes(png(X[2])[:60])
    broken = open_data(tmp_path / "in", check="none")
    with pytest.raises(ValueError, match="2.png"):
        convert(broken, tmp_path / "out", to)  # type: ignore[arg-type]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in", "there"]
    done = convert(broken, tmp_path / "out", to, on_broken="skip", shard_size=2)  # type: ignore[arg-type]
    assert done.images == 3 and [item.name for item in done.excluded] == ["2.png"]
    assert np.array_equal(pixels(open_data(tmp_path / "out")), X[[0, 1, 3]])


def test_mistakes(tmp_path: Path) -> None:
    for words, said in (({"to": "tar"}, "to='tar'"), ({"shard_size": 0}, "shard_size=0")):
        with pytest.raises(ValueError, match=said):
            convert(source(), tmp_path / "x", **words)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be written"):
        convert(source(), tmp_path / "x.tar")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", x_train=X[:8], y_train=Y[:8], x_test=X[8:], y_test=Y[8:])
    assert call("convert", tmp_path / "a.npz", tmp_path / "out.zip") == 0
    told = capsys.readouterr().out
    assert "NumPy archive (npz)" in told and "parts not opened: test (4 images)" in told
    assert f"{tmp_path / 'out.zip'} (zip): 8 images" in told and f"undiffuse inspect {tmp_path / 'out.zip'}" in told
    check(open_data(tmp_path / "out.zip"), X[:8], Y[:8])
    assert call("convert", f"{tmp_path / 'a.npz'}:test", tmp_path / "out", "--to", "webdataset") == 0
    assert classes(open_data(tmp_path / "out")) == [str(y) for y in Y[8:]]
    assert call("convert", tmp_path / "a.npz", tmp_path / "out.zip") == 2
    assert "exists already" in capsys.readouterr().err
