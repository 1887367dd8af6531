"""Does the work of the page inside a model process: samples, compares, interpolates, edits, classifies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.config import SamplerConfig
from undiffuse.data import DataConfig, FolderSource, ImageDataset
from undiffuse.editing import inpaint, restore, translate, vary
from undiffuse.editing.methods import load_pipeline
from undiffuse.guidance import LevelClassifier
from undiffuse.models import (
    SHIPPED,
    DiffusionModel,
    check_pair,
    load_classifier,
    load_diffusion,
    paired_classifier,
    resolve,
)
from undiffuse.noise_levels import Level
from undiffuse.pictures import preview, sample_files, spaced
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.classes import choose_classes, class_names
from undiffuse.pipelines.inputs import model_images, open_images
from undiffuse.pipelines.interpolation import GRID, MOVIE, interpolate
from undiffuse.pipelines.low_res import low_size
from undiffuse.pixels import to_uint8
from undiffuse.sampling import Step
from undiffuse.studio.datasets import look
from undiffuse.studio.jobs import EDITS, Job
from undiffuse.studio.settings import Settings
from undiffuse.util.errors import ConfigError
from undiffuse.util.progress import NoProgress

__all__ = ["WATCHED", "Emit", "Workshop"]

Emit = Callable[[str, dict[str, Any]], None]
"""Sends an event to the page: (kind, values)."""
WATCHED = 8
"""Images whose path is shown."""
FRAMES = 64
"""Steps of a path that are kept, evenly spaced."""
THUMB = 128
"""Pixels of the longer side of images on the way."""
_MODELS, _PIPELINES = 2, 6
_EVERY = 0.1  # seconds between two reports of progress


class Workshop:
    """Keeps the models and pipelines of a model process, and does one job after the other.

    Args:
        device: As in `Pipeline.load`.
    """

    def __init__(self, device: str = "auto") -> None:
        self.device = device
        self._models: dict[Any, DiffusionModel] = {}
        self._pipelines: dict[Any, Pipeline] = {}
        self._classifiers: dict[str, LevelClassifier | None] = {}

    def do(self, job: Job, folder: str | None, emit: Emit) -> dict[str, Any]:
        """Does a job.

        Args:
            job: The job.
            folder: An empty folder for its pictures; None for a job that makes none.
            emit: Receives "progress" events, and the steps of the path as "step" events.

        Returns:
            What the page shows of the result: plain values and arrays.

        Raises:
            ConfigError, ValueError, OSError: The job is not possible.
        """
        kinds: dict[str, Callable[..., dict[str, Any]]] = {
            "sample": self._sample, "compare": self._compare, "interpolate": self._interpolate,
            "describe": self._describe, "classify": self._classify, "prepare": self._prepare, "shrink": self._shrink,
            "data": self._data,
            **dict.fromkeys(EDITS, self._edit),
        }  # fmt: skip
        begin = time.monotonic()
        found = kinds[job.task](job, Path(folder) if folder is not None else None, emit)
        return {**found, "seconds": time.monotonic() - begin}

    def model(self, reference: str, weights: str | None) -> DiffusionModel:
        """Loads a diffusion model, or returns it if its file has not changed since it was loaded."""
        file = resolve(reference, weights)
        key = (reference, weights, str(file), os.stat(file).st_mtime_ns)
        if key not in self._models:
            self._trim(self._models, _MODELS)
            self._models[key] = load_diffusion(reference, weights=weights)
            self._pipelines.clear()  # those of an older file
        return self._models[key]

    def pipeline(self, config: SamplerConfig, gradient: bool = False) -> Pipeline:
        """Returns the pipeline of a config, which is kept for the next job."""
        assert config.model is not None
        model = self.model(config.model, config.weights)
        key = (config, gradient, id(model))
        if key not in self._pipelines:
            self._trim(self._pipelines, _PIPELINES)
            self._pipelines[key] = Pipeline.load(config, self.device, gradient, model)
        return self._pipelines[key]

    @staticmethod
    def _trim(kept: dict[Any, Any], most: int) -> None:
        while len(kept) >= most:
            kept.pop(next(iter(kept)))

    def _sample(self, job: Job, folder: Path | None, emit: Emit) -> dict[str, Any]:
        assert folder is not None
        s, pipeline = job.settings, self.pipeline(job.config())
        names = class_names(pipeline)
        watch = self._watch(pipeline, s, emit)
        samples = pipeline.sample(
            s.count, s.class_list(), s.seed, condition=list(s.condition) or None, progress=_Counted(emit),
            on_step=watch,
        )  # fmt: skip
        samples.save(folder)
        labels = [] if samples.labels is None or names is None else [names[k] for k in samples.labels]
        return {
            **_files(folder), "labels": labels, "caption": pipeline.text(), "remarks": list(samples.remarks),
            "names": names or [],
        }  # fmt: skip

    def _watch(self, pipeline: Pipeline, s: Settings, emit: Emit, part: str = "") -> _Watch:
        """Begins to watch a run of `Pipeline.sample`."""
        names = class_names(pipeline)
        chosen = choose_classes(pipeline, s.class_list()) if names is not None and not s.condition else None
        wanted = [] if chosen is None else [chosen[i % len(chosen)] for i in range(min(s.count, WATCHED))]
        return _Watch(self._opinion(pipeline), emit, names, wanted, part)

    def _compare(self, job: Job, folder: Path | None, emit: Emit) -> dict[str, Any]:
        """Samples twice from the same noise."""
        assert folder is not None
        if job.other is None:
            raise ConfigError("other", "is missing: a comparison takes two settings")
        found, images, captions = [], [], []
        for k, s in enumerate((job.settings, job.other)):
            pipeline = self.pipeline(s.config())
            counted = _Counted(emit, share=(k / 2, 0.5))
            samples = pipeline.sample(
                s.count, s.class_list(), s.seed, condition=list(s.condition) or None, progress=counted,
                on_step=self._watch(pipeline, s, emit, "AB"[k]),
            )  # fmt: skip
            samples.save(folder / "ab"[k])
            images.append(samples.images)
            found.append(_files(folder / "ab"[k]))
            captions.append(pipeline.text())
        if images[0].shape != images[1].shape:
            shapes = ["x".join(map(str, part.shape[1:])) for part in images]
            raise ConfigError(
                "other", f"makes images of {shapes[1]} (height x width x channels), the first {shapes[0]}"
            )
        difference = images[1].astype(np.int16) - images[0].astype(np.int16)
        return {
            "a": found[0], "b": found[1], "captions": captions, "files": found[0]["files"] + found[1]["files"],
            "images": [preview(part) for part in images],
            "difference": preview(np.clip(128 + difference / 2, 0, 255).round().astype(np.uint8)),
            "rms": [float(np.sqrt((d.astype(float) ** 2).mean())) for d in difference],
        }  # fmt: skip

    def _interpolate(self, job: Job, folder: Path | None, emit: Emit) -> dict[str, Any]:
        assert folder is not None
        pipeline = self.pipeline(job.config().replace(solver="ddim"))
        watch = _Watch(self._opinion(pipeline), emit, class_names(pipeline))
        found = interpolate(
            pipeline, list(job.inputs["images"]) if job.inputs.get("images") else None,
            seeds=job.inputs.get("seeds"), classes=job.settings.class_list(), frames=job.inputs.get("frames", 9),
            progress=_Counted(emit), on_step=watch,
        )  # fmt: skip
        found.save(folder, overwrite=True)
        return {
            "grid": str(folder / GRID), "movie": str(folder / MOVIE), "files": [str(folder / GRID)],
            "caption": f"{' to '.join(found.ends)}, {found.caption}",
        }  # fmt: skip

    def _edit(self, job: Job, folder: Path | None, emit: Emit) -> dict[str, Any]:
        assert folder is not None
        method = job.inputs.get("method")
        pipeline = self._edit_pipeline(job, method)
        lines: list[str] = []
        makes = {"inpaint": inpaint, "restore": restore, "vary": vary, "translate": translate}
        inputs = {name: value for name, value in job.inputs.items() if name != "images"}
        seed = {} if job.task == "translate" else {"seed": job.settings.seed}
        watch = _Watch(self._opinion(pipeline), emit, class_names(pipeline))
        edited = makes[job.task](  # type: ignore[operator]
            [str(path) for path in job.inputs["images"]], model=pipeline, classes=job.one_class(), out=folder,
            progress=_Counted(emit), report=lines.append, on_step=watch, **seed, **inputs,
        )  # fmt: skip
        names = class_names(pipeline)
        labels = [] if edited.labels is None or names is None else [names[k] for k in edited.labels]
        return {
            **_files(folder), "labels": labels, "caption": pipeline.text(), "errors": dict(edited.errors),
            "page": np.asarray(edited.page.convert("RGB")),
        }  # fmt: skip

    def _edit_pipeline(self, job: Job, method: str | None) -> Pipeline:
        """The pipeline that the edit's function would load from the job's config."""
        config = job.config()
        self.model(config.model or "", config.weights)  # an error in the model comes first
        solver = {"solver": "ddim"} if job.task == "translate" else {}
        key = (config, method, job.task, "edit")
        if key not in self._pipelines:
            self._trim(self._pipelines, _PIPELINES)
            self._pipelines[key] = load_pipeline(config, self.device, method, **solver)
        return self._pipelines[key]

    def _describe(self, job: Job, folder: Path | None, emit: Emit) -> dict[str, Any]:
        """What the form has to know of a model."""
        model = self.model(job.settings.model, job.settings.weights)
        config = SamplerConfig().resolved(model.process, model.advice)
        conditions, process = model.conditions, model.process
        numbers = conditions.numbers
        return {
            "shape": model.image_shape,
            "classes": [model.label_name(k) for k in range(model.num_classes or 0)],
            "super_resolution": model.spec.super_resolution, "low_size": _low_size(model),
            "cfg": bool(model.null_conditions),
            "classifier": paired_classifier(job.settings.model),
            "solver": config.solver, "steps": config.steps, "grid": config.grid,
            "tags": list(conditions.tags or ()),
            "numbers": [] if numbers is None else list(zip(numbers.names, numbers.low, numbers.high, strict=True)),
            "picture": None if conditions.image is None else
            {"kind": conditions.image.kind, "values": list(conditions.image.values)},
            "parameters": sum(parameter.numel() for parameter in model.net.parameters()),
            "process": f"Trained on {process.steps} {process.schedule} steps, predicts {process.target}",
        }  # fmt: skip

    def _prepare(self, job: Job, folder: Path | None, emit: Emit) -> dict[str, Any]:
        """A user's picture as the model sees it, or its size if the model enlarges it."""
        model = self.model(job.settings.model, job.settings.weights)
        dataset = open_images([job.inputs["image"]], model, labels="none")
        width, height = dataset.source.stored_size(0)
        return {"image": preview(to_uint8(model_images(dataset, [0], "cpu")).numpy())[0], "stored": (height, width)}

    def _shrink(self, job: Job, folder: Path | None, emit: Emit) -> dict[str, Any]:
        """A user's picture as small as the model enlarges it."""
        model = self.model(job.settings.model, job.settings.weights)
        height, width = low_size(model)
        config = DataConfig(
            path="memory", labels="none", size=(height, width), channels=model.image_shape[0],
            value_range=model.value_range,
        )  # fmt: skip
        file = Path(job.inputs["image"])
        dataset = ImageDataset(FolderSource(file.parent, [file.name], [file.stat().st_size]), config)
        stored = dataset.source.stored_size(0)
        return {"image": preview(to_uint8(model_images(dataset, [0], "cpu")).numpy())[0], "stored": stored[::-1]}

    def _classify(self, job: Job, folder: Path | None, emit: Emit) -> dict[str, Any]:
        """The classes of a picture, the most probable first."""
        model = self.model(job.settings.model, job.settings.weights)
        if model.num_classes is None:
            raise ConfigError("model", "has no classes to recognise")
        judge, name = self._judge(job.settings.model, model)
        x0 = model_images(open_images([job.inputs["image"]], model, labels="none"), [0], "cpu")
        with torch.no_grad():
            shares = torch.softmax(judge(x0, judge.chain.level(0)).float(), dim=-1)[0].tolist()
        order = sorted(range(len(shares)), key=lambda k: -shares[k])[:5]
        return {"classes": [(model.label_name(k), shares[k]) for k in order], "judge": name}

    def _judge(self, reference: str, model: DiffusionModel) -> tuple[LevelClassifier, str]:
        """A classifier of clean images that fits a model: the shipped judge, or else the model's own classifier."""
        for name in (SHIPPED[2], paired_classifier(reference)):
            if name is None:
                continue
            found = load_classifier(name)
            try:
                check_pair(model, found, "x0")
            except ValueError:
                continue
            if found.labels == model.labels:
                return found.level_classifier(), name
        raise ConfigError("model", "has no classifier that could recognise a picture: name the class instead")

    def _opinion(self, pipeline: Pipeline) -> LevelClassifier | None:
        """The classifier of noisy images that comments on a path; None if there is none."""
        guides = pipeline.config.guidance.classifier
        name = guides[0] if guides else paired_classifier(str(pipeline.config.model))
        if name is None:
            return None
        if name not in self._classifiers:
            found = load_classifier(name)
            usable = found.numbers is None and not found.clean_only
            self._classifiers[name] = found.level_classifier(device=pipeline.device) if usable else None
            if usable:
                found.net.to(pipeline.device)
        return self._classifiers[name]

    def _data(self, job: Job, folder: Path | None, emit: Emit) -> dict[str, Any]:
        return look(job.inputs["data"], job.inputs.get("chosen"), int(job.inputs.get("first", 0)))


