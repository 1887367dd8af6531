"""`undiffuse train` and `train-classifier`: plan, run, resume, and a model that the other commands take."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.cli_runs import call, write_images, write_model
from support.training_runs import CLASSES, assert_same_run
from undiffuse import checkpoints
from undiffuse.cli.parser import build_parser
from undiffuse.cli.train import request_of
from undiffuse.cli.training_report import summary
from undiffuse.models import load_classifier, load_diffusion
from undiffuse.nets import UNetConfig
from undiffuse.pipelines.grids import quoted
from undiffuse.training import TrainPlan, plan

TINY = (
    "--size", 8, "--batch", 4, "--images", 16, "--precision", "fp32", "--device", "cpu",
    "--set", "net.model_channels=8", "--set", "net.channel_mult=1,2", "--set", "net.num_res_blocks=1",
    "--set", "net.num_head_channels=8", "--set", "process.steps=20",
)  # fmt: skip
MODEL = (*TINY, "--set", "train.preview_steps=2", "--set", "train.preview_count=3")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", each=8)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan_of(*words: Any) -> TrainPlan:
    return plan(request_of(build_parser().parse_args([str(word) for word in words])))


def test_train_writes_a_model_to_sample_from(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", images, *MODEL, "--ema", "0.5,0.9") == 0
    told = capsys.readouterr()
    assert "24 images, none held out" in told.out
    assert "3 classes: left (8), right (8), top (8)" in told.out
    assert "general-32 (chosen by the data)" in told.out
    assert "16 images in batches of 4 (4 updates" in told.out
    assert "undiffuse sample --model runs/photos/model.safetensors" in told.out
    assert "100.0%  16 images  mse" in told.err
    run = Path("runs/photos")
    for name in ("config.json", "metrics.jsonl", "loss_curve.png", "model.safetensors"):
        assert (run / name).is_file()
    assert len(list((run / "previews").glob("*.png"))) == 3  # raw and two averages
    model = load_diffusion(run / "model.safetensors")
    assert model.weights == "0.9"  # the slowest average
    assert model.manifest["recipe"] == "general-32"
    assert model.labels == tuple(CLASSES)
    assert model.image_shape == (1, 8, 8)
    assert model.digest == load_diffusion(run).digest
    assert call("sample", "--model", run / "model.safetensors", "--count", 3, "--steps", 2) == 0


def test_without_matplotlib_no_loss_curve_is_promised(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert call("train", images, *MODEL) == 0
    said = capsys.readouterr()
    assert "no loss curve will be drawn" in said.out + said.err
    named = re.findall(r"^  [a-z ]+?  +(runs/photos/\S+)", said.out[said.out.index("Complete:") :], re.MULTILINE)
    assert len(named) == 3  # the model, the checkpoint and the folder of previews
    assert all(Path(name).exists() for name in named)


def test_the_same_command_resumes(
    images: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from undiffuse.training import DiffusionTask

    words = ("train", images, *MODEL, "--seed", 3)
    assert call(*words, "--out", "whole") == 0
    terms = DiffusionTask.losses
    calls = iter(range(100))

    def interrupted(self: DiffusionTask, *arguments: Any) -> Any:
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return terms(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("undiffuse.cli.training_report.estimate", lambda *_: None)  # which calls the task too
        patch.setattr(DiffusionTask, "losses", interrupted)
        assert call(*words, "--out", "parts") == 130
    told = capfd.readouterr()
    assert told.err.count("press Ctrl-C again to quit without saving\n") == 1
    assert "stopped by SIGINT after 12 images; saved in parts. To resume: undiffuse train --res" in told.err
    assert not Path("parts/model.safetensors").exists()
    assert call(*words, "--out", "parts") == 0
    assert "resumes at 12 images" in capfd.readouterr().out
    assert_same_run(Path("whole"), Path("parts"))
    assert load_diffusion("whole/model.safetensors").digest == load_diffusion("parts/model.safetensors").digest
    capfd.readouterr()
    nothing = (
        "parts is already trained for 16 images: nothing to do. "
        "Use a larger --images to train it further, or --out to start another run\n"
    )
    for length in (16, 8):  # a shorter run has another warm-up, with which nothing is trained
        assert call(*words, "--out", "parts", "--images", length) == 0
        assert capfd.readouterr() == (nothing, "")
    Path("parts/model.safetensors").unlink()
    assert call(*words, "--out", "parts") == 0
    assert Path("parts/model.safetensors").is_file()
    capfd.readouterr()
    assert call(*words, "--out", "parts", "--seed", 4) == 2
    told = capfd.readouterr()
    assert "train.seed: 3 -> 4" in told.err
    assert told.out == ""


def test_weights_are_a_function_of_the_seed(images: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert call("train", images, *MODEL, "--seed", seed, "--out", name, "--unconditional") == 0
    a, b, c = (load_diffusion(name) for name in "abc")
    assert a.digest == b.digest != c.digest
    assert a.num_classes is None


def test_train_classifier_reports_accuracy_by_noise(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", images, *MODEL) == 0
    words = ("--batch", 4, "--images", 16, "--device", "cpu", "--ema", "0.5", "--set", "net.model_channels=8")
    small = ("--set", "net.channel_mult=1,2", "--set", "net.num_head_channels=8", "--validation", "0.25")
    assert call("train-classifier", images, "--for", "runs/photos/model.safetensors", *words, *small) == 0
    told = capsys.readouterr().out
    assert "18 images, 6 held out for validation" in told
    assert "Accuracy on 6 held-out images by noise level" in told
    assert "18..19" in told
    assert "About 1 image per row, too few to compare rows" in told
    assert "--classifier runs/photos-classifier/model.safetensors" in told
    classifier = load_classifier("runs/photos-classifier/model.safetensors")
    assert classifier.process == load_diffusion("runs/photos").process
    assert classifier.labels == tuple(CLASSES)
    guided = ("--model", "runs/photos", "--classifier", "runs/photos-classifier", "--guidance", 2)
    assert call("sample", *guided, "--count", 3, "--steps", 2) == 0


def test_clean_classifiers(images: Path) -> None:
    assert call("train-classifier", images, *TINY, "--clean", "--validation", "none", "--out", "clean") == 0
    config = json.loads(Path("clean/config.json").read_text())
    assert config["objective"]["noise"] is False
    assert call("train-classifier", images, *TINY, "--clean-fraction", "0.25", "--out", "part") == 0
    config = json.loads(Path("part/config.json").read_text())
    assert (config["objective"]["noise"], config["objective"]["clean_fraction"]) == (True, 0.25)


def test_size_channels_and_batch_follow_from_the_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = (("big", (90, 70), "RGB", 5), ("small", (28, 28), "L", 70), ("tiny", (17, 16), "L", 3))
    for name, size, mode, count in made:
        (tmp_path / name).mkdir()
        for i in range(count):
            shape = (size[1], size[0], *([3] if mode == "RGB" else []))
            Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    big, small, tiny = (plan_of("train", tmp_path / name) for name in ("big", "small", "tiny"))
    words = ["train", str(tmp_path / "big"), "--device", "cpu"]
    made = plan_of(*words, "--on-broken", "skip")
    told = summary(made, made.build_task())
    assert "in batches of 4, not 64, because there are only 5 images (" in told
    assert f"\n    undiffuse train {quoted(words[1])} --on-broken skip --recipe tiny --out runs/big-tiny\n" in told
    assert re.search(r"about 1\.\d GB in total, 50\d MB per checkpoint", told)
    made = plan_of(*words, "--batch", "4", "--images", "8")
    told = summary(made, made.build_task())
    assert "in batches of 4 (2 updates" in told
    assert "tiny" not in told
    assert (big.dataset.shape, big.recipe.name, big.recipe.train.batch) == ((64, 80, 3), "general-64", 4)
    assert (small.dataset.shape, small.recipe.name, small.recipe.train.batch) == ((32, 32, 1), "general-32", 64)
    assert small.dataset.config.fit == "pad"  # 28 -> 32 needs no enlarging
    assert big.dataset.config.fit == "crop"
    assert tiny.dataset.shape == (16, 16, 1)
    assert small.recipe.net.num_classes is None if isinstance(small.recipe.net, UNetConfig) else False
    wide = plan_of("train", tmp_path / "big", "--size", "32x64", "--channels", "1")
    assert wide.dataset.shape == (32, 64, 1)
    assert wide.recipe.net.size == (32, 64)
    odd = plan_of("train", tmp_path / "big", "--size", "20", "--set", "net.channel_mult=1,2")
    assert odd.recipe.net.size == (20, 20)


def test_options_are_short_for_fields(images: Path) -> None:
    words = ("--lr", "2e-4", "--steps", 9, "--batch", 6, "--microbatch", 2, "--timesteps", "uniform", "--flip")
    plan = plan_of("train", images, *words, "--set", "process.variance=fixed_small", "--set", "objective.loss=simple")
    train = plan.recipe.train
    assert (train.lr, train.steps, train.images, train.batch, train.microbatch) == (2e-4, 9, None, 6, 2)
    assert (train.timesteps, train.device, train.seed) == ("uniform", None, 0)
    assert train.warmup_images <= train.total_images // 10  # a short run is not over before it is warm
    assert plan.dataset.config.flip
    assert plan.recipe.net.out_channels == 1  # follows the variance, which is no longer learned
    assert plan_of("train", images, "--recipe", "smoke").recipe.net.out_channels == 2


def test_runs_are_named_after_their_data(images: Path) -> None:
    images.rename("my.photos v2")
    assert plan_of("train", "my.photos v2/").out == Path("runs/my.photos v2")
    assert plan_of("train-classifier", "my.photos v2/").out == Path("runs/my.photos v2-classifier")
    assert plan_of("train", "my.photos v2", "--out", "x/y").out == Path("x/y")


def test_validation_data(images: Path, tmp_path: Path) -> None:
    other = write_images(tmp_path / "other", each=2)
    plan = plan_of("train", images, "--validation", other, "--flip")
    assert plan.validation is not None
    assert len(plan.validation) == 6
    assert not plan.validation.config.flip
    assert plan_of("train", images).validation is None
    part = plan_of("train", images, "--validation", "0.25")
    assert part.validation is not None
    assert (len(part.dataset), len(part.validation)) == (18, 6)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "nowhere"], "there is no folder or file nowhere"),
        (["train", "empty"], "empty holds no images"),
        (["train", "photos", "--recipe", "smok"], "there is no recipe 'smok'; did you mean smoke"),
        (["train", "photos", "--recipe", "fashion-mnist-32-classifier"], "use `undiffuse train-classifier`"),
        (["train", "photos", "--batch", "100"], "24 usable images, fewer than one batch of 100"),
        (["train", "photos", "--size", "20"], "images of 20x20 do not fit a network of 4 levels"),
        (["train", "photos", "--labels", "prefix"], "no image has an underscore"),
        (["train", "photos", "--validation", "1.5"], "expected a fraction above 0 and below 1"),
        (["train", "photos", "--set", "process.variance=fixed_large"], "loss='hybrid' requires a learned variance"),
        (["train-classifier", "photos", "--labels", "none"], "a classifier needs pictures of at least two classes"),
        (["train-classifier", "photos", "--recipe", "general-32-classifier", "--labels", "none"], "has no labels"),
        (["train-classifier", "photos", "--set", "objective.loss=vlb"], "--set objective.loss: this run has no "),
        (["train", "broken"], "1 of 2 images cannot be read: bad.png"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    words: list[str], told: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "broken" / "good.png")
    (tmp_path / "broken" / "bad.png").write_bytes(b"no picture")
    assert call(*words, "--device", "cpu") == 2
    out, error = capsys.readouterr()
    assert told in error
    assert "--batch" not in words or out == ""  # no plan of what cannot be
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_a_classifier_for_a_model_of_other_classes(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model.safetensors")
    (images / "top").rename(images / "bottom")
    assert call("train-classifier", images, "--for", model) == 2
    assert "labels that are not in the class table: bottom" in capsys.readouterr().err


def test_divergence_is_told_and_no_model_is_written(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--lr", "1e30", "--set", "train.max_bad_updates=2", "--set", "train.grad_clip=none", "--images", 200)
    assert call("train", images, *MODEL, *words, "--set", "train.warmup_images=0") == 1
    told = capsys.readouterr()
    assert "updates in a row had a loss or gradient that is not finite" in told.err
    assert "Traceback" not in told.err
    assert not Path("runs/photos/model.safetensors").exists()
    assert checkpoints.latest("runs/photos") is None


def test_a_run_is_resumed_by_its_folder(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steady = ("--set", "train.lr_decay=none", "--set", "train.warmup_images=0", "--flip", "--ema", "0.5,0.9")
    words = ("train", "photos", *MODEL, *steady, "--seed", 3, "--validation", "0.25", "--width", 8)
    assert call(*words, "--out", "whole") == 0
    assert call(*words, "--out", "parts", "--images", 8) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    assert call("train", "--resume", "../parts", "--images", 16) == 0
    told = capsys.readouterr()
    assert "resumes at 8 images" in told.out
    assert "note: " not in told.err  # no setting has changed
    whole, parts = (checkpoints.read(checkpoints.latest(tmp_path / name)) for name in ("whole", "parts"))  # type: ignore[arg-type]
    assert all(torch.equal(whole[0][name], parts[0][name]) for name in whole[0] | parts[0])
    assert whole[1]["train"] == parts[1]["train"]
    for wrong, message in (
        (
            ["train-classifier", "--resume", "../parts"],
            "--resume: ../parts is a run of a diffusion model; use undiffuse train --resume ../parts",
        ),
        (
            ["train", "--resume", "../parts", "--out", "x"],
            "--out cannot be combined with --resume, which names the run folder",
        ),
        (["train", "--resume", "nowhere"], "--resume: nowhere has no run.json: it is no run"),
        (
            ["train", "../parts"],
            "../parts is a training run, not a data set; to resume it: undiffuse train --resume ../parts",
        ),
        (["train", "../photos", "--log", "mlflow"], "--log: there is no logger 'mlflow'"),
        (["train", "../photos", "--width", "0"], "argument --width: '0': expected a whole number of at least 1"),
        (["train", "../photos", "--init-from", "fashion-mnist-32", "--width", "8"], "--width: the network is that of"),
    ):
        assert call(*wrong) == 2
        assert message in capsys.readouterr().err
