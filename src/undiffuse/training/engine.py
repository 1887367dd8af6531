"""The training loop, one page long: see `_loop`. Everything it calls is in the other files of this room.

A run is a pure function of its settings: image number n of the stream, its timestep, noise and dropout are functions
of (seed, n), so a run that was stopped, killed or moved to another number of processes resumes as if nothing had
happened.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse import distributed
from undiffuse.data import ImageDataset
from undiffuse.data.torch_dataset import StreamDataset
from undiffuse.train_config import TrainConfig, due
from undiffuse.training import reviews
from undiffuse.training.accumulator import QUARTILES, binned_sums
from undiffuse.training.custom import Custom
from undiffuse.training.deadline import OUT_OF_TIME
from undiffuse.training.diagnosis import brief
from undiffuse.training.evaluation import Evaluator
from undiffuse.training.events import Listener
from undiffuse.training.optim import gradient_norm
from undiffuse.training.run import Run
from undiffuse.training.sharded import ShardedRun
from undiffuse.training.signals import StopSignals
from undiffuse.training.step import accumulate_within_memory
from undiffuse.training.tasks import Task
from undiffuse.util.text import count_of


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        images: Images seen.
        steps: Updates done.
        checkpoint: The newest checkpoint; None in processes other than the main one, which writes no files.
        stopped_by: "complete", "SIGTERM", "SIGINT", "SIGUSR1" or "the time limit".
    """

    images: int
    steps: int
    checkpoint: Path | None
    stopped_by: str

    @property
    def complete(self) -> bool:
        """True if the run reached its full length."""
        return self.stopped_by == "complete"


class NonFiniteError(RuntimeError):
    """Too many updates in a row had a loss or gradient that was not finite; the last good checkpoint is intact.

    `diagnosis` says where: see `undiffuse.training.diagnosis`.
    """

    def __init__(self, message: str, diagnosis: dict[str, Any]) -> None:
        super().__init__(message)
        self.diagnosis = diagnosis


def train(
    task: Task,
    dataset: ImageDataset | StreamDataset,
    config: TrainConfig,
    run_dir: Path | str,
    listeners: Sequence[Listener] = (),
    validation: ImageDataset | None = None,
    recipe: str | None = None,
    init: Mapping[str, Any] | None = None,
    evaluator: Evaluator | None = None,
    custom: Custom | None = None,
) -> Outcome:
    """Trains a task, alone or (started by torchrun) with other processes. The same call again resumes.

    SIGTERM, SIGUSR1 and Ctrl-C finish the update, save and return, and so does the run when its time ends
    (`config.time_limit`). An error saves the state after the last whole update first.

    Args:
        task: The network and what it is trained for.
        dataset: The images to train on.
        config: Length, batch, learning rate and all other settings.
        run_dir: Gets config.json, metrics.jsonl, loss_curve.png, previews/ and checkpoints/.
        listeners: Called with every `Event` in the main process. A listener may also have `update` (called after
            every update with the images seen, the images of the whole run, and a function that makes a record of the
            moment) and `close` (called at the end).
        validation: Held-out images; their terms are reported by noise level.
        recipe: Name of the recipe, kept in the checkpoints.
        init: Where the weights of the task come from ("from" and more), kept in the checkpoints.
        evaluator: Measures samples every `evaluate_every` images and keeps the best weights in best.safetensors.
        custom: A user's own optimizer, learning-rate schedule and density of noise levels.

    Returns:
        How the run ended.

    Raises:
        ValueError: The folder holds a run with other settings.
        OSError: The folder cannot be written, has no room for checkpoints, or was deleted during the run.
        NonFiniteError: The training diverges.
        MemoryError: Not even one image fits into memory.
    """
    with (
        distributed.session(config.device) as ranks,
        StopSignals(announce=lambda: ranks.is_main and not ranks.is_lost) as signals,
        (ShardedRun if config.sharding == "fsdp" and ranks.world_size > 1 else Run)(
            task, dataset, config, Path(run_dir), ranks, listeners, validation, recipe, init, evaluator, custom
        ) as run,
    ):
        try:
            stopped_by = _loop(run, signals)
        except NonFiniteError:  # a state in trouble would become the newest checkpoint, and a resumed run begin with it
            raise
        except Exception:
            run.save_after_error()
            raise
        state = run.state
        return Outcome(images=state.images, steps=state.steps, checkpoint=run.checkpoint, stopped_by=stopped_by)


