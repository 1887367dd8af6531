"""Models: a network with its process, class names and provenance, loaded from files and by name.

`load_diffusion`, `load_classifier` and `load_model` load one from a file, a run folder or by name.
`save_model` writes one. A file says all that is needed to use it.
"""

from undiffuse.models.files import (
    SHIPPED,
    current_digest,
    load_classifier,
    load_diffusion,
    load_model,
    paired_classifier,
    resolve,
    save_model,
    split_reference,
)
from undiffuse.models.model import ClassifierModel, DiffusionModel
from undiffuse.models.pairing import check_pair

__all__ = [
    "SHIPPED",
    "ClassifierModel",
    "DiffusionModel",
    "check_pair",
    "current_digest",
    "load_classifier",
    "load_diffusion",
    "load_model",
    "paired_classifier",
    "resolve",
    "save_model",
    "split_reference",
]
