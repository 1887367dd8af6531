"""Computes metrics of generated images: from features to numbers with errors and provenance.

An extractor (`undiffuse.metrics.extractors`) turns uint8 images into features. Accumulators collect features in batches
(`update`), also from other processes (`merge`), and return an `Estimate` (`compute`). Functions do the same for
features that are in memory as a whole.
"""

from undiffuse.metrics.accuracy import ClassAccuracy
from undiffuse.metrics.estimate import Card, Estimate, Influence, MetricError, check_same_protocol, paired_error
from undiffuse.metrics.frechet import (
    FrechetDistance,
    frechet_bias,
    frechet_distance,
    frechet_estimate,
    frechet_infinity,
    frechet_influence,
    frechet_two_halves,
)
from undiffuse.metrics.inception_score import InceptionScore
from undiffuse.metrics.kernel_distance import KernelDistance, cmmd, kid, kid_subsets
from undiffuse.metrics.memorisation import memorisation
from undiffuse.metrics.moments import FeatureStore, Moments, Statistics
from undiffuse.metrics.neighbours import kth_neighbour, nearest
from undiffuse.metrics.precision_recall import PrecisionRecall, manifold_metrics
from undiffuse.metrics.two_sample import c2st
from undiffuse.metrics.vendi import VendiScore

__all__ = [
    "Card",
    "ClassAccuracy",
    "Estimate",
    "FeatureStore",
    "FrechetDistance",
    "Influence",
    "InceptionScore",
    "KernelDistance",
    "MetricError",
    "Moments",
    "PrecisionRecall",
    "Statistics",
    "VendiScore",
    "c2st",
    "check_same_protocol",
    "cmmd",
    "frechet_bias",
    "frechet_distance",
    "frechet_estimate",
    "frechet_infinity",
    "frechet_influence",
    "frechet_two_halves",
    "kid",
    "kid_subsets",
    "kth_neighbour",
    "manifold_metrics",
    "memorisation",
    "nearest",
    "paired_error",
]
