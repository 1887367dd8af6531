"""Options of what holds the images: frames, axes of arrays, the range of values."""

from __future__ import annotations

import argparse
from typing import Any

from undiffuse.data import open_data
from undiffuse.data.ranges import find_value_range, parse_value_range


def opening(args: argparse.Namespace, path: str) -> dict[str, Any]:
    """How the images are opened: the arguments `frames`, `layout` and `value_range` of `open_data` and `DataConfig`.

    A range that is to be found (--range auto) is found once and kept in `args`.
    """
    chosen = {"frames": getattr(args, "frames", "first"), "layout": getattr(args, "layout", "auto")}
    text = getattr(args, "value_range", None)
    if isinstance(text, str):
        args.value_range = parse_value_range(text)
        if args.value_range is None:
            source = open_data(path, labels="none", check="none", value_range="found", **chosen)
            args.value_range = find_value_range(source).pair
    return {**chosen, "value_range": getattr(args, "value_range", None)}


def as_typed(args: argparse.Namespace) -> str:
    """The options of `opening` that were given, to be typed again after another command."""
    out = "" if getattr(args, "frames", "first") == "first" else f" --frames {args.frames}"
    out += "" if getattr(args, "layout", "auto") == "auto" else f" --layout {args.layout}"
    pair = getattr(args, "value_range", None)
    return out + (f" --range={pair[0]:g},{pair[1]:g}" if isinstance(pair, tuple) else "")
