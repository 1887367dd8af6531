"""Describes images to train on for `undiffuse inspect`."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from undiffuse.cli import containers
from undiffuse.cli.console import fields
from undiffuse.cli.words import in_options
from undiffuse.data import NAMED_SETS, DataConfig, DataSummary, Source, open_data, scan
from undiffuse.data.formats.base import part_of
from undiffuse.data.images import size_pair
from undiffuse.data.labels import join_names
from undiffuse.data.probe import DataProbe
from undiffuse.data.ranges import find_value_range
from undiffuse.data.screening import grouped
from undiffuse.distributed import resolve_device
from undiffuse.pipelines.grids import quoted
from undiffuse.util.text import count_of

FEW = 1000  # with fewer images a model is likely to memorize them


def describe_data(args: argparse.Namespace) -> str:
    """Returns sizes, formats, classes, broken and tiny files, and the command to train on the images."""
    opening = containers.opening(args, args.what)
    found: Any = {**opening, "value_range": opening["value_range"] or "found"}
    source = open_data(args.what, labels=args.labels, on_broken="skip", check="none", **found)
    look = DataProbe(source, opening["value_range"])
    limit = None if args.count is None else min(args.count, len(source))
    # Prepared as for training, to find the images that are smaller than the training size.
    prepared = look.preparation
    config = DataConfig(path=str(args.what), **prepared, **opening)
    summary = scan(source, config, limit=limit)
    height, width = size_pair(prepared["size"])
    rows: list[tuple[str, object]] = [
        ("format", source.format or None),
        ("images", f"{summary.count:,}" + (
            f" ({summary.scanned:,} evenly spaced ones checked; --count all checks all)"
            if summary.scanned < summary.count else "")),
        ("sizes", "height x width: " + join_names((f"{h}x{w} ({n:,})" for (w, h), n in summary.sizes.items()), 6)
                  if summary.sizes else "no image can be read"),
        ("pixels", join_names((f"{_mode(mode)} ({n:,})" for mode, n in summary.modes.items()), 6) or None),
        ("channels", join_names(source.channel_names, 12) or None),
        ("classes", _classes(source, summary)),
        ("broken", in_options(f"{len(summary.broken):,}: {grouped(summary.broken, 5)}") if summary.broken else "none"),
        ("tiny", f"{len(summary.tiny):,} smaller than the training size {height}x{width}: "
                 + join_names(summary.tiny, 5) if summary.tiny else "none"),
        ("left out",
            f"{len(summary.excluded):,}: " + join_names((f"{e.name} ({e.reason})" for e in summary.excluded), 5)
                     if summary.excluded else None),
        ("notes", "\n".join(in_options(text) for text in summary.remarks()) or None),
        ("fingerprint", summary.fingerprint),
    ]  # fmt: skip
    return f"images: {source.where}\n{fields(rows)}\n{_advice(args, look, summary)}"


def _classes(source: Source, summary: DataSummary) -> str:
    counts = summary.class_counts
    if not counts and source.vectors is not None:
        count = source.vectors.shape[1]
        if source.multi_hot:
            return f"{count} labels, several per image (train --condition labels): " + join_names(
                source.vector_names or (), 12
            )
        named = (
            f": {join_names(source.vector_names, 12)} (train --condition numbers:...)" if source.vector_names else ""
        )
        return f"none; a vector of {count_of(count, 'number')} per image{named}"
    if not counts:
        return "no labels (use sub-folders, --labels prefix or --labels TABLE to add them)"
    named = join_names((f"{name} ({n:,})" for name, n in counts.items()), 12)
    return f"{len(counts)}: {named}"


def _advice(args: argparse.Namespace, look: DataProbe, summary: DataSummary) -> str:
    counts = summary.class_counts
    notes = []
    window = _window(look.source, summary)
    if window is not None:
        notes.append(f"The values are {window[1]}: --range sets the values of black and white.")
    elif summary.broken and not summary.sizes:
        return "  None of the images can be read: there is nothing to train on."
    elif summary.broken:
        notes.append("Broken images stop training. Remove them, or use --on-broken skip.")
    if summary.tiny:
        notes.append("Tiny images are enlarged and therefore blurred. Use --on-tiny skip to leave them out.")
    whole = look.whole_size
    if whole is not None:
        notes.append(f"The images are not square: they are trained at {whole[0]}x{whole[1]} (height x width).")
    elif any(max(pair) > 1.1 * min(pair) for pair in summary.sizes):
        notes.append("Not all images are square: training crops the centre (--fit pad keeps the whole image).")
    present = [n for n in counts.values() if n]
    if present and max(present) > 20 * min(present):
        notes.append("The classes differ greatly in size; the model will learn the small ones poorly.")
    if summary.count < FEW:
        few = "1 image is" if summary.count == 1 else f"{summary.count:,} images are"
        notes.append(f"{few} few: the model will mostly memorize them.")
    if summary.sizes and statistics.median(min(size) for size in summary.sizes) < 16:
        notes.append("The images are very small (under 16 pixels).")
    if look.source.undeclared and not isinstance(args.value_range, tuple):
        notes.append(f"The values of black and white are not declared ({look.source.undeclared}): choose --range.")
    options = f" --labels {quoted(args.labels)}" if args.labels != "auto" else ""
    options += " --on-broken skip" if (summary.broken and window is None) or summary.excluded else ""
    options += "" if window is None else f" --range={window[0]}"
    options += containers.as_typed(args)
    if look.source.undeclared and not isinstance(args.value_range, tuple) and look.source.found_range is not None:
        options += " --range={:g},{:g}".format(*look.source.found_range)
    if len(counts) == 1:
        options += " --unconditional"
        without = sum(item.reason.startswith("no label") for item in summary.excluded)
        if without:
            images = "image that has" if without == 1 else f"{without:,} images that have"
            notes.append(f"There is one class only. Without labels, training also uses the {images} none.")
    lines = [f"  {note}" for note in notes]
    parts = {part_of(name): name for name in look.source.held_out}
    held = parts.get("validation", parts.get("test"))
    if held is not None:
        options += f" --validation {quoted(f'{args.what}:{held}')}"
    data = f"{quoted(str(args.what))}{options}"
    classifier = f"  undiffuse train-classifier {data}"
    several = sum(n > 1 for n in counts.values()) > 1  # one image of a class is held out
    lines += ["To train on them:", f"  undiffuse train {data}", *([classifier] if several else [])]
    if resolve_device("auto").type == "cpu" and str(args.what).partition(":")[0] not in NAMED_SETS:
        path = Path(args.what).resolve()
        out = quoted(f"runs/{path.name if path.is_dir() else path.stem}")  # which `train` chooses
        size = " --size 32" if whole is None and look.size > 32 else ""
        lines.append("Without a GPU this can take days. A tiny model takes about an hour:")
        lines += [f"  undiffuse train {data} --recipe tiny{size}", *([f"{classifier} --for {out}"] if several else [])]
    return "\n".join(lines)


def _window(source: Source, summary: DataSummary) -> tuple[str, str] | None:
    """Returns (range to declare, range of the values) if no image can be used without a range; else None."""
    if summary.sizes or not any("value_range" in item.reason for item in summary.broken):
        return None
    try:
        found = find_value_range(source)
    except ValueError:
        return None
    return f"{found.low:g},{found.high:g}", f"{found.smallest:g}..{found.largest:g}"


def _mode(mode: str) -> str:
    names = {"L": "grey", "1": "black and white", "P": "palette", "LA": "grey with alpha", "I;16": "16-bit grey"}
    return names.get(mode, mode)
