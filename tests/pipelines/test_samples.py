"""`Pipeline.sample` and what it returns: images that convert, show and save themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.cli_runs import one_thread
from undiffuse import Pipeline
from undiffuse.pictures.png import read_png_record
from undiffuse.pipelines.samples import Samples


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    with one_thread():
        yield Pipeline.from_pretrained("fashion-mnist-32", device="cpu", solver="ddim", steps=2)


@pytest.fixture(scope="module")
def samples(pipeline: Pipeline) -> Samples:
    return pipeline.sample(3, classes=["dress", 9], seed=5, progress=False)


def test_images_cycle_through_the_classes_and_keep_their_numbers(pipeline: Pipeline, samples: Samples) -> None:
    assert samples.images.shape == (3, 32, 32, 1) and samples.images.dtype == np.uint8
    assert samples.labels == [3, 9, 3] and list(samples.indices) == [0, 1, 2]
    one = pipeline.sample(1, classes=["dress", 9], seed=5, first=2, batch=1, progress=False)
    assert (
        int(np.abs(one.images[0].astype(int) - samples.images[2]).max()) <= 1
    )  # batches of other sizes round otherwise
    assert samples._repr_png_().startswith(b"\x89PNG")
    assert "3 images of 32x32x1" in repr(samples)


def test_a_saved_folder_is_added_to_and_replaced_on_demand_only(
    pipeline: Pipeline, samples: Samples, tmp_path: Path
) -> None:
    folder = samples.save(tmp_path / "o")
    files = sorted(path.name for path in folder.glob("*seed5*.png"))
    assert len(files) == 3 and (folder / "grid.png").is_file()
    record = read_png_record(folder / files[0])
    assert record is not None and record["seed"] == 5 and record["solver"] == "ddim"
    with Image.open(folder / files[0]) as picture:
        assert np.array_equal(np.asarray(picture), samples.images[record["index"], ..., 0])
    other = pipeline.sample(1, classes="dress", seed=6, progress=False)
    with pytest.raises(ValueError, match="other settings"):
        other.save(folder)
    assert sorted(path.name for path in folder.glob("*seed5*.png")) == files
    (folder / "notes.txt").write_text("mine")
    other.save(folder, overwrite=True)
    assert not list(folder.glob("*seed5*.png")) and len(list(folder.glob("*seed6*.png"))) == 1
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(FileExistsError, match=r"holiday\.jpg"):
        samples.save(tmp_path / "photos", overwrite=True)


def test_a_folder_begun_under_former_names_is_finished(pipeline: Pipeline, tmp_path: Path) -> None:
    samples = pipeline.sample(1, classes="dress", solver="ddpm", progress=False)
    folder = samples.save(tmp_path / "o")
    file = folder / "run.json"
    settings = json.loads(file.read_text())
    settings["solver"], settings["reclip"] = "ancestral", settings.pop("clip_after_guidance")
    file.write_text(json.dumps(settings))
    samples.save(folder)
    settings["steps"] = "3"
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="steps"):
        samples.save(folder)
