"""What guides a sampler beside its first classifier, from options or from the record in a picture, put together.

A record holds only what differs from the defaults, so that one written before an option existed means what it meant.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from undiffuse import checkpoints
from undiffuse.cli.values import guidance_interval
from undiffuse.denoiser import Denoiser
from undiffuse.grids import Path as Levels
from undiffuse.guidance import (
    SCHEDULES,
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    Interval,
    LevelClassifier,
    Schedule,
    product,
)
from undiffuse.models import ClassifierModel, DiffusionModel, check_pair, load_classifier, load_diffusion
from undiffuse.nets.memory import Footprint
from undiffuse.nets.runner import prepare_for_inference


def _number(value: Any, least: float = -1e30, most: float = 1e30) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _interval(value: Any) -> bool:
    try:
        return _text(value) and bool(guidance_interval(value))
    except argparse.ArgumentTypeError:
        return False


def _scaled(value: Any) -> bool:
    pairs = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    return pairs and all(_text(digest) and _number(scale) for digest, scale in value)


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """The options of guidance, each called as on the command line; the defaults are no guidance of this kind."""

    more_classifiers: tuple[tuple[str, float], ...] = ()
    guidance_temperature: float = 1.0
    guidance_normalize: bool = False
    cfg: float = 1.0
    cfg_rescale: float = 0.0
    cfg_two_passes: bool = False
    autoguide: str | None = None
    autoguide_weights: str | None = None
    autoguide_scale: float = 2.0
    guidance_interval: str | None = None
    guidance_schedule: str = "constant"
    guidance_every: int = 1

    @property
    def compares(self) -> bool:
        """Whether two predictions are compared."""
        return self.cfg != 1 or self.autoguide is not None

    def settled(self, asked: Collection[str], acting: Collection[str]) -> GuidanceConfig:
        """Without what would do nothing: options of how to guide where none of what they shape is `acting`.

        ValueError where none of it was `asked` for ("guidance", "cfg", "autoguide"). A strength that does nothing is
        asked for, so that it can be one of several that are compared.
        """
        idle = {}
        for name, shaped in _SHAPING.items():
            default = getattr(GuidanceConfig(), name)
            if getattr(self, name) != default and not set(shaped) & set(acting):
                _check_asked(name, shaped, asked)
                idle[name] = default
        if "autoguide" in asked and "autoguide" not in acting:
            idle |= {"autoguide": None, "autoguide_weights": None}
        return replace(self, **idle)

    @classmethod
    def of_args(cls, args: argparse.Namespace, more: Sequence[tuple[str, float]], model: str) -> GuidanceConfig:
        """From parsed options, of which a command may lack some; `more` classifiers with their scales."""
        names = [f.name for f in fields(cls) if f.name != "more_classifiers"]
        given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
        if "autoguide_weights" in given:  # other weights of the model itself
            given.setdefault("autoguide", model)
        scales, classifiers = listed(getattr(args, "guidance", None)), listed(getattr(args, "classifier", None))
        strengths = {
            "guidance": scales or [1.0] * len(classifiers),
            "cfg": [given["cfg"] - 1] if "cfg" in given else [],
            "autoguide": [given.get("autoguide_scale", cls.autoguide_scale) - 1] if "autoguide" in given else [],
        }
        asked = [name for name, values in strengths.items() if values]
        if getattr(args, "guidance_at", "x_t") != "x_t":
            _check_asked("guidance_at", ("guidance",), asked)
        guiding = cls(more_classifiers=tuple(more), **given)
        return guiding.settled(asked, [name for name, values in strengths.items() if any(values)])

    @classmethod
    def of_record(
        cls, record: Mapping[str, Any], where: str, classifiers: Sequence[str] = (), autoguide: str | None = None
    ) -> GuidanceConfig:
        """From a picture's record; `classifiers` (after the first) and `autoguide` are where the files are now."""
        for name, (fits, expected) in _IN_RECORD.items():
            if name in record and not fits(record[name]):
                text = repr(record[name])[:60]
                raise ValueError(f"{where} has {name} = {text}; expected {expected}")
        found = {f.name: record[f.name] for f in fields(cls) if f.name in record}
        more = found.pop("more_classifiers", [])
        files = list(classifiers) or record.get("more_classifier_files")
        if more and not (isinstance(files, list) and len(files) == len(more) and all(map(_text, files))):
            raise ValueError(
                f"{where} is of {len(more) + 1} classifiers; expected their files in more_classifier_files, or give "
                "--classifier for each"
            )
        if "autoguide" in found:
            found["autoguide"] = autoguide or record.get("autoguide_file")
            if not _text(found["autoguide"]):
                raise ValueError(f"{where} lacks autoguide_file, the model that guides: give --autoguide")
        pairs = tuple((file, float(scale)) for file, (_, scale) in zip(files or [], more, strict=bool(more)))
        return cls(more_classifiers=pairs, **found)

    def text(self) -> list[str]:
        """In a few words each, for captions."""
        parts = [f"and {scale:g}" for _, scale in self.more_classifiers]
        parts += [f"temperature {self.guidance_temperature:g}"] if self.guidance_temperature != 1 else []
        parts += ["normalised"] if self.guidance_normalize else []
        parts += [f"cfg {self.cfg:g}"] if self.cfg != 1 else []
        parts += [f"autoguided {self.autoguide_scale:g}"] if self.autoguide else []
        parts += [f"rescaled {self.cfg_rescale:g}"] if self.cfg_rescale else []
        parts += [f"interval {self.guidance_interval}"] if self.guidance_interval else []
        parts += [self.guidance_schedule] if self.guidance_schedule != "constant" else []
        parts += [f"every {self.guidance_every}"] if self.guidance_every != 1 else []
        return parts

    def schedule(self, path: Levels) -> Schedule | None:
        """How much of the guidance acts at each level of a path; None: all of it everywhere."""
        parts: list[Schedule] = []
        if self.guidance_schedule != "constant":
            parts.append(SCHEDULES[self.guidance_schedule])
        if self.guidance_interval is not None:
            unit, low, high = guidance_interval(self.guidance_interval)
            levels = [path.level(k) for k in reversed(range(path.steps))]
            if unit == "steps":
                parts.append(Interval.of_steps(levels, low, high))
            else:
                inside = Interval.of_sigma(low, high) if unit == "sigma" else Interval(low, high)
                if not any(bool(inside(level)) for level in levels):
                    raise ValueError(
                        f"--guidance-interval {self.guidance_interval}: none of the {path.steps} steps begins there; "
                        f"they begin at log-SNR {float(levels[0].logsnr):.3g} to {float(levels[-1].logsnr):.3g}"
                    )
                parts.append(inside)
        return product(*parts) if parts else None


