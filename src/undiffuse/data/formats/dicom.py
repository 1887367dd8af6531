"""DICOM files: rescaled values, their range by the stored bits, and pictures as they are seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.formats.base import Reading, need
from undiffuse.data.formats.slices import Described, NoPictureError, holds, sliced
from undiffuse.data.sources import Source

_SUFFIXES = (".dcm", ".dicom", ".ima")


def _fits(file: Path) -> bool:
    return file.name.lower().endswith(_SUFFIXES) or ("." not in file.name and _marked(file))


def recognise(path: Path) -> bool:
    """A file with DICOM's mark, or a folder of files called .dcm, or of files without an ending that have it."""
    if path.is_file():
        return _marked(path)
    return holds(path, _fits)


def _marked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The pictures of all files, every frame of files with several."""
    need("pydicom", "science", str(path))
    return sliced(path, _fits, _describe, _load, "DICOM", reading)


def _describe(path: Path) -> Described:
    pydicom: Any = need("pydicom", "science", str(path))
    header = pydicom.dcmread(path, stop_before_pixels=True)
    if "Rows" not in header or "PixelRepresentation" not in header:
        raise NoPictureError("DICOM files without pixels")
    frames = int(getattr(header, "NumberOfFrames", 1) or 1)
    size = (int(header.Rows), int(header.Columns))
    bits, signed = int(header.BitsStored), int(header.PixelRepresentation) == 1
    slope, intercept = _rescale(header)
    if int(getattr(header, "SamplesPerPixel", 1)) > 1:
        value_range = None if bits == 8 else (0.0, float(2**bits - 1))
        return Described(frames, size, np.dtype(np.uint8 if bits == 8 else np.uint16), value_range, "", 3)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    note = f"{bits} of {int(header.BitsAllocated)} bits are used"
    if getattr(header, "PhotometricInterpretation", "") == "MONOCHROME1":
        note += "; MONOCHROME1 is turned, so that pictures are as they are seen"
    plain = bits == 8 and not signed and (slope, intercept) == (1.0, 0.0)
    return Described(
        frames, size, np.dtype(np.uint8 if plain else np.float32), None if plain else (ends[0], ends[1]), note
    )


def _rescale(header: Any) -> tuple[float, float]:
    return float(getattr(header, "RescaleSlope", 1) or 1), float(getattr(header, "RescaleIntercept", 0) or 0)


def _load(path: Path) -> NDArray[Any]:
    pydicom: Any = need("pydicom", "science", str(path))
    data = pydicom.dcmread(path)
    pixels = np.asarray(data.pixel_array)
    colours = int(getattr(data, "SamplesPerPixel", 1)) > 1
    if pixels.ndim == (3 if colours else 2):
        pixels = pixels[None]
    if colours:
        return pixels
    slope, intercept = _rescale(data)
    about = _describe(path)
    values = pixels if (slope, intercept) == (1.0, 0.0) else pixels * np.float32(slope) + np.float32(intercept)
    if getattr(data, "PhotometricInterpretation", "") == "MONOCHROME1":
        low, high = about.value_range or (0, 255)
        values = (high + low) - values.astype(np.float32)
        values = values.astype(np.uint8) if about.dtype == np.uint8 else values
    return values
