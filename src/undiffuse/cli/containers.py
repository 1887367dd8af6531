"""Options of what holds the images: frames, axes of arrays, the range of values."""

from __future__ import annotations

import argparse
from typing import Any

from undiffuse.data import open_data
from undiffuse.data.decoding import MAX_PIXELS
from undiffuse.data.ranges import find_value_range

LAYOUTS = {"hwc": "HWC", "chw": "CHW", "auto": "auto"}
"""Values of --layout, which options have in lower case, as the library calls them."""


def opening(args: argparse.Namespace, path: str) -> dict[str, Any]:
    """How the images are opened: the arguments `frames`, `layout` and `value_range` of `open_data` and `DataConfig`.

    A range that is to be found (--range auto) is found once and kept in `args`.
    """
    chosen: dict[str, Any] = {
        "frames": getattr(args, "frames", None) or "first",
        "layout": LAYOUTS.get(getattr(args, "layout", None) or "auto", "auto"),
        "max_pixels": getattr(args, "max_pixels", None) or MAX_PIXELS,
    }
    if getattr(args, "value_range", None) == "auto":
        source = open_data(path, labels="none", check="none", value_range="found", **chosen)
        args.value_range = find_value_range(source).pair
    return {**chosen, "value_range": getattr(args, "value_range", None)}


def as_typed(args: argparse.Namespace) -> str:
    """The options of `opening` that were given, to be typed again after another command."""
    out = "" if getattr(args, "frames", "first") == "first" else f" --frames {args.frames}"
    out += "" if getattr(args, "layout", "auto") == "auto" else f" --layout {args.layout}"
    out += f" --max-pixels {args.max_pixels}" if getattr(args, "max_pixels", None) else ""
    pair = getattr(args, "value_range", None)
    return out + (f" --range={pair[0]:g},{pair[1]:g}" if isinstance(pair, tuple) else "")
