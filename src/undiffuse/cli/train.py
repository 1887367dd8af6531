"""`undiffuse train` and `undiffuse train-classifier`: plan, summary, progress, and a slim model file at the end."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undiffuse import checkpoints, recipes
from undiffuse.cli.console import Live, fail, fields, is_main, say, table
from undiffuse.cli.planning import Plan, make_plan
from undiffuse.cli.train_evaluator import build_evaluator
from undiffuse.data import check_trainable
from undiffuse.data.labels import listed
from undiffuse.distributed import resolve_device
from undiffuse.kernels import keep_memory
from undiffuse.models import load_model, save_model
from undiffuse.pipelines.grids import quoted
from undiffuse.training import (
    ClassifierTask,
    DiffusionTask,
    Outcome,
    Record,
    Task,
    format_progress,
    read_records,
    seeded,
    train,
)
from undiffuse.training.records import progress_parts

MODEL = "model.safetensors"
STOPPED = {"SIGINT": 130, "SIGTERM": 143}
FEW = 50  # held-out images below which an accuracy is hardly one
MODES = {1: "grey", 3: "RGB", 4: "RGBA"}


def run(args: argparse.Namespace) -> int:
    """The command."""
    keep_memory()
    plan = make_plan(args)
    task = build_task(args, plan)
    init = plan.start.begin(task.net, task.process, plan.labels) if plan.start is not None else None
    check_trainable(plan.dataset, plan.recipe.train.batch, conditional=task.labels_count is not None)
    newest = checkpoints.latest(plan.out)
    done = checkpoints.images_of(newest) if newest else 0
    if done < plan.recipe.train.total_images:
        say(summary(args, plan, task, init))
    evaluator = build_evaluator(args, plan) if done < plan.recipe.train.total_images else None
    reporter = Reporter()
    try:
        outcome = train(
            task,
            plan.dataset,
            plan.recipe.train,
            plan.out,
            [reporter],
            plan.validation,
            plan.recipe.name,
            init,
            evaluator,
        )
    finally:
        reporter.live.clear()
    if not is_main():
        return 0 if outcome.complete else STOPPED.get(outcome.stopped_by, 1)
    if plan.dataset.replaced:
        say(f"{len(plan.dataset.replaced):,} images could not be read and were replaced by their neighbours: "
            + listed(plan.dataset.source.name(i) for i in plan.dataset.replaced))  # fmt: skip
    if not outcome.complete:
        fail(
            f"stopped by {outcome.stopped_by} after {outcome.images:,} images; all is saved in {plan.out}, and the "
            "same command goes on from there",
            prefix="",
        )
        return STOPPED.get(outcome.stopped_by, 1)
    if not reporter.trained and (plan.out / MODEL).is_file():
        say(
            f"{plan.out} is already trained for {outcome.images:,} images; nothing to do "
            "(a larger --images goes on, --out starts another)"
        )
    else:
        say(finish(args, plan, outcome))
    return 0


def build_task(args: argparse.Namespace, plan: Plan) -> Task:
    """The network with fresh weights, and what it is trained for.

    Initialisation is torch's own, which draws from the global generator: `seeded` sets that from the run's seed and
    puts it back, so that the weights are a function of the seed and nothing else notices.
    """
    recipe = plan.recipe
    with seeded(recipe.train.seed):
        net: Any = recipe.net.build()
    if recipe.kind == "classifier":
        clean = recipe.clean_fraction if args.clean_fraction is None else args.clean_fraction
        return ClassifierTask(net, recipe.process, labels=plan.labels, noise=not args.clean, clean_fraction=clean)
    low = None
    if recipe.low_size is not None:
        height, width = recipe.net.size
        low = (recipe.low_size * height // min(height, width), recipe.low_size * width // min(height, width))
    assert recipe.objective is not None  # Recipe checks that a diffusion model has one
    return DiffusionTask(
        net, recipe.process, recipe.objective, labels=plan.labels, label_dropout=recipe.label_dropout, low_size=low
    )


def summary(args: argparse.Namespace, plan: Plan, task: Task, init: Mapping[str, Any] | None = None) -> str:
    """What is going to happen, in a few lines."""
    recipe, config, dataset = plan.recipe, plan.recipe.train, plan.dataset
    device = resolve_device(config.device, int(os.environ.get("LOCAL_RANK", "0")))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    net: Any = task.net
    parameters = sum(p.numel() for p in net.parameters())
    height, width, channels = dataset.shape
    prepared = [f"{height}x{width} {MODES[channels]}", "padded" if dataset.config.fit == "pad" else "cropped"]
    prepared += ["randomly cropped"] if dataset.config.random_crop else []
    prepared += ["mirrored at random"] if dataset.config.flip else ["not mirrored (--flip)"]
    held = f"{len(plan.validation):,} others to validate" if plan.validation is not None else "none held out"
    counts = {name: n for name, n in dataset.source.class_counts().items() if n}
    named = listed((f"{name} ({n:,})" for name, n in counts.items()), 6)
    classes = f"{len(counts)} classes: {named}" if counts else "no labels"
    if recipe.kind == "classifier":
        noisy = "clean images only" if args.clean else f"noisy images, {recipe.process.steps} levels"
        what = f"classifier of {noisy}"
    else:
        told = f"told one of {task.labels_count} classes" if task.labels_count is not None else "unconditional"
        told += f" (not in {100 * recipe.label_dropout:g} % of the images)" if recipe.label_dropout else ""
        what = f"diffusion model, {told}"
    process = recipe.process
    loss = ""
    if recipe.objective is not None:
        weighting = recipe.objective.weighting
        loss = f", {recipe.objective.loss} loss" + ("" if weighting == "native" else f" weighted by {weighting}")
        loss += "" if config.levels == "uniform" else f", levels {config.levels}"
    newest = checkpoints.latest(plan.out)
    state = f"goes on after {checkpoints.images_of(newest):,} images" if newest else "new"
    total = config.total_images
    about = [dataset.source.where, f"{len(dataset):,} images, {held}", classes, ", ".join(prepared), *plan.remarks]
    rows: list[tuple[str, object]] = [
        ("data", "\n".join(about)),
        ("recipe", f"{recipe.name} ({plan.why})"),
        ("network", f"{what}, {parameters / 1e6:.2f} million parameters"),
        ("begins with", None if init is None or newest else _beginning(init)),
        ("process", f"{process.levels_text}, "
                    + (f"predicts {process.target}, variance {process.variance}{loss}" if loss else "for guidance")),
        ("training", f"{total:,} images in batches of {config.batch}{_reduced(args, plan)} "
                     f"({total // config.batch:,} updates, {_epochs(total / len(dataset))} epochs)\n"
                     f"learning rate {config.lr:g}, {config.precision}, "
                     f"{f'{world} x ' if world > 1 else ''}{device.type}, seed {config.seed}"),
        ("run", f"{plan.out} ({state})"),
    ]  # fmt: skip
    text = f"undiffuse {args.command}\n{fields(rows)}"
    if device.type == "cpu" and newest is None and parameters * height * width * total > 2e16:
        text += "\n  On a CPU this takes days. For a first look"
        if recipe.kind == "classifier":
            text += ", add a smaller --size or fewer --images."
        else:
            where = quoted(f"{plan.out.as_posix()}-smoke")
            text += f":\n    undiffuse train {quoted(str(args.data))} --recipe smoke --out {where}"
    return text + "\n"


def finish(args: argparse.Namespace, plan: Plan, outcome: Outcome) -> str:
    """Write the slim model; what there is now and what to type next."""
    model = load_model(plan.out)
    path = plan.out / MODEL
    save_model(path, model)
    rows: list[tuple[str, object]] = [
        ("model", f"{path} ({_megabytes(path)}, weights {model.weights})"),
        ("checkpoint", f"{outcome.checkpoint} (to continue: a larger --images)"),
        ("loss curve", plan.out / "loss_curve.png"),
    ]
    parts = [f"\nComplete: {outcome.images:,} images, {outcome.steps:,} updates.", fields(rows)]
    name = quoted(path.as_posix())
    if plan.recipe.kind == "classifier":
        accuracy = accuracy_table(plan.out, plan.recipe.process.steps)
        parts += [accuracy] if accuracy else []
        partner = quoted(args.partner) if args.partner else "MODEL"
        parts.append(f"Guide with it:\n  undiffuse sample --model {partner} --classifier {name} --guidance 1")
        return "\n".join(parts)
    if (plan.out / "previews").is_dir():
        parts[1] += f"\n  previews    {plan.out / 'previews'}"
    low = " --low-res FOLDER" if plan.recipe.low_size is not None else ""
    parts.append(f"Sample from it:\n  undiffuse sample --model {name}{low} --out samples-{quoted(plan.out.name)}")
    return "\n".join(parts)


def accuracy_table(run_dir: Path, steps: int) -> str | None:
    """Accuracy on the validation images by noise level, from the run's last validation; None if there was none."""
    last = None
    for record in read_records(run_dir / "metrics.jsonl"):
        if record.get("kind") == "validation":
            last = record
    if last is None or "by_tenth" not in last:
        return None
    best = last["by_tenth"]
    tenths = len(best["top1"])
    rows = []
    for k in range(tenths):
        line: list[Any] = [f"{k * steps // tenths}..{(k + 1) * steps // tenths - 1}"]
        for key in ("top1", "top5"):
            if key in best:
                line.append("-" if best[key][k] is None else f"{100 * best[key][k]:.1f}%")
        rows.append(line)
    rows.append(["all", *[f"{100 * last[key]:.1f}%" for key in ("top1", "top5") if key in last]])
    head = ["noise level", "right", "in best five"][: len(rows[0])]
    count = last["validation_images"]
    title = f"Accuracy on {count:,} held-out images by noise level (0 is clean):"
    text = f"\n{title}\n{table(rows, head, right=(1, 2), indent=2)}\n"
    if count < FEW:  # evenly spread over the chain, so about a tenth on every line
        each = max(1, round(count / tenths))
        text += f"  About {each} a line: too few to compare lines. A larger --validation tells more.\n"
    return text


