"""The terms of a task on held-out images, by noise level: every time the same images, timesteps and noise."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from undiffuse.data import ImageDataset, pass_once
from undiffuse.distributed import DistContext
from undiffuse.distributed.stopping import together
from undiffuse.ema import EMA
from undiffuse.nets.runner import NetworkRunner
from undiffuse.pixels import from_pixels
from undiffuse.train_config import TrainConfig
from undiffuse.training.accumulator import QUARTILES, binned_sums, means
from undiffuse.training.conditions import condition_tensors
from undiffuse.training.outputs import evaluating
from undiffuse.training.tasks import Inputs, Task

TENTHS = 10
NOISE_SEED = 0  # not the run's: validation numbers of different runs then compare image by image


def validate(
    task: Task,
    ema: EMA,
    forward: NetworkRunner,
    dataset: ImageDataset,
    config: TrainConfig,
    chain_steps: int,
    ranks: DistContext,
) -> dict[str, Any]:
    """Means of all terms over (at most `validate_images`) held-out images, with "by_quartile" and "by_tenth" of the
    chain.

    Image j of n is shown at timestep floor(T (phi j mod 1)), phi the golden ratio's fraction: evenly spread over the
    chain, and over the noise levels within every class. The slowest average is measured if there is one ("weights"
    says which), without augmentation, shared among the processes.
    """
    count = min(config.validate_images, len(dataset))
    # Evenly spaced over the source: files are often sorted by class, so the first n would be a few classes only.
    chosen = np.arange(count) * len(dataset) // count
    held_out = ImageDataset(dataset.source.subset(chosen), dataset.config)
    which = max(ema.names, key=float) if ema.names else "net"
    totals: dict[int, torch.Tensor] = {}
    names: list[str] = []
    size = max(ranks.world_size, min(config.batch, config.microbatch or 64 * ranks.world_size))
    with evaluating(task.net), ema.applied(which) if ema.names else nullcontext(), together(ranks):
        # Fewer images than processes: every process sees them all, which leaves the means as they are.
        rank, world_size = (ranks.rank, ranks.world_size) if count >= ranks.world_size else (0, 1)
        for batch in pass_once(held_out, size, rank=rank, world_size=world_size, workers=config.workers):
            device = ranks.device
            t = (batch.positions.double() * 0.6180339887498949 % 1.0 * chain_steps).long().clamp(max=chain_steps - 1)
            inputs = Inputs(
                x0=from_pixels(batch.images, device),
                labels=None if batch.labels is None else batch.labels.to(device),
                t=t,
                weights=torch.ones(len(t), device=device),
                positions=batch.positions,
                seed=NOISE_SEED,
                cond=condition_tensors(task.conditions, batch, device),
            )
            terms = task.losses(forward, inputs)
            names = sorted(terms)
            for bins in (QUARTILES, TENTHS):
                sums = binned_sums(terms, t, inputs.weights, chain_steps, bins)
                totals[bins] = totals[bins] + sums if bins in totals else sums
    # A process whose share was empty still takes part; it learns the names from the main process, which has a share.
    names = ranks.broadcast_json(names)
    out: dict[str, Any] = {}
    for bins, key in ((QUARTILES, "by_quartile"), (TENTHS, "by_tenth")):
        sums = totals.get(bins, torch.zeros(1 + len(names), 1 + bins, dtype=torch.float64))
        out |= means(ranks.sum_(sums.to(ranks.device)).cpu() if ranks.world_size > 1 else sums, names, key)
    return {**out, "validation_images": count, "weights": which}
