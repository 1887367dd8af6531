"""`undiffuse inpaint`, `restore`, `vary` and `translate`: their options and what they print."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from support.cli_runs import call, write_images, write_model
from undiffuse.pictures import read_record

FAST = ("--steps", 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", each=1)


@pytest.mark.parametrize(
    ("words", "page"),
    [
        (["inpaint", "--hole", "0,4,8,4", "--method", "dps", "--zeta", "0.5"], "dps, 50% filled, ddim, 4 of 20 steps"),
        (["restore", "--deblur", "0.8", "--degrade"], "mmps, blur 0.8, dpmpp-2m, 4 steps"),
        (["vary", "--strength", "0.5", "--variants", "2"], "strength 0.5 (2 steps), ddpm, 4 of 20 steps"),
        (["translate", "--to", "top", "--logsnr", "-1"], "to top, log-SNR -1"),
    ],
)
def test_the_page(
    words: list[str], page: str, model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (*words, images, "--model", model, *FAST, "--out", tmp_path / "out")
    assert call(*given) == 0
    said = capsys.readouterr().out
    assert page in said
    assert f"images  {tmp_path / 'out'}" in said
    assert "of 255 (root mean square), PSNR" in said
    name = "0_1.png" if "--variants" in words else "0.png"
    assert read_record(tmp_path / "out" / "left" / name)["command"] == words[0]
    assert call(*given) == 0
    assert "all images already exist" in capsys.readouterr().out


def test_one_image_is_one_image(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("vary", images / "top" / "0.png", "--model", model, *FAST, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert said.startswith("1 image made")
    assert (tmp_path / "out" / "0.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inpaint", "IMAGES"], "one of the arguments --mask --hole is required"),
        (["inpaint", "IMAGES", "--mask", "nowhere.png"], "there is no file or folder nowhere.png"),
        (["inpaint", "IMAGES", "--mask", "BLACK"], "--mask: "),
        (["inpaint", "IMAGES", "--hole", "0,0,9,1"], "--hole: 0,0,9,1 (top, left, height, width) reaches beyond"),
        (["inpaint", "IMAGES", "--hole", "0,0,9"], "expected top,left,height,width"),
        (["inpaint", "IMAGES", "--hole", "0,0,2,2", "--zeta", "1"], "--zeta has no effect on repaint"),
        (["restore", "IMAGES"], "one of the arguments --upscale --deblur is required"),
        (["restore", "IMAGES", "--upscale", "3"], "--upscale: 3 does not divide"),
        (["restore", "IMAGES", "--upscale", "1"], "whole factor of 2 or more"),
        (["restore", "IMAGES", "--deblur", "1", "--data-std", "1"], "--data-std has no effect on mmps"),
        (["vary", "IMAGES", "--strength", "0.5", "--logsnr", "1"], "not allowed with argument"),
        (["translate", "IMAGES"], "the following arguments are required: --to"),
        (["translate", "IMAGES", "--to", "elsewhere"], "elsewhere"),
    ],
)
def test_mistakes(
    words: list[str], message: str, model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    places = {"IMAGES": images, "BLACK": tmp_path / "black.png"}
    out = tmp_path / "out"
    assert call(*(places.get(word, word) for word in words), "--model", model, *FAST, "--out", out) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
