"""A model with its sampler, put together from options or from the record in a picture.

The record of a sampler is a flat dictionary of everything that decides what an image looks like, except seed, index
and class; `Settings.of_record` is its inverse, so that a picture can be made again from what it carries.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import undiffuse
from undiffuse import checkpoints
from undiffuse.adapters.published import Sampling
from undiffuse.cli import budget
from undiffuse.cli.console import Progress
from undiffuse.cli.options import SHIPPED
from undiffuse.denoiser import ChainDenoiser, Denoiser, ProcessConfig
from undiffuse.distributed import resolve_device
from undiffuse.guidance import ClassifierGuidance, LevelClassifier
from undiffuse.kernels import keep_memory
from undiffuse.levels import Chain, ddim_spec
from undiffuse.models import (
    ClassifierModel,
    DiffusionModel,
    check_pair,
    load_classifier,
    load_diffusion,
    paired_classifier,
)
from undiffuse.nets.footprint import Footprint, activation_bytes
from undiffuse.nets.forward import AUTOCAST, inference_forward
from undiffuse.noise import NoiseSource
from undiffuse.sampling import Step, sample
from undiffuse.solvers import DDIM, Ancestral, Solver

DEFAULT_STEPS = {"ddim": 50, "ancestral": 100}
_IMAGES = 12  # tensors of an image's size that a step of a sampler holds at once: x, the prediction's parts, noise


def is_text(value: Any) -> bool:
    """Whether a value from JSON is text that is not empty."""
    return isinstance(value, str) and bool(value.strip())


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e30


def _one_of(*words: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in words, " or ".join(words)


_IN_RECORD: dict[str, tuple[Callable[[Any], bool], str]] = {
    "solver": _one_of(*DEFAULT_STEPS),
    "guidance_at": _one_of("x_t", "mean"),
    "clip": _one_of("static", "dynamic", "none"),
    "precision": _one_of("fp32", *AUTOCAST),
    "weights": (is_text, "text"),
    "steps": (is_text, "text"),
    "guidance": (is_number, "a finite number"),
    "eta": (lambda value: is_number(value) and value >= 0, "a finite number of 0 or more"),
    "reclip": (lambda value: isinstance(value, bool), "true or false"),
    "model": (is_text, "text"),
    "model_file": (is_text, "text"),
    "classifier": (lambda value: value is None or is_text(value), "text or null"),
}
"""What a record says, each with what it must be and how a message calls that."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a user chose: the files, and how to sample. None leaves the solver and its steps to `resolved`."""

    model: str = SHIPPED
    weights: str | None = None
    classifier: str | None = None
    guidance: float = 0.0
    guidance_at: str = "x_t"
    solver: str | None = None
    steps: str | None = None
    eta: float = 0.0
    clip: str = "static"
    reclip: bool = True
    precision: str = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("model", "weights", "classifier", "steps"):
            given = getattr(self, name)
            if given is not None and not given.strip():
                raise ValueError(f"--{name} is empty: give a value, or leave it out")

    def resolved(self, process: ProcessConfig, advice: Sampling | None = None) -> Settings:
        """With solver and steps named: of a published model those of its authors. ValueError for settings that do not
        go together.

        A learned variance is what lets ancestral sampling do with few steps (Improved DDPM, section 4); a model with a
        fixed one is better served by DDIM.
        """
        solver = self.solver
        if solver is None:
            wants_ddim = self.eta > 0 or not (process.learns_variance or self.guidance_at == "mean")
            if advice is not None and not self.eta:
                wants_ddim = advice.solver == "ddim" and self.guidance_at != "mean"
            solver = "ddim" if wants_ddim else "ancestral"
        if solver not in DEFAULT_STEPS:
            raise ValueError(f"unknown solver {solver!r}; choose one of {', '.join(DEFAULT_STEPS)}")
        if self.eta and solver != "ddim":
            raise ValueError("--eta is the noise of ddim, and ancestral sampling has its own: leave it out")
        if self.guidance and self.guidance_at == "mean" and solver == "ddim":
            raise ValueError("--guidance-at mean exists for ancestral sampling only; give --solver ancestral")
        steps = self.steps
        if steps is None and advice is not None and advice.solver == solver:
            steps = advice.steps
        elif steps is None:
            steps = _default_steps(solver, process.steps)
        return replace(self, solver=solver, steps=steps)

    @classmethod
    def of_args(cls, args: argparse.Namespace) -> Settings:
        """From parsed options; a command may lack some of them, and one without --solver means DDIM."""
        given = {name: getattr(args, name) for name in cls.__dataclass_fields__ if hasattr(args, name)}
        given.setdefault("solver", "ddim")
        if given.get("guidance") is None:
            given["guidance"] = 1.0 if given.get("classifier") else 0.0
        if given["guidance"] and not given.get("classifier"):
            given["classifier"] = paired_classifier(given["model"])
            if given["classifier"] is None:
                raise ValueError(
                    f"--guidance {given['guidance']:g} needs a classifier of noisy images: give --classifier (train "
                    f"one by `undiffuse train-classifier DATA --for {given['model']}`)"
                )
        return cls(**given)

    @classmethod
    def of_record(
        cls,
        record: Mapping[str, Any],
        model: str | None = None,
        classifier: str | None = None,
        where: str = "the record",
    ) -> Settings:
        """From the record of a picture; `model`, `classifier` are where the files are now.

        ValueError, which begins with `where`, if the record says too little, or something that no setting can be.
        """
        absent = [name for name in _IN_RECORD if name not in record]
        if absent:
            raise ValueError(f"{where} does not say how to make an image: it lacks {', '.join(absent)}")
        for name, (fits, expected) in _IN_RECORD.items():
            if not fits(record[name]):
                raise ValueError(f"{where} has {name} = {shown(record[name])}; expected {expected}")
        guide = None
        if record["classifier"] is not None:
            guide = record.get("classifier_file") if classifier is None else classifier
            if classifier is None and not is_text(guide):
                raise ValueError(f"{where} has classifier_file = {shown(guide)}; expected text, or give --classifier")
        kept = {name: record[name] for name in _IN_RECORD if name not in ("model", "model_file", "classifier")}
        return cls(model=record["model_file"] if model is None else model, classifier=guide, **kept)


