"""Images in the units of their data, names that are kept, and folders of somebody else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.pictures import (
    SampleWriter,
    claim_output,
    draw_grid,
    foreign_files,
    load_image,
    preview,
    read_samples,
    sample_files,
    save_image,
    tile,
)
from undiffuse.pixels import to_units

RNG = np.random.default_rng(0)
RUN = {"seed": 0, "model": "x"}


@pytest.mark.parametrize("value_range", [None, (0, 4095), (-1000, 2000), (0, 1)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("format", ["png", "png16", "tiff", "npy"])
def test_values_come_back(tmp_path: Path, format: str, channels: int, value_range: tuple[float, float] | None) -> None:
    low, high = value_range or (0, 255)
    image = (low + (high - low) * RNG.random((7, 5, channels))).astype(np.float32)
    path = tmp_path / f"a{ {'tiff': '.tiff', 'npy': '.npy'}.get(format, '.png') }"
    if channels > 4 and format.startswith("png") or (channels, format) == (2, "png"):
        with pytest.raises(ValueError, match="tiff"):
            save_image(path, image, format, value_range)  # type: ignore[arg-type]
        return
    save_image(path, image, format, value_range, record={"seed": 7})  # type: ignore[arg-type]
    back, record = load_image(path)
    steps = {"png": 255, "png16": high - low if value_range == (0, 4095) else 65535}
    tolerance = (high - low) / steps[format] / 2 if format in steps else 0
    assert back.shape == image.shape and np.abs(back - image).max() <= tolerance + 1e-5 * (high - low)
    if format != "npy":
        assert record["seed"] == 7 and record.get("value_range") == (None if value_range is None else [low, high])
    with pytest.raises(FileExistsError):
        save_image(path, image, format, value_range)  # type: ignore[arg-type]


def test_other_programs_read_the_files(tmp_path: Path) -> None:
    grey = (RNG.random((8, 8, 1)) * 4095).astype(np.float32)
    save_image(tmp_path / "a.png", grey, "png16", (0, 4095))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "I;16" and np.array_equal(np.asarray(picture), np.rint(grey[..., 0]).astype(np.uint16))
    save_image(tmp_path / "a.tif", grey, "tiff", (0, 4095), record={"a": 1})
    with Image.open(tmp_path / "a.tif") as picture:
        assert picture.mode == "F" and np.array_equal(np.asarray(picture), grey[..., 0])
    save_image(tmp_path / "white.png", np.full((2, 2, 1), 255.0), "png16")
    with Image.open(tmp_path / "white.png") as picture:
        assert (np.asarray(picture) == 65535).all()


def test_to_units_inverts_the_preparation() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0]).reshape(1, 1, 2, 2)
    assert to_units(x, (-1000, 2000)).ravel().tolist() == [-1000, -1000, 500, 2000]
    assert to_units(x, None).ravel().tolist() == [0, 0, 127.5, 255]
    with pytest.raises(ValueError, match="NaN"):
        to_units(x * float("nan"), None)


def test_previews_of_many_channels() -> None:
    images = RNG.integers(0, 256, (2, 4, 4, 6), dtype=np.uint8)
    assert np.array_equal(preview(images), images[..., :3])
    assert np.array_equal(preview(images, bands=(5,)), images[..., 5:])
    assert np.array_equal(preview(images[..., :2]), images[..., :1])
    assert preview(np.full((1, 2, 2, 1), 2047.5), (0, 4095))[0, 0, 0, 0] == 128
    with pytest.raises(ValueError, match="bands"):
        preview(images, bands=(6,))


def test_a_writer_keeps_names_in_units(tmp_path: Path) -> None:
    images = (RNG.random((2, 4, 4, 3)) * 4095).astype(np.float32)
    writer = SampleWriter(tmp_path, "tiff", run=RUN, names=["cat/1.png", "2.png"], value_range=(0, 4095))
    writer.write([0, 1], images, [0, 1])
    assert sorted(f.relative_to(tmp_path).as_posix() for f in tmp_path.rglob("*.tiff")) == ["2.tiff", "cat/1.tiff"]
    again = SampleWriter(tmp_path, "tiff", run=RUN, names=["cat/1.png", "2.png"], value_range=(0, 4095))
    assert not again.missing(2) and read_samples(tmp_path).labels is not None
    assert np.array_equal(read_samples(tmp_path).images, preview(images, (0, 4095)))


@pytest.mark.parametrize("format", ["png16", "tiff", "npy"])
def test_a_writer_of_units(tmp_path: Path, format: str) -> None:
    images = (RNG.random((3, 4, 4, 1)) * 4095).astype(np.float32)
    run = {**RUN, "value_range": [0, 4095]}
    writer = SampleWriter(tmp_path, format, run=run, value_range=(0, 4095))  # type: ignore[arg-type]
    writer.write([0, 1], images[:2])
    again = SampleWriter(tmp_path, format, run=run, value_range=(0, 4095))  # type: ignore[arg-type]
    assert again.missing(3) == [2]
    again.write([2], torch.from_numpy(images[2:]))
    again.finish(3)
    back, _ = load_image(sample_files(tmp_path)[2])
    assert np.abs(back - images[2]).max() <= 0.5
    assert np.array_equal(read_samples(tmp_path).images, preview(np.stack([
        load_image(file)[0] for _, file in sorted(sample_files(tmp_path).items())]), (0, 4095)))  # fmt: skip


def test_folders_of_somebody_else_are_refused(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for k in range(5):
        (photos / "summer").mkdir(parents=True, exist_ok=True)
        (photos / "summer" / f"{k}.jpg").write_bytes(b"x")
    with pytest.raises(FileExistsError, match=r"summer/0.jpg, summer/1.jpg, summer/2.jpg, \.\.\..*photos.output"):
        SampleWriter(photos, run=RUN)
    assert not (photos / "run.json").exists() and foreign_files(photos, limit=2) == ["summer/0.jpg", "summer/1.jpg"]
    inner = SampleWriter(photos / "output", run=RUN)  # as the message says
    inner.write([0], RNG.integers(0, 256, (1, 4, 4, 3), dtype=np.uint8))
    (photos / "output" / "notes.txt").write_text("added later")
    assert SampleWriter(photos / "output", run=RUN).missing(2) == [1]
    mine = tmp_path / "mine"
    (mine / "base").mkdir(parents=True)
    (mine / "base" / "run.json").write_text("{}")
    (mine / ".DS_Store").write_bytes(b"x")
    assert claim_output(mine) == mine and claim_output(tmp_path / "new").is_dir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        claim_output(tmp_path / "file")


def test_grids_show_many_channels_by_their_first(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (4, 8, 8, 5), dtype=np.uint8)
    assert np.array_equal(np.asarray(tile(images)), np.asarray(tile(images[..., :3])))
    assert np.array_equal(np.asarray(draw_grid(images)), np.asarray(draw_grid(images[..., :3])))
    assert np.array_equal(np.asarray(draw_grid(images[..., :2])), np.asarray(draw_grid(images[..., :1])))
