"""What `undiffuse train` finds out about the data before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from undiffuse.cli.parser import build_parser
from undiffuse.cli.planning import Look, Plan, make_plan


def plan(*words: object) -> Plan:
    return make_plan(build_parser().parse_args([str(word) for word in words]))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(4):
        Image.new("L", (32, 32), k).save(folder / f"large{k}.png")
    Image.new("L", (40, 20)).save(folder / "small.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


def test_remarks_name_what_is_left_out_and_what_is_enlarged(photos: Path) -> None:
    *_, left, enlarged = plan("train", photos, "--size", 32, "--on-broken", "skip").remarks
    assert left.startswith("left out 1 image: bad.png (")
    assert enlarged.startswith("1 image is smaller than 32x32 (height x width) and enlarged: small.png (20x40).")
    (photos / "bad.png").unlink()
    assert not any("image" in text and "enlarged" in text for text in plan("train", photos, "--size", 16).remarks)


def test_tiny_images_are_left_out_or_refused_as_asked(photos: Path) -> None:
    words = ("train", photos, "--size", 32, "--on-broken", "skip", "--on-tiny")
    skipping = plan(*words, "skip")
    assert len(skipping.dataset) == 4
    assert skipping.dataset.config.on_tiny == "skip"
    left = skipping.remarks[-1]
    assert left.startswith("left out 2 images: bad.png (")
    assert "small.png (20x40 is tiny)" in left
    with pytest.raises(ValueError, match=r"smaller than 32x32.*small\.png \(20x40\).*on_tiny"):
        plan(*words, "refuse")


def test_a_classifier_without_labels_hears_of_labels(photos: Path) -> None:
    with pytest.raises(ValueError, match=r"has no labels.*--labels prefix.*--labels FILE\.csv"):
        plan("train-classifier", photos, "--on-broken", "skip")


@pytest.mark.parametrize(
    ("size", "whole"),
    [((32, 32), None), ((64, 32), (32, 64)), ((32, 64), (64, 32)), ((320, 180), (64, 112)), ((33, 32), None)],
)
def test_a_size_that_keeps_images_whole_can_be_trained(
    size: tuple[int, int], whole: tuple[int, int] | None, tmp_path: Path
) -> None:
    for k in range(2):
        Image.new("L", size).save(tmp_path / f"{k}.png")
    assert Look(str(tmp_path), "auto", "refuse").whole_size == whole
    if whole is not None:
        text = f"{whole[0]}x{whole[1]}"
        assert plan("train", tmp_path, "--size", text, "--labels", "none").dataset.shape[:2] == whole
