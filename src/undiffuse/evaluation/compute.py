"""Metrics by name, and their computation from two sides of a comparison."""

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
    c2st,
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
from undiffuse.util.errors import ConfigError
from undiffuse.util.plugins import load_plugin

__all__ = [
    "ENTRY_POINTS",
    "METRICS",
    "Evaluation",
    "Metric",
    "MetricOptions",
    "MetricUnavailable",
    "Sides",
    "compute_metrics",
    "find_metrics",
    "higher_is_better",
    "register_metric",
]

ENTRY_POINTS = "undiffuse.metrics"
SCORES_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class MetricOptions:
    """Options of the metrics. The defaults are those of OpenAI's evaluator for the metrics that it has.

    Args:
        k: Neighbours of precision and recall.
        k_density: Neighbours of density and coverage.
        distances: Arithmetic of precision and recall: "exact", "float32", "float64", or "float16-emulated", which
            rounds as the original does.
        chunk: Images in a chunk of the Inception Score.
        splits: Random halvings for the corrected Frechet distance.
        kid_subset: Images in a subset of the kernel distance; None takes all pairs.
        vendi_order: Order of the Vendi score.
        seed: Seed of the random subsets.
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
    """Holds the estimates in the order of `METRICS`, why others were not computed, and the seconds of each metric."""

    estimates: list[Estimate] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Sides:
    """What a metric is computed from.

    Args:
        samples: The samples: `features` [N, D], `statistics`, `labels`, `scores`.
        reference: The reference, seen by the same extractor.
        options: Options of the metrics.
        training: The images that the model was trained on, where they are given.
    """

    samples: Summary
    reference: Summary
    options: MetricOptions
    training: Summary | None
    manifold: dict[str, Estimate] = field(default_factory=dict)  # precision, recall, density, coverage share distances


class MetricUnavailable(MetricError):
    """A metric cannot be computed from these two sides; the text says why."""


class _Inapplicable(MetricUnavailable):
    """An extractor does not have this metric at all, which needs no word unless the metric was chosen by name."""


Compute = Callable[[Sides], "Sequence[Estimate] | Estimate | float"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Describes a metric: see `register_metric`."""

    name: str
    description: str
    compute: Compute
    default: bool = False
    higher_is_better: bool = False

    def __str__(self) -> str:
        return self.description


def register_metric(
    name: str, compute: Compute, *, description: str = "", default: bool = False, higher_is_better: bool = False
) -> Metric:
    """Makes a metric available by name in `evaluate`, `sweep` and on the command line.

    A package can also offer one through an entry point of the group "undiffuse.metrics", which refers to `compute` or
    to a `Metric`.

    Args:
        name: Name to choose the metric by.
        compute: Function of both `Sides` that returns an `Estimate`, several of them, or a number. It raises
            `MetricUnavailable` if these sides lack what it needs.
        description: What the metric measures, in a few words.
        default: Computes the metric also where no metrics are chosen.
        higher_is_better: Whether larger values are better, for sorting and for the best weights of a training run.

    Returns:
        The registered metric.

    Raises:
        ValueError: The name is empty or belongs to another metric.

    Example:
        def brightness(sides: Sides) -> float:
            return float(sides.samples.features.mean() - sides.reference.features.mean())

        register_metric("brightness", brightness, description="difference of the mean features")
    """
    if not name or "," in name or name in METRICS:
        raise ConfigError("name", f"{name!r} is empty, contains a comma, or is the name of another metric")
    found = Metric(
        name=name, description=description or name, compute=compute, default=default, higher_is_better=higher_is_better
    )
    METRICS[name] = found
    return found


def find_metrics(names: Sequence[str]) -> list[Metric]:
    """Returns the metrics of these names in the order of `METRICS`, each once.

    Raises:
        MetricError: A name that neither this package nor an installed one offers; the text lists all names.
    """
    for name in names:
        if name not in METRICS:
            offered = load_plugin(ENTRY_POINTS, name)
            if isinstance(offered, Metric):
                METRICS[name] = replace(offered, name=name)
            elif offered is not None:
                register_metric(name, offered)
    if unknown := [name for name in names if name not in METRICS]:
        known = "\n".join(f"  {name:14}{metric.description}" for name, metric in METRICS.items())
        raise MetricError(f"there is no metric {', '.join(unknown)}; there are\n{known}")
    return [metric for name, metric in METRICS.items() if name in names]


_RISING = ("precision", "recall", "density", "coverage", "IS", "accuracy", "Vendi", "authentic")


