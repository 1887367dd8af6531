"""What `undiffuse train` is going to do: data, recipe and settings put together, before anything expensive starts."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse import recipes
from undiffuse.cli import containers, settings, starting
from undiffuse.cli.words import in_options
from undiffuse.data import NAMED_SETS, DataConfig, DataSummary, ImageDataset, Source, open_data, scan, split
from undiffuse.data.images import size_pair
from undiffuse.data.labels import listed
from undiffuse.data.screening import OnBroken, find_flaws
from undiffuse.data.sources import Excluded
from undiffuse.models import DiffusionModel, load_diffusion
from undiffuse.nets import DDPMConfig
from undiffuse.recipes import Recipe

MEASURED = 20_000  # images whose size is looked up to tell which will be enlarged
LOOKED_AT = 64  # images from which size and channels are guessed
LARGEST_HALVED_BY_8 = 96  # longest side of the recipes for small images, see `recipes.for_data`
LARGEST = 64  # size chosen by itself
SNAPSHOTS = 40  # of averages at least in a run that keeps some and was made short
GREY_MODES = {"1", "L", "LA", "I;16", "I", "I;16B"}


@dataclass(frozen=True)
class Plan:
    """A run, ready to start. `why` says where the recipe came from."""

    recipe: Recipe
    why: str
    dataset: ImageDataset
    validation: ImageDataset | None
    out: Path
    partner: DiffusionModel | None = None
    start: starting.Start | None = None

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes the network is told (or tells), None without."""
        return self.dataset.label_names

    @cached_property
    def remarks(self) -> list[str]:
        """What a user should know of single images: which are left out and why, and which are enlarged."""
        source, data = self.dataset.source, self.dataset.config
        out = [in_options(text) for text in source.remarks]
        if source.vectors is not None:
            out.append("the vectors are not used: this kind of model takes classes")
        for what, items in (("", source.excluded), ("of the held-out data ", self._others_excluded())):
            if items:
                named = listed(f"{item.name} ({item.reason})" for item in items)
                out.append(f"{what}left out {len(items):,} {_images(len(items))}: {named}")
        if data.fit == "crop" and data.on_tiny == "upscale" and data.check != "none":
            chosen = np.unique(np.linspace(0, len(source) - 1, min(len(source), MEASURED)).astype(np.int64))
            looked = source.subset(chosen)
            tiny = find_flaws(looked, check="headers", min_size=data.size).tiny
            if tiny:
                height, width = size_pair(data.size)
                of = f" of {len(looked):,} looked at" if len(looked) < len(source) else ""
                verb = "is" if len(tiny) == 1 else "are"
                named = listed(f"{looked.name(i)} ({h}x{w})" for i, (w, h) in tiny.items())
                out.append(
                    f"{len(tiny):,} {_images(len(tiny))}{of} {verb} smaller than {height}x{width} (height x width) and "
                    f"enlarged: {named}. --on-tiny skip leaves them out, --on-tiny refuse stops here"
                )
        return out

    def _others_excluded(self) -> list[Excluded]:
        """What is left out of validation data of its own; a part of the same data tells the same again."""
        if self.validation is None:
            return []
        told = set(self.dataset.source.excluded)
        return [item for item in self.validation.source.excluded if item not in told]


