"""Which metrics there are, and all of them for two sides of a comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from undiffuse.evaluation.summary import Summary
from undiffuse.metrics import (
    Card,
    ClassAccuracy,
    Estimate,
    InceptionScore,
    MetricError,
    VendiScore,
    check_same_protocol,
    cmmd,
    frechet_estimate,
    frechet_infinity,
    kid,
    kid_subsets,
    manifold_metrics,
    memorisation,
)
from undiffuse.metrics.neighbours import Precision

__all__ = ["DEFAULT_METRICS", "METRICS", "Evaluation", "MetricOptions", "evaluate"]

METRICS = {
    "fd": "Frechet distance of the features: FID for the 2015 Inception",
    "sfd": "Frechet distance of the spatial features: sFID",
    "is": "Inception Score of the extractor's classes",
    "pr": "improved precision and recall",
    "dc": "density and coverage",
    "kid": "kernel distance (KID), unbiased",
    "cmmd": "maximum mean discrepancy with a Gaussian kernel (CMMD for CLIP)",
    "vendi": "Vendi score, the effective number of different samples",
    "accuracy": "share of samples that the extractor's classifier takes for the class they were made for",
    "fd-infinity": "Frechet distance extrapolated to infinitely many samples",
    "memorisation": "nearest neighbours among training images (needs them)",
}
DEFAULT_METRICS = ("fd", "sfd", "is", "pr", "dc", "kid", "accuracy")
"""Computed where the extractor and both sides permit."""

SCORES_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """How metrics are computed. The defaults are those of OpenAI's evaluator where it has the metric.

    `k` of precision and recall, `k_density` of density and coverage; `distances`: "exact", "float32", "float64",
    or "float16-emulated" for the original's rounding; `chunk` of the Inception Score; `splits` random halvings of the
    corrected Frechet distance; `kid_subset` images a subset, None for all pairs; `vendi_order`; `seed` of subsets.
    """

    k: int = 3
    k_density: int = 5
    distances: Precision = "exact"
    chunk: int = 5000
    splits: int = 2
    kid_subset: int | None = None
    vendi_order: float = 1.0
    seed: int = 0


@dataclass
class Evaluation:
    """Estimates in the order of `METRICS`, what could not be computed and why, and the seconds each metric took."""

    estimates: list[Estimate] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class _Sides:
    """What a metric sees, and what two metrics share."""

    samples: Summary
    reference: Summary
    options: MetricOptions
    training: Summary | None
    manifold: dict[str, Estimate] = field(default_factory=dict)


class _Missing(Exception):
    """Why a metric cannot be computed for these two sides."""


class _Inapplicable(_Missing):
    """Why an extractor has no such metric at all: not worth a word where nobody asked for it."""


def evaluate(
    samples: Summary,
    reference: Summary,
    metrics: Sequence[str] | None = None,
    options: MetricOptions | None = None,
    *,
    training: Summary | None = None,
    on_metric: Callable[[str], None] | None = None,
) -> Evaluation:
    """Metrics of samples against a reference, both seen by one extractor.

    metrics    names of `METRICS`; None: the default ones that exist for these sides. One that was asked for by name
               and does not exist is an error, one of the defaults is noted in `skipped`.
    training   images the model was trained on, for "memorisation" (the reference being held-out images)
    on_metric  hears of each metric before it is computed

    MetricError for unknown names and for sides that were prepared differently.
    """
    options = options or MetricOptions()
    wanted = list(DEFAULT_METRICS) if metrics is None else list(dict.fromkeys(metrics))
    if unknown := [name for name in wanted if name not in METRICS]:
        raise MetricError(f"there is no metric {', '.join(unknown)}; choose some of {', '.join(METRICS)}")
    check_same_protocol(samples.card, reference.card)
    if samples.spatial is not None and reference.spatial is not None:
        check_same_protocol(samples.spatial_card, reference.spatial_card)
    if metrics is None and training is not None:
        wanted.append("memorisation")
    if metrics is None and samples.card.protocol == "cmmd":  # the features that CMMD is defined for
        wanted.append("cmmd")
    sides = _Sides(samples, reference, options, training)
    out = Evaluation()
    notes = _notes(samples, reference)
    for name in sorted(wanted, key=list(METRICS).index):
        if on_metric is not None:
            on_metric(name)
        begin = time.perf_counter()
        try:
            found = _COMPUTE[name](sides)
        except _Missing as reason:
            if metrics is not None:
                raise MetricError(f"{name} ({METRICS[name]}) cannot be computed: {reason}") from None
            if not isinstance(reason, _Inapplicable):
                out.skipped[name] = str(reason)
            continue
        out.seconds[name] = time.perf_counter() - begin
        out.estimates += [estimate.with_warnings(notes) for estimate in found]
    return out


def _notes(samples: Summary, reference: Summary) -> list[str]:
    notes = [f"samples: {text}" for text in samples.warnings]
    notes += [f"reference: {text}" for text in reference.warnings]
    ours, theirs = samples.about.get("sha256"), reference.about.get("sha256")
    if ours is not None and ours == theirs:
        notes.append("samples and reference are the same images")
    return notes


def _features(side: Summary, whose: str) -> Tensor:
    if side.features is None:
        raise _Missing(f"the {whose} has statistics only, no features of single images")
    return side.features


def _both(samples: Summary, reference: Summary, need: int = 2) -> tuple[Tensor, Tensor]:
    x, y = _features(samples, "samples' file"), _features(reference, "reference")
    for features, whose in ((x, "samples"), (y, "reference images")):
        if len(features) < need:
            raise _Missing(f"{len(features)} {whose}, at least {need} are needed")
    return x, y


def _frechet(c: _Sides) -> list[Estimate]:
    if c.samples.statistics is None or c.reference.statistics is None:
        raise _Missing("a covariance needs at least 2 images on each side")
    return [
        frechet_estimate(
            c.samples.statistics,
            c.reference.statistics,
            features=c.samples.features if c.samples.own_statistics else None,
            reference_features=c.reference.features if c.reference.own_statistics else None,
            splits=c.options.splits,
            seed=c.options.seed,
            card=c.samples.card,
        )
    ]


def _spatial(c: _Sides) -> list[Estimate]:
    if c.samples.spatial_card is None:
        raise _Inapplicable("this extractor has no spatial features; the 2015 Inception has")
    if c.samples.spatial is None or c.reference.spatial is None:
        raise _Missing("one side has no spatial statistics")
    return [
        frechet_estimate(
            c.samples.spatial,
            c.reference.spatial,
            features=c.samples.spatial_features,
            splits=0,
            seed=c.options.seed,
            card=c.samples.spatial_card,
        )
    ]


def _infinity(c: _Sides) -> list[Estimate]:
    features = _features(c.samples, "samples' file")
    if c.reference.statistics is None or len(features) < 20:
        raise _Missing("an extrapolation needs at least 20 samples and a reference with statistics")
    found = frechet_infinity(features, c.reference.statistics, seed=c.options.seed)
    return [
        Estimate(
            name=f"{c.samples.card.distance}-infinity",
            value=found.value,
            n=len(features),
            n_reference=c.reference.statistics.n,
            extra={"spread": found.spread},
            settings={"sizes": 15, "seed": c.options.seed},
            card=c.samples.card,
        )
    ]


def _score(c: _Sides) -> list[Estimate]:
    score = InceptionScore(c.options.chunk, card=c.samples.card, name=_score_name(c.samples.card))
    for scores in _all_scores(c.samples):
        score.update(scores)
    return [score.compute()]


def _score_name(card: Card) -> str:
    """IS is the name for the 2015 network under the original's resize; others carry their extractor's."""
    return "IS" if card.distance == "FID" else f"IS-{card.distance.removeprefix('FD-')}"


def _all_scores(side: Summary) -> list[Tensor]:
    features = _features(side, "samples' file")
    parts = []
    for part in features.split(SCORES_AT_ONCE):
        scores = None if side.scores is None else side.scores(part)
        if scores is None:
            raise _Inapplicable("the extractor has no class scores")
        parts.append(scores.cpu())
    return parts


def _manifold(c: _Sides) -> dict[str, Estimate]:
    if not c.manifold:
        x, y = _both(c.samples, c.reference, max(c.options.k, c.options.k_density) + 1)
        c.manifold = manifold_metrics(
            x, y, k=c.options.k, k_density=c.options.k_density, precision=c.options.distances, card=c.samples.card
        )
    return c.manifold


def _precision_recall(c: _Sides) -> list[Estimate]:
    return [_manifold(c)[name] for name in ("precision", "recall")]


def _density_coverage(c: _Sides) -> list[Estimate]:
    return [_manifold(c)[name] for name in ("density", "coverage")]


def _kernel(c: _Sides) -> list[Estimate]:
    x, y = _both(c.samples, c.reference)
    if c.options.kid_subset is None:
        return [kid(x, y, card=c.samples.card)]
    return [kid_subsets(x, y, size=c.options.kid_subset, seed=c.options.seed, card=c.samples.card)]


def _cmmd(c: _Sides) -> list[Estimate]:
    x, y = _both(c.samples, c.reference)
    return [cmmd(x, y, card=c.samples.card)]


def _vendi(c: _Sides) -> list[Estimate]:
    score = VendiScore(c.options.vendi_order, card=c.samples.card)
    return [score.update(_features(c.samples, "samples' file")).compute()]


def _accuracy(c: _Sides) -> list[Estimate]:
    if c.samples.labels is None:
        raise _Inapplicable("the samples have no classes")
    scores = torch.cat(_all_scores(c.samples))
    if c.samples.label_names is None or len(c.samples.label_names) != scores.shape[1]:
        known = 0 if c.samples.label_names is None else len(c.samples.label_names)
        raise _Inapplicable(f"the samples have {known} classes, the extractor {scores.shape[1]}")
    found = ClassAccuracy(card=c.samples.card).update(scores, c.samples.labels).compute()
    return [replace(found, name=f"accuracy ({c.samples.card.distance.removeprefix('FD-')})")]


def _memorisation(c: _Sides) -> list[Estimate]:
    if c.training is None:
        raise _Missing("the images the model was trained on were not given (--training)")
    check_same_protocol(c.samples.card, c.training.card)
    x, y = _features(c.samples, "samples' file"), _features(c.training, "training set")
    found = memorisation(x, y, c.reference.features, precision=c.options.distances, card=c.samples.card)
    return list(found.values())


_COMPUTE: dict[str, Callable[[_Sides], list[Estimate]]] = {
    "fd": _frechet,
    "sfd": _spatial,
    "is": _score,
    "pr": _precision_recall,
    "dc": _density_coverage,
    "kid": _kernel,
    "cmmd": _cmmd,
    "vendi": _vendi,
    "accuracy": _accuracy,
    "fd-infinity": _infinity,
    "memorisation": _memorisation,
}
