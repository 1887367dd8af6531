"""Distillation as a task of the engine: a student of few calls is trained on what a teacher of many calls says.

The method (`undiffuse.distillation`) gives the losses. This module brings the networks together: the student, the
teacher with its guidance, and what the method trains besides.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.config import GuidanceConfig
from undiffuse.config.advice import advice, to_manifest
from undiffuse.config.fields import given, settings_of
from undiffuse.denoiser import ChainDenoiser, Condition, Denoiser, ProcessConfig, TimeAdapter
from undiffuse.distillation import Batch, Networks, build_method, read_settings
from undiffuse.distillation.base import AUXILIARY, DISCRIMINATOR, TARGET, TEACHER
from undiffuse.grids import grid
from undiffuse.models import ClassifierModel, DiffusionModel, load_classifier, load_diffusion, paired_classifier
from undiffuse.nets.runner import NetworkRunner, is_own
from undiffuse.noise_levels import Level
from undiffuse.objectives import ObjectiveConfig
from undiffuse.pipelines.guidance import guide
from undiffuse.recipes import Recipe
from undiffuse.sampling_defaults import DefaultSampling
from undiffuse.train_config import TrainConfig
from undiffuse.training.companions import Companions
from undiffuse.training.tasks import DiffusionTask, Inputs
from undiffuse.util.errors import ConfigError

__all__ = ["UNDEFINED_AT_NOISE", "Distillation", "DistillationTask", "student_process", "task_of"]

UNDEFINED_AT_NOISE = ("eps", "previous_mean")
"""Targets that say nothing of the image at pure noise, where every student is called."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How a model is distilled.

    Attributes:
        teacher: Name, file or folder of the model that is distilled.
        calls: Network calls of the student's sampler.
        method: Name of the method, see `undiffuse.distillation.METHODS`.
        settings: Settings of the method.
        guidance: Guidance of the teacher, which the student reproduces without any.
        origin: "name" and "sha256" of the model that the teacher was made from, if it is not that model itself.

    Raises:
        ConfigError: A value is not possible.
    """

    teacher: str
    calls: int
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    origin: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.calls, bool) or not isinstance(self.calls, int) or self.calls < 1:
            raise ConfigError("calls", f"expected a whole number of at least 1, got {self.calls!r}")
        object.__setattr__(self, "settings", read_settings(self.method, self.settings))
        guidance = self.guidance.resolved(self.teacher, paired_classifier)
        if guidance.every != 1:
            raise ConfigError("guidance_every", "is for sampling; a teacher is guided at every call")
        object.__setattr__(self, "guidance", guidance)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings ready for JSON."""
        guides = {
            declared.name: list(value) if isinstance(value, tuple) else value
            for f, declared in settings_of(GuidanceConfig)
            if (value := getattr(self.guidance, f.name)) != f.default
        }
        settings = {"teacher": self.teacher, "calls": self.calls, "method": self.method}
        origin = {"origin": dict(self.origin)} if self.origin else {}
        return {**settings, "settings": dict(self.settings), **({"guidance": guides} if guides else {}), **origin}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Distillation:
        """Reads what `to_dict` returned."""
        guidance = GuidanceConfig(**given(GuidanceConfig, saved.get("guidance") or {}))
        return cls(**{**saved, "guidance": guidance})


def student_process(process: ProcessConfig, method: str) -> ProcessConfig:
    """Returns the process of a student: the teacher's levels, a target that is defined at pure noise, fixed variance.

    Args:
        process: The teacher's process.
        method: Name of the method. Consistency models of EDM's levels predict "consistency", all other students of a
            model that predicts noise or the previous mean predict "v" (Salimans & Ho 2022, section 4).
    """
    target = process.target
    if target in UNDEFINED_AT_NOISE:
        target = "edm" if process.preconditioning == "edm" else "v"
    if target == "edm" and method.startswith("consistency") and process.preconditioning == "edm":
        target = "consistency"
    return replace(process, target=target, variance="fixed_small")


