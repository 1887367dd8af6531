"""What is trained: a diffusion model, or a classifier of noisy images. The engine knows a task only by the protocol
`Task`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.conditions import ModelConditions
from undiffuse.denoiser import ChainDenoiser, Condition, ProcessConfig, TimeAdapter
from undiffuse.nets import NetworkSpec, conditions_of, config_to_dict, describe
from undiffuse.nets.registry import check_rebuilds
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import Level, diffuse
from undiffuse.objectives import Objective, ObjectiveConfig
from undiffuse.sampling_defaults import DefaultSampling, default_sampling
from undiffuse.training.augmentation import Augmentation
from undiffuse.training.conditions import ConditionRows, check_network, drop_conditions
from undiffuse.training.custom import qualified_name
from undiffuse.util.errors import ConfigError

ForwardFn = Callable[..., Tensor]
LossFn = Callable[[ChainDenoiser, Tensor, Tensor, Tensor, Condition], "Tensor | dict[str, Tensor]"]
"""A loss of one's own: loss(denoiser, x0, noise, t, cond) -> loss of each image [B], or {"loss": [B], other terms}.

    denoiser  predicts from a noisy image and its level, unclipped; `denoiser.preconditioning.level(t)` gives the levels
    x0        clean images [B, C, H, W] in [-1, 1]
    noise     standard normal noise of the same shape
    t         positions [B] among the levels of the process: step numbers, or float64 numbers between them
    cond      conditions by name: "y" [B] class indices, "low_res" small images, "tags", "numbers" and "cond_image" as
              `undiffuse.nets.protocol.Network` takes them

For example the Huber loss of the denoised image:

    def huber(denoiser, x0, noise, t, cond):
        level = denoiser.preconditioning.level(t)
        prediction = denoiser(diffuse(x0, level, noise), level, cond)
        return F.huber_loss(prediction.x0, x0, reduction="none").flatten(1).mean(1)
"""
MAX_POSITION = 2**32  # image numbers a noise source tells apart


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One process's share of a batch, ready for a network.

    x0 [b, C, H, W] in [-1, 1]; labels [b] int64 or None; t [b] on the CPU, int64 steps of the chain or float64
    positions among continuous levels; weights [b], importance weights of the timesteps; positions [b] int64 on the CPU,
    each image's number in the run's stream, which together with `seed` determines all noise of this image; cond, other
    conditions than the class by the network's keywords, [b, ...] each (`training.conditions`).
    """

    x0: Tensor
    labels: Tensor | None
    t: Tensor
    weights: Tensor
    positions: Tensor
    seed: int
    clean: Tensor | None = None
    cond: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)

    def split(self, size: int) -> Iterator[Inputs]:
        """Micro-batches of at most `size` images, in order."""
        for i in range(0, len(self), size):
            part = slice(i, i + size)
            labels = None if self.labels is None else self.labels[part]
            clean = None if self.clean is None else self.clean[part]
            yield replace(
                self,
                x0=self.x0[part],
                labels=labels,
                t=self.t[part],
                weights=self.weights[part],
                positions=self.positions[part],
                clean=clean,
                cond={name: value[part] for name, value in self.cond.items()},
            )

    def normal(self, purpose: str = "train") -> Tensor:
        """Standard normal noise of x0's shape, a function of (seed, position) alone."""
        source = NoiseSource(self.seed, self.positions)
        return source.normal(self.x0.shape[1:], 0, purpose, device=self.x0.device, dtype=self.x0.dtype)

    def uniform(self, purpose: str) -> Tensor:
        """Numbers in [0, 1) [b] on the CPU, a function of (seed, position) alone."""
        return NoiseSource(self.seed, self.positions).uniform(0, purpose)

    def chosen(self, probability: float, purpose: str) -> Tensor:
        """[b] bool on the CPU: True with `probability`, a function of (seed, position) alone."""
        return self.uniform(purpose) < probability


class Task(Protocol):
    """What the engine needs to know of a thing to train."""

    kind: str
    process: ProcessConfig
    continuous: bool
    labels: tuple[str, ...] | None
    labels_count: int | None
    spec: NetworkSpec
    conditions: ModelConditions

    @property
    def net(self) -> nn.Module:
        """What is trained."""
        ...

    def prepare_batch(self, inputs: Inputs) -> Inputs:
        """The task's last word on a training batch (dropped labels, clean images); validation data is not arranged."""
        ...

    def losses(self, forward: ForwardFn, inputs: Inputs) -> dict[str, Tensor]:
        """Per-image terms [b] at the given timesteps, computed through `forward` (the network in the run's precision).
        "loss" is minimised, the others are reported."""
        ...

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint must say for this thing to be built again: kind, net, process, ..."""
        ...

    def preview(self, forward: ForwardFn, seed: int, count: int, steps: int, device: torch.device) -> Tensor | None:
        """Pictures to look at, [n, C, H, W] in [-1, 1], always of the same noise; None if there is nothing to see."""
        ...

    def preview_labels(self, count: int) -> list[str] | None:
        """Names of the preview's pictures, None without classes."""
        ...


