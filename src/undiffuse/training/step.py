"""One update's gradient: micro-batches, precision, memory that does not suffice, and numbers that are not finite."""

from __future__ import annotations

import gc

import torch
from torch import Tensor

from undiffuse.distributed import GradientExchange
from undiffuse.distributed.sharding import ShardedGradients
from undiffuse.nets.memory import is_out_of_memory
from undiffuse.nets.runner import NetworkRunner
from undiffuse.train_config import TrainConfig
from undiffuse.training.companions import Trained, companions_of
from undiffuse.training.randomness import derived_seed, seeded
from undiffuse.training.tasks import Inputs, Task


def accumulate(
    task: Task,
    forward: NetworkRunner,
    inputs: Inputs,
    config: TrainConfig,
    exchange: GradientExchange | ShardedGradients,
    images: int,
    microbatch: int,
    loss_scale: float,
) -> dict[str, Tensor]:
    """Adds the gradient of  sum_i weight_i loss_i / batch  over this process's share, one micro-batch after the other.

    Dividing by the global batch, not by the micro-batch, makes the result the gradient of the mean whatever the sizes
    of the parts. Returns the terms [b] of every image, detached.
    """
    parts = []
    pieces = list(inputs.split(microbatch))
    for number, piece in enumerate(pieces):
        if number + 1 == len(pieces):
            exchange.arm()  # sums of gradients over the processes begin while the last ones are computed
        # Dropout is the only thing in a network that draws: its masks become a function of (seed, images, rank,
        # micro-batch).
        with seeded(derived_seed(config.seed, images, exchange.ranks.rank, number), inputs.x0.device):
            terms = task.losses(forward, piece)
            loss = (terms["loss"] * piece.weights).sum() / config.batch
            (loss * loss_scale).backward()
        parts.append({name: value.detach() for name, value in terms.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def accumulate_within_memory(
    task: Task,
    forward: NetworkRunner,
    inputs: Inputs,
    config: TrainConfig,
    exchange: GradientExchange | ShardedGradients,
    images: int,
    microbatch: int,
    loss_scale: float,
) -> tuple[dict[str, Tensor], int]:
    """`accumulate`, with half the micro-batch as often as memory demands: (terms, the micro-batch that fitted).

    The gradients are then those of all processes. One that ran out of memory takes part in the exchange all the same,
    so that no other waits for it, and all repeat the step. Raises MemoryError when even single images do not fit.
    """
    while True:
        terms, problem = None, ""
        try:
            terms = accumulate(task, forward, inputs, config, exchange, images, microbatch, loss_scale)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                exchange.explain(error)
                raise
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Here the exception is gone, and with it the graph that its traceback kept alive.
        if terms is None:
            _let_go(task, inputs)
            exchange.give_up(microbatch, problem)
        if not exchange.finish(failed=terms is None):
            assert terms is not None
            return terms, microbatch
        terms = None
        _let_go(task, inputs)
        if microbatch == 1:
            raise MemoryError(
                f"not even one image of shape {list(inputs.x0.shape[1:])} at a time fits into memory "
                f"({problem or 'on another process'}): "
                "use a smaller network, activation checkpointing (use_checkpoint), or 16-bit precision"
            )
        microbatch = -(-microbatch // 2)


def _let_go(task: Task, inputs: Inputs) -> None:
    """Frees the memory of an attempt."""
    for parameter in Trained(task.net, companions_of(task)).parameters():
        parameter.grad = None
    gc.collect()
    if inputs.x0.device.type == "cuda":
        torch.cuda.empty_cache()
