"""Finding broken and tiny pictures before a run starts, and refusing or leaving them out as the user chose."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from undiffuse.data import index
from undiffuse.data.channels import ValueRange, objection, values_of
from undiffuse.data.decoding import Picture, describe
from undiffuse.data.headers import Headers, read_headers
from undiffuse.data.images import size_pair
from undiffuse.data.labels import join_names
from undiffuse.data.sources import BrokenImageError, Excluded, FileSource, Source

__all__ = ["Check", "OnBroken", "OnTiny", "default_workers", "find_flaws", "grouped", "screen"]

Check = Literal["auto", "none", "headers", "full"]
OnBroken = Literal["refuse", "skip"]
OnTiny = Literal["upscale", "refuse", "skip"]

_FULL_BYTES = 256 << 20
"""Below this size of all files together every picture is decoded once on opening: that takes seconds."""
_FULL_COUNT = 20_000
_PIECE = 4096


def default_workers() -> int:
    """Decoding threads used where nothing is said: the processors this process may use, at most 8."""
    try:
        available = len(os.sched_getaffinity(0))
    except AttributeError:
        available = os.cpu_count() or 1
    return max(1, min(8, available))


@dataclass
class Flaws:
    """What `find_flaws` found: broken items with their reasons, tiny ones with their sizes, by number."""

    broken: dict[int, str] = field(default_factory=dict)
    tiny: dict[int, tuple[int, int]] = field(default_factory=dict)


def find_flaws(
    source: Source,
    *,
    check: Check = "full",
    min_size: int | tuple[int, int] | None = None,
    value_range: ValueRange | None = None,
    channels: int = 0,
) -> Flaws:
    """Looks at every picture: can it be read and prepared, and has it at least `min_size`?

    Args:
        source: the pictures.
        check: how closely to look: "headers" finds files that are no images, reads sizes, and finds pixels that cannot
            be prepared; "full" decodes all pixels and so finds truncated files too; "auto" is "full" up to 256 MiB and
            20,000 files, else "headers"; "none" looks at nothing.
        min_size: pixels, one number or (height, width).
        value_range: the declared (low, high) of stored values.
        channels: channels of the model, 0 for any.

    Raises:
        ValueError: another `check`.
    """
    if check not in ("auto", "none", "headers", "full"):
        raise ValueError(f'check={check!r}: expected "auto", "none", "headers" or "full"')
    flaws = Flaws()
    if check == "none" or len(source) == 0:
        return flaws
    declared = value_range if value_range is not None else source.value_range
    if source.in_memory and min_size is None:
        info = source.info(0)
        against = objection(info, channels, declared)
        flaws.broken = dict.fromkeys(range(len(source)), against) if against else {}
        if against or info.depth != "float":
            return flaws
        check = "full"  # NaN among the values would stop a run when it draws them
    check = _resolved(source, check)
    least = size_pair(min_size) if min_size is not None else (1, 1)
    if check == "headers":
        headers = read_headers(source, default_workers())
        if headers is not None:
            return _flaws_of(headers, channels, declared, least)

    def look(i: int) -> tuple[int, str, tuple[int, int]]:
        try:
            info = source.info(i)
            against = objection(info, channels, declared)
            if against is None and check == "full":
                picture = source.image(i)  # decoding it is the test
                against = objection(describe(picture), channels, declared) or _not_finite(picture)
        except BrokenImageError as error:
            return i, error.reason, (0, 0)
        return i, against or "", (info.width, info.height)

    with ThreadPoolExecutor(default_workers()) as pool:
        # A pool keeps a record for everything handed to it at once, so a large set goes in by pieces.
        for start in range(0, len(source), _PIECE):
            piece = range(start, min(start + _PIECE, len(source)))
            for i, reason, (width, height) in map(look, piece) if source.in_memory else pool.map(look, piece):
                if reason:
                    flaws.broken[i] = reason
                elif height < least[0] or width < least[1]:
                    flaws.tiny[i] = (width, height)
    return flaws


def _resolved(source: Source, check: Check) -> Check:
    """How closely to look, with "auto" decided."""
    if check != "auto":
        return check
    volume = int(source.sizes.sum()) if isinstance(source, FileSource) else 0
    return "full" if volume <= _FULL_BYTES and len(source) <= _FULL_COUNT else "headers"


def _flaws_of(headers: Headers, channels: int, declared: ValueRange | None, least: tuple[int, int]) -> Flaws:
    """What headers say of broken and tiny pictures."""
    broken = dict(headers.broken)
    for info in headers.infos:
        against = objection(info, channels, declared)
        if against is not None:
            broken |= dict.fromkeys(
                np.flatnonzero(headers.where(lambda kind, info=info: kind == info)).tolist(), against
            )
    widths, heights = headers.sizes[:, 0], headers.sizes[:, 1]
    small = np.flatnonzero((widths > 0) & ((heights < least[0]) | (widths < least[1])))
    tiny = {int(i): (int(widths[i]), int(heights[i])) for i in small if int(i) not in broken}
    return Flaws(broken=dict(sorted(broken.items())), tiny=tiny)


def find_flaws_once(
    source: Source,
    *,
    check: Check = "full",
    min_size: int | tuple[int, int] | None = None,
    value_range: ValueRange | None = None,
    channels: int = 0,
) -> Flaws:
    """What `find_flaws` finds; of a large source it is kept in the cache folder, by the source's fingerprint."""

    def find() -> Flaws:
        return find_flaws(source, check=check, min_size=min_size, value_range=value_range, channels=channels)

    if len(source) < index.FROM or source.in_memory or check == "none":
        return find()
    if isinstance(source, FileSource) and _resolved(source, check) == "headers":
        return find()  # from their index

    def build() -> index.Arrays:
        flaws = find()
        return {
            "broken": np.array(list(flaws.broken), dtype=np.int64),
            "reasons": index.joined(list(flaws.broken.values())),
            "tiny": np.array([(i, *size) for i, size in flaws.tiny.items()], dtype=np.int64).reshape(-1, 3),
        }

    identity = f"{source.fingerprint}\0{check}\0{min_size}\0{value_range}\0{source.value_range}\0{channels}"
    found = index.cached("flaws", identity, build)
    return Flaws(
        broken=dict(zip(found["broken"].tolist(), index.split(found["reasons"]), strict=True)),
        tiny={int(i): (int(width), int(height)) for i, width, height in found["tiny"]},
    )


