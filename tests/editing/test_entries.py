"""`inpaint`, `restore`, `vary` and `translate`: images in, images out, in a folder or in memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.cli_runs import call, pixels, write_classifier, write_images, write_model
from undiffuse.config import SamplerConfig
from undiffuse.data import ArraySource, DataConfig, ImageDataset
from undiffuse.editing import Edited, inpaint, restore, translate, vary
from undiffuse.editing.base import output_names
from undiffuse.evaluation.images import open_images as evaluated
from undiffuse.pictures import read_record, read_samples
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.run import SamplingRun
from undiffuse.util.errors import ConfigError

FAST: dict[str, Any] = {"progress": False}
HOLE = (2, 2, 4, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SamplerConfig:
    return SamplerConfig(model=str(write_model(tmp_path_factory.mktemp("model") / "model.safetensors")), steps="4")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", each=1)


def write_mask(path: Path, size: tuple[int, int] = (8, 8), white: tuple[int, int, int, int] = (2, 2, 6, 6)) -> Path:
    """A black picture with a white box (left, top, right, bottom)."""
    picture = Image.new("L", size)
    picture.paste(255, white)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def originals(images: Path) -> np.ndarray:
    return np.stack([pixels(images / name / "0.png") for name in ("left", "right", "top")])


def values(edited: Edited) -> np.ndarray:
    return edited.images[..., 0].astype(int)


@pytest.mark.parametrize("method", ["repaint", "dps", "pigdm", "mmps"])
def test_inpainting_keeps_what_is_known(method: str, model: SamplerConfig, images: Path, tmp_path: Path) -> None:
    mask, out = write_mask(tmp_path / "mask.png"), tmp_path / "out"
    more: dict[str, Any] = {"resamples": 2, "jump": 2} if method == "repaint" else {}
    words: dict[str, Any] = {"model": model, "method": method, "out": out, **more, **FAST}
    made, before, hole = inpaint(images, mask, **words), originals(images), pixels(mask) > 0
    results = values(made)
    assert np.array_equal(results[:, ~hole], before[:, ~hole])
    assert np.abs(results[:, hole] - before[:, hole]).max() > 10
    assert made.labels == [0, 1, 2]
    assert made.names == ["left/0.png", "right/0.png", "top/0.png"]
    files = [out / name for name in made.names]
    record = read_record(files[0])
    assert (record["command"], record["method"], record["source"]) == ("inpaint", method, "left/0.png")
    assert len(record["mask"]) == 64
    assert ("zeta" in record, "resamples" in record) == (method == "dps", method == "repaint")
    solver = {"repaint": "ddpm", "dps": "ddim", "pigdm": "dpmpp-2m", "mmps": "dpmpp-2m"}[method]
    assert record["solver"] == solver  # of a model that learns its variance
    assert (out / "grid.png").is_file()
    stamps = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    again = inpaint(images, mask, **words)  # makes the missing one again, and only that
    assert [file.stat().st_mtime_ns for file in (files[0], files[2])] == [stamps[0], stamps[2]]
    assert np.abs(values(again) - results).max() <= 1
    with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
        inpaint(images, mask, **words, seed=1)


def test_in_memory_is_as_in_a_folder(model: SamplerConfig, images: Path, tmp_path: Path) -> None:
    words: dict[str, Any] = {"model": model, "hole": HOLE, "resamples": 1, **FAST}
    kept, free = inpaint(images, out=tmp_path / "out", **words), inpaint(images, **words)
    assert np.array_equal(kept.images, free.images)
    assert (kept.names, kept.labels, kept.errors) == (free.names, free.labels, free.errors)
    assert np.array_equal(np.asarray(kept.page), np.asarray(free.page))
    assert free.folder is None
    packed = inpaint(images, out=tmp_path / "npz", format="npz", **words)
    assert np.array_equal(packed.images, kept.images)
    loaded = Pipeline.load(model)
    array = originals(images).astype(np.uint8)[..., None]
    of_array = inpaint(array, **{**words, "model": loaded}, classes=["left", "right", "top"])
    assert np.array_equal(of_array.images, kept.images)
    of_tensor = inpaint(torch.from_numpy(array).permute(0, 3, 1, 2) / 127.5 - 1, **words, classes=[0, 1, 2])
    assert np.array_equal(of_tensor.images, kept.images)
    assert of_array.names[2] == "image-2.png"
    with pytest.raises(ConfigError, match="loaded without gradients") as error:
        inpaint(array, **{**words, "model": loaded, "resamples": None}, method="dps", classes=0)
    assert error.value.field == "model"


def test_several_variants(model: SamplerConfig, images: Path, tmp_path: Path) -> None:
    file, out = images / "top" / "0.png", tmp_path / "out"
    words: dict[str, Any] = {"model": model, "hole": (0, 4, 8, 4), "resamples": 1, "variants": 3, **FAST}
    edited = inpaint(file, out=out, **words)
    made = values(edited)
    assert made.shape == (3, 8, 8)
    assert edited.names == ["0_1.png", "0_2.png", "0_3.png"]
    assert np.array_equal(made[:, :, :4], np.repeat(pixels(file)[None, :, :4], 3, axis=0))
    assert np.abs(made[0] - made[1])[:, 4:].max() > 3
    assert np.abs(values(inpaint(file, batch=1, **words)) - made).max() <= 1


def test_a_mask_of_the_images_own_size_is_prepared_as_they_are(model: SamplerConfig, tmp_path: Path) -> None:
    big = write_images(tmp_path / "big", each=1, size=(24, 16))
    mask = write_mask(tmp_path / "mask.png", (24, 16), (4, 0, 12, 16))  # of the middle 16x16, the left half
    small = write_mask(tmp_path / "small.png", (8, 8), (0, 0, 4, 8))
    found = [inpaint(big, file, model=model, resamples=1, **FAST).images for file in (mask, small)]
    assert np.array_equal(*found)


def test_a_mask_for_each_image(model: SamplerConfig, images: Path, tmp_path: Path) -> None:
    boxes = {"left": (0, 0, 4, 4), "right": (4, 4, 8, 8), "top": (2, 2, 5, 8)}
    for name, box in boxes.items():
        write_mask(tmp_path / "masks" / name / "0.png", white=box)
    words: dict[str, Any] = {"model": model, "batch": 2, **FAST}
    for method in ("repaint", "pigdm"):
        made, before = values(inpaint(images, tmp_path / "masks", method=method, **words)), originals(images)
        for k, name in enumerate(boxes):
            hole = pixels(tmp_path / "masks" / name / "0.png") > 0
            assert np.array_equal(made[k][~hole], before[k][~hole])
            assert np.abs(made[k][hole] - before[k][hole]).max() > 5
            single = values(
                inpaint(images / name / "0.png", tmp_path / "masks" / name / "0.png", method=method, **words)
            )
            if k == 0:  # the noise goes by the number of an image
                assert np.abs(made[k] - single[0]).max() <= 1
    (tmp_path / "masks" / "top" / "0.png").unlink()
    with pytest.raises(ConfigError, match=r"has no mask for top/0\.png"):
        inpaint(images, tmp_path / "masks", **words)


def test_masks_are_found_by_name(model: SamplerConfig, tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    folder.mkdir()
    for name in "ab":
        Image.new("L", (8, 8), 100).save(folder / f"{name}.jpg")
        write_mask(tmp_path / "masks" / f"{name}.png")
    words: dict[str, Any] = {"model": model, "classes": "top", "resamples": 1, **FAST}
    assert inpaint(folder, tmp_path / "masks", **words).names == ["a.png", "b.png"]
    write_mask(tmp_path / "masks" / "a.bmp")
    with pytest.raises(ConfigError, match=r"has several masks for a\.jpg"):
        inpaint(folder, tmp_path / "masks", **words)


@pytest.mark.parametrize("mode", ["L", "I;16", "F", "RGB", "1", "bits16"])
def test_masks_of_zero_and_one(model: SamplerConfig, images: Path, tmp_path: Path, mode: str) -> None:
    """Segmentation masks are 0 and 1 in any type of pixels; 1 is filled, with one remark."""
    hole = np.zeros((8, 8), bool)
    hole[2:6, :4] = True
    said: list[str] = []
    white = {"1": True, "bits16": 65535}.get(mode, 1)
    dtype = {"I;16": np.uint16, "bits16": np.uint16, "F": np.float32, "1": bool}.get(mode, np.uint8)
    picture = Image.fromarray((hole * white).astype(dtype))
    file = tmp_path / f"m.{'tif' if mode == 'F' else 'png'}"
    (picture.convert("RGB") if mode == "RGB" else picture).save(file)
    words: dict[str, Any] = {"model": model, "resamples": 1, "report": said.append, **FAST}
    made = inpaint(images, file, **words).images
    plain = write_mask(tmp_path / "white.png", (8, 8), (0, 2, 4, 6))
    assert np.array_equal(made, inpaint(images, plain, **words).images)
    remarks = [line for line in said if "brightest value of 1" in line]
    assert len(remarks) == (mode not in ("1", "bits16"))
    assert all("m." in line and "1 is filled" in line for line in remarks)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("nowhere.png", "there is no file or folder .*nowhere.png"),
        ("text.png", "text.png is not a picture that can be read"),
        ("small.png", r"is 5x4 \(width x height\), the images are 8x8, the model's 8x8"),
        ("black.png", "every pixel is known"),
        ("white.png", "nothing of the image is known"),
        ("zero_one.jpg", "a brightest value of 1, but the part to fill must be white"),
        (
            "labels.png",
            "a brightest value of 2, but the part to fill must be white .255., or 1 where all else is 0: mul",
        ),
    ],
)
def test_masks_that_cannot_be_used(mask: str, message: str, model: SamplerConfig, images: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    write_mask(tmp_path / "small.png", (5, 4))
    write_mask(tmp_path / "black.png", white=(0, 0, 0, 0))
    write_mask(tmp_path / "white.png", white=(0, 0, 8, 8))
    Image.new("L", (8, 8), 1).save(tmp_path / "zero_one.jpg", quality=100)  # black, as far as a lossy file can tell
    Image.fromarray((pixels(write_mask(tmp_path / "m.png")) // 127).astype(np.uint8)).save(tmp_path / "labels.png")
    with pytest.raises((ConfigError, FileNotFoundError), match=message) as error:
        inpaint(images, tmp_path / mask, model=model, out=tmp_path / "out", **FAST)
    assert "cannot be read" not in str(error.value) or mask == "text.png"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", [{"upscale": 2}, {"deblur": 0.8}])
def test_restoring(task: dict[str, Any], model: SamplerConfig, images: Path, tmp_path: Path) -> None:
    """Guided results look like what they were made from when that is done to them again; unguided ones do not."""
    words: dict[str, Any] = {**task, "degrade": True, "model": model.replace(steps="20"), **FAST}
    guided, free = restore(images, out=tmp_path / "out", **words), restore(images, noise=1e4, **words)
    again = next(name for name in guided.errors if "differ by" in name)
    assert guided.errors[again] < 0.25 * free.errors[again]
    assert free.errors["the results differ from the whole images by"] > 0
    (name, value) = next(iter(task.items()))
    assert read_record(tmp_path / "out" / guided.names[0])[name] == value
    for method, more in (("mmps", {"iterations": 1}), ("pigdm", {}), ("dps", {})):
        assert len(restore(images, method=method, **more, **words)) == 3


def test_small_images_are_enlarged(model: SamplerConfig, tmp_path: Path) -> None:
    small = write_images(tmp_path / "small", each=1, size=(4, 4))
    made = values(restore(small, upscale=2, model=model.replace(steps="20"), **FAST)).astype(float)
    assert made.shape == (3, 8, 8)
    again = made.reshape(3, 4, 2, 4, 2).mean((2, 4))
    assert np.sqrt(((again - originals(small)) ** 2).mean()) < 20


def test_images_of_another_size_are_not_resized_unasked(model: SamplerConfig, images: Path) -> None:
    with pytest.raises(ConfigError, match=r"takes images of 4x4 \(width x height\), but left/0.png is 8x8"):
        restore(images, upscale=2, model=model, **FAST)
    assert len(restore(images, upscale=2, model=model, fit="crop", **FAST)) == 3


def test_a_chosen_solver_is_used(model: SamplerConfig, images: Path, tmp_path: Path) -> None:
    for more, solver in (({"solver": "heun"}, "heun"), ({"eta": 1.0}, "ddim"), ({}, "dpmpp-2m")):
        restore(images / "top" / "0.png", deblur=1.0, model=model.replace(**more), out=tmp_path / solver, **FAST)
        assert read_record(tmp_path / solver / "0.png")["solver"] == solver


def test_variations_differ_more_the_stronger_they_are(model: SamplerConfig, images: Path, tmp_path: Path) -> None:
    config = model.replace(steps="10")
    made = [vary(images, strength=s, model=config, **FAST) for s in (0.1, 0.5, 1.0)]
    errors = [edited.errors["the results differ from the images by"] for edited in made]
    assert errors[0] < errors[1] < errors[2]
    SamplingRun.of(Pipeline.load(config), tmp_path / "s", count=3).run(progress=False)
    assert np.array_equal(read_samples(tmp_path / "s").images, made[2].images)
    assert vary(images, logsnr=0.0, classes="top", model=config, **FAST).labels == [2, 2, 2]
    with pytest.raises(ValueError, match="changes nothing"):
        vary(images, strength=0.0, model=config, **FAST)


def test_translation(model: SamplerConfig, images: Path, tmp_path: Path) -> None:
    config = model.replace(steps="20")
    made, before = translate(images, "top", model=config, **FAST), originals(images)
    back = made.errors["reconstruction, there and back under the own class, is off by"]
    assert made.labels == [2, 2, 2]
    own = np.sqrt(((values(made) - before)[2] ** 2).mean())  # this one is of that class: reconstruction
    assert own < 3 * back + 1
    left = translate(images, "left", model=config, **FAST)
    assert all(not np.array_equal(left.images[k], made.images[k]) for k in range(3))  # the class decides
    guide = write_classifier(tmp_path / "classifier.safetensors")
    guided = translate(images, "top", model=config.replace(classifier=(str(guide),), guidance=(5.0,)), **FAST)
    assert guided.errors[next(iter(made.errors))] == pytest.approx(back, abs=0.02)  # without guidance
    assert not np.array_equal(guided.images, made.images)
    with pytest.raises(ValueError, match="elsewhere"):
        translate(images, "elsewhere", model=config, **FAST)


def test_the_class_of_a_picture_follows_from_its_folder(model: SamplerConfig, images: Path, tmp_path: Path) -> None:
    words: dict[str, Any] = {"model": model, "hole": HOLE, "resamples": 1, **FAST}
    assert inpaint([images / "top" / "0.png", images / "left" / "0.png"], **words).labels == [2, 0]
    assert inpaint(images / "top", **words).labels == [2]  # a folder of one class
    shutil.copy(images / "top" / "0.png", tmp_path / "some.png")
    with pytest.raises(ConfigError, match=r"neither record nor folder names the class of .*some\.png") as error:
        inpaint(tmp_path / "some.png", **words)
    assert error.value.field == "classes"
    inpaint(tmp_path / "some.png", classes="right", out=tmp_path / "filled", **words)
    assert inpaint(tmp_path / "filled" / "some.png", **words).labels == [1]  # its record says so


def test_results_of_results(model: SamplerConfig, images: Path, tmp_path: Path) -> None:
    """Samples keep their names, and what they are called does not say what has become of them."""
    SamplingRun.of(Pipeline.load(model), tmp_path / "s", count=3, classes="left,top", seed=7).run(progress=False)
    (tmp_path / "s" / "grid.png").unlink()
    made = translate(tmp_path / "s", "right", model=model, out=tmp_path / "out", **FAST)
    assert sorted(made.names) == sorted(file.name for file in (tmp_path / "s").glob("*.png"))
    found = read_samples(tmp_path / "out")
    assert found.indices.tolist() == [0, 1, 2]
    assert found.labels is not None
    assert found.labels.tolist() == [1, 1, 1]
    again = translate(tmp_path / "s", "left", model=model, out=tmp_path / "out", overwrite=True, **FAST)
    assert again.labels == [0, 0, 0]


def test_other_commands_know_the_results(
    model: SamplerConfig, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without their page, and with the classes they have now."""
    translate(images, "top", model=model, out=tmp_path / "out", **FAST)
    stored = evaluated(tmp_path / "out")
    assert len(stored) == 3
    assert stored.labels is not None
    assert stored.labels.tolist() == [2, 2, 2]
    assert call("inspect", tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith("samples: 3 PNG files")


def test_an_image_called_grid(model: SamplerConfig, images: Path, tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    shutil.copy(images / "top" / "0.png", tmp_path / "top" / "grid.png")
    words: dict[str, Any] = {"model": model, "hole": HOLE, "resamples": 1, "out": tmp_path / "out", **FAST}
    made = inpaint(tmp_path / "top", **words)
    assert made.names == ["grid.png.png"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["grid.png", "grid.png.png", "run.json"]


def test_a_folder_of_other_files_is_refused(model: SamplerConfig, images: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "photo.png")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"holds files that were not written .*photo\.png"):
            vary(images, model=model, out=tmp_path, overwrite=overwrite, **FAST)
    assert [file.name for file in tmp_path.iterdir()] == ["photo.png"]


def test_names_of_results(tmp_path: Path) -> None:
    def names(*files: str, variants: int = 1) -> list[str]:
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(tmp_path / file)
        from undiffuse.pipelines.inputs import _single_files

        config = DataConfig(path="memory", size=4, channels=1)
        return output_names(ImageDataset(_single_files([tmp_path / file for file in files]), config), variants)

    assert names("a/x.png") == ["x.png"]
    assert names("a/x.png", "a/y.jpg") == ["x.png", "y.png"]
    assert names("a/x.png", "b/x.png") == ["a/x.png", "b/x.png"]
    assert names("a/x.png", "a/x.jpg", "a/X.bmp") == ["x.png.png", "x.jpg.png", "X.bmp.png"]
    assert names("a/x.png", variants=2) == ["x_1.png", "x_2.png"]

    class Zip(ArraySource):
        def name(self, i: int) -> str:
            return ["../../etc/x.png", "/abs/y.png", "z.png"][i]

    hostile = ImageDataset(Zip(np.zeros((3, 4, 4), np.uint8)), DataConfig(path="memory", size=4, channels=1))
    assert output_names(hostile) == ["x.png", "y.png", "z.png"]


@pytest.mark.parametrize(
    ("edit", "given", "field"),
    [
        (inpaint, {}, "mask"),
        (inpaint, {"mask": "m.png", "hole": HOLE}, "mask"),
        (inpaint, {"hole": (0, 0, 9, 1)}, "hole"),
        (inpaint, {"hole": HOLE, "zeta": 1.0}, "zeta"),
        (inpaint, {"hole": HOLE, "method": "magic"}, "method"),
        (inpaint, {"hole": HOLE, "variants": 0}, "variants"),
        (inpaint, {"hole": HOLE, "format": "jpeg"}, "format"),
        (inpaint, {"mask": np.zeros((3, 3), bool)}, "mask"),
        (restore, {}, "upscale"),
        (restore, {"upscale": 3}, "upscale"),
        (restore, {"deblur": 1.0, "method": "repaint"}, "method"),
        (restore, {"deblur": 1.0, "data_std": 1.0}, "data_std"),
    ],
)
def test_arguments_that_do_not_fit(
    edit: Any, given: dict[str, Any], field: str, model: SamplerConfig, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        edit(images, model=model, out=tmp_path / "out", **given, **FAST)
    assert error.value.field == field
    assert not (tmp_path / "out").exists()


def test_a_model_among_the_images_is_pointed_out(
    model: SamplerConfig, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("vary", model.model, images / "left" / "0.png", "--out", tmp_path / "out") == 2
    text = capsys.readouterr().err
    assert text.rstrip().endswith(f"If {model.model} is the model, give it as --model {model.model}")
