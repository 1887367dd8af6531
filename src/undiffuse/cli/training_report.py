"""Formats the texts that `undiffuse train` prints before and after training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from undiffuse import checkpoints, recipes
from undiffuse.cli.console import fields, table
from undiffuse.cli.words import in_options
from undiffuse.conditions import ModelConditions
from undiffuse.data.condition_specs import parse_condition
from undiffuse.distributed import resolve_device
from undiffuse.pipelines.grids import quoted
from undiffuse.training import Outcome, Task, read_events
from undiffuse.training.estimate import Estimate, disk_bytes, estimate, first_outlines, peak_memory
from undiffuse.training.face import MODEL
from undiffuse.training.plan import TrainPlan
from undiffuse.util.files import needed_text
from undiffuse.util.launch import launch
from undiffuse.util.text import count_of, duration, join_names, size_text

FEW = 50  # with fewer held-out images an accuracy means little
MODES = {1: "grey", 3: "RGB", 4: "RGBA"}


def forecast(plan: TrainPlan, task: Task, init: Mapping[str, Any] | None = None) -> tuple[str, float | None]:
    """Tries a few images and returns the summary of a planned run, and how many seconds it will take, if known.

    Args:
        plan: The plan of the run.
        task: Its task.
        init: What became of the weights of the model that the run starts from, if any.
    """
    found = estimate(task, plan.dataset, plan.config, resolve_device(plan.config.device))
    newest = checkpoints.latest(plan.out)
    left = plan.config.total_images - (checkpoints.images_of(newest) if newest else 0)
    expected = None if found is None else found.seconds(left, launch().world_size)
    return summary(plan, task, init, found, expected), expected


def summary(
    plan: TrainPlan,
    task: Task,
    init: Mapping[str, Any] | None = None,
    measured: Estimate | None = None,
    seconds: float | None = None,
) -> str:
    """Returns a summary of the planned run: data, recipe, network, process, length, time, memory, disk and folder.

    Args:
        plan: The plan of the run.
        task: Its task.
        init: What became of the weights of the model that the run starts from, if any.
        measured: What the run needs, if that could be measured.
        seconds: How long it will take.
    """
    recipe, config, dataset = plan.recipe, plan.recipe.train, plan.dataset
    device, world_size = resolve_device(config.device), launch().world_size
    net: Any = task.net
    parameters = sum(p.numel() for p in net.parameters())
    height, width, channels = dataset.shape
    colours = MODES.get(channels, f"{channels} channels")
    border = {0: " with black", 255: " with white"}.get(dataset.config.pad_value, "")
    prepared = [f"{height}x{width} {colours}", f"padded{border}" if dataset.config.fit == "pad" else "cropped"]
    prepared += ["randomly cropped"] if dataset.config.random_crop else []
    prepared += ["mirrored at random"] if dataset.config.flip else ["not mirrored (--flip)"]
    if dataset.config.patches:
        prepared[1] = f"{dataset.config.patches} patches"
    if dataset.config.value_range is not None:
        prepared.append("values {:g}..{:g}".format(*dataset.config.value_range))
    held = f"{len(plan.validation):,} held out for validation" if plan.validation is not None else "none held out"
    counts = {name: n for name, n in dataset.source.class_counts().items() if n}
    named = join_names((f"{name} ({n:,})" for name, n in counts.items()), 6)
    classes = f"{count_of(len(counts), 'class')}: {named}" if counts else "no labels"
    if recipe.kind == "classifier":
        noisy = "clean images" if plan.request.clean else f"noisy images, {recipe.process.steps} levels"
        what = f"regressor of {plan.conditions.text()} in {noisy}" if plan.conditions else f"classifier of {noisy}"
    else:
        kind = f"class-conditional, {task.labels_count} classes" if task.labels_count is not None else "unconditional"
        kind += f" (label dropped for {100 * recipe.label_dropout:g} % of the images)" if recipe.label_dropout else ""
        kind += f", conditioned on {plan.conditions.text()}" if plan.conditions else ""
        what = f"diffusion model, {kind}"
    process = recipe.process
    loss = ""
    if recipe.objective is not None:
        weighting = recipe.objective.weighting
        loss = f", {recipe.objective.loss} loss" + ("" if weighting == "native" else f" weighted by {weighting}")
        loss += "" if config.density == "uniform" else f", levels {config.density}"
    if method := plan.request.distillation.get("method"):
        loss = f", {method}"
    newest = checkpoints.latest(plan.out)
    state = f"resumes at {count_of(checkpoints.images_of(newest), 'image')}" if newest else "new"
    total = config.total_images
    count = count_of(len(dataset), "image") if len(dataset) else "a stream of images"
    about = [dataset.source.where, f"{count}, {held}", classes, ", ".join(prepared)]
    about += [in_options(remark) for remark in plan.remarks]
    rows: list[tuple[str, object]] = [
        ("data", "\n".join(about)),
        ("recipe", f"{recipe.name} ({plan.why})"),
        ("network", f"{what}, {parameters / 1e6:.2f} million parameters"),
        ("starts from", None if init is None or newest else _beginning(init)),
        ("process", f"{process.levels_text}, "
                    + (f"predicts {process.target}, variance {process.variance}{loss}" if loss else "for guidance")),
        ("training", f"{total:,} images in batches of {config.batch}{_reduced(plan)} "
                     f"({total // config.batch:,} updates, {_epochs(total / len(dataset))} epochs)\n"
                     f"learning rate {config.lr:g}, {config.precision}, "
                     f"{f'{world_size} x ' if world_size > 1 else ''}{device.type}, seed {config.seed}"),
        ("time", None if measured is None or seconds is None else _time(plan, measured, seconds, newest is None)),
        ("memory", None if measured is None else f"about {size_text(measured.memory)}{_besides(device)}"),
        ("disk", _disk(plan, parameters, getattr(task, "numbers_beside", 0))),
        ("run", f"{plan.out} ({state})"),
    ]  # fmt: skip
    text = f"undiffuse {_command(plan)}\n{fields(rows)}"
    long = parameters * height * width * total > 2e16 if seconds is None else seconds > 24 * 3600
    if device.type == "cpu" and newest is None and long:
        text += "\n  On a CPU this takes days."
        if recipe.kind == "classifier":
            text += " For a quick try, use a smaller --size or fewer --images."
        else:
            where = quoted(f"{plan.out.as_posix()}-tiny")
            data = f"{quoted(plan.request.data)}{_data_options(plan)}"
            text += f" For a quick try, train a tiny model:\n    undiffuse train {data} --recipe tiny --out {where}"
    return text + "\n"


def finish(plan: TrainPlan, outcome: Outcome) -> str:
    """Returns the files that the run wrote and the command to use them."""
    path = plan.out / MODEL
    manifest = checkpoints.read_manifest(path)
    rows: list[tuple[str, object]] = [
        ("model", f"{path} ({size_text(path.stat().st_size)}, weights {manifest.get('weights')})"),
        ("checkpoint", outcome.checkpoint),
        ("loss curve", plan.out / "loss_curve.png"),
        ("used", _used(plan)),
    ]
    rows = [(name, what) for name, what in rows if not isinstance(what, Path) or what.exists()]  # plots are optional
    done = f"{count_of(outcome.images, 'image')}, {count_of(outcome.steps, 'update')}"
    parts = [f"\nComplete: {done}.", fields(rows)]
    name = quoted(path.as_posix())
    command = f"undiffuse {_command(plan)} --resume {quoted(plan.out.as_posix())} --images {2 * outcome.images}"
    longer = [] if plan.request.distillation else [f"To train it further:\n  {command}"]
    if plan.recipe.kind == "classifier":
        accuracy = accuracy_table(plan.out, plan.recipe.process.steps)
        parts += [accuracy] if accuracy else []
        partner = quoted(plan.request.partner) if plan.request.partner else "MODEL"
        given = _guided_conditions(plan)
        parts.append(f"To guide with it:\n  undiffuse sample --model {partner} --classifier {name} --guidance 1{given}")
        return "\n".join([*parts, *longer])
    if (plan.out / "previews").is_dir():
        parts[1] += f"\n  previews    {plan.out / 'previews'}"
    low = " --low-res FOLDER" if plan.recipe.low_size is not None else ""
    given = example_conditions(plan.conditions, plan.request.condition)
    parts.append(f"To sample:\n  undiffuse sample --model {name}{low}{given} --out samples-{quoted(plan.out.name)}")
    return "\n".join([*parts, *longer])


def _guided_conditions(plan: TrainPlan) -> str:
    """Returns options that give a regressor its numbers, and the model that it guides its own conditions."""
    out = example_conditions(plan.conditions)
    if plan.partner is None:
        return out
    theirs, own = plan.partner.conditions, plan.conditions.numbers
    if own is not None and theirs.numbers is not None and set(theirs.numbers.names) <= set(own.names):
        theirs = replace(theirs, numbers=None)  # one option gives both
    return out + example_conditions(theirs, plan.partner.preparation.get("conditions") or ())


def example_conditions(conditions: ModelConditions, trained_on: Iterable[str] = ()) -> str:
    """Returns options of `undiffuse sample` that give a model its conditions.

    Args:
        conditions: What the model is conditioned on.
        trained_on: The conditions of its training ("image:sketches"), which name the pictures of the example.
    """
    out = ""
    specs = {spec.kind: spec.where for spec in map(parse_condition, trained_on)}
    if conditions.numbers is not None:
        held = conditions.numbers
        given = ",".join(f"{name}={value:.4g}" for name, value in zip(held.names, held.mean, strict=True))
        out += f" --condition {quoted(given)}"
    if conditions.tags:
        out += f" --condition {quoted(f'labels={conditions.tags[0]}')}"
    if conditions.image is not None:
        where = specs.get(conditions.image.kind) or "FOLDER"
        out += f" --condition {quoted(f'{conditions.image.kind}:{where}')}"
    return out


def accuracy_table(run_dir: Path, steps: int) -> str | None:
    """Returns a table of the accuracy by noise level at the last validation; None if there was none.

    Of a regressor it is the share of the numbers' variance that is explained.
    """
    last = None
    for record in read_events(run_dir / "metrics.jsonl"):
        if record.get("kind") == "validation":
            last = record
    if last is None or "by_tenth" not in last:
        return None
    best = last["by_tenth"]
    if "top1" not in best:
        last, best = _explained(last), {"top1": [None if v is None else 1 - v for v in best["mse"]]}
    tenths = len(best["top1"])
    rows = []
    for k in range(tenths):
        line: list[Any] = [f"{k * steps // tenths}..{(k + 1) * steps // tenths - 1}"]
        for key in ("top1", "top5"):
            if key in best:
                line.append("-" if best[key][k] is None else f"{100 * best[key][k]:.1f}%")
        rows.append(line)
    rows.append(["all", *[f"{100 * last[key]:.1f}%" for key in ("top1", "top5") if key in last]])
    regression = "explained" in last
    head = ["noise level", "explained"] if regression else ["noise level", "top-1", "top-5"][: len(rows[0])]
    count = last["validation_images"]
    what = "Explained variance of the numbers" if regression else "Accuracy"
    title = f"{what} on {count_of(count, 'held-out image')} by noise level (0 is clean):"
    text = f"\n{title}\n{table(rows, head, right=(1, 2), indent=2)}\n"
    if count < FEW:  # evenly spread over the noise levels, so about a tenth in every row
        each = max(1, round(count / tenths))
        text += f"  About {count_of(each, 'image')} per row, too few to compare rows: hold out more (--validation).\n"
    return text


def _explained(record: Mapping[str, Any]) -> dict[str, Any]:
    """A regressor's record with the share of the variance that it explains in the place of the accuracy."""
    return {**record, "top1": 1 - record["mse"], "explained": True}


