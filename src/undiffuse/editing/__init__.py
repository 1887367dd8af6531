"""Editing images with a diffusion model: filling holes, restoring, varying, translating between classes.

`inpaint`, `restore`, `vary` and `translate` take images and give images, each in one call. Underneath, what was
observed of an image is a linear operator (one a file, with its adjoint); a way to sample given the observation is a
guidance (`ObservationGuidance`), a solver around a solver (`DPS`), or a loop of its own (`repaint`, `sdedit`, `ddib`).
To add an operator, write a class that follows `Operator`.
"""

from undiffuse.editing.blur import Blur
from undiffuse.editing.downsampling import Downsampling
from undiffuse.editing.dps import DPS
from undiffuse.editing.edit import Edited, EditInputs, EditOptions, EditResult, edit
from undiffuse.editing.inpainting import inpaint
from undiffuse.editing.mask import Mask, masks_for, read_mask, rectangle
from undiffuse.editing.observation import OBSERVED, ObservationGuidance
from undiffuse.editing.operators import Operator
from undiffuse.editing.repaint import repaint
from undiffuse.editing.restoration import restore
from undiffuse.editing.translation import ddib, translate
from undiffuse.editing.variation import sdedit, shortened, steps_for, vary

__all__ = [
    "DPS", "OBSERVED", "Blur", "Downsampling", "EditInputs", "EditOptions", "EditResult", "Edited", "Mask",
    "ObservationGuidance", "Operator", "ddib", "edit", "inpaint", "masks_for", "read_mask", "rectangle", "repaint",
    "restore", "sdedit", "shortened", "steps_for", "translate", "vary",
]  # fmt: skip
