"""Quick metrics while training: samples of the averaged weights against a reference, and the best weights kept.

A few hundred samples in a few steps say whether a run gets better; they are biased by their small number and say
nothing beside published numbers. Samples are always of the same noise and classes, so a run's values compare with each
other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undiffuse import checkpoints
from undiffuse.distributed import DistContext
from undiffuse.ema import EMA
from undiffuse.evaluation import MadeImages, Summary, compute_metrics, extract, higher_is_better
from undiffuse.metrics import Estimate, MetricError
from undiffuse.metrics.extractors import Extractor
from undiffuse.nets.runner import NetworkRunner
from undiffuse.pixels import to_uint8
from undiffuse.train_config import TrainConfig
from undiffuse.training.outputs import evaluating
from undiffuse.training.tasks import DiffusionTask

__all__ = ["BEST", "Evaluator"]

BEST = "best.safetensors"
AT_ONCE = 64


@dataclass(kw_only=True)
class Evaluator:
    """What samples are measured by and against: one reference for each extractor.

    `best_by`  the metric whose best weights are kept in best.safetensors, by its name or the beginning of it; None: the
               first Frechet distance
    """

    extractors: Sequence[Extractor]
    references: Sequence[Summary]
    best_by: str | None = None
    best: dict[str, Any] | None = field(default=None, init=False)

    def resume(self, folder: Path) -> None:
        """Remember the best value of the run so far, from the weights that were kept."""
        path = folder / BEST
        if path.is_file():
            try:
                self.best = checkpoints.read_manifest(path).get("evaluation")
            except (checkpoints.CheckpointError, OSError):
                self.best = None

    def measure(
        self, task: DiffusionTask, ema: EMA, forward: NetworkRunner, config: TrainConfig, ranks: DistContext
    ) -> dict[str, Any]:
        """The values, by name, with "<name> error"; the processes share the sampling and all get the values."""
        which = max(ema.names, key=float) if ema.names else "net"
        count, device = config.evaluate_images, ranks.device
        names = task.preview_labels(count)
        table = list(dict.fromkeys(names)) if names else None
        labels = None if not names or not table else np.array([table.index(name) for name in names], dtype=np.int64)

        def make(numbers: list[int]) -> torch.Tensor:
            pictures = task.make(forward, config.seed, numbers, config.evaluate_steps, device)
            return to_uint8(pictures.float()).cpu()

        shape = (*task.spec.size, task.spec.in_channels)
        images = MadeImages(
            make, count, shape, where="samples", identity={}, batch=AT_ONCE, labels=labels, label_names=table
        )
        with evaluating(task.net), ema.applied(which) if ema.names else nullcontext():
            found = extract(images, self.extractors, ranks=ranks)
        estimates: list[Estimate] = []
        for features, reference in zip(found, self.references, strict=True):
            estimates += compute_metrics(Summary.of(features), reference).estimates
        wanted = [e for e in estimates if not e.name.startswith(("density", "coverage"))]
        out: dict[str, Any] = {}
        for estimate in wanted:
            out[estimate.name] = estimate.value
            if estimate.stderr is not None:
                out[f"{estimate.name} error"] = estimate.stderr
        return {**out, "samples": count, "steps": config.evaluate_steps, "weights": which, "small_sample": True}

    def is_best(self, values: dict[str, Any]) -> dict[str, Any] | None:
        """What to write beside the weights if these values are the best so far, else None.

        Raises MetricError if `best_by` is not among them.
        """
        name = self._metric(values)
        value = float(values[name])
        if not math.isfinite(value):
            return None
        sign = 1 if higher_is_better(name) else -1
        before = self.best["value"] if self.best is not None and self.best.get("metric") == name else None
        if before is not None and sign * value <= sign * before:
            return None
        self.best = {"metric": name, "value": value, "values": values}
        return self.best

    def _metric(self, values: dict[str, Any]) -> str:
        names = [name for name, value in values.items() if isinstance(value, float) and not name.endswith(" error")]
        if self.best_by is None:
            return next((name for name in names if name.startswith("F")), names[0])
        wanted = self.best_by.casefold()
        for name in names:
            if name.casefold() == wanted:
                return name
        for name in names:
            if name.casefold().startswith(wanted):
                return name
        raise MetricError(
            f"there is no metric {self.best_by!r} to choose the best weights by; there are {', '.join(names)}"
        )


def evaluated_weights(task: DiffusionTask, ema: EMA, which: str) -> dict[str, torch.Tensor]:
    """The tensors of a model with the weights that were evaluated."""
    with ema.applied(which) if ema.names else nullcontext():
        return {f"net.{name}": tensor.detach().clone() for name, tensor in task.net.state_dict().items()}


def keep_best(
    folder: Path, tensors: Mapping[str, torch.Tensor], which: str, manifest: dict[str, Any], evaluation: dict[str, Any]
) -> None:
    """Write the weights that were evaluated as a model of their own, in place of the best ones before."""
    about = {**manifest, "ema": [], "weights": which, "evaluation": evaluation}
    checkpoints.write(folder / BEST, tensors, about)
