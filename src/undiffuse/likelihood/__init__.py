"""Likelihood of images in bits per dimension: by the variational bound, and by the probability flow.

`measure` measures a whole data set, and is imported when it is first used; the other functions measure a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from undiffuse.likelihood.bound import Bound, bits_per_dim, mean_and_error, prior_bits
from undiffuse.likelihood.flow import Density, FlowBits, FlowConfig, flow_bits_per_dim, flow_density, flow_ends
from undiffuse.likelihood.report import LikelihoodReport

if TYPE_CHECKING:
    from undiffuse.likelihood.measurement import measure

__all__ = [
    "Bound", "Density", "FlowBits", "FlowConfig", "LikelihoodReport", "bits_per_dim", "flow_bits_per_dim",
    "flow_density", "flow_ends", "mean_and_error", "measure", "prior_bits",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports `measure`, which needs files, pictures and pipelines, when it is first used (PEP 562)."""
    if name != "measure":
        raise AttributeError(f"module 'undiffuse.likelihood' has no attribute {name!r}")
    from undiffuse.likelihood.measurement import measure

    return measure