def higher_is_better(estimate: Estimate | str) -> bool:
    """Whether larger values of a metric are better, by the estimate or by its name alone."""
    if isinstance(estimate, Estimate):
        known = estimate.settings.get("higher_is_better")
        return higher_is_better(estimate.name) if known is None else bool(known)
    metric = METRICS.get(estimate.partition(" (")[0])
    return estimate.startswith(_RISING) if metric is None else metric.higher_is_better


def compute_metrics(
    samples: Summary,
    reference: Summary,
    metrics: Sequence[str] | None = None,
    options: MetricOptions | None = None,
    *,
    training: Summary | None = None,
    on_metric: Callable[[str], None] | None = None,
) -> Evaluation:
    """Computes metrics of samples against a reference, both seen by one extractor.

    Args:
        samples: Summary of the samples.
        reference: Summary of the reference.
        metrics: Names of `METRICS`; None computes the default ones that these sides permit. A metric that was chosen by
            name and cannot be computed is an error; a default one is noted in `skipped`.
        options: Options of the metrics.
        training: Images that the model was trained on, for "memorisation" (the reference is then held-out images).
        on_metric: Called with the name of each metric before it is computed.

    Raises:
        MetricError: Unknown names, sides that were prepared differently, or a chosen metric that cannot be computed.
    """
    options = options or MetricOptions()
    wanted = [name for name, metric in METRICS.items() if metric.default] if metrics is None else list(metrics)
    if metrics is None and training is not None:
        wanted.append("memorisation")
    if metrics is None and samples.card.protocol == "cmmd":  # the features that CMMD is defined for
        wanted.append("cmmd")
    chosen = find_metrics(wanted)
    check_same_protocol(samples.card, reference.card)
    if samples.spatial is not None and reference.spatial is not None:
        check_same_protocol(samples.spatial_card, reference.spatial_card)
    sides = Sides(samples, reference, options, training)
    out = Evaluation()
    notes = _notes(samples, reference)
    for metric in chosen:
        if on_metric is not None:
            on_metric(metric.name)
        begin = time.perf_counter()
        try:
            found = _estimates(metric, sides)
        except MetricUnavailable as reason:
            if metrics is not None:
                raise MetricError(f"{metric.name} ({metric.description}) cannot be computed: {reason}") from None
            if not isinstance(reason, _Inapplicable):
                out.skipped[metric.name] = str(reason)
            continue
        out.seconds[metric.name] = time.perf_counter() - begin
        out.estimates += [estimate.with_warnings(notes) for estimate in found]
    return out


def _estimates(metric: Metric, sides: Sides) -> list[Estimate]:
    """The values of a metric as estimates; those of a registered metric carry which way is better."""
    found = metric.compute(sides)
    if isinstance(found, Sequence):
        estimates = list(found)
    elif isinstance(found, Estimate):
        estimates = [found]
    else:
        n, m = (0 if s.features is None else len(s.features) for s in (sides.samples, sides.reference))
        estimates = [Estimate(name=metric.name, value=float(found), n=n, n_reference=m, card=sides.samples.card)]
    if metric.name in _OWN:
        return estimates
    better = {"higher_is_better": metric.higher_is_better}
    return [replace(estimate, settings={**better, **estimate.settings}) for estimate in estimates]


def _notes(samples: Summary, reference: Summary) -> list[str]:
    notes = [f"samples: {text}" for text in samples.warnings]
    notes += [f"reference: {text}" for text in reference.warnings]
    ours, theirs = samples.about.get("sha256"), reference.about.get("sha256")
    if ours is not None and ours == theirs:
        notes.append("samples and reference are the same images")
    return notes


def _features(side: Summary, whose: str) -> Tensor:
    if side.features is None:
        raise MetricUnavailable(f"the {whose} has statistics only, no features of single images")
    return side.features


def _both(samples: Summary, reference: Summary, need: int = 2) -> tuple[Tensor, Tensor]:
    x, y = _features(samples, "samples' file"), _features(reference, "reference")
    for features, whose in ((x, "samples"), (y, "reference images")):
        if len(features) < need:
            raise MetricUnavailable(f"{len(features)} {whose}, at least {need} are needed")
    return x, y


def _frechet(c: Sides) -> list[Estimate]:
    if c.samples.statistics is None or c.reference.statistics is None:
        raise MetricUnavailable("a covariance needs at least 2 images on each side")
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


