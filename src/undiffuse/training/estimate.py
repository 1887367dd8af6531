"""How long a training will take and how much memory it needs, measured on a few images before it starts."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from undiffuse.data import ImageDataset
from undiffuse.data.batches import batches
from undiffuse.data.torch_dataset import StreamDataset
from undiffuse.nets.memory import is_out_of_memory
from undiffuse.nets.runner import NetworkRunner
from undiffuse.pixels import from_pixels
from undiffuse.train_config import TrainConfig
from undiffuse.training.companions import Trained, companions_of
from undiffuse.training.conditions import condition_tensors
from undiffuse.training.randomness import seeded
from undiffuse.training.tasks import ClassifierTask, DiffusionTask, Inputs, Task

__all__ = ["Estimate", "disk_bytes", "estimate", "first_outlines", "peak_memory"]

_FEW = 2  # images of the first pass
_PATIENCE = 2.0  # seconds that a second pass, of a whole micro-batch, may take
_OUTLINES = {1: 5_000, 3: 20_000}
"""Images by channels until something can be recognised: of the trainings in docs/choosing.md, up to 32x32 pixels."""


@dataclass(frozen=True)
class Estimate:
    """What a training will need.

    Attributes:
        images_per_second: Speed, with one process.
        memory: Bytes of weights, gradients, moments, averages and the activations of one micro-batch.
        microbatch: Images of that micro-batch.
    """

    images_per_second: float
    memory: int
    microbatch: int

    def seconds(self, images: int, processes: int = 1) -> float:
        """Returns the time for a number of images."""
        return images / self.images_per_second / processes


def estimate(
    task: Task, dataset: ImageDataset | StreamDataset, config: TrainConfig, device: torch.device
) -> Estimate | None:
    """Measures forward and backward passes on a few images. The task, its weights and torch's generators do not change.

    Args:
        task: The task; its network is moved to the device, as for training.
        dataset: The data.
        config: The settings of the training.
        device: Where it will run.

    Returns:
        The estimate; None if there is no way to measure: a data set that can be read only once, a task of the caller's
        own, memory for not even two images, a network that is split over processes because it may not fit into the
        device.
    """
    if not isinstance(dataset, ImageDataset) or not _is_ours(task) or config.sharding != "none":
        return None
    task.net.to(device=device)
    companions = companions_of(task).to(device)
    forward = NetworkRunner(task.net, config.precision, device, False)
    was_training = task.net.training
    task.net.train()
    whole = min(config.microbatch or config.batch, config.batch)
    try:
        few = _inputs(task, dataset, config, device, min(_FEW, config.batch))
        saved = _activations(task, forward, few)
        seconds, count = _timed(task, forward, few), len(few)
        if whole > count and seconds * whole / count < _PATIENCE:  # small networks are slow on two images
            inputs = _inputs(task, dataset, config, device, whole)
            seconds, count = _timed(task, forward, inputs), whole
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        task.net.train(was_training)
        for parameter in Trained(task.net, companions).parameters():
            parameter.grad = None
    kept = 16 * _numbers(Trained(task.net, companions))  # weights, gradients, two moments, in four bytes each
    kept += 4 * _numbers(task.net) * (len(config.ema_decays) + len(config.posthoc_widths))
    kept += 4 * sum(_numbers(module) for module, _ in companions.averages.values())
    teacher = getattr(task, "teacher", None)
    kept += 0 if teacher is None else 4 * _numbers(teacher.net)
    return Estimate(count / max(seconds, 1e-9), kept + saved * whole // len(few), whole)


def _is_ours(task: Task) -> bool:
    """Whether a task is one of this package's, whose passes may be tried."""
    if type(task) in (DiffusionTask, ClassifierTask):
        return True
    from undiffuse.training.distillation import DistillationTask  # which other trainings do not need

    return type(task) is DistillationTask


def _numbers(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def first_outlines(shape: tuple[int, int, int]) -> int | None:
    """Returns after how many images something can be recognised; None if nothing like it was measured.

    Args:
        shape: (height, width, channels) of the images.
    """
    height, width, channels = shape
    return _OUTLINES.get(channels) if max(height, width) <= 32 else None


def disk_bytes(parameters: int, config: TrainConfig, beside: int = 0) -> tuple[int, int]:
    """Estimates the disk space of a run.

    Args:
        parameters: Weights of the network.
        config: The settings of the training.
        beside: Numbers that a checkpoint keeps for each weight besides, see `Companions`.

    Returns:
        Bytes of one checkpoint, and of all that the run will keep at its end (with the one being written).
    """
    copies = 3 + beside + len(config.ema_decays) + len(config.posthoc_widths)  # weights, two moments
    one = 4 * parameters * copies
    kept = config.keep + 1 + (config.total_images // config.milestones if config.milestones else 0)
    every = config.posthoc_every
    snapshots = 0 if every is None else len(config.posthoc_widths) * -(-config.total_images // every)
    return one, one * kept + 4 * parameters * (snapshots + 1)  # and the model at the end


def peak_memory(device: torch.device) -> int | None:
    """Returns the most memory that this process has used so far, in bytes; None where the system does not say.

    Args:
        device: Where it ran. Of a GPU the peak of PyTorch's tensors, of a CPU that of the whole process.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else 1024 * int(peak)


def _inputs(task: Task, dataset: ImageDataset, config: TrainConfig, device: torch.device, count: int) -> Inputs:
    """The first images of the run, at levels spread over the process."""
    batch = next(batches(dataset, 0, count, workers=0))
    steps = torch.linspace(0, task.process.steps - 1, count, dtype=torch.float64)
    inputs = Inputs(
        x0=from_pixels(batch.images, device).contiguous(memory_format=torch.channels_last),
        labels=None if batch.labels is None else torch.as_tensor(batch.labels, dtype=torch.int64).to(device),
        t=steps if task.continuous else steps.long(),
        weights=torch.ones(count, device=device),
        positions=torch.as_tensor(batch.positions, dtype=torch.int64),
        seed=config.seed,
        cond=condition_tensors(task.conditions, batch, device),
    )
    return task.prepare_batch(inputs)


def _timed(task: Task, forward: NetworkRunner, inputs: Inputs) -> float:
    """Seconds of one pass forward and back."""
    _synchronize(inputs.x0.device)
    begin = time.perf_counter()
    _pass(task, forward, inputs)
    _synchronize(inputs.x0.device)
    return time.perf_counter() - begin


def _pass(task: Task, forward: NetworkRunner, inputs: Inputs) -> None:
    with seeded(0, inputs.x0.device):
        task.losses(forward, inputs)["loss"].mean().backward()


def _activations(task: Task, forward: NetworkRunner, inputs: Inputs) -> int:
    """Bytes that a pass keeps for its way back, without the weights. It also warms the kernels up."""
    trained = Trained(task.net, companions_of(task))
    weights = {parameter.untyped_storage().data_ptr() for parameter in trained.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with _saved(pack):
        _pass(task, forward, inputs)
    return sum(sizes.values())


@contextmanager
def _saved(pack: Any) -> Iterator[None]:
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