_SHAPING = {
    **dict.fromkeys(("guidance_interval", "guidance_schedule", "guidance_every"), ("guidance", "cfg", "autoguide")),
    **dict.fromkeys(("guidance_temperature", "guidance_normalize"), ("guidance",)),
    "cfg_rescale": ("cfg", "autoguide"),
    "cfg_two_passes": ("cfg",),
    "autoguide_scale": ("autoguide",),
}
"""Options of how to guide, each with those of what it shapes."""


def _check_asked(name: str, shaped: Sequence[str], asked: Collection[str]) -> None:
    if not set(shaped) & set(asked):
        given = " or ".join(", ".join(f"--{what}" for what in shaped).rsplit(", ", 1))
        raise ValueError(f"--{name.replace('_', '-')} says how to guide, not by what: give {given}")


_IN_RECORD = {
    "more_classifiers": (_scaled, "a list of pairs of a name and a number"),
    "guidance_temperature": (lambda v: _number(v, 1e-9), "a number above 0"),
    "guidance_normalize": (lambda v: isinstance(v, bool), "true or false"),
    "cfg": (_number, "a finite number"),
    "cfg_rescale": (lambda v: _number(v, 0, 1), "a number from 0 to 1"),
    "cfg_two_passes": (lambda v: isinstance(v, bool), "true or false"),
    "autoguide": (_text, "text"),
    "autoguide_weights": (_text, "text"),
    "autoguide_scale": (_number, "a finite number"),
    "guidance_interval": (_interval, "an interval such as -1,3"),
    "guidance_schedule": (lambda v: v in SCHEDULES, " or ".join(SCHEDULES)),
    "guidance_every": (lambda v: _number(v, 1) and isinstance(v, int), "a whole number of at least 1"),
}
"""What a record may say, each with what it must be and how a message calls that."""


@dataclass
class Guides:
    """A denoiser with all that guides it: the models loaded for it, what they take, and what a record and its notes say
    of them."""

    denoiser: Denoiser
    classifier: ClassifierModel | None = None
    others: list[ClassifierModel | DiffusionModel] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


