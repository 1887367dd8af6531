"""`undiffuse train --evaluate-every`: builds the evaluator of a run."""

from __future__ import annotations

import numpy as np
import torch

from undiffuse.cli.console import say
from undiffuse.data import ImageDataset
from undiffuse.distributed import DistContext, resolve_device
from undiffuse.evaluation import FeatureCache, StoredImages, Summary, extract, open_images, read_reference
from undiffuse.evaluation.inputs import matching
from undiffuse.evaluation.summary import is_reference
from undiffuse.metrics.extractors import Extractor, build_extractors, default_extractors
from undiffuse.training.evaluation import Evaluator
from undiffuse.training.plan import TrainPlan
from undiffuse.util.progress import Progress

MOST = 10_000  # largest number of reference images: enough for a trend


def build_evaluator(plan: TrainPlan) -> Evaluator | None:
    """Returns the evaluator of samples during a run; None if the run has no evaluation.

    Raises:
        ValueError: The images or the extractor cannot be used.
    """
    asked = plan.request.evaluation
    if plan.request.kind != "diffusion" or asked.get("every") is None:
        return None
    against = asked.get("against")
    given = read_reference(against) if against is not None and is_reference(against) else None
    cards = None if given is None else [summary.card for summary in given]
    names = asked.get("extractor") or default_extractors([plan.request.data, str(against or "")], cards)
    device = torch.device("cpu") if plan.config.device is None else resolve_device(plan.config.device)
    extractors = build_extractors(names, asked.get("extractor_weights"), asked.get("grey") or "refuse", device)
    if given is not None:
        summaries = [matching(given, extractor) for extractor in extractors]
    else:
        summaries = _of_images(_images(plan), extractors)
    about = summaries[0].about
    say(
        f"  evaluation  every {asked['every']:,} images: {plan.config.evaluate_images:,} samples against "
        f"{about.get('n', '?'):,} images of {about.get('where')}, by {', '.join(names)}"
    )
    return Evaluator(extractors=extractors, references=summaries, best_by=asked.get("best_by"))


def _images(plan: TrainPlan) -> StoredImages:
    """Returns at most MOST evenly spaced images, prepared as in training but without flips and random crops."""
    data, against = plan.dataset.config, plan.request.evaluation.get("against")
    if against is not None:
        return open_images(
            against,
            size=data.size,
            channels=data.channels,
            fit=data.fit,
            pad_value=data.pad_value,
            value_range=data.value_range,
            on_broken=data.on_broken,
        )
    dataset = plan.validation if plan.validation is not None and len(plan.validation) >= MOST else plan.dataset
    assert isinstance(dataset, ImageDataset)  # the command line opens files, which are no streams
    chosen = np.arange(min(MOST, len(dataset))) * len(dataset) // min(MOST, len(dataset))
    return StoredImages(ImageDataset(dataset.source.subset(chosen), dataset.config))


def _of_images(images: StoredImages, extractors: list[Extractor]) -> list[Summary]:
    with Progress("reference:", len(images), "images") as progress:
        # Every process computes the summary; the others find the features of the first in the cache.
        found = extract(images, extractors, ranks=DistContext(), cache=FeatureCache(), progress=progress.advance)
    return [Summary.of(features) for features in found]
