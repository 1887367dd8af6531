"""Sinks for the records of a run: TensorBoard and Weights & Biases. Both are extras, imported only when named.

A logger is a listener of `undiffuse.training.train`: called with every record, closed at the end of the run. A plain
function does as well.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from undiffuse.training.events import Event, format_progress
from undiffuse.util.errors import ConfigError
from undiffuse.util.launch import is_main_process
from undiffuse.util.text import join_names

__all__ = ["LOGGERS", "TensorBoardLogger", "WandbLogger", "make_loggers", "scalars"]

_TEXTS = ("note", "skipped", "best")
_BOOKKEEPING = ("total_images", "seconds_left", "microbatch")


def scalars(record: Event) -> Iterator[tuple[str, float]]:
    """Yields (name, value) for every finite number in a record, for example ("train/mse", 0.02).

    Means by quartile or tenth of the noise levels become "train/by_quartile/mse/0" to ".../3".
    """

    def walk(name: str, value: Any) -> Iterator[tuple[str, float]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from walk(f"{name}/{key}", inner)
        elif isinstance(value, (list, tuple)):
            for k, inner in enumerate(value):
                yield from walk(f"{name}/{k}", inner)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield name, float(value)

    if record.kind in ("train", "validation", "evaluation"):
        for key, value in record.values.items():
            if key not in _BOOKKEEPING:
                yield from walk(f"{record.kind}/{key}", value)


def pictures(record: Event, run_dir: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yields (name, image) for the preview grids that a record announces."""
    for file in record.values.get("files", ()) if record.kind == "preview" else ():
        path = run_dir / "previews" / str(file)
        if path.is_file():
            with Image.open(path) as picture:
                yield f"preview/{path.stem.partition('_')[2]}", picture.convert("RGB")


class TensorBoardLogger:
    """Writes event files for TensorBoard into RUN/tensorboard. The step is the number of images seen.

    Args:
        run_dir: The run folder.
        resumed_at: Images of the checkpoint that the run resumes from; later events are hidden by TensorBoard.
    """

    def __init__(self, run_dir: Path, resumed_at: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("TensorBoard", "tensorboard", error) from error
        self._open, self._run_dir = SummaryWriter, run_dir
        self._purge = resumed_at + 1 if resumed_at else None
        self._writer: Any = None  # opened by the first record, once the run owns its folder

    def __call__(self, record: Event) -> None:
        """Writes a record."""
        if self._writer is None:
            self._writer = self._open(str(self._run_dir / "tensorboard"), purge_step=self._purge)
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record.images)
        for name, picture in pictures(record, self._run_dir):
            self._writer.add_image(name, np.asarray(picture), record.images, dataformats="HWC")
        if record.kind in _TEXTS:
            self._writer.add_text(record.kind, format_progress(record), record.images)

    def close(self) -> None:
        """Writes what is still in memory, and closes the file."""
        if self._writer is not None:
            self._writer.close()


class WandbLogger:
    """Sends a run to Weights & Biases. Its own variables apply: WANDB_PROJECT, WANDB_MODE=offline and the others.

    A run that resumes continues the same run there.

    Args:
        run_dir: The run folder, which names the run and keeps its local files in RUN/wandb.
        config: The settings of the run.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("Weights & Biases", "wandb", error) from error
        self._wandb, self._run_dir, self._config = wandb, run_dir, dict(config)
        self._run: Any = None

    def _begin(self) -> Any:
        run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "undiffuse"),
            name=self._run_dir.resolve().name,
            id=os.environ.get("WANDB_RUN_ID") or hashlib.sha256(str(self._run_dir.resolve()).encode()).hexdigest()[:16],
            dir=str(self._run_dir),
            config=self._config,
            resume="allow",
        )
        run.define_metric("images")
        run.define_metric("*", step_metric="images")
        return run

    def __call__(self, record: Event) -> None:
        """Sends a record."""
        if self._run is None:
            self._run = self._begin()
        values: dict[str, Any] = dict(scalars(record))
        for name, picture in pictures(record, self._run_dir):
            values[name] = self._wandb.Image(picture)
        if values:
            self._run.log({**values, "images": record.images})

    def close(self) -> None:
        """Ends the run there."""
        if self._run is not None:
            self._run.finish()


def _missing(name: str, extra: str, error: ImportError) -> ConfigError:
    return ConfigError("log", f"{name} cannot be imported ({error}); install it with: pip install 'undiffuse[{extra}]'")


LOGGERS = ("tensorboard", "wandb")


def make_loggers(
    names: Sequence[str], run_dir: Path, config: Mapping[str, Any], resumed_at: int = 0
) -> list[TensorBoardLogger | WandbLogger]:
    """Makes loggers by name, in the main process only.

    Args:
        names: Some of `LOGGERS`.
        run_dir: The run folder.
        config: The settings of the run, for those that show them.
        resumed_at: Images of the checkpoint that the run resumes from.

    Raises:
        ConfigError: An unknown name, or a package that is not installed.
    """
    unknown = [name for name in names if name not in LOGGERS]
    if unknown:
        raise ConfigError("log", f"there is no logger {unknown[0]!r}; expected {join_names(LOGGERS, last=' or ')}")
    if not is_main_process():
        return []
    made: list[TensorBoardLogger | WandbLogger] = []
    for name in dict.fromkeys(names):
        made.append(TensorBoardLogger(run_dir, resumed_at) if name == "tensorboard" else WandbLogger(run_dir, config))
    return made
