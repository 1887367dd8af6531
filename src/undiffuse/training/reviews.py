"""Looks at a run between its updates: previews, validation, evaluation, snapshots. They do not influence the training.

The main process writes files. Where the network is split over the processes, all of them call it with the same inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from undiffuse.distributed.stopping import CommonStop, Interrupted, together
from undiffuse.nets.memory import is_out_of_memory
from undiffuse.training.evaluation import BEST, evaluated_weights, keep_best
from undiffuse.training.outputs import save_accuracy_curve, save_loss_curve, save_previews
from undiffuse.training.posthoc import save_snapshot
from undiffuse.training.run import Run
from undiffuse.training.signals import StopSignals
from undiffuse.training.tasks import DiffusionTask
from undiffuse.training.validation import validate as measure_terms

LOOKS = {"preview": "preview", "validate": "validation", "evaluate": "evaluation"}
__all__ = ["evaluate", "preview", "review", "snapshot", "validate"]


def review(run: Run, names: Sequence[str], signals: StopSignals) -> None:
    """Looks at a run; what a signal to stop prevents or cuts short is pending in its state.

    Args:
        run: The run.
        names: "preview", "validate" and "evaluate", in this order.
        signals: Those that stop the run.
    """
    run.state.pending = []
    if not names:
        return
    stop = run.forward_evaluation.stopping = CommonStop(run.ranks, lambda: signals.received is not None)
    with stop.told_while_waiting():
        for k, name in enumerate(names):
            try:
                with together(run.ranks):
                    if stop():
                        raise Interrupted
                with together(run.ranks):
                    {"preview": preview, "validate": validate, "evaluate": evaluate}[name](run)
            except Interrupted:
                run.state.pending = list(names[k:])
                return
            except (MemoryError, RuntimeError) as error:
                # Of several processes the others wait for this one, so that it cannot go on alone.
                if run.ranks.world_size > 1 or not is_out_of_memory(error):
                    raise
                run.log("note", text=f"no {LOOKS[name]} at {run.state.images:,} images: memory did not suffice")


def preview(run: Run) -> None:
    """Draws grids from the trained and the averaged weights, and the loss curve."""
    state, main = run.state, run.ranks.is_main
    if main:
        run.folder.check_present()
    if main or run.is_sharded:
        paths, folder = [], run.folder.path if main else None
        try:
            with run.calling():
                paths = save_previews(
                    run.task, state.ema, run.forward_evaluation, run.config, state.images, folder, run.device
                )
        except ValueError as error:  # a picture that cannot be drawn is no reason to end a training
            run.log("note", text=f"no preview: {error}")
        if main:
            save_loss_curve(run.folder.metrics, run.folder.path / "loss_curve.png")
        if paths:
            run.log("preview", text=f"{len(paths)} grids, {paths[-1]}", files=[p.name for p in paths])


def validate(run: Run) -> None:
    """Measures terms on the validation data by noise level; for a classifier, draws its accuracy."""
    if run.validation_data is None:
        return
    with run.calling() as ranks:
        result = measure_terms(
            run.task, run.state.ema, run.forward_evaluation, run.validation_data, run.config, run.chain_steps, ranks
        )
    run.log("validation", **result)
    if run.ranks.is_main and run.task.kind == "classifier" and run.task.labels_count is not None:
        path = run.folder.path / "accuracy_by_noise.png"
        save_accuracy_curve(result["by_tenth"], run.chain_steps, run.task.labels_count, path)


def evaluate(run: Run) -> None:
    """Measures samples by the averaged weights with quick metrics; the best weights are kept."""
    if run.evaluator is None or not isinstance(run.task, DiffusionTask):
        return
    ema = run.state.ema
    with run.calling() as ranks:
        values = run.evaluator.measure(run.task, ema, run.forward_evaluation, run.config, ranks)
    if run.is_sharded:
        values = run.ranks.broadcast_json(values)  # what follows is the same in all processes
    run.log("evaluation", **values)
    best = run.evaluator.is_best(values)
    if best is not None and (run.ranks.is_main or run.is_sharded):
        tensors = run.whole(evaluated_weights(run.task, ema, values["weights"]))
        if run.ranks.is_main:
            keep_best(run.folder.path, tensors, values["weights"], run.manifest(), best)
            run.log("best", text=f"{best['metric']} {best['value']:.4g}, kept in {run.folder.path / BEST}")
    run.ranks.barrier()


def snapshot(run: Run) -> None:
    """Stores the power-function averages, from which others are made after training; none before the first update."""
    state = run.state
    for name in state.powers.names if state.updates and (run.ranks.is_main or run.is_sharded) else ():
        weights = run.whole(state.powers.weights(name))
        if run.ranks.is_main:
            save_snapshot(run.folder.path, name, weights, state.images, state.updates, run.manifest())
    run.ranks.barrier()
