"""Recipes: everything a run needs except the data, with published and measured results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from undiffuse.adapters import published
from undiffuse.config import SamplerConfig
from undiffuse.config.advice import advice, to_manifest
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import ClassifierConfig, DDPMConfig, ResNetConfig, UNetConfig
from undiffuse.objectives import ObjectiveConfig
from undiffuse.train_config import TrainConfig
from undiffuse.util.errors import ConfigError

NOT_RUN = "not run here"
_CLASSIFIERS = (ClassifierConfig, ResNetConfig)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How the images of a recipe are prepared; the fields are those of `undiffuse.data.DataConfig`."""

    size: int | tuple[int, int]
    channels: int = 3
    fit: str = "crop"
    flip: bool = False
    random_crop: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named set of hyper-parameters.

    Attributes:
        data_path: The named data set of the recipe; None for your own images.
        published: Results of the paper by metric; also "source" (where they were published), "file" (the released
            weights of the recipe) and "unverified" (settings that the sources leave open).
        label_dropout: Probability of dropping a label, 0 to 1, for classifier-free guidance.
        measured: Results measured by this project, or a note that there are none.
        advice: The authors' sampling settings; guidance names the recipe of the classifier.
        low_size: For an upsampler, the shorter side of its low-resolution images in pixels.
        clean_fraction: For a classifier, the share of clean images, 0 to 1.
        shift: For a classifier, the largest random shift of training images in pixels.
        erase: For a classifier, the probability of erasing a random rectangle of a training image, 0 to 1.
        smoothing: For a classifier, the label smoothing, 0 to below 1.
    """

    name: str
    summary: str
    data: Preparation
    net: UNetConfig | DDPMConfig | ClassifierConfig | ResNetConfig
    process: ProcessConfig
    train: TrainConfig
    measured: str
    objective: ObjectiveConfig | None = None
    published: Mapping[str, str] = field(default_factory=dict, hash=False)  # mappings have no hash
    advice: SamplerConfig = field(default_factory=advice)
    data_path: str | None = None
    low_size: int | None = None
    label_dropout: float = 0.0
    clean_fraction: float = 0.0
    shift: int = 0
    erase: float = 0.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if (self.objective is None) != isinstance(self.net, _CLASSIFIERS):
            raise ValueError(f"recipe {self.name}: a diffusion model requires an objective, a classifier has none")

    @property
    def kind(self) -> str:
        """The kind of model, "diffusion" or "classifier"."""
        return "classifier" if isinstance(self.net, _CLASSIFIERS) else "diffusion"

    def with_classes(self, classes: int | None) -> Recipe:
        """Returns the recipe for another number of classes; None makes a diffusion model unconditional."""
        if isinstance(self.net, _CLASSIFIERS):
            if classes is None:
                raise ValueError("a classifier requires labelled images")
            return replace(self, net=replace(self.net, out_channels=classes))
        if "num_classes" not in {field.name for field in fields(self.net)}:
            if classes is not None:
                which = "DDPM's network" if isinstance(self.net, DDPMConfig) else "this network"
                raise ConfigError("labels", f"{which} is unconditional: leave the labels out (`unconditional`)")
            return self
        net: Any = self.net
        null = net.null_class and classes is not None
        return replace(self, net=replace(net, num_classes=classes, null_class=null))

    def with_regression(self, numbers: int) -> Recipe:
        """Returns the recipe of a classifier for a regressor of a number of numbers, a mean and log variance each."""
        if not isinstance(self.net, ClassifierConfig):
            raise ConfigError("condition", "only the recipe of a classifier makes a regressor")
        return replace(self, net=replace(self.net, out_channels=2 * numbers, regression=True))

    def with_label_dropout(self, share: float) -> Recipe:
        """Returns the recipe with label dropout: a share of the labels becomes the network's null class.

        Args:
            share: Probability of dropping a label, above 0 and below 1.

        Raises:
            ConfigError: The model is not class-conditional, or the share is out of range.
        """
        if not isinstance(self.net, UNetConfig) or self.net.num_classes is None:
            raise ConfigError("label_dropout", "it requires a class-conditional model")
        if not 0 < share < 1:
            raise ConfigError("label_dropout", f"expected a share above 0 and below 1, got {share}")
        return replace(self, net=replace(self.net, null_class=True), label_dropout=share)

    def with_conditions(self, widths: Mapping[str, int], dropout: float) -> Recipe:
        """Returns the recipe for conditions besides the class.

        Args:
            widths: `num_tags`, `num_numbers` and `cond_channels` of the network, see `UNetConfig`.
            dropout: Probability of dropping conditions, 0 to below 1; 0 trains a model that always needs them.

        Raises:
            ConfigError: The network takes no such conditions ("condition").
        """
        if not isinstance(self.net, UNetConfig):
            raise ConfigError(
                "condition",
                f"needs ADM's U-Net, and the recipe {self.name} has another network: choose another recipe",
            )
        if not 0 <= dropout < 1:
            raise ConfigError("label_dropout", f"expected a share of at least 0 and below 1, got {dropout}")
        null = self.net.num_classes is not None and dropout > 0
        fields: dict[str, Any] = {**widths, "null_class": null}
        return replace(self, net=replace(self.net, **fields), label_dropout=dropout)

    def with_shape(self, size: int | tuple[int, int], channels: int) -> Recipe:
        """Returns the recipe for another image size and number of channels; the widths of the network stay."""
        data = replace(self.data, size=size, channels=channels)
        net: UNetConfig | DDPMConfig | ClassifierConfig | ResNetConfig
        if isinstance(self.net, _CLASSIFIERS):
            net = replace(self.net, image_size=size, in_channels=channels)
        else:
            out = self.process.out_channels(channels)
            net = replace(self.net, image_size=size, in_channels=channels, out_channels=out)
        return replace(self, data=data, net=net)

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary for JSON."""
        return {**asdict(self), "advice": to_manifest(self.advice)}


def figures_of(name: str, unverified: str = "", same_network: bool = True) -> dict[str, str]:
    """Returns `Recipe.published` for a published file.

    Args:
        name: The file's name in `undiffuse.adapters.published`.
        unverified: Settings of the recipe that the sources leave open.
        same_network: Whether the file's weights fit the recipe's network; if not, the file is not named.
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


def advice_of(name: str, classifier: str | None = None) -> SamplerConfig:
    """Returns the authors' sampling settings of a published file; `classifier` is the recipe of its classifier."""
    sampling = published.get(name).sampling or advice()
    guides = (classifier,) if classifier and sampling.guidance.classifier else ()
    return sampling.replace(classifier=guides, guidance=sampling.guidance.scale if guides else ())


def paper_training(*, batch: int, steps: int, lr: float, **settings: Any) -> TrainConfig:
    """Returns the training settings of the papers: Adam (AdamW with weight decay 0), and one EMA of 0.9999 without
    warm-up. Intervals follow the released scripts, which save every 10,000 updates.

    Args:
        batch: Images per update.
        steps: Number of updates.
        lr: Learning rate.
        **settings: Other fields of `TrainConfig`.
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
