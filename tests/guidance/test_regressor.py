"""Regressors of noisy images: their log probability, their gradient, and guidance towards numbers end to end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from support.cli_runs import call, one_thread
from undiffuse.denoiser import ProcessConfig
from undiffuse.guidance import ClassifierGuidance, LevelRegressor
from undiffuse.guidance.regressor import gaussian_log_prob
from undiffuse.models import ClassifierModel, load_classifier, load_diffusion
from undiffuse.noise_levels import Level
from undiffuse.pictures import read_record
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.record import regenerate
from undiffuse.prediction import Prediction
from undiffuse.training.face import TrainResult, train
from undiffuse.util.errors import ConfigError

RNG = np.random.default_rng(0)
SHADES = RNG.uniform(40, 215, 64)
IMAGES = np.clip(SHADES[:, None, None] + RNG.normal(0, 8, (64, 8, 8)), 0, 255).astype(np.uint8)
SMALL: dict[str, Any] = {
    "size": 8, "width": 16, "batch": 16, "device": "cpu", "progress": False, "ema_decays": (0.9,), "lr": 3e-3,
    "warmup_images": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    with one_thread():
        yield


def regressor(**changes: Any) -> TrainResult:
    how = {**SMALL, "kind": "classifier", "condition": {"numbers": {"shade": SHADES}}, "images": 16, **changes}
    return train(IMAGES, recipe="general-32-classifier", out=how.pop("out", "regressor"), validation=0.25, **how)


class Linear(torch.nn.Module):
    """Predicts the sum of an image's pixels, with a variance of exp(0.5)."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        total = x.flatten(1).sum(dim=1, keepdim=True)
        return torch.cat([total, torch.full_like(total, 0.5)], dim=1)


def test_the_log_probability_is_gaussian() -> None:
    outputs = torch.tensor([[0.3, -1.0, 0.7, -0.4]])  # means .3 and -1, log variances .7 and -.4
    numbers = torch.tensor([[1.0, 2.0]])
    normal = torch.distributions.Normal(torch.tensor([0.3, -1.0]), torch.tensor([0.7, -0.4]).exp().sqrt())
    expected = normal.log_prob(numbers[0]).sum() + math.log(2 * math.pi)  # without its constant
    torch.testing.assert_close(gaussian_log_prob(outputs, numbers)[0], expected)
    unknown = gaussian_log_prob(outputs, torch.tensor([[1.0, math.nan]]))
    torch.testing.assert_close(unknown[0], normal.log_prob(numbers[0])[0] + 0.5 * math.log(2 * math.pi))


def test_the_gradient_is_exact() -> None:
    judge = LevelRegressor(Linear(), ProcessConfig(), temperature=2.0)
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[1.0], [math.nan], [-2.0]])
    level = Level(torch.tensor(0.8), torch.tensor(0.6))
    error = torch.nan_to_num(y[:, 0]) - x.flatten(1).sum(dim=1)
    expected = (error * math.exp(-0.5) / 2).reshape(3, 1, 1, 1).expand_as(x).clone()
    expected[1] = 0
    torch.testing.assert_close(judge.gradient(x, level, y), expected)
    with pytest.raises(ValueError, match=r"expected 1 numbers for each of the 3 images; got shape \[3\]"):
        judge.log_prob(x, level, torch.zeros(3))


def test_guidance_moves_the_image_towards_the_number() -> None:
    level = Level(torch.tensor(0.8), torch.tensor(0.6))
    x = torch.zeros(1, 1, 2, 2)

    class Plain:
        chain = ProcessConfig().chain()

        def __call__(self, x: Tensor, level: Level, cond: Any = None) -> Prediction:
            return Prediction(x=x, level=level, kind="x0", value=torch.zeros_like(x))

    guided = ClassifierGuidance(Plain(), LevelRegressor(Linear(), ProcessConfig()), 1.0, condition="target_0")
    gradient = guided.gradient(x, level, {"target_0": torch.tensor([[4.0]])})
    assert bool((gradient > 0).all())
    assert bool((guided.gradient(x, level, {"target_0": torch.tensor([[-4.0]])}) < 0).all())


def test_a_regressor_is_trained_saved_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    result = regressor(images=1600)
    model = load_classifier("regressor/model.safetensors")
    assert isinstance(model, ClassifierModel)
    assert model.numbers is not None
    assert model.numbers.names == ("shade",)
    assert (model.num_classes, model.labels) == (None, None)
    assert model.manifest["objective"]["loss"] == "gaussian"
    judge = model.level_classifier()
    assert isinstance(judge, LevelRegressor)
    clean = torch.from_numpy(IMAGES[:, None].astype(np.float32) / 127.5 - 1)
    outputs = judge(clean, judge.chain.level(torch.zeros(64, dtype=torch.int64)))
    predicted = model.numbers.restored(outputs[:, :1])[:, 0].numpy()
    assert np.corrcoef(predicted, SHADES)[0, 1] > 0.8
    last = [record for record in result.records if record["kind"] == "validation"][-1]
    assert last["by_tenth"]["mse"][0] < 0.5 < last["by_tenth"]["mse"][-1] * 2  # noise hides the number
    assert call("inspect", "regressor") == 0
    assert "shade" in capsys.readouterr().out