class DiffusionTask:
    """Trains a network by a diffusion objective.

    Args:
        net: Any network as `undiffuse.nets.protocol.Network` describes it. If its architecture is registered
            (`undiffuse.nets.register_network`), the checkpoints can be loaded by `load_model`.
        process: The diffusion process and what the network predicts.
        objective: The loss.
        labels: Names of the classes, in the order of their indices.
        label_dropout: Share of the images, 0 to 1, trained without their label and other conditions, for
            classifier-free guidance, see `conditions.drop_conditions`. A class needs a network with a null class.
        low_size: For a super-resolution network: (height, width) of the small image, made by area averaging.
        loss: Replaces the loss of the objective, see `LossFn`.
        image_shape: (channels, height, width) of the images, for a network that does not say it.
        num_classes: Number of classes of a conditional network, likewise.
        null_class: Whether the class index `num_classes` means "no class", likewise.
        conditions: What the network is conditioned on besides the class.

    Attributes:
        rows: Conditions of the data that previews are made of, see `show_conditions_of`.

    Raises:
        ValueError: The network, the process and the arguments do not fit together.
    """

    kind = "diffusion"
    conditions = ModelConditions()
    _shown: tuple[Any, int] | None = None

    def __init__(
        self,
        net: nn.Module,
        process: ProcessConfig,
        objective: ObjectiveConfig,
        *,
        labels: Sequence[str] | None = None,
        label_dropout: float = 0.0,
        low_size: tuple[int, int] | None = None,
        loss: LossFn | None = None,
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        null_class: bool | None = None,
        conditions: ModelConditions | None = None,
    ) -> None:
        self.conditions = conditions or ModelConditions()
        spec = describe(
            net, image_shape=image_shape, num_classes=num_classes, null_class=null_class,
            widths=self.conditions.widths,
        )  # fmt: skip
        check_network(conditions_of(net), spec, self.conditions, f"the network {type(net).__name__}")
        needed = process.out_channels(spec.in_channels)
        if spec.out_channels not in (None, needed):
            raise ValueError(
                f"the network has {spec.out_channels} output channels; variance={process.variance!r} on "
                f"{spec.in_channels}-channel images needs {needed}"
            )
        if labels is not None and spec.num_classes is not None and len(labels) != spec.num_classes:
            raise ValueError(f"the network has {spec.num_classes} classes, but {len(labels)} names were given")
        if spec.num_classes is not None and "y" not in conditions_of(net):
            raise ValueError(
                f"the network has {spec.num_classes} classes, but does not accept the condition 'y': name a parameter "
                "of its forward y, or give it the attribute conditions = {'y'}"
            )
        if label_dropout and not spec.null_class and not (self.conditions and spec.num_classes is None):
            raise ValueError("label_dropout needs a network with null_class=True, an index that means 'no class'")
        if spec.super_resolution != (low_size is not None):
            raise ValueError("give low_size for a super-resolution network, and only for one")
        check_rebuilds(net)
        self.net, self.process, self.objective, self.spec = net, process, objective, spec
        self.continuous = process.continuous
        self.labels = tuple(labels) if labels is not None else None
        self.labels_count = spec.num_classes
        self.label_dropout, self.low_size = label_dropout, low_size
        self.loss = loss
        self._objective = self._make_objective(net)

    def _make_objective(self, network: Any) -> Objective | _OwnLoss:
        denoiser = ChainDenoiser(network, self.process)
        return Objective(denoiser, self.objective) if self.loss is None else _OwnLoss(denoiser, self.loss)

    def prepare_batch(self, inputs: Inputs) -> Inputs:
        if not self.label_dropout:
            return inputs
        noise = NoiseSource(inputs.seed, inputs.positions)
        labels = inputs.labels if self.spec.num_classes is not None else None
        cond, kept = drop_conditions(inputs.cond, labels, self.spec.null_index, self.label_dropout, noise)
        return replace(inputs, cond=cond, labels=inputs.labels if labels is None else kept)

    def condition(self, inputs: Inputs) -> dict[str, Tensor]:
        """Returns the conditions of the network by name: "y" [B], "low_res", "tags", "numbers" and "cond_image"."""
        cond = dict(inputs.cond)
        lacking = [name for name in self.conditions.keywords if name not in cond]
        if lacking:
            raise ValueError(f"the network is conditioned on {', '.join(lacking)}, but the data have none")
        if self.spec.num_classes is not None:
            if inputs.labels is None:
                raise ValueError("the network is conditional on classes, but the data has no labels")
            cond["y"] = inputs.labels
        if self.low_size is not None:
            cond["low_res"] = F.interpolate(inputs.x0, size=self.low_size, mode="area")
        return cond

    def losses(self, forward: ForwardFn, inputs: Inputs) -> dict[str, Tensor]:
        if self._objective.denoiser.network is not forward:  # the chain's tables are made once, not at every step
            self._objective = self._make_objective(forward)
        return self._objective(inputs.x0, inputs.t, inputs.normal(), self.condition(inputs))

    def manifest(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "net": config_to_dict(self.net, self.spec),
            "process": asdict(self.process),
            "objective": {
                **(asdict(self.objective) if self.loss is None else {"loss": qualified_name(self.loss)}),
                "label_dropout": self.label_dropout,
                "low_size": list(self.low_size) if self.low_size else None,
            },
            "labels": list(self.labels) if self.labels is not None else None,
            **({"conditions": self.conditions.to_dict()} if self.conditions else {}),
        }

    def preview(self, forward: ForwardFn, seed: int, count: int, steps: int, device: torch.device) -> Tensor | None:
        if self.low_size is not None:
            return None  # an upsampler needs images to enlarge; its validation loss is reported instead
        return self.make(forward, seed, range(count), steps, device)

    def make(self, forward: ForwardFn, seed: int, numbers: Sequence[int], steps: int, device: torch.device) -> Tensor:
        """Samples images by number, with the solver that suits few steps (`default_sampling`).

        Args:
            forward: The network in the precision of the run.
            seed: Seed of the noise.
            numbers: Numbers of the images. Number i has noise of its own and is of class i mod classes, or has the
                conditions of row i mod n of `rows`.
            steps: Steps of the solver.
            device: Where to sample.

        Returns:
            Images [n, C, H, W] in [-1, 1].
        """
        from undiffuse import solvers
        from undiffuse.grids import grid
        from undiffuse.sampling import generate

        spec = self.spec
        how = self.sampling(steps)
        denoiser = ChainDenoiser(forward, self.process)
        path = grid(denoiser.chain, how.steps, how.grid)
        cond = None
        if self.rows:
            cond = self.rows.take(numbers, device)
        elif spec.num_classes is not None:
            cond = {"y": torch.as_tensor(list(numbers), device=device) % spec.num_classes}
        noise = NoiseSource(seed, list(numbers))
        solver = solvers.build_solver(how.solver)
        return generate(denoiser, path, solver, noise, spec.image_shape, cond=cond, device=device)

    @cached_property
    def rows(self) -> ConditionRows:
        """Conditions of the data that previews are made of, read when the first preview is made."""
        return ConditionRows() if self._shown is None else ConditionRows.of(self.conditions, *self._shown)

    def show_conditions_of(self, dataset: Any, count: int) -> None:
        """Makes previews with the conditions of at most `count` images of a data set."""
        self._shown = (dataset, count) if self.conditions else None

    def sampling(self, steps: int) -> DefaultSampling:
        """Returns the solver, steps and grid of previews and evaluations."""
        return default_sampling(self.process, steps)

    def preview_labels(self, count: int) -> list[str] | None:
        classes = self.spec.num_classes
        if classes is None or self.conditions:  # rows of the data have any classes
            return None
        names = self.labels or [str(i) for i in range(classes)]
        return [names[i % classes] for i in range(count)]


