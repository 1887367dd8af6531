"""Tiny trainings for the tests: 8x8 grey images of three classes, a network of a few thousand weights, whole processes.

Processes are forked from a server that has imported everything once, so that a test may start, kill and restart real
ones without paying for the imports each time.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undiffuse.checkpoints import checkpoints, read
from undiffuse.data import ArraySource, DataConfig, ImageDataset
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import ClassifierConfig, UNetConfig
from undiffuse.objectives import ObjectiveConfig
from undiffuse.training import ClassifierTask, DiffusionTask, Event, Outcome, TrainConfig, read_events, seeded, train

CLASSES = ["left", "right", "top"]


def tiny_data(count: int = 24, **config: Any) -> ImageDataset:
    """Images whose class is the bright half."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    images = rng.integers(0, 80, (count, 8, 8, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        half = [np.s_[:, :4], np.s_[:, 4:], np.s_[:4, :]][label]
        image[half] += 150
    source = ArraySource(images, labels.astype(np.int64), CLASSES)
    return ImageDataset(source, DataConfig(**{"path": "array", "size": 8, "channels": 1, "flip": True, **config}))


def tiny_task(seed: int = 0, dropout: float = 0.1, steps: int = 20, channels: int = 8) -> DiffusionTask:
    """A conditional diffusion model with a learned variance."""
    with seeded(seed):
        net = UNetConfig(
            image_size=8, in_channels=1, out_channels=2, model_channels=channels, channel_mult=(1, 2), num_res_blocks=1,
            attention_resolutions=(2,), num_classes=3, dropout=dropout, use_scale_shift_norm=True,
        ).build()  # fmt: skip
        for parameter in net.parameters():
            # The zero-initialised layers would hide most of the network from a test of a few steps.
            parameter.data += 0.02 * torch.randn(parameter.shape)
    process = ProcessConfig(schedule="cosine", steps=steps)
    return DiffusionTask(net, process, ObjectiveConfig(loss="hybrid"), labels=CLASSES)


def tiny_classifier(**options: Any) -> ClassifierTask:
    """A classifier of noisy images."""
    with seeded(1):
        net = ClassifierConfig(
            image_size=8, in_channels=1, out_channels=3, model_channels=8, channel_mult=(1, 2), num_res_blocks=1,
            attention_resolutions=(), pool="adaptive",
        ).build()  # fmt: skip
    return ClassifierTask(net, ProcessConfig(schedule="cosine", steps=20), labels=CLASSES, **options)


def tiny_config(**changes: Any) -> TrainConfig:
    """Eight updates of four images; a record every two updates, a checkpoint every three."""
    settings: dict[str, Any] = {
        "batch": 4, "images": 32, "lr": 1e-2, "ema_decays": (0.9, 0.99), "log_every": 8, "save_every": 12, "keep": 3,
        "preview_every": None, "preview_count": 3, "preview_steps": 2, "validate_every": None, "device": "cpu",
        "workers": 0,
    }  # fmt: skip
    if "steps" in changes:
        settings["images"] = None
    return TrainConfig(**{**settings, **changes})


def run(
    folder: Path,
    task: Any = None,
    data: Any = None,
    listeners: Sequence[Any] = (),
    init: Any = None,
    validation: Any = None,
    **changes: Any,
) -> Outcome:
    """One call of `train` with the tiny parts."""
    task, data = task if task is not None else tiny_task(), data or tiny_data()
    return train(task, data, tiny_config(**changes), folder, list(listeners), validation, init=init)


def assert_same_run(a: Path, b: Path) -> None:
    """The newest checkpoints of two runs are equal bit for bit, and so is everything they told that is not a time."""
    tensors_a, manifest_a = read(checkpoints(a)[-1])
    tensors_b, manifest_b = read(checkpoints(b)[-1])
    assert set(tensors_a) == set(tensors_b)
    different = [name for name in tensors_a if not torch.equal(tensors_a[name], tensors_b[name])]
    assert not different, f"{len(different)} of {len(tensors_a)} tensors differ, for instance {different[0]}"
    for manifest in (manifest_a, manifest_b):
        manifest["progress"].pop("seconds")
    assert manifest_a["progress"] == manifest_b["progress"]
    assert told(a) == told(b)


def told(folder: Path) -> list[dict[str, Any]]:
    """The "train" records of a run, without times."""
    times = ("seconds", "seconds_left", "images_per_second")
    records = [r for r in read_events(folder / "metrics.jsonl") if r["kind"] == "train"]
    return [{k: v for k, v in r.items() if k not in times} for r in records]


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _child(rank: int, world_size: int, port: int, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if world_size > 1:  # what torchrun sets
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
        os.environ["MASTER_PORT"] = str(port)
    target(*arguments)


class Processes:
    """`world_size` processes that run `target(*arguments)` as torchrun would start them."""

    def __init__(self, target: Callable[..., None], *arguments: Any, world_size: int = 1) -> None:
        context = multiprocessing.get_context("forkserver")
        here = [str(path) for path in Path(__file__).resolve().parents[1:3]]
        there = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        paths = [*here, *[p for p in there if p and p not in here]]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # the server imports before it learns the caller's sys.path
        context.set_forkserver_preload(
            ["support.training_runs", "undiffuse.solvers", "torch._dynamo", "PIL.PngImagePlugin"]
        )
        port = free_port()
        self.children = [
            context.Process(target=_child, args=(rank, world_size, port, target, arguments))
            for rank in range(world_size)
        ]
        for child in self.children:
            child.start()

    def kill(self) -> None:
        """SIGKILL to all."""
        for child in self.children:
            child.kill()
        self.join()

    def join(self, seconds: float = 60) -> list[int | None]:
        """Waits for all; their exit codes."""
        for child in self.children:
            child.join(seconds)
        codes = [child.exitcode for child in self.children]
        for child in self.children:
            if child.is_alive():
                child.kill()
                child.join()
        return codes

    @property
    def pids(self) -> list[int]:
        """Process numbers, by rank."""
        return [int(child.pid or 0) for child in self.children]

    @property
    def alive(self) -> bool:
        """True while one is running."""
        return any(child.is_alive() for child in self.children)


def train_tiny(folder: str, changes: dict[str, Any]) -> None:
    """A whole tiny run, the body of a process."""
    run(Path(folder), **changes)


class Recorder:
    """A listener that keeps all records."""

    def __init__(self) -> None:
        self.records: list[Event] = []

    def __call__(self, record: Event) -> None:
        self.records.append(record)

    def of(self, kind: str) -> list[Event]:
        """The records of one kind."""
        return [r for r in self.records if r.kind == kind]
