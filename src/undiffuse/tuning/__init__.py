"""Noise levels chosen for a model and a number of steps, so that a solver errs least.

search   the levels, by dynamic programming over measured errors
cache    the levels of a pipeline, from the cache where they were chosen before; the file of `undiffuse tune-steps`
"""

from undiffuse.tuning.search import FINE, NAMED, Batch, Measured, Tuned, optimised, tune

__all__ = ["FINE", "NAMED", "Batch", "Measured", "Tuned", "optimised", "tune"]
