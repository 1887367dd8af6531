"""`undiffuse convert`: converts a data set to a format that other programs read."""

from __future__ import annotations

import argparse

from undiffuse.cli import containers
from undiffuse.cli.console import fields, say
from undiffuse.cli.words import in_options
from undiffuse.data import convert, open_data
from undiffuse.data.convert import expected_bytes
from undiffuse.data.labels import join_names
from undiffuse.pipelines.grids import quoted
from undiffuse.util.files import needed_text
from undiffuse.util.progress import Progress
from undiffuse.util.text import count_of, size_text


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    opening = containers.opening(args, args.source)
    source = open_data(args.source, labels=args.labels, on_broken=args.on_broken, check="none", **opening)
    say(f"images: {source.where}\n" + fields(
        [("format", source.format), ("images", f"{len(source):,}"),
         ("notes", "\n".join(in_options(text) for text in source.remarks) or None)]
    ))  # fmt: skip
    expected = expected_bytes(source, args.target, args.to, size=args.size, value_range=opening["value_range"])
    say(fields([("disk", needed_text(expected, args.target))]))
    with Progress("converting", len(source), "images") as bar:
        seen = 0

        def report(count: int) -> None:
            nonlocal seen
            bar.advance(count - seen)
            seen = count

        done = convert(
            source,
            args.target,
            args.to,
            size=args.size,
            value_range=opening["value_range"],
            on_broken=args.on_broken,
            shard_size=args.shard_size,
            report=report,
        )
    rows: list[tuple[str, object]] = [
        ("written", f"{done.path} ({done.to}): {count_of(done.images, 'image')}"),
        ("copied", f"{count_of(done.copied, 'file')} unchanged, {done.images - done.copied:,} encoded as PNG"),
        ("disk", f"{size_text(done.bytes)} (estimated {size_text(expected)})"),
        ("8 bits", f"{count_of(done.reduced, 'image')} reduced to 8 bits" if done.reduced else None),
        ("left out", f"{len(done.excluded):,}: " + join_names((f"{e.name} ({e.reason})" for e in done.excluded), 5)
                     if done.excluded else None),
    ]  # fmt: skip
    say(f"{fields(rows)}\nTo inspect it:\n  undiffuse inspect {quoted(str(done.path))}")
    return 0