class Reporter:
    """Shows a run's records: one live line of progress on a terminal, now and then a plain line elsewhere."""

    def __init__(self) -> None:
        self.live = Live()
        self.trained = False

    def __call__(self, record: Record) -> None:
        """A listener of `train`."""
        if record.kind == "train":
            self.trained = True
            last = record.images >= record.values["total_images"]
            self.live.show(progress_parts(record), important=last and not self.live.terminal)
            return
        self.live.clear()
        if record.kind not in ("start", "end"):  # the summary has told the one, `finish` tells the other
            say(format_progress(record))
        elif self.live.terminal and record.kind == "start":
            self.live.show("the first updates ...", important=True)


def _beginning(init: Mapping[str, Any]) -> str:
    """What became of the weights of the model that a run begins with."""
    tensors, numbers = init["loaded"]
    taken = f"{numbers / 1e6:.2f} million in {tensors} tensors as they are"
    lines = [f"{init['source']}, weights {init['weights']}: {taken}"]
    lines += [f"adapted: {text}" for text in init["adapted"]]
    lines += [f"new: {text}" for text in init["fresh"]]
    lines += [f"left out: {text}" for text in init["dropped"]]
    return "\n".join([*lines, *(f"note: {text}" for text in init["notes"])])


def _reduced(args: argparse.Namespace, plan: Plan) -> str:
    """Says so where the recipe's batch was made smaller because there are fewer images."""
    own = recipes.get(plan.recipe.name).train.batch
    asked = args.batch is not None or any(path == "train.batch" for path, _ in args.sets)
    if asked or plan.recipe.train.batch >= own:
        return ""
    return f", not {own}, as there are only {len(plan.dataset):,}"


def _epochs(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
