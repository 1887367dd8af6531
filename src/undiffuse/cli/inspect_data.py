"""What `undiffuse inspect` tells of images to train on."""

from __future__ import annotations

import argparse
import statistics

from undiffuse.cli.console import fields
from undiffuse.cli.writing import quoted
from undiffuse.data import DataConfig, DataSummary, open_data, scan
from undiffuse.data.labels import listed

FEW = 1000  # images below which a model is likely to learn them by heart
LOOKED_SIZE = 64


def describe_data(args: argparse.Namespace) -> str:
    """Sizes, formats, classes, broken files, and the command to train on them."""
    source = open_data(args.what, labels=args.labels, on_broken="skip", check="none")
    limit = None if args.count is None else min(args.count, len(source))
    # Any size will do for the look; pixels are not enlarged before they are measured only if it is small.
    summary = scan(source, DataConfig(path=str(args.what), size=LOOKED_SIZE, fit="pad"), limit=limit)
    rows: list[tuple[str, object]] = [
        ("images", f"{summary.count:,}" + (
            f" (looked at {summary.scanned:,}, evenly spaced; --count all for every one)"
            if summary.scanned < summary.count else "")),
        ("sizes", listed((f"{w}x{h} ({n:,})" for (w, h), n in summary.sizes.items()), 6)),
        ("formats", listed((f"{_mode(mode)} ({n:,})" for mode, n in summary.modes.items()), 6)),
        ("classes", _classes(summary)),
        ("broken", f"{len(summary.broken):,}: " + listed((f"{b.name} ({b.reason})" for b in summary.broken), 5)
                   if summary.broken else "none"),
        ("left out", f"{len(summary.excluded):,}: " + listed((f"{e.name} ({e.reason})" for e in summary.excluded), 5)
                     if summary.excluded else None),
        ("fingerprint", summary.fingerprint),
    ]  # fmt: skip
    return f"images: {source.where}\n{fields(rows)}\n{_advice(args, summary)}"


def _classes(summary: DataSummary) -> str:
    counts = summary.class_counts
    if not counts:
        return "no labels (sub-folders, --labels prefix, or a table give them)"
    named = listed((f"{name} ({n:,})" for name, n in counts.items()), 12)
    return f"{len(counts)}: {named}"


def _advice(args: argparse.Namespace, summary: DataSummary) -> str:
    counts = summary.class_counts
    notes = []
    if summary.broken:
        notes.append("Broken images stop a training unless they are removed or left out by --on-broken skip.")
    present = [n for n in counts.values() if n]
    if present and max(present) > 20 * min(present):
        notes.append("The classes are of very different size; the small ones will be learned poorly.")
    if summary.count < FEW:
        notes.append(f"{summary.count:,} images are few: a model will mostly repeat them.")
    if summary.sizes and statistics.median(min(size) for size in summary.sizes) < 16:
        notes.append("The images are tiny.")
    options = f" --labels {quoted(args.labels)}" if args.labels != "auto" else ""
    options += " --on-broken skip" if summary.broken else ""
    options += " --unconditional" if len(counts) == 1 else ""
    lines = [f"  {note}" for note in notes]
    lines += ["Train on them:", f"  undiffuse train {quoted(str(args.what))}{options}"]
    if len(counts) > 1:
        lines.append(f"  undiffuse train-classifier {quoted(str(args.what))}{options}")
    return "\n".join(lines)


def _mode(mode: str) -> str:
    names = {"L": "grey", "1": "black and white", "P": "palette", "LA": "grey with alpha", "I;16": "16-bit grey"}
    return names.get(mode, mode)