def _loop(run: Run, signals: StopSignals) -> str:
    task, state, config, ranks = run.task, run.state, run.config, run.ranks
    stream = run.batches()
    parameters = list(state.trained.parameters())
    stop = save = False
    reason: str | None = None
    every = {"preview": config.preview_every, "validate": config.validate_every, "evaluate": config.evaluate_every}
    missed = state.pending  # what a signal kept the run from showing before
    reviews.review(run, missed, signals)
    stop = bool(state.pending)
    if missed and not stop and state.images >= config.total_images:
        run.save_reviewed()
    clock = time.monotonic()

    while state.images < config.total_images and not stop:
        # The next images; their noise levels. (Their noise is drawn by the task, from the same positions.)
        run.check_saved()
        batch = next(stream)
        inputs = run.inputs(batch)

        # The objective's terms; weighted mean, backward; the sum of gradients over all processes.
        state.optimizer.zero_grad(set_to_none=True)
        terms, microbatch = accumulate_within_memory(
            task, run.forward, inputs, config, run.exchange, state.images, state.microbatch, state.scale.value
        )
        run.note_microbatch(microbatch)
        gradients = [p.grad for p in parameters if p.grad is not None]
        state.scale.unscale_(gradients)

        # A finite check that counts and never hides.
        norm = gradient_norm(gradients, ranks)
        sums = binned_sums(terms, inputs.t, inputs.weights, run.chain_steps, QUARTILES)
        not_finite = float((~torch.isfinite(terms["loss"])).sum())
        reason = signals.received or (OUT_OF_TIME if run.deadline.reached() else None)
        bad_losses, stop, sums = _agree(ranks, not_finite, reason is not None, sums)
        good = bad_losses == 0 and norm < float("inf")

        # Optimiser; EMA; what the timestep sampler learns.
        lr = state.set_learning_rate()
        if good:
            if config.grad_clip is not None and norm > config.grad_clip:
                torch._foreach_mul_(gradients, config.grad_clip / norm)
            run.between_updates = False  # a checkpoint of this moment would be half of one update, half of the next
            state.apply_update()
            run.inform_sampler(inputs, terms["loss"])
            state.accumulator.add(sorted(terms), sums, norm)
            state.updates += 1
            state.bad_in_a_row = 0
            problem = None
        else:
            problem = run.count_bad_update(inputs, terms, batch, overflow=bad_losses == 0)
        state.scale.update(overflow=not good)

        # The counters, in images; one record to whoever listens; then, when due, pictures and a checkpoint.
        before = state.images
        state.images += config.batch
        state.steps += 1
        now = time.monotonic()
        state.seconds, clock = state.seconds + now - clock, now
        run.between_updates = True
        done = state.images >= config.total_images
        if problem is not None:
            run.log("skipped", **brief(problem))
            if state.bad_in_a_row > config.max_bad_updates or (done and not state.updates):
                raise NonFiniteError(run.diagnosis_text(problem), problem)
        run.show(lr)
        if due(config.log_every, before, state.images) or done:
            run.log_progress(lr)
        # Pictures and validation before the checkpoint: what a kill interrupts is done again from the one before.
        looks = [name for name, images in every.items() if due(images, before, state.images) or done]
        if stop:
            state.pending = looks  # done when the run resumes
        else:
            reviews.review(run, looks, signals)
        if due(config.posthoc_every, before, state.images) or done:
            reviews.snapshot(run)
        stop = stop or bool(state.pending)
        save = save or due(config.save_every, before, state.images) or due(config.milestones, before, state.images)
        save = save or run.save_by_clock()
        # A run in trouble must not push out its good checkpoints.
        if (save and state.bad_in_a_row == 0) or done or stop:
            run.save(wait=done or stop)
            save = False
        clock = time.monotonic()  # looking at the run is not training: speed and time left are those of the steps

    if state.images >= config.total_images and not state.pending:
        bad = state.bad_in_a_row
        skipped = f"; the last {count_of(bad, 'update')} were not finite, and were skipped" if bad else ""
        run.log("end", text=f"complete after {state.images:,} images{skipped}")
        return "complete"
    reasons = ranks.gather_json(signals.received or reason)  # the signal may have reached another process only
    stopped_by = next(filter(None, reasons))
    run.log("end", text=f"stopped by {stopped_by} after {state.images:,} images")
    return str(stopped_by)


def _agree(ranks: distributed.DistContext, bad: float, stop: bool, sums: Tensor) -> tuple[float, bool, Tensor]:
    """One small message a step: the number of bad losses, whether anyone was asked to stop, the sums of the terms."""
    if ranks.world_size == 1:
        return bad, stop, sums
    message = torch.cat([torch.tensor([bad, float(stop)], dtype=torch.float64), sums.reshape(-1)]).to(ranks.device)
    message = ranks.sum_(message).cpu()
    return float(message[0]), bool(message[1] > 0), message[2:].reshape(sums.shape)