@dataclass(frozen=True)
class Sampler:
    """A loaded model, ready to sample. `record` decides the images, `notes` are good to know, `footprints` are those of
    the model and, if it is guided, of the classifier."""

    settings: Settings
    model: DiffusionModel
    classifier: ClassifierModel | None
    device: torch.device
    chain: Chain
    solver: Solver
    denoiser: Denoiser
    record: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    footprints: tuple[Footprint, ...] = ()

    @classmethod
    def load(cls, settings: Settings, device: str = "auto") -> Sampler:
        """Load the files and check that all belongs together (ValueError otherwise)."""
        where = resolve_device(device)
        if settings.precision == "fp16" and where.type == "cpu":
            raise ValueError("--precision fp16 is for GPUs; on a CPU give bf16, which is as small, or fp32")
        model = load_diffusion(settings.model, weights=settings.weights)
        _ = model.digest  # the identity of the weights as they are in the file, before they are made ready
        settings = settings.resolved(model.process, model.published.sampling if model.published else None)
        assert settings.steps is not None  # `resolved` names them
        keep_memory()
        forward = inference_forward(model.net, settings.precision, where, compiled=settings.compile)
        forwards = [forward]
        denoiser: Denoiser = ChainDenoiser(forward, model.process, settings.clip)
        chain = denoiser.chain.respaced(settings.steps)
        classifier = None
        if settings.guidance and settings.classifier:
            classifier = load_classifier(settings.classifier)
            check_pair(model, classifier)
            _check_chains(model, classifier)
            _ = classifier.digest
            forwards.append(inference_forward(classifier.net, settings.precision, where, gradient=True))
            guide = LevelClassifier(forwards[-1], classifier.process)
            denoiser = ClassifierGuidance(denoiser, guide, settings.guidance, settings.guidance_at)
        record = {
            "model": model.digest,
            "weights": model.weights,
            "classifier": classifier.digest if classifier else None,
            "guidance": settings.guidance,
            "guidance_at": settings.guidance_at,
            "solver": settings.solver,
            "steps": settings.steps,
            "eta": settings.eta,
            "clip": settings.clip,
            "reclip": settings.reclip,
            "precision": settings.precision,
        }
        notes = {"model_file": _reference(settings.model), "version": undiffuse.__version__, "torch": torch.__version__}
        if classifier:
            notes["classifier_file"] = _reference(settings.classifier or "")
        solver: Solver = DDIM(settings.eta, settings.reclip) if settings.solver == "ddim" else Ancestral()
        notes["device"] = where.type
        footprints = tuple(forward.footprint for forward in forwards)
        return cls(settings, model, classifier, where, chain, solver, denoiser, record, notes, footprints)

    def check_identity(self, record: Mapping[str, Any], where: str = "the record", option: str = "model") -> None:
        """ValueError, which calls it `where`, unless the loaded weights are those of a record.

        `option` is what names the model on the command line.
        """
        ours = (("model", self.settings.model), ("classifier", self.settings.classifier))
        for name, file in ours:
            if record.get(name) != self.record[name]:
                called = option if name == "model" else name
                raise ValueError(
                    f"the {called} {file} is not the one of {where}: its weights are {_short(self.record[name])}, "
                    f"the record's {_short(record.get(name))}. Give --{called} the file it was made with"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return self.model.image_shape

    def batch_size(self, wanted: int | None) -> int:
        """Images at once: what was asked for, or what suits the device and its free memory."""
        return budget.images_at_once(self.bytes_per_image, self.device) if wanted is None else wanted

    @property
    def bytes_per_image(self) -> int:
        """About the most memory that one image takes while it is made, without the weights."""
        element = 4 if self.settings.precision == "fp32" else 2
        size = self.shape[1:]
        needed = activation_bytes(self.model.net.config, size, element=element)
        if self.classifier is not None:  # after the model has answered
            config = self.classifier.net.config
            needed = max(needed, activation_bytes(config, size, element=element, gradient=True))
        return needed + 4 * _IMAGES * math.prod(self.shape)

    def steps_of(
        self,
        noise: NoiseSource,
        classes: Sequence[int] | Tensor | None = None,
        low_res: Tensor | None = None,
        x_T: Tensor | None = None,
        on_step: Callable[[Step], None] | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """The images [B, C, H, W] on the device; `on_step` hears of every step on the way, `progress` of images."""
        cond = self.condition(classes, low_res)
        last: Step | None = None
        for last in self._iterate(noise, cond, x_T):
            if on_step is not None:
                on_step(last)
            if progress is not None:
                progress.advance(len(noise) / last.total)
        assert last is not None  # a chain has at least one step
        return last.x

    def condition(self, classes: Sequence[int] | Tensor | None, low_res: Tensor | None = None) -> dict[str, Tensor]:
        """What the denoiser is told beside image and level, on the device."""
        cond = {}
        if classes is not None:
            cond["y"] = torch.as_tensor(classes, dtype=torch.int64).to(self.device)
        if low_res is not None:
            cond["low_res"] = low_res.to(self.device)
        return cond

    def _iterate(self, noise: NoiseSource, cond: dict[str, Tensor], x_T: Tensor | None) -> Iterator[Step]:
        return sample(self.denoiser, self.chain, self.solver, noise, self.shape, cond=cond, x_T=x_T, device=self.device)

    def text(self) -> str:
        """The settings in a few words, for captions."""
        s = self.settings
        parts = [f"{s.solver}, {self.chain.steps} of {self.chain.parent_steps} steps"]
        parts += [f"eta {s.eta:g}"] if s.eta else []
        at = " at the mean" if s.guidance_at == "mean" else ""
        parts += [f"guidance {s.guidance:g}{at}"] if s.guidance else []
        parts += [f"clip {s.clip}"] if s.clip != "static" else []
        parts += [s.precision] if s.precision != "fp32" else []
        return ", ".join(parts)


def choose_classes(model: DiffusionModel, given: Sequence[str] | None, default: str | None = "all") -> list[int] | None:
    """Class indices from --class options: names, numbers, comma lists, "all".

    None for an unconditional model, and where nothing was given and there is no default. A name that itself contains a
    comma may be given whole. ValueError for what is no class.
    """
    classes = model.num_classes
    if classes is None:
        if given:
            raise ValueError("the model has no classes: leave --class out")
        return None
    if given is None and default is None:
        return None
    chosen: list[int] = []
    labels = [label.casefold() for label in model.labels or ()]
    for text in given or [str(default)]:
        for part in [text] if text.strip().casefold() in labels else text.split(","):
            chosen += range(classes) if part.strip().lower() == "all" else [model.class_index(part)]
    return chosen


def classes_to_guide(sampler: Sampler, given: Sequence[str] | None) -> list[int] | None:
    """As `choose_classes`, and for an unconditional model that is guided the classifier's classes."""
    if sampler.model.num_classes is None and sampler.classifier is not None:
        classifier = sampler.classifier
        if given is None:
            return list(range(classifier.num_classes or 0))
        return [classifier.class_index(part) for text in given for part in text.split(",")]
    return choose_classes(sampler.model, given)


def class_names(sampler: Sampler) -> list[str] | None:
    """Names of the classes of the model, or of the classifier that guides it; None without classes."""
    source = sampler.model if sampler.model.num_classes is not None else sampler.classifier
    if source is None or source.num_classes is None:
        return None
    return [source.label_name(k) for k in range(source.num_classes)]


def _default_steps(solver: str, steps: int) -> str:
    """The method's default, at most the whole chain; for DDIM the original's grid where there is one."""
    count = min(DEFAULT_STEPS[solver], steps)
    return (ddim_spec(steps, count) if solver == "ddim" else "") or str(count)


def _check_chains(model: DiffusionModel, classifier: ClassifierModel) -> None:
    """A classifier is asked at the model's noise levels, so it must have been trained on the same kind of process."""
    ours, theirs = model.process.chain().alphas_cumprod, classifier.process.chain().alphas_cumprod
    if theirs[-1] > 4 * ours[-1] + 1e-4:
        raise ValueError(
            f"this classifier does not fit the model: its noisiest images keep alpha_bar = {theirs[-1]:.2g}, the "
            f"model's {ours[-1]:.2g}. Train one by `undiffuse train-classifier DATA --for MODEL`"
        )


def _reference(reference: str) -> str:
    """How a record names a model: a run folder by the checkpoint it meant at the time."""
    path = Path(reference)
    return ((checkpoints.latest(path) if path.is_dir() else None) or path).as_posix()


def shown(value: object) -> str:
    """A value as part of a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _short(digest: object) -> str:
    return f"{str(digest)[:12]}..." if digest else "none"