def _not_finite(picture: Picture) -> str | None:
    if describe(picture).depth != "float":
        return None
    values = values_of(picture)
    bad = values.size - int(np.isfinite(values).sum())
    return f"{bad:,} of {values.size:,} values are NaN or infinite" if bad else None


def grouped(items: Sequence[Excluded], limit: int = 10) -> str:
    """At most `limit` names with their reasons; a reason that all share is given once."""
    reasons = {item.reason for item in items}
    if len(items) > 1 and len(reasons) == 1:
        return f"{join_names((item.name for item in items), limit)}: {reasons.pop()}"
    return join_names((f"{item.name} ({item.reason})" for item in items), limit)


def screen(
    source: Source,
    *,
    check: Check = "auto",
    on_broken: OnBroken = "refuse",
    on_tiny: OnTiny = "upscale",
    min_size: int | tuple[int, int] | None = None,
    value_range: ValueRange | None = None,
    channels: int = 0,
) -> Source:
    """The source without its broken pictures, and without its tiny ones where `on_tiny` is "skip".

    Raises:
        ValueError: there are such pictures and they are to be refused (up to ten are named, all are counted), or none
            is left, or a choice that does not exist.
    """
    if on_broken not in ("refuse", "skip"):
        raise ValueError(f'on_broken={on_broken!r}: expected "refuse" or "skip"')
    if on_tiny not in ("upscale", "refuse", "skip"):
        raise ValueError(f'on_tiny={on_tiny!r}: expected "upscale", "refuse" or "skip"')
    flaws = find_flaws_once(
        source, check=check, min_size=min_size if on_tiny != "upscale" else None, value_range=value_range,
        channels=channels,
    )  # fmt: skip
    broken = [Excluded(name=source.name(i), reason=reason) for i, reason in flaws.broken.items()]
    if len(broken) == len(source):
        raise ValueError(f"{source.where}: none of {len(source):,} images can be used: {grouped(broken)}")
    if broken and on_broken == "refuse":
        raise ValueError(
            f"{source.where}: {len(broken):,} of {len(source):,} images cannot be read: {grouped(broken)}. Repair or "
            'remove them, or leave them out with on_broken="skip"'
        )
    tiny = [Excluded(name=source.name(i), reason=f"{h}x{w} is tiny") for i, (w, h) in flaws.tiny.items()]
    if tiny and on_tiny == "refuse":
        height, width = size_pair(min_size or 1)
        raise ValueError(
            f"{source.where}: {len(tiny):,} of {len(source):,} images are smaller than {height}x{width} pixels "
            f"(height x width): {join_names(f'{source.name(i)} ({h}x{w})' for i, (w, h) in flaws.tiny.items())}. "
            "Choose a "
            'smaller size, enlarge them with on_tiny="upscale", or leave them out with on_tiny="skip"'
        )
    out = {*flaws.broken, *flaws.tiny}
    if not out:
        return source
    if len(out) == len(source):
        raise ValueError(
            f"{source.where}: none of {len(source):,} images can be used ({len(broken):,} broken, {len(tiny):,} tiny): "
            f"{grouped([*broken, *tiny])}"
        )
    keep = np.ones(len(source), dtype=bool)
    keep[list(out)] = False
    return source.subset(np.flatnonzero(keep), [*broken, *tiny])
