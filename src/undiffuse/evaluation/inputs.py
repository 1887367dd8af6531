"""The two sides of an evaluation: files, arrays, datasets, reference files, and models whose samples are made now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from undiffuse.data.opening import is_data
from undiffuse.data.screening import OnBroken
from undiffuse.distributed import DistContext
from undiffuse.evaluation.arrays import ArrayImages, DatasetImages
from undiffuse.evaluation.cache import FeatureCache
from undiffuse.evaluation.compute import MetricOptions, find_metrics
from undiffuse.evaluation.features import extract
from undiffuse.evaluation.images import ImageSet, MadeImages, open_images, range_of_run
from undiffuse.evaluation.summary import NpzStatistics, Summary, is_reference, npz_statistics, read_reference
from undiffuse.metrics import MetricError
from undiffuse.metrics.extractors import ClassifierExtractor, Extractor
from undiffuse.models import DiffusionModel
from undiffuse.util.errors import ConfigError
from undiffuse.util.progress import NoProgress, Progress

if TYPE_CHECKING:
    from undiffuse.config import SamplerConfig
    from undiffuse.pipelines import Pipeline
    from undiffuse.pipelines.given import GivenConditions

__all__ = [
    "EvaluationConfig", "EvaluationSet", "is_model", "made_images", "matching", "open_set", "pipeline_of",
    "preparation",
]  # fmt: skip

MADE = 2000  # samples of a model where no count is given


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Says what is measured and how the images are prepared.

    Args:
        extractor: Name, path of a classifier, or `Extractor`; or several of them, which share one pass over the images.
            None takes the reference file's, "fashion" for Fashion-MNIST, else "inception".
        extractor_weights: File of the extractor's weights, where they cannot be downloaded.
        grey: "repeat" shows grey images as RGB to extractors of colour images; "refuse" is an error.
        metrics: Names of metrics; None computes the default ones that both sides permit.
        options: Options of the metrics.
        count: Samples to take (the first ones), or to make with a model (2,000 by default).
        reference_count: Reference images to take, evenly spaced over the set; None takes all.
        size: Prepares stored images to this size (one number, or height and width) as for training. None takes the
            model's size if a model makes the samples or extracts the features, else the images as they are.
        fit: "crop" covers the size and cuts the centre, "pad" adds a border; None takes the model's way.
        labels: How the labels of stored images are found, see `undiffuse.data.open_data`.
        on_broken: "skip" leaves out unreadable images, "refuse" is an error.
        value_range: (low, high) of stored values that become 0 and 255, for images that are not 8-bit. None takes the
            range of the model, or of the samples' run.
        protocol: How the statistics of an npz file were made, where the file does not say it ("adm" for OpenAI's).
        seed: Seed of the noise of a model's samples.
        classes: Names or numbers of the classes that a model's samples cycle through; None takes all.
        condition: Where the conditions of the reference images are, which a model's samples get: "numbers:age",
            "image:maps/" and so on as in training. None looks for the model's numbers and labels in the data.
        measures: Functions of images uint8 [N, H, W, C] by the names of numbers, which show whether samples obey.
        edges: Whether the condition picture shows edges, which samples are compared with.
        batch: Samples that a model makes at once; None chooses by the free memory.
        cache: Looks up and keeps features on the disk.
        keep_samples: Keeps a model's samples there too, so that another extractor needs no sampling.
        progress: Shows progress bars.

    Raises:
        ValueError: A number below 1, or a metric that does not exist.
    """

    extractor: str | Extractor | Sequence[str | Extractor] | None = None
    extractor_weights: str | None = None
    grey: Literal["refuse", "repeat"] = "refuse"
    metrics: Sequence[str] | None = None
    options: MetricOptions = MetricOptions()
    count: int | None = None
    reference_count: int | None = None
    size: int | tuple[int, int] | None = None
    fit: Literal["crop", "pad"] | None = None
    labels: str = "auto"
    on_broken: OnBroken = "refuse"
    value_range: tuple[float, float] | None = None
    protocol: str | None = None
    seed: int = 0
    classes: Sequence[str] | None = None
    condition: Any = None
    measures: Mapping[str, Any] = field(default_factory=dict)
    edges: bool = False
    batch: int | None = None
    cache: bool = True
    keep_samples: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("count", "reference_count", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(name, f"got {value}, expected a whole number of at least 1")
        for name in ("metrics", "classes"):  # one name is a list of one
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))
        find_metrics(self.metrics or ())

    @property
    def extractors(self) -> list[str | Extractor] | None:
        """The extractors as a list; None where none is chosen."""
        if self.extractor is None:
            return None
        return list(self.extractor) if isinstance(self.extractor, (list, tuple)) else [self.extractor]  # type: ignore[list-item]

    def bar(self, what: str, total: float, unit: str) -> NoProgress:
        """Returns a progress bar, or a counter that shows nothing."""
        return Progress(what, total, unit) if self.progress else NoProgress(total)


