"""Evaluation from end to end: sets of images, one pass of extractors over them, references, metrics and reports.

images     stored or made on demand            features   one pass, shared among processes, cached
summary    one side's statistics and features; reference files
compute    which metrics there are             report     values with cards, as JSON
"""

from undiffuse.evaluation.cache import FeatureCache
from undiffuse.evaluation.compute import DEFAULT_METRICS, METRICS, Evaluation, MetricOptions, evaluate
from undiffuse.evaluation.features import Features, extract
from undiffuse.evaluation.images import ImageSet, MadeImages, StoredImages, open_images
from undiffuse.evaluation.report import Report
from undiffuse.evaluation.summary import Summary, is_reference, npz_statistics, read_reference, write_reference

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "Evaluation",
    "FeatureCache",
    "Features",
    "ImageSet",
    "MadeImages",
    "MetricOptions",
    "Report",
    "StoredImages",
    "Summary",
    "evaluate",
    "extract",
    "is_reference",
    "npz_statistics",
    "open_images",
    "read_reference",
    "write_reference",
]
