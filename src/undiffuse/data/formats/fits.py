"""FITS files: the planes of the first image, scaled by BSCALE and BZERO as astropy does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.formats.base import Reading, need
from undiffuse.data.formats.slices import Described, holds, sliced
from undiffuse.data.sources import Source

_SUFFIXES = (".fits", ".fit", ".fts", ".fits.gz", ".fits.fz", ".fz")


def _fits(file: Path) -> bool:
    return file.name.lower().endswith(_SUFFIXES)


def recognise(path: Path) -> bool:
    """A file by its ending, or a folder of such files."""
    return path.is_file() or holds(path, _fits)


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The planes of all files."""
    need("astropy.io.fits", "science", str(path))
    source = sliced(path, _fits, _describe, _load, "FITS", reading)
    source.notes.append("rows in the order of the file, of which viewers show the first at the bottom")
    return source


def _image(hdus: Any) -> tuple[Any, int]:
    """(the first image of a file, how many others there are)."""
    images = [hdu for hdu in hdus if getattr(hdu, "is_image", False) and hdu.shape and len(hdu.shape) >= 2]
    if not images:
        raise ValueError("there is no image in it")
    return images[0], len(images) - 1


def _describe(path: Path) -> Described:
    fits: Any = need("astropy.io.fits", "science", str(path))
    with fits.open(path) as hdus:
        hdu, others = _image(hdus)
        shape, header = hdu.shape, hdu.header
        plain = header.get("BITPIX") == 8 and (header.get("BSCALE", 1), header.get("BZERO", 0)) == (1, 0)
        low, high = header.get("DATAMIN"), header.get("DATAMAX")
    count = int(np.prod(shape[:-2], dtype=np.int64))
    declared = (float(low), float(high)) if low is not None and high is not None and high > low else None
    note = f"of files with several images the first is taken ({others} others)" if others else ""
    return Described(count, (shape[-2], shape[-1]), np.dtype(np.uint8 if plain else np.float32), declared, note)


def _load(path: Path) -> NDArray[Any]:
    fits: Any = need("astropy.io.fits", "science", str(path))
    with fits.open(path) as hdus:
        data = np.array(_image(hdus)[0].data)
    data = data.astype(data.dtype.newbyteorder("="))
    return data.reshape(-1, *data.shape[-2:])
