"""Distillation in one call, from a model to a model of few calls: `undiffuse.distill`.

It consists of stages, each a run with a folder of its own, which can be resumed alone:

    OUT-v       the model learns to predict v, if it predicts noise, which says nothing of the image at pure noise
                (OUT-edm on EDM's levels)
    OUT-32 ...  students with ever fewer calls, for methods that halve them
    OUT         the student
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from undiffuse.config import GuidanceConfig
from undiffuse.config.fields import given, settings_of
from undiffuse.data import Source
from undiffuse.data.memory import as_data
from undiffuse.data.torch_dataset import StreamDataset
from undiffuse.distillation import DEFAULT, METHODS
from undiffuse.models import load_diffusion
from undiffuse.training.distillation import UNDEFINED_AT_NOISE, Distillation, student_process
from undiffuse.training.events import Listener
from undiffuse.training.face import MODEL, TrainResult, run_plan, sorted_settings
from undiffuse.training.finetune import default_folder
from undiffuse.training.imageless import NOISE, BlankImages, preparation_of
from undiffuse.training.plan import plan
from undiffuse.training.progress import TrainingProgress
from undiffuse.training.request import TrainRequest
from undiffuse.util.errors import ConfigError

__all__ = ["IMAGES", "Stage", "distill", "settings_without_data", "stages", "without_data"]

IMAGES = 200_000
"""Images of a student's training where nothing is said."""
_USUAL = {"train.lr": 2e-4, "train.lr_decay": "cosine", "train.ema_decays": (0.99, 0.999), "train.grad_clip": 1.0}
_ADVERSARIAL = {"train.betas": (0.0, 0.99), "train.grad_clip": None}
"""Of methods in which two networks follow each other: momentum would make them oscillate."""


@dataclass(frozen=True)
class Stage:
    """One run of a distillation.

    Attributes:
        request: The request of the run.
        text: What it does, for people.
    """

    request: TrainRequest
    text: str


def distill(
    model: str | Path,
    data: Any = None,
    *,
    calls: int = 4,
    method: str = DEFAULT,
    settings: Mapping[str, Any] | None = None,
    init_from: str | Path | None = None,
    images: int | None = None,
    adapt_images: int | None = None,
    out: str | Path | None = None,
    callbacks: Sequence[Listener] = (),
    progress: bool = True,
    labels: Any = None,
    **overrides: Any,
) -> TrainResult:
    """Distils a model into one that needs few network calls. The same call again resumes one that was stopped.

    Example:
        result = undiffuse.distill("fashion-mnist-32", "fashion-mnist", calls=4)
        result.pipeline().sample(16)

    Args:
        model: The model: a name, a file or a run folder.
        data: Images like those that it was trained on, as for `undiffuse.train`. None trains on noise alone, where the
            method allows it.
        calls: Network calls of the student.
        method: "moment-matching", "progressive", "consistency-distillation" or "consistency-training".
        settings: Settings of the method, see `undiffuse.distillation.METHODS`.
        init_from: A model of the student's process to start from instead, for example a student of more calls.
        images: Images of the student's training; methods that halve the calls divide them among their stages.
        adapt_images: Images of the stage in which a model that predicts noise learns to predict v; default half of
            `images`.
        out: Run folder of the student.
        callbacks: Functions that are called with every record of the runs.
        progress: Whether to show a progress bar.
        labels: As for `undiffuse.train`.
        **overrides: Guidance of the teacher by name (guidance=2.0, cfg=1.5), any field of `TrainRequest` and of
            `TrainConfig`.

    Returns:
        The result of the last stage; `model` is the student.

    Raises:
        ConfigError: Settings that do not fit each other, the model or the data.
    """
    guidance = GuidanceConfig(**given(GuidanceConfig, overrides))
    names = {declared.name for _, declared in settings_of(GuidanceConfig)}
    rest = {name: value for name, value in overrides.items() if name not in names}
    in_files = isinstance(data, (str, Path))
    if in_files and labels is not None:
        rest["labels"] = str(labels)
    changes = {**sorted_settings(rest), "images": images, "out": None if out is None else str(out)}
    settings = dict(settings or {})
    if data is None:
        settings, source = settings_without_data(method, settings), None
        request = TrainRequest(data=NOISE).changed(changes)
    else:
        source = as_data(data, labels=labels)
        request = TrainRequest(data=str(data) if in_files else type(data).__name__).changed(changes)
    how = Distillation(teacher=str(model), calls=calls, method=method, settings=settings, guidance=guidance)
    if data is None:
        request, source = without_data(request, how, init_from)
    made = None
    for stage in stages(request, how, init_from=init_from, adapt_images=adapt_images):
        made = run_stage(stage, [*callbacks, *([TrainingProgress()] if progress else [])], source)
        if not made.outcome.complete:
            return made
    assert made is not None
    return made


