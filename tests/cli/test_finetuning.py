"""`train --init-from`: a model's weights, network and process for one's own pictures."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from support.cli_runs import call, one_thread, write_classifier, write_images, write_model, write_upsampler
from undiffuse import checkpoints, recipes
from undiffuse.adapters import openai_flags
from undiffuse.cli.parser import build_parser
from undiffuse.cli.train import request_of
from undiffuse.models import load_classifier, load_diffusion
from undiffuse.training import TrainPlan, finetune, plan
from undiffuse.training.tasks import Inputs

FEW = (
    "--batch", 4, "--images", 16, "--precision", "fp32", "--device", "cpu", "--ema", "0.5",
    "--set", "train.preview_steps=2", "--set", "train.preview_count=3",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    with one_thread():
        yield


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes, of which the model knows two."""
    folder = write_images(tmp_path / "photos", each=8)
    (folder / "top").rename(folder / "bottom")
    return folder


def plan_of(*words: Any) -> TrainPlan:
    return plan(request_of(build_parser().parse_args([str(word) for word in words])))


def begun(*words: Any) -> tuple[TrainPlan, Any]:
    """A plan and its task, with the weights it begins with."""
    made = plan_of(*words)
    task = made.build_task()
    if made.init is not None:
        made.init.begin(task.net, task.process, made.labels)
    return made, task


