"""Encoding, decoding and interpolating from Python: in memory and in files, resumed, with what does not fit refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.cli_runs import pixels, write_images, write_model
from undiffuse.pictures import read_record, read_samples
from undiffuse.pipelines import Pipeline, latents
from undiffuse.pipelines.inputs import labels_of, open_images
from undiffuse.pipelines.interpolation import interpolate
from undiffuse.util.errors import ConfigError

QUIET: dict[str, Any] = {"progress": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


def load(model: Path, **settings: Any) -> Pipeline:
    return Pipeline.from_pretrained(model, **{"solver": "ddim", "steps": 5, **settings})


@pytest.fixture(scope="module")
def ddim(model: Path) -> Pipeline:
    return load(model)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", each=2)


def test_encode_then_decode_gives_the_images_back(model: Path, ddim: Pipeline, images: Path, tmp_path: Path) -> None:
    fine = load(model, steps=20)
    stored = latents.encode(fine, images, out=tmp_path / "l", **QUIET)
    assert stored.latents.shape == (6, 1, 8, 8)
    assert stored.labels is not None
    assert stored.labels.tolist() == [0, 0, 1, 1, 2, 2]  # the folders, numbered as the model's classes
    assert stored.about["names"][2] == "right/0.png"
    read = latents.read(tmp_path / "l.safetensors")
    assert torch.equal(read.latents, stored.latents)
    assert read.digest == stored.digest
    again = latents.pipeline_of(read)
    decoded = latents.decode(again, read, **QUIET)
    originals = np.stack([pixels(images / name) for name in stored.about["names"]])
    error = float(np.sqrt(((decoded.images[..., 0].astype(int) - originals) ** 2).mean()))
    data = open_images(images, ddim.model)
    errors = latents.reconstruction_errors(again, read, data, **QUIET)
    assert float(errors.square().mean().sqrt()) == pytest.approx(error)
    few = latents.reconstruction_errors(ddim, latents.encode(ddim, images, **QUIET), data, **QUIET)
    assert float(few.square().mean().sqrt()) > error  # it shrinks as steps grow


def test_in_memory_and_through_the_pipeline(ddim: Pipeline, images: Path, tmp_path: Path) -> None:
    kept, free = latents.encode(ddim, images, out=tmp_path / "l", **QUIET), latents.encode(ddim, images, **QUIET)
    assert torch.equal(kept.latents, free.latents)
    assert kept.digest == free.digest
    assert torch.equal(ddim.encode(images).latents, free.latents)
    assert np.array_equal(ddim.decode(free).images, latents.decode(ddim, tmp_path / "l.safetensors", **QUIET).images)
    array = np.stack([pixels(images / name) for name in free.about["names"]]).astype(np.uint8)
    classes = ["left", "left", 1, 1, "top", 2]
    assert torch.equal(latents.encode(ddim, array, classes=classes, **QUIET).latents, free.latents)


def test_encoding_resumes(
    model: Path, ddim: Pipeline, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, file = latents.encode(ddim, images, **QUIET), tmp_path / "l.safetensors"
    write, calls = latents.LatentsWriter.write, iter(range(100))

    def interrupted(self: latents.LatentsWriter, indices: list[int], batch: torch.Tensor) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        write(self, indices, batch)

    with monkeypatch.context() as patch:
        patch.setattr(latents.LatentsWriter, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            latents.encode(ddim, images, out=file, batch=2, **QUIET)
    assert not file.exists()
    said: list[str] = []
    done = latents.encode(ddim, images, out=file, batch=1, report=said.append, **QUIET)
    assert said == ["2 images encoded (4 already existed)"]
    assert torch.allclose(done.latents, whole.latents, atol=1e-4)
    assert not Path(f"{file}.parts").exists()
    assert torch.equal(latents.encode(ddim, images, out=file, **QUIET).latents, done.latents)
    with pytest.raises(
        ValueError, match=r"holds latents made with other settings:\n  record\.clip: static there, none now"
    ):
        latents.encode(load(model, clip="none"), images, out=file, **QUIET)
    latents.encode(load(model, clip="none"), images, out=file, overwrite=True, **QUIET)


def test_decoding_into_a_folder(ddim: Pipeline, images: Path, tmp_path: Path) -> None:
    stored = latents.encode(ddim, images, count=3, **QUIET)
    out = tmp_path / "own"
    assert latents.decode_into(out, ddim, stored, batch=2, **QUIET) == (out, 3)
    own = read_samples(out)
    assert own.labels is not None
    assert own.labels.tolist() == [0, 1, 2]  # evenly spaced over the data
    assert np.array_equal(own.images, latents.decode(ddim, stored, batch=2, **QUIET).images)
    top = latents.decode(ddim, stored, classes="top", **QUIET)
    assert top.labels == [2, 2, 2]
    difference = np.abs(own.images.astype(int) - top.images.astype(int))
    assert difference[:2].max() > 1
    assert difference[2].max() <= 1
    next(out.glob("001*.png")).unlink()
    assert latents.decode_into(out, ddim, stored, **QUIET)[1] == 1
    assert (out / "grid.png").is_file()
    with pytest.raises(ValueError, match="classes: none there, 2 now"):
        latents.decode_into(out, ddim, stored, classes="top", **QUIET)


def test_what_cannot_be_encoded_or_decoded(model: Path, ddim: Pipeline, images: Path, tmp_path: Path) -> None:
    for more in ({"solver": "ddpm"}, {"eta": 0.5}):
        with pytest.raises(ConfigError, match="latents need ddim with eta 0"):
            latents.encode(load(model, **more), images, **QUIET)
    with pytest.raises(ConfigError, match=r"latents are kept in a \.safetensors file; got l\.pt"):
        latents.encode(ddim, images, out=tmp_path / "l.pt", **QUIET)
    stored = latents.encode(ddim, images, count=2, **QUIET)
    with pytest.raises(ConfigError, match="one class, or one for each of the 2 images; got 3"):
        latents.decode(ddim, stored, classes=[0, 1, 2], **QUIET)
    with pytest.raises(ConfigError, match="expected one class, or 6, one for each image; got 2"):
        latents.encode(ddim, images, classes=[0, 1], **QUIET)
    other = write_model(tmp_path / "other.safetensors", seed=4)
    with pytest.raises(ValueError, match="is not the one of the record in the latents"):
        latents.pipeline_of(stored, model=str(other))


def test_interpolation_of_seeds_ends_at_their_samples(ddim: Pipeline, tmp_path: Path) -> None:
    found = interpolate(ddim, seeds=(1, 2), frames=4, classes="top,left", **QUIET)
    assert found.images.shape == (2, 4, 8, 8, 1)
    assert (found.ends, found.classes) == (("seed 1", "seed 2"), [2, 0])
    for k, seed in ((0, 1), (3, 2)):
        single = ddim.sample(1, classes="top", seed=seed, progress=False).images[0]
        assert np.abs(found.images[0, k].astype(int) - single).max() <= 1
    found.save(tmp_path)
    assert read_record(tmp_path / "interpolation.png")["ends"] == ["seed 1", "seed 2"]
    with pytest.raises(FileExistsError, match="interpolation.png already exists"):
        found.save(tmp_path)
    found.save(tmp_path, overwrite=True)


def test_interpolation_of_images(model: Path, ddim: Pipeline, images: Path) -> None:
    pair = [images / "top" / "0.png", images / "top" / "1.png"]
    found = interpolate(load(model, steps=20), pair, frames=3, **QUIET)
    assert found.classes == [2]  # of the folder
    # The way begins at the first image, as nearly as encoding and decoding give it back.
    first = found.images[0, 0, ..., 0].astype(int)
    error = [np.sqrt(((first - pixels(file)) ** 2).mean()) for file in pair]
    assert error[0] < error[1]
    mixed = interpolate(ddim, [pair[0], images / "left" / "0.png"], frames=2, **QUIET)
    assert mixed.classes == [2, 0]
    for given, field in (
        ({"images": pair, "seeds": (1, 2)}, "images"),
        ({}, "images"),
        ({"seeds": (1, 2, 3)}, "images"),
        ({"images": [pair[0]]}, "images"),
        ({"images": pair, "frames": 1}, "frames"),
    ):
        with pytest.raises(ConfigError) as error_:
            interpolate(ddim, **given, **QUIET)  # type: ignore[arg-type]
        assert error_.value.field == field


def test_classes_of_images(ddim: Pipeline, images: Path, tmp_path: Path) -> None:
    """Given classes come first, then the data's labels, then records, then the names of folders."""
    model = ddim.model
    assert labels_of(open_images(images, model), model) == [0, 0, 1, 1, 2, 2]
    assert labels_of(open_images(images, model), model, [1]) == [1] * 6
    assert labels_of(open_images(images, model, labels="none"), model) == [0, 0, 1, 1, 2, 2]
    ddim.sample(3, classes="top,left,top", progress=False).save(tmp_path / "left")
    (tmp_path / "left" / "grid.png").unlink()
    found = open_images(tmp_path / "left", model)
    assert sorted(labels_of(found, model) or ()) == [0, 2, 2]  # the records, not the folder
    assert len(open_images(images, model, count=4)) == 4
    with pytest.raises(ValueError, match="expected one folder"):
        open_images([images, images], model)
    with pytest.raises(FileNotFoundError, match=r"there is no file nowhere\.png"):
        open_images(["nowhere.png"], model)