def _beginning(init: Mapping[str, Any]) -> str:
    """Returns what became of the weights of the model that a run starts from, one line per kind of change."""
    tensors, numbers = init["loaded"]
    taken = f"{numbers / 1e6:.2f} million parameters in {tensors} tensors unchanged"
    lines = [f"{init['source']}, weights {init['weights']}: {taken}"]
    lines += [f"adapted: {text}" for text in init["adapted"]]
    lines += [f"new: {text}" for text in init["fresh"]]
    lines += [f"left out: {text}" for text in init["dropped"]]
    return "\n".join([*lines, *(f"note: {text}" for text in init["notes"])])


def _command(plan: TrainPlan) -> str:
    if plan.request.distillation:
        return "distill"
    return "train-classifier" if plan.recipe.kind == "classifier" else "train"


def _data_options(plan: TrainPlan) -> str:
    """Returns the options of reading the data, to repeat them in another command."""
    request = plan.request
    parts = ["--on-broken skip"] if request.on_broken == "skip" else []
    parts += [f"--on-tiny {request.on_tiny}"] if request.on_tiny != "upscale" else []
    parts += [f"--labels {quoted(request.labels)}"] if request.labels != "auto" else []
    parts += ["--unconditional"] if request.unconditional else []
    parts += [f"--frames {request.frames}"] if request.frames != "first" else []
    parts += [f"--layout {request.layout}"] if request.layout != "auto" else []
    given = request.value_range
    parts += [] if given is None else ["--range=" + (given if isinstance(given, str) else f"{given[0]:g},{given[1]:g}")]
    parts += [f"--max-pixels {request.max_pixels}"] if request.max_pixels is not None else []
    return "".join(f" {part}" for part in parts)


