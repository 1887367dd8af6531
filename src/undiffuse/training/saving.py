"""Checkpoints of a run, written in the background: training waits only until the state is copied to memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.pipelines.memory import free_bytes
from undiffuse.training.folder import FolderLostError, RunFolder
from undiffuse.training.outputs import save_loss_curve

__all__ = ["Saver", "state_bytes"]

_ROOM = 1.5
"""The copy of the state may take one part in so many of the free memory; else training waits for the file."""


class Saver:
    """Writes the checkpoints of a run, one after the other, in a thread of its own.

    A failure is raised by the next call of any method.

    Args:
        folder: The run's folder.
        log: Called with the images of a checkpoint and its path once it is on disk.
    """

    def __init__(self, folder: RunFolder, log: Callable[[int, Path], None]) -> None:
        self.newest: Path | None = None
        self._folder, self._log = folder, log
        self._thread: threading.Thread | None = None
        self._images = 0
        self._path: Path | None = None
        self._error: Exception | None = None

    def begin(self, images: int, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
        """Copies the state and begins to write it, after the checkpoint before is done.

        Args:
            images: Images seen.
            tensors: The state, which may change after this call.
            manifest: Everything else.

        Raises:
            OSError: The checkpoint before could not be written, or the folder is gone.
        """
        self.wait()
        self._folder.check_present()
        copied = self._copied(tensors)
        self._start(self._write, images, copied or tensors, json.loads(json.dumps(manifest)))
        if copied is None:
            self.wait()

    def _copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Copies of tensors in the memory of the CPU; None if there is no room for them."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        free = free_bytes(torch.device("cpu"))
        if free is not None and size * _ROOM >= free:
            return None
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def _start(self, write: Callable[..., None], images: int, *arguments: Any) -> None:
        self._images = images
        self._thread = threading.Thread(target=write, args=(images, *arguments), name="checkpoint")
        self._thread.start()

    def poll(self) -> None:
        """Reports a checkpoint that was finished since.

        Raises:
            OSError: It could not be written.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Waits until the checkpoint is on disk, and reports it.

        Raises:
            OSError: It could not be written.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error, path = None, self._error, self._path
        self._error = self._path = None
        if error is not None:
            raise error
        if path is not None:
            self.newest = path
            self._log(self._images, path)

    def now(self, images: int, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> Path:
        """Writes a state at once and deletes nothing, for a run that an error ends.

        Raises:
            OSError: It cannot be written.
        """
        with suppress(OSError, ValueError):  # what failed before is why the run ends
            self.wait()
        self.newest = self._folder.save(images, tensors, manifest, prune=False)
        return self.newest

    def ready(self) -> bool:
        """Makes the run's folder again if it was deleted; False if another run has taken its place."""
        try:
            self._folder.check_present()
        except FolderLostError as error:
            if not error.free:
                return False
            self._folder.path.mkdir(parents=True, exist_ok=True)
        return True

    def _write(self, images: int, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
        try:
            self._path = self._folder.save(images, tensors, manifest)
            save_loss_curve(self._folder.metrics, self._folder.path / "loss_curve.png")
        except Exception as error:
            self._error = error


def state_bytes(tensors: Mapping[str, Tensor], net: nn.Module, manifest: Mapping[str, Any]) -> int:
    """Returns about the bytes of a checkpoint; optimizers of the user's own are taken to keep two numbers a weight.

    Args:
        tensors: The state.
        net: The network.
        manifest: Everything else.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if not any(name.startswith("optimizer.") for name in tensors):
        size += 2 * sum(p.numel() * p.element_size() for p in net.parameters())
    return size + 200 * len(tensors) + len(json.dumps(manifest))