class DistillationTask(DiffusionTask):
    """Trains a student.

    Args:
        net: The student's network, whose weights are those that the training starts from.
        process: The student's process, see `student_process`.
        how: The distillation.
        train: The settings of the training: its length is that of the method's schedules.
        labels: Names of the classes.
        low_size: For a super-resolution network: (height, width) of the small image.

    Attributes:
        method: The method.

    Raises:
        ConfigError: The teacher does not fit the student, or the method's settings are not possible.
    """

    def __init__(
        self,
        net: nn.Module,
        process: ProcessConfig,
        how: Distillation,
        *,
        train: TrainConfig,
        labels: Sequence[str] | None = None,
        low_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(net, process, ObjectiveConfig(loss="simple"), labels=labels, low_size=low_size, loss=_no_loss)
        self.how, self.train = how, train
        self._preconditioning = process.build_preconditioning()
        self.method = build_method(how.method, self._preconditioning, how.calls, how.settings)
        self.teacher: DiffusionModel | None = None
        if TEACHER in self.method.needs:
            self.teacher = load_diffusion(how.teacher)
            self._check_teacher(self.teacher)
        elif how.guidance.judges or how.guidance.compares:
            raise ConfigError("guidance", f"of a teacher cannot be baked in by {how.method}, which has no teacher")
        self._discriminator: ClassifierModel | None = None
        if DISCRIMINATOR in self.method.needs:
            self._discriminator = self._classifier(str(how.settings["discriminator"]))
        self._networks: tuple[Any, Networks] | None = None
        self._device = torch.device("cpu")

    def _check_teacher(self, teacher: DiffusionModel) -> None:
        """ConfigError unless the teacher makes the student's images of the student's classes."""
        shapes = [teacher.image_shape, self.spec.image_shape]
        if shapes[0] != shapes[1]:
            sizes = ["x".join(map(str, shape)) for shape in shapes]
            raise ConfigError("teacher", f"makes images of {sizes[0]} (C x H x W), the student of {sizes[1]}")
        if teacher.num_classes not in (None, self.spec.num_classes):
            raise ConfigError("teacher", f"has {teacher.num_classes} classes, the student {self.spec.num_classes}")
        theirs, ours = teacher.process.chain(), self._preconditioning.chain
        if theirs.steps != ours.steps or abs(theirs.alphas_cumprod - ours.alphas_cumprod).max() > 1e-9:
            raise ConfigError("teacher", "was trained on other noise levels than the student's")

    def _classifier(self, name: str) -> ClassifierModel:
        """The classifier that a discriminator starts from; ConfigError unless it fits the student."""
        name = name or str(paired_classifier(self.how.teacher) or "")
        if not name:
            raise ConfigError(
                "settings", "adversarial=... needs a classifier of noisy images to start from: discriminator=CLASSIFIER"
            )
        found = load_classifier(name)
        classes = self.spec.num_classes
        if found.image_shape != self.spec.image_shape or classes not in (None, found.num_classes):
            raise ConfigError("settings", f"discriminator={name} is for other images or classes than the student")
        theirs, ours = found.process.chain(), self._preconditioning.chain
        if theirs.steps != ours.steps or abs(theirs.alphas_cumprod - ours.alphas_cumprod).max() > 1e-9:
            raise ConfigError("settings", f"discriminator={name} was trained on other noise levels than the student's")
        return found

    @property
    def numbers_beside(self) -> int:
        """How many numbers a checkpoint keeps for each weight of the student in its companions."""
        judged = 0
        if self._discriminator is not None:
            sizes = [sum(p.numel() for p in net.parameters()) for net in (self._discriminator.net, self.net)]
            judged = -(-3 * sizes[0] // sizes[1])
        return 3 * (AUXILIARY in self.method.needs) + (TARGET in self.method.needs) + judged

    @cached_property
    def companions(self) -> Companions:
        """The networks that are trained with the student or follow it; made from the weights that it starts from."""
        trained, averages = {}, {}
        if AUXILIARY in self.method.needs:
            auxiliary = copy.deepcopy(self.net)
            teacher = self.teacher
            if teacher is not None and teacher.process == self.process and _same_layout(auxiliary, teacher.net):
                auxiliary.load_state_dict(teacher.net.state_dict())
            trained[AUXILIARY] = auxiliary.requires_grad_(True).train()
        if self._discriminator is not None:
            trained[DISCRIMINATOR] = copy.deepcopy(self._discriminator.net).requires_grad_(True).train()
        if TARGET in self.method.needs:
            averages[TARGET] = (copy.deepcopy(self.net).requires_grad_(False), self.method.target_decay)
        return Companions(trained, averages)

    def losses(self, forward: Any, inputs: Inputs) -> dict[str, Tensor]:
        networks = self._bound(forward, inputs.x0.device)
        # Of the update's first image, so that it does not depend on micro-batches and processes.
        begin = int(inputs.positions[0]) // self.train.batch * self.train.batch
        batch = Batch(
            x0=inputs.x0,
            u=((inputs.t.double() + 0.5) / self.process.steps).clamp(1e-9, 1 - 1e-9),
            progress=min(1.0, begin / self.train.total_images),
            draw=inputs.normal,
            cond=self.condition(inputs),
            update=begin // self.train.batch,
        )
        return self.method.losses(networks, batch)

    def _bound(self, forward: Any, device: torch.device) -> Networks:
        """The denoisers, which are made again when the engine calls the student in another way."""
        if self._networks is None or self._networks[0] is not forward:
            beside = forward.beside if isinstance(forward, NetworkRunner) else lambda net: net
            others: dict[str, Any] = {
                name: ChainDenoiser(beside(module), self.process, "none")
                for name, module in self.companions.modules.items()
                if name != DISCRIMINATOR
            }
            if self._discriminator is not None:
                module = self.companions.trained[DISCRIMINATOR]
                others[DISCRIMINATOR] = ClassCritic(beside(module), self._discriminator.process)
            if self.teacher is not None:
                others[TEACHER] = self._guided(self.teacher, beside, forward, device)
            student = ChainDenoiser(forward, self.process, "none")
            self._networks = (forward, Networks(student=student, **others))
        return self._networks[1]

    def _guided(self, teacher: DiffusionModel, beside: Any, forward: Any, device: torch.device) -> Denoiser:
        net = teacher.net.to(device)
        denoiser = ChainDenoiser(beside(net), teacher.process, "static")
        precision = forward.precision if isinstance(forward, NetworkRunner) else "fp32"
        path = grid(denoiser.chain, denoiser.chain.steps)
        guides = guide(
            self.how.guidance, teacher, denoiser, path, clip="static", precision=precision, device=device,
            gradient=False,
        )  # fmt: skip
        return guides.denoiser

    def sampling(self, steps: int) -> DefaultSampling:
        return DefaultSampling(self.method.solver, str(self.how.calls), self.method.sampling_grid())

    def manifest(self) -> dict[str, Any]:
        made = super().manifest()
        solver, steps, levels = self.sampling(0)
        made["sampling"] = to_manifest(advice(steps, solver=solver, grid=levels))
        path = grid(self._preconditioning.chain, steps, levels)
        starts = [float(path.level(k).logsnr) for k in reversed(range(path.steps))]
        about = {name: value for name, value in self.how.to_dict().items() if name != "teacher"}
        if self.teacher is not None:
            about["teacher"] = self.teacher.digest
        if self._discriminator is not None:
            about["settings"] = {**about["settings"], "discriminator": self._discriminator.digest}
        made["objective"] = {"loss": self.how.method, "low_size": made["objective"]["low_size"]}
        made["distillation"] = {**about, "logsnr": starts, "anywhere": self.method.anywhere}
        return made


class ClassCritic:
    """A classifier as a discriminator: the score of an image is the output for its class, or the first one.

    Args:
        network: (images, times) -> outputs [B, K].
        process: The process of the classifier.
    """

    def __init__(self, network: Any, process: ProcessConfig) -> None:
        self.network = network
        self._time = TimeAdapter(process.chain(), process.rescale_timesteps)

    def __call__(self, x: Tensor, level: Level, cond: Condition | None = None) -> Tensor:
        """See `undiffuse.distillation.Critic`."""
        scores = self.network(x, self._time(level, x)).float()
        y = (cond or {}).get("y")
        return scores[:, 0] if y is None else scores.gather(1, y[:, None])[:, 0]


def task_of(
    distillation: Mapping[str, Any],
    net: nn.Module,
    recipe: Recipe,
    labels: Sequence[str] | None,
    low_size: tuple[int, int] | None,
) -> DistillationTask:
    """Makes the task of a planned run; `distillation` is the request's, the others are as in `DistillationTask`."""
    how = Distillation.from_dict(distillation)
    return DistillationTask(net, recipe.process, how, train=recipe.train, labels=labels, low_size=low_size)


def _same_layout(one: nn.Module, other: nn.Module) -> bool:
    shapes = [{name: tuple(value.shape) for name, value in net.state_dict().items()} for net in (one, other)]
    return is_own(one) and shapes[0] == shapes[1]


def _no_loss(*_: Any) -> Tensor:
    raise NotImplementedError("the method of distillation computes the losses")
