"""What the tests of the command line share: tiny models as files, tiny images, and calling a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from support.training_runs import CLASSES, tiny_classifier, tiny_task
from undiffuse.cli import main
from undiffuse.conditions import ModelConditions
from undiffuse.denoiser import ProcessConfig
from undiffuse.models import ClassifierModel, DiffusionModel, save_model
from undiffuse.nets import UNetConfig
from undiffuse.training import seeded

WINDOW = (-1000.0, 2000.0)
"""Values of black and white of the models of `write_bands`."""


def write_model(path: Path, seed: int = 0) -> Path:
    """A conditional diffusion model of 8x8 grey images, three classes, twenty steps."""
    task = tiny_task(seed=seed, dropout=0.0)
    save_model(path, DiffusionModel(net=task.net, process=task.process, labels=task.labels))
    return path


def write_classifier(path: Path) -> Path:
    """A classifier that fits `write_model`."""
    task = tiny_classifier()
    with seeded(3):
        for parameter in task.net.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    save_model(path, ClassifierModel(net=task.net, process=task.process, labels=task.labels))
    return path


def write_upsampler(path: Path) -> Path:
    """An unconditional model that enlarges 4x4 to 8x8."""
    with seeded(0):
        net = UNetConfig(
            image_size=8, in_channels=1, out_channels=1, model_channels=8, channel_mult=(1, 2), num_res_blocks=1,
            attention_resolutions=(), super_resolution=True,
        ).build()  # fmt: skip
        for parameter in net.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    process = ProcessConfig(schedule="cosine", steps=20, variance="fixed_small")
    manifest = {"objective": {"loss": "simple", "low_size": [4, 4]}}
    save_model(path, DiffusionModel(net=net, process=process, manifest=manifest))
    return path


def conditional_model(
    conditions: ModelConditions, dropout: float = 0.1, labels: tuple[str, ...] | None = None
) -> DiffusionModel:
    """A model of 8x8 grey images with conditions, twenty steps."""
    with seeded(0):
        net = UNetConfig(
            image_size=8, in_channels=1, out_channels=1, model_channels=8, channel_mult=(1, 2), num_res_blocks=1,
            attention_resolutions=(), num_classes=None if labels is None else len(labels),
            null_class=labels is not None, **conditions.widths,
        ).build()  # fmt: skip
        for parameter in net.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
    process = ProcessConfig(schedule="cosine", steps=20, variance="fixed_small")
    manifest = {"objective": {"label_dropout": dropout}, "conditions": conditions.to_dict()}
    return DiffusionModel(net=net, process=process, labels=labels, manifest=manifest)


def write_bands(path: Path, channels: int, value_range: tuple[float, float] | None = WINDOW) -> Path:
    """An unconditional model of 8x8 images with any number of channels, trained on values in a range."""
    with seeded(0):
        net = UNetConfig(
            image_size=8, in_channels=channels, out_channels=channels, model_channels=8, channel_mult=(1, 2),
            num_res_blocks=1, attention_resolutions=(),
        ).build()  # fmt: skip
        for parameter in net.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    process = ProcessConfig(schedule="cosine", steps=20, variance="fixed_small")
    config = {"size": [8, 8], "channels": channels} | ({"value_range": list(value_range)} if value_range else {})
    save_model(path, DiffusionModel(net=net, process=process, manifest={"data": {"config": config}}))
    return path


def write_images(folder: Path, each: int = 4, size: tuple[int, int] = (8, 8)) -> Path:
    """A folder of grey images in one sub-folder a class; the class is the bright half."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            image = rng.integers(0, 80, (size[1], size[0]), dtype=np.uint8)
            half = [np.s_[:, : size[0] // 2], np.s_[:, size[0] // 2 :], np.s_[: size[1] // 2, :]][label]
            image[half] += 150
            Image.fromarray(image).save(folder / name / f"{i}.png")
    return folder


def call(*words: Any) -> int:
    """The exit status of `undiffuse WORDS...`."""
    return main([str(word) for word in words])


def pixels(path: Path) -> np.ndarray:
    """A picture as an array of ints."""
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny networks are faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
