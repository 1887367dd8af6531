"""A loss, density, optimizer and schedule of one's own: they act, are recorded, and resume exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.optim import lr_scheduler

from support.training_runs import Processes, Recorder, assert_same_run, tiny_config, tiny_data, tiny_task, told
from support.variants import few
from undiffuse import checkpoints
from undiffuse.denoiser import ProcessConfig
from undiffuse.noise_levels import diffuse
from undiffuse.objectives import ObjectiveConfig
from undiffuse.training import Custom, DiffusionTask, learning_rate, train
from undiffuse.training.custom import qualified_name
from undiffuse.training.density import placement
from undiffuse.util.errors import ConfigError


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def adagrad(params: Any) -> torch.optim.Optimizer:
    params = list(params)
    groups = [{"params": params[:5], "lr": 0.01}, {"params": params[5:], "lr": 0.02, "weight_decay": 0.1}]
    return torch.optim.Adagrad(groups)


def radam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.RAdam(params, lr=1e-3, betas=(0.8, 0.9))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {"sgd": sgd, "adagrad": adagrad, "radam": radam}
SCHEDULES: dict[str, Callable[[Any], lr_scheduler.LRScheduler]] = {
    "cosine": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 8),
    "lambda": lambda opt: lr_scheduler.LambdaLR(opt, lambda n: 1 / (1 + n)),
    "steps": lambda opt: lr_scheduler.MultiStepLR(opt, [2, 5], 0.1),
    "one cycle": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=9),
    "sequence": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.ConstantLR(opt, 0.5, 2), lr_scheduler.MultiStepLR(opt, [1, 3], 0.5)], [3]
    ),
}


def trained(folder: Path, custom: Custom | None, **changes: Any) -> Recorder:
    recorder = Recorder()
    train(tiny_task(), tiny_data(), tiny_config(**changes), folder, [recorder], custom=custom)
    return recorder


@pytest.mark.parametrize("name", [*few(OPTIMIZERS, count=2), *few(SCHEDULES, count=2)])
def test_own_optimizers_and_schedules_resume_bit_for_bit(name: str, tmp_path: Path) -> None:
    custom = Custom(optimizer=OPTIMIZERS[name]) if name in OPTIMIZERS else Custom(lr_schedule=SCHEDULES[name])
    if name == "one cycle":
        custom = Custom(optimizer=sgd, lr_schedule=SCHEDULES[name])
    trained(tmp_path / "whole", custom)
    for images in (8, 20, 32):
        trained(tmp_path / "parts", custom, images=images, log_every=8)
    assert_same_run_but_the_ends(tmp_path / "whole", tmp_path / "parts")


def assert_same_run_but_the_ends(a: Path, b: Path) -> None:
    """As `assert_same_run`, but a run that ended early has records at its ends that the whole one lacks."""
    tensors_a, manifest_a = checkpoints.read(checkpoints.checkpoints(a)[-1])
    tensors_b, manifest_b = checkpoints.read(checkpoints.checkpoints(b)[-1])
    assert set(tensors_a) == set(tensors_b)
    assert all(torch.equal(tensors_a[key], tensors_b[key]) for key in tensors_a)
    for key in ("optimizer", "lr_schedule"):
        assert manifest_a["progress"].get(key) == manifest_b["progress"].get(key)
    assert told(a)[-1]["lr"] == told(b)[-1]["lr"]


def test_own_optimizers_keep_their_rates_times_warm_up_and_decay(tmp_path: Path) -> None:
    settings = {"warmup_images": 16, "lr_decay": "linear", "log_every": 4}
    recorder = trained(tmp_path / "a", Custom(optimizer=sgd), **settings)
    config = tiny_config(**settings)
    rates = [record.values["lr"] for record in recorder.of("train")]
    assert rates == pytest.approx([0.05 / config.lr * learning_rate(config, 4 * k) for k in range(8)])
    recorder = trained(tmp_path / "b", Custom(lr_schedule=SCHEDULES["lambda"]), log_every=4)
    assert [record.values["lr"] for record in recorder.of("train")] == pytest.approx([1e-2 / (1 + k) for k in range(8)])


def test_another_part_is_refused_on_resuming(tmp_path: Path) -> None:
    trained(tmp_path, Custom(optimizer=sgd), images=8)
    manifest = checkpoints.read_manifest(checkpoints.checkpoints(tmp_path)[-1])
    assert manifest["custom"] == {"optimizer": f"{__name__}.sgd"}
    for other in (None, Custom(optimizer=radam), Custom(optimizer=sgd, density=lambda u: 4 * u)):
        with pytest.raises(ValueError, match=r"custom\.(optimizer: '[a-z_.]+\.sgd' -> |density: None -> )"):
            trained(tmp_path, other)
    trained(tmp_path, Custom(optimizer=sgd))


@pytest.mark.parametrize(
    ("custom", "message"),
    [
        (Custom(optimizer=lambda params: None), "^optimizer: .*returned a NoneType; expected a torch optimizer"),
        (Custom(optimizer=lambda params: torch.optim.SGD([torch.zeros(1)], 1)), "^optimizer: it holds parameters"),
        (Custom(lr_schedule=lambda opt: lr_scheduler.ReduceLROnPlateau(opt)), "^lr_schedule: .*ReduceLROnPlateau"),
        (Custom(density=lambda u: u[:1]), r"^density: for u of shape \[3\] it returned shape \[1\]"),
        (Custom(density=lambda u: np.log(u - 0.5)), "^density: .*of which 1 are finite"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_parts_that_cannot_be_used_are_refused(custom: Custom, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        trained(tmp_path, custom)


def test_an_own_density_places_the_noise_levels(tmp_path: Path) -> None:
    process = ProcessConfig(schedule="cosine", steps=1000)
    u = np.linspace(0.05, 0.95, 50)
    usual = placement(process, "lognormal:-1,0.5", whole=True)
    from statistics import NormalDist

    normal = NormalDist(-1, 0.5)
    own = placement(process, lambda u: [normal.inv_cdf(float(x)) for x in u], whole=True)
    assert usual is not None
    assert own is not None
    assert np.array_equal(usual(u), own(u))
    trained(tmp_path, Custom(density=lambda u: 2 * u - 1))
    assert checkpoints.read_manifest(checkpoints.checkpoints(tmp_path)[-1])["custom"]["density"].endswith("<lambda>")


def huber(denoiser: Any, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
    """The example in the documentation of `LossFn`."""
    level = denoiser.preconditioning.level(t)
    prediction = denoiser(diffuse(x0, level, noise), level, cond)
    return F.huber_loss(prediction.x0, x0, reduction="none").flatten(1).mean(1)


def mse(denoiser: Any, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, cond: Any) -> dict[str, torch.Tensor]:
    """The simple loss, by hand."""
    level = denoiser.preconditioning.level(t)
    prediction = denoiser(diffuse(x0, level, noise), level, cond)
    error = (prediction.value - noise).square().flatten(1).mean(1)
    return {"loss": error, "mse": error}


def task_with(loss: Any) -> DiffusionTask:
    base = tiny_task()
    fixed = ProcessConfig(schedule="cosine", steps=20, variance="fixed_small")
    from dataclasses import replace

    from undiffuse.training import seeded

    with seeded(0):
        net = replace(base.net.config, out_channels=1, dropout=0.0).build()
        for parameter in net.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape)
    return DiffusionTask(net, fixed, ObjectiveConfig(loss="simple"), labels=base.labels, loss=loss)


def test_an_own_loss_is_what_is_minimised(tmp_path: Path) -> None:
    for name, loss in (("usual", None), ("own", mse), ("huber", huber)):
        train(task_with(loss), tiny_data(), tiny_config(), tmp_path / name)
    newest = [checkpoints.checkpoints(tmp_path / name)[-1] for name in ("usual", "own", "huber")]
    usual, own, other = (checkpoints.read(path) for path in newest)
    assert all(torch.equal(usual[0][key], own[0][key]) for key in usual[0])
    assert any(not torch.equal(usual[0][key], other[0][key]) for key in usual[0])
    assert own[1]["objective"]["loss"] == qualified_name(mse) == f"{__name__}.mse"
    with pytest.raises(ValueError, match=f"objective.loss: '{__name__}.mse' -> '{__name__}.huber'"):
        train(task_with(huber), tiny_data(), tiny_config(images=40), tmp_path / "own")
    assert math.isfinite(told(tmp_path / "huber")[-1]["loss"])
    with pytest.raises(ConfigError, match=r"^loss: .*returned shape \[\] as 'loss'; expected one number per image"):
        train(task_with(lambda *given: huber(*given).mean()), tiny_data(), tiny_config(), tmp_path / "scalar")
    with pytest.raises(ConfigError, match="^loss: .*expected a 'loss'"):
        train(task_with(lambda *given: {"error": huber(*given)}), tiny_data(), tiny_config(), tmp_path / "unnamed")


def train_with_sgd(folder: str, images: int) -> None:
    """The body of a process."""
    train(tiny_task(dropout=0.0), tiny_data(), tiny_config(images=images), folder, custom=Custom(optimizer=sgd))


def test_processes_share_the_state_of_an_own_optimizer(tmp_path: Path) -> None:
    for images in (16, 32):
        assert Processes(train_with_sgd, str(tmp_path / "two"), images, world_size=2).join() == [0, 0]
    train_with_sgd(str(tmp_path / "one"), 32)
    one, two = (checkpoints.read(checkpoints.checkpoints(tmp_path / name)[-1])[0] for name in ("one", "two"))
    assert set(one) == set(two)
    for key in one:
        assert torch.allclose(one[key], two[key], rtol=1e-3, atol=1e-4), key


def test_the_usual_run_is_as_before(tmp_path: Path) -> None:
    trained(tmp_path / "a", None)
    trained(tmp_path / "b", Custom())
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert "custom" not in checkpoints.read_manifest(checkpoints.checkpoints(tmp_path / "a")[-1])