@dataclass(frozen=True)
class EvaluationSet:
    """One side of an evaluation.

    Args:
        images: The images; None for statistics or a reference file.
        statistics: Statistics of an npz file, which stand for its images.
        summaries: Summaries of a reference file.
    """

    images: ImageSet | None = None
    statistics: NpzStatistics | None = None
    summaries: tuple[Summary, ...] = ()

    def summarise(
        self,
        extractors: Sequence[Extractor],
        config: EvaluationConfig,
        ranks: DistContext | None = None,
        what: str = "images",
    ) -> list[Summary]:
        """Returns one summary for each extractor: from the file, or by one pass over the images.

        Args:
            extractors: What sees the images.
            config: Where features are cached, and whether progress is shown.
            ranks: Processes that share the work.
            what: Name of these images in the progress bar.

        Raises:
            MetricError: A reference file or statistics of another extractor, or images that an extractor cannot take.
        """
        if self.summaries:
            return [matching(self.summaries, extractor) for extractor in extractors]
        if self.images is None:
            assert self.statistics is not None
            return [_of_statistics(self.statistics, extractor) for extractor in extractors]
        cache = FeatureCache() if config.cache else None
        with config.bar(what, len(self.images), "images") as progress:
            found = extract(
                self.images, extractors, ranks=ranks, cache=cache, keep_images=config.keep_samples,
                progress=progress.advance,
            )  # fmt: skip
        return [Summary.of(features, self.statistics) for features in found]


def _of_statistics(statistics: NpzStatistics, extractor: Extractor) -> Summary:
    return Summary(
        card=extractor.card,
        spatial_card=extractor.spatial_card,
        statistics=statistics.main(extractor.card),
        spatial=statistics.spatial(extractor.spatial_card),
        about={"kind": "statistics", "where": statistics.path, "statistics_sha256": statistics.sha256},
    )


def is_model(source: object) -> bool:
    """Whether something is a model or names one: any text that names neither images nor a reference file."""
    if not isinstance(source, (str, Path)):
        from undiffuse.pipelines.pipeline import Pipeline

        return isinstance(source, (DiffusionModel, Pipeline))
    return not is_reference(source) and not is_data(source)


def pipeline_of(source: Any, sampler: SamplerConfig | None = None, device: str = "auto") -> Pipeline:
    """Returns the pipeline of a model.

    Args:
        source: Name or path of a model, a loaded `DiffusionModel`, or a `Pipeline`, which is returned as it is.
        sampler: How the model is sampled; its field `model` is replaced.
        device: Where it runs.

    Raises:
        ValueError: There is no such model, or the sampler's settings do not fit it.
    """
    from undiffuse.config import SamplerConfig
    from undiffuse.pipelines import Pipeline

    if isinstance(source, Pipeline):
        return source
    if isinstance(source, DiffusionModel):
        return Pipeline.load(sampler or SamplerConfig(), device, model=source)
    return Pipeline.load((sampler or SamplerConfig()).replace(model=str(source)), device, keep_weights=False)


def made_images(
    pipeline: Pipeline, config: EvaluationConfig, given: GivenConditions | None = None, seen: Any = None
) -> MadeImages:
    """Returns the samples of a model, which are made when the extractor needs them.

    Args:
        pipeline: The model.
        config: How many, of which classes and seed.
        given: Their conditions, see `conditions.conditions_of_data`.
        seen: Called with the numbers and pixels of samples as they are made.

    Raises:
        ValueError: The model enlarges images, or does not know one of the classes.
    """
    from undiffuse.pipelines.classes import class_names
    from undiffuse.pipelines.conditioning import classes_of
    from undiffuse.pipelines.source import SampleSource

    if pipeline.model.spec.super_resolution:
        raise ValueError("a super-resolution model enlarges images; evaluate the folder that `undiffuse sample` writes")
    count = config.count or MADE
    classes = classes_of(pipeline, config.classes, given)
    source = SampleSource(pipeline, config.seed, classes, given=given)

    def make(numbers: list[int]) -> Tensor:
        images = source.make(numbers, made.progress)
        if seen is not None:
            seen(numbers, images.numpy())
        return images

    labels = None if classes is None else np.array(source.labels(list(range(count))), dtype=np.int64)
    channels, height, width = pipeline.shape
    identity = {**pipeline.record, "seed": config.seed, "classes": classes, "device": pipeline.device.type}
    classifier = next(iter(pipeline.config.guidance.classifier), None)
    files = {"model_file": pipeline.config.model, "classifier_file": classifier}
    name = Path(pipeline.config.model or "a model").name
    identity |= {} if given is None else given.record()
    made = MadeImages(
        make,
        count,
        (height, width, channels),
        where=f"{name} ({pipeline.text()}, seed {config.seed})",
        identity=identity,
        batch=pipeline.batch_size(config.batch),
        labels=labels,
        label_names=class_names(pipeline),
    )
    made.about |= {name: Path(file).name for name, file in files.items() if file} | {"settings": pipeline.text()}
    return made


