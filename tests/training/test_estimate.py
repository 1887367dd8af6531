"""A training says what it will take before it starts, and at the end how wrong that was; it notices a plateau once."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import undiffuse.training.progress as progress_module
from support.cli_runs import call, write_images
from support.training_runs import tiny_classifier, tiny_task
from undiffuse.data import ArraySource, DataConfig, ImageDataset
from undiffuse.train_config import TrainConfig
from undiffuse.training.estimate import estimate, first_outlines
from undiffuse.training.events import Event
from undiffuse.training.progress import Plateau, TrainingProgress
from undiffuse.util.progress import Progress


def dataset(count: int = 12) -> ImageDataset:
    pixels = torch.arange(count * 64, dtype=torch.uint8).reshape(count, 8, 8, 1).numpy()
    source = ArraySource(pixels, torch.arange(count).remainder(3).numpy(), ["a", "b", "c"])
    return ImageDataset(source, DataConfig(path="memory", size=8, channels=1))


@pytest.mark.parametrize("make", [tiny_task, tiny_classifier])
def test_an_estimate_changes_nothing(make: Any) -> None:
    task, config = make(), TrainConfig(images=800, batch=8, ema_decays=(0.9,))
    before = {name: value.clone() for name, value in task.net.state_dict().items()}
    state = torch.get_rng_state()
    task.net.eval()
    found = estimate(task, dataset(), config, torch.device("cpu"))
    assert found is not None
    assert found.images_per_second > 0 and found.microbatch == 8
    assert found.seconds(800, 2) == pytest.approx(400 / found.images_per_second)
    numbers = sum(p.numel() for p in task.net.parameters())
    assert found.memory > 4 * numbers * 5  # weights, gradients, two moments, an average; and activations
    assert all(torch.equal(before[name], value) for name, value in task.net.state_dict().items())
    assert all(p.grad is None for p in task.net.parameters())
    assert torch.equal(state, torch.get_rng_state()) and not task.net.training


def test_activations_count() -> None:
    """Twice the batch keeps about twice the activations."""
    small, large = (
        estimate(tiny_task(), dataset(), TrainConfig(images=800, batch=batch), torch.device("cpu")) for batch in (4, 8)
    )
    assert small is not None and large is not None
    assert large.memory > small.memory


def test_a_network_that_is_split_is_not_run_whole() -> None:
    """It may not fit into one device."""
    task, config = tiny_task(), TrainConfig(images=800, batch=8, sharding="fsdp")
    assert estimate(task, dataset(), config, torch.device("meta")) is None
    assert next(task.net.parameters()).device.type == "cpu"


def test_outlines_are_promised_where_they_were_measured() -> None:
    assert first_outlines((32, 32, 1)) is not None
    assert first_outlines((32, 32, 3)) > first_outlines((32, 32, 1))  # type: ignore[operator]
    assert first_outlines((64, 64, 3)) is None and first_outlines((32, 32, 5)) is None


def test_the_command_prints_time_and_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "photos")
    options = ["--recipe", "tiny", "--size", "8", "--width", "8", "--images", "16", "--batch", "8"]
    assert call("train", tmp_path / "photos", *options, "--out", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert " in a trial)" in out and "\n  memory    about " in out
    assert re.search(r"\n  memory    about .+, besides up to .+ of Python, PyTorch and data\n", out)
    assert re.search(r"\n  used +\S+ .B of memory with Python and PyTorch, \S+ .B of disk\n", out)


def record(kind: str, images: int, **values: Any) -> Event:
    return Event(kind=kind, images=images, steps=images // 8, values={"total_images": 10_000, **values})


def test_long_trainings_say_how_wrong_the_estimate_was(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    shown = TrainingProgress(out)
    shown.expect(720.0)
    for images in range(100, 10_001, 100):
        clock[0] += 8.4
        line = {"mse": 0.1, "loss": 0.1, "images_per_second": 12.0, "seconds_left": 1.0, "grad_norm": 1.0, "lr": 1e-3}
        shown.update(images, 10_000, lambda images=images, line=line: record("train", images, **line))  # type: ignore[misc]
    shown(record("end", 10_000))
    assert "training: estimated 12m00s, took 14m00s" in out.getvalue()


def test_short_work_says_nothing_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import undiffuse.util.progress as module

    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    for seconds, expected in ((1.0, False), (10.0, True)):
        out = io.StringIO()
        with Progress("sampling", 20, "images", out) as bar:
            for _ in range(20):
                clock[0] += seconds
                bar.advance(1)
        assert ("sampling: about 3m20s in all" in out.getvalue()) == expected
        assert ("sampling: estimated 3m20s, took 3m20s" in out.getvalue()) == expected
    with pytest.raises(ValueError), Progress("sampling", 20, "images", out := io.StringIO()) as bar:
        clock[0] += 100
        bar.advance(20)
        raise ValueError
    assert "took" not in out.getvalue()


def test_a_plateau_is_noticed_once() -> None:
    falling, flat = Plateau(), Plateau()
    said = []
    for k in range(1, 100):
        noise = 0.0005 * math.sin(12.9 * k)
        assert falling(record("train", 100 * k, mse=1.0 / k + noise / k)) is None
        text = flat(record("train", 100 * k, mse=max(0.1, 1.0 / k) + noise))
        said += [text] if text else []
    assert len(said) == 1
    assert "hardly changed since" in said[0]