def _low_size(model: DiffusionModel) -> tuple[int, int] | None:
    """(height, width) of the images that a model enlarges; None if it enlarges none, or does not say."""
    try:
        return low_size(model) if model.spec.super_resolution else None
    except ConfigError:
        return None


def _files(folder: Path) -> dict[str, Any]:
    """The files of a run in their order."""
    found = sample_files(folder)
    return {"files": [str(found[k]) for k in sorted(found)], "folder": str(folder)}


class _Counted(NoProgress):
    """Counts images, and reports the share that is done."""

    def __init__(self, emit: Emit, share: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__(1.0)
        self._emit, self._share, self._sent, self._begin = emit, share, 0.0, time.monotonic()

    def advance(self, amount: float) -> None:
        """See `NoProgress.advance`."""
        super().advance(amount)
        now, done = time.monotonic(), self.done / self.total if self.total else 1.0
        if now - self._sent >= _EVERY or done >= 1:
            self._sent = now
            start, part = self._share
            share, seconds = min(1.0, start + part * done), now - self._begin
            left = seconds * (1 - done) / done if done > 0.02 else None
            self._emit("progress", {"done": share, "left": left})


class _Watch:
    """Sends the path of a job's first images: noisy and denoised images, log-SNR and the classifier's opinion.

    Args:
        classifier: The classifier of noisy images; None if there is none.
        emit: Receives a "begin" event, and the steps as "step" events.
        names: The names of the classes; None without classes.
        wanted: The classes of the images that are watched; empty where they are not known.
        part: Of a comparison, which of the two.
    """

    def __init__(
        self, classifier: LevelClassifier | None, emit: Emit, names: Sequence[str] | None, wanted: Sequence[int] = (),
        part: str = "",
    ) -> None:  # fmt: skip
        self.classifier, self.emit, self.part = classifier, emit, part
        self._kept: set[int] = set()
        self._over = False
        self._last = -1
        emit("begin", {"names": list(names or ()), "wanted": list(wanted), "part": part})

    def __call__(self, step: Step) -> None:
        if step.index <= self._last:  # the next batch, whose images are not watched
            self._over = True
        self._last = step.index
        self._kept = self._kept or set(spaced(step.total, FRAMES))
        if self._over or step.index not in self._kept:
            return
        level = Level.clean() if step.level is None else step.level
        x, x0 = step.x[:WATCHED].float(), step.prediction.x0[:WATCHED].float()
        opinion = None
        if self.classifier is not None:
            with torch.no_grad():
                opinion = torch.softmax(self.classifier(x, level).float(), dim=-1).cpu().numpy()
        logsnr = float(torch.as_tensor(level.logsnr).reshape(-1)[0])
        self.emit("step", {
            "index": step.index, "total": step.total, "logsnr": logsnr, "nfe": step.nfe, "x": _shown(x),
            "x0": _shown(x0), "opinion": opinion, "part": self.part,
        })  # fmt: skip


def _shown(x: Tensor) -> np.ndarray:
    """Images as the page shows them on the way, uint8 [N, h, w, C], at most 128 pixels high and wide."""
    height, width = x.shape[2:]
    share = THUMB / max(height, width)
    if share < 1:
        x = torch.nn.functional.adaptive_avg_pool2d(x, (max(1, round(height * share)), max(1, round(width * share))))
    return preview(to_uint8(x.clamp(-1, 1)).cpu().numpy())
