"""From a request and data to a run: recipe, data set, validation split and all settings, before anything is trained.

Size, channels, recipe, padding and batch are derived from the data where the request leaves them open.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from undiffuse import recipes
from undiffuse.conditions import ModelConditions
from undiffuse.data import NAMED_SETS, DataConfig, ImageDataset, Source, open_data, split
from undiffuse.data.headers import known_headers
from undiffuse.data.images import size_pair
from undiffuse.data.memory import renumbered, unlabelled
from undiffuse.data.probe import DataProbe
from undiffuse.data.ranges import FoundRange, declared_range, find_value_range
from undiffuse.data.screening import OnTiny, find_flaws
from undiffuse.data.sources import Excluded
from undiffuse.data.torch_dataset import StreamDataset
from undiffuse.models import DiffusionModel, load_diffusion
from undiffuse.nets import DDPMConfig, NetworkSpec
from undiffuse.recipes import Recipe, overrides
from undiffuse.train_config import TrainConfig
from undiffuse.training import finetune, plan_conditions
from undiffuse.training.networks import for_network, spec_of
from undiffuse.training.randomness import seeded
from undiffuse.training.regression import classifier_task
from undiffuse.training.request import RunFolderError, TrainRequest, is_run_folder
from undiffuse.training.run_data import padded_before
from undiffuse.training.tasks import DiffusionTask, LossFn, Task
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import count_of, join_names

__all__ = ["TrainPlan", "plan"]

_MEASURED = 20_000  # images whose size is looked up to find those that will be enlarged
_SNAPSHOTS = 40  # least number of snapshots of averages in a run that keeps them and was made short
_NAMED = 10  # names printed of many
Data = ImageDataset | StreamDataset


NO_LABELS = (
    'put each class in a sub-folder of its name, or name the source of the labels: "prefix" (cat_0012.png), or a table '
    "FILE.csv with a line path,class for each image"
)


@dataclass(frozen=True)
class TrainPlan:
    """A run, ready to start.

    Attributes:
        request: The request.
        recipe: The recipe with all settings resolved.
        why: Where the recipe came from, for people.
        dataset: The images to train on.
        validation: Held-out images, or None.
        out: The run folder.
        partner: For a classifier, the diffusion model that it will guide.
        init: The model whose weights the run starts from.
        net: A network of one's own that is trained instead of the recipe's.
        spec: What the images and classes of that network are.
        found_range: The range of values that was found, where it was left to be found.
        conditions: What the model is conditioned on besides the class.
    """

    request: TrainRequest
    recipe: Recipe
    why: str
    dataset: Data
    validation: ImageDataset | None
    out: Path
    partner: DiffusionModel | None = None
    init: finetune.PretrainedInit | None = None
    net: Any = None
    spec: NetworkSpec | None = None
    found_range: FoundRange | None = None
    conditions: ModelConditions = ModelConditions()

    @property
    def config(self) -> TrainConfig:
        """The settings of the training."""
        return self.recipe.train

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes, None without classes or for a network that takes none."""
        takes_none = self.spec is not None and self.spec.num_classes is None
        if takes_none or (self.recipe.kind == "classifier" and self.conditions):
            return None
        return self.dataset.label_names

    def build_task(self, loss: LossFn | None = None) -> Task:
        """Builds the network with fresh weights, which are a function of the seed, and what it is trained for.

        Args:
            loss: Replaces the loss of the recipe, see `undiffuse.training.tasks.LossFn`.
        """
        recipe, net = self.recipe, self.net
        if net is None:
            with seeded(recipe.train.seed):  # torch's own initialisation draws from the global generator
                net = recipe.net.build()
        if recipe.kind == "classifier":
            return classifier_task(net, recipe, self.request, self.labels, self.conditions)
        low = None
        if recipe.low_size is not None:
            height, width = self.dataset.shape[:2]
            low = (recipe.low_size * height // min(height, width), recipe.low_size * width // min(height, width))
        if self.request.distillation:
            from undiffuse.training.distillation import task_of

            return task_of(self.request.distillation, net, recipe, self.labels, low)
        assert recipe.objective is not None  # Recipe checks that a diffusion model has one
        return DiffusionTask(
            net,
            recipe.process,
            recipe.objective,
            labels=self.labels,
            label_dropout=recipe.label_dropout,
            low_size=low,
            loss=loss,
            image_shape=None if self.spec is None else self.spec.image_shape,
            num_classes=None if self.spec is None else self.spec.num_classes,
            conditions=self.conditions,
        )

    @cached_property
    def remarks(self) -> list[str]:
        """What a user should know of single images: which are left out and why, and which are enlarged."""
        if isinstance(self.dataset, StreamDataset):
            return list(self.dataset.remarks)
        source, data = self.dataset.source, self.dataset.config
        out = [*source.remarks, *plan_conditions.unused(source, self.spec, self.conditions)]
        if self.found_range is not None:
            out.append(self.found_range.text())
        for what, items in (("", source.excluded), ("of the held-out data ", self._others_excluded())):
            if items:
                named = join_names((f"{item.name} ({item.reason})" for item in items), _NAMED)
                out.append(f"{what}left out {count_of(len(items), 'image')}: {named}")
        if data.fit == "crop" and data.on_tiny == "upscale" and data.check != "none":
            every = known_headers(source) is not None
            count = len(source) if every else min(len(source), _MEASURED)
            sample = source.subset(np.unique(np.linspace(0, len(source) - 1, count).astype(np.int64)))
            tiny = find_flaws(sample, check="headers", min_size=data.size).tiny
            if tiny:
                height, width = size_pair(data.size)
                of = f" of {len(sample):,} checked" if len(sample) < len(source) else ""
                verb = "is" if len(tiny) == 1 else "are"
                named = join_names((f"{sample.name(i)} ({h}x{w})" for i, (w, h) in tiny.items()), _NAMED)
                out.append(
                    f"{count_of(len(tiny), 'image')}{of} {verb} smaller than {height}x{width} (height x width) and "
                    f'enlarged: {named}. on_tiny="skip" leaves them out, on_tiny="refuse" stops here'
                )
        return out + DataProbe(source, data.value_range, data).summary.pixel_remarks()

    def _others_excluded(self) -> list[Excluded]:
        """What is left out of validation data of its own; a share of the same data repeats what is known."""
        if self.validation is None or isinstance(self.dataset, StreamDataset):
            return []
        known = set(self.dataset.source.excluded)
        return [item for item in self.validation.source.excluded if item not in known]


def plan(request: TrainRequest, data: Source | StreamDataset | None = None, net: Any = None) -> TrainPlan:
    """Looks at the data, chooses or looks up the recipe, and applies all settings.

    Args:
        request: Settings as the user gives them.
        data: Images in memory or a torch data set; None opens `request.data`.
        net: A network of one's own, see `undiffuse.nets.protocol.Network`; None builds that of the recipe.

    Raises:
        ConfigError: Settings that do not fit each other or the data.
        ValueError: Data that cannot be used.
    """
    if data is None and is_run_folder(request.data):
        raise RunFolderError(request.data)
    partner = load_diffusion(request.partner) if request.kind == "classifier" and request.partner else None
    how, specs = plan_conditions.wanted(request)
    if isinstance(data, Source) and how == "none":
        data = unlabelled(data)
    probe = _probe(request, data, how)
    probe.source, specs = plan_conditions.attached(request, probe.source, specs, isinstance(data, StreamDataset))
    if request.kind == "classifier" and isinstance(data, StreamDataset):
        raise ConfigError("data", "a classifier needs a data set with a length; an iterable data set has none")
    init = None
    if request.init_from is not None:
        folder = Path(request.out) if request.out else finetune.default_folder(request.data, request.init_from)
        init = finetune.find_init(request.init_from, request.kind, folder)
    recipe, why = _choose(request, partner, init, net)
    size, channels = _shape(request, recipe, probe, partner, init)
    spec = None
    if net is not None:
        spec, size, channels = spec_of(net, size, channels, probe.classes, plan_conditions.widths_of(probe.source))
        plan_conditions.check_classes(request, spec, probe.classes)
    classes = probe.classes if partner is None or partner.labels is None else len(partner.labels)
    chosen = recipe is None
    regression = plan_conditions.regresses(request, net is not None)
    if regression:
        classes = None
    elif request.kind == "classifier" and classes is None:
        raise ConfigError(
            "labels",
            f"{probe.source.where} has no labels, and a classifier needs pictures of at least two classes: {NO_LABELS}",
        )
    if recipe is None:
        # Any square of about this size finds the recipe; the size itself is checked with the final network.
        near = -(-max(size_pair(size)) // 16) * 16
        recipe = recipes.for_data(near, channels, 2 if regression else classes, kind=request.kind)
        why = "chosen by the data"
    if init is not None:
        init.check(request.overrides)
        recipe, why = init.into(recipe, size_pair(size)), f"{why}; its network and process are the model's"
    if spec is not None:
        recipe = for_network(recipe, spec)
    recipe = replace(
        recipe if net is not None or regression else recipe.with_classes(classes),
        data=replace(recipe.data, size=size, channels=channels),
    )
    if partner is not None:
        recipe = replace(recipe, process=partner.process)
    recipe, config = _resolved(request, recipe, _data_config(request, (how, specs), recipe, probe, partner), net)
    train, validation = _open(request, data, config, partner)
    conditions = plan_conditions.declared(train, init, str(request.init_from))
    recipe = plan_conditions.into(recipe, conditions, request, net is not None)
    recipe = _paced(request, recipe, _batch(request, recipe.train, train, chosen))
    out = Path(request.out) if request.out else _default_folder(request, recipe)
    found = probe.found_range
    return TrainPlan(request, recipe, why, train, validation, out, partner, init, net, spec, found, conditions)


def _probe(request: TrainRequest, data: Source | StreamDataset | None, labels: str) -> DataProbe:
    """A look at the images before the run's own settings are known."""
    if isinstance(data, StreamDataset):
        probe = DataProbe(data.sample)
        probe.classes = data.num_classes
        return probe
    declared = request.value_range if isinstance(request.value_range, tuple) else None
    if data is None:
        wanted: Any = declared or ("found" if request.value_range == "auto" else None)
        data = open_data(request.data, labels=labels, check="none", value_range=wanted, **request.reading)
    if request.value_range == "auto":
        return DataProbe(data, find_value_range(data))
    return DataProbe(data, declared or declared_range(data))


def _choose(
    request: TrainRequest, partner: DiffusionModel | None, init: finetune.PretrainedInit | None, net: Any
) -> tuple[Recipe | None, str]:
    """The recipe that was named, or the data's own; None: a general one, once the size is known."""
    if request.recipe is not None:
        recipe = recipes.get(request.recipe)
        if recipe.kind != request.kind:
            raise ConfigError("recipe", f"{recipe.name} is for a {recipe.kind}: use kind={recipe.kind!r}")
        return recipe, "as given"
    known = request.data.partition(":")[0]
    free = request.size is None and request.channels is None and partner is None and init is None and net is None
    if known in NAMED_SETS and free:
        for name in recipes.names():
            recipe = recipes.get(name)
            if recipe.data_path == known and recipe.kind == request.kind:
                return recipe, f"made for {known}"
    return None, ""


def _shape(
    request: TrainRequest,
    recipe: Recipe | None,
    probe: DataProbe,
    partner: DiffusionModel | None,
    init: finetune.PretrainedInit | None,
) -> tuple[int | tuple[int, int], int]:
    """(size, channels): as given, or the partner's, the initial model's, the recipe's or the data's."""
    if partner is not None:
        channels, height, width = partner.image_shape
        return height if height == width else (height, width), channels
    if init is not None:  # coloured pictures stay so; grey ones are shown to a model of colours as such
        return request.size or init.size, request.channels or max(init.net.in_channels, probe.channels)
    made_for = recipe is not None and recipe.data_path == request.data.partition(":")[0]
    own = recipe is not None and (made_for or bool(recipe.published))  # a general one takes pictures as they are
    size = request.size or (recipe.data.size if recipe is not None else probe.whole_size or probe.size)
    channels = request.channels or (recipe.data.channels if recipe is not None and own else probe.channels)
    return size, channels


def _data_config(
    request: TrainRequest, labels: tuple[str, tuple[str, ...]], recipe: Recipe, probe: DataProbe,
    partner: DiffusionModel | None,
) -> DataConfig:  # fmt: skip
    prepared: dict[str, Any] = dataclasses.asdict(recipe.data)
    trained = ((partner.manifest.get("data") or {}).get("config") or {}) if partner is not None else {}
    fit = request.fit or trained.get("fit") or ("pad" if probe.fits_padded(recipe.data.size) else recipe.data.fit)
    flip = recipe.data.flip if request.flip is None else request.flip
    if request.patches is not None:
        fit = "crop"
    if fit == "pad":
        before = trained if partner is not None else padded_before(request.out or _default_folder(request, recipe))
        kept = before.get("pad_value")
        prepared["pad_value"] = probe.pad_value if kept is None else kept
    return DataConfig(
        path=request.data,
        labels=labels[0],
        conditions=labels[1],
        value_range=probe.value_range,
        patches=cast(Any, request.patches),
        **request.reading,
        on_tiny=cast(OnTiny, request.on_tiny),
        workers=request.workers,
        seed=request.seed,
        **{**prepared, "fit": fit, "flip": flip},
    )


def _resolved(request: TrainRequest, recipe: Recipe, data: DataConfig, net: Any) -> tuple[Recipe, DataConfig]:
    """The recipe and the data's preparation with all overrides, and outputs that fit the process."""
    sections: dict[str, Any] = {name: getattr(recipe, name) for name in ("net", "process", "objective", "train")}
    also: dict[str, dict[str, Any]] = {}
    if net is not None:
        sections["net"] = None
        if request.width is not None:
            raise ConfigError("width", "the network is given, so its width cannot be chosen")
    else:
        size, channels = recipe.data.size, recipe.data.channels
        also["net"] = {"image_size": size, "in_channels": channels}
        if isinstance(recipe.net, DDPMConfig):  # which has as many channels out
            also["net"]["out_channels"] = channels
        if request.width is not None:
            also["net"] |= _width(request, recipe)
    given = {f"train.{name}": getattr(request, name) for name in ("images", "steps", "batch", "workers")}
    given |= {f"train.evaluate_{name}": request.evaluation.get(name) for name in ("every", "images")}
    given = {path: value for path, value in given.items() if value is not None}
    sections = overrides.apply({**sections, "data": data}, {**given, **request.overrides}, also)
    data = sections.pop("data")
    if net is not None:
        sections["net"] = recipe.net
    recipe = replace(recipe, **sections)
    if recipe.kind == "diffusion" and net is None:
        out = recipe.process.out_channels(recipe.net.in_channels)  # follows the variance, which may be overridden
        recipe = replace(recipe, net=replace(recipe.net, out_channels=out))
    return recipe, data


def _width(request: TrainRequest, recipe: Recipe) -> dict[str, Any]:
    """Fields of a network of another width; attention heads shrink with it where they would not divide it."""
    if request.init_from is not None:
        raise ConfigError("width", f"the network is that of {request.init_from}, which the run starts from")
    if request.width is None or request.width < 1:
        raise ConfigError("width", f"expected a number of channels of at least 1, got {request.width}")
    fields: dict[str, Any] = {"model_channels": request.width}
    heads = getattr(recipe.net, "num_head_channels", -1)
    if heads > 0:
        fields["num_head_channels"] = math.gcd(heads, request.width)
    return fields


def _open(
    request: TrainRequest, given: Source | StreamDataset | None, config: DataConfig, partner: DiffusionModel | None
) -> tuple[Data, ImageDataset | None]:
    """The images to train on and those to validate with."""
    held_out = request.validation
    share: float | None = None
    if held_out is not None and str(held_out).lower() != "none":
        try:
            share = float(held_out)
        except ValueError:
            share = None
    else:
        held_out = None
    names = partner.labels if partner is not None else None
    if isinstance(given, StreamDataset):
        if share is not None:
            raise ConfigError("validation", "a share cannot be held out of an iterable data set; give other data")
        dataset: Data = given.prepared(config)
    elif given is not None:
        if names is not None and given.label_names is not None:
            given = renumbered(given, names)
        dataset = ImageDataset(config.checked(given), config)
    else:
        dataset = config.build(names)
    if held_out is None:
        return dataset, None
    plain = replace(config, flip=False, random_crop=False)
    if share is None:
        return dataset, replace(plain, path=str(held_out)).build(dataset.label_names)
    assert isinstance(dataset, ImageDataset)
    halves = split(dataset.source, share, seed=request.seed)
    return ImageDataset(halves.train, config), ImageDataset(halves.validation, plain)


def _batch(request: TrainRequest, train: TrainConfig, dataset: Data, chosen: bool) -> TrainConfig:
    """A smaller batch for few images, if neither a batch nor a recipe is given."""
    asked = request.batch is not None or "train.batch" in request.overrides
    if isinstance(dataset, StreamDataset):
        return replace(train, batch=dataset.batch) if dataset.batch and not asked else train
    if chosen and not asked and len(dataset) < train.batch:
        return replace(train, batch=2 ** (len(dataset).bit_length() - 1))
    return train


def _paced(request: TrainRequest, recipe: Recipe, train: TrainConfig) -> Recipe:
    """Device and seed as given; frequent records; a warm-up and snapshots of averages that fit the length."""
    device = None if request.device == "auto" else request.device
    every, warmup, kept = train.log_every, train.warmup_images, train.posthoc_every
    short = {"train.images", "train.steps"} & set(request.overrides) or request.images or request.steps
    if every is not None and "train.log_every" not in request.overrides:
        every = min(every, 20 * train.batch)
    if "train.warmup_images" not in request.overrides and short:
        warmup = min(warmup, train.total_images // 10)  # a short run would otherwise end before it is warm
    if kept is not None and "train.posthoc_every" not in request.overrides and short:
        kept = min(kept, max(train.batch, train.total_images // _SNAPSHOTS))
    train = replace(train, seed=request.seed, device=device, log_every=every, warmup_images=warmup, posthoc_every=kept)
    return replace(recipe, train=train)


def _default_folder(request: TrainRequest, recipe: Recipe) -> Path:
    """runs/NAME, by the model that a classifier is for, the recipe for data known by name, otherwise by the data."""
    if recipe.kind == "classifier" and request.partner is not None and is_run_folder(request.partner):
        return Path("runs") / f"{Path(request.partner).expanduser().resolve().name}-classifier"
    if request.init_from is not None:
        return finetune.default_folder(request.data, request.init_from)
    known = request.data.partition(":")[0]
    if request.recipe is None and recipe.data_path == known:
        return Path("runs") / recipe.name
    path = Path(request.data).expanduser().resolve()
    stem = f"{known}-{recipe.name}" if known in NAMED_SETS else path.name if path.is_dir() else path.stem
    suffix = "-classifier" if recipe.kind == "classifier" and not stem.endswith("-classifier") else ""
    return Path("runs") / (stem.replace(os.sep, "-") + suffix)
