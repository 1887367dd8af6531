"""`undiffuse encode`, `decode` and `interpolate`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli_runs import call, pixels, write_images, write_model
from undiffuse.pictures import read_record, read_samples
from undiffuse.pipelines import latents

FAST = ("--steps", 5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", each=2)


def error_of(text: str) -> float:
    """The root mean square error that --check prints."""
    found = re.search(r"the error is ([\d.]+) of 255", text)
    assert found, text
    return float(found.group(1))


def test_encode_then_decode_gives_the_images_back(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "latents.safetensors"
    assert call("encode", images, "--model", model, "--steps", 20, "--out", file, "--check") == 0
    error = error_of(capsys.readouterr().out)
    stored = latents.read(file)
    assert stored.latents.shape == (6, 1, 8, 8)
    assert stored.labels is not None
    assert stored.labels.tolist() == [0, 0, 1, 1, 2, 2]  # the folders, numbered as the model's classes
    assert stored.about["names"][2] == "right/0.png"
    assert call("decode", file, "--out", tmp_path / "decoded") == 0
    decoded = read_samples(tmp_path / "decoded")
    originals = np.stack([pixels(images / name) for name in stored.about["names"]])
    measured = np.sqrt(((decoded.images[..., 0].astype(int) - originals) ** 2).mean())
    assert measured == pytest.approx(error, abs=0.02)
    few = tmp_path / "few.safetensors"
    assert call("encode", images, "--model", model, "--steps", 5, "--out", few, "--check") == 0
    assert error_of(capsys.readouterr().out) > error  # it shrinks as steps grow


def test_decode_under_another_class(model: Path, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "latents.safetensors"
    assert call("encode", images, "--model", model, *FAST, "--out", file, "--count", 3) == 0
    assert call("decode", file, "--out", tmp_path / "own", "--batch", 2) == 0
    assert call("decode", file, "--out", tmp_path / "top", "--class", "top") == 0
    own, top = (read_samples(tmp_path / name) for name in ("own", "top"))
    assert own.labels is not None
    assert top.labels is not None
    assert own.labels.tolist() == [0, 1, 2]  # evenly spaced over the data
    assert top.labels.tolist() == [2, 2, 2]
    assert np.abs(own.images.astype(int) - top.images.astype(int))[:2].max() > 1
    assert np.abs(own.images.astype(int) - top.images.astype(int))[2].max() <= 1
    assert call("decode", file, "--out", tmp_path / "own") == 0  # all there already


def test_encoding_goes_on_where_it_was_stopped(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, file = tmp_path / "whole.safetensors", tmp_path / "latents.safetensors"
    words = ("encode", images, "--model", model, *FAST)
    assert call(*words, "--out", whole) == 0
    write = latents.LatentsWriter.write
    calls = iter(range(100))

    def interrupted(self: latents.LatentsWriter, start: int, batch: torch.Tensor) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        write(self, start, batch)

    with monkeypatch.context() as patch:
        patch.setattr(latents.LatentsWriter, "write", interrupted)
        assert call(*words, "--out", file, "--batch", 2) == 130
    assert not file.exists()
    capsys.readouterr()
    assert call(*words, "--out", file, "--batch", 1) == 0
    assert "2 images encoded" in capsys.readouterr().out
    assert torch.allclose(latents.read(file).latents, latents.read(whole).latents, atol=1e-4)
    assert not Path(f"{file}.parts").exists()
    assert call(*words, "--out", file) == 0
    assert "all images were encoded already" in capsys.readouterr().out
    assert call(*words, "--out", file, "--clip", "none") == 2
    assert "holds latents of another job (clip: static there, none now)" in capsys.readouterr().err
    assert call(*words, "--out", file, "--clip", "none", "--overwrite") == 0


def test_single_files_and_their_class(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = images / "top" / "0.png"
    words = ("encode", file, images / "left" / "1.png", "--model", model, *FAST, "--out", tmp_path / "l.safetensors")
    assert call(*words) == 2
    assert "there are no labels in 2 files: give --class" in capsys.readouterr().err
    assert call(*words, "--class", "top") == 0
    stored = latents.read(tmp_path / "l.safetensors")
    assert stored.labels is not None
    assert stored.labels.tolist() == [2, 2]
    assert stored.about["names"][0].endswith("top/0.png")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["encode", "nowhere"], "there is no folder or file nowhere"),
        (["encode", "nowhere.png", "--class", "0"], "there is no file nowhere.png"),
        (["decode", "nowhere"], "there is no file nowhere"),
        (["interpolate"], "give two image files, or --seeds A,B"),
        (["interpolate", "a.png"], "give two image files, or --seeds A,B"),
        (["interpolate", "a.png", "b.png"], "the model is told a class: give --class"),
        (["interpolate", "--seeds", "1,2", "--frames", "1"], "at least its two ends"),
    ],
)
def test_mistakes(words: list[str], told: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert call(*words, *(() if words[0] == "decode" else ("--model", model))) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_decode_refuses_other_files_and_other_models(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("decode", model, "--out", tmp_path / "x") == 2
    assert "holds no latents" in capsys.readouterr().err
    file = tmp_path / "l.safetensors"
    assert call("encode", images, "--model", model, *FAST, "--out", file, "--count", 1) == 0
    other = write_model(tmp_path / "other.safetensors", seed=4)
    assert call("decode", file, "--model", other, "--out", tmp_path / "x") == 2
    assert "is not the one of the record" in capsys.readouterr().err


def test_interpolate_seeds_ends_at_their_samples(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "way"
    words = ("--model", model, *FAST)
    assert call("interpolate", "--seeds", "1,2", "--frames", 4, "--class", "top,left", "--out", out, *words) == 0
    record = read_record(out / "interpolation.png")
    assert record["ends"] == ["seed 1", "seed 2"]
    assert record["classes"] == [2, 0]
    with Image.open(out / "interpolation.gif") as movie:
        frames = []
        for k in range(movie.n_frames):
            movie.seek(k)
            frames.append(np.asarray(movie.convert("L")).astype(int))
    assert len(frames) == 7  # there and back
    scale = 128 // 8
    for frame, seed in ((frames[0], 1), (frames[3], 2)):
        single = tmp_path / f"seed{seed}"
        assert (
            call("sample", *words, "--solver", "ddim", "--seed", seed, "--count", 1, "--class", "top", "--out", single)
            == 0
        )
        image = pixels(next(single.glob("*_seed*.png")))
        assert np.abs(frame[: 8 * scale : scale, : 8 * scale : scale] - image).max() <= 1
    assert call("interpolate", "--seeds", "1,2", "--out", out, *words) == 2  # nothing is replaced unasked


def test_interpolate_images(model: Path, images: Path, tmp_path: Path) -> None:
    a, b = images / "top" / "0.png", images / "top" / "1.png"
    words = ("--model", model, "--steps", 20, "--class", "top", "--frames", 3, "--out", tmp_path)
    assert call("interpolate", a, b, *words) == 0
    with Image.open(tmp_path / "interpolation.gif") as movie:
        first = np.asarray(movie.convert("L")).astype(int)[::16, ::16]
    # The way begins at the first image, as nearly as encoding and decoding give it back.
    error = [np.sqrt(((first[:8, :8] - pixels(file)) ** 2).mean()) for file in (a, b)]
    assert error[0] < error[1]


def test_pictures_of_undiffuse_bring_their_class(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--model", model, *FAST)
    assert call("sample", *words, "--count", 3, "--class", "top,left,top", "--out", tmp_path / "s") == 0
    samples = {read_record(file)["index"]: file for file in (tmp_path / "s").glob("*_seed*.png")}
    file = tmp_path / "l.safetensors"
    assert call("encode", samples[0], samples[1], *words, "--out", file) == 0
    labels = latents.read(file).labels
    assert labels is not None
    assert labels.tolist() == [2, 0]
    assert call("interpolate", samples[0], samples[2], *words, "--frames", 2, "--out", tmp_path / "one") == 0
    assert read_record(tmp_path / "one" / "interpolation.png")["classes"] == [2]
    assert call("interpolate", samples[0], samples[1], *words, "--frames", 2, "--out", tmp_path / "two") == 0
    assert read_record(tmp_path / "two" / "interpolation.png")["classes"] == [2, 0]
    capsys.readouterr()
    ordinary = images / "top" / "0.png"
    assert call("interpolate", samples[0], ordinary, *words, "--out", tmp_path / "none") == 2
    assert "give --class" in capsys.readouterr().err
