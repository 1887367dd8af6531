"""`undiffuse inpaint`, `restore`, `vary` and `translate`: images in, images out."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli_runs import call, pixels, write_classifier, write_images, write_model
from undiffuse.pictures import read_record, read_samples

FAST = ("--steps", 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", each=1)


def write_mask(path: Path, size: tuple[int, int] = (8, 8), white: tuple[int, int, int, int] = (2, 2, 6, 6)) -> Path:
    """A black picture with a white box (left, top, right, bottom)."""
    picture = Image.new("L", size)
    picture.paste(255, white)
    picture.save(path)
    return path


def originals(images: Path) -> np.ndarray:
    return np.stack([pixels(images / name / "0.png") for name in ("left", "right", "top")])


def error_of(text: str, what: str) -> float:
    """A root mean square error that a command prints."""
    found = re.search(what + r".*: ([\d.]+) of 255", text)
    assert found, text
    return float(found.group(1))


@pytest.mark.parametrize("method", ["repaint", "dps", "pigdm", "mmps"])
def test_inpainting_keeps_what_is_known(method: str, model: Path, images: Path, tmp_path: Path) -> None:
    mask, out = write_mask(tmp_path / "mask.png"), tmp_path / "out"
    more = ("--resamples", 2, "--jump", 2) if method == "repaint" else ()
    words = ("inpaint", images, "--mask", mask, "--model", model, *FAST, "--method", method, *more, "--out", out)
    assert call(*words) == 0
    made, before = read_samples(out), originals(images)
    hole = pixels(mask) > 0
    results = made.images[..., 0].astype(int)
    assert np.array_equal(results[:, ~hole], before[:, ~hole])
    assert np.abs(results[:, hole] - before[:, hole]).max() > 10
    assert made.labels is not None
    assert made.labels.tolist() == [0, 1, 2]
    files = sorted(out.glob("*_seed0-*.png"))
    record = read_record(files[0])
    assert (record["command"], record["method"]) == ("inpaint", method)
    assert record["source"] == "left/0.png"
    assert len(record["mask"]) == 64
    assert ("zeta" in record, "resamples" in record) == (method == "dps", method == "repaint")
    solver = {"repaint": "ancestral", "dps": "ddim", "pigdm": "dpmpp-2m", "mmps": "dpmpp-2m"}[method]
    assert record["solver"] == solver  # of a model that learns its variance
    assert (out / "grid.png").is_file()
    stamps = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    assert call(*words) == 0  # makes the missing one again, and only that
    assert [file.stat().st_mtime_ns for file in (files[0], files[2])] == [stamps[0], stamps[2]]
    again = read_samples(out).images[..., 0].astype(int)
    assert np.abs(again - results).max() <= 1
    assert call(*words, "--seed", 1) == 2  # another job


def test_a_rectangle_and_several_variants(model: Path, images: Path, tmp_path: Path) -> None:
    file, out = images / "top" / "0.png", tmp_path / "out"
    words = ("inpaint", file, "--hole", "0,4,8,4", "--model", model, *FAST, "--resamples", 1, "--class", "top")
    assert call(*words, "--variants", 3, "--out", out) == 0
    made = read_samples(out).images[..., 0].astype(int)
    assert made.shape == (3, 8, 8)
    assert np.array_equal(made[:, :, :4], np.repeat(pixels(file)[None, :, :4], 3, axis=0))
    assert np.abs(made[0] - made[1])[:, 4:].max() > 3
    assert call(*words, "--variants", 3, "--batch", 1, "--out", tmp_path / "single") == 0
    assert np.abs(read_samples(tmp_path / "single").images[..., 0].astype(int) - made).max() <= 1


def test_a_mask_of_the_images_own_size_is_prepared_as_they_are(model: Path, tmp_path: Path) -> None:
    big = write_images(tmp_path / "big", each=1, size=(24, 16))
    mask = write_mask(tmp_path / "mask.png", (24, 16), (4, 0, 12, 16))  # of the middle 16x16, the left half
    out = tmp_path / "out"
    assert call("inpaint", big, "--mask", mask, "--model", model, *FAST, "--resamples", 1, "--out", out) == 0
    half = tmp_path / "half"
    small = write_mask(tmp_path / "small.png", (8, 8), (0, 0, 4, 8))
    assert call("inpaint", big, "--mask", small, "--model", model, *FAST, "--resamples", 1, "--out", half) == 0
    assert np.array_equal(read_samples(out).images, read_samples(half).images)


@pytest.mark.parametrize("task", [("--upscale", 2), ("--deblur", 0.8)])
def test_restoring(task: tuple[str, float], model: Path, images: Path, tmp_path: Path,
                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """Guided results look like what they were made from when that is done to them again; unguided ones do not."""
    words = ("restore", images, *task, "--degrade", "--model", model, "--steps", 20)
    assert call(*words, "--out", tmp_path / "guided") == 0
    near = error_of(capsys.readouterr().out, "the results, .* differ by")
    assert call(*words, "--noise", 1e4, "--out", tmp_path / "free") == 0
    told = capsys.readouterr().out
    assert near < 0.25 * error_of(told, "the results, .* differ by")
    assert error_of(told, "differ from the whole images by") > 0
    assert read_record(next((tmp_path / "guided").glob("0*.png")))[task[0][2:]] == task[1]
    assert call(*words, "--iterations", 1, "--out", tmp_path / "one") == 0
    assert call(*words, "--method", "pigdm", "--out", tmp_path / "pigdm") == 0
    assert call(*words, "--method", "dps", "--out", tmp_path / "dps") == 0


def test_small_images_are_enlarged(model: Path, tmp_path: Path) -> None:
    small = write_images(tmp_path / "small", each=1, size=(4, 4))
    out = tmp_path / "out"
    assert call("restore", small, "--upscale", 2, "--model", model, "--steps", 20, "--out", out) == 0
    made = read_samples(out).images[..., 0].astype(float)
    assert made.shape == (3, 8, 8)
    again = made.reshape(3, 4, 2, 4, 2).mean((2, 4))
    assert np.sqrt(((again - originals(small)) ** 2).mean()) < 20


def test_images_of_another_size_are_not_made_smaller_unasked(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("restore", images, "--upscale", 2, "--model", model, *FAST, "--out", tmp_path / "out")
    assert call(*words) == 2
    assert "left/0.png is 8x8 (width x height), but what the model enlarges 2 times is 4x4" in capsys.readouterr().err
    assert call(*words, "--fit", "crop") == 0


def test_a_solver_that_is_asked_for_is_taken(model: Path, images: Path, tmp_path: Path) -> None:
    words = ("restore", images / "top" / "0.png", "--deblur", 1, "--model", model, *FAST, "--class", "top")
    for more, solver in ((("--solver", "heun"), "heun"), (("--eta", 1), "ddim"), ((), "dpmpp-2m")):
        assert call(*words, *more, "--out", tmp_path / solver) == 0
        assert read_record(next((tmp_path / solver).glob("0*.png")))["solver"] == solver


def test_variations_are_the_farther_the_stronger(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("vary", images, "--model", model, "--steps", 10)
    errors = []
    for strength in (0.1, 0.5, 1.0):
        assert call(*words, "--strength", strength, "--out", tmp_path / str(strength)) == 0
        errors.append(error_of(capsys.readouterr().out, "differ from the images by"))
    assert errors[0] < errors[1] < errors[2]
    assert call("sample", "--model", model, "--steps", 10, "--count", 3, "--out", tmp_path / "s") == 0
    assert np.array_equal(read_samples(tmp_path / "s").images, read_samples(tmp_path / "1.0").images)
    assert call(*words, "--logsnr", 0, "--class", "top", "--out", tmp_path / "top") == 0
    labels = read_samples(tmp_path / "top").labels
    assert labels is not None
    assert labels.tolist() == [2, 2, 2]


def test_translation(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("translate", images, "--model", model, "--steps", 20, "--to", "top")
    assert call(*words, "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    back = error_of(told, "reconstruction")
    made, before = read_samples(tmp_path / "out"), originals(images)
    assert made.labels is not None
    assert made.labels.tolist() == [2, 2, 2]
    difference = np.abs(made.images[..., 0].astype(int) - before)
    own = np.sqrt((difference[2] ** 2).mean())  # this one is of that class: reconstruction
    assert own < 3 * back + 1
    assert call(*(*words[:-1], "left"), "--out", tmp_path / "left") == 0
    left = read_samples(tmp_path / "left").images
    assert all(not np.array_equal(left[k], made.images[k]) for k in range(3))  # the class decides
    guide = write_classifier(tmp_path / "classifier.safetensors")
    assert call(*words, "--classifier", guide, "--guidance", 5, "--out", tmp_path / "guided") == 0
    assert error_of(capsys.readouterr().out, "reconstruction") == pytest.approx(back, abs=0.02)  # without guidance
    assert not np.array_equal(read_samples(tmp_path / "guided").images, made.images)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["inpaint", "IMAGES"], "one of the arguments --mask --hole is required"),
        (["inpaint", "IMAGES", "--mask", "nowhere.png"], "there is no file nowhere.png"),
        (["inpaint", "IMAGES", "--mask", "TEXT"], "no picture that can be read"),
        (["inpaint", "IMAGES", "--mask", "SMALL"], "is 5x4 (width x height), the images are 8x8, the model's 8x8"),
        (["inpaint", "IMAGES", "--mask", "BLACK"], "every pixel is known"),
        (["inpaint", "IMAGES", "--mask", "WHITE"], "nothing of it is known"),
        (["inpaint", "IMAGES", "--hole", "0,0,9,1"], "reaches beyond the images of 8x8"),
        (["inpaint", "IMAGES", "--hole", "0,0,9"], "expected top,left,height,width"),
        (["inpaint", "IMAGES", "--hole", "0,0,2,2", "--zeta", "1"], "--zeta is of --method dps, not repaint"),
        (["inpaint", "FILE", "--hole", "0,0,2,2"], "there are no labels"),
        (["restore", "IMAGES"], "one of the arguments --upscale --deblur is required"),
        (["restore", "IMAGES", "--upscale", "3"], "--upscale 3 does not divide"),
        (["restore", "IMAGES", "--upscale", "1"], "whole factor of 2 or more"),
        (["restore", "IMAGES", "--deblur", "1", "--zeta", "2"], "--zeta is of --method dps, not mmps"),
        (
            ["restore", "IMAGES", "--deblur", "1", "--method", "mmps", "--data-std", "1"],
            "--data-std is of --method pigdm",
        ),
        (["vary", "IMAGES", "--strength", "0"], "changes nothing"),
        (["vary", "IMAGES", "--strength", "0.5", "--logsnr", "1"], "not allowed with argument"),
        (["translate", "IMAGES"], "the following arguments are required: --to"),
        (["translate", "IMAGES", "--to", "elsewhere"], "elsewhere"),
    ],
)
def test_mistakes(words: list[str], told: str, model: Path, images: Path, tmp_path: Path,
                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    (tmp_path / "text.png").write_text("no picture")
    places = {
        "IMAGES": images, "FILE": images / "top" / "0.png", "TEXT": tmp_path / "text.png",
        "SMALL": write_mask(tmp_path / "small.png", (5, 4)),
        "BLACK": write_mask(tmp_path / "black.png", white=(0, 0, 0, 0)),
        "WHITE": write_mask(tmp_path / "white.png", white=(0, 0, 8, 8)),
    }  # fmt: skip
    out = tmp_path / "out"
    assert call(*(places.get(word, word) for word in words), "--model", model, *FAST, "--out", out) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()