def _time(plan: TrainPlan, measured: Estimate, seconds: float, new: bool) -> str:
    """Returns how long the run will take on this machine, and when there will be something to see."""
    speed = measured.images_per_second
    text = f"about {duration(seconds)} on this machine ({speed:,.3g} images/s in a trial)"
    outlines = first_outlines(plan.dataset.shape) if plan.recipe.kind == "diffusion" and new else None
    if outlines is None or outlines >= plan.config.total_images:
        return text
    soon = duration(seconds * outlines / plan.config.total_images)
    return f"{text}\nfirst outlines after about {outlines:,} images, {soon}"


def _besides(device: Any) -> str:
    """Returns what the process takes without the training, on a CPU, where both share the memory."""
    own = peak_memory(device) if device.type == "cpu" else None
    return "" if own is None else f", besides up to {size_text(own)} of Python, PyTorch and data"


def _disk(plan: TrainPlan, parameters: int, beside: int) -> str:
    """Returns the disk space that the run needs, with a warning if less is free."""
    one, everything = disk_bytes(parameters, plan.config, beside)
    return needed_text(everything, plan.out, f" in total, {size_text(one)} per checkpoint")


def _used(plan: TrainPlan) -> str:
    """Returns the memory and the disk space that the run took, to be compared with what was expected."""
    peak = peak_memory(resolve_device(plan.config.device))
    memory = "" if peak is None else f"{size_text(peak)} of memory with Python and PyTorch, "
    size = sum(file.stat().st_size for file in plan.out.rglob("*") if file.is_file())
    return f"{memory}{size_text(size)} of disk"


def _reduced(plan: TrainPlan) -> str:
    """Returns a note if the batch is smaller than the recipe's because there are fewer images; else ""."""
    own = recipes.get(plan.recipe.name).train.batch
    asked = plan.request.batch is not None or "train.batch" in plan.request.overrides
    if asked or plan.recipe.train.batch >= own:
        return ""
    return f", not {own}, because there are only {count_of(len(plan.dataset), 'image')}"


def _epochs(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"