def settings_without_data(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a method for a training without data; ConfigError if it needs images."""
    known = METHODS[method].settings if method in METHODS else {}  # an unknown method is an error of `Distillation`
    if method in METHODS and "inputs" not in known:
        able = " and ".join(name for name, info in METHODS.items() if "inputs" in info.settings)
        raise ConfigError(
            "data",
            f"is needed by {method}, which trains on images; {able} can do without. If you have no images, sample them "
            "from the model and distil on these",
        )
    return {**({"inputs": "own"} if "inputs" in known else {}), **settings}


def without_data(
    request: TrainRequest, how: Distillation, init_from: str | Path | None = None
) -> tuple[TrainRequest, Source]:
    """Returns the request of a training on noise alone, and what takes the place of the images.

    Raises:
        ConfigError: The method, its settings or the model need images.
    """
    teacher = load_diffusion(how.teacher)
    if how.settings.get("inputs") != "own" or how.settings.get("adversarial"):
        raise ConfigError("data", "is needed by these settings: only inputs=own without adversarial=... can do without")
    if init_from is None and teacher.process.target in UNDEFINED_AT_NOISE:
        raise ConfigError(
            "data",
            f"is needed: {how.teacher} predicts {teacher.process.target}, and first learns from images what to predict "
            "of pure noise. Give images, or a student to start from (init_from)",
        )
    return request.changed({**preparation_of(teacher), "data": NOISE}), BlankImages(teacher)


def run_stage(stage: Stage, listeners: Sequence[Listener], data: Source | StreamDataset | None = None) -> TrainResult:
    """Trains one stage, or resumes it; one that is complete is only opened."""
    made = plan(stage.request, data)
    outcome = run_plan(made, made.build_task(), listeners, stored=data is None)
    return TrainResult(made.out, outcome, made)


def stages(
    request: TrainRequest,
    how: Distillation,
    *,
    init_from: str | Path | None = None,
    adapt_images: int | None = None,
) -> Iterator[Stage]:
    """Yields the runs of a distillation in order. Each needs the model of the one before it.

    Args:
        request: Data, length and other settings of the training.
        how: The distillation.
        init_from: See `distill`.
        adapt_images: See `distill`.

    Raises:
        ConfigError: The settings are not possible.
    """
    teacher = load_diffusion(how.teacher)
    process = student_process(teacher.process, how.method)
    usual = {**_USUAL, **(_ADVERSARIAL if how.method == DEFAULT else {})}
    fixed = {"process.target": process.target, "process.variance": process.variance, "objective.loss": "simple"}
    if request.images is None and request.steps is None:
        request = replace(request, images=IMAGES)
    out = Path(request.out) if request.out else default_folder(request.data, how.teacher)
    counts = _halved(how) if METHODS[how.method].halves else [how.calls]
    each = {name: -(-value // len(counts)) for name in ("images", "steps") if (value := getattr(request, name))}
    begin = how.teacher if init_from is None else str(init_from)
    if init_from is None and teacher.process.target in UNDEFINED_AT_NOISE:
        learned = student_process(teacher.process, "").target
        folder = out.with_name(f"{out.name}-{learned}")
        short = {name: -(-value // 2) for name in ("images", "steps") if (value := getattr(request, name))}
        short = {"images": adapt_images, "steps": None} if adapt_images else short
        adapted = {**_USUAL, "train.lr": 5e-4, **request.overrides, **fixed, "process.target": learned}
        yield Stage(
            replace(request, init_from=how.teacher, out=str(folder), overrides=adapted, **short),
            f"{how.teacher} learns to predict {learned}",
        )
        begin = str(folder / MODEL)
        how = replace(how, teacher=begin, origin={"name": Path(how.teacher).name, "sha256": teacher.digest})
    for calls in counts:
        last = calls == how.calls
        folder = out if last else out.with_name(f"{out.name}-{calls}")
        step = replace(how, calls=calls)
        yield Stage(
            replace(
                request, init_from=begin, out=str(folder), distillation=step.to_dict(),
                overrides={**usual, **request.overrides, **fixed}, **each,
            ),
            f"a student of {calls} calls by {how.method}",
        )  # fmt: skip
        begin = str(folder / MODEL)
        if not last:
            how = replace(how, teacher=begin, guidance=GuidanceConfig())


def _halved(how: Distillation) -> list[int]:
    """The calls of the students of a method that halves them, down to the last."""
    start, counts = int(how.settings["start"]), [how.calls]
    while counts[0] * 2 < start:
        counts.insert(0, counts[0] * 2)
    if counts[0] * 2 != start:
        raise ConfigError(
            "settings", f"start={start} is not a power of two times calls={how.calls}; for example {counts[0] * 2}"
        )
    return counts