def _spatial(c: Sides) -> list[Estimate]:
    if c.samples.spatial_card is None:
        raise _Inapplicable("this extractor has no spatial features; the 2015 Inception has")
    if c.samples.spatial is None or c.reference.spatial is None:
        raise MetricUnavailable("one side has no spatial statistics")
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


def _infinity(c: Sides) -> list[Estimate]:
    features = _features(c.samples, "samples' file")
    if c.reference.statistics is None or len(features) < 20:
        raise MetricUnavailable("an extrapolation needs at least 20 samples and a reference with statistics")
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


def _score(c: Sides) -> list[Estimate]:
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


def _manifold(c: Sides) -> dict[str, Estimate]:
    if not c.manifold:
        x, y = _both(c.samples, c.reference, max(c.options.k, c.options.k_density) + 1)
        c.manifold = manifold_metrics(
            x, y, k=c.options.k, k_density=c.options.k_density, precision=c.options.distances, card=c.samples.card
        )
    return c.manifold


def _precision_recall(c: Sides) -> list[Estimate]:
    return [_manifold(c)[name] for name in ("precision", "recall")]


def _density_coverage(c: Sides) -> list[Estimate]:
    return [_manifold(c)[name] for name in ("density", "coverage")]


def _kernel(c: Sides) -> list[Estimate]:
    x, y = _both(c.samples, c.reference)
    if c.options.kid_subset is None:
        return [kid(x, y, card=c.samples.card)]
    return [kid_subsets(x, y, size=c.options.kid_subset, seed=c.options.seed, card=c.samples.card)]


def _cmmd(c: Sides) -> list[Estimate]:
    x, y = _both(c.samples, c.reference)
    return [cmmd(x, y, card=c.samples.card)]


def _two_sample(c: Sides) -> list[Estimate]:
    x, y = _both(c.samples, c.reference, 8)
    return [c2st(x, y, seed=c.options.seed, card=c.samples.card)]


def _vendi(c: Sides) -> list[Estimate]:
    score = VendiScore(c.options.vendi_order, card=c.samples.card)
    return [score.update(_features(c.samples, "samples' file")).compute()]


def _accuracy(c: Sides) -> list[Estimate]:
    if c.samples.labels is None:
        raise _Inapplicable("the samples have no classes")
    scores = torch.cat(_all_scores(c.samples))
    if c.samples.label_names is None or len(c.samples.label_names) != scores.shape[1]:
        known = 0 if c.samples.label_names is None else len(c.samples.label_names)
        raise _Inapplicable(f"the samples have {known} classes, the extractor {scores.shape[1]}")
    found = ClassAccuracy(card=c.samples.card).update(scores, c.samples.labels).compute()
    return [replace(found, name=f"accuracy ({c.samples.card.distance.removeprefix('FD-')})")]


def _memorisation(c: Sides) -> list[Estimate]:
    if c.training is None:
        raise MetricUnavailable("the images that the model was trained on are not given (training)")
    check_same_protocol(c.samples.card, c.training.card)
    x, y = _features(c.samples, "samples' file"), _features(c.training, "training set")
    found = memorisation(x, y, c.reference.features, precision=c.options.distances, card=c.samples.card)
    return list(found.values())


_UP = ("is", "pr", "dc", "vendi", "accuracy")
METRICS: dict[str, Metric] = {
    name: Metric(name=name, description=text, compute=compute, default=default, higher_is_better=name in _UP)
    for name, (text, compute, default) in {
        "fd": ("Frechet distance of the features: FID for the 2015 Inception", _frechet, True),
        "sfd": ("Frechet distance of the spatial features: sFID", _spatial, True),
        "is": ("Inception Score of the extractor's classes", _score, True),
        "pr": ("improved precision and recall", _precision_recall, True),
        "dc": ("density and coverage", _density_coverage, True),
        "kid": ("kernel distance (KID), unbiased", _kernel, True),
        "cmmd": ("maximum mean discrepancy with a Gaussian kernel (CMMD for CLIP)", _cmmd, False),
        "c2st": ("classifier two-sample test: share of images whose origin is recognised", _two_sample, False),
        "vendi": ("Vendi score, the effective number of different samples", _vendi, False),
        "accuracy": ("share of samples that the extractor's classifier takes for their class", _accuracy, True),
        "fd-infinity": ("Frechet distance extrapolated to infinitely many samples", _infinity, False),
        "memorisation": ("nearest neighbours among training images (needs them)", _memorisation, False),
    }.items()
}
"""All metrics by name, in the order in which they are computed."""
_OWN = frozenset(METRICS)
