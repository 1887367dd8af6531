"""What was taken of a data set and what was not, in sentences that every command prints alike."""

from __future__ import annotations

from collections.abc import Mapping

from undiffuse.data.labels import join_names
from undiffuse.data.sources import Source

__all__ = ["held_out_text", "left_out_text", "remarks_of"]


def remarks_of(source: Source) -> tuple[str, ...]:
    """Sentences on a source: what was taken and from where, which parts were not opened, what was left out."""
    out = list(source.notes)
    if source.held_out:
        out.append(held_out_text(source.held_out))
    if source.left_out:
        out.append(left_out_text(source.left_out))
    return tuple(out)


def held_out_text(held_out: Mapping[str, int]) -> str:
    """ "parts not opened: val (4 images), test (10)"."""
    parts = [f"{name} ({count:,}{' images' if k == 0 else ''})" for k, (name, count) in enumerate(held_out.items())]
    return f"parts not opened: {join_names(parts)}"


def left_out_text(left_out: Mapping[str, int]) -> str:
    """ "10 files of other kinds left out: .ppm (3), .txt (7)"."""
    endings = {kind.removeprefix("files ending in "): n for kind, n in left_out.items() if kind.startswith("files")}
    others = {kind: n for kind, n in left_out.items() if not kind.startswith("files")}
    count = sum(endings.values())
    texts = []
    if endings:
        texts.append(f"{count:,} file{'s' if count > 1 else ''} of other kinds left out: "
                     + join_names(f"{kind} ({n:,})" for kind, n in endings.items()))  # fmt: skip
    if others:
        texts.append("left out: " + join_names(f"{n:,} {kind}" for kind, n in others.items()))
    return "; ".join(texts)
