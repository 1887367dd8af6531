"""Likelihood of images in bits per dimension: by the variational bound, and by the probability flow.

`measure` measures a whole data set; the other functions measure a batch.
"""

from __future__ import annotations

from undiffuse.likelihood.bound import Bound, bits_per_dim, mean_and_error, prior_bits
from undiffuse.likelihood.flow import Density, FlowBits, FlowConfig, flow_bits_per_dim, flow_density, flow_ends
from undiffuse.likelihood.measurement import measure
from undiffuse.likelihood.report import LikelihoodReport

__all__ = [
    "Bound", "Density", "FlowBits", "FlowConfig", "LikelihoodReport", "bits_per_dim", "flow_bits_per_dim",
    "flow_density", "flow_ends", "mean_and_error", "measure", "prior_bits",
]  # fmt: skip
