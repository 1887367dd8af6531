"""Opening folders and zips; labels; broken and tiny files."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from undiffuse.data import BrokenImageError, Source, find_flaws, open_data
from undiffuse.data.labels import class_table, folder_labels
from undiffuse.data.names import Names


def png(value: int, size: tuple[int, int] = (12, 12)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(file, "PNG")
    return file.getvalue()


def fill(root: Path, names: list[str], size: tuple[int, int] = (12, 12)) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number, size))
    return root


def zipped(root: Path, path: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, top + file.relative_to(root).as_posix())
    return path


def labels_of(source: Source) -> dict[str, str | None]:
    table = source.label_names
    return {source.name(i): None if table is None else table[source.label(i) or 0] for i in range(len(source))}


CLASSED = ["dog/b.png", "cat/a.png", "cat/deep/c.PNG"]


def test_folder_is_sorted_recursive_and_ignores_what_is_hidden(tmp_path: Path) -> None:
    fill(tmp_path, ["b.png", "a/z.png", "a/y.png", ".hidden/x.png", "__MACOSX/._a.png", "._w.png"])
    (tmp_path / "notes.txt").write_text("no image")
    source = open_data(tmp_path)
    assert [source.name(i) for i in range(len(source))] == ["a/y.png", "a/z.png", "b.png"]
    assert source.label_names is None and source.label(0) is None
    image = source.image(2)
    assert isinstance(image, Image.Image) and image.getpixel((0, 0)) == (0, 0, 255)
    assert "3 images" in source.description and "no labels" in source.description


def test_every_format_is_found_and_read(tmp_path: Path) -> None:
    for ending in ("jpg", "JPEG", "png", "gif", "bmp", "webp", "tif", "tiff"):
        Image.new("RGB", (16, 16), (250, 0, 0)).save(tmp_path / f"x_{ending}.{ending}")
    source = open_data(tmp_path, check="full")
    assert len(source) == 8
    assert {source.stored_size(i) for i in range(8)} == {(16, 16)}


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    fill(tmp_path / "real", ["a.png"])
    fill(tmp_path / "data", ["b.png"])
    os.symlink(tmp_path / "real", tmp_path / "data" / "link")
    os.symlink(tmp_path / "data", tmp_path / "real" / "loop")
    source = open_data(tmp_path / "data")
    assert [source.name(i) for i in range(len(source))] == ["b.png", "link/a.png"]


def test_labels_from_folders(tmp_path: Path) -> None:
    source = open_data(fill(tmp_path, CLASSED))
    assert source.label_names == ["cat", "dog"]
    assert labels_of(source) == {"cat/a.png": "cat", "cat/deep/c.PNG": "cat", "dog/b.png": "dog"}
    assert source.class_counts() == {"cat": 2, "dog": 1}
    assert open_data(tmp_path, labels="none").label_names is None


def test_auto_does_not_invent_classes(tmp_path: Path) -> None:
    one = fill(tmp_path / "one", ["images/a.png", "images/b.png"])
    assert open_data(one).label_names is None
    mixed = fill(tmp_path / "mixed", ["cat/a.png", "dog/b.png", "c.png"])
    assert open_data(mixed).label_names is None
    with pytest.raises(ValueError, match="1 of 3 images lack a sub-folder.*c.png"):
        open_data(mixed, labels="folder")
    skipped = open_data(mixed, labels="folder", on_broken="skip")
    assert len(skipped) == 2 and [item.name for item in skipped.excluded] == ["c.png"]


def test_folder_labels_look_below_wrapping_folders() -> None:
    def labels(*names: str, known: list[str] | None = None) -> list[str | None]:
        return folder_labels(Names.of(names).runs, known)

    assert labels("data/train/cat/1.png", "data/train/dog/2.png") == ["cat", "dog"]
    assert labels("cat/1.png", "cat/2.png") == ["cat", "cat"]
    assert labels("cat/a/1.png", "cat/b/2.png", known=["bird", "cat"]) == ["cat", "cat"]
    assert labels("1.png", "cat/2.png") == [None, "cat"]


def test_labels_from_prefixes(tmp_path: Path) -> None:
    source = open_data(fill(tmp_path, ["x/10_a.png", "x/9_b_c.png", "10_d.png"]), labels="prefix")
    assert source.label_names == ["9", "10"]
    assert labels_of(source) == {"10_d.png": "10", "x/10_a.png": "10", "x/9_b_c.png": "9"}
    fill(tmp_path, ["plain.png"])
    with pytest.raises(ValueError, match="1 of 4.*underscore.*plain.png"):
        open_data(tmp_path, labels="prefix")
    with pytest.raises(ValueError, match="no image has an underscore"):
        open_data(fill(tmp_path / "other", ["a.png"]), labels="prefix")


def test_class_tables_sort_by_value_only_if_all_are_integers() -> None:
    assert class_table(["10", "2", "-1", "2"]) == ["-1", "2", "10"]
    assert class_table(["10", "2", "x"]) == ["10", "2", "x"]


@pytest.mark.parametrize(
    "name, text",
    [
        ("t.csv", "cat/a.png,one\ndog/b.png,two\ncat/deep/c.PNG,one\n"),
        ("t.csv", "\ufefflabel,note,path\none,x,./cat/a.png\n\ntwo,y,dog\\b.png\none,z,cat/deep/c.PNG\n"),
        ("t.tsv", "file\tlabel\ncat/a.png\tone\ndog/b.png\ttwo\ncat/deep/c.PNG\tone\n"),
        ("t.csv", "a.png,one\nb.png,two\nc.PNG,one\n"),
        (
            "t.jsonl",
            "".join(  # noqa: E501
                json.dumps({"file": n, "label": v}) + "\n" for n, v in zip(CLASSED, ["two", "one", "one"], strict=False)
            ),
        ),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_labels_from_tables(tmp_path: Path, name: str, text: str, inside: bool) -> None:
    fill(tmp_path / "data", CLASSED)
    table = tmp_path / "data" / name if inside else tmp_path / name
    table.write_text(text, encoding="utf-8")
    source = open_data(tmp_path / "data", labels=name if inside else str(table))
    assert source.label_names == ["one", "two"]
    assert labels_of(source) == {"cat/a.png": "one", "cat/deep/c.PNG": "one", "dog/b.png": "two"}


def test_auto_prefers_a_table_inside_also_in_a_zip(tmp_path: Path) -> None:
    fill(tmp_path / "data", CLASSED)
    (tmp_path / "data" / "labels.csv").write_text("cat/a.png,3\ncat/deep/c.PNG,20\ndog/b.png,3\n")
    folder = open_data(tmp_path / "data")
    flat = open_data(zipped(tmp_path / "data", tmp_path / "flat.zip"))
    wrapped = open_data(zipped(tmp_path / "data", tmp_path / "wrapped.zip", "top/"))
    for source in (folder, flat, wrapped):
        assert source.label_names == ["3", "20"]
        assert [source.label(i) for i in range(3)] == [0, 1, 0]


def test_table_errors_name_what_is_wrong(tmp_path: Path) -> None:
    data = fill(tmp_path / "data", CLASSED)
    table = tmp_path / "t.csv"

    def opened(text: str, name: str = "t.csv", **keywords: str) -> Source:
        (tmp_path / name).write_text(text)
        return open_data(data, labels=str(tmp_path / name), **keywords)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="no label for 1 of 3.*dog/b.png"):
        opened("cat/a.png,1\ncat/deep/c.PNG,2\n")
    with pytest.raises(ValueError, match="1 files that are not there: gone.png"):
        opened("cat/a.png,1\ncat/deep/c.PNG,2\ndog/b.png,1\ngone.png,1\n")
    with pytest.raises(ValueError, match="matches none of the 3 images"):
        opened("x.png,1\ny.png,2\n")
    with pytest.raises(ValueError, match="line 2: cat/a.png is given two labels, '1' and '2'"):
        opened("cat/a.png,1\ncat/a.png,2\n")
    with pytest.raises(ValueError, match="line 1: expected a path and a label"):
        opened("cat/a.png\n")
    with pytest.raises(ValueError, match="holds no labels"):
        opened("path,label\n")
    with pytest.raises(ValueError, match="line 2: this is not JSON"):
        opened('{"file": "a", "label": 1}\n{oops\n', "t.jsonl")
    for bad in ('{"label": 1}', "[1]"):
        with pytest.raises(ValueError, match="line 1: expected"):
            opened(bad, "t.jsonl")
    with pytest.raises(FileNotFoundError, match="no label table"):
        open_data(data, labels="nowhere.csv")
    with pytest.raises(ValueError, match="labels='colour'"):
        open_data(data, labels="colour")
    skipped = opened("cat/a.png,1\ncat/deep/c.PNG,2\ngone.png,5\n", on_broken="skip")
    assert labels_of(skipped) == {"cat/a.png": "1", "cat/deep/c.PNG": "2"}
    assert [(item.name, item.reason) for item in skipped.excluded] == [
        ("dog/b.png", "no label"), ("gone.png", "in t.csv, but not there"),
    ]  # fmt: skip
    assert table.exists()


def test_validation_shares_the_class_table(tmp_path: Path) -> None:
    train = open_data(fill(tmp_path / "train", ["ant/a.png", "bee/b.png", "cow/c.png"]))
    val = open_data(fill(tmp_path / "val", ["cow/c.png"]), label_names=train.label_names)
    assert val.label_names == ["ant", "bee", "cow"] and val.label(0) == 2
    fill(tmp_path / "val", ["dog/d.png", "elk/e.png"])
    with pytest.raises(ValueError, match=r"not in the class table: dog, elk\. The table has 3 classes: ant, bee, cow"):
        open_data(tmp_path / "val", labels="folder", label_names=train.label_names)


def test_zip_equals_folder(tmp_path: Path) -> None:
    fill(tmp_path / "data", CLASSED)
    folder, packed = open_data(tmp_path / "data"), open_data(zipped(tmp_path / "data", tmp_path / "d.zip"))
    assert folder.fingerprint == packed.fingerprint
    for i in range(3):
        assert folder.name(i) == packed.name(i) and folder.label(i) == packed.label(i)
        assert np.array_equal(np.asarray(folder.image(i)), np.asarray(packed.image(i)))


def test_zip_in_threads_forks_and_pickles(tmp_path: Path) -> None:
    names = [f"{k:03d}.png" for k in range(60)]
    source = open_data(zipped(fill(tmp_path / "data", names), tmp_path / "d.zip"))
    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(lambda i: np.asarray(source.image(i))[0, 0, 0], list(range(60)) * 3))
    assert first == list(range(60)) * 3
    copy = pickle.loads(pickle.dumps(source))
    assert np.asarray(copy.image(7))[0, 0, 0] == 7
    if hasattr(os, "fork"):
        # The child reads with a handle of its own: sharing one would share the position in the file.
        source.image(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking is just what is tested here
            child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if all(np.asarray(source.image(i))[0, 0, 0] == i for i in range(60)) else 1
            finally:
                os._exit(status)
        good = all(np.asarray(source.image(i))[0, 0, 0] == i for i in range(60))
        assert good and os.waitpid(child, 0)[1] == 0


def test_fingerprint_follows_names_sizes_and_labels(tmp_path: Path) -> None:
    source = open_data(fill(tmp_path / "a", CLASSED))
    assert source.fingerprint == open_data(fill(tmp_path / "b", CLASSED)).fingerprint
    assert len(source.fingerprint) == 64
    others = {source.fingerprint, open_data(tmp_path / "a", labels="none").fingerprint}
    others.add(open_data(fill(tmp_path / "c", [*CLASSED, "dog/z.png"])).fingerprint)
    (tmp_path / "b" / "dog" / "b.png").write_bytes(png(0) + b"\0")
    others.add(open_data(tmp_path / "b").fingerprint)
    others.add(source.subset([0, 1]).fingerprint)
    others.add(source.subset([1, 0]).fingerprint)
    assert len(others) == 6


def test_nothing_usable_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="fashion-mnist"):
        open_data(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        open_data(tmp_path / "empty")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(ValueError, match="holds no images"):
        open_data(tmp_path / "empty.zip")
    (tmp_path / "bad.zip").write_bytes(b"PK no")
    with pytest.raises(ValueError, match="cannot be read as a zip"):
        open_data(tmp_path / "bad.zip")
    fill(tmp_path, ["one.png"])
    with pytest.raises(ValueError, match="single image"):
        open_data(tmp_path / "one.png")
    with pytest.raises(ValueError, match="no split 'val'"):
        open_data("fashion-mnist:val")


def broken_folder(root: Path) -> Path:
    fill(root, [f"good{k}.png" for k in range(3)], (64, 64))
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpg").write_text("this is not an image")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for ending in ("jpg", "png"):
        noise.save(root / f"cut_{ending}.{ending}")
        data = (root / f"cut_{ending}.{ending}").read_bytes()
        (root / f"cut_{ending}.{ending}").write_bytes(data[: len(data) // 2])
    os.symlink(root / "gone.png", root / "link.png")
    return root


BROKEN = ["cut_jpg.jpg", "cut_png.png", "empty.png", "link.png", "text.jpg"]


@pytest.mark.parametrize("packed", [False, True])
def test_broken_files_are_named_counted_refused_or_skipped(tmp_path: Path, packed: bool) -> None:
    root = broken_folder(tmp_path / "data")
    names = BROKEN
    path = root
    if packed:
        os.remove(root / "link.png")
        names, path = [name for name in BROKEN if name != "link.png"], zipped(root, tmp_path / "d.zip")
    with pytest.raises(ValueError) as caught:
        open_data(path)
    assert f"{len(names)} of {len(names) + 3} images cannot be read" in str(caught.value)
    assert all(name in str(caught.value) for name in names) and "file is empty" in str(caught.value)
    source = open_data(path, on_broken="skip")
    assert [source.name(i) for i in range(len(source))] == ["good0.png", "good1.png", "good2.png"]
    assert [item.name for item in source.excluded] == names
    assert f"{len(names)} left out" in source.description
    headers = find_flaws(open_data(path, check="none"), check="headers")
    found = [open_data(path, check="none").name(i) for i in headers.broken]
    assert found == [name for name in names if not name.startswith("cut")]


def test_only_ten_of_many_broken_files_are_listed(tmp_path: Path) -> None:
    fill(tmp_path, ["good.png"])
    for k in range(25):
        (tmp_path / f"bad{k:02d}.png").write_bytes(b"bad")
    with pytest.raises(ValueError, match="25 of 26.*bad09.png.*and 15 more") as caught:
        open_data(tmp_path)
    assert "bad10.png" not in str(caught.value)
    os.remove(tmp_path / "good.png")
    with pytest.raises(ValueError, match="none of 25 images can be used"):
        open_data(tmp_path, on_broken="skip")


def test_reading_a_broken_file_names_it(tmp_path: Path) -> None:
    source = open_data(broken_folder(tmp_path), check="none")
    index = [source.name(i) for i in range(len(source))].index("cut_png.png")
    with pytest.raises(BrokenImageError, match="cut_png.png") as caught:
        source.image(index)
    assert caught.value.name == "cut_png.png"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_missing_permission_is_not_a_broken_image(tmp_path: Path) -> None:
    fill(tmp_path, ["a.png"])
    os.chmod(tmp_path / "a.png", 0)
    with pytest.raises(PermissionError, match="a.png"):
        open_data(tmp_path, on_broken="skip")


def test_system_errors_are_not_taken_for_broken_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_data(fill(tmp_path, ["a.png"]))

    def no_more_files(i: int) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(source, "open", no_more_files)
    with pytest.raises(OSError, match="a.png: Too many open files") as caught:
        source.image(0)
    assert not isinstance(caught.value, BrokenImageError)


def test_tiny_files_are_kept_refused_or_skipped(tmp_path: Path) -> None:
    fill(tmp_path, ["big.png"], (32, 20))
    fill(tmp_path, ["small.png"], (40, 19))
    assert len(open_data(tmp_path, min_size=20)) == 2
    told = r"1 of 2 images are smaller than 20x20 pixels \(height x width\): small.png \(19x40\).*on_tiny=.skip"
    with pytest.raises(ValueError, match=told):
        open_data(tmp_path, min_size=20, on_tiny="refuse")
    assert len(open_data(tmp_path, min_size=20, on_tiny="skip")) == 1
    assert len(open_data(tmp_path, min_size=(19, 32), on_tiny="refuse")) == 2
    for keywords in ({"on_tiny": "x"}, {"on_broken": "x"}, {"check": "x"}):
        with pytest.raises(ValueError, match="expected"):
            open_data(tmp_path, min_size=20, **keywords)  # type: ignore[arg-type]


def test_exif_orientation_counts_for_tiny(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    source = open_data(tmp_path)
    assert source.stored_size(0) == (20, 40)
