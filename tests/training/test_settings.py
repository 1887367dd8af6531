"""Settings, learning rate, records, loss scale: the small pure parts of training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from undiffuse.train_config import differences, due
from undiffuse.training import Event, TrainConfig, format_progress, learning_rate, read_events
from undiffuse.training.accumulator import MetricAccumulator, binned_sums, means
from undiffuse.training.events import JsonlSink, progress_parts
from undiffuse.training.optim import LossScale


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"batch": 10, "images": 1000, "lr": 2.0, **changes})


def test_the_end_must_be_given_once() -> None:
    with pytest.raises(ValueError, match="either images or steps"):
        TrainConfig()
    with pytest.raises(ValueError, match="either images or steps"):
        TrainConfig(images=10, steps=2)
    assert TrainConfig(images=1001, batch=10).total_images == 1010
    assert TrainConfig(steps=7, batch=10).total_images == 70


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"grad_clip": -1.0}, "None for no clipping"),
        ({"lr_decay": "exponential"}, "none, linear, cosine"),
        ({"precision": "fp8"}, "fp32, bf16, fp16"),
        ({"warmup_images": -1}, "must not be negative"),
    ],
)
def test_bad_settings_say_what_is_expected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**change)


def test_settings_survive_json() -> None:
    c = config(ema_decays=(0.5, 0.9), betas=(0.8, 0.95))
    assert TrainConfig(**json.loads(json.dumps(c.to_dict()))) == c


def test_learning_rate() -> None:
    assert [learning_rate(config(), n) for n in (0, 500, 990)] == [2.0, 2.0, 2.0]
    warm = config(warmup_images=100)
    assert [learning_rate(warm, n) for n in (0, 40, 90, 100, 900)] == pytest.approx([0.2, 1.0, 2.0, 2.0, 2.0])
    linear = config(lr_decay="linear")
    assert [learning_rate(linear, n) for n in (0, 250, 1000, 2000)] == pytest.approx([2.0, 1.5, 0.0, 0.0])
    cosine = config(lr_decay="cosine")
    assert [learning_rate(cosine, n) for n in (0, 500, 1000)] == pytest.approx([2.0, 1.0, 0.0])
    assert learning_rate(cosine, 250) == pytest.approx(1 + math.cos(math.pi / 4))


def test_due_counts_images_not_steps() -> None:
    assert [due(100, n, n + 64) for n in range(0, 320, 64)] == [False, True, False, True, True]
    assert not due(None, 0, 10**9)


def test_differences() -> None:
    old = {"kind": "diffusion", "train": {"lr": 1, "batch": 4, "images": 8}, "net": {"dropout": 0.1}}
    new = {"kind": "diffusion", "train": {"lr": 2, "batch": 5, "images": 9}, "net": {"dropout": 0.1}}
    assert differences(old, new) == (["train.batch: 4 -> 5"], ["train.lr: 1 -> 2"])
    assert differences(old, {**old, "net": {}})[0] == ["net.dropout: 0.1 -> None"]


def test_records_are_immutable_and_json(tmp_path: Path) -> None:
    record = Event(kind="train", images=3, steps=1, values={"loss": math.nan, "t": (1, 2), "inner": {"a": math.inf}})
    with pytest.raises(TypeError):
        record.values["loss"] = 1.0  # type: ignore[index]
    line = json.loads(record.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line == {"kind": "train", "images": 3, "steps": 1, "loss": "nan", "t": [1, 2], "inner": {"a": "inf"}}


def test_sink_starts_empty_or_at_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    sink = JsonlSink(path)
    for n in (1, 2, 3, 4):
        sink(Event(kind="train", images=n, steps=n, values={"x": 1 / n}))
    sink.close()
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"kind": "tr')
    sink = JsonlSink(path, resume_at=2)
    sink(Event(kind="train", images=3, steps=3))
    sink.sync()
    sink.close()
    assert [(r["images"], r.get("x")) for r in read_events(path)] == [(1, 1.0), (2, 0.5), (3, None)]
    JsonlSink(path).close()
    assert path.read_text() == ""


def test_progress_line() -> None:
    values = {"loss": 0.04321, "bits": 3.14159, "grad_norm": 0.5, "lr": 1e-4, "images_per_second": 12.34}
    record = Event(
        kind="train", images=2500, steps=10, values={**values, "seconds_left": 3700.0, "total_images": 10_000}
    )
    line = format_progress(record)
    for part in ("25.0%", "2,500 images", "loss 0.0432", "bits/dim 3.14", "12.3 images/s", "1h01m left"):
        assert part in line
    assert "\n" not in line
    jumped = {**record.values, "mse": 0.01234, "loss": 43.21, "bits": 3141.59, "top1": 0.5, "skipped": 1}
    parts = progress_parts(Event(kind="train", images=1_234_500, steps=10, values={**jumped, "total_images": 10**7}))
    assert parts[:3] == [" 12.3%", "1,234,500 images", "mse 0.0123"]
    assert parts[3:7] == ["12.3 images/s", "1h01m left", "bits/dim 3.14e+03", "1 skipped"]
    assert parts[7:] == ["accuracy 50.0%", "loss 43.2", "grad 0.5", "lr 0.0001"]
    assert len("  ".join(parts[:5])) < 80, "speed and time left are seen on a terminal of 80 columns"
    assert format_progress(Event(kind="save", images=1, steps=1, values={"text": "there"})) == "save: there"


def test_loss_scale() -> None:
    scale = LossScale(enabled=True, value=8.0, interval=2)
    gradients = [torch.tensor([16.0]), torch.tensor([[-8.0]])]
    scale.unscale_(gradients)
    assert [g.item() for g in gradients] == [2.0, -1.0]
    history = []
    for overflow in (False, False, True, False, True, True, True, True, True):
        scale.update(overflow)
        history.append(scale.value)
    assert history == [8.0, 16.0, 8.0, 8.0, 4.0, 2.0, 1.0, 1.0, 1.0]
    assert not scale.can_shrink(), "below 1 an overflow is the model's fault and must be counted as such"
    other = LossScale(enabled=True)
    other.load({"enabled": True, "value": 4.0, "good": 1})
    other.update(False)
    assert other.state() == {"enabled": True, "value": 4.0, "good": 2}
    other.load(LossScale(enabled=False).state())
    assert other.value == 4.0, "a run that was not fp16 before has no scale to take over"
    other.load({"enabled": True, "value": 1.0, "good": 0})
    assert other.value == 1.0
    off = LossScale(enabled=False)
    off.update(True)
    assert off.value == 1.0


def test_tally_means_are_weighted_and_binned() -> None:
    terms = {"loss": torch.tensor([1.0, 2.0, 3.0, 4.0]), "mse": torch.tensor([1.0, 1.0, 1.0, 5.0])}
    t = torch.tensor([0, 4, 5, 19])
    weights = torch.tensor([1.0, 1.0, 0.5, 2.0])
    sums = binned_sums(terms, t, weights, steps=20, bins=4)
    result = means(sums, sorted(terms), "by_quartile")
    assert result["loss"] == pytest.approx((1 + 2 + 1.5 + 8) / 4)
    assert result["by_quartile"]["loss"] == [1.5, 3.0, None, 4.0]
    halves = [
        binned_sums({k: v[s] for k, v in terms.items()}, t[s], weights[s], 20, 4) for s in (slice(2), slice(2, 4))
    ]
    assert torch.equal(halves[0] + halves[1], sums)
    accumulator = MetricAccumulator()
    accumulator.add(sorted(terms), sums, norm=2.0)
    accumulator.add(sorted(terms), sums, norm=4.0)
    again = MetricAccumulator.from_state(json.loads(json.dumps(accumulator.state())))
    assert again.summary() == accumulator.summary()
    assert again.summary()["grad_norm"] == 3.0
    assert again.summary()["grad_norm_max"] == 4.0
