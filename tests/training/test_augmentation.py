"""Shifted and erased training images: as often as stated, reproducible, and validation left alone; label smoothing."""

from __future__ import annotations

import pytest
import torch

from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import ResNetConfig
from undiffuse.training import ClassifierTask, Inputs
from undiffuse.training.augmentation import AREAS, erased, shifted


def inputs(count: int, seed: int = 0) -> Inputs:
    x = torch.arange(count * 1 * 6 * 8, dtype=torch.float32).reshape(count, 1, 6, 8) / 1e4
    return Inputs(
        x0=x, labels=torch.zeros(count, dtype=torch.int64), t=torch.zeros(count, dtype=torch.int64),
        weights=torch.ones(count), positions=torch.arange(count), seed=seed,
    )  # fmt: skip


def test_each_image_is_moved_as_its_numbers_say() -> None:
    x = torch.arange(24.0).reshape(1, 2, 3, 4).repeat(3, 1, 1, 1)
    down, right = torch.tensor([0.0, 0.5, 0.99]), torch.tensor([0.5, 0.5, 0.0])
    found = shifted(x, down, right, 1)
    torch.testing.assert_close(found[0, :, :2], x[0, :, 1:])  # up by one, the lowest row twice
    torch.testing.assert_close(found[0, :, 2], x[0, :, 2])
    torch.testing.assert_close(found[1], x[1])
    torch.testing.assert_close(found[2, :, 1:, :3], x[2, :, :2, 1:])  # down and to the left
    torch.testing.assert_close(shifted(x, down, right, 0), x)


def test_every_shift_is_as_probable() -> None:
    count = 5000
    x = torch.zeros(count, 1, 9, 9)
    x[:, :, 4, 4] = 1
    g = torch.Generator().manual_seed(0)
    found = shifted(x, torch.rand(count, generator=g), torch.rand(count, generator=g), 2).sum((0, 1))
    assert found.sum() == count
    inner = found[2:7, 2:7]
    assert inner.sum() == count
    assert float((inner - count / 25).abs().max()) < 5 * (count / 25) ** 0.5


def test_the_task_shifts_training_images_only_and_always_alike() -> None:
    net = ResNetConfig(image_size=8, in_channels=1, out_channels=10, model_channels=8, channel_mult=(1, 1)).build()
    task = ClassifierTask(net, ProcessConfig(variance="fixed_small"), noise=False, shift=2)
    batch = inputs(40)
    moved = task.prepare_batch(batch)
    assert not torch.equal(moved.x0, batch.x0)
    assert torch.equal(moved.x0, task.prepare_batch(batch).x0)
    assert torch.equal(moved.x0[8:10], task.prepare_batch(list(batch.split(2))[4]).x0)
    assert moved.clean is not None and bool(moved.clean.all())
    still = ClassifierTask(net, ProcessConfig(variance="fixed_small"), noise=False)
    assert torch.equal(still.prepare_batch(batch).x0, batch.x0)


def test_a_rectangle_gets_one_value_and_the_rest_stays() -> None:
    g = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(400, 2, 24, 32, generator=g) - 1
    numbers = torch.rand(5, 400, generator=g)
    found = erased(x, numbers)
    changed = (found != x).any(dim=1)
    for image, where, value in zip(found, changed, 2 * numbers[4] - 1, strict=True):
        rows, columns = (where.any(dim=d).nonzero().flatten() for d in (1, 0))
        inside = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert bool((inside == value).all())
        assert int(where.sum()) == inside[0].numel()
    shares = changed.float().mean(dim=(1, 2))
    assert AREAS[0] - 0.01 < float(shares.min()) < 0.05
    assert 0.2 < float(shares.max()) < AREAS[1] + 0.02
    assert float(shares.mean()) == pytest.approx(sum(AREAS) / 2, abs=0.01)
    place = changed.float().mean(0)  # the middle is covered more often than the border, both sides alike
    assert float((place - place.flip(0, 1)).abs().max()) < 0.1
    assert all(float(border.sum()) > 0 for border in (place[0], place[-1], place[:, 0], place[:, -1]))


def test_the_task_erases_in_as_many_training_images_as_stated() -> None:
    net = ResNetConfig(image_size=8, in_channels=1, out_channels=10, model_channels=8, channel_mult=(1, 1)).build()
    task = ClassifierTask(net, ProcessConfig(variance="fixed_small"), noise=False, erase=0.5)
    batch = inputs(1000)
    first, second = task.prepare_batch(batch).x0, task.prepare_batch(batch).x0
    assert torch.equal(first, second)
    share = float((first != batch.x0).flatten(1).any(dim=1).float().mean())
    assert share == pytest.approx(0.5, abs=0.06)


def test_smoothed_labels_give_the_loss_of_a_mixture() -> None:
    net = ResNetConfig(image_size=8, in_channels=1, out_channels=10, model_channels=8, channel_mult=(1, 1)).build()
    how = {"process": ProcessConfig(variance="fixed_small"), "noise": False}
    scores = torch.linspace(-1, 2, 40).reshape(4, 10)
    batch = ClassifierTask(net, **how).prepare_batch(inputs(4))
    plain, smooth = (
        ClassifierTask(net, smoothing=s, **how).losses(lambda x, t: scores, batch)["loss"] for s in (0.0, 0.2)
    )
    everywhere = -torch.log_softmax(scores, dim=1).mean(dim=1)
    torch.testing.assert_close(smooth, 0.8 * plain + 0.2 * everywhere)


@pytest.mark.parametrize("change", [{"erase": 1.5}, {"erase": -0.1}, {"smoothing": 1.0}, {"shift": -1}])
def test_impossible_settings(change: dict[str, float]) -> None:
    net = ResNetConfig(image_size=8, in_channels=1, out_channels=10, model_channels=8, channel_mult=(1, 1)).build()
    with pytest.raises(ValueError, match=next(iter(change))):
        ClassifierTask(net, ProcessConfig(variance="fixed_small"), **change)  # type: ignore[arg-type]
