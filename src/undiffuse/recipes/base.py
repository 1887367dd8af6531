"""What a recipe is: everything a run needs except where the pictures are, and what it was measured to give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from undiffuse.adapters import published
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import ClassifierConfig, DDPMConfig, UNetConfig
from undiffuse.objectives import ObjectiveConfig
from undiffuse.training.config import TrainConfig

NOT_RUN = "not run here"


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a recipe wants its pictures prepared; the fields are those of `undiffuse.data.DataConfig`."""

    size: int | tuple[int, int]
    channels: int = 3
    fit: str = "crop"
    flip: bool = False
    random_crop: bool = False


@dataclass(frozen=True, kw_only=True)
class Advice:
    """How its authors sample the model: solver, respacing, guidance scale, and the recipe of the paired classifier."""

    solver: str = "ancestral"
    steps: str = "250"
    guidance: float = 0.0
    classifier: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named set of hyper-parameters.

    `data_path`  the named data set it is for, None if it is for pictures of your own
    `published`  figures reported by the paper, by metric; beside them "source" (where they were read), "file" (the
                 released weights this recipe describes) and "unverified" (settings the sources do not settle)
    `label_dropout`  share of the images trained without their label, for classifier-free guidance
    `measured`   what this project measured with it, or that it has not been run here
    """

    name: str
    summary: str
    data: Preparation
    net: UNetConfig | DDPMConfig | ClassifierConfig
    process: ProcessConfig
    train: TrainConfig
    measured: str
    objective: ObjectiveConfig | None = None
    published: Mapping[str, str] = field(default_factory=dict, hash=False)  # a mapping has no hash; equality sees it
    advice: Advice = field(default_factory=Advice)
    data_path: str | None = None
    low_size: int | None = None
    label_dropout: float = 0.0
    clean_fraction: float = 0.0

    def __post_init__(self) -> None:
        if (self.objective is None) != isinstance(self.net, ClassifierConfig):
            raise ValueError(f"recipe {self.name}: a diffusion model needs an objective and a classifier has none")

    @property
    def kind(self) -> str:
        """ "diffusion" or "classifier"."""
        return "classifier" if isinstance(self.net, ClassifierConfig) else "diffusion"

    def with_classes(self, classes: int | None) -> Recipe:
        """The same for another number of classes; None makes a diffusion model unconditional."""
        if isinstance(self.net, ClassifierConfig):
            if classes is None:
                raise ValueError("a classifier needs labelled pictures")
            return replace(self, net=replace(self.net, out_channels=classes))
        if "num_classes" not in {field.name for field in fields(self.net)}:
            if classes is not None:
                which = "DDPM's own network" if isinstance(self.net, DDPMConfig) else "this network"
                raise ValueError(f"{which} is not told classes: leave the labels out (--unconditional)")
            return self
        net: Any = self.net
        null = net.null_class and classes is not None
        return replace(self, net=replace(net, num_classes=classes, null_class=null))

    def with_label_dropout(self, share: float) -> Recipe:
        """The same with a part of the images trained without their label, as the network's null class."""
        if not isinstance(self.net, UNetConfig) or self.net.num_classes is None:
            raise ValueError("labels can be left out of the training of a model only that is told them")
        if not 0 < share < 1:
            raise ValueError(
                f"the share of images trained without their label must be above 0 and below 1; got {share}"
            )
        return replace(self, net=replace(self.net, null_class=True), label_dropout=share)

    def with_shape(self, size: int | tuple[int, int], channels: int) -> Recipe:
        """The same for another image size and number of channels; the network's widths stay as they are."""
        data = replace(self.data, size=size, channels=channels)
        net: UNetConfig | DDPMConfig | ClassifierConfig
        if isinstance(self.net, ClassifierConfig):
            net = replace(self.net, image_size=size, in_channels=channels)
        else:
            out = self.process.out_channels(channels)
            net = replace(self.net, image_size=size, in_channels=channels, out_channels=out)
        return replace(self, data=data, net=net)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


def figures_of(name: str, unverified: str = "", same_network: bool = True) -> dict[str, str]:
    """`Recipe.published` for a published file: the figures of `undiffuse.adapters.published`, and what is not settled.

    Without `same_network` the file is not named, since its weights do not fit the recipe's network.
    """
    entry = published.get(name)
    found = {}
    for result in entry.results:
        first, _, rest = result.figures.partition(", ")
        metric, _, value = first.rpartition(" ")
        found[f"{metric} ({result.how})"] = f"{value}; {rest}" if rest else value
    unsettled = "; ".join(text for text in (entry.unverified, unverified) if text)
    return {
        **(found or {"accuracy" if entry.kind == "classifier" else "FID": "not reported"}),
        "source": entry.source or entry.paper,
        **({"unverified": unsettled} if unsettled else {}),
        **({"file": entry.file} if same_network else {}),
    }


def advice_of(name: str, classifier: str | None = None) -> Advice:
    """How the authors of a published file sample it; `classifier` is the recipe of the one that guides it."""
    sampling = published.get(name).sampling or published.Sampling()
    return Advice(
        solver=sampling.solver,
        steps=sampling.steps or "250",
        guidance=sampling.guidance,
        classifier=classifier if sampling.classifier else None,
    )


def paper_training(*, batch: int, steps: int, lr: float, **settings: Any) -> TrainConfig:
    """A training run as the papers state it: so many updates of `batch` images with Adam (AdamW with weight decay 0),
    one EMA of 0.9999 without warm-up. Cadences follow the released scripts, which save every 10,000 updates.
    """
    every = 10_000 * batch
    defaults: dict[str, Any] = {
        "ema_decays": (0.9999,),
        "ema_warmup": False,
        "log_every": 100 * batch,
        "preview_every": every,
        "preview_count": 16,
        "validate_every": every,
        "save_every": every,
    }
    return TrainConfig(batch=batch, steps=steps, lr=lr, **{**defaults, **settings})
