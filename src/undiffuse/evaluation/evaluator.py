"""Evaluates samples against a reference in one call: `evaluate`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.distributed import DistContext, session
from undiffuse.evaluation.compute import Evaluation, compute_metrics
from undiffuse.evaluation.conditions import Obedience, conditions_of_data
from undiffuse.evaluation.inputs import (
    MADE,
    EvaluationConfig,
    EvaluationSet,
    is_model,
    made_images,
    open_set,
    pipeline_of,
    preparation,
)
from undiffuse.evaluation.points import short_text
from undiffuse.evaluation.report import Report
from undiffuse.evaluation.summary import Summary, is_reference, read_reference, write_reference
from undiffuse.metrics import MetricError
from undiffuse.metrics.extractors import Extractor, build_extractors, default_extractors
from undiffuse.pictures.names import safe

if TYPE_CHECKING:
    from undiffuse.config import SamplerConfig
    from undiffuse.pipelines import Pipeline
    from undiffuse.pipelines.given import GivenConditions

__all__ = ["ReferenceEvaluator", "evaluate", "make_reference", "refuse_existing"]


class ReferenceEvaluator:
    """Measures any number of sets against one reference, which is opened and summarised once.

    Args:
        reference: Reference images, an .npz of statistics, or a reference file; see `evaluate`.
        config: What is measured, and how images are prepared.
        ranks: Processes that share the work, and the device.
        pipeline: A model whose samples will be measured: stored images are prepared as its training images were.
        sources: What will be measured, as far as its name decides the extractor.

    Raises:
        ValueError: The reference is a model, or an unknown extractor or metric is chosen.
    """

    def __init__(
        self,
        reference: Any,
        config: EvaluationConfig,
        ranks: DistContext,
        pipeline: Pipeline | None = None,
        sources: Sequence[object] = (),
    ) -> None:
        if is_model(reference):
            raise MetricError(
                f"the reference must be images or a reference file; there is no folder or file {reference}"
            )
        self.config, self.ranks = config, ranks
        stored = isinstance(reference, (str, Path)) and is_reference(reference)
        cards = [summary.card for summary in read_reference(reference)] if stored else None
        names = config.extractors or default_extractors([*sources, reference], cards)
        self.extractors: list[Extractor] = build_extractors(
            names, config.extractor_weights, config.grey, ranks.device, config.progress
        )
        self.prepared = preparation(config, pipeline, self.extractors, [*sources, reference])
        self.reference = open_set(reference, config, self.prepared, count=config.reference_count)
        self._seconds: dict[str, float] = {}
        self._summaries: dict[str, list[Summary]] = {}

    def open(self, source: Any, **more: Any) -> EvaluationSet:
        """Opens stored images, prepared as the reference is; for the arguments see `open_set`."""
        return open_set(source, self.config, self.prepared, **more)

    def measure(self, title: str, samples: EvaluationSet, training: EvaluationSet | None = None) -> Report:
        """Measures one set; every process gets the report.

        The reference comes first: what is wrong with it shows before samples are made.

        Args:
            title: Name of the report.
            samples: What is measured.
            training: Images that the model was trained on, to look for copies of them.

        Raises:
            ValueError: Images that cannot be read, or a chosen metric that cannot be computed.
        """
        seconds: dict[str, float] = {}
        for what, side in (("reference", self.reference), ("training", training)):
            if side is not None and what not in self._summaries:
                begin = time.perf_counter()
                self._summaries[what] = side.summarise(self.extractors, self.config, self.ranks, what)
                seconds[f"{what}: features"] = time.perf_counter() - begin
        begin = time.perf_counter()
        found = samples.summarise(self.extractors, self.config, self.ranks, title)
        seconds = {"samples: features": time.perf_counter() - begin, **seconds}
        report: Report | None = None
        if self.ranks.is_main:
            trained = self._summaries.get("training") if training is not None else None
            parts = [
                (ours, theirs, self._compute(ours, theirs, None if trained is None else trained[k]))
                for k, (ours, theirs) in enumerate(zip(found, self._summaries["reference"], strict=True))
            ]
            report = Report.of(title, parts, seconds, self.ranks.device)
        if self.ranks.world_size > 1:
            shared = self.ranks.broadcast_json(None if report is None else report.to_json())
            report = report or Report.from_json(shared)
        assert report is not None
        return report

    def _compute(self, samples: Summary, reference: Summary, training: Summary | None) -> Evaluation:
        config = self.config
        with config.bar(f"{samples.card.distance}: metrics", len(config.metrics or ()) or 7, "metrics") as bar:
            return compute_metrics(
                samples, reference, config.metrics, config.options, training=training,
                on_metric=lambda name: bar.advance(1),
            )  # fmt: skip


def evaluate(
    samples: Any,
    reference: Any,
    extractor: str | Extractor | Sequence[str | Extractor] | None = None,
    metrics: Sequence[str] | None = None,
    *,
    count: int | None = None,
    config: SamplerConfig | None = None,
    training: Any = None,
    labels: Any = "auto",
    label_names: Sequence[str] | None = None,
    name: str | None = None,
    out: str | Path | None = None,
    folder: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    cache: bool = True,
    progress: bool = True,
    **settings: Any,
) -> Report:
    """Evaluates samples against a reference.

    Each side is a path (folder, .zip, .npz and others, "photos:test"), the name of a data set, a uint8 array or tensor
    [N, H, W, C], a map-style torch dataset of images, or an `ImageSet`. The samples may also be a model (name, path,
    `DiffusionModel` or `Pipeline`), whose samples go straight to the extractor. The reference may also be a reference
    file, or an .npz with the statistics `mu` and `sigma`.

    Args:
        samples: What is measured.
        reference: What it is measured against.
        extractor: Name of the network whose features are compared, for example "inception" (FID) or "dinov2"; path of
            a classifier; an `Extractor`; or several. By default the reference file's, "fashion" for Fashion-MNIST,
            else "inception".
        metrics: Names of metrics, see `METRICS`; by default those that both sides permit.
        count: Samples to take (the first ones), or to make with a model (2,000 by default).
        config: How a model is sampled.
        training: Images that the model was trained on, to look for copies of them.
        labels: How labels of stored images are found ("auto", "none", "folder", "prefix" or a table); for an array the
            class of each sample, integers [N].
        label_names: Names of the samples' classes.
        name: Name of the report; by default made of the samples and the sampler.
        out: JSON file to write the report to.
        folder: Folder to write the report to instead, as NAME.json.
        overwrite: Replaces a report that exists.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        cache: Looks up and keeps features on the disk.
        progress: Shows progress bars.
        **settings: Further fields of `EvaluationConfig`: `options`, `reference_count`, `size`, `fit`, `on_broken`,
            `seed`, `classes`, `condition`, `measures`, `batch` and others.

    Returns:
        The report: values with standard errors and everything that decides them. A notebook shows it as a table.

    Raises:
        ValueError: Unknown names, or images that cannot be evaluated or compared.
        FileNotFoundError: There is no such path.
        FileExistsError: The report exists already, and `overwrite` is false.

    Example:
        report = evaluate("samples/", "fashion-mnist:test")
        print(report.get("FD-fashion").value)
    """
    how = labels if isinstance(labels, str) else "auto"
    numbers = None if isinstance(labels, str) else labels
    measured = EvaluationConfig(
        extractor=extractor, metrics=metrics, count=count, labels=how, cache=cache, progress=progress, **settings
    )
    if out is not None:
        refuse_existing(Path(out), overwrite)
    with session(device) as ranks:
        pipeline = pipeline_of(samples, config, str(ranks.device)) if is_model(samples) else None
        obedience = None
        if pipeline is not None and pipeline.model.conditions:
            given = _conditions(pipeline, reference, measured)
            obedience = None if given is None else Obedience(given, measured.measures, measured.edges)
            measured = replace(measured, cache=measured.cache and not obedience)  # measured as samples are made
        evaluator = ReferenceEvaluator(reference, measured, ranks, pipeline, sources=[samples])
        if pipeline is not None:
            given = None if obedience is None else obedience.given
            seen = obedience.see if obedience else None
            side = EvaluationSet(images=made_images(pipeline, measured, given, seen))
        else:
            side = evaluator.open(samples, count=count, first=True, labels=numbers, label_names=label_names)
        trained = None if training is None else evaluator.open(training)
        title = name or _name(samples, pipeline, side, measured)
        path = Path(out) if out is not None else None if folder is None else Path(folder) / f"{safe(title)}.json"
        if path is not None:
            refuse_existing(path, overwrite)
        report = evaluator.measure(title, side, trained)
        if obedience and ranks.world_size == 1:
            report = replace(report, estimates=[*report.estimates, *obedience.estimates()])
        if path is not None and ranks.is_main:
            report.save(path, overwrite=overwrite)
    return report


def _conditions(pipeline: Pipeline, reference: Any, config: EvaluationConfig) -> GivenConditions | None:
    """The conditions of samples, drawn from the reference images as classes are; None leaves them to the model.

    Raises:
        ConfigError: The reference lacks one that the model needs ("condition").
    """
    stored = isinstance(reference, (str, Path)) and (is_reference(reference) or str(reference).endswith(".npz"))
    if config.condition is None and stored and pipeline.model.conditions_dropped:
        return None  # a file of statistics has no conditions
    return conditions_of_data(
        pipeline.model, reference, config.condition, count=config.count or MADE, labels=config.labels,
        on_broken=config.on_broken,
    )  # fmt: skip


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raises FileExistsError before the work instead of after it."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already: choose another name, or overwrite it")


def _name(source: Any, pipeline: Pipeline | None, side: EvaluationSet, config: EvaluationConfig) -> str:
    """Returns what a report is called in tables and files."""
    if pipeline is None:
        if isinstance(source, (str, Path)):
            stem = _stem(source)
        else:
            stem = side.images.where if side.images is not None else "samples"
        return f"{stem}, first {config.count:,}" if config.count else stem
    assert side.images is not None
    stem = _stem(pipeline.config.model or "a model")
    return f"{stem}, {short_text(pipeline)}, seed {config.seed}, {len(side.images):,}"


def _stem(source: str | Path) -> str:
    """The name of a file without its ending, of a folder, or of anything else as it is."""
    from undiffuse.models import split_reference

    file, like = split_reference(source)
    return Path(file).stem if like is not None or os.path.isfile(file) else Path(file).name or file


def make_reference(
    source: Any,
    out: str | Path,
    extractor: str | Extractor | Sequence[str | Extractor] | None = None,
    *,
    count: int | None = None,
    keep: int = 10_000,
    overwrite: bool = False,
    device: str = "auto",
    **settings: Any,
) -> list[Summary]:
    """Makes a reference file: statistics of all images, features of some, and everything that decides the numbers.

    Args:
        source: The images: a path, the name of a data set, an array, or a torch dataset.
        out: File to write.
        extractor: See `evaluate`.
        count: Images to take, evenly spaced over the set; None takes all.
        keep: Images, evenly spaced, whose features are kept for precision, recall and KID.
        overwrite: Replaces a file that exists.
        device: Where it runs.
        **settings: Further fields of `EvaluationConfig`: `size`, `fit`, `labels`, `on_broken` and others.

    Returns:
        What was written, one summary for each extractor.

    Raises:
        ValueError: The source is a reference file, a model, or statistics without images.
        FileExistsError: The file exists, and `overwrite` is false.
    """
    config = EvaluationConfig(extractor=extractor, **settings)
    if isinstance(source, (str, Path)) and is_reference(source):
        raise MetricError(f"{source} is a reference file already; give the images")
    if is_model(source):
        raise MetricError(f"a reference is made of images; there is no folder, archive or known set {source}")
    refuse_existing(Path(out), overwrite)
    with session(device) as ranks:
        names = config.extractors or default_extractors([source])
        extractors = build_extractors(names, config.extractor_weights, config.grey, ranks.device, config.progress)
        side = open_set(source, config, preparation(config, None, extractors), count=count)
        if side.images is None:
            raise MetricError(f"{source} holds statistics without images; it can be used as a reference as it is")
        summaries = side.summarise(extractors, config, ranks, "features")
        if ranks.is_main:
            write_reference(out, summaries, keep=keep, overwrite=overwrite)
        ranks.barrier()  # the file is there when any process returns
    return summaries
