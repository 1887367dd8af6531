"""Validation split and summary."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from undiffuse.data import ArraySource, DataConfig, open_data, scan, split


def labelled(count: int, classes: int) -> ArraySource:
    images = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), dtype=np.uint8)
    return ArraySource(images, np.arange(count) % classes, [f"class {k}" for k in range(classes)])


def names(source: object) -> list[str]:
    return [source.name(i) for i in range(len(source))]  # type: ignore[attr-defined, arg-type]


def test_split_is_disjoint_complete_stratified_and_repeatable() -> None:
    source = labelled(200, 4)
    parts = split(source, 0.1)
    assert sorted(names(parts.train) + names(parts.validation)) == sorted(names(source))
    assert not set(names(parts.train)) & set(names(parts.validation))
    assert set(parts.validation.class_counts().values()) == {5}
    assert parts.train.label_names == parts.validation.label_names == source.label_names
    assert names(split(source, 0.1).validation) == names(parts.validation)
    assert names(split(source, 0.1, seed=1).validation) != names(parts.validation)
    assert parts.train.fingerprint != parts.validation.fingerprint != source.fingerprint
    for i in range(len(parts.validation)):
        number = int(parts.validation.name(i)[6:-1])
        assert parts.validation.label(i) == number % 4
        assert (np.asarray(parts.validation.image(i)) == number).all()


def test_split_goes_by_name_not_by_place(tmp_path: Path) -> None:
    for k in range(40):
        Image.new("L", (4, 4), k).save(tmp_path / f"{k:03d}.png")
    source = open_data(tmp_path)
    held = set(names(split(source, 0.25).validation))
    backwards = source.subset(list(range(39, -1, -1)))
    assert set(names(split(backwards, 0.25).validation)) == held and len(held) == 10
    Image.new("L", (4, 4)).save(tmp_path / "0000.png")
    assert len(set(names(split(open_data(tmp_path), 0.25).validation)) & held) >= 9


def test_split_of_little_keeps_something_on_both_sides() -> None:
    for count, classes in ((2, 1), (2, 2), (3, 2), (7, 5)):
        parts = split(labelled(count, classes), 0.01)
        assert len(parts.train) >= 1 and len(parts.validation) >= 1
        assert len(parts.train) + len(parts.validation) == count
        parts = split(labelled(count, classes), 0.99)
        assert len(parts.train) >= 1 and len(parts.validation) >= 1


def test_split_refuses_nonsense() -> None:
    for holdout in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            split(labelled(10, 2), holdout)
    with pytest.raises(ValueError, match="at least two"):
        split(labelled(1, 1), 0.5)


def test_scan_counts_everything(tmp_path: Path) -> None:
    for name, mode, size in (("x/a.png", "RGB", (20, 30)), ("x/b.png", "RGB", (20, 30)), ("y/c.png", "L", (8, 30))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new(mode, size).save(tmp_path / name)
    Image.new("F", (30, 30)).save(tmp_path / "y" / "float.tif")
    (tmp_path / "y" / "bad.png").write_bytes(b"bad")
    config = DataConfig(path=str(tmp_path), size=16, check="none")
    source = config.open()
    found = scan(source, config, workers=2)
    assert (found.count, found.scanned) == (5, 5)
    assert found.sizes == {(20, 30): 2, (8, 30): 1} and found.modes == {"RGB": 2, "L": 1}
    assert found.class_counts == {"x": 2, "y": 3}
    assert [item.name for item in found.broken] == ["y/bad.png", "y/float.tif"]
    assert found.tiny == ("y/c.png",)
    assert found.alpha == 0
    assert found.mean == -1.0 and found.sigma_data == 0.0
    assert found.fingerprint == source.fingerprint
    text = found.text()
    for piece in (
        "5 images, 2 classes",
        "height x width: 30x20 (2)",
        "RGB (2)",
        "x (2)",
        "broken: 2",
        "y/bad.png",
        "y/c.png",
        "0.0000",
    ):
        assert piece in text
    assert scan(source, DataConfig(path=str(tmp_path), size=16, fit="pad")).tiny == ()


def test_scan_measures_what_the_model_will_see() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    found = scan(ArraySource(images), DataConfig(path="x", size=8, flip=True, random_crop=True))
    values = images / 127.5 - 1
    assert math.isclose(found.mean, values.mean(), abs_tol=1e-12)
    assert math.isclose(found.sigma_data, values.std(), rel_tol=1e-12)
    padded = scan(ArraySource(images), DataConfig(path="x", size=16, fit="pad"))
    frame = np.full((50, 16, 16, 3), -1.0)
    frame[:, 4:12, 4:12] = values
    assert math.isclose(padded.sigma_data, frame.std(), rel_tol=1e-12)


def test_scan_with_a_limit_looks_evenly() -> None:
    images = np.zeros((100, 4, 4), dtype=np.uint8)
    images[50:] = 255
    found = scan(ArraySource(images), DataConfig(path="x", size=4, channels=1), limit=10)
    assert found.scanned == 10 and found.count == 100 and found.mean == 0.0 and found.sigma_data == 1.0
    assert "10 of 100" in found.text()
    with pytest.raises(ValueError, match="at least one"):
        scan(ArraySource(images), DataConfig(path="x", size=4), limit=0)


def test_scan_counts_transparency(tmp_path: Path) -> None:
    for name, mode in (("a", "RGBA"), ("b", "LA"), ("c", "RGB"), ("d", "L")):
        Image.new(mode, (4, 4)).save(tmp_path / f"{name}.png")
    palette = Image.new("P", (4, 4))
    palette.save(tmp_path / "e.png", transparency=0)
    palette.save(tmp_path / "f.png")
    assert scan(open_data(tmp_path), DataConfig(path="x", size=4)).alpha == 3
    assert scan(ArraySource(np.zeros((2, 4, 4, 4), np.uint8)), DataConfig(path="x", size=4)).alpha == 2
