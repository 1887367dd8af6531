"""A model with its sampler, put together from options or from the record in a picture.

The record of a sampler is a flat dictionary of everything that decides what an image looks like, except seed, index
and class; `SamplerConfig.of_record` is its inverse, so that a picture can be made again from what it carries.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import undiffuse
from undiffuse.adapters.published import Sampling
from undiffuse.cli.options import SHIPPED
from undiffuse.denoiser import ChainDenoiser, Denoiser, ProcessConfig
from undiffuse.distributed import resolve_device
from undiffuse.grids import Path, grid
from undiffuse.kernels import keep_memory
from undiffuse.levels import ddim_spec
from undiffuse.methods import METHODS, brief, method, read_options, write_options
from undiffuse.models import (
    ClassifierModel,
    DiffusionModel,
    load_diffusion,
    paired_classifier,
)
from undiffuse.nets.memory import Footprint, bytes_per_image
from undiffuse.nets.runner import AUTOCAST, prepare_for_inference
from undiffuse.noise import NoiseSource
from undiffuse.pipelines import memory as budget
from undiffuse.pipelines.budget import within_budget
from undiffuse.pipelines.guidance import GuidanceConfig, check_identity, guide, listed, reference
from undiffuse.sampling import Step, sample
from undiffuse.solvers import Solver, build
from undiffuse.util.progress import Progress

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
    "solver": _one_of(*METHODS),
    "guidance_at": _one_of("x_t", "mean", "x0"),
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
_LATER: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "grid": ("chain", is_text),
    "solver_options": ("", lambda value: isinstance(value, str)),
}
"""Texts that a record has unless they are these, which all records of earlier versions meant."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """What a user chose: the files, and how to sample. None leaves the solver, its steps and grid to `resolved`, or,
    with a `budget` of network calls, to what was measured (`calls.within_budget`)."""

    model: str = SHIPPED
    weights: str | None = None
    classifier: str | None = None
    guidance: float = 0.0
    guidance_at: str = "x_t"
    solver: str | None = None
    steps: str | None = None
    grid: str | None = None
    solver_options: str = ""
    eta: float = 0.0
    clip: str = "static"
    reclip: bool = True
    precision: str = "fp32"
    guiding: GuidanceConfig = field(default_factory=GuidanceConfig)
    compile: bool = False
    budget: int | None = None

    def __post_init__(self) -> None:
        for name in ("model", "weights", "classifier", "steps", "grid"):
            given = getattr(self, name)
            if given is not None and not given.strip():
                raise ValueError(f"--{name} is empty: give a value, or leave it out")

    def resolved(self, process: ProcessConfig, advice: Sampling | None = None) -> SamplerConfig:
        """With solver, steps and grid named: of a published model those of its authors. ValueError for settings that do
        not go together.

        A learned variance is what lets ancestral sampling do with few steps (Improved DDPM, section 4); a model with a
        fixed one is better served by DDIM.
        """
        solver = self.solver
        if solver is None:
            wants_ddim = self.eta > 0 or not (process.learns_variance or self.guidance_at == "mean")
            if advice is not None and not self.eta:
                wants_ddim = advice.solver == "ddim" and self.guidance_at != "mean"
            solver = "ddim" if wants_ddim else "ancestral"
        options = write_options(solver, read_options(solver, self.solver_options))
        if self.eta and solver != "ddim":
            raise ValueError(f"--eta is the noise of ddim, and {solver} has its own or none: leave it out")
        if self.guidance and self.guidance_at == "mean" and solver != "ancestral":
            raise ValueError("--guidance-at mean exists for ancestral sampling only; give --solver ancestral")
        steps = self.steps
        if steps is None and advice is not None and advice.solver == solver:
            steps = advice.steps
        elif steps is None:
            steps = _default_steps(solver, process, self.grid)
        # Steps that are more than a number ("ddim25", "at:0,10,999") name trained ones.
        grid = self.grid or (method(solver).grid if steps.strip().isdecimal() else "chain")
        return replace(self, solver=solver, steps=steps, grid=grid, solver_options=options)

    @classmethod
    def of_args(cls, args: argparse.Namespace) -> SamplerConfig:
        """From parsed options; a command may lack some of them, and one without --solver means DDIM."""
        given = {name: getattr(args, name) for name in cls.__dataclass_fields__ if hasattr(args, name)}
        given.setdefault("solver", "ddim")
        classifiers, scales = listed(given.get("classifier")), listed(given.get("guidance"))
        if max(len(classifiers), len(scales)) > 1 and len(classifiers) != len(scales):
            raise ValueError(
                f"{len(classifiers)} classifiers and {len(scales)} strengths are given: several classifiers need "
                "--guidance once for each, in their order"
            )
        given["classifier"], given["guidance"] = next(iter(classifiers), None), next(iter(scales), None)
        given["guiding"] = GuidanceConfig.of_args(
            args, list(zip(classifiers, scales, strict=False))[1:], given["model"]
        )
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
        classifier: str | Sequence[str] | None = None,
        where: str = "the record",
        autoguide: str | None = None,
    ) -> SamplerConfig:
        """From the record of a picture; `model`, `classifier` (or several), `autoguide`: where the files are now.

        ValueError, which begins with `where`, if the record says too little, or something that no setting can be.
        """
        absent = [name for name in _IN_RECORD if name not in record]
        if absent:
            raise ValueError(f"{where} does not say how to make an image: it lacks {', '.join(absent)}")
        for name, (fits, expected) in _IN_RECORD.items():
            if not fits(record[name]):
                raise ValueError(f"{where} has {name} = {shown(record[name])}; expected {expected}")
        later = {name: record.get(name, before) for name, (before, _) in _LATER.items()}
        for name, (_, is_possible) in _LATER.items():
            if not is_possible(later[name]):
                raise ValueError(f"{where} has {name} = {shown(later[name])}; expected text")
        guide, now = None, listed(classifier)
        if record["classifier"] is not None:
            guide = now[0] if now else record.get("classifier_file")
            if not is_text(guide):
                raise ValueError(f"{where} has classifier_file = {shown(guide)}; expected text, or give --classifier")
        kept = {name: record[name] for name in _IN_RECORD if name not in ("model", "model_file", "classifier")} | later
        guiding = GuidanceConfig.of_record(record, where, now[1:], autoguide)
        return cls(model=record["model_file"] if model is None else model, classifier=guide, guiding=guiding, **kept)


_UNKNOWN = 2**26  # bytes an image, assumed for networks whose memory cannot be estimated; what does not fit is halved


def _bytes(model: DiffusionModel | ClassifierModel, size: tuple[int, int], element: int, gradient: bool) -> int:
    found = bytes_per_image(model.net, size, element=element, gradient=gradient, spec=model.spec)
    return _UNKNOWN if found is None else found


@dataclass(frozen=True)
class Pipeline:
    """A loaded model, ready to sample. `record` decides the images, `notes` are good to know.

    `classifier`, `others`  the models that guide it: the first classifier, and all others
    `footprints`            of the model and of what guides it
    `gradient`              whether the denoised image can be differentiated
    """

    settings: SamplerConfig
    model: DiffusionModel
    classifier: ClassifierModel | None
    device: torch.device
    chain: Path
    solver: Solver
    denoiser: Denoiser
    record: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    others: tuple[ClassifierModel | DiffusionModel, ...] = ()
    footprints: tuple[Footprint, ...] = ()
    gradient: bool = False

    @classmethod
    def load(cls, settings: SamplerConfig, device: str = "auto", gradient: bool = False) -> Pipeline:
        """Load the files and check that all belongs together (ValueError otherwise).

        `gradient`: whether the caller differentiates the denoised image, whatever guides it.
        """
        where = resolve_device(device)
        if settings.precision == "fp16" and where.type == "cpu":
            raise ValueError("--precision fp16 is for GPUs; on a CPU give bf16, which is as small, or fp32")
        model = load_diffusion(settings.model, weights=settings.weights)
        digest = model.digest  # the identity of the weights as they are in the file, before they are made ready
        told = ""
        if settings.budget is not None:
            settings, told = within_budget(settings, digest)
        settings = settings.resolved(model.process, model.published.sampling if model.published else None)
        assert settings.solver and settings.steps and settings.grid  # `resolved` names them
        keep_memory()
        judges = [(settings.classifier, settings.guidance)] if settings.guidance and settings.classifier else []
        judges += settings.guiding.more_classifiers
        gradient = gradient or bool(judges) and settings.guidance_at == "x0"  # through the network too
        forward = prepare_for_inference(
            model.net, settings.precision, where, gradient=gradient, compiled=settings.compile, consume=True
        )
        denoiser: Denoiser = ChainDenoiser(forward, model.process, settings.clip)
        chain = grid(denoiser.chain, settings.steps, settings.grid)
        guides = guide(
            settings.guiding,
            judges,
            settings.guidance_at,
            settings.clip,
            settings.precision,
            model,
            denoiser,
            chain,
            where,
            gradient,
        )
        record = {
            "model": model.digest,
            "weights": model.weights,
            "classifier": guides.classifier.digest if guides.classifier else None,
            "guidance": settings.guidance,
            "guidance_at": settings.guidance_at,
            "solver": settings.solver,
            "steps": settings.steps,
            "eta": settings.eta,
            "clip": settings.clip,
            "reclip": settings.reclip,
            "precision": settings.precision,
            **guides.record,
            **{name: now for name, (before, _) in _LATER.items() if (now := getattr(settings, name)) != before},
        }
        notes = {"model_file": reference(settings.model), "version": undiffuse.__version__, "torch": torch.__version__}
        notes |= guides.notes
        if told:
            notes["measured"] = told
        options = read_options(settings.solver, settings.solver_options)
        eta = {"eta": settings.eta} if settings.solver == "ddim" else {}
        solver = build(settings.solver, settings.reclip, **eta, **options)
        notes["device"] = where.type
        others, footprints = tuple(guides.others), (forward.footprint, *guides.footprints)
        return cls(
            settings, model, guides.classifier, where, chain, solver, guides.denoiser, record, notes, others,
            footprints, gradient,
        )  # fmt: skip

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
        check_identity(self.record, record, where)

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
        through = self.settings.guidance_at == "x0" and self.classifier is not None
        gradient = through or self.gradient
        needed = _bytes(self.model, size, element, gradient)
        if self.settings.guiding.cfg != 1 and not self.settings.guiding.cfg_two_passes:
            needed *= 2  # with and without class in one batch
        for other in (self.classifier, *self.others):  # after the model has answered, or while its graph is kept
            if other is not None:
                judges = isinstance(other, ClassifierModel)
                one = _bytes(other, size, element, judges or gradient)
                needed = needed + one if through or gradient and not judges else max(needed, one)
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
        way = f"of {self.chain.parent_steps} steps" if s.grid in (None, "chain") else f"steps ({brief(s.grid)})"
        parts = [f"{s.solver}, {self.chain.steps} {way}"]
        parts += [s.solver_options] if s.solver_options else []
        parts += [f"eta {s.eta:g}"] if s.eta else []
        at = {"mean": " at the mean", "x0": " at x0"}.get(s.guidance_at, "")
        parts += [f"guidance {s.guidance:g}{at}"] if s.guidance else []
        parts += s.guiding.text()
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


def classes_to_guide(sampler: Pipeline, given: Sequence[str] | None) -> list[int] | None:
    """As `choose_classes`, and for an unconditional model that is guided the classifier's classes."""
    if sampler.model.num_classes is None and sampler.classifier is not None:
        classifier = sampler.classifier
        if given is None:
            return list(range(classifier.num_classes or 0))
        return [classifier.class_index(part) for text in given for part in text.split(",")]
    return choose_classes(sampler.model, given)


def class_names(sampler: Pipeline) -> list[str] | None:
    """Names of the classes of the model, or of the classifier that guides it; None without classes."""
    source = sampler.model if sampler.model.num_classes is not None else sampler.classifier
    if source is None or source.num_classes is None:
        return None
    return [source.label_name(k) for k in range(source.num_classes)]


def _default_steps(solver: str, process: ProcessConfig, grid: str | None) -> str:
    """The method's default, at most the whole chain; for DDIM the original's grid where there is one.

    For a grid of explicit levels as many as it has.
    """
    if grid and grid.replace(" ", "").startswith("at:"):
        return str(grid.count(",") + 1)
    count = min(method(solver).steps, process.steps)
    early = solver == "ddim" and grid in (None, "chain") and not process.needs_last_level
    return (ddim_spec(process.steps, count) if early else "") or str(count)


def shown(value: object) -> str:
    """A value as part of a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _short(digest: object) -> str:
    return f"{str(digest)[:12]}..." if digest else "none"
