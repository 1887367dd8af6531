"""Sampling methods, one a file: how to go from a level of a chain to the next cleaner one.

A solver holds no loop, prints nothing and knows no network: it asks `denoise(x, level) -> Prediction`, and draws
noise by calling `draw()`. To add one: write a file here with a class that follows `Solver`, export it
here; the command line offers it once it stands in `cli/sampler.py: DEFAULT_STEPS` and `Sampler.load`.
"""

from undiffuse.solvers.ancestral import Ancestral
from undiffuse.solvers.base import Denoise, Draw, Solver
from undiffuse.solvers.ddim import DDIM, ddim_move

__all__ = ["DDIM", "Ancestral", "Denoise", "Draw", "Solver", "ddim_move"]