def test_train_begins_with_a_model_and_says_what_became_of_it(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = load_diffusion(write_model(Path("given.safetensors")))
    assert call("train", images, "--init-from", "given.safetensors", *FEW, "--set", "net.dropout=0.3") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "starts from given.safetensors, weights net: " in told
    assert "tensors unchanged adapted: class table: 2 of 3 classes by name (left, right)" in told
    assert "new: class table: bottom begins as the average class" in told
    assert "general-32 (chosen by the data; its network and process are the model's)" in told
    assert "20 cosine steps" in told
    run = Path("runs/photos-from-given")
    init = json.loads((run / "config.json").read_text())["init"]
    assert (init["from"], init["source"], init["weights"]) == ("given.safetensors", "given.safetensors", "net")
    assert init["sha256"] == source.digest
    assert init["fresh"] == ["class table: bottom begins as the average class"]
    assert checkpoints.read_manifest(checkpoints.latest(run))["init"] == init  # type: ignore[arg-type]
    model = load_diffusion(run / "model.safetensors")
    assert (model.net.config.dropout, model.labels) == (0.3, ("bottom", "left", "right"))
    assert model.process == source.process
    assert model.manifest["init"] == {key: value for key, value in init.items() if key != "from"}
    assert call("inspect", run / "model.safetensors") == 0
    assert "started from given.safetensors" in " ".join(capsys.readouterr().out.split())
    assert call("sample", "--model", run, "--count", 3, "--steps", 2, "--class", "bottom") == 0


def test_the_run_goes_on_without_the_model(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit as if it had not been stopped, although the model's file is gone."""
    write_model(Path("given.safetensors"))
    steady = ("--set", "train.lr_decay=none", "--set", "train.warmup_images=0")
    words = ("train", images, "--init-from", "given.safetensors", *FEW, *steady)
    assert call(*words, "--out", "whole") == 0
    assert call(*words, "--out", "parts", "--images", 8) == 0
    Path("given.safetensors").unlink()
    capsys.readouterr()
    assert call("train", "--resume", "parts", "--images", 16) == 0
    told = capsys.readouterr().out
    assert "resumes at 8 images" in told
    assert "starts from" not in told
    whole, parts = (checkpoints.read(checkpoints.latest(run))[0] for run in ("whole", "parts"))  # type: ignore[arg-type]
    assert all(torch.equal(whole[name], parts[name]) for name in whole | parts)
    configs = [json.loads(Path(run, "config.json").read_text())["init"] for run in ("whole", "parts")]
    assert configs[0] == configs[1]
    write_model(Path("other.safetensors"), seed=1)
    for begin, expected in ((["--init-from", "other.safetensors"], "'other.safetensors'"), ([], "None")):
        assert call("train", images, *begin, *FEW, *steady, "--images", 24, "--out", "parts") == 2
        assert f"init: 'given.safetensors' -> {expected}" in capsys.readouterr().err


@pytest.mark.parametrize("colour", [False, True])
def test_the_shipped_model_is_a_far_better_start_than_none(tmp_path: Path, colour: bool) -> None:
    """On grey shapes it errs by less than a quarter of what a fresh network does. From grey to RGB it can do no better
    than 2/3 at first: what it knows of is the mean of three independent noises."""
    for name, box in (("Bag", (6, 10, 22, 24)), ("Dress", (10, 2, 18, 26)), ("Kite", (8, 8, 20, 20))):
        folder = tmp_path / "things" / name
        folder.mkdir(parents=True)
        for k in range(4):
            image = Image.new("RGB", (28, 28))
            image.paste((200, 160 + 20 * k, 90) if colour else (200, 200, 200), tuple(v + k - 2 for v in box))
            (image if colour else image.convert("L")).save(folder / f"{k}.png")
    words = ("train", "things", "--precision", "fp32", "--device", "cpu")
    plan, task = begun(*words, "--init-from", "fashion-mnist-32")
    assert plan.dataset.shape == (32, 32, 3 if colour else 1)  # colours are kept, the model made to fit
    assert task.labels == ("Bag", "Dress", "Kite")
    assert len(plan.dataset) == 12
    losses = []
    _, fresh = begun(*words, "--size", 32, "--recipe", "fashion-mnist-32", "--channels", 3 if colour else 1)
    for one in (task, fresh):
        losses.append(float(start_loss(one, plan)))
    assert losses[1] == pytest.approx(1, abs=0.05)
    assert losses[0] < (0.9 if colour else 0.25)


def start_loss(task: Any, plan: TrainPlan) -> torch.Tensor:
    """The mean squared error over all pictures, at noise levels spread over the chain."""
    from undiffuse.data import batches
    from undiffuse.pixels import from_uint8

    count = len(plan.dataset)
    batch = next(batches(plan.dataset, 0, count, 0, 1, 0))
    inputs = Inputs(
        x0=from_uint8(batch.images, torch.device("cpu")),
        labels=torch.as_tensor(batch.labels),
        t=torch.linspace(0, task.process.steps - 1, count).long(),
        weights=torch.ones(count),
        positions=torch.arange(count),
        seed=0,
    )
    task.net.eval()
    with torch.no_grad():
        return task.losses(task.net, inputs)["mse"].mean()


def test_size_and_channels(images: Path, tmp_path: Path) -> None:
    write_model(Path("given.safetensors"))
    begin = ("--init-from", "given.safetensors")
    assert plan_of("train", images, *begin).dataset.shape == (8, 8, 1)  # the model's
    plan, task = begun("train", images, *begin, "--size", "16x12", "--channels", 4)
    assert plan.dataset.shape == (16, 12, 4)
    assert (task.net.config.in_channels, task.net.config.out_channels) == (4, 8)
    (tmp_path / "colour").mkdir()
    Image.new("RGB", (8, 8), (9, 99, 0)).save(tmp_path / "colour" / "a.png")
    plan, task = begun("train", "colour", *begin)
    assert plan.dataset.shape == (8, 8, 3)
    assert task.labels_count is None
    assert "label_emb.weight" not in task.net.state_dict()


def test_classifiers_begin_with_classifiers(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(Path("given.safetensors"))
    write_classifier(Path("judge.safetensors"))
    words = ("train-classifier", images, "--init-from", "judge.safetensors", "--validation", "none")
    assert call(*words, *FEW[:-4]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "adapted: last layer: 2 of 3 classes by name (left, right)" in told
    assert load_classifier("runs/photos-from-judge").labels == ("bottom", "left", "right")
    # For another model: its classes, noise levels and size; the classifier's network.
    (images / "bottom").rename(images / "top")
    _, task = begun(*words, "--for", "given.safetensors", "--out", "guide")
    assert task.process == load_diffusion("given.safetensors").process
    assert torch.equal(task.net.out[3].bias, load_classifier("judge.safetensors").net.out[3].bias)


def test_upsamplers_enlarge_by_their_factor(tmp_path: Path) -> None:
    write_upsampler(Path("upsampler.safetensors"))
    Image.new("L", (32, 32)).save("a.png")
    Path("pictures").mkdir()
    shutil.move("a.png", "pictures")
    plan, task = begun("train", "pictures", "--init-from", "upsampler.safetensors", "--size", "32x16", "--channels", 3)
    assert task.low_size == (16, 8)
    assert task.net.input_blocks[0][0].weight.shape[1] == 6
    assert plan.recipe.objective is not None
    assert plan.recipe.objective.loss == "simple"


def test_a_recipe_gives_its_training(images: Path) -> None:
    write_model(Path("given.safetensors"))
    words = ("train", images, "--init-from", "given.safetensors", "--recipe", "improved-cifar10-32")
    plan = plan_of(*words)
    assert plan.recipe.train == replace(recipes.get("improved-cifar10-32").train, log_every=2560, device=None)
    assert plan.recipe.net.model_channels == 8
    assert plan.recipe.process.steps == 20


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--init-from", "nothing"], "nothing"),
        (["--init-from", "judge.safetensors"], "judge.safetensors is a classifier; a diffusion model is needed here"),
        (["--init-from", "given.safetensors", "--set", "net.model_channels=16"],
         "only net.dropout, net.use_checkpoint, net.null_class can be changed"),
        (["--init-from", "given.safetensors", "--size", "9"], "images of 9x9 do not fit a network of 2 levels"),
        (["--init-from", "given.safetensors", "--set", "process.variance=fixed_large"],
            "loss='hybrid' requires a learned variance"),
        (["--init-from", "ddpm.safetensors"], "leave the labels out (--unconditional)"),
        (["--init-from", "ddpm.safetensors", "--unconditional", "--set", "process.variance=learned_range"],
         "predicts an image and no variance"),
        (["--init-from", "given.safetensors", "--set", "net.colour=red"], "net has no field 'colour'"),
    ],
)  # fmt: skip
def test_impossible_changes(words: list[str], told: str, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(Path("given.safetensors"))
    write_classifier(Path("judge.safetensors"))
    write_ddpm(Path("ddpm.safetensors"))
    assert call("train", images, *words, "--device", "cpu") == 2
    out, error = capsys.readouterr()
    assert told in error
    assert "Traceback" not in error
    assert not Path("runs").exists()


def write_ddpm(path: Path) -> Path:
    from undiffuse.denoiser import ProcessConfig
    from undiffuse.models import DiffusionModel, save_model
    from undiffuse.nets import DDPMConfig

    net = DDPMConfig(image_size=8, in_channels=1, out_channels=1, model_channels=8, channel_mult=(1, 2)).build()
    save_model(
        path, DiffusionModel(net=net, process=ProcessConfig(schedule="cosine", steps=20, variance="fixed_large"))
    )
    return path


def test_ddpm_networks_go_on(images: Path) -> None:
    write_ddpm(Path("ddpm.safetensors"))
    _, task = begun("train", images, "--init-from", "ddpm.safetensors", "--unconditional", "--channels", 3)
    assert task.net.config.in_channels == 3
    assert task.objective.loss == "simple"


def test_files_of_others_too(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of the original code, with the flags that their shapes do not tell."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    flags = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1, "class_cond": True, "learn_sigma": True}
    net = openai_flags.unet_config(flags).build()
    torch.save(net.state_dict(), "weights.pt")
    said = " ".join(f"--{name} {value}" for name, value in flags.items())
    words = ("train", images, "--init-from", f"weights.pt@guided-diffusion {said}", "--size", 32)
    plan, task = begun(*words)
    assert torch.equal(task.net.out[0].weight, net.out[0].weight)
    assert plan.out == Path("runs/photos-from-weights")
    assert plan.init is not None
    assert plan.init.init is not None
    assert plan.init.init["source"] == "weights.pt"
    assert plan.init.init["fresh"] == ["class table: bottom, left, right begin as the average class"]
    assert plan.dataset.shape == (32, 32, 3)  # grey pictures as RGB, which the model knows


@pytest.mark.parametrize(
    ("data", "model", "expected"),
    [
        ("photos", "256x256_diffusion", "photos-from-256x256_diffusion"),
        ("fashion-mnist:test", "fashion-mnist-32", "fashion-mnist-from-fashion-mnist-32"),
        ("some.zip", "weights/64x64_diffusion.pt", "some-from-64x64_diffusion"),
        ("photos", "runs/cats", "photos-from-cats"),
        ("photos", "runs/cats/model.safetensors", "photos-from-cats"),
        ("photos", "runs/cats/checkpoints/0000000016.safetensors", "photos-from-cats"),
    ],
)
def test_the_runs_name(data: str, model: str, expected: str) -> None:
    Path("photos").mkdir()
    Path("some.zip").touch()
    Path("weights").mkdir()
    Path("runs/cats/checkpoints").mkdir(parents=True)
    for file in ("weights/64x64_diffusion.pt", "runs/cats/model.safetensors"):
        Path(file).touch()
    Path("runs/cats/checkpoints/0000000016.safetensors").touch()
    assert finetune.default_folder(data, model) == Path("runs") / expected
