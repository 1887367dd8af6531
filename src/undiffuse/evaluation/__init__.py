"""Evaluation of samples against a reference: one call, sweeps, and the parts they are made of.

evaluator  `evaluate`: both sides from whatever they are, all metrics, a report
sweeps     several strengths of guidance          frontier_sweep  several solvers and budgets of network calls
compute    metrics by name, own ones too          report     values with their provenance, as JSON
inputs     the two sides                          images     stored ones, arrays, datasets, a model's samples
features   one pass, shared among processes       summary    one side's features and statistics; reference files
"""

from undiffuse.evaluation.arrays import ArrayImages, DatasetImages
from undiffuse.evaluation.cache import FeatureCache
from undiffuse.evaluation.comparison import Comparison, compare
from undiffuse.evaluation.compute import (
    METRICS,
    Evaluation,
    Metric,
    MetricOptions,
    MetricUnavailable,
    Sides,
    compute_metrics,
    find_metrics,
    higher_is_better,
    register_metric,
)
from undiffuse.evaluation.evaluator import ReferenceEvaluator, evaluate, make_reference
from undiffuse.evaluation.features import Features, extract
from undiffuse.evaluation.frontier_sweep import FrontierSweep, frontier
from undiffuse.evaluation.images import ImageSet, MadeImages, StoredImages, open_images
from undiffuse.evaluation.inputs import EvaluationConfig, EvaluationSet
from undiffuse.evaluation.report import Report
from undiffuse.evaluation.summary import Summary, is_reference, npz_statistics, read_reference, write_reference
from undiffuse.evaluation.sweeps import GuidanceSweep, SweepPoint, sweep

__all__ = [
    "METRICS",
    "ArrayImages",
    "Comparison",
    "DatasetImages",
    "Evaluation",
    "EvaluationConfig",
    "EvaluationSet",
    "FeatureCache",
    "Features",
    "FrontierSweep",
    "GuidanceSweep",
    "ImageSet",
    "MadeImages",
    "Metric",
    "MetricOptions",
    "MetricUnavailable",
    "ReferenceEvaluator",
    "Report",
    "Sides",
    "StoredImages",
    "Summary",
    "SweepPoint",
    "compare",
    "compute_metrics",
    "evaluate",
    "extract",
    "find_metrics",
    "frontier",
    "higher_is_better",
    "is_reference",
    "make_reference",
    "npz_statistics",
    "open_images",
    "read_reference",
    "register_metric",
    "sweep",
    "write_reference",
]
