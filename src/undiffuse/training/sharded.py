"""A run whose network, moments and averages are split over the processes (`TrainConfig.sharding`, FSDP2).

It differs from other runs in where tensors are and who writes them: each process saves its own rows, and reads its own
rows when the run resumes, also from a checkpoint of another number of processes or of a run that was not split.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse import checkpoints, sharded_checkpoints
from undiffuse.distributed import DistContext
from undiffuse.distributed.sharding import Rows, ShardedGradients, gathered, is_sharded, rows_of, shard_
from undiffuse.distributed.stopping import Interrupted
from undiffuse.training.companions import companions_of
from undiffuse.training.folder import Resume, RunFolder
from undiffuse.training.outputs import save_loss_curve
from undiffuse.training.run import Run
from undiffuse.training.saving import Saver
from undiffuse.training.signals import StoppableRunner
from undiffuse.util.errors import ConfigError
from undiffuse.util.files import atomic_file

__all__ = ["ShardedRun", "ShardedSaver", "on_meta"]


class ShardedRun(Run):
    """A run that is split over its processes, see `Run`.

    Raises:
        ConfigError: The task trains other networks as well, or the optimizer is the user's own.
    """

    is_sharded = True

    def _place_network(self) -> ShardedGradients:
        if companions_of(self.task).modules:
            raise ConfigError("sharding", "is for trainings of one network; distillation trains others beside it")
        if self.custom.optimizer is not None:
            raise ConfigError("sharding", "cannot be combined with an optimizer of your own; use AdamW")
        return shard_(self.task.net, self.ranks, self.config.gradient_dtype)

    def _make_looker(self, precision: str) -> StoppableRunner:
        return SplitRunner(self.task.net, precision, self.device, self.ranks)

    def _make_saver(self, log: Callable[[int, Path], None]) -> ShardedSaver:
        return ShardedSaver(self.folder, log, self.ranks)

    def _share_state(self, resumed: Resume | None) -> None:
        path = self.ranks.broadcast_json(None if resumed is None else str(resumed.path.resolve()))
        self._check_shared_disk()
        if path is not None and not self.ranks.is_main:
            tensors, manifest = checkpoints.open_state(path, verify=False)
            self.state.load(tensors, manifest["progress"], self.config)
        self.state.share_counters(self.ranks)

    def _check_shared_disk(self) -> None:
        """OSError, in all processes, if the folder is not on a disk that all see."""
        mine = self.folder.number()
        if self.ranks.any(mine != self.ranks.broadcast_json(mine)):
            raise OSError(
                f"{self.folder.path} is not the same folder in all processes: a sharded run needs a disk that all "
                "machines share, because each process writes a part of the checkpoints"
            )

    @contextmanager
    def calling(self) -> Iterator[DistContext]:
        """Every process does the same calls, because each call gathers the weights of all; see `SplitRunner`."""
        with self.ranks.operation():
            yield replace(self.ranks, rank=0, world_size=1, job=None)

    def whole(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return gathered(tensors, self.ranks)

    def save_reviewed(self) -> None:
        """Changes the manifest only: the folder of parts is there already, and no such folder is written over."""
        path = checkpoints.checkpoint_path(self.folder.path, self.state.images, sharded=True)
        if not self.ranks.broadcast_json(path.exists()):
            self.save(wait=True)
            return
        if self.ranks.is_main:
            manifest = checkpoints.read_manifest(path)
            manifest["progress"].pop("pending", None)
            with atomic_file(path / sharded_checkpoints.MANIFEST, overwrite=True) as file:
                file.write(checkpoints.sharded_manifest(manifest, manifest["files"]).encode())
        self.ranks.barrier()

    def save_after_error(self) -> None:
        """Says that nothing can be saved: the main process has a part of the state, and the others may have ended."""
        if self.ranks.is_main and self.state.images:
            self.log("note", text="an error ends the run; what a sharded run did since its last checkpoint is lost")


class SplitRunner(StoppableRunner):
    """Calls of a split network by all processes at once, for the same images: each computes a part of the output.

    Args:
        net: The network.
        precision: See `NetworkRunner`.
        device: The device of this process.
        ranks: The processes.
    """

    def __init__(self, net: nn.Module, precision: str, device: torch.device, ranks: DistContext) -> None:
        super().__init__(net, precision, device)
        self._ranks = ranks

    def check(self) -> None:
        """Raises `Interrupted` in all processes if one of them is to stop."""
        if self._ranks.any(self.stopping()):
            raise Interrupted

    def __call__(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """See `NetworkRunner`. All processes give the same inputs and get the same output."""
        count = len(x)
        each = -(-count // self._ranks.world_size)
        # All have equally many rows, because all must call the network: the last ones repeat the last image.
        mine = (torch.arange(each, device=x.device) + each * self._ranks.rank).clamp(max=count - 1)
        parts = {name: value[mine] for name, value in conditions.items()}
        return self._ranks.gather(super().__call__(x[mine], t[mine], **parts))[:count]


class ShardedSaver(Saver):
    """Writes the checkpoints of a sharded run: every process its rows, and the main one the manifest.

    Args:
        folder: The run's folder, on a disk that all processes share.
        log: Called with the images of a checkpoint and its path once it is complete.
        ranks: The processes.
    """

    def __init__(self, folder: RunFolder, log: Callable[[int, Path], None], ranks: DistContext) -> None:
        super().__init__(folder, log)
        self._ranks = ranks

    def begin(self, images: int, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
        """Copies this process's rows and begins to write them, see `Saver.begin`. All processes call this."""
        self.wait()
        final = checkpoints.checkpoint_path(self._folder.path, images, sharded=True)
        if self._ranks.is_main:
            self._folder.check_present()
            sharded_checkpoints.begin(final)
        self._ranks.barrier()
        # What is not split is the same in all processes.
        mine = {name: rows_of(t) for name, t in tensors.items() if self._ranks.is_main or is_sharded(t)}
        copied = self._copied({name: rows.local for name, rows in mine.items()})
        if copied is not None:
            mine = {name: replace(rows, local=copied[name]) for name, rows in mine.items()}
        self._start(self._write_rows, images, final, mine, json.loads(json.dumps(manifest)))
        if copied is None:
            self.wait()

    def _write_rows(self, images: int, final: Path, rows: Mapping[str, Rows], manifest: Mapping[str, Any]) -> None:
        ranks = self._ranks
        try:
            from undiffuse.distributed.shard_files import write_rows

            temporary = sharded_checkpoints.temporary_of(final)
            on_cpu = {name: replace(part, local=part.local.cpu().contiguous()) for name, part in rows.items()}
            sharded_checkpoints.note_file(temporary, ranks.rank, write_rows(temporary, on_cpu, ranks.rank))
            if ranks.is_main:
                self._path = self._folder.complete(
                    final, ranks.world_size, lambda files: checkpoints.sharded_manifest(manifest, files),
                    lambda: ranks.is_lost,
                )  # fmt: skip
                save_loss_curve(self._folder.metrics, self._folder.path / "loss_curve.png")
        except Exception as error:
            self._error = error


def on_meta(net: nn.Module) -> nn.Module:
    """Returns a copy of a network whose parameters have no memory, to load weights into when the original is split."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        for parameter in net.parameters()
    }
    return copy.deepcopy(net, memo)
