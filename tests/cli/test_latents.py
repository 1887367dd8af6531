"""`undiffuse encode`, `decode` and `interpolate`: what they print and refuse. The work is tested in Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from support.cli_runs import call, write_images, write_model
from undiffuse.pictures import read_record, read_samples
from undiffuse.pipelines import latents

FAST = ("--steps", 5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", each=2)


def test_there_and_back(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "enc"
    words = ("encode", images, "--model", model, *FAST, "--out", file)
    assert call(*words, "--check") == 0
    said = capsys.readouterr().out
    assert said.startswith("  disk     about 0.00307 MB, half of it at the end\n6 images encoded in")
    assert f"latents  {file}.safetensors (6 x 1x8x8)" in said
    assert re.search(r"RMS error of decoding is [\d.]+ of 255", said)
    assert call(*words) == 0
    assert "0 images encoded (6 already existed)" in capsys.readouterr().out
    out = tmp_path / "decoded"
    assert call("decode", f"{file}.safetensors", "--out", out, "--class", "top") == 0
    assert "6 images decoded" in capsys.readouterr().out
    labels = read_samples(out).labels
    assert labels is not None
    assert labels.tolist() == [2] * 6
    assert read_record(next(out.glob("002*.png")))["latents_file"] == f"{file}.safetensors"
    assert call("decode", f"{file}.safetensors", "--out", out, "--class", "top") == 0
    assert "all images already exist" in capsys.readouterr().out
    assert call("encode", images, "--model", model, *FAST, "--out", file, "--count", 2, "--overwrite") == 0
    assert len(latents.read(f"{file}.safetensors")) == 2


def test_interpolation(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", model, *FAST, "--frames", 4)
    assert call("interpolate", "--seeds", "1,2", *words, "--class", "top,left", "--out", tmp_path / "way") == 0
    assert capsys.readouterr().out.startswith("8 images from seed 1 to seed 2 in")
    record = read_record(tmp_path / "way" / "interpolation.png")
    assert record["classes"] == [2, 0]
    with Image.open(tmp_path / "way" / "interpolation.gif") as movie:
        assert movie.n_frames == 7  # there and back
    assert call("interpolate", "--seeds", "1,2", *words, "--out", tmp_path / "way") == 2  # nothing is replaced unasked
    capsys.readouterr()
    ends = (images / "top" / "0.png", images / "top" / "1.png")
    assert call("interpolate", *ends, *words, "--out", tmp_path / "images") == 0
    assert capsys.readouterr().out.startswith("4 images from ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encode", "nowhere"], "there is no folder or file nowhere"),
        (["encode", "nowhere.png", "--class", "0"], "there is no file nowhere.png"),
        (["encode", "x.png", "--out", "x.pt"], "--out: latents are kept in a .safetensors file; got x.pt"),
        (
            ["encode", "some.png"],
            "--class: missing; the model is class-conditional, but there are no labels in 1 file",
        ),
        (["decode", "nowhere"], "there is no file nowhere"),
        (["interpolate"], "give two image files, or --seeds A,B"),
        (["interpolate", "a.png"], "give two image files, or --seeds A,B"),
        (["interpolate", "a.png", "b.png"], "there is no file a.png"),
        (["interpolate", "1", "2"], "there are no files 1 and 2; did you mean --seeds 1,2?"),
        (["interpolate", "--seeds", "1,2", "--frames", "1"], "--frames: 1 is too few: expected at least 2"),
    ],
)
def test_mistakes(
    words: list[str], message: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("some.png")
    assert call(*words, *(() if words[0] == "decode" else ("--model", model))) == 2
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["some.png"]


def test_decode_refuses_other_files_and_other_models(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("decode", model, "--out", tmp_path / "x") == 2
    assert "has no latents of `undiffuse encode`" in capsys.readouterr().err
    file = tmp_path / "l.safetensors"
    assert call("encode", images, "--model", model, *FAST, "--out", file, "--count", 1) == 0
    other = write_model(tmp_path / "other.safetensors", seed=4)
    assert call("decode", file, "--model", other, "--out", tmp_path / "x") == 2
    assert "is not the one of the record" in capsys.readouterr().err
