"""The data of a run: whether a task can be trained on it, and what checkpoints keep of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from undiffuse.data import ImageDataset, check_trainable
from undiffuse.data.torch_dataset import StreamDataset
from undiffuse.train_config import TrainConfig
from undiffuse.training.tasks import MAX_POSITION, Task
from undiffuse.util.errors import reading
from undiffuse.util.records import read_json

__all__ = ["check_data", "data_card", "padded_before"]


def data_card(dataset: ImageDataset | StreamDataset) -> dict[str, Any]:
    """Returns the data's part of a manifest.

    It holds the fingerprint, source, count, [height, width, channels] and preparation, and the names of the channels
    where the files have them.
    """
    names = dataset.source.channel_names if isinstance(dataset, ImageDataset) else ()
    return {
        "fingerprint": dataset.source.fingerprint,
        "source": dataset.source.where,
        "count": len(dataset) or None,
        "size": list(dataset.shape),
        **({"channel_names": list(names)} if len(names) == dataset.shape[2] else {}),
        "config": dataset.config.to_dict(),
    }


def padded_before(run: Path | str) -> dict[str, Any]:
    """Returns how a run folder says that its images are prepared; empty for no run, and if they are not padded.

    Raises:
        ValueError: The folder's config.json is damaged.
    """
    file = Path(run).expanduser() / "config.json"
    if not file.is_file():
        return {}
    with reading(str(file)):
        found = read_json(file.read_bytes(), str(file))["data"]["config"]
        return dict(found) if found.get("fit") == "pad" else {}


def check_data(task: Task, dataset: ImageDataset | StreamDataset, config: TrainConfig, processes: int) -> None:
    """Checks before the first step that a task can be trained on a data set.

    Raises:
        ValueError: The images are not those that the network takes, or a batch cannot be shared by the processes.
    """
    if isinstance(dataset, ImageDataset):
        check_trainable(dataset, config.batch, conditional=task.labels_count is not None)
    if config.batch % processes:
        raise ValueError(
            f"a batch of {config.batch} cannot be shared evenly by {processes} processes: "
            f"choose a multiple of {processes}"
        )
    if config.total_images > MAX_POSITION:
        raise ValueError(f"a run can see at most {MAX_POSITION:,} images, got {config.total_images:,}")
    expected = (*task.spec.size, task.spec.in_channels)
    if expected != dataset.shape:
        raise ValueError(
            f"the network is for images of (height, width, channels) = {expected}, the data's are {dataset.shape}"
        )
    if task.labels_count is not None and dataset.num_classes != task.labels_count:
        raise ValueError(f"the network has {task.labels_count} classes, the data {dataset.num_classes}")