def open_set(
    source: Any,
    config: EvaluationConfig,
    prepared: Mapping[str, Any] | None = None,
    *,
    count: int | None = None,
    first: bool = False,
    labels: Any = None,
    label_names: Sequence[str] | None = None,
) -> EvaluationSet:
    """Opens images, statistics or a reference file as one side of an evaluation.

    Args:
        source: Path of a folder, .zip, .npz or reference file; name of a data set; uint8 array or tensor [N, H, W, C];
            map-style torch dataset; `ImageSet`; or `EvaluationSet`, which is returned as it is.
        config: How images are read.
        prepared: How stored images are prepared, see `preparation`.
        count: Number of images to take; None takes all.
        first: Takes the first `count` images, else evenly spaced ones.
        labels: Classes [N] of an array's images.
        label_names: Names of the classes.

    Raises:
        ValueError: Images that cannot be evaluated.
        FileNotFoundError: There is no such path.
    """
    if isinstance(source, EvaluationSet):
        return source
    if isinstance(source, ImageSet):
        return EvaluationSet(images=source)
    if isinstance(source, (np.ndarray, Tensor)):
        declared = (prepared or {}).get("value_range", config.value_range)
        declared = None if str(source.dtype).endswith("uint8") else declared
        whole = ArrayImages(source, labels, label_names, value_range=declared)
        if count is None:
            return EvaluationSet(images=whole)
        chosen = _chosen(len(source), count, first)
        kept = None if whole.labels is None else whole.labels[chosen]
        return EvaluationSet(images=ArrayImages(source[chosen], kept, whole.label_names, value_range=declared))
    if not isinstance(source, (str, Path)):
        if count is not None:
            from torch.utils.data import Subset

            names = label_names or getattr(source, "classes", None)
            source, label_names = Subset(source, _chosen(len(source), count, first).tolist()), names
        return EvaluationSet(images=DatasetImages(source, label_names))
    if is_reference(source):
        return EvaluationSet(summaries=tuple(read_reference(source)))
    statistics = None
    if Path(source).suffix.lower() == ".npz":
        statistics, has_images = npz_statistics(source, config.protocol)
        if statistics is not None and not has_images:
            return EvaluationSet(statistics=statistics)
    images = open_images(
        source, count=count, first=first, labels=config.labels, label_names=label_names, on_broken=config.on_broken,
        **(prepared or {"fit": config.fit or "crop"}),
    )  # fmt: skip
    return EvaluationSet(images=images, statistics=statistics)


def _chosen(total: int, count: int, first: bool) -> np.ndarray:
    """The numbers of `count` images: the first ones, or evenly spaced ones."""
    if count > total:
        raise ConfigError("count", f"there are {total:,} images, fewer than {count:,}")
    return np.arange(count) if first else np.arange(count) * total // count


def preparation(
    config: EvaluationConfig, pipeline: Pipeline | None, extractors: Sequence[Extractor], sources: Sequence[Any] = ()
) -> dict[str, Any]:
    """Returns how stored images are prepared: to the given size, as the model's training images were, or not at all.

    The value range is the given one, or that of the model, or of the first of `sources` that a run with one made.
    """
    value_range = config.value_range or (pipeline.model.value_range if pipeline is not None else None)
    value_range = value_range or next((found for found in map(range_of_run, sources) if found), None)
    shared: dict[str, Any] = {} if value_range is None else {"value_range": value_range}
    return {**_geometry(config, pipeline, extractors), **shared}


def _geometry(config: EvaluationConfig, pipeline: Pipeline | None, extractors: Sequence[Extractor]) -> dict[str, Any]:
    if config.size is not None:
        return {"size": config.size, "fit": config.fit or "crop"}
    known: Any = pipeline.model if pipeline is not None else None
    if known is None:
        known = next((e.model for e in extractors if isinstance(e, ClassifierExtractor)), None)
    if known is None:
        return {"fit": config.fit or "crop"}
    channels, height, width = known.image_shape
    trained = (known.manifest.get("data") or {}).get("config") or {}
    out = {"size": (height, width), "channels": channels, "fit": config.fit or trained.get("fit", "crop")}
    return {**out, "pad_value": trained.get("pad_value", 0)}


def matching(summaries: Sequence[Summary], extractor: Extractor) -> Summary:
    """Returns the summary of a reference file that was made by this extractor; MetricError if there is none."""
    for summary in summaries:
        if summary.card == extractor.card:
            return replace(summary, scores=extractor.scores)
    made = ", ".join(
        f"{s.card.extractor} ({s.card.protocol}, weights {str(s.card.weights_sha256)[:12]})" for s in summaries
    )
    card = extractor.card
    raise MetricError(
        f"the reference file holds features of {made}, none of {card.extractor} ({card.protocol}, weights "
        f"{str(card.weights_sha256)[:12]}); choose its extractor, or make another reference file"
    )