@pytest.mark.slow
def test_samples_obey_the_number_and_can_be_made_again() -> None:
    regressor(images=3200)
    train(IMAGES, recipe="tiny", out="model", **{**SMALL, "images": 3200})
    settings: dict[str, Any] = {"solver": "ddim", "steps": "20", "device": "cpu"}
    plain = Pipeline.from_pretrained("model", **settings).sample(12, seed=1, progress=False)
    guided = Pipeline.from_pretrained("model", classifier="regressor", guidance=3.0, **settings)
    means = {
        shade: guided.sample(12, seed=1, condition=f"shade={shade}", progress=False).images.mean()
        for shade in (60, 190)
    }
    assert means[60] < plain.images.mean() - 5
    assert means[190] > plain.images.mean() + 5
    samples = guided.sample(2, seed=1, condition={"shade": [60, 190]}, progress=False)
    samples.save("out")
    files = sorted(Path("out").glob("*seed1*.png"))
    records = [read_record(file) for file in files]
    assert [record["condition"] for record in records] == [{"numbers": {"shade": 60.0}}, {"numbers": {"shade": 190.0}}]
    again = regenerate(files[1], model="model", classifier=("regressor",))
    assert (again.image == samples.images[1]).all()


def test_what_is_missing_or_unknown_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    regressor()
    train(IMAGES, recipe="tiny", out="model", **{**SMALL, "images": 16})
    guided = Pipeline.from_pretrained("model", classifier="regressor", guidance=1.0, steps="2", device="cpu")
    with pytest.raises(
        ConfigError, match="^condition is missing: the regressor guides towards numbers, so give shade=V"
    ):
        guided.sample(1, progress=False)
    with pytest.raises(ConfigError, match="takes no condition 'shape'; did you mean shade"):
        guided.sample(1, condition="shape=3", progress=False)
    words = ["sample", "model", "--classifier", "regressor", "--guidance", "1", "--steps", "2", "--count", "1"]
    assert call(*words, "--out", "a") == 2
    assert "--condition" in capsys.readouterr().err
    assert call(*words, "--condition", "shade=500", "--out", "b") == 0
    assert "shade = 500 is outside the range of the training images" in capsys.readouterr().out


def test_editing_takes_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    regressor()
    train(IMAGES, recipe="tiny", out="model", **{**SMALL, "images": 16})
    Image.fromarray(IMAGES[0]).save("a.png")
    words = ["--model", "model", "--classifier", "regressor", "--guidance", "1", "--out", "out", "--steps", "2"]
    assert call("vary", "a.png", *words) == 2
    assert "--classifier: guides towards numbers (shade)" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ({"image": IMAGES}, "^condition: a classifier predicts classes or numbers, not image"),
        ({"numbers": {"same": np.ones(64)}}, "is 1 for every image"),
    ],
)
def test_what_cannot_be_predicted_is_refused(condition: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        regressor(condition=condition)


def test_a_run_of_a_classifier_that_began_before_regressors_is_the_same() -> None:
    model = load_classifier("fashion-mnist-32-classifier")
    assert "regression" not in model.net.config.to_dict()
    assert model.numbers is None
    assert load_diffusion("fashion-mnist-32").conditions.numbers is None


def test_on_the_command_line_from_a_folder_and_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    rows = ["file,shade"]
    for k in range(24):
        Image.fromarray(IMAGES[k]).save(f"photos/{k:02}.png")
        rows.append(f"{k:02}.png,{SHADES[k]:.1f}")
    Path("table.csv").write_text("\n".join(rows) + "\n")
    train(IMAGES, recipe="tiny", out="model", **{**SMALL, "images": 16})
    given = ("--labels", "table.csv", "--condition", "numbers:shade", "--for", "model")
    assert call("train-classifier", "photos", *given, "--images", 16, "--batch", 4, "--width", 16, "--out", "run") == 0
    out = capsys.readouterr().out
    assert "regressor of numbers shade" in " ".join(out.split())
    assert "Explained variance of the numbers" in out
    command = next(line for line in out.splitlines() if "--classifier" in line).split()
    assert call(*command[1:], "--count", 1, "--steps", 2, "--out", "samples") == 0
