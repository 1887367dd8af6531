"""Folders of this library's own samples as data: only the samples are read, in the units of their range."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from undiffuse.data import DataConfig, ImageDataset, open_data
from undiffuse.data.ranges import declared_range
from undiffuse.pictures import SampleWriter, save_png
from undiffuse.training.plan import plan
from undiffuse.training.request import TrainRequest, is_run_folder

FORMATS = ("png", "png16", "tiff", "npy")


def written(folder: Path, format: str, value_range: tuple[float, float] | None, channels: int = 1) -> np.ndarray:
    """Six samples of two classes and a grid; returns their values."""
    low, high = value_range or (0.0, 255.0)
    values = np.linspace(low, high, 6 * 8 * 8 * channels).reshape(6, 8, 8, channels).astype(np.float32)
    levels = np.round((values - low) * (255 / (high - low))).astype(np.uint8)
    writer = SampleWriter(folder, format, run={"seed": 3}, label_names=["cat", "dog"], value_range=value_range)
    writer.write(range(6), levels if format == "png" else values, [0, 1, 0, 1, 0, 1])
    writer.finish()
    save_png(folder / "grid.png", np.zeros((30, 40, 3), np.uint8), {"command": "sample", "seed": 3})
    return values


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value_range", [(-1000.0, 2000.0), (0.0, 4095.0), (0.0, 1.0)])
def test_samples_have_their_units_again(tmp_path: Path, format: str, value_range: tuple[float, float]) -> None:
    values = written(tmp_path / "s", format, value_range)
    source = open_data(tmp_path / "s")
    low, high = value_range
    assert len(source) == 6 and source.format == "samples of undiffuse" and declared_range(source) == value_range
    assert source.label_names == ["cat", "dog"] and [source.label(i) for i in range(6)] == [0, 1, 0, 1, 0, 1]
    step = (high - low) / (255 if format == "png" else 4095)
    seen = np.stack([np.asarray(source.image(i)).reshape(8, 8, 1) for i in range(6)])
    assert np.abs(seen - values).max() <= step
    prepared = ImageDataset(source, DataConfig(path="", size=8, channels=1, value_range=value_range)).plain(5).image
    assert prepared.dtype == np.float32 and prepared.max() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("format", ["png", "png16", "tiff"])
def test_copies_of_samples_say_their_range_themselves(tmp_path: Path, format: str) -> None:
    values = written(tmp_path / "s", format, (-1000.0, 2000.0))
    (tmp_path / "copy").mkdir()
    for file in (tmp_path / "s").glob("*seed*"):
        shutil.copy(file, tmp_path / "copy")
    source = open_data(tmp_path / "copy")
    assert source.value_range == (-1000.0, 2000.0) and len(source) == 6
    assert any("values -1000 (black) to 2000 (white), as the files record" in note for note in source.notes)
    for i, index in enumerate((0, 2, 4, 1, 3, 5)):  # sorted by class
        assert np.abs(np.asarray(source.image(i)).reshape(8, 8, 1) - values[index]).max() <= 3000 / 255


def test_training_on_samples_takes_their_range_and_not_the_grid(tmp_path: Path) -> None:
    written(tmp_path / "s", "png16", (-1000.0, 2000.0))
    assert not is_run_folder(tmp_path / "s")
    made = plan(TrainRequest(data=str(tmp_path / "s"), steps=1, batch=2, out=str(tmp_path / "run")))
    assert isinstance(made.dataset, ImageDataset)
    assert made.dataset.config.value_range == (-1000.0, 2000.0) and len(made.dataset) == 6
    assert any("other images in the folder of the samples" in remark for remark in made.remarks)


@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize("format", ["png16", "tiff", "npy"])
def test_samples_of_any_number_of_channels(tmp_path: Path, channels: int, format: str) -> None:
    if format == "png16" and channels == 5:
        pytest.skip("PNG has four channels at most")
    values = written(tmp_path / "s", format, (-1.0, 3.0), channels)
    source = open_data(tmp_path / "s", channels=channels)
    assert source.info(0).channels == channels and source.info(0).planes and not source.info(0).alpha
    assert np.abs(np.asarray(source.image(4)) - values[4]).max() <= 4 / 65535


def test_a_run_without_samples_says_so(tmp_path: Path) -> None:
    SampleWriter(tmp_path / "s", "png", run={"seed": 3})
    with pytest.raises(ValueError, match="holds the run.json of a sampling run but no samples"):
        open_data(tmp_path / "s")


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 2), (np.uint16, 4), (np.int16, 4), (np.float32, 2)])
def test_arrays_of_two_and_four_channels_are_not_colours_with_alpha(tmp_path: Path, dtype: type, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, channels)).astype(dtype)
    np.savez(tmp_path / "a.npz", images=images)
    source = open_data(tmp_path / "a.npz", value_range=None if dtype is np.uint8 else (0, 255))
    info = source.info(0)
    assert info.channels == channels and info.planes and not info.alpha
    config = DataConfig(path="", size=8, channels=channels, value_range=(0, 255))
    image = ImageDataset(source, config).plain(2).image
    assert np.abs((image + 1) * 127.5 - images[2]).max() < 1e-3
