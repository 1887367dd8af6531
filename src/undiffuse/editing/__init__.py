"""Editing images with a diffusion model: filling holes, restoring, varying, translating between classes.

`inpaint`, `restore`, `vary` and `translate` take images and give images, each in one call; they are imported when they
are first used. Underneath, what was observed of an image is a linear operator (one a file, with its adjoint); a way to
sample given the observation is a guidance (`ObservationGuidance`), a solver around a solver (`DPS`), or a loop
(`repaint`, `sdedit`, `ddib`). To add an operator, write a class that follows `Operator`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from undiffuse.editing.blur import Blur
from undiffuse.editing.ddib import ddib
from undiffuse.editing.downsampling import Downsampling
from undiffuse.editing.dps import DPS
from undiffuse.editing.mask import Mask, masks_for, read_mask, rectangle
from undiffuse.editing.observation import OBSERVED, ObservationGuidance
from undiffuse.editing.operators import Operator
from undiffuse.editing.repaint import repaint
from undiffuse.editing.sdedit import sdedit, shortened, steps_for

if TYPE_CHECKING:
    from undiffuse.editing.base import Edited, EditInputs, EditOptions, EditResult, edit
    from undiffuse.editing.inpainting import inpaint
    from undiffuse.editing.restoration import restore
    from undiffuse.editing.translation import translate
    from undiffuse.editing.variation import vary

__all__ = [
    "DPS", "OBSERVED", "Blur", "Downsampling", "EditInputs", "EditOptions", "EditResult", "Edited", "Mask",
    "ObservationGuidance", "Operator", "ddib", "edit", "inpaint", "masks_for", "read_mask", "rectangle", "repaint",
    "restore", "sdedit", "shortened", "steps_for", "translate", "vary",
]  # fmt: skip

_LATER = {
    **dict.fromkeys(("EditInputs", "EditOptions", "EditResult", "Edited", "edit"), "base"),
    "inpaint": "inpainting", "restore": "restoration", "translate": "translation", "vary": "variation",
}  # fmt: skip
"""Names that need files, pictures and pipelines, each with its module."""


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used (PEP 562)."""
    if name not in _LATER:
        raise AttributeError(f"module 'undiffuse.editing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"undiffuse.editing.{_LATER[name]}"), name)
