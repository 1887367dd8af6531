"""Reads what was drawn with a brush: masks for inpainting, and maps that a model is conditioned on."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from undiffuse.util.errors import ConfigError

if TYPE_CHECKING:
    from undiffuse.studio.sessions import Studio

__all__ = ["canvas", "drawn_map", "drawn_mask", "map_colours", "png_bytes"]

CANVAS = 512
"""Pixels of the longer side of a canvas, about."""
_COVERED = 0.25
"""Share of a pixel of the model's image that has to be painted for the pixel to count."""
_COLOURS = (
    "#000000", "#ffffff", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#f0e442", "#56b4e9", "#e69f00", "#7f7f7f",
    "#8b4513", "#4b0082",
)  # fmt: skip


def map_colours(values: Sequence[int]) -> list[str]:
    """Returns a colour "#rrggbb" for each class of a map; [] for a picture that is no map."""
    out = list(_COLOURS[: len(values)])
    while len(out) < len(values):  # more classes than named colours: spread over the cube
        k = len(out)
        out.append(f"#{(k * 67) % 256:02x}{(k * 131) % 256:02x}{(k * 197) % 256:02x}")
    return out


def png_bytes(image: np.ndarray) -> bytes:
    """Returns an image uint8 [H, W], [H, W, 1] or [H, W, 3] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def canvas(image: np.ndarray) -> np.ndarray:
    """Enlarges an image uint8 [H, W, C] in whole steps to about `CANVAS` pixels; RGB."""
    scale = max(1, CANVAS // max(image.shape[:2]))
    rgb = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]
    return rgb.repeat(scale, axis=0).repeat(scale, axis=1)


def drawn_mask(drawn: Mapping[str, Any] | None, size: tuple[int, int]) -> np.ndarray:
    """Returns where something was painted on a canvas.

    Args:
        drawn: What the editor gives: "background" and "layers", arrays [h, w, 4] (RGBA).
        size: (height, width) of the model's images.

    Returns:
        uint8 [height, width], 255 where to fill.

    Raises:
        ConfigError: Nothing was painted ("mask").
    """
    layers = [np.asarray(layer) for layer in (drawn or {}).get("layers") or []]
    painted = [layer[..., 3] for layer in layers if layer.ndim == 3 and layer.shape[2] == 4]
    if not painted or not any(alpha.any() for alpha in painted):
        raise ConfigError("mask", "is missing: paint over the part to fill, or give a rectangle")
    alpha = np.maximum.reduce([(layer > 0).astype(np.float32) for layer in painted])
    share = Image.fromarray(alpha).resize((size[1], size[0]), Image.Resampling.BOX)
    return np.where(np.asarray(share) >= _COVERED, 255, 0).astype(np.uint8)


def drawn_map(studio: Studio, drawn: Mapping[str, Any] | None, picture: Mapping[str, Any] | None) -> Path:
    """Keeps a drawing as the picture that a model is conditioned on.

    Args:
        studio: Where it is kept.
        drawn: What the editor gives, with "composite" [h, w, 3 or 4].
        picture: "kind" ("map" or "image"), "values" of a map's classes, and "size" (height, width).

    Raises:
        ConfigError: The model takes no picture, or nothing is drawn ("condition").
    """
    if picture is None:
        raise ConfigError("condition", "is not possible: the model takes no picture")
    if not drawn or drawn.get("composite") is None:
        raise ConfigError("condition", "is missing: draw something")
    pixels = np.asarray(drawn["composite"])[..., :3]
    height, width = picture["size"]
    if picture["kind"] != "map":
        shrunk = Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX)
        return studio.keep(png_bytes(np.asarray(shrunk)), ".png")
    colours = np.array([list(bytes.fromhex(c[1:])) for c in map_colours(picture["values"])], dtype=np.int32)
    small = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), dtype=np.int32)
    nearest = ((small[:, :, None] - colours) ** 2).sum(-1).argmin(-1)
    values = np.asarray(picture["values"])[nearest]
    return studio.keep(png_bytes(values.astype(np.uint8)), ".png")
