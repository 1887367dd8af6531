"""Turns the options --frames, --layout, --range and --max-pixels into the library's arguments."""

from __future__ import annotations

import argparse
from typing import Any

from undiffuse.data import open_data
from undiffuse.data.decoding import MAX_PIXELS
from undiffuse.data.ranges import find_value_range

LAYOUTS = {"hwc": "HWC", "chw": "CHW", "auto": "auto"}
"""Maps the values of --layout to those of the library."""


def opening(args: argparse.Namespace, path: str) -> dict[str, Any]:
    """Returns the arguments `frames`, `layout`, `max_pixels` and `value_range` of `open_data` and `DataConfig`.

    With --range auto the range is found once and stored in `args`.
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
    """Returns the given options of `opening` as they were typed, for a suggested command."""
    out = "" if getattr(args, "frames", "first") == "first" else f" --frames {args.frames}"
    out += "" if getattr(args, "layout", "auto") == "auto" else f" --layout {args.layout}"
    out += f" --max-pixels {args.max_pixels}" if getattr(args, "max_pixels", None) else ""
    pair = getattr(args, "value_range", None)
    return out + (f" --range={pair[0]:g},{pair[1]:g}" if isinstance(pair, tuple) else "")