class _OwnLoss:
    """A user's own loss in the place of an `Objective`."""

    def __init__(self, denoiser: ChainDenoiser, loss: LossFn) -> None:
        self.denoiser, self.loss = denoiser, loss
        self._unclipped = denoiser.clipping("none")

    def __call__(self, x0: Tensor, t: Tensor, noise: Tensor, cond: Condition | None = None) -> dict[str, Tensor]:
        found = self.loss(self._unclipped, x0, noise, t, cond or {})
        terms = found if isinstance(found, dict) else {"loss": found}
        for name, value in terms.items():
            if not isinstance(value, Tensor) or value.shape != (len(x0),):
                got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ConfigError(
                    "loss",
                    f"{qualified_name(self.loss)} returned {got} as {name!r}; expected one number per image, [B] = "
                    f"[{len(x0)}]: average over channels and pixels, for example by .flatten(1).mean(1)",
                )
        if "loss" not in terms:
            raise ConfigError("loss", f"{qualified_name(self.loss)} returned {', '.join(terms)}; expected a 'loss'")
        return terms


class ClassifierTask:
    """Trains a classifier of noisy images by cross-entropy (ADM section 4; Appendix H).

    It reports "loss", "top1", and "top5" if there are more than five classes.

    Args:
        net: A network that returns class scores [B, K].
        process: The diffusion process that makes the noisy images.
        labels: Names of the classes, in the order of their indices.
        noise: False trains on clean images only (t = 0).
        clean_fraction: Share of the images, 0 to 1, that stay clean (t = 0) if `noise` is True.
        shift: Training images are shifted at random by up to this many pixels along each axis.
        erase: Probability, 0 to 1, of erasing a random rectangle of a training image.
        smoothing: Label smoothing: this share of the probability, 0 to below 1, is spread over all classes.
        image_shape: (channels, height, width) of the images, for a network that does not say it.
        num_classes: Number of classes, likewise.

    Raises:
        ValueError: The network and the arguments do not fit together.
    """

    kind = "classifier"
    continuous = False  # its time input is a step of the process's chain, never a position between two

    def __init__(
        self,
        net: nn.Module,
        process: ProcessConfig,
        *,
        labels: Sequence[str] | None = None,
        noise: bool = True,
        clean_fraction: float = 0.0,
        shift: int = 0,
        erase: float = 0.0,
        smoothing: float = 0.0,
        image_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        spec = describe(net, image_shape=image_shape, num_classes=num_classes)
        self._check_outputs(spec)
        if labels is not None and len(labels) != spec.num_classes:
            raise ValueError(
                f"the classifier has {spec.num_classes} outputs, but {len(labels)} names of classes were given"
            )
        if not 0.0 <= clean_fraction <= 1.0:
            raise ValueError(f"clean_fraction must be from 0 to 1, got {clean_fraction}")
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(f"smoothing must be a share from 0 to below 1, got {smoothing}")
        check_rebuilds(net)
        self.net, self.process, self.spec = net, process, spec
        self.labels = tuple(labels) if labels is not None else None
        self.labels_count: int | None = spec.num_classes
        self.conditions = ModelConditions()
        self.noise, self.clean_fraction = noise, clean_fraction
        self.always_clean = not noise or clean_fraction == 1.0
        self.augmentation, self.smoothing = Augmentation(shift=shift, erase=erase), smoothing
        self.chain = process.chain()
        self._time = TimeAdapter(self.chain, process.rescale_timesteps)

    def _check_outputs(self, spec: NetworkSpec) -> None:
        if spec.num_classes is None:
            raise ValueError("a classifier needs num_classes, in its config or as an argument")

    def prepare_batch(self, inputs: Inputs) -> Inputs:
        inputs = replace(inputs, x0=self.augmentation(inputs.x0, inputs.uniform))
        if self.noise and not self.clean_fraction:
            return inputs
        clean = inputs.chosen(self.clean_fraction, "clean") if self.noise else torch.ones(len(inputs), dtype=torch.bool)
        # A clean image gets the time of the least noisy step, as with the original's noised=False.
        return replace(inputs, t=torch.where(clean, 0, inputs.t), clean=clean)

    def losses(self, forward: ForwardFn, inputs: Inputs) -> dict[str, Tensor]:
        if inputs.labels is None:
            raise ValueError("a classifier needs labels, and the data has none")
        logits = self._outputs(forward, inputs)
        loss = F.cross_entropy(logits, inputs.labels, reduction="none", label_smoothing=self.smoothing)
        ranked = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices == inputs.labels[:, None]
        terms = {"loss": loss, "top1": ranked[:, 0].float()}
        if logits.shape[1] > 5:
            terms["top5"] = ranked.any(dim=1).float()
        return terms

    def _outputs(self, forward: ForwardFn, inputs: Inputs) -> Tensor:
        """The network's outputs [b, K] at noisy images, float32."""
        x0, t, clean = inputs.x0, inputs.t, inputs.clean
        if clean is None and self.always_clean:  # held-out images, which come as they are
            t, clean = torch.zeros_like(t), torch.ones(len(t), dtype=torch.bool)
        level = self.chain.level(t)
        shown = level
        if clean is not None:
            shown = Level(torch.where(clean, 1.0, level.alpha), torch.where(clean, 0.0, level.sigma))
        return forward(diffuse(x0, shown, inputs.normal()), self._time(level, x0)).float()

    def manifest(self) -> dict[str, Any]:
        objective = {"loss": "cross-entropy", "noise": self.noise, "clean_fraction": self.clean_fraction}
        changes = {**asdict(self.augmentation), "smoothing": self.smoothing}
        return {
            "kind": self.kind,
            "net": config_to_dict(self.net, self.spec),
            "process": asdict(self.process),
            "objective": {**objective, **{name: value for name, value in changes.items() if value}},
            "labels": list(self.labels) if self.labels is not None else None,
        }

    def preview(self, forward: ForwardFn, seed: int, count: int, steps: int, device: torch.device) -> Tensor | None:
        return None

    def preview_labels(self, count: int) -> list[str] | None:
        return None
