"""Turns the options of the evaluating commands into the library's arguments."""

from __future__ import annotations

import argparse
from typing import Any

from undiffuse.cli import options
from undiffuse.config import SamplerConfig
from undiffuse.evaluation import MetricOptions

OPTION_NAMES = {
    "classes": "class",
    "value_range": "range",
    "extractor_weights": "weights",
    "protocol": "reference-protocol",
}
"""Arguments of the library whose options have another name."""
_SAME = (
    "extractor", "grey", "metrics", "count", "reference_count", "size", "fit", "labels", "on_broken", "value_range",
    "seed", "classes", "condition", "edges", "batch", "cache", "keep_samples",
)  # fmt: skip


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of `EvaluationConfig` from parsed options; a command may lack some of them."""
    found = {name: getattr(args, name) for name in _SAME if hasattr(args, name)}
    found |= {"extractor_weights": args.weights, "protocol": getattr(args, "reference_protocol", None)}
    if hasattr(args, "distances"):
        found["options"] = MetricOptions(distances=args.distances, chunk=args.chunk)
    return found


def sampler_config(args: argparse.Namespace, model: str, **changes: Any) -> SamplerConfig:
    """Returns the sampler's settings. In these commands --weights belongs to the extractor, not to the model."""
    given = {**vars(args), "model": model, "weights": args.model_weights, **changes}
    return options.sampler_config(argparse.Namespace(**given))
