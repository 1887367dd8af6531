"""Recorded calls, with recordings played on a CPU: a replay runs the function on the recording's own memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from undiffuse import kernels
from undiffuse.denoiser import ProcessConfig
from undiffuse.guidance import LevelClassifier
from undiffuse.nets import ClassifierConfig, UNetConfig, graphs, prepare_for_inference
from undiffuse.nets.graphs import Graphs
from undiffuse.nets.runner import NetworkRunner
from undiffuse.noise_levels import Level


class Played:
    """What was recorded and replayed."""

    def __init__(self) -> None:
        self.recorded: list[tuple[torch.Size, ...]] = []
        self.replays = 0
        self.error: Exception | None = None

    def capture(
        self, function: Callable[..., Any], inputs: list[Tensor], pool: Any
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        if self.error is not None:
            raise self.error
        self.recorded.append(tuple(part.shape for part in inputs))
        results = function(*inputs)
        assert not any(part.is_inference() for part in (*inputs, *results))

        def replay() -> None:
            self.replays += 1
            for result, new in zip(results, function(*inputs), strict=True):
                result.copy_(new)  # over the last call's

        return replay, results


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    found = Played()
    monkeypatch.setattr(graphs, "capture", found.capture)
    monkeypatch.setattr(graphs, "pool", object)
    monkeypatch.setattr(graphs, "usable", usable)
    return found


def usable(inputs: tuple[Tensor, ...]) -> bool:
    """As `graphs.usable`, but for where the tensors are."""
    wants = torch.is_grad_enabled() and any(part.requires_grad for part in inputs)
    return not wants and kernels.choice.setting().pins.get("graphs") != "off"


def double(x: Tensor) -> tuple[Tensor]:
    return (2 * x,)


def test_a_shape_is_recorded_at_its_second_call_and_results_stay(played: Played) -> None:
    calls = Graphs()
    first, second = torch.arange(3.0), torch.arange(3.0) + 10
    assert torch.equal(calls(double, first)[0], 2 * first) and not played.recorded
    one = calls(double, first)[0]
    two = calls(double, second)[0]
    assert torch.equal(one, 2 * first) and torch.equal(two, 2 * second)  # a later replay overwrites neither
    assert len(played.recorded) == 1 and played.replays == 2
    calls(double, torch.arange(4.0))
    calls(double, first.double())
    assert len(played.recorded) == 1  # another shape and precision: their first calls
    calls(double, torch.arange(4.0))
    assert played.recorded[1:] == [(torch.Size([4]),)]


def test_switched_off_by_the_setting_and_by_gradients(played: Played) -> None:
    calls, x = Graphs(), torch.ones(2)
    with kernels.using("graphs=off"):
        for _ in range(3):
            calls(double, x)
    wanted = x.clone().requires_grad_()
    for _ in range(3):
        assert calls(double, wanted)[0].requires_grad
    assert not played.recorded
    with kernels.using("norm_act=torch"):
        for _ in range(2):
            calls(double, x)
    for _ in range(2):
        calls(double, x)
    assert len(played.recorded) == 2  # other kernels, another recording


def test_few_recordings_are_kept(played: Played) -> None:
    calls = Graphs()
    for size in range(1, graphs.MOST + 3):
        for _ in range(2):
            calls(double, torch.ones(size))
    assert len(calls._recorded) == graphs.MOST
    calls(double, torch.ones(graphs.MOST + 2))
    assert len(played.recorded) == graphs.MOST + 2
    calls(double, torch.ones(1))  # the oldest was dropped
    assert len(played.recorded) == graphs.MOST + 3


def test_what_cannot_be_recorded_is_called(played: Played) -> None:
    played.error = torch.OutOfMemoryError("out of memory\nmore words")
    calls, x = Graphs(), torch.arange(3.0)
    for _ in range(4):
        assert torch.equal(calls(double, x)[0], 2 * x)
    assert calls.reason == "out of memory"
    played.error = None
    assert torch.equal(calls(double, x)[0], 2 * x) and not played.recorded  # not tried again


def test_inference_tensors_go_in(played: Played) -> None:
    calls = Graphs()
    with torch.inference_mode():
        for start in range(3):
            assert torch.equal(calls(double, torch.full((2,), float(start)))[0], torch.full((2,), 2.0 * start))
    assert torch.equal(calls(double, torch.ones(2))[0], torch.full((2,), 2.0)) and len(played.recorded) == 1


def network() -> NetworkRunner:
    config = UNetConfig(
        image_size=8, in_channels=1, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, num_classes=4,
        out_channels=2, attention_resolutions=(2,), null_class=True,
    )  # fmt: skip
    torch.manual_seed(0)
    net = config.build()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    runner = prepare_for_inference(net, "fp32", "cpu", gradient=True)
    runner._graphs = Graphs()
    runner.original = net  # type: ignore[attr-defined]
    return runner


def test_networks_give_the_same_and_follow_their_weights(played: Played) -> None:
    runner = network()
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3.0, 900.0])
    y = torch.tensor([1, 2])
    with torch.no_grad():
        plain = runner(x, t, y=y)
        assert torch.equal(runner(x, t, y=y), plain) and played.replays == 1
        assert torch.equal(runner(x, t, y=y + 1), runner.net(x, t, y + 1))
        without = runner(x, t)  # other conditions, another call
        assert torch.equal(runner(x, t), without) and not torch.allclose(without, plain)
        assert len(played.recorded) == 2
        next(runner.original.parameters()).mul_(1.5)  # type: ignore[attr-defined]
        changed = runner(x, t, y=y)
        assert not torch.allclose(changed, plain) and torch.equal(runner(x, t, y=y), changed)
    assert runner(x.requires_grad_(), t, y=y).requires_grad


def test_the_gradient_of_a_classifier_is_one_recording(played: Played) -> None:
    config = ClassifierConfig(
        image_size=8, in_channels=1, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, out_channels=4,
        attention_resolutions=(2,), num_head_channels=32, pool="attention",
    )  # fmt: skip
    torch.manual_seed(0)
    runner = prepare_for_inference(config.build(), "fp32", "cpu", gradient=True)
    judge = LevelClassifier(runner, ProcessConfig(), temperature=2.0)
    x, y = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 3, 1])
    level = judge.chain.level(400)
    plain = [judge.gradient(x, level, label) for label in (y, y.flip(0))]
    runner._graphs = Graphs()
    found = [judge.gradient(x, level, label) for label in (y, y, y.flip(0))]
    assert torch.equal(found[1], plain[0]) and torch.equal(found[2], plain[1])
    assert len(played.recorded) == 1 and played.replays == 2
    with pytest.raises(ValueError, match=r"classes 0 to 3; got \[1, 4\]"):
        judge.gradient(x, level, torch.tensor([1, 4, 1]))
    assert isinstance(level, Level)
