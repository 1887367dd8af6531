"""`undiffuse inspect` and `undiffuse recipes` tell what things are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from support.cli_runs import call, write_classifier, write_images, write_model
from support.training_runs import run
from undiffuse import __version__, recipes
from undiffuse.checkpoints import read_manifest
from undiffuse.models import load_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


def test_without_an_argument_the_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect") == 0
    told = capsys.readouterr().out
    assert f"undiffuse  {__version__}" in told
    assert torch.__version__ in told
    assert "cpu, " in told
    assert "fashion-mnist-32-classifier (" in told


def test_a_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", model) == 0
    told = capsys.readouterr().out
    assert told.startswith("diffusion model, 8x8 grey (height x width)\n")
    assert "3: left, right, top" in told
    assert "20 cosine steps, predicts eps, variance learned_range" in told
    assert str(read_manifest(model)["sha256"]) in told
    parameters = sum(p.numel() for p in load_model(model).net.parameters())
    assert f"{parameters / 1e6:.2f} million parameters" in told
    assert f"undiffuse sample --model {model}" in told
    assert call("inspect", model, "--json") == 0
    assert json.loads(capsys.readouterr().out) == read_manifest(model)


def test_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", write_classifier(tmp_path / "c.safetensors")) == 0
    told = capsys.readouterr().out
    assert told.startswith("classifier of noisy images, 8x8 grey (height x width)\n")
    assert "undiffuse sample --model MODEL --classifier" in told


def test_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run")
    assert call("inspect", tmp_path / "run") == 0
    told = capsys.readouterr().out
    assert told.startswith(f"run in {tmp_path / 'run'}: diffusion model, 8x8 grey (height x width)\n")
    assert "32 of 32 images (100.0%)  loss" in told
    assert "checkpoints  12, 24, 32" in told
    assert "net, 0.9, 0.99 (default: the last" in told
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "metrics.jsonl").write_text("")
    assert call("inspect", tmp_path / "young") == 0
    assert "without a checkpoint yet" in capsys.readouterr().out


def test_samples_latents_and_pictures(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", model, "--steps", 2)
    assert call("sample", *words, "--count", 3, "--out", tmp_path / "s", "--animation", "gif") == 0
    images = write_images(tmp_path / "images", each=1)
    assert call("encode", images, *words, "--out", tmp_path / "l.safetensors") == 0
    capsys.readouterr()
    picture = next((tmp_path / "s").glob("*_seed*.png"))
    for what, told in (
        (tmp_path / "s", "samples: 3 PNG files"),
        (picture, f"undiffuse sample --from-record {picture}"),
        (tmp_path / "s" / "path.gif", "GIF picture"),
        (tmp_path / "l.safetensors", "latents of 3 images, 1x8x8"),
    ):
        assert call("inspect", what) == 0
        out = capsys.readouterr().out
        assert told in out
        assert re.search(r"steps +2\b", out)
    assert call("inspect", picture, "--json") == 0
    assert json.loads(capsys.readouterr().out)["index"] == 0


def test_data_and_the_command_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("undiffuse.cli.inspect_data.resolve_device", lambda name: torch.device("cpu"))
    images = write_images(tmp_path / "my photos", each=2, size=(20, 10))
    (images / "top" / "bad.png").write_bytes(b"no picture")
    assert call("inspect", images) == 0
    told = capsys.readouterr().out
    assert "height x width: 10x20 (6)" in told
    assert "grey (6)" in told
    assert "3: left (2), right (2), top (3)" in told
    assert "1: top/bad.png" in told
    assert f'undiffuse train "{images}" --on-broken skip' in told
    assert f'  undiffuse train "{images}" --on-broken skip --recipe tiny\n' in told
    assert f'  undiffuse train-classifier "{images}" --on-broken skip --for "runs/my photos"\n' in told + "\n"
    assert "The images are not square: they are trained at 8x16" in told
    assert re.search(r"tiny +none", told)
    assert "train-classifier" in told
    assert call("inspect", images, "--count", 1) == 0
    assert "1 evenly spaced ones checked" in capsys.readouterr().out


def test_tiny_files_and_transparency_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(3):
        Image.new("RGB", (70, 70)).save(tmp_path / f"large{k}.png")
    Image.new("RGBA", (40, 90)).save(tmp_path / "small.png")
    assert call("inspect", tmp_path) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "tiny 1 smaller than the training size 64x64: small.png" in told
    assert "90x40 (1)" in told
    assert "--on-tiny skip to leave" in told
    assert "1 image has transparency: the background becomes white; --channels 4 keeps alpha" in told
    assert "Not all images are square" in told
    told = told.replace("--recipe tiny --size 32", "")
    assert "--size" not in told  # nothing keeps images of several shapes whole


def test_one_image_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (70, 70)).save(tmp_path / "only.png")
    assert call("inspect", tmp_path) == 0
    told = capsys.readouterr().out
    assert "1 image is few" in told
    assert "square" not in told


def test_folders_of_ours_are_no_training_data(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", model, "--steps", 2)
    images = write_images(tmp_path / "images", each=1)
    out = tmp_path / "out"
    assert call("sample", *words, "--count", 3, "--out", out / "samples") == 0
    assert call("interpolate", "--seeds", "1,2", "--frames", 2, *words, "--out", out / "way") == 0
    assert call("nll", images, "--model", model, "--terms", 2, "--out", out / "nll") == 0
    run(out / "run")
    capsys.readouterr()
    for what, told in (
        (out / "samples", "samples: 3 PNG files"),
        (out / "samples" / "run.json", "the settings of samples, by `undiffuse sample`"),
        (out / "way", "pictures written by `undiffuse interpolate`"),
        (out / "nll", "a likelihood, by `undiffuse nll`"),
        (out / "nll" / "bits.json", "bits_per_dim"),
        (out, "4 folders written by undiffuse"),
    ):
        assert call("inspect", what) == 0
        told_now = capsys.readouterr().out
        assert told in told_now
        assert "undiffuse train" not in told_now
    assert call("inspect", out, "--json") == 0
    kinds = json.loads(capsys.readouterr().out)
    assert kinds == {"nll": "likelihood", "run": "run", "samples": "samples", "way": "pictures"}
    Image.new("RGB", (70, 70)).save(out / "photo.png")  # one stranger, and it is data
    assert call("inspect", out) == 0
    assert "undiffuse train" in capsys.readouterr().out


def test_files_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"weight": torch.zeros(2, 3)}, tmp_path / "other.safetensors")
    np.savez(tmp_path / "stats.npz", mu=np.zeros(4), sigma=np.zeros((4, 4)))
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros((3, 8, 8, 3), np.uint8), arr_1=np.arange(3))
    Image.new("RGB", (5, 4)).save(tmp_path / "bare.png")
    Image.new("RGB", (5, 4)).save(tmp_path / "plain.jpg")
    for name, told in (
        ("other.safetensors", "1 tensor, 6 numbers"),
        ("stats.npz", "feature statistics"),
        ("samples.npz", "8x8 (3)"),
        ("plain.jpg", "JPEG picture, 4x5 RGB (height x width)\nIt has no record of undiffuse"),
        ("bare.png", "PNG picture, 4x5 RGB (height x width)\nIt has no record of undiffuse"),
    ):
        assert call("inspect", tmp_path / name) == 0
        assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("missing", None, "there is no file or folder"),
        ("cut.safetensors", b"\x10\x00", "is too short for a safetensors file: 2 bytes"),
        ("cut.npz", b"PK", "is not a readable npz file"),
        ("cut.png", b"\x89PNG", "is not a readable picture"),
        ("model.pt", b"PK", "is neither weights of PyTorch nor a checkpoint of undiffuse"),
        ("text.txt", b"hello", "Expected a folder of images, a .zip of them, an .npz"),
    ],
)
def test_damaged_and_unknown(
    name: str, content: bytes | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert call("inspect", tmp_path / name) == 2
    assert told in capsys.readouterr().err


def test_recipes_are_listed_with_their_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("recipes") == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    named = [line for line in lines[2 : lines.index("")] if not line.startswith(" ")]
    assert [line.split()[0] for line in named] == recipes.names()
    assert "..." not in told  # long results are wrapped, not cut
    assert max(map(len, lines)) <= 100
    assert any("adm-imagenet-64 " in line and "295.9M" in line and "FID 2.07" in line for line in lines)


def test_one_recipe_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("recipes", "fashion-mnist-32") == 0
    told = capsys.readouterr().out
    recipe = recipes.get("fashion-mnist-32")
    assert recipe.summary.split(";")[0] in told
    assert "(--set net.FIELD=VALUE)" in told
    assert "undiffuse train fashion-mnist --recipe fashion-mnist-32" in told
    assert call("recipes", "fashion-mnist-32", "--json") == 0
    assert json.loads(capsys.readouterr().out)["net"]["model_channels"] == 32
    assert call("recipes", "imagenet") == 2
    assert "did you mean" in capsys.readouterr().err
