"""Masks from pictures: one for all images, or one for each image from a folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from undiffuse.data.channels import to_mode, upright
from undiffuse.data.decoding import IMAGE_SUFFIXES, Picture, decode
from undiffuse.data.file_index import FileIndex
from undiffuse.data.images import prepare

__all__ = ["masks_for", "read_mask", "read_masks"]

_SUFFIXES = ("", "_mask", "-mask", "_seg", "-seg", "_segmentation", "_hole")
"""What may follow the name of an image in the name of its mask."""
_WHITE = 128


def read_mask(
    path: str | os.PathLike[str],
    size: tuple[int, int],
    image_sizes: Collection[tuple[int, int]] = (),
    fit: Literal["crop", "pad"] = "crop",
) -> Tensor:
    """Reads a mask from a picture: white (128 and more of 255) is to be filled, black is known.

    A mask of the values 0 and 1 only (as segmentation masks are, also as a palette) is to be filled where it is 1.

    Args:
        path: The picture.
        size: (height, width) of the model's images.
        image_sizes: (width, height) of the images as they are stored. A mask of a size that all images have is prepared
            as the images are.
        fit: How the images are prepared.

    Returns:
        bool [1, 1, height, width], True where the image is known.

    Raises:
        ValueError: The picture cannot be read, has another size, or is nowhere white.
        FileNotFoundError: There is no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with open(file, "rb") as opened:
            picture = decode(opened)
        values = _values(picture)
    except Exception as error:  # decoders have many words for a damaged file
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    height, width = size
    own = (values.shape[1], values.shape[0])
    if own != (width, height) and set(image_sizes) != {own}:
        theirs = sorted(set(image_sizes) | {(width, height)})
        named = ", ".join(f"{w}x{h}" for w, h in theirs[:4]) + (", ..." if len(theirs) > 4 else "")
        raise ValueError(
            f"the mask {path} is {own[0]}x{own[1]} (width x height), and the images are {named}: give a mask of the "
            "model's size, or of the size that all images have"
        )
    brightest = int(values.max())
    if brightest == 1:
        values = values * 255
    elif brightest < _WHITE:
        raise ValueError(
            f"nothing of the mask {path} is white: its brightest value is {brightest} of 255, and what has "
            f"{_WHITE} or more is filled. A mask of classes needs 0 or 255 in each pixel, or 0 and 1"
        )
    levels = prepare(values.astype(np.uint8), size, 1, fit=fit, background=0, pad_value=0)
    return torch.from_numpy(levels < _WHITE).permute(2, 0, 1)[None]


def read_masks(
    paths: Sequence[str | os.PathLike[str]],
    size: tuple[int, int],
    image_sizes: Sequence[tuple[int, int]] = (),
    fit: Literal["crop", "pad"] = "crop",
) -> Tensor:
    """Reads one mask for each image, see `read_mask`.

    Args:
        paths: The masks, in the order of the images.
        size: (height, width) of the model's images.
        image_sizes: (width, height) of each image as it is stored, in their order; () if the masks are of the model's
            size.
        fit: How the images are prepared.

    Returns:
        bool [N, 1, height, width], True where the image is known.
    """
    sizes: list[Collection[tuple[int, int]]] = [(one,) for one in image_sizes] or [()] * len(paths)
    masks = [read_mask(path, size, own, fit) for path, own in zip(paths, sizes, strict=True)]
    return torch.cat(masks)


def masks_for(names: Sequence[str], folder: str | os.PathLike[str]) -> list[Path]:
    """Finds the mask of each image in a folder, by its name.

    The mask of ``cat/001.jpg`` is ``cat/001.png`` (any ending) or ``001.png``, or one of these with ``_mask``,
    ``-mask``, ``_seg``, ``-seg``, ``_segmentation`` or ``_hole`` before the ending.

    Args:
        names: The images, relative to their folder.
        folder: The masks, also in sub-folders.

    Returns:
        A path for each image, in their order.

    Raises:
        ValueError: Images without a mask; up to three are named.
        FileNotFoundError: There is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = sorted(
        file.relative_to(root).as_posix()
        for file in root.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in file.parts[-1:])
    )
    index = FileIndex(files)
    found: list[Path] = []
    missing: list[str] = []
    for name in names:
        stem = name[: len(name) - len(Path(name).suffix)].replace("\\", "/")
        tries = [form + suffix for form in (stem, stem.rpartition("/")[2]) for suffix in _SUFFIXES]
        number = next((k for k in map(index.find, tries) if k is not None), None)
        if number is None:
            missing.append(name)
        else:
            found.append(root / files[number])
    if missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(
            f"{folder} has no mask for {len(missing):,} of {len(names):,} images ({named}): the mask of an image has "
            f"its name, with any ending; {len(files):,} pictures are there"
        )
    return found


def _values(picture: Picture) -> NDArray[np.int64]:
    """Grey values [H, W] of a mask, 0..255; 0 and 1 where there are no others, whatever the format."""
    if isinstance(picture, Image.Image):
        raw = np.asarray(upright(picture)).astype(np.int64)
        if picture.mode == "P" or (raw.ndim == 2 and int(raw.max()) <= 1 and picture.mode != "1"):
            if raw.max() <= 1:
                return raw
        elif picture.mode.startswith("I;16") and raw.max() <= 255:
            return raw
    elif picture.ndim == 2 or picture.shape[2] == 1:
        raw = picture.reshape(picture.shape[:2]).astype(np.float64)
        if raw.max() <= 255:
            return np.floor(raw).astype(np.int64)
    return np.asarray(to_mode(picture, 1, 0)).astype(np.int64)
