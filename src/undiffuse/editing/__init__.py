"""Editing images with a diffusion model: filling holes, restoring, varying, translating between classes.

What was observed of an image is a linear operator (one a file, with its adjoint); a way to sample given the observation
is a guidance (`ObservationGuidance`), a solver around a solver (`DPS`), or a loop of its own (`repaint`). To add an
operator, write a class that follows `Operator`.
"""

from undiffuse.editing.blur import Blur
from undiffuse.editing.downsampling import Downsampling
from undiffuse.editing.dps import DPS
from undiffuse.editing.mask import Mask
from undiffuse.editing.observation import OBSERVED, ObservationGuidance
from undiffuse.editing.operators import Operator
from undiffuse.editing.repaint import repaint
from undiffuse.editing.translation import translate
from undiffuse.editing.variation import shortened, steps_for, vary

__all__ = [
    "DPS", "OBSERVED", "Blur", "Downsampling", "Mask", "ObservationGuidance", "Operator", "repaint", "shortened",
    "steps_for", "translate", "vary",
]  # fmt: skip
