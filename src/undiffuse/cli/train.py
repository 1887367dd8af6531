"""`undiffuse train` and `undiffuse train-classifier`."""

from __future__ import annotations

import argparse
from typing import Any

from undiffuse import checkpoints
from undiffuse.cli.console import fail, say
from undiffuse.cli.containers import LAYOUTS
from undiffuse.cli.train_evaluator import build_evaluator
from undiffuse.cli.training_options import naming_options
from undiffuse.cli.training_report import finish, forecast
from undiffuse.data import ImageDataset, check_trainable
from undiffuse.data.condition_specs import parse_condition
from undiffuse.kernels import keep_memory
from undiffuse.pipelines.grids import quoted
from undiffuse.training.deadline import OUT_OF_TIME, REQUEUE
from undiffuse.training.face import MODEL, run_plan
from undiffuse.training.plan import plan
from undiffuse.training.progress import TrainingProgress
from undiffuse.training.request import TrainRequest, read_request
from undiffuse.util.launch import is_main_process
from undiffuse.util.text import count_of, join_names

STOPPED = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": REQUEUE, OUT_OF_TIME: REQUEUE}
_RECIPE_FIELDS = ("microbatch", "lr", "timesteps", "precision", "compile", "time_limit")
_EVALUATION = ("against", "extractor", "extractor_weights", "grey", "best_by")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    keep_memory()
    with naming_options():
        made = plan(request_of(args))
        task = made.build_task()
        init = made.init.begin(task.net, task.process, made.labels) if made.init is not None else None
        if isinstance(made.dataset, ImageDataset):
            check_trainable(made.dataset, made.config.batch, conditional=task.labels_count is not None)
        newest = checkpoints.latest(made.out)
        complete = newest is not None and checkpoints.images_of(newest) >= made.config.total_images
        expected: float | None = None
        if not complete and is_main_process():
            text, expected = forecast(made, task, init)
            say(text)
        evaluator = None if complete else build_evaluator(made)
        progress = TrainingProgress()
        progress.expect(expected)
        outcome = run_plan(made, task, [progress], init=init, evaluator=evaluator)
    if not is_main_process():
        return 0 if outcome.complete else STOPPED.get(outcome.stopped_by, 1)
    if replaced := made.dataset.replaced:
        names = join_names((made.dataset.source.name(i) for i in replaced), 10)
        unread = count_of(len(replaced), "image")
        say(f"{unread} could not be read; the next image in the data took the place of each: {names}")
    if not outcome.complete:
        fail(
            f"stopped by {outcome.stopped_by} after {count_of(outcome.images, 'image')}; saved in {made.out}. "
            f"To resume: undiffuse {args.command} --resume {quoted(made.out.as_posix())}",
            prefix="",
        )
        return STOPPED.get(outcome.stopped_by, 1)
    if not progress.trained and (made.out / MODEL).is_file() and complete:
        say(
            f"{made.out} is already trained for {count_of(outcome.images, 'image')}: nothing to do. "
            "Use a larger --images to train it further, or --out to start another run"
        )
    else:
        say(finish(made, outcome))
    return 0


def request_of(args: argparse.Namespace) -> TrainRequest:
    """Returns the training request from parsed options; for a resumed run, its own request with the given changes.

    Raises:
        ValueError: Both --resume and --out are given, or --resume of a run of the other kind.
    """
    kind = "classifier" if args.command == "train-classifier" else "diffusion"
    names = [name for name in TrainRequest.__dataclass_fields__ if name not in ("kind", "overrides", "evaluation")]
    given: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    if "layout" in given:
        given["layout"] = LAYOUTS[str(args.layout).lower()]
    if "patches" in given:
        size, given["patches"] = args.patches
        if given.setdefault("size", size) != size:
            raise ValueError("--size must equal the size of --patches; leave it out")
    given["log"] = tuple(args.log) or None
    if "condition" in given:
        given["condition"] = tuple(str(parse_condition(text)) for text in given["condition"])
    fields = {f"train.{name}": getattr(args, name) for name in _RECIPE_FIELDS if getattr(args, name) is not None}
    if args.ema is not None:
        fields["train.ema_decays"] = args.ema
    given["overrides"] = {**fields, **dict(args.sets)}
    if getattr(args, "evaluate_every", None) is not None:
        options = {name: getattr(args, f"evaluate_{name}" if name == "against" else name) for name in _EVALUATION}
        counts = {"every": args.evaluate_every, "images": args.evaluate_images}
        given["evaluation"] = {name: value for name, value in {**counts, **options}.items() if value is not None}
    if args.resume is not None:
        if args.out is not None:
            raise ValueError("--out cannot be combined with --resume, which names the run folder; omit one")
        request = read_request(args.resume)
        if request.kind != kind:
            command = "train-classifier" if request.kind == "classifier" else "train"
            what = "classifier" if request.kind == "classifier" else "diffusion model"
            raise ValueError(
                f"--resume: {args.resume} is a run of a {what}; use undiffuse {command} --resume {quoted(args.resume)}"
            )
        return request.changed(given)
    if kind == "classifier":
        given.setdefault("validation", "0.05")
    return TrainRequest(data=given.pop("data"), kind=kind).changed(given)