def guide(
    guiding: GuidanceConfig,
    classifiers: Sequence[tuple[str, float]],
    at: str,
    clip: str,
    precision: str,
    model: DiffusionModel,
    denoiser: Denoiser,
    path: Levels,
    device: torch.device,
    gradient: bool,
) -> Guides:
    """Load what guides and wrap the denoiser: classifier-free guidance innermost, then autoguidance, then the
    classifiers one around the other. `gradient`: whether the result is differentiated with respect to the image.
    ValueError for what does not fit the model.
    """
    out = Guides(denoiser)
    defaults = GuidanceConfig()
    out.record = {f.name: getattr(guiding, f.name) for f in fields(guiding) if f.name not in _FILES}
    out.record = {name: value for name, value in out.record.items() if value != getattr(defaults, name)}
    shared: dict[str, Any] = {"schedule": guiding.schedule(path), "every": guiding.guidance_every}
    if guiding.cfg != 1:
        if model.null_class is None:
            raise ValueError(
                f"--cfg {guiding.cfg:g} needs a model that was also trained without its labels, and this one was not: "
                "train one by `undiffuse train --label-dropout 0.1`, or guide by --autoguide UNCONDITIONAL_MODEL"
            )
        # Batches of two sizes in turns: a CPU's network would lay out its weights anew at every call.
        in_turns = guiding.guidance_every > 1 and device.type == "cpu"
        together = not (guiding.cfg_two_passes or in_turns)
        null, rescale = {"y": model.null_class}, guiding.cfg_rescale
        out.denoiser = ClassifierFree(out.denoiser, guiding.cfg, null, rescale=rescale, together=together, **shared)
    if guiding.autoguide is not None:
        other = load_diffusion(guiding.autoguide, weights=guiding.autoguide_weights)
        _check_reference(model, other)
        asked = other.denoiser(clip, precision=precision, device=device, gradient=gradient, consume=True)
        out.footprints.append(asked.network.footprint)
        rescale = guiding.cfg_rescale
        out.denoiser = Autoguidance(out.denoiser, asked, guiding.autoguide_scale, rescale=rescale, **shared)
        out.others.append(other)
        out.record |= {"autoguide": other.digest, "autoguide_weights": other.weights}
        out.record["autoguide_scale"] = guiding.autoguide_scale
        out.notes["autoguide_file"] = reference(guiding.autoguide)
    loaded: list[ClassifierModel] = []
    for file, scale in classifiers:
        found = load_classifier(file)
        check_pair(model, found)
        _check_chains(model, found)
        if loaded and found.num_classes != loaded[0].num_classes:
            raise ValueError(
                f"classifiers that guide together must know the same classes: {loaded[0].num_classes} and "
                f"{found.num_classes}"
            )
        _ = found.digest  # of the weights as they are in the file, before they are made ready
        network = prepare_for_inference(found.net, precision, device, gradient=True, consume=True)
        out.footprints.append(network.footprint)
        judge = LevelClassifier(network, found.process, guiding.guidance_temperature)
        normalize = guiding.guidance_normalize
        out.denoiser = ClassifierGuidance(out.denoiser, judge, scale, at, normalize=normalize, **shared)
        loaded.append(found)
    if loaded:
        out.classifier = loaded[0]
        out.others += loaded[1:]
        out.notes["classifier_file"] = reference(classifiers[0][0])
    if loaded[1:]:
        pairs = zip(loaded[1:], classifiers[1:], strict=True)
        out.record["more_classifiers"] = [[found.digest, scale] for found, (_, scale) in pairs]
        out.notes["more_classifier_files"] = [reference(file) for file, _ in classifiers[1:]]
    return out


_FILES = ("more_classifiers", "autoguide", "autoguide_weights", "autoguide_scale")  # recorded by what they are


def check_identity(ours: Mapping[str, Any], record: Mapping[str, Any], where: str) -> None:
    """ValueError, which calls it `where`, unless the models that guide are those of a record."""
    digests = [
        ([d for d, _ in r.get("more_classifiers") or []], r.get("autoguide"), r.get("autoguide_weights"))
        for r in (ours, record)
    ]
    if digests[0][0] != digests[1][0]:
        raise ValueError(
            f"the classifiers after the first are not those of {where}: give --classifier for each, in order"
        )
    if digests[0][1:] != digests[1][1:]:
        raise ValueError(f"the model that guides is not the one of {where}: give --autoguide the file it was made with")


def listed(value: Any) -> list[Any]:
    """The values of an option that may be given several times, once, or not at all."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def reference(given: str) -> str:
    """How a record names a model: a run folder by the checkpoint it meant at the time."""
    path = Path(given)
    return ((checkpoints.latest(path) if path.is_dir() else None) or path).as_posix()


def _check_chains(model: DiffusionModel, classifier: ClassifierModel) -> None:
    """A classifier is asked at the model's noise levels, so it must have been trained on the same kind of process."""
    ours, theirs = model.process.chain().alphas_cumprod, classifier.process.chain().alphas_cumprod
    if theirs[-1] > 4 * ours[-1] + 1e-4:
        raise ValueError(
            f"this classifier does not fit the model: its noisiest images keep alpha_bar = {theirs[-1]:.2g}, the "
            f"model's {ours[-1]:.2g}. Train one by `undiffuse train-classifier DATA --for MODEL`"
        )


def _check_reference(model: DiffusionModel, other: DiffusionModel) -> None:
    """A model guides another if it makes the same images of the same classes, or of none."""
    problem = None
    if other.image_shape != model.image_shape:
        shapes = ["x".join(map(str, m.image_shape)) for m in (other, model)]
        problem = f"it makes images of {shapes[0]} (channels x height x width), the model {shapes[1]}"
    elif other.num_classes is not None and other.num_classes != model.num_classes:
        problem = f"it is told {other.num_classes} classes, the model {model.num_classes or 'none'}"
    elif other.num_classes is not None and None not in (other.labels, model.labels) and other.labels != model.labels:
        problem = "its classes are called otherwise than the model's"
    elif other.spec.super_resolution != model.spec.super_resolution:
        problem = "one of the two enlarges images, the other does not"
    if problem:
        raise ValueError(f"--autoguide needs a weaker version of the model: {problem}")
