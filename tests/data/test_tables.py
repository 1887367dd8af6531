"""Label tables of every common form: which columns are taken, which kind of labels they hold, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from undiffuse.data import DataConfig, open_data
from undiffuse.data.dataset import check_trainable
from undiffuse.data.labelling import Labelling, interpret
from undiffuse.data.tables import TableSpec, parse_spec, read_table

FOUR = ["000001.jpg", "000002.jpg", "000003.jpg", "000004.jpg"]
ISIC = [f"ISIC_000000{k}.png" for k in range(4)]


def read(text: str | bytes, names: list[str], table: str = "labels.csv", spec: str | None = None) -> Labelling:
    data = text.encode() if isinstance(text, str) else text
    return interpret(read_table(data, table), names, parse_spec(spec or table) or TableSpec(table))


def pictures(root: Path, names: list[str]) -> Path:
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (k, 0, 0)).save(root / name)
    return root


def test_one_hot_columns_are_classes() -> None:
    found = read("image,MEL,NV,BCC\nISIC_0000000,0.0,1.0,0.0\nISIC_0000001,1.0,0.0,0.0\n", ISIC[:2])
    assert found.kind == "class" and found.values == ["NV", "MEL"]
    assert found.said == (
        "labels.csv: files in column 'image', class in columns MEL, NV, BCC (one-hot), 2 of 2 pictures matched"
    )


def test_celeba_attributes_are_several_labels_and_minus_one_is_no_class() -> None:
    text = "4\nBald Male\n000001.jpg -1  1\n000002.jpg  1 -1\n000003.jpg -1 -1\n000004.jpg  1  1\n"
    found = read(text, FOUR, "list_attr_celeba.txt")
    assert found.kind == "multi" and found.names == ("Bald", "Male")
    assert found.values == [("Male",), ("Bald",), (), ("Bald", "Male")]
    one = read(text, FOUR, "list_attr_celeba.txt", "list_attr_celeba.txt:Male")
    assert one.kind == "class" and one.values == ["Male", "not Male", "not Male", "Male"]
    identity = read("000001.jpg 2880\n000002.jpg 12\n000003.jpg 2880\n000004.jpg 7\n", FOUR, "identity_CelebA.txt")
    assert identity.values == ["2880", "12", "2880", "7"]


def test_minus_one_among_numbers_is_no_label() -> None:
    found = read("file,label\n000001.jpg,-1\n000002.jpg,0\n000003.jpg,1\n000004.jpg,1\n", FOUR)
    assert found.values == [None, "0", "1", "1"] and found.unlabelled == [("000001.jpg", "line 2: -1")]
    with pytest.raises(ValueError, match="unknown what -1 means"):
        read("Path,A,B\n000001.jpg,1.0,\n000002.jpg,-1.0,1.0\n", FOUR)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("id,label\nISIC_0000000,dog\nISIC_0000001,cat\n", ISIC[:2]),  # ids without ending
        ("\ufefffile;class\nISIC_0000000.png;dog\nISIC_0000001.png;cat\n", ISIC[:2]),
        ("bild\tsorte\nISIC_0000000.png\tdog\nISIC_0000001.png\tcat\n", ISIC[:2]),  # names nobody knows
        ("dog,ISIC_0000000.png\ncat,ISIC_0000001.png\n", ISIC[:2]),  # no header, label first
        ("id,label\n1,dog\n2,cat\n", ["0001.png", "0002.png"]),  # numbers without leading zeros
        (",path,target\n0,/home/me/x/ISIC_0000000.png,dog\n1,/home/me/x/ISIC_0000001.png,cat\n", ISIC[:2]),
        ("image,label\na\\ISIC_0000000.dcm,dog\na\\ISIC_0000001.dcm,cat\n", [f"a/{name}" for name in ISIC[:2]]),
        ("lesion_id,image_id,dx,age\nH1,ISIC_0000000,dog,80.0\nH1,ISIC_0000001,cat,\n", ISIC[:2]),  # HAM10000
        ("file|label\nISIC_0000000.png|dog\nISIC_0000001.png|cat\n", ISIC[:2]),
    ],
)
def test_files_and_classes_are_found(text: str, names: list[str]) -> None:
    found = read(text, names)
    assert found.kind == "class" and found.values == ["dog", "cat"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_encodings_of_spreadsheets(encoding: str) -> None:
    table = "file\tlabel\n000001.jpg\tKäse\n000002.jpg\tBrot\n".encode(encoding)
    assert read(table, FOUR[:2]).values == ["Käse", "Brot"]


def test_several_labels_in_one_column() -> None:
    found = read("Image Index,Finding Labels\n000001.jpg,edema|mass\n000002.jpg,mass\n", FOUR[:2])
    assert found.kind == "multi" and found.names == ("edema", "mass") and found.values == [("edema", "mass"), ("mass",)]
    text = '{"file_name": "000001.jpg", "labels": ["b", "a"]}\n{"file_name": "000002.jpg", "labels": []}'
    lists = read(text, FOUR[:2], "m.jsonl")
    assert lists.values == [("b", "a"), ()] and lists.names == ("a", "b")


def test_numbers_are_no_classes() -> None:
    ages = read("image,age\n" + "".join(f"{name},{20 + 1.5 * k}\n" for k, name in enumerate(FOUR)), FOUR)
    assert ages.kind == "numbers" and ages.names == ("age",) and ages.values[1] == (21.5,)
    two = read("f,age,angle\n000001.jpg,20,0.5\n000002.jpg,30,0.7\n", FOUR[:2], spec="labels.csv:f:age,angle")
    assert two.names == ("age", "angle") and two.values == [(20.0, 0.5), (30.0, 0.7)]
    comma = read("file;wert\n000001.jpg;20,5\n000002.jpg;31,25\n", FOUR[:2])
    assert comma.values == [(20.5,), (31.25,)]
    whole = read("file,label\n000001.jpg,2.0\n000002.jpg,3.0\n", FOUR[:2])
    assert whole.kind == "class" and whole.values == ["2", "3"]


def test_json_forms() -> None:
    edm: dict[str, Any] = {"labels": [["0/1.png", 3], ["0/2.png", 5]]}
    assert read(json.dumps(edm), ["0/1.png", "0/2.png"], "dataset.json").values == ["3", "5"]
    edm = {"labels": [["0/1.png", [0.5, 3]], ["0/2.png", [1, 2]]]}
    assert read(json.dumps(edm), ["0/1.png", "0/2.png"], "dataset.json").values == [(0.5, 3.0), (1.0, 2.0)]
    assert read('{"1.png": "a", "2.png": "b"}', ["1.png", "2.png"], "x.json").values == ["a", "b"]
    columns = {"file": {"0": "1.png", "1": "2.png", "2": "3.png"}, "label": {"0": "a", "1": "b", "2": "a"}}
    assert read(json.dumps(columns), ["1.png", "2.png", "3.png"], "x.json").values == ["a", "b", "a"]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"file": FOUR[:2], "label": ["a", "b"]}), tmp_path / "t.parquet")
    assert read((tmp_path / "t.parquet").read_bytes(), FOUR[:2], "t.parquet").values == ["a", "b"]


def test_columns_can_be_named() -> None:
    text = "lesion,image,sex,site\n1,000001.jpg,male,scalp\n1,000002.jpg,female,back\n"
    with pytest.raises(ValueError, match='columns lesion, image, sex, site.*labels="labels.csv:lesion"'):
        read(text, FOUR[:2])
    assert read(text, FOUR[:2], spec="labels.csv:sex").values == ["male", "female"]
    assert read(text, FOUR[:2], spec="labels.csv:image:site").values == ["scalp", "back"]
    with pytest.raises(ValueError, match="no column 'colour'; its columns are lesion, image, sex, site"):
        read(text, FOUR[:2], spec="labels.csv:colour")
    assert parse_spec("a/b.csv:image:x,y") == TableSpec("a/b.csv", "image", ("x", "y"))
    assert parse_spec("a/b.csv") == TableSpec("a/b.csv") and parse_spec("folder") is None
    assert parse_spec("C:/x/labels.csv:label") == TableSpec("C:/x/labels.csv", None, ("label",))


def test_a_class_for_each_picture_is_questioned() -> None:
    names = [f"{k}.png" for k in range(12)]
    found = read("file,label\n" + "".join(f"{name},name{k}\n" for k, name in enumerate(names)), names)
    assert "12 classes for 12 pictures" in found.doubt
    assert not read("file,label\n" + "".join(f"{name},{k % 3}\n" for k, name in enumerate(names)), names).doubt


def test_nan_and_empty_labels_are_refused_by_name_or_left_out(tmp_path: Path) -> None:
    root = pictures(tmp_path, ISIC)
    (root / "labels.csv").write_text("filename,label\nISIC_0000000.png,NaN\nISIC_0000001.png,cat\n"
                                     "ISIC_0000002.png,\nISIC_0000003.png,dog\n")  # fmt: skip
    with pytest.raises(ValueError, match=r"ISIC_0000000.png \(line 2: NaN\), ISIC_0000002.png \(line 4: nothing\)"):
        open_data(root)
    source = open_data(root, on_broken="skip")
    assert source.label_names == ["cat", "dog"] and [item.name for item in source.excluded] == [ISIC[0], ISIC[2]]


def test_partial_tables_are_listed_and_can_be_used(tmp_path: Path) -> None:
    root = pictures(tmp_path, ISIC)
    (root / "labels.csv").write_text("filename,label\nISIC_0000000.png,cat\nISIC_0000001.png,dog\n")
    with pytest.raises(ValueError, match='no label for 2 of 4 images: ISIC_0000002.png, .*on_broken="skip"'):
        open_data(root)
    assert len(open_data(root, on_broken="skip")) == 2


def test_several_labels_and_numbers_become_vectors(tmp_path: Path) -> None:
    root = pictures(tmp_path, ISIC)
    (root / "labels.csv").write_text("image,labels\n" + "".join(
        f"{name},{'edema|mass' if k % 2 else 'mass'}\n" for k, name in enumerate(ISIC)))  # fmt: skip
    source = open_data(root)
    assert source.labels is None and source.multi_hot and source.vector_names == ["edema", "mass"]
    assert source.vectors is not None and source.vectors.tolist() == [[0, 1], [1, 1]] * 2
    assert source.subset([1]).vectors.tolist() == [[1, 1]]  # type: ignore[union-attr]
    data = DataConfig(path=str(root), size=8).build()
    with pytest.raises(ValueError, match=r"several labels for each image \(edema, mass\).*one class"):
        check_trainable(data, 2, conditional=True)
    check_trainable(data, 2, conditional=False)


def test_ages_beside_class_folders_leave_the_classes(tmp_path: Path) -> None:
    root = pictures(tmp_path, ["cat/1.png", "dog/2.png"])
    (root / "labels.csv").write_text("file,age\ncat/1.png,1.5\ndog/2.png,2.5\n")
    source = open_data(root)
    assert source.label_names == ["cat", "dog"] and source.vector_names == ["age"]
    assert np.array_equal(source.vectors, np.array([[1.5], [2.5]], np.float32))  # type: ignore[arg-type]


def test_known_tables_are_taken_and_may_list_the_whole_set(tmp_path: Path) -> None:
    root = pictures(tmp_path, FOUR[:2])
    (root / "list_attr_celeba.csv").write_text("image_id,Bald,Male\n" + "".join(f"{n},-1,1\n" for n in FOUR))
    source = open_data(root)
    assert source.multi_hot and any("2 files that are not there" in note for note in source.notes)
    (root / "list_attr_celeba.csv").write_text("image_id,Bald,Male\n7.jpg,-1,1\n8.jpg,1,-1\n")
    source = open_data(root)
    assert source.labels is None and "list_attr_celeba.csv is not used" in source.notes[0]
