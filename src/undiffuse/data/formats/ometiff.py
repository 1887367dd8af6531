"""OME-TIFF: all channels of every plane, by tifffile."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.formats.base import Reading, need
from undiffuse.data.formats.slices import Described, holds, sliced
from undiffuse.data.sources import Source
from undiffuse.data.tiff import read_page


def _fits(file: Path) -> bool:
    return file.name.lower().endswith((".ome.tif", ".ome.tiff"))


def recognise(path: Path) -> bool:
    """A file by its ending or its description, or a folder of files with such endings."""
    if path.is_dir():
        return holds(path, _fits)
    return _fits(path) or (importlib.util.find_spec("tifffile") is not None and _described(path))


def _described(path: Path) -> bool:
    """Whether the first page's description is OME's."""
    try:
        with path.open("rb") as file:
            text = read_page(file).tags.get(270)
    except (OSError, ValueError):
        return False
    return text is not None and b"<OME" in text.tobytes()[:4096]


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The planes of all files (depth, time), each with all its channels."""
    need("tifffile", "science", str(path))
    return sliced(path, _fits, _describe, _load, "OME-TIFF", reading)


def _describe(path: Path) -> Described:
    tifffile: Any = need("tifffile", "science", str(path))
    with tifffile.TiffFile(path) as file:
        series, metadata = file.series[0], file.ome_metadata or ""
        lengths = dict(zip(series.axes, series.shape, strict=True))
        dtype = np.dtype(series.dtype)
    channels = lengths.get("C", 1) * lengths.get("S", 1)
    count = int(np.prod(list(lengths.values()), dtype=np.int64)) // (lengths["Y"] * lengths["X"] * channels)
    named = re.findall(r"<Channel\b[^>]*\bName=\"([^\"]*)\"", metadata)
    bits = re.search(r"SignificantBits=\"(\d+)\"", metadata)
    note = f"{channels} channel{'s' if channels > 1 else ''}" + (f": {', '.join(named)}" if named else "")
    value_range = None
    if dtype.kind == "u" and dtype != np.uint8:
        # Every file of 16-bit numbers could say 65535; only fewer bits tell what white is.
        value_range = (0.0, float(2 ** int(bits[1]) - 1)) if bits and int(bits[1]) < 8 * dtype.itemsize else None
    return Described(
        count, (lengths["Y"], lengths["X"]), dtype, value_range, note, channels, lengths.get("C", 1) > 1,
        tuple(named) if len(named) == channels else (),
    )  # fmt: skip


def _load(path: Path) -> NDArray[Any]:
    tifffile: Any = need("tifffile", "science", str(path))
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        axes, data = series.axes, series.asarray()
    last = [axis for axis in "YXCS" if axis in axes]
    order = [axes.index(a) for a in axes if a not in "YXCS"] + [axes.index(a) for a in last]
    data = data.transpose(order)
    height, width = (data.shape[order.index(axes.index(a))] for a in "YX")
    channels = int(np.prod([data.shape[order.index(axes.index(a))] for a in last[2:]], dtype=np.int64))
    data = data.reshape(-1, height, width, channels)
    return data[..., 0] if channels == 1 else data
