"""Some pixels are seen, others are not: inpainting. Masks as rectangles, pictures and folders of pictures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.editing.operators import divided
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import join_names

__all__ = ["Mask", "masks_for", "read_mask", "rectangle"]

_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")
"""Formats in which a value of 1 may be an error of black."""


class Mask:
    """A x = x where it is seen, 0 elsewhere. A is its own adjoint, and A A = A.

    `seen`  [1 or B, 1 or C, H, W], bool: True where the image is known, False where it is to be filled. ValueError if
            all of it is known, or nothing in some image.
    """

    def __init__(self, seen: Tensor) -> None:
        if seen.dtype != torch.bool or seen.ndim != 4:
            raise ValueError(
                f"a mask is a bool tensor [1 or B, 1 or C, H, W], True where seen; got {seen.dtype} {list(seen.shape)}"
            )
        if bool(seen.all()):
            raise ValueError("the mask is empty: every pixel is known, and there is nothing to fill")
        if not bool(seen.flatten(1).any(1).all()):
            raise ValueError("the mask covers a whole image: nothing of it is known; sample images instead")
        self.seen = seen
        self.norm = 1.0

    def _of(self, x: Tensor) -> Tensor:
        ours, theirs = self.seen.shape, x.shape
        if ours[-2:] != theirs[-2:] or ours[0] not in (1, theirs[0]) or ours[1] not in (1, theirs[1]):
            raise ValueError(f"a mask of {list(ours)} does not fit images of {list(theirs)}: it must have their size")
        return self.seen.to(x.device)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self._of(x), x, 0.0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def solve(self, y: Tensor, spread: Tensor, noise: float) -> Tensor:
        return divided(y, self._of(y).to(y.dtype), spread, noise)

    def merged(self, known: Tensor, x: Tensor) -> Tensor:
        """`known` where it is seen, x elsewhere, [B, C, H, W]."""
        return torch.where(self._of(x), known, x)


def rectangle(hole: Sequence[int], size: Sequence[int]) -> Tensor:
    """Makes a mask with a rectangular hole.

    Args:
        hole: Top, left, height and width of the part to fill, in pixels.
        size: (height, width) of the images.

    Returns:
        bool [1, 1, H, W], True where the image is known.

    Raises:
        ConfigError: The hole reaches beyond the images ("hole").
    """
    top, left, height, width = hole
    if min(hole) < 0 or not height or not width or top + height > size[0] or left + width > size[1]:
        raise ConfigError(
            "hole",
            f"{','.join(map(str, hole))} (top, left, height, width) reaches beyond the images of {size[0]}x{size[1]} "
            "(height x width)",
        )
    known = torch.ones(1, 1, *size, dtype=torch.bool)
    known[..., top : top + height, left : left + width] = False
    return known


def read_mask(
    path: str | Path,
    size: tuple[int, int],
    *,
    stored: Collection[tuple[int, int]] = (),
    fit: Any = "crop",
    zero_one: list[str] | None = None,
) -> Tensor:
    """Reads a mask from a picture that is white where the image is to be filled, and black elsewhere.

    A picture whose brightest value is 1, as of segmentation masks, is read as 0 and 1.

    Args:
        path: The picture.
        size: (height, width) of the model's images.
        stored: (width, height) of the images as they are stored. A mask of that size is prepared as they are.
        fit: How images are prepared, "crop" or "pad".
        zero_one: Receives the path if the values are 0 and 1.

    Returns:
        bool [1, 1, H, W], True where the image is known.

    Raises:
        FileNotFoundError: There is no such file.
        ConfigError: It is no picture, has another size, or its brightest value is neither white nor 1 ("mask").
    """
    from PIL import Image

    from undiffuse.data import prepare
    from undiffuse.data.channels import to_mode, values_of
    from undiffuse.data.decoding import describe
    from undiffuse.pictures.png import open_picture

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with open_picture(path) as opened:
            opened.load()
            picture, lossy = opened.copy(), opened.format in _LOSSY
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError("mask", f"{path} is not a picture that can be read ({error})") from error
    height, width = size
    if picture.size != (width, height) and set(stored) != {picture.size}:
        theirs = join_names(("x".join(map(str, one)) for one in sorted(set(stored))), 3) or "of other sizes"
        raise ConfigError(
            "mask",
            f"{path} is {picture.width}x{picture.height} (width x height), the images are {theirs}, the model's "
            f"{width}x{height}: expected a mask of one of these sizes, which all images have",
        )
    depth = describe(picture).depth
    values = np.asarray(to_mode(picture, 1, background=0)) if depth == "8" else values_of(picture)[..., 0]
    white, brightest = 255 if depth == "8" else 65535, float(values.max())
    if brightest == 1 and not lossy:
        from PIL import Image

        picture = Image.fromarray(np.where(values >= 0.5, 255, 0).astype(np.uint8))
        if zero_one is not None:
            zero_one.append(str(path))
    elif 0 < brightest <= white // 2 or depth in ("int", "float"):
        more = f": multiply its values by {white // int(brightest)}" if 1 < brightest <= white // 2 else ""
        raise ConfigError(
            "mask",
            f"{path} has a brightest value of {brightest:g}, but the part to fill must be white ({white}), or 1 where "
            f"all else is 0{more}",
        )
    pixels = prepare(picture, size, 1, fit=fit, background=0, pad_value=0)
    return torch.from_numpy(pixels <= 127).permute(2, 0, 1)[None]


def masks_for(names: Sequence[str], folder: str | Path) -> list[Path]:
    """Finds the mask of each image in a folder, by the image's name; endings may differ.

    Args:
        names: The images' names, relative to their own folder.
        folder: The folder of masks, with the same sub-folders or none.

    Returns:
        A mask for each image.

    Raises:
        ConfigError: Some image has no mask, or several ("mask").
    """
    from undiffuse.data import IMAGE_SUFFIXES

    root = Path(folder)
    found: dict[str, list[Path]] = {}
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(file.relative_to(root).with_suffix("").as_posix(), []).append(file)
    stems = [PurePosixPath(name).with_suffix("") for name in names]
    bare = [stem.name for stem in stems]
    flat = len(set(bare)) == len(bare)
    chosen = [found.get(stem.as_posix()) or (found.get(stem.name) if flat else None) or [] for stem in stems]
    for problem, wrong in (
        ("no mask for", [name for name, files in zip(names, chosen, strict=True) if not files]),
        ("several masks for", [name for name, files in zip(names, chosen, strict=True) if len(files) > 1]),
    ):
        if wrong:
            raise ConfigError("mask", f"{folder} has {problem} {join_names(wrong, 3)}; masks are named as the images")
    return [files[0] for files in chosen]
