"""Distillation without data: a source of blank images, which only count and carry the classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from undiffuse.data.array_source import ArraySource
from undiffuse.models import DiffusionModel
from undiffuse.nets import conditions_of
from undiffuse.util.errors import ConfigError

__all__ = ["NOISE", "BlankImages", "preparation_of"]

NOISE = "noise"
"""What a run without data notes as its data."""
_COUNT = 4096


class BlankImages(ArraySource):
    """Black images of a model's size, every class equally often.

    Args:
        model: The model that is distilled.

    Raises:
        ConfigError: The model is conditioned on more than a class, which only data can give.
    """

    def __init__(self, model: DiffusionModel) -> None:
        more = sorted(conditions_of(model.net) - {"y"})
        if more:
            raise ConfigError("data", f"is needed: the model is conditioned on {', '.join(more)}")
        channels, height, width = model.image_shape
        classes = model.num_classes
        count = _COUNT if classes is None else classes * -(-_COUNT // classes)
        names = None if classes is None else model.labels or [str(k) for k in range(classes)]
        pixels = np.broadcast_to(np.zeros((1, 1, 1, 1), np.uint8), (count, height, width, channels))
        labels = None if classes is None else np.arange(count, dtype=np.int64) % classes
        super().__init__(pixels, labels, names, where="no data: noise alone")

    def _content_hash(self) -> bytes:
        return repr(self.images.shape).encode()


def preparation_of(model: DiffusionModel) -> dict[str, Any]:
    """Returns fields of `TrainRequest` by which a student without data notes how its teacher's images are prepared."""
    config = (model.manifest.get("data") or {}).get("config") or {}
    return {name: config[name] for name in ("fit", "flip") if config.get(name) is not None}