def make_plan(args: argparse.Namespace) -> Plan:
    """Look at the data, choose or look up the recipe, apply all options. ValueError says what does not fit."""
    kind = "classifier" if args.command == "train-classifier" else "diffusion"
    partner = load_diffusion(args.partner) if kind == "classifier" and args.partner else None
    label_names = partner.labels if partner is not None else None
    how = "none" if kind == "diffusion" and args.unconditional else args.labels
    look = Look(args.data, how, args.on_broken, **containers.opening(args, args.data))
    start = starting.find_start(args, kind)
    recipe, why = _choose(args, kind, look, partner, start)
    size, channels = _shape(args, recipe, look, partner, start)
    classes = look.classes if label_names is None else len(label_names)
    chosen = recipe is None
    if kind == "classifier" and classes is None:
        raise ValueError(
            f"{look.source.where} has no labels, and a classifier needs pictures of at least two classes: put each "
            "class in a sub-folder of its name, or say where the labels are: --labels prefix (cat_0012.png), or "
            "--labels FILE.csv (a line an image: path,class)"
        )
    if recipe is None:
        # Any square of about this size finds the recipe; the size itself is checked with the final network.
        recipe = recipes.for_data(-(-max(size_pair(size)) // 16) * 16, channels, classes, kind=kind)
        why = "chosen by the data"
    if start is not None:
        start.check(args.sets)
        recipe, why = start.into(recipe, size_pair(size)), f"{why}; its network and process are the model's"
    recipe = replace(recipe.with_classes(classes), data=replace(recipe.data, size=size, channels=channels))
    if getattr(args, "label_dropout", None) is not None:
        recipe = recipe.with_label_dropout(args.label_dropout)
    if partner is not None:
        recipe = replace(recipe, process=partner.process)

    data = _data_config(args, how, recipe, look, partner)
    parts = {name: getattr(recipe, name) for name in ("net", "process", "objective", "train")}
    shape = {"net": {"image_size": size, "in_channels": channels}}
    if isinstance(recipe.net, DDPMConfig):  # which has as many channels out
        shape["net"]["out_channels"] = channels
    sections = settings.apply({**parts, "data": data}, [*_options(args), *args.sets], shape)
    data = sections.pop("data")
    source = data.open(label_names)
    train, validation = _hold_out(args, source, data)
    if chosen and args.batch is None and len(train) < sections["train"].batch:
        # A small folder is no mistake where nobody asked for a batch size.
        sections["train"] = replace(sections["train"], batch=2 ** (len(train).bit_length() - 1))
    sections["train"] = _paced(args, sections["train"])
    recipe = _consistent(replace(recipe, **sections))
    named = Path(args.out) if args.out else Path("runs") / _name(args, recipe)
    out = named if start is None else starting.folder(args)
    return Plan(recipe, why, ImageDataset(train, data), validation, out, partner, start)


class Look:
    """A first look at the data: labels, and where needed sizes and channels of a few images."""

    def __init__(self, path: str, labels: str, on_broken: OnBroken, **opening: Any) -> None:
        self.path = path
        self.source: Source = open_data(path, labels=labels, on_broken=on_broken, check="none", **opening)
        names = self.source.label_names
        self.classes = None if names is None else len(names)
        self._summary: DataSummary | None = None

    @property
    def summary(self) -> DataSummary:
        """What a few images are."""
        if self._summary is None:
            self._summary = scan(self.source, DataConfig(path=self.path, size=8), limit=LOOKED_AT)
        return self._summary

    @property
    def short_side(self) -> int:
        """Median of the shorter sides."""
        sides = [min(size) for size, count in self.summary.sizes.items() for _ in range(count)]
        return int(statistics.median(sides)) if sides else LARGEST

    @property
    def size(self) -> int:
        """The size to train at where nobody says."""
        if self.short_side >= LARGEST:
            return LARGEST
        return 32 if self.short_side >= 24 else max(8, round(self.short_side / 8) * 8)

    @property
    def whole_size(self) -> tuple[int, int] | None:
        """(height, width) to train at that keeps images whole which are all of one shape but not square; else None."""
        if len(self.summary.sizes) != 1:
            return None
        width, height = next(iter(self.summary.sizes))
        short, ratio = self.size, max(width, height) / min(width, height)
        multiple = 8 if short * ratio <= LARGEST_HALVED_BY_8 else 16  # what the general recipes' networks can halve
        longer = max(1, round(short * ratio / multiple)) * multiple
        short = max(1, round(short / multiple)) * multiple
        if longer <= short:
            return None
        return (short, longer) if width > height else (longer, short)

    @property
    def channels(self) -> int:
        """1 if all images are stored grey, else 3."""
        return 1 if self.summary.modes and set(self.summary.modes) <= GREY_MODES else 3

    def fits_padded(self, size: int | tuple[int, int]) -> bool:
        """Whether all images are of one size, a little smaller than `size`: then a border is better than enlarging."""
        sizes = self.summary.sizes
        height, width = size_pair(size)
        return len(sizes) == 1 and all(0.8 * width <= w <= width and 0.8 * height <= h <= height for w, h in sizes)


def _choose(
    args: argparse.Namespace, kind: str, look: Look, partner: DiffusionModel | None, start: starting.Start | None
) -> tuple[Recipe | None, str]:
    """The recipe that was named, or the data's own; None: a general one, once the size is known."""
    if args.recipe is not None:
        recipe = recipes.get(args.recipe)
        if recipe.kind != kind:
            other = "train-classifier" if recipe.kind == "classifier" else "train"
            raise ValueError(f"the recipe {recipe.name} is for a {recipe.kind}: use `undiffuse {other}`")
        return recipe, "as asked"
    known = str(args.data).partition(":")[0]
    if known in NAMED_SETS and args.size is None and args.channels is None and partner is start is None:
        for name in recipes.names():
            recipe = recipes.get(name)
            if recipe.data_path == known and recipe.kind == kind:
                return recipe, f"made for {known}"
    return None, ""


def _shape(
    args: argparse.Namespace,
    recipe: Recipe | None,
    look: Look,
    partner: DiffusionModel | None,
    start: starting.Start | None,
) -> tuple[int | tuple[int, int], int]:
    """(size, channels): as asked, as the partner's, the starting model's or the recipe's, or by the data."""
    if partner is not None:
        channels, height, width = partner.image_shape
        return height if height == width else (height, width), channels
    if start is not None:  # coloured pictures stay so; grey ones are shown to a model of colours as such
        return args.size or start.size, args.channels or max(start.net.in_channels, look.channels)
    made_for = recipe is not None and recipe.data_path == str(args.data).partition(":")[0]
    own = recipe is not None and (made_for or bool(recipe.published))  # a general one takes pictures as they are
    size = args.size or (recipe.data.size if recipe is not None else look.size)
    channels = args.channels or (recipe.data.channels if recipe is not None and own else look.channels)
    return size, channels


def _data_config(
    args: argparse.Namespace, how: str, recipe: Recipe, look: Look, partner: DiffusionModel | None
) -> DataConfig:
    prepared: dict[str, Any] = dataclasses.asdict(recipe.data)
    trained = ((partner.manifest.get("data") or {}).get("config") or {}) if partner is not None else {}
    fit = args.fit or trained.get("fit") or ("pad" if look.fits_padded(recipe.data.size) else recipe.data.fit)
    flip = recipe.data.flip if args.flip is None else args.flip
    return DataConfig(
        path=str(args.data),
        labels=how,
        on_broken=args.on_broken,
        on_tiny=args.on_tiny,
        **containers.opening(args, args.data),
        workers=args.workers,
        seed=args.seed,
        **{**prepared, "fit": fit, "flip": flip},
    )


def _options(args: argparse.Namespace) -> list[tuple[str, str]]:
    """The options that are short names of fields, as --set would have them."""
    fields = {
        "train.images": args.images,
        "train.steps": args.steps,
        "train.batch": args.batch,
        "train.microbatch": args.microbatch,
        "train.lr": args.lr,
        "train.timesteps": args.timesteps,
        "train.precision": args.precision,
        "train.compile": args.compile,
        "train.workers": args.workers,
        "train.evaluate_every": getattr(args, "evaluate_every", None),
        "train.evaluate_images": getattr(args, "evaluate_images", None),
        "train.ema_decays": None if args.ema is None else ",".join(repr(d) for d in args.ema),
    }
    return [(path, str(value)) for path, value in fields.items() if value is not None]


def _paced(args: argparse.Namespace, train: Any) -> Any:
    """Device and seed as asked; records often enough for a progress line that moves; a warm-up that fits the
    length, and snapshots of averages."""
    device = None if args.device == "auto" else args.device
    every, warmup, kept = train.log_every, train.warmup_images, train.posthoc_every
    asked = {path for path, _ in args.sets}
    if every is not None and "train.log_every" not in asked:
        every = min(every, 20 * train.batch)
    if "train.warmup_images" not in asked and (args.images or args.steps):
        warmup = min(warmup, train.total_images // 10)  # a run made short would else be over before it is warm
    if kept is not None and "train.posthoc_every" not in asked and (args.images or args.steps):
        kept = min(kept, max(train.batch, train.total_images // SNAPSHOTS))
    return replace(train, seed=args.seed, device=device, log_every=every, warmup_images=warmup, posthoc_every=kept)


def _consistent(recipe: Recipe) -> Recipe:
    """The network's output follows the process's variance, which --set may have changed."""
    if recipe.kind == "classifier":
        return recipe
    out = recipe.process.out_channels(recipe.net.in_channels)
    return replace(recipe, net=replace(recipe.net, out_channels=out))


def _hold_out(args: argparse.Namespace, source: Source, data: DataConfig) -> tuple[Source, ImageDataset | None]:
    """The images to train on and those to validate with, by --validation."""
    text = args.validation
    if text is None or str(text).lower() == "none":
        return source, None
    plain = replace(data, flip=False, random_crop=False)
    try:
        part = float(text)
    except ValueError:
        return source, replace(plain, path=str(text)).build(source.label_names)
    halves = split(source, part, seed=args.seed)
    return halves.train, ImageDataset(halves.validation, plain)


def _name(args: argparse.Namespace, recipe: Recipe) -> str:
    """The run's name: the recipe's for data known by name, else that of the data."""
    known = str(args.data).partition(":")[0]
    if args.recipe is None and recipe.data_path == known:
        return recipe.name
    path = Path(args.data).expanduser().resolve()
    stem = f"{known}-{recipe.name}" if known in NAMED_SETS else path.name if path.is_dir() else path.stem
    return stem + ("-classifier" if recipe.kind == "classifier" and not stem.endswith("-classifier") else "")


def _images(count: int) -> str:
    return "image" if count == 1 else "images"
