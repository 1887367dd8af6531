"""What labels mean, in tables and in every format: several labels in other forms, gaps, parts and shelves."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.formats_made import COUNT, NAMES, X, Y, check, classes, png, write_pngs
from undiffuse.data import open_data
from undiffuse.data.label_values import interpret_values
from undiffuse.data.labels import shelved
from undiffuse.data.names import Names

FILES = [f"img_{i:03d}.png" for i in range(COUNT)]
TAGS = [("a", "b"), ("c",), ("b", "c")] * 4
HOT = np.array([[t in tags for t in "abc"] for tags in TAGS], dtype=np.float32)


def folder(root: Path, table: str, name: str = "labels.csv", files: list[str] = FILES) -> Path:
    write_pngs(root, files)
    (root / name).write_bytes(table.encode())
    return root


def csv_of(head: str, cells: list[Any], separator: str = ",") -> str:
    return head + "\n" + "\n".join(f"{f}{separator}{c}" for f, c in zip(FILES, cells, strict=True))


@pytest.mark.parametrize(
    ("head", "form"),
    [
        ("tags", lambda tags: '"' + ", ".join(tags) + '"'),
        ("labels", lambda tags: '"' + ",".join(tags) + '"'),
        ("tags", " ".join),
        ("labels", lambda tags: '"' + json.dumps(tags).replace('"', '""') + '"'),
        ("labels", lambda tags: f'"{list(tags)}"'),
        ("Finding Labels", "|".join),
        ("tags", ";".join),
    ],
)
def test_several_labels_in_a_cell(tmp_path: Path, head: str, form: Any) -> None:
    source = open_data(folder(tmp_path / "d", csv_of(f"file,{head}", [form(tags) for tags in TAGS])))
    assert source.vectors is not None and np.array_equal(source.vectors, HOT) and source.multi_hot
    assert source.vector_names == ["a", "b", "c"]
    assert not any("is not used" in note for note in source.notes)


def test_commas_and_spaces_in_names_are_no_separators() -> None:
    towns = ["Paris, France", "Lyon, France", "Bonn, Germany"] * 4
    assert interpret_values(towns, "city", "t").kind == "class"
    species = ["tench, Tinca tinca", "goldfish, Carassius auratus"] * 4
    assert interpret_values(species, "labels", "t").values == species
    assert interpret_values(["red car", "blue car", "red bike", "blue bike"] * 3, "labels", "t").kind == "class"
    assert interpret_values(["16 0", "7", "0 7"] * 4, "Target", "t").names == ("0", "7", "16")


def test_a_row_for_each_label(tmp_path: Path) -> None:
    rows = [f"{f[:-4]},human,{t},{int(t != 'c')}" for f, tags in zip(FILES, TAGS, strict=True) for t in tags]
    table = "ImageID,Source,LabelName,Confidence\n" + "\n".join(rows)
    source = open_data(folder(tmp_path / "d", table))
    assert source.multi_hot and np.array_equal(source.vectors, HOT * [1, 1, 0])
    assert "none where 'Confidence' is 0" in source.notes[0]
    twice = csv_of("file,label", [NAMES[y] for y in Y]) + f"\n{FILES[0]},other"
    with pytest.raises(ValueError, match="img_000.png is given two labels, 'zebra' and 'other'"):
        open_data(folder(tmp_path / "e", twice))
    other_form = csv_of("file,label", [NAMES[y] for y in Y]) + f"\n{FILES[0][:-4]},other"
    with pytest.raises(ValueError, match="img_000.png is given two labels"):
        open_data(folder(tmp_path / "f", other_form))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "sep=;\r\n" + text.replace(",", ";").replace("\n", "\r\n"),
        lambda text: "# made by me\n" + text,
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace("img_", "IMG_").replace(".png", ".PNG"),
        lambda text: "," + "\n".join(f"{i - 1},{line}" if i else line for i, line in enumerate(text.split("\n"))),
        lambda text: ",0,1" + "".join(f"\n{i},{line}" for i, line in enumerate(text.split("\n")[1:])),
    ],
)
def test_forms_of_tables(tmp_path: Path, change: Any) -> None:
    text = change(csv_of("file,label", [NAMES[y] for y in Y]))
    assert classes(open_data(folder(tmp_path / "d", text))) == [NAMES[y] for y in Y]


def test_text_that_is_not_in_quotes_is_refused(tmp_path: Path) -> None:
    text = csv_of("file,label", [NAMES[y] if i != 3 else "ant, red" for i, y in enumerate(Y)])
    with pytest.raises(ValueError, match="line 5: 3 cells, but 2 columns: put text that contains ',' in quotes"):
        open_data(folder(tmp_path / "d", text))


def test_celeba_landmarks_are_numbers(tmp_path: Path) -> None:
    rows = "\n".join(f"{f} {60 + i} {3 * i}" for i, f in enumerate(FILES))
    path = folder(tmp_path / "d", f"{COUNT}\nlefteye_x lefteye_y\n{rows}", "list_landmarks_align_celeba.txt")
    source = open_data(path, labels="list_landmarks_align_celeba.txt")
    assert source.vectors is not None and source.vector_names == ["lefteye_x", "lefteye_y"]
    assert source.vectors.tolist() == [[60 + i, 3 * i] for i in range(COUNT)]


def test_a_column_of_parts_keeps_test_images_out(tmp_path: Path) -> None:
    parts = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    rows = "\n".join(f"{f},{p},{NAMES[y]}" for f, p, y in zip(FILES, parts, Y, strict=True))
    path = folder(tmp_path / "d", f"file,split,label\n{rows.replace('test,' + NAMES[Y[-1]], 'test,')}")
    source = open_data(path)
    check(source, X[:8], [NAMES[y] for y in Y[:8]])
    assert source.held_out == {"test": 2, "val": 2} and "parts in column 'split', 8 of 8" in source.notes[0]
    assert len(open_data(f"{path}:val")) == 2 and len(open_data(f"{path}:all", on_broken="skip")) == 11
    with pytest.raises(ValueError, match="no label|nothing"):
        open_data(f"{path}:test")
    (path / "labels.csv").write_text(csv_of("file,label", list(Y)))
    with pytest.raises(ValueError, match="no parts such as train/ and test/, so it has no part 'test'"):
        open_data(f"{path}:test")


def test_a_table_in_the_only_folder(tmp_path: Path) -> None:
    path = write_pngs(tmp_path / "d", [f"images/{f}" for f in FILES])
    (path / "images" / "labels.csv").write_text(csv_of("file,label", [NAMES[y] for y in Y]))
    assert classes(open_data(path)) == [NAMES[y] for y in Y]


def test_shelves_are_no_classes(tmp_path: Path) -> None:
    tool = [f"{i // 5:05d}/img{i:08d}.png" for i in range(COUNT)]
    source = open_data(write_pngs(tmp_path / "edm", tool))
    assert source.labels is None and "shelves" in source.notes[0]
    with zipfile.ZipFile(tmp_path / "edm.zip", "w") as archive:
        for name, image in zip(tool, X, strict=True):
            archive.writestr(f"edm/{name}", png(image))
    assert open_data(tmp_path / "edm.zip").labels is None
    assert open_data(tmp_path / "edm", labels="folder").label_names == ["00000", "00001", "00002"]

    def found(names: list[str]) -> bool:
        return shelved(names, Names.of(names).runs)

    assert found([f"x/{i // 1000 * 1000:05d}/{i:05d}.png" for i in (0, 999, 1000, 1001)])  # FFHQ
    assert not found([f"{i // 4:05d}/00000_{i % 4:05d}.ppm" for i in range(12)])  # GTSRB's classes
    assert not found([f"{i // 6}/{i:04d}.png" for i in range(12)])


def test_imagefolder_reads_labels_as_tables_do(tmp_path: Path) -> None:
    def opened(column: str, cells: list[Any], name: str) -> Any:
        return open_data(folder(tmp_path / name, csv_of(f"file_name,{column}", cells), "metadata.csv"))

    check(opened("label", [f"{y}.0" for y in Y], "floats"), X, [str(y) for y in Y])
    assert opened("label", [y + 0.5 for y in Y], "halves").vectors.tolist() == [[y + 0.5] for y in Y]
    assert np.array_equal(opened("tags", ["|".join(t) for t in TAGS], "tags").vectors, HOT)
    assert classes(opened("species", [NAMES[y] for y in Y], "species")) == [NAMES[y] for y in Y]
    assert opened("text", [f"a photo of {NAMES[y]}" for y in Y], "text").labels is None
    with pytest.raises(ValueError, match=r"no label \(column label of metadata.csv\) for 1 of 12 images: img_000.png"):
        opened("label", ["nan", *Y[1:]], "nan")
    records = [{"file_name": f, "labels": list(t)} for f, t in zip(FILES, TAGS, strict=True)]
    source = open_data(folder(tmp_path / "json", "\n".join(map(json.dumps, records)), "metadata.jsonl"))
    assert np.array_equal(source.vectors, HOT) and source.vector_names == ["a", "b", "c"] and source.multi_hot
    # A table of another program that is called metadata.csv
    other = folder(tmp_path / "other", csv_of("image_id,dx", [NAMES[y] for y in Y]), "metadata.csv")
    assert classes(open_data(other)) == [NAMES[y] for y in Y]


def test_folders_that_are_no_classes_are_named(tmp_path: Path) -> None:
    loose = write_pngs(tmp_path / "loose", [f if i % 2 else f"{NAMES[Y[i]]}/{f}" for i, f in enumerate(FILES)])
    source = open_data(loose)
    assert source.labels is None and "6 of 12 images lie in no sub-folder" in source.notes[0]
    parts = ["train" if i < 8 else "unlabeled" for i in range(COUNT)]
    path = write_pngs(tmp_path / "d", [f"{p}/{NAMES[y]}/{f}" for p, y, f in zip(parts, Y, FILES, strict=True)])
    source = open_data(path)
    assert len(source) == 8 and source.label_names == sorted({NAMES[y] for y in Y[:8]})
    assert source.left_out == {"images outside the parts": 4}
