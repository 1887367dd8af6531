"""Writes this process's rows of a checkpoint by torch.distributed.checkpoint, as safetensors, without pickles.

The planner and the numbering of files are our own. Those of PyTorch exchange pickled plans between the processes, and
their safetensors writer lets processes write over each other's file unless it knows their numbers. Here each process
writes alone, in a thread if it likes. `torch.distributed.checkpoint.load` reads the files with its
HuggingFaceStorageReader, and `undiffuse.sharded_checkpoints` without torch.distributed.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType

from undiffuse.distributed.sharding import Rows

__all__ = ["write_rows"]

# Each process saves alone on purpose.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", module="torch.distributed.checkpoint")


def write_rows(folder: Path, rows: Mapping[str, Rows], rank: int) -> Path | None:
    """Writes a file of this process's rows, flushed to disk.

    Args:
        folder: A folder of this checkpoint alone.
        rows: Rows by the names of their tensors, on the CPU.
        rank: Number of this process.

    Returns:
        The file; None if this process has no rows.

    Raises:
        OSError: It cannot be written.
    """
    kept = {name: part for name, part in rows.items() if part.local.numel() or (rank == 0 and 0 in part.shape)}
    if not kept:
        return None
    try:
        dcp.save({}, storage_writer=_Writer(folder, rank), planner=_Planner(kept), no_dist=True)
    except dcp.CheckpointException as error:
        for problem in error.failures.values():
            raise (problem[0] if isinstance(problem[0], OSError) else OSError(str(problem[0]))) from error
        raise OSError(str(error)) from error
    return folder / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"


class _Writer(dcp.HuggingFaceStorageWriter):
    """Gives the file of this process its number."""

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__(str(folder), save_distributed=True)
        self._rank = rank

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [dataclasses.replace(plan, storage_data={"shard_index": self._rank + 1}) for plan in plans]


class _Planner(SavePlanner):
    """Plans to write the rows of this process, whatever the others do."""

    def __init__(self, rows: Mapping[str, Rows]) -> None:
        self._rows = rows

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        pass

    def create_local_plan(self) -> SavePlan:
        return SavePlan([_item(name, rows) for name, rows in self._rows.items()])

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return all_plans, Metadata({})

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self._rows[write_item.index.fqn].local


def _item(name: str, rows: Rows) -> WriteItem:
    offsets = torch.Size([rows.start, *(0 for _ in rows.shape[1:])] if rows.shape else [])
    chunk = ChunkStorageMetadata(offsets=offsets, sizes=rows.local.shape)
    data = TensorWriteData(
        chunk=chunk, properties=TensorProperties.create_from_tensor(rows.local), size=torch.Size(rows.shape)
    )
    return WriteItem(index=MetadataIndex(name, offsets), type=WriteItemType.SHARD, tensor_data=data)
