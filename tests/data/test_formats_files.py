"""Folders and zips in the forms of other programs: parts, dataset_tool, imagefolder, frames."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.formats_made import COUNT, GREY, NAMES, X, Y, check, classes, pixels, png, write_pngs
from undiffuse.data import open_data


def split_folder(root: Path, train: str = "train", test: str = "val") -> Path:
    write_pngs(root, [f"{train}/{NAMES[Y[i]]}/{i:02d}.png" for i in range(8)], X[:8])
    return write_pngs(root, [f"{test}/{NAMES[Y[i]]}/{i:02d}.png" for i in range(8, COUNT)], X[8:])


@pytest.mark.parametrize("words", [("train", "val"), ("training", "test"), ("Train", "Valid"), ("train", "validation")])
def test_parts_are_no_classes_and_are_not_mixed(tmp_path: Path, words: tuple[str, str]) -> None:
    root = split_folder(tmp_path / "data", *words)
    source = open_data(root)
    assert len(source) == 8 and source.held_out == {words[1]: 4}
    assert source.label_names == sorted(NAMES)
    assert all(source.name(i).startswith(words[0]) for i in range(8))
    held = open_data(f"{root}:{words[1]}", label_names=source.label_names)
    assert len(held) == 4 and held.held_out == {words[0]: 8} and held.label_names == source.label_names
    assert classes(held) == [NAMES[Y[int(Path(held.name(i)).stem)]] for i in range(4)]
    whole = open_data(f"{root}:all")
    assert len(whole) == COUNT and whole.label_names == sorted(NAMES) and not whole.held_out
    with pytest.raises(ValueError, match="no part 'extra': expected one of"):
        open_data(f"{root}:extra")


def test_parts_by_what_they_mean(tmp_path: Path) -> None:
    root = split_folder(tmp_path / "data", "train", "valid")
    assert len(open_data(f"{root}:validation")) == 4
    with pytest.raises(ValueError, match="no parts such as"):
        open_data(f"{root / 'train'}:test")


def test_parts_in_a_wrapping_folder_in_classes_and_in_a_zip(tmp_path: Path) -> None:
    split_folder(tmp_path / "a" / "top")
    assert len(open_data(tmp_path / "a")) == 8
    write_pngs(tmp_path / "b", [f"{NAMES[Y[i]]}/{'train' if i < 8 else 'test'}/{i}.png" for i in range(COUNT)])
    inner = open_data(tmp_path / "b")
    assert len(inner) == 8 and inner.label_names == sorted(NAMES) and inner.held_out == {"test": 4}
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for file in sorted((tmp_path / "a" / "top").rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path / "a" / "top"))
    packed = open_data(tmp_path / "c.zip")
    assert len(packed) == 8 and packed.held_out == {"val": 4}
    assert len(open_data(f"{tmp_path / 'c.zip'}:val")) == 4


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    write_pngs(tmp_path, [f"{['car', 'train', 'bus'][i % 3]}/{i}.png" for i in range(COUNT)])
    assert open_data(tmp_path).label_names == ["bus", "car", "train"]


def test_what_lies_beside_the_parts_is_counted(tmp_path: Path) -> None:
    root = split_folder(tmp_path / "data")
    write_pngs(root, ["extra/1.png", "2.png"], X[:2])
    (root / "notes.md").write_text("x")
    source = open_data(root)
    assert source.left_out == {"files ending in .md": 1, "images outside the parts": 2}


def test_files_of_other_kinds_are_counted(tmp_path: Path) -> None:
    write_pngs(tmp_path, ["a.png", "b.png"], X[:2])
    for name in ("a.heic", "b.heic", "a.txt", "LICENSE", ".hidden"):
        (tmp_path / name).write_text("x")
    left = open_data(tmp_path).left_out
    assert left == {"files ending in .heic": 2, "files ending in .txt": 1, "files without an ending": 1}


def edm(root: Path, labels: object, packed: bool) -> Path:
    names = [f"{i // 5:05d}/img{i:08d}.png" for i in range(COUNT)]
    write_pngs(root, names)
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    if not packed:
        return root
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
        for file in sorted(root.rglob("*.*")):
            archive.write(file, file.relative_to(root))
    return root.with_suffix(".zip")


@pytest.mark.parametrize("packed", [False, True])
def test_dataset_tool(tmp_path: Path, packed: bool) -> None:
    names = [f"{i // 5:05d}/img{i:08d}.png" for i in range(COUNT)]
    source = open_data(edm(tmp_path / "a", [[n, int(y)] for n, y in zip(names, Y, strict=True)], packed))
    check(source)
    assert "dataset_tool" in source.format and not source.left_out
    vectors = RNG_VECTORS = np.linspace(0, 1, 2 * COUNT).reshape(COUNT, 2)
    source = open_data(edm(tmp_path / "b", [[n, list(v)] for n, v in zip(names, vectors, strict=True)], packed))
    assert source.labels is None and source.vectors is not None
    assert np.allclose(source.vectors, RNG_VECTORS) and "vectors of 2 numbers" in source.description
    other = open_data(edm(tmp_path / "c", None, packed))
    check(other, labels=None)
    assert any("null" in note for note in other.notes)
    assert source.fingerprint != other.fingerprint
    assert np.array_equal(source.subset([3, 1]).vectors, source.vectors[[3, 1]])  # type: ignore[arg-type]
    check(open_data(edm(tmp_path / "d", [[n, 1] for n in names], packed), labels="none"), labels=None)
    hot = np.eye(5, dtype=int)[Y].tolist()
    check(open_data(edm(tmp_path / "e", list(zip(names, hot, strict=True)), packed)))


def test_dataset_tool_names_pictures_without_a_label(tmp_path: Path) -> None:
    path = edm(tmp_path / "a", [["00000/img00000000.png", 1]], False)
    with pytest.raises(ValueError, match="no label .* for 11 of 12"):
        open_data(path)
    assert len(open_data(path, on_broken="skip")) == 1
    path = edm(tmp_path / "b", [["nowhere.png", 1]], False)
    with pytest.raises(ValueError, match="none of which is there"):
        open_data(path)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_imagefolder(tmp_path: Path, ending: str) -> None:
    records = [{"file_name": f"{i:02d}.png", "label": int(Y[i]), "text": "a picture"} for i in range(COUNT)]
    write_pngs(tmp_path, [record["file_name"] for record in records])  # type: ignore[misc]
    if ending == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    elif ending == "csv":
        rows = [f"{r['file_name']},{r['label']},{r['text']}\n" for r in records]
        (tmp_path / "metadata.csv").write_text("file_name,label,text\n" + "".join(rows))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "metadata.parquet")
    source = open_data(tmp_path)
    check(source)
    assert source.format == "Hugging Face imagefolder" and not source.left_out
    assert any("text" in note and "not used" in note for note in source.notes)
    assert open_data(tmp_path, labels="none").labels is None
    with pytest.raises(ValueError, match="no label field 'colour'"):
        open_data(tmp_path, labels="colour")


def test_imagefolder_with_parts_and_without_labels(tmp_path: Path) -> None:
    for part, chosen in (("train", range(8)), ("test", range(8, COUNT))):
        write_pngs(tmp_path / "a" / part, [f"{i}.png" for i in chosen], X[list(chosen)])
        lines = [json.dumps({"file_name": f"{i}.png", "label": NAMES[Y[i]]}) + "\n" for i in chosen]
        (tmp_path / "a" / part / "metadata.jsonl").write_text("".join(lines))
    source = open_data(tmp_path / "a")
    assert classes(source) == [NAMES[y] for y in Y[:8]] and source.held_out == {"test": 4}
    write_pngs(tmp_path / "b", [f"{NAMES[Y[i]]}/{i:02d}.png" for i in range(COUNT)])
    rows = "".join(f"{NAMES[Y[i]]}/{i:02d}.png,picture {i}\n" for i in range(COUNT))
    (tmp_path / "b" / "metadata.csv").write_text("file_name,text\n" + rows)
    assert open_data(tmp_path / "b").label_names == sorted(NAMES)


def test_imagefolder_without_its_files(tmp_path: Path) -> None:
    write_pngs(tmp_path, ["0.png"], X[:1])
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,1\ngone.png,2\n")
    with pytest.raises(ValueError, match="1 files that are not there: gone.png"):
        open_data(tmp_path)
    assert len(open_data(tmp_path, on_broken="skip")) == 1


def frames_of(path: Path, images: np.ndarray) -> None:
    pictures = [Image.fromarray(image) for image in images]
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **lossless)


@pytest.mark.parametrize("ending", ["tif", "webp", "png", "gif"])
def test_frames_are_counted_and_taken_if_wanted(tmp_path: Path, ending: str) -> None:
    images = GREY if ending in ("tif", "gif") else X
    frames_of(tmp_path / f"a.{ending}", images[:4])
    Image.fromarray(images[4]).save(tmp_path / "b.png")
    source = open_data(tmp_path)
    assert len(source) == 2 and source.left_out == {"frames after the first of a file": 3}
    whole = open_data(tmp_path, frames="all")
    assert len(whole) == 5 and not whole.left_out
    assert whole.name(3) == f"a.{ending}[3]" and whole.name(4) == "b.png"
    shown = [np.asarray(Image.fromarray(np.asarray(whole.image(i))) if ending != "gif" else whole.image(i).convert("L"))
             for i in range(5)]  # type: ignore[union-attr]  # fmt: skip
    assert np.array_equal(np.stack(shown), images[:5])
    assert source.fingerprint != whole.fingerprint
    single = open_data(tmp_path / f"a.{ending}", frames="all")
    assert len(single) == 4


def test_frames_of_deep_colours_keep_their_bits(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    deep = X.astype(np.uint16) * 257 + 3
    tifffile.imwrite(tmp_path / "a.tif", deep[:3], photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", GREY[:2].astype(np.uint16) * 257, photometric="miniswhite")
    whole = open_data(tmp_path, frames="all")
    assert len(whole) == 5
    assert all(np.array_equal(np.asarray(whole.image(i)), deep[i]) for i in range(3))
    for i in range(2):
        seen = np.asarray(whole.image(3 + i)).reshape(GREY[i].shape)
        assert np.array_equal(seen, 65535 - GREY[i].astype(np.uint16) * 257)


def test_frames_of_labelled_files(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        frames_of(tmp_path / name / "a.tif", GREY[:3])
    whole = open_data(tmp_path, frames="all")
    assert classes(whole) == ["cat"] * 3 + ["dog"] * 3 and np.array_equal(pixels(whole)[3:], GREY[:3])
    with pytest.raises(ValueError, match="frames='some'"):
        open_data(tmp_path, frames="some")  # type: ignore[arg-type]


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "py").mkdir()
    (tmp_path / "py" / "data_batch_1").write_bytes(b"\x80\x04boom")
    for path in (tmp_path / "py", tmp_path / "py" / "data_batch_1"):
        with pytest.raises(ValueError, match="pickles.*binary version"):
            open_data(path)
    (tmp_path / "train_data_batch_1").write_bytes(b"\x80\x03boom")
    with pytest.raises(ValueError, match="downsampled ImageNet.*npz version"):
        open_data(tmp_path / "train_data_batch_1")
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04boom")
    with pytest.raises(ValueError, match="is a pickle.*npz"):
        open_data(tmp_path / "x.pkl")


def test_a_huge_folder_is_peeked_at_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from undiffuse.data.formats import base

    write_pngs(tmp_path, ["0.png"], X[:1])
    monkeypatch.setattr(base, "_PEEKED", 3)
    for k in range(10):
        os.link(tmp_path / "0.png", tmp_path / f"{k}x.png")
    assert len(base.peek(tmp_path).files) == 3
    assert len(open_data(tmp_path)) == 11
    assert png(X[0]) == (tmp_path / "0.png").read_bytes()


def test_a_large_folder_is_indexed_and_changes_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from undiffuse.data import index, screening
    from undiffuse.data.formats import files

    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "FROM", 10)
    monkeypatch.setattr(files, "_SETTLED", -10.0)
    root = write_pngs(tmp_path / "data", [f"{NAMES[Y[i]]}/{i}.png" for i in range(COUNT)])
    (root / "notes.txt").write_text("x")
    first = open_data(root)
    kinds = sorted(file.parent.name for file in (tmp_path / "cache" / "index").rglob("*.npz"))
    assert kinds == ["flaws", "folders", "hashes"]
    walks = []
    monkeypatch.setattr(files, "_walk", lambda path, walk=files._walk: walks.append(path) or walk(path))
    looks = []
    monkeypatch.setattr(
        screening, "find_flaws", lambda *a, look=screening.find_flaws, **k: looks.append(1) or look(*a, **k)
    )
    again = open_data(root)
    assert not walks and not looks
    assert again.fingerprint == first.fingerprint and again.left_out == first.left_out == {"files ending in .txt": 1}
    assert again.class_counts() == first.class_counts()
    (root / NAMES[0] / "new.png").write_bytes(png(X[0]))
    assert len(open_data(root)) == COUNT + 1 and len(walks) == 1 and len(looks) == 1
    (root / NAMES[0] / "new.png").write_bytes(png(X[0]) + b"longer")  # in place: no folder changes
    changed = open_data(root)
    assert len(walks) == 2 and changed.fingerprint not in (first.fingerprint, again.fingerprint)
    for file in (tmp_path / "cache").rglob("*.npz"):
        file.write_bytes(b"damaged")
    assert open_data(root).fingerprint == changed.fingerprint
    (root / NAMES[1] / "bad.png").write_bytes(b"bad")
    for _ in range(2):
        assert [item.name for item in open_data(root, on_broken="skip").excluded] == [f"{NAMES[1]}/bad.png"]
