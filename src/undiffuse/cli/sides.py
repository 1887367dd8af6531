"""The two sides of an evaluation from the command line: images, a model that makes them, or a reference file."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.data import NAMED_SETS
from undiffuse.distributed import Ranks
from undiffuse.evaluation import (
    FeatureCache,
    ImageSet,
    MadeImages,
    Summary,
    extract,
    npz_statistics,
    open_images,
    read_reference,
)
from undiffuse.evaluation.summary import NpzStatistics, is_reference
from undiffuse.metrics import MetricError
from undiffuse.metrics.extractors import ClassifierExtractor, Extractor
from undiffuse.pipelines.pipeline import Pipeline, SamplerConfig, class_names, classes_to_guide
from undiffuse.pipelines.source import SampleSource
from undiffuse.util.progress import Progress

MADE = 2000  # samples from a model where nobody says how many


@dataclass(frozen=True)
class Side:
    """Images and the statistics of an npz beside them, or the summaries of a reference file."""

    images: ImageSet | None = None
    statistics: NpzStatistics | None = None
    summaries: tuple[Summary, ...] = ()

    def summarise(
        self, extractors: Sequence[Extractor], ranks: Ranks, args: argparse.Namespace, what: str
    ) -> list[Summary]:
        """One summary an extractor: read from the file, or by one pass over the images."""
        if self.summaries:
            return [matching(self.summaries, extractor) for extractor in extractors]
        if self.images is None:
            assert self.statistics is not None
            statistics = self.statistics
            return [
                Summary(
                    card=extractor.card,
                    spatial_card=extractor.spatial_card,
                    statistics=statistics.main(extractor.card),
                    spatial=statistics.spatial(extractor.spatial_card),
                    about={"kind": "statistics", "where": statistics.path, "statistics_sha256": statistics.sha256},
                )
                for extractor in extractors
            ]
        cache = FeatureCache() if args.cache else None
        with Progress(what, len(self.images), "images") as progress:
            found = extract(
                self.images,
                extractors,
                ranks=ranks,
                cache=cache,
                keep_images=args.keep_samples,
                progress=progress.advance,
            )
        return [Summary.of(features, self.statistics) for features in found]


def is_model(place: str) -> bool:
    """Whether a word names a model rather than images: everything that is no folder of images, archive or known set."""
    path = Path(place)
    if place.partition(":")[0] in NAMED_SETS or is_reference(place):
        return False
    if path.is_dir():
        return (path / "checkpoints").is_dir()
    return path.suffix.lower() not in (".npz", ".zip")


def model_settings(args: argparse.Namespace, model: str) -> SamplerConfig:
    """The sampler's settings from the options of `evaluate` and `sweep`, where --weights means the extractor's."""
    given = {**vars(args), "model": model, "weights": args.model_weights}
    given.setdefault("guidance", None)
    return SamplerConfig.of_args(argparse.Namespace(**given))


def made_by(sampler: Pipeline, args: argparse.Namespace, count: int) -> MadeImages:
    """The samples of a model, made when the extractor asks for them."""
    if sampler.model.spec.super_resolution:
        raise ValueError("a super-resolution model enlarges images; evaluate the folder that `undiffuse sample` writes")
    classes = classes_to_guide(sampler, args.classes)
    names = class_names(sampler)
    job = SampleSource(sampler, args.seed, classes)
    labels = None if classes is None else np.array(job.labels(list(range(count))), dtype=np.int64)
    channels, height, width = sampler.shape
    identity = {**sampler.record, "seed": args.seed, "classes": classes, "device": sampler.device.type}
    files = {"model_file": sampler.settings.model, "classifier_file": sampler.settings.classifier}
    made = MadeImages(
        lambda numbers: job.make(numbers),
        count,
        (height, width, channels),
        where=f"{Path(sampler.settings.model).name} ({sampler.text()}, seed {args.seed})",
        identity=identity,
        batch=sampler.batch_size(args.batch),
        labels=labels,
        label_names=names,
    )
    made.about = {**made.about, **{k: Path(v).name for k, v in files.items() if v}, "settings": sampler.text()}
    return made


def stored(
    place: str,
    args: argparse.Namespace,
    preparation: Mapping[str, Any],
    *,
    count: int | None = None,
    first: bool = False,
    label_names: Sequence[str] | None = None,
    protocol: str | None = None,
) -> Side:
    """Images on disk (and what an npz says of its whole set), or a reference file."""
    if is_reference(place):
        return Side(summaries=tuple(read_reference(place)))
    statistics = None
    if Path(place).suffix.lower() == ".npz":
        statistics, has_images = npz_statistics(place, protocol)
        if statistics is not None and not has_images:
            return Side(statistics=statistics)
    images = open_images(
        place, count=count, first=first, labels=args.labels, label_names=label_names, on_broken=args.on_broken,
        **preparation,
    )  # fmt: skip
    return Side(images=images, statistics=statistics)


def preparation_of(args: argparse.Namespace, model: Pipeline | None, extractors: Sequence[Extractor]) -> dict[str, Any]:
    """How stored images are prepared: as asked, as the model's training images were, as a classifier's, or not."""
    if args.size is not None:
        return {"size": args.size, "fit": args.fit or "crop"}
    known: Any = model.model if model is not None else None
    if known is None:
        known = next((e.model for e in extractors if isinstance(e, ClassifierExtractor)), None)
    if known is None:
        return {"fit": args.fit or "crop"}
    channels, height, width = known.image_shape
    trained = (known.manifest.get("data") or {}).get("config") or {}
    out = {"size": (height, width), "channels": channels, "fit": args.fit or trained.get("fit", "crop")}
    return {**out, "pad_value": trained.get("pad_value", 0)}


def matching(summaries: Sequence[Summary], extractor: Extractor) -> Summary:
    """The summary of a reference file that this extractor's features can be compared with; MetricError if none."""
    for summary in summaries:
        if summary.card == extractor.card:
            return replace(summary, scores=extractor.scores)
    made = ", ".join(
        f"{s.card.extractor} ({s.card.protocol}, weights {str(s.card.weights_sha256)[:12]})" for s in summaries
    )
    card = extractor.card
    raise MetricError(
        f"the reference file holds features of {made}, none of {card.extractor} ({card.protocol}, weights "
        f"{str(card.weights_sha256)[:12]}); choose its extractor, or make another reference: undiffuse reference"
    )
