"""Masks from pictures: sizes, 0 and 1, palettes, and one mask for each image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.editing.mask import Mask
from undiffuse.editing.masks import masks_for, read_mask, read_masks

HOLE = np.zeros((16, 16), np.uint8)
HOLE[4:8, 4:12] = 1


def saved(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def test_white_is_filled_also_as_0_and_1(tmp_path: Path) -> None:
    wide = HOLE.astype(np.uint16)
    for k, values in enumerate((HOLE * 255, HOLE, wide, wide * 255, wide * 65535, HOLE.astype(bool))):
        seen = read_mask(saved(tmp_path / f"{k}.png", values), (16, 16))
        assert seen.shape == (1, 1, 16, 16) and np.array_equal(~seen[0, 0].numpy(), HOLE.astype(bool))
    palette = Image.fromarray(HOLE).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)  # as in Pascal VOC
    palette.save(tmp_path / "p.png")
    assert np.array_equal(~read_mask(tmp_path / "p.png", (16, 16))[0, 0].numpy(), HOLE.astype(bool))
    colour = np.dstack([HOLE * 255] * 3)
    assert int((~read_mask(saved(tmp_path / "c.png", colour), (16, 16))).sum()) == 32


def test_what_cannot_be_a_mask_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its brightest value is 3 of 255, and what has 128 or more"):
        read_mask(saved(tmp_path / "classes.png", HOLE * 3), (16, 16))
    bigger = saved(tmp_path / "bigger.png", np.full((64, 64), 255, np.uint8))
    with pytest.raises(ValueError, match=r"^the mask .*bigger.png is 64x64 .width x height., and the images are 16x16"):
        read_mask(bigger, (16, 16), {(16, 16)})
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="broken.png cannot be read as a picture"):
        read_mask(tmp_path / "broken.png", (16, 16))
    with pytest.raises(FileNotFoundError):
        read_mask(tmp_path / "none.png", (16, 16))


def test_a_mask_of_the_images_size_is_prepared_as_they_are(tmp_path: Path) -> None:
    large = np.kron(HOLE * 255, np.ones((2, 2), np.uint8))
    seen = read_mask(saved(tmp_path / "large.png", large), (16, 16), {(32, 32)})
    assert np.array_equal(~seen[0, 0].numpy(), HOLE.astype(bool))


def test_one_mask_for_each_image(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2_mask.png", "dog/1-seg.tif"):
        saved(tmp_path / name, HOLE * 255)
    names = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"]
    found = masks_for(names, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["cat/1.png", "cat/2_mask.png", "dog/1-seg.tif"]
    with pytest.raises(ValueError, match=r"no mask for 1 of 2 images \(cat/3.jpg\)"):
        masks_for(["cat/1.jpg", "cat/3.jpg"], tmp_path)
    with pytest.raises(FileNotFoundError):
        masks_for(names, tmp_path / "nothing")
    seen = read_masks(found, (16, 16))
    mask = Mask(seen)
    x = torch.ones(2, 1, 16, 16)
    assert seen.shape == (3, 1, 16, 16) and mask.select([0, 2])(x).shape == x.shape
    assert mask.select(slice(1, 2)).seen.shape[0] == 1
    with pytest.raises(ValueError, match="does not fit"):
        mask(x)
