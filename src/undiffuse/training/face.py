"""Training in one call, from data to a model: `undiffuse.train`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from undiffuse import checkpoints
from undiffuse.data import ImageDataset, Source
from undiffuse.data.given_conditions import sorted_conditions, with_arrays
from undiffuse.data.memory import as_data
from undiffuse.data.torch_items import ValueRange
from undiffuse.models import ClassifierModel, DiffusionModel, load_model, save_model
from undiffuse.train_config import TrainConfig
from undiffuse.training import engine, plan_conditions
from undiffuse.training.custom import Custom, OptimizerFactory, ScheduleFactory
from undiffuse.training.evaluation import Evaluator
from undiffuse.training.events import Listener, read_events
from undiffuse.training.loggers import make_loggers
from undiffuse.training.plan import TrainPlan, plan
from undiffuse.training.progress import TrainingProgress
from undiffuse.training.provenance import add_session
from undiffuse.training.request import TrainRequest, read_request, write_request
from undiffuse.training.sharded import on_meta
from undiffuse.training.tasks import LossFn, Task
from undiffuse.util.errors import ConfigError
from undiffuse.util.notebook import card
from undiffuse.util.text import count_of, duration

__all__ = ["MODEL", "TrainResult", "run_plan", "train"]

MODEL = "model.safetensors"


@dataclass(frozen=True)
class TrainResult:
    """A finished (or stopped) training.

    Attributes:
        folder: The run folder.
        outcome: How far the run is and why it ended.
        plan: The data and all settings of the run.
    """

    folder: Path
    outcome: engine.Outcome
    plan: TrainPlan

    @cached_property
    def model(self) -> DiffusionModel | ClassifierModel:
        """The trained model, with the slowest average of its weights."""
        path = self.folder / MODEL
        net = None if self.plan.net is None else copy.deepcopy(self.plan.net)  # which load_model gives the weights
        return load_model(path if path.is_file() else self.folder, net=net)

    def pipeline(self, **settings: Any) -> Any:
        """Returns the trained model as a `Pipeline`; `settings` as in `Pipeline.from_pretrained`."""
        from undiffuse.config import SamplerConfig
        from undiffuse.pipelines import Pipeline

        model = self.model
        if not isinstance(model, DiffusionModel):
            raise ValueError("a classifier makes no images: guide a diffusion model with it")
        path = self.folder / MODEL
        config = SamplerConfig(model=str(path if path.is_file() else self.folder)).replace(**settings)
        return Pipeline.load(config, model=model)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """All records of the run, in order (those of metrics.jsonl)."""
        return list(read_events(self.folder / "metrics.jsonl"))

    def __repr__(self) -> str:
        trained = [record for record in self.records if record["kind"] == "train"]
        lines = [
            f"TrainResult: {self.plan.recipe.kind} model, recipe {self.plan.recipe.name}",
            f"  run     {self.folder}",
            f"  images  {self.outcome.images:,} of {self.plan.config.total_images:,} ({self.outcome.stopped_by}), "
            f"{count_of(self.outcome.steps, 'update')}",
        ]
        if trained:
            last = trained[-1]
            names = [name for name in ("mse", "loss", "top1") if isinstance(last.get(name), float)]
            lines.append("  last    " + "  ".join(f"{name} {last[name]:.4g}" for name in names))
            lines.append(f"  time    {duration(float(last['seconds']))} of training")
        what = f"{self.folder / MODEL}" if (self.folder / MODEL).is_file() else "none yet; resume the run"
        return "\n".join([*lines, f"  model   {what}"])

    def _repr_html_(self) -> str:
        """The run for notebooks: the lines of its text, and the loss curve."""
        title, *lines = repr(self).splitlines()
        facts = [(name, value.strip()) for name, _, value in (line.strip().partition(" ") for line in lines)]
        return card(title, facts, picture=self._repr_png_())

    def _repr_png_(self) -> bytes | None:
        path = self.folder / "loss_curve.png"
        return path.read_bytes() if path.is_file() else None


def train(
    data: Any = None,
    *,
    out: str | Path | None = None,
    recipe: str | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    images: int | None = None,
    batch: int | None = None,
    model: Any = None,
    loss: LossFn | None = None,
    optimizer: OptimizerFactory | None = None,
    lr_schedule: ScheduleFactory | None = None,
    density: Any = None,
    callbacks: Sequence[Listener] = (),
    log: str | Sequence[str] = (),
    validation: float | str | None = None,
    device: str | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    value_range: ValueRange | None = None,
    condition: str | Sequence[str] | Mapping[str, Any] | None = None,
    **overrides: Any,
) -> TrainResult:
    """Trains a model on images. The same call again resumes a run that was stopped.

    Example:
        result = undiffuse.train("photos/", recipe="tiny", images=50_000)
        result.model

    Args:
        data: A folder, zip or npz, a named set, a uint8 array [N, H, W, C], one of our data sets, a torch data set
            (images, (image, label) or dictionaries), an iterable one, or a data loader.
        out: The run folder; default runs/NAME.
        recipe: Name of a recipe; default chosen by the data.
        size: Image size in pixels, one number or (height, width).
        channels: 1 grey, 3 RGB, 4 RGBA.
        images: Images after which the run ends.
        batch: Images per update.
        model: A network of your own; or the name, file or folder of a model to start from.
        loss: A loss of your own, see `undiffuse.training.tasks.LossFn`.
        optimizer: Makes an optimizer of the parameters.
        lr_schedule: Makes a torch scheduler of the optimizer, stepped once per update.
        density: Density of noise levels by name, for example "lognormal:-1.2,1.2", or a quantile function.
        callbacks: Functions that are called with every record of the run.
        log: "tensorboard", "wandb" or both.
        validation: Held-out images: a share of the data (for example 0.05), or other data.
        device: "auto", "cpu", "cuda" or "mps".
        resume: Folder of a run to resume; its settings need not be repeated.
        progress: Whether to show a progress bar.
        labels: For an array the labels [N]; for files where labels come from, see `undiffuse.data.open_data`.
        class_names: Names of the classes, for arrays and torch data.
        value_range: (low, high) of float pixels of torch data; default detected.
        condition: What the model is conditioned on: "labels", "numbers:age,angle", "image:sketches/", "map:maps/", or
            several of these; for data in memory a mapping, {"numbers": {"age": [N]}, "labels": N lists of names,
            "image": [N, H, W, C]}. By default classes, if the data have them. See docs/conditions.md.
        **overrides: Any field of `TrainRequest` (flip=True, width=32), of `TrainConfig` (lr=2e-4), or of the recipe by
            its path (**{"net.dropout": 0.1}).

    Returns:
        The trained model, the run folder and the records.

    Raises:
        ConfigError: Settings that do not fit each other or the data.
        ValueError: Data that cannot be used, or a run folder with other settings.
    """
    given: dict[str, Any] = {
        "recipe": recipe, "size": size, "channels": channels, "images": images, "batch": batch, "device": device,
        "validation": validation, "out": None if out is None else str(out),
    }  # fmt: skip
    names = [part.strip() for part in log.split(",") if part.strip()] if isinstance(log, str) else list(log)
    given["log"] = tuple(names) or None
    net = None if model is None or isinstance(model, (str, Path)) else model
    if net is not None and not isinstance(net, nn.Module):
        known = isinstance(net, DiffusionModel | ClassifierModel)
        raise ConfigError(
            "model",
            f"expected a network (a torch.nn.Module) or the file or name of a model, got {_named(net)}; "
            + (
                "to train its network pass model.net, or save_model it and pass the file" if known else "build it first"
            ),
        )
    if model is not None and net is None:
        given["init_from"] = str(model)
    if isinstance(density, str):
        overrides["train.density"] = density
    given |= sorted_settings(overrides)
    if data is None and resume is None:
        raise ConfigError("data", "give images to train on, or resume=RUN")
    source = None
    if data is not None:
        in_files = isinstance(data, (str, Path))
        if in_files and labels is not None:
            given["labels"] = str(labels)
        source = as_data(
            data,
            labels=labels,
            class_names=class_names,
            value_range=value_range,
            use_labels=not given.get("unconditional"),
        )
        name = str(data) if in_files else type(data).__name__
    specs, arrays = sorted_conditions(condition)
    if arrays:
        if not isinstance(source, Source):
            raise ConfigError("condition", "is in memory and the data are not: give arrays of both, or paths of both")
        source = with_arrays(source, arrays)
    if specs or arrays:
        listed = (*specs, *plan_conditions.specs_in_memory(arrays))
        classes = source is not None and source.label_names is not None and labels is not None
        also = ("labels",) if classes and not any(text.startswith("labels") for text in listed) else ()
        given["condition"] = (*also, *listed)
    if resume is not None:
        request = read_request(resume, data_given=source is not None)
        given.pop("out")
        request = request.changed({**given, **({"data": name} if data is not None else {})})
    else:
        request = TrainRequest(data=name).changed(given)
    made = plan(request, source, net)
    custom = Custom(optimizer=optimizer, lr_schedule=lr_schedule, density=None if isinstance(density, str) else density)
    task = made.build_task(loss)
    if made.net is not None and made.config.sharding != "none":
        made = replace(made, net=on_meta(made.net))  # the network itself will be split; this takes the trained weights
    listeners: list[Listener] = list(callbacks)
    if progress:
        shown = TrainingProgress()
        if isinstance(made.dataset, ImageDataset):
            for remark in plan_conditions.unused(made.dataset.source, made.spec, made.conditions):
                shown.say(f"note: {remark}")
        listeners.append(shown)
    outcome = run_plan(made, task, listeners, custom=custom, stored=source is None)
    return TrainResult(made.out, outcome, made)


def run_plan(
    made: TrainPlan,
    task: Task,
    listeners: Sequence[Listener] = (),
    *,
    init: Mapping[str, Any] | None = None,
    evaluator: Evaluator | None = None,
    custom: Custom | None = None,
    stored: bool = True,
) -> engine.Outcome:
    """Trains as planned and writes the model file at the end.

    Args:
        made: The plan.
        task: The task of the plan.
        listeners: Called with every record.
        init: What became of the weights that the run starts from; None copies them now, if the plan has such a model.
        evaluator: Measures samples during the run.
        custom: A user's own optimizer, schedule and density.
        stored: Whether the data can be opened again by its name, so that the run can be resumed by its folder alone.

    Returns:
        How the run ended.
    """
    if init is None and made.init is not None:
        init = made.init.begin(task.net, task.process, made.labels)
    newest = checkpoints.latest(made.out)
    done = checkpoints.images_of(newest) if newest else 0
    complete = done >= made.config.total_images
    keeper = _KeepRequest(made, stored)
    loggers = [] if complete else make_loggers(made.request.log, made.out, made.recipe.to_dict(), done)
    outcome = engine.train(
        task,
        made.dataset,
        made.config,
        made.out,
        [keeper, *loggers, *listeners],
        made.validation,
        made.recipe.name,
        init,
        evaluator,
        custom,
    )
    if outcome.complete and outcome.checkpoint is not None and not (complete and (made.out / MODEL).is_file()):
        net = None if made.net is None else copy.deepcopy(made.net)
        save_model(made.out / MODEL, load_model(made.out, net=net))
    return outcome


class _KeepRequest:
    """Writes the request and where it is trained into the run folder once the run has begun.

    Only the owner of the folder may do so.
    """

    def __init__(self, made: TrainPlan, stored: bool) -> None:
        self._made, self._stored = made, stored

    def __call__(self, record: Any) -> None:
        if record.kind == "start" and record.images < self._made.config.total_images:
            write_request(self._made.out, self._made.request, self._stored)
            add_session(self._made.out, {"images": record.images, "processes": record.values.get("world_size")})


def _named(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def sorted_settings(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns keyword arguments as fields of a request, with fields of `TrainConfig` and paths as its overrides.

    Raises:
        ConfigError: A name is none of these.
    """
    request = {field.name for field in fields(TrainRequest)} - {"data"}
    config = {field.name for field in fields(TrainConfig)}
    given: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for name, value in overrides.items():
        if "." in name:
            paths[name] = value
        elif name == "overrides":
            paths.update(value)
        elif name in request:
            given[name] = value
        elif name in config:
            paths[f"train.{name}"] = value
        else:
            raise ConfigError(name, "there is no such setting; see undiffuse.training.TrainRequest and TrainConfig")
    if paths:
        given["overrides"] = paths
    return given
