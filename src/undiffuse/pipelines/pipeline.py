"""A model with its guidance, solver and noise levels, ready to make images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import undiffuse
from undiffuse.adapters import published
from undiffuse.arithmetic import float32_switches, steady_float32
from undiffuse.conditions import NumberCondition
from undiffuse.config import SamplerConfig
from undiffuse.denoiser import ChainDenoiser, Denoiser
from undiffuse.distributed import resolve_device
from undiffuse.grid_specs import brief
from undiffuse.grids import NoisePath, grid
from undiffuse.kernels import keep_memory, planned
from undiffuse.models import ClassifierModel, DiffusionModel, current_digest, load_diffusion, paired_classifier
from undiffuse.nets.memory import Footprint, bytes_per_image
from undiffuse.nets.runner import is_consumed
from undiffuse.noise import NoiseSource
from undiffuse.pipelines import budget, memory
from undiffuse.pipelines.classes import class_names
from undiffuse.pipelines.conditioning import as_low_res, classes_of, give_conditions
from undiffuse.pipelines.given import checked
from undiffuse.pipelines.guidance import check_identity, guide, reference
from undiffuse.pipelines.students import check_levels
from undiffuse.runtime_specs import DEFAULT, check_runtime, runs_on_cpu, runtime_notes
from undiffuse.runtimes import load_runner
from undiffuse.sampling import Step, sample
from undiffuse.solvers import Solver, build_solver
from undiffuse.solvers.registry import read_options
from undiffuse.util.errors import ConfigError
from undiffuse.util.progress import NoProgress, progress_of

if TYPE_CHECKING:
    from undiffuse.pipelines.samples import Samples

__all__ = ["Pipeline"]

_UNKNOWN = 2**26  # bytes an image, assumed for a network that cannot be estimated; what does not fit is halved
_TENSORS = 12  # tensors of an image's size that a step of a sampler holds at once: x, the prediction's parts, noise


@dataclass(frozen=True)
class Pipeline:
    """A loaded model, how it is guided and how it is sampled.

    Example:
        pipeline = Pipeline.from_pretrained("fashion-mnist-32", guidance=2.0)
        pipeline.sample(16, classes="dress", seed=0).save("dresses")

    Attributes:
        config: The settings, resolved: solver, steps and grid are named.
        model: The diffusion model.
        classifier: The first classifier that guides it; None without one.
        device: Where it runs.
        path: The noise levels: a chain, a strided part of it, or a grid.
        solver: The sampling method.
        denoiser: The guided denoiser.
        record: Everything that decides what an image looks like, except its seed, number and class.
        notes: What is good to know: files, versions, device.
        others: All other models that guide.
        footprints: Memory of the networks.
        gradient: Whether the denoised image can be differentiated with respect to the noisy one.
        targets: The numbers that regressors guide towards, for each regressor.
    """

    config: SamplerConfig
    model: DiffusionModel
    classifier: ClassifierModel | None
    device: torch.device
    path: NoisePath
    solver: Solver
    denoiser: Denoiser
    record: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    others: tuple[ClassifierModel | DiffusionModel, ...] = ()
    footprints: tuple[Footprint, ...] = ()
    gradient: bool = False
    targets: tuple[NumberCondition, ...] = ()

    @classmethod
    def from_pretrained(
        cls,
        model: str | File | DiffusionModel,
        *,
        config: SamplerConfig | None = None,
        device: str = "auto",
        net: torch.nn.Module | None = None,
        **settings: Any,
    ) -> Pipeline:
        """Loads a model and prepares it for sampling.

        Args:
            model: A model file, a run folder, the name of a shipped or published model, or a model in memory.
            config: How to sample; by default as the model's authors do.
            device: "cpu", "cuda", "mps", or "auto" for the best there is.
            net: A network that receives the weights, for files of an architecture that is not registered.
            **settings: Single settings of `SamplerConfig` and `GuidanceConfig`, for example solver="dpmpp-2m",
                steps=20, guidance=2.0, precision="bf16", weights="0.999".

        Raises:
            ConfigError: For a setting that is unknown, not possible, or does not suit the model.
            FileNotFoundError, ValueError: If the model cannot be loaded.
        """
        chosen = (config or SamplerConfig()).replace(**settings)
        if not isinstance(model, (str, File)):
            if not isinstance(model, DiffusionModel):
                raise ConfigError(
                    "model",
                    f"expected a file, a name or a DiffusionModel, got {type(model).__name__}; a network of your own "
                    "becomes one by DiffusionModel(net, process)",
                )
            if net is not None or chosen.weights not in (None, model.weights):
                raise ConfigError("weights" if net is None else "net", "cannot be chosen for a model in memory")
            return cls.load(chosen, device, model=model)
        chosen = chosen.replace(model=str(model))
        loaded = None if net is None else load_diffusion(model, weights=chosen.weights, net=net)
        return cls.load(chosen, device, model=loaded)

    @classmethod
    def load(
        cls,
        config: SamplerConfig,
        device: str = "auto",
        gradient: bool = False,
        model: DiffusionModel | None = None,
        keep_weights: bool = True,
    ) -> Pipeline:
        """Loads what a config names and checks that it belongs together.

        Args:
            config: The settings; `config.model` is the reference of the model.
            device: As in `from_pretrained`.
            gradient: Whether the caller differentiates the denoised image.
            model: The model itself, if it is loaded already.
            keep_weights: Whether the model stays whole, so that it can be saved, trained and prepared again. Without,
                the memory of a second copy of the weights is saved.

        Raises:
            ConfigError: For settings that are not possible together.
            FileNotFoundError, ValueError: If a model cannot be loaded, or does not suit the others.
        """
        where = torch.device("cpu") if device == "auto" and runs_on_cpu(config.runtime) else resolve_device(device)
        if config.precision == "fp16" and where.type == "cpu":
            raise ConfigError("precision", "fp16 requires a GPU; on a CPU use bf16, which is as small, or fp32")
        check_runtime(config.runtime, config.precision, where.type, gradient)
        if model is None:
            if config.model is None:
                raise ConfigError("model", "is missing: give a model file, a run folder, or a name")
            if config.model in published.ENTRIES:  # mistakes in its guidance are reported before the download
                config.guidance.resolved(config.model, paired_classifier)
            model = load_diffusion(config.model, weights=config.weights)
        digest = model.digest  # the identity of the weights as they are in the file, before they are made ready
        config = config.replace(guidance=config.guidance.resolved(config.model, paired_classifier))
        measured = ""
        if config.budget is not None:
            config, measured = budget.within_budget(config, digest)
        config = config.resolved(model.process, model.advice)
        assert config.solver and config.steps and config.grid and config.clip  # `resolved` names them
        keep_memory()
        gradient = gradient or bool(config.guidance.judges) and config.guidance.at == "x0"  # through the network too
        forward = load_runner(
            model, config.runtime, config.precision, where, gradient=gradient, consume=not keep_weights
        )
        denoiser: Denoiser = ChainDenoiser(forward, model.process, config.clip)
        path = grid(denoiser.chain, config.steps, config.grid)
        check_levels(model, path)
        guides = guide(
            config.guidance, model, denoiser, path,
            clip=config.clip, precision=config.precision, runtime=config.runtime, device=where, gradient=gradient,
        )  # fmt: skip
        record = {
            "model": model.digest,
            "weights": model.weights,
            "classifier": guides.classifier.digest if guides.classifier else None,
            **config.record(),
            **guides.record,
        }
        notes: dict[str, Any] = {"model_file": reference(config.model)} if config.model is not None else {}
        notes["version"] = undiffuse.__version__
        notes |= {"torch": torch.__version__, **guides.notes, **runtime_notes(config.runtime), "device": where.type}
        if where.type != "cpu" and (switches := float32_switches(where)):
            notes["float32"] = switches
        if where.type == "cuda":
            from undiffuse.kernels.gpu import norm_status

            notes["norm_act"] = norm_status(where).active  # which rounds otherwise than the other one
        if measured:
            notes["measured"] = measured
        eta = {"eta": config.eta} if config.solver == "ddim" else {}
        options = read_options(config.solver, config.solver_options)
        solver = build_solver(config.solver, config.clip_after_guidance, **eta, **options)
        return cls(
            config, model, guides.classifier, where, path, solver, guides.denoiser, record, notes,
            tuple(guides.others), (forward.footprint, *guides.footprints), gradient,
            tuple(guides.targets),
        )  # fmt: skip

    @classmethod
    def from_record(
        cls, record: Mapping[str, Any], *, device: str = "auto", where: str = "the record", **now: Any
    ) -> Pipeline:
        """Loads the pipeline that made a picture, from the picture's record, and checks that its models are the same.

        Args:
            record: What `pictures.read_record` returns.
            device: As in `from_pretrained`.
            where: What messages call the record.
            **now: Where the models are now, see `SamplerConfig.from_record`: model, classifier, autoguide.

        Raises:
            ValueError: If the record says too little, or the models have other weights.
        """
        pipeline = cls.load(SamplerConfig.from_record(record, where=where, **now), device)
        pipeline.check_identity(record, where)
        return pipeline

    def replace(self, **settings: Any) -> Pipeline:
        """Returns a pipeline of the same model with other settings, by name as in `from_pretrained`."""
        model = None if is_consumed(self.model.net) else self.model
        return Pipeline.load(self.config.replace(**settings), str(self.device), self.gradient, model, model is not None)

    def sample(
        self,
        count: int | None = None,
        classes: str | int | Sequence[str | int] | None = None,
        seed: int = 0,
        *,
        first: int = 0,
        low_res: Any = None,
        condition: Any = None,
        batch: int | None = None,
        progress: bool | NoProgress = True,
        on_step: Callable[[Step], None] | None = None,
        **settings: Any,
    ) -> Samples:
        """Makes images. Image i depends on the weights, the settings, the seed, i and its conditions, on nothing else.

        Args:
            count: How many images; by default one of each class, or 16 without classes.
            classes: A class by name or number, several of them, or "all" (the default); images cycle through them.
            seed: Seed of the noise, from 0 to 2^64 - 1.
            first: Number of the first image.
            low_res: For a super-resolution model: the images to enlarge, [N, C, h, w] in [-1, 1], uint8
                [N, h, w, C], or the path of a picture or of a data set; image i enlarges number i mod N.
            condition: For a model with conditions besides the class: "age=30,angle=45", "labels=hat|scarf",
                "image:PATH", the path of a table with a row for each image, several of these, or a mapping whose values
                may be lists, {"age": [20, 30], "image": array [N, H, W, C]}; image i has row i mod n. Numbers are in
                the units of the training data. For a super-resolution model, "image:PATH" is the same as `low_res`.
            batch: Images at once; by default what fits into memory.
            progress: Whether to show a progress bar; or what counts the images instead.
            on_step: Called after each step with its `Step`.
            **settings: Settings for this call only, by name as in `from_pretrained`.

        Returns:
            The images as `Samples`, which convert to PIL, NumPy and tensors, and save themselves.

        Raises:
            ConfigError: For a setting or a condition that is not possible, or a condition that is missing.
            ValueError: For a class the model does not have, or low-resolution images it does not need or lacks.
        """
        from undiffuse.pipelines.samples import Samples
        from undiffuse.pipelines.source import SampleSource, small_images

        if settings:
            return self.replace(**settings).sample(
                count, classes, seed, first=first, low_res=low_res, condition=condition, batch=batch,
                progress=progress, on_step=on_step,
            )  # fmt: skip
        names = class_names(self)
        low_res, condition = as_low_res(self.model, low_res, condition)
        low = small_images(low_res, self, classes)
        given = give_conditions(self.model, condition, self.targets)
        chosen = classes_of(self, classes, given) if low is None or low.labels is None else None
        if count is None:
            rows = 0 if given is None else len(given)
            count = len(low) if low is not None else rows if rows > 1 else len(chosen) if chosen else rows or 16
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError("count", f"{count!r} is not possible; expected a whole number of at least 1")
        source = SampleSource(self, seed, chosen, low, given)
        indices = list(range(first, first + count))
        size = min(count, self.batch_size(batch))
        watch = None if on_step is None else lambda step, _: on_step(step)
        images = []
        bar = progress_of(progress, "sampling", count, "images")
        with bar, planned() as kernels:
            for start in range(0, count, size):
                images.append(source.make_float(indices[start : start + size], bar, watch=watch))
        labels = source.labels(indices)
        run = {"command": "sample", "seed": seed, **self.record, "classes": recorded_classes(chosen, names)}
        run |= {} if given is None else given.record()
        about = (labels, names, indices, run, {**self.notes, **source.notes(), **kernels.note()}, self.text())
        return Samples.of(torch.cat(images), self.model.value_range, *about, given)

    def encode(self, images: Any, classes: Any = None) -> Any:
        """Encodes images into latents by DDIM inversion, see `undiffuse.pipelines.latents.encode`."""
        from undiffuse.pipelines import latents

        return latents.encode(self, images, classes=classes)

    def decode(self, encoded: Any, classes: Any = None) -> Any:
        """Decodes latents, see `undiffuse.pipelines.latents.decode`."""
        from undiffuse.pipelines import latents

        return latents.decode(self, encoded, classes=classes)

    def check_identity(self, record: Mapping[str, Any], where: str = "the record", role: str = "model") -> None:
        """Checks that the loaded weights are those of a record.

        Args:
            record: The record of a picture.
            where: What messages call the record.
            role: What messages call the model.

        Raises:
            ValueError: If they are others.
        """
        ours = (("model", self.config.model), ("classifier", next(iter(self.config.guidance.classifier), None)))
        for name, file in ours:
            if current_digest(record.get(name)) != self.record[name]:
                called = role if name == "model" else name
                raise ValueError(
                    f"the {called} {file} is not the one of {where}: its weights are {_short(self.record[name])}, "
                    f"the record's {_short(record.get(name))}. Give the {called} that made the image"
                )
        check_identity(self.record, record, where)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return self.model.image_shape

    def batch_size(self, wanted: int | None = None) -> int:
        """Returns the images to make at once: `wanted`, or what suits the device and its free memory."""
        return memory.images_at_once(self.bytes_per_image, self.device) if wanted is None else wanted

    @property
    def bytes_per_image(self) -> int:
        """About the most memory in bytes that one image takes while it is made, without the weights."""
        element = 4 if self.config.precision == "fp32" else 2
        size, guidance = self.shape[1:], self.config.guidance
        through = guidance.at == "x0" and self.classifier is not None
        gradient = through or self.gradient
        needed = _image_bytes(self.model, size, element, gradient)
        if guidance.cfg not in (None, 1) and not guidance.cfg_two_passes:
            needed *= 2  # with and without class in one batch
        for other in (self.classifier, *self.others):  # after the model has answered, or while its graph is kept
            if other is not None:
                judges = isinstance(other, ClassifierModel)
                one = _image_bytes(other, size, element, judges or gradient)
                needed = needed + one if through or gradient and not judges else max(needed, one)
        return needed + 4 * _TENSORS * math.prod(self.shape)

    def from_noise(
        self,
        noise: NoiseSource,
        labels: Sequence[int] | Tensor | None = None,
        low_res: Tensor | None = None,
        *,
        x_T: Tensor | None = None,
        more: Mapping[str, Tensor] | None = None,
        on_step: Callable[[Step], None] | None = None,
        progress: NoProgress | None = None,
    ) -> Tensor:
        """Makes images from given noise; `sample` is the convenient form.

        Args:
            noise: The noise of B images.
            labels: Their classes, int64 [B]; None without classes.
            low_res: What a super-resolution model enlarges, [B, C, h, w] in [-1, 1].
            x_T: Latents [B, C, H, W] to start from instead of the noise source's own.
            more: Other conditions by the network's keywords, see `GivenConditions.tensors`.
            on_step: Called after each step.
            progress: Advanced by one for each image, in parts.

        Returns:
            Images [B, C, H, W], about in [-1, 1], on the pipeline's device.
        """
        cond, last = self.condition(labels, low_res, more), None
        steps = sample(self.denoiser, self.path, self.solver, noise, self.shape, cond=cond, x_T=x_T, device=self.device)
        with steady_float32(self.device):
            for last in steps:
                if on_step is not None:
                    on_step(last)
                if progress is not None:
                    progress.advance(len(noise) / last.total)
        assert last is not None  # a path has at least one step
        return last.x

    def condition(
        self,
        labels: Sequence[int] | Tensor | None,
        low_res: Tensor | None = None,
        more: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Returns the denoiser's conditions, on the device: "y" int64 [B], "low_res" [B, C, h, w], and `more`.

        Raises:
            ConfigError: The model needs other conditions and was never trained without them ("condition").
        """
        if not more:
            checked(None, self.model, self.targets)
        cond = {name: value.to(self.device) for name, value in (more or {}).items()}
        if labels is not None:
            cond["y"] = torch.as_tensor(labels, dtype=torch.int64).to(self.device)
        if low_res is not None:
            cond["low_res"] = low_res.to(self.device)
        return cond

    def text(self) -> str:
        """Returns the settings in a few words, for captions: "ddim, 50 of 1000 steps, guidance 2"."""
        c = self.config
        on_chain = str(c.grid).partition(":")[0] == "chain"
        way = f"of {self.path.parent_steps} steps" if on_chain else f"steps ({brief(str(c.grid))})"
        parts = [f"{c.solver}, {self.path.steps} {way}"]
        parts += [c.solver_options] if c.solver_options else []
        parts += [f"eta {c.eta:g}"] if c.eta else []
        parts += c.guidance.text()
        parts += [f"clip {c.clip}"] if c.clip not in (None, "static") else []
        parts += [c.precision] if c.precision != "fp32" else []
        parts += [c.runtime] if c.runtime != DEFAULT else []
        return ", ".join(parts)

    def __repr__(self) -> str:
        parameters = " + ".join(f"{net.parameters / 1e6:.3g}M" for net in self.footprints)
        shape = "x".join(map(str, self.shape))
        model = self.config.model or "a model in memory"
        return f"Pipeline({model}, {shape}, {parameters} parameters, {self.text()}, on {self.device})"


def recorded_classes(classes: list[int] | None, names: Sequence[str] | None) -> list[int] | str | None:
    """Returns the classes of a run for its record: "all" if it cycles through every class."""
    return "all" if names is not None and classes == list(range(len(names))) else classes


def _image_bytes(model: DiffusionModel | ClassifierModel, size: tuple[int, int], element: int, gradient: bool) -> int:
    found = bytes_per_image(model.net, size, element=element, gradient=gradient, spec=model.spec)
    return _UNKNOWN if found is None else found


def _short(digest: object) -> str:
    return f"{str(digest)[:12]}..." if digest else "none"
