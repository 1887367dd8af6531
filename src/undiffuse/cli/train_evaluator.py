"""`undiffuse train --evaluate-every`: what samples are measured by and against while a run goes on."""

from __future__ import annotations

import argparse

import numpy as np
import torch

from undiffuse.cli import extractors as build
from undiffuse.cli.console import say
from undiffuse.cli.planning import Plan
from undiffuse.cli.sides import matching
from undiffuse.data import ImageDataset
from undiffuse.distributed import Ranks, resolve_device
from undiffuse.evaluation import FeatureCache, StoredImages, Summary, extract, open_images, read_reference
from undiffuse.evaluation.summary import is_reference
from undiffuse.metrics.extractors import Extractor
from undiffuse.training.evaluation import Evaluator
from undiffuse.util.progress import Progress

MOST = 10_000  # reference images that are looked at: enough for a trend


def build_evaluator(args: argparse.Namespace, plan: Plan) -> Evaluator | None:
    """The evaluator of a run, None without --evaluate-every. ValueError for what cannot be measured."""
    if args.command != "train" or args.evaluate_every is None:
        return None
    against = args.evaluate_against
    given = read_reference(against) if against is not None and is_reference(against) else None
    names = args.extractor or build.default_names([str(args.data), str(against or "")], given)
    device = torch.device("cpu") if plan.recipe.train.device is None else resolve_device(plan.recipe.train.device)
    extractors = build.build(names, args.extractor_weights, args.grey, device)
    if given is not None:
        summaries = [matching(given, extractor) for extractor in extractors]
    else:
        summaries = _of_images(_images(args, plan), extractors)
    about = summaries[0].about
    say(
        f"  evaluation  every {args.evaluate_every:,} images: {plan.recipe.train.evaluate_images:,} samples against "
        f"{about.get('n', '?'):,} images of {about.get('where')}, by {', '.join(names)}"
    )
    return Evaluator(extractors=extractors, references=summaries, best_by=args.best_by)


def _images(args: argparse.Namespace, plan: Plan) -> StoredImages:
    """At most MOST images, evenly spaced, prepared as the run's images are but without flips and random crops."""
    data = plan.dataset.config
    if args.evaluate_against is not None:
        return open_images(
            args.evaluate_against, size=data.size, channels=data.channels, fit=data.fit, pad_value=data.pad_value
        )
    dataset = plan.validation if plan.validation is not None and len(plan.validation) >= MOST else plan.dataset
    chosen = np.arange(min(MOST, len(dataset))) * len(dataset) // min(MOST, len(dataset))
    return StoredImages(ImageDataset(dataset.source.subset(chosen), dataset.config))


def _of_images(images: StoredImages, extractors: list[Extractor]) -> list[Summary]:
    with Progress("reference:", len(images), "images") as progress:
        # Every process does it by itself: with a cache the others find what the first has computed.
        found = extract(images, extractors, ranks=Ranks(), cache=FeatureCache(), progress=progress.advance)
    return [Summary.of(features) for features in found]
