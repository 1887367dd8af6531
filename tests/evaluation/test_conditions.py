"""Evaluating conditional models: conditions drawn from the reference, and metrics that show whether they are obeyed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.cli_runs import call, one_thread
from undiffuse.conditions import ImageCondition, ModelConditions, NumberCondition
from undiffuse.config import SamplerConfig
from undiffuse.denoiser import ProcessConfig
from undiffuse.evaluation import evaluate
from undiffuse.evaluation.conditions import Obedience, conditions_of_data
from undiffuse.metrics.adherence import brightness, contrast, edge_agreement, edge_maps, number_adherence
from undiffuse.models import DiffusionModel, save_model
from undiffuse.nets import UNetConfig
from undiffuse.pipelines import Pipeline
from undiffuse.training import seeded
from undiffuse.util.errors import ConfigError

BRIGHT = NumberCondition.of(("brightness",), np.array([[0.0], [255.0]]))


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    with one_thread():
        yield


class Obedient(torch.nn.Module):
    """A perfect model: predicts a plain image of the brightness that it is given, or the picture, as x0."""

    conditions = frozenset({"numbers", "cond_image"})

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.spec_of, self.weight = size, torch.nn.Parameter(torch.zeros(1))
        self.config = {"image_size": size, "in_channels": 1, "out_channels": 1, "num_numbers": 1, "cond_channels": 1}

    def forward(self, x: torch.Tensor, t: torch.Tensor, numbers: Any = None, cond_image: Any = None) -> torch.Tensor:
        if cond_image is not None:
            return cond_image + 0 * x
        level = numbers[:, 0] * 127.5 + 127.5  # the numbers are normalised by mean and std 127.5
        return (level / 127.5 - 1).reshape(-1, 1, 1, 1).expand_as(x) + 0 * x


def obedient(conditions: ModelConditions) -> Pipeline:
    process = ProcessConfig(schedule="cosine", steps=20, target="x0", variance="fixed_small")
    manifest = {"objective": {"label_dropout": 0.1}, "conditions": conditions.to_dict()}
    made = DiffusionModel(net=Obedient(), process=process, manifest=manifest)
    return Pipeline.load(SamplerConfig(solver="ddim", steps="3"), "cpu", model=made)


def reference(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    levels = np.linspace(10, 240, count)
    images = np.repeat(levels, 1024).reshape(count, 32, 32, 1).round().astype(np.uint8)
    return images, levels


def test_an_obedient_model_has_no_error() -> None:
    images, levels = reference()
    pipe = obedient(ModelConditions(numbers=BRIGHT))
    report = evaluate(
        pipe,
        images,
        "fashion",
        ["fd"],
        count=12,
        condition={"numbers": {"brightness": levels}},
        progress=False,
    )
    error, correlation = report.get("brightness error"), report.get("brightness correlation")
    assert error is not None
    assert correlation is not None
    assert error.value < 0.6, "rounding to 8 bits"
    assert correlation.value == pytest.approx(1, abs=1e-4)
    assert error.n == 12
    shifted = evaluate(
        pipe, images, "fashion", ["fd"], count=12, condition={"numbers": {"brightness": levels}},
        measures={"brightness": lambda pixels: pixels.reshape(len(pixels), -1).mean(1) + 20}, progress=False,
    )  # fmt: skip
    wrong = shifted.get("brightness error")
    assert wrong is not None
    assert wrong.value == pytest.approx(20, abs=0.6)


def test_conditions_come_from_the_table_of_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    images, levels = reference(6)
    Path("data").mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(f"data/{k}.png")
    Path("data/labels.csv").write_text("file,brightness\n" + "".join(f"{k}.png,{v}\n" for k, v in enumerate(levels)))
    pipe = obedient(ModelConditions(numbers=BRIGHT))
    given = conditions_of_data(pipe.model, "data", count=3)
    assert given is not None
    assert given.numbers is not None
    assert given.numbers[:, 0].tolist() == pytest.approx(levels[[0, 2, 4]].tolist(), abs=1e-3)
    with seeded(0):
        net = UNetConfig(
            image_size=32, in_channels=1, out_channels=1, model_channels=8, channel_mult=(1, 1), num_res_blocks=1,
            attention_resolutions=(), num_numbers=1,
        ).build()  # fmt: skip
    manifest = {"objective": {"label_dropout": 0.1}, "conditions": ModelConditions(numbers=BRIGHT).to_dict()}
    process = ProcessConfig(schedule="cosine", steps=20, variance="fixed_small")
    save_model("m.safetensors", DiffusionModel(net=net, process=process, manifest=manifest))
    words = ("--extractor", "fashion", "--metrics", "fd", "--count", 6, "--steps", 2, "--device", "cpu")
    assert call("evaluate", "m.safetensors", "data", *words) == 0
    assert "brightness error" in capsys.readouterr().out
    assert call("evaluate", "m.safetensors", "data", *words, "--condition", "numbers:width", "--overwrite") != 0
    assert "has no column 'width'" in capsys.readouterr().err


def test_edges_of_samples_are_compared_with_those_given() -> None:
    shapes = np.zeros((4, 32, 32), np.uint8)
    for k in range(4):
        shapes[k, :, k + 2 :] = 255
    edges = edge_maps(shapes).astype(np.uint8) * 255
    pipe = obedient(ModelConditions(image=ImageCondition(channels=1)))
    given = conditions_of_data(pipe.model, shapes, {"image": edges}, count=4)
    assert given is not None
    obedience = Obedience(given, edges=True)
    obedience.see(range(4), shapes[..., None])
    assert obedience.estimates()[0].value == pytest.approx(1)
    other = Obedience(given, edges=True)
    other.see(range(4), np.zeros((4, 32, 32, 1), np.uint8))
    assert other.estimates()[0].value == 0
    assert given.picture_names[2] == "image[2]"


def test_what_the_reference_lacks_is_refused() -> None:
    images, levels = reference(4)
    pipe = obedient(ModelConditions(numbers=BRIGHT, image=ImageCondition(channels=1)))
    with pytest.raises(ConfigError, match="condition is missing: the model is conditioned on numbers brightness"):
        conditions_of_data(pipe.model, images, count=4)
    with pytest.raises(ConfigError, match="does not give a picture .image, 1 channels"):
        conditions_of_data(pipe.model, images, {"numbers": {"brightness": levels}}, count=4)
    plain = DiffusionModel(net=Obedient(), process=pipe.model.process)
    with pytest.raises(ConfigError, match="has no conditions besides the class"):
        conditions_of_data(plain, images, "numbers:brightness", count=4)


def test_adherence_is_exact_where_it_is_known() -> None:
    given = np.array([1.0, 2, 3, 4])
    exact = number_adherence(given, given)
    assert (exact.error, exact.correlation, exact.slope) == (0, pytest.approx(1), pytest.approx(1))
    half = number_adherence(given, given / 2 + 1)
    assert half.slope == pytest.approx(0.5)
    assert half.error == pytest.approx(np.abs(given / 2 - 1).mean())
    pairs = [abs(a - b) for i, a in enumerate(given) for j, b in enumerate(given) if i != j]
    assert exact.spread == pytest.approx(np.mean(pairs))
    with pytest.raises(ValueError, match="two lists of at least 2"):
        number_adherence(given, given[:2])
    grey = np.full((2, 4, 4, 3), 100, np.uint8)
    assert brightness(grey).tolist() == [100, 100]
    assert contrast(grey).tolist() == [0, 0]


def test_edges_are_found_and_agree_within_a_pixel() -> None:
    step = np.zeros((1, 8, 8), np.uint8)
    step[:, :, 4:] = 255
    found = edge_maps(step)
    assert found[0, 4].tolist() == [False, False, False, True, True, False, False, False]
    assert not edge_maps(np.full((1, 8, 8), 90, np.uint8)).any()
    assert not edge_maps((step // 6).astype(np.uint8)).any(), "a faint step is no edge"
    moved = np.roll(found, 1, axis=2)
    far = np.roll(found, 3, axis=2)
    assert edge_agreement(found, found, 0).tolist() == [1]
    assert edge_agreement(found, moved).tolist() == [1]
    assert edge_agreement(found, far).tolist()[0] < 0.5
    none = np.zeros_like(found)
    assert edge_agreement(none, none).tolist() == [1]
    assert edge_agreement(found, none).tolist() == [0]
