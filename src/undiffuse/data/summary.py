"""`scan`: what is in a data set, for people and for recipes."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.channels import ValueRange, objection, values_of
from undiffuse.data.dataset import DataConfig
from undiffuse.data.decoding import Picture, describe
from undiffuse.data.images import kept_by_crop, prepare
from undiffuse.data.labels import join_names
from undiffuse.data.ranges import declared_for
from undiffuse.data.remarks import held_out_text, left_out_text
from undiffuse.data.screening import default_workers
from undiffuse.data.sources import BrokenImageError, Excluded, Source

__all__ = ["DataSummary", "scan"]

_MEASURED = 2048
"""How many images, evenly spaced, the mean and deviation are measured on."""
_PAGED = (".tif", ".tiff", ".gif", ".webp", ".png", ".apng", ".avif", ".avifs")
_DARK = 16384
"""Pictures of 16 bits whose largest value is below this become a quarter as bright as white, or less."""


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What `scan` found.

    Attributes:
        description: one line about the source.
        count: images in the source.
        scanned: how many of them were looked at (evenly spaced where fewer than `count`).
        sizes: stored sizes {(width, height): how many}, most frequent first.
        modes: stored pixel formats {"RGB", "L", "P", "I;16", ...: how many}, most frequent first.
        class_counts: {class name: how many} over the whole source; empty without labels.
        broken: those that cannot be read or prepared, with the reason.
        tiny: names of those smaller than the size asked for.
        alpha: how many of those looked at have transparent pixels to lay over something (an alpha channel, or an entry
            of the palette or a colour marked as transparent).
        excluded: what had already been left out on opening.
        mean: mean pixel value of prepared images, in [-1, 1]; NaN if none could be prepared.
        sigma_data: standard deviation of prepared pixel values about that mean (Karras et al., 2022, call it so).
        fingerprint: SHA-256 of the source.
        channels: channels a model of these pictures should have: 1 if all are grey, 3 if any has colours, else as many
            as are stored.
        ranges: smallest and largest value of pictures of more than 8 bits, by format {"I;16": (0, 2944)}.
        pages: (files with several frames or pages, all their frames) among those looked at.
        ome: whether such files are OME-TIFF, whose pages are channels and slices.
        left_out: files of other kinds {"files ending in .txt": how many}.
        notes: sentences on what was taken and from where.
        held_out: images of the parts of the data set that were not opened.
        format: the format that was recognised.
        config: how the pictures were prepared.
    """

    description: str
    count: int
    scanned: int
    sizes: dict[tuple[int, int], int]
    modes: dict[str, int]
    class_counts: dict[str, int]
    broken: tuple[Excluded, ...]
    tiny: tuple[str, ...]
    excluded: tuple[Excluded, ...]
    mean: float
    sigma_data: float
    fingerprint: str
    alpha: int = 0
    channels: int = 3
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    pages: tuple[int, int] = (0, 0)
    ome: bool = False
    left_out: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    held_out: dict[str, int] = field(default_factory=dict)
    format: str = ""
    config: DataConfig | None = None

    def remarks(self) -> list[str]:
        """What people should know before they train: what was taken from where, what was not, and what looks wrong."""
        out = list(self.notes)
        if self.held_out:
            out.append(held_out_text(self.held_out))
        if self.left_out:
            out.append(left_out_text(self.left_out))
        files, pages = self.pages
        if files and not any("frames" in kind for kind in self.left_out):
            what = "channels or slices (OME-TIFF)" if self.ome else "frames"
            out.append(
                f"{files:,} file{'s hold' if files > 1 else ' holds'} {pages:,} {what}; the first of each is taken"
            )
        return out + self.pixel_remarks()

    def pixel_remarks(self) -> list[str]:
        """What looks wrong with the pixels: dark 16-bit pictures, values beyond the range, large crops."""
        ranges = [self._range_text(mode, *ends) for mode, ends in self.ranges.items()]
        return [*ranges, *self._shallow_text(), *self._crop_text()]

    def _shallow_text(self) -> list[str]:
        """What becomes of pictures of 8 bits under a range that they cannot fill."""
        declared = None if self.config is None else self.config.value_range
        shallow = sum(count for mode, count in self.modes.items() if mode not in self.ranges)
        if declared is None or not shallow or abs(declared[1] - declared[0]) <= 255 or not self.ranges:
            return []
        low, high = declared
        black, white = (min(255, max(0, round((value - low) * 255 / (high - low)))) for value in (0, 255))
        images = f"{shallow:,} image{'s' if shallow > 1 else ''} of 8 bits"
        return [f"{images}: 0 becomes {black} and 255 becomes {white} of 255, as their values are taken as they are"]

    def _range_text(self, mode: str, low: float, high: float) -> str:
        name = {"I;16": "16-bit grey", "RGB;16": "16-bit RGB", "RGBA;16": "16-bit RGBA"}.get(mode, mode)
        declared = None if self.config is None else self.config.value_range
        if declared is not None:
            beyond = low < min(declared) or high > max(declared)
            told = "; values beyond are clipped" if beyond else ""
            return f"{name}, {low:g}..{high:g}: value_range=({declared[0]:g}, {declared[1]:g}) is black and white{told}"
        if ";16" not in mode and not mode.endswith("uint16"):
            return f"{name}, {low:g}..{high:g}"
        text = f"{name}, {low:g}..{high:g}: the brightest becomes {round(high / 257)} of 255"
        if high >= _DARK:
            return text
        if any(";16" not in other and not other.endswith("uint16") for other in self.modes):
            return f"{text}, beside pictures of 8 bits, whose white is 255: bring all of them to the same depth"
        return f"{text}; take value_range=(0, {declared_for(high)}) to train on the values that are there"

    def _crop_text(self) -> list[str]:
        config = self.config
        if config is None or config.fit != "crop" or config.patches is not None:
            return []
        kept = {size: kept_by_crop(size, config.size) for size in self.sizes}
        lossy = [size for size, share in kept.items() if share < 0.9]
        if not lossy:
            return []
        count, worst = sum(self.sizes[size] for size in lossy), min(lossy, key=lambda size: kept[size])
        height, width, _ = config.shape
        every = "all images are" if 1 < count == sum(self.sizes.values()) else f"{count:,} images are"
        every = "1 image is" if count == 1 else every
        return [
            f"{every} cropped by more than 10 % to the shape {height}x{width}: of {worst[1]}x{worst[0]} "
            f'(height x width), {100 * kept[worst]:.0f} % is kept; fit="pad" keeps all of it'
        ]

    def text(self) -> str:
        """A readable report of a few lines."""
        lines = [self.description]
        if self.scanned < self.count:
            lines.append(f"looked at {self.scanned:,} of {self.count:,} images, evenly spaced")
        lines.append(
            "stored sizes, height x width: " + join_names((f"{h}x{w} ({n:,})" for (w, h), n in self.sizes.items()), 8)
        )
        lines.append("stored formats: " + join_names((f"{mode} ({n:,})" for mode, n in self.modes.items()), 8))
        if self.class_counts:
            lines.append("classes: " + join_names((f"{name} ({n:,})" for name, n in self.class_counts.items()), 20))
        for title, items in (("broken", self.broken), ("left out on opening", self.excluded)):
            if items:
                lines.append(
                    f"{title}: {len(items):,}: " + join_names(f"{item.name} ({item.reason})" for item in items)
                )
        if self.tiny:
            lines.append(f"smaller than the size asked for: {len(self.tiny):,}: " + join_names(self.tiny))
        lines += self.remarks()
        lines.append(f"pixels in [-1, 1]: mean {self.mean:.4f}, standard deviation {self.sigma_data:.4f}")
        lines.append(f"fingerprint: {self.fingerprint}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """One picture looked at: what it is, and the moments of its prepared pixels (values, sum, sum of squares)."""

    index: int
    broken: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    alpha: bool = False
    channels: int = 0
    values: tuple[float, float] | None = None
    pages: int = 1
    ome: bool = False
    moments: tuple[int, float, float] = (0, 0.0, 0.0)


def scan(source: Source, config: DataConfig, limit: int | None = None, workers: int | None = None) -> DataSummary:
    """Decode the pictures of a source (all, or `limit` evenly spaced ones) and sum up what they are.

    Open the source with ``check="none"`` to have broken files counted here instead of refused there. Nothing is raised
    for broken or tiny pictures. Pictures are measured as prepared by `config`, without flip and random crop.

    Raises:
        ValueError: an empty source, or a limit below 1.
    """
    if len(source) == 0 or (limit is not None and limit < 1):
        raise ValueError(f"cannot scan {len(source)} images with limit={limit}: expected at least one of each")
    amount = len(source) if limit is None else min(limit, len(source))
    chosen: NDArray[np.int64] = np.arange(amount, dtype=np.int64) * len(source) // amount
    measured = set(chosen[:: -(-amount // _MEASURED)].tolist())
    height, width, _ = config.shape
    declared = config.value_range if config.value_range is not None else source.value_range

    def look(i: int) -> _Look:
        try:
            picture = source.image(i)
            info = describe(picture)
            against = objection(info, 0, declared)
            if against is not None:
                return _Look(index=i, broken=against)
            moments = _moments(picture, config, declared) if i in measured else (0, 0.0, 0.0)
        except BrokenImageError as error:
            return _Look(index=i, broken=error.reason)
        except (ValueError, OSError) as error:
            return _Look(index=i, broken=str(error))
        paged = not source.in_memory and source.name(i).lower().endswith(_PAGED)
        header = source.info(i) if paged else info
        colours = info.channels if info.planes else info.channels - info.alpha
        return _Look(
            index=i, size=(info.width, info.height), mode=info.mode, alpha=info.alpha, channels=colours,
            values=_extremes(picture) if info.depth != "8" else None, pages=header.pages, ome=header.ome,
            moments=moments,
        )  # fmt: skip

    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    broken: list[Excluded] = []
    tiny: list[str] = []
    alpha, files, pages, ome = 0, 0, 0, False
    channels: set[int] = set()
    ranges: dict[str, tuple[float, float]] = {}
    total = np.zeros(3)
    threads = default_workers() if workers is None else workers
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for first in range(0, amount, 4096):
            for seen in pool.map(look, chosen[first : first + 4096].tolist()):
                if seen.broken:
                    broken.append(Excluded(name=source.name(seen.index), reason=seen.broken))
                    continue
                sizes[seen.size] += 1
                modes[seen.mode] += 1
                alpha += seen.alpha
                total += seen.moments
                channels.add(seen.channels)
                ome |= seen.ome and seen.pages > 1
                files, pages = files + (seen.pages > 1), pages + (seen.pages if seen.pages > 1 else 0)
                if seen.values is not None:
                    low, high = ranges.get(seen.mode, seen.values)
                    ranges[seen.mode] = (min(low, seen.values[0]), max(high, seen.values[1]))
                if config.fit == "crop" and (seen.size[0] < width or seen.size[1] < height):
                    tiny.append(source.name(seen.index))
    mean = total[1] / total[0] if total[0] else float("nan")
    variance = max(0.0, total[2] / total[0] - mean * mean) if total[0] else float("nan")
    return DataSummary(
        description=source.description,
        count=len(source),
        scanned=amount,
        sizes=dict(sizes.most_common()),
        modes=dict(modes.most_common()),
        class_counts=source.class_counts(),
        broken=tuple(broken),
        tiny=tuple(tiny),
        excluded=tuple(source.excluded),
        mean=float(mean),
        sigma_data=float(np.sqrt(variance)),
        fingerprint=source.fingerprint,
        alpha=alpha,
        channels=max(channels, default=3),
        ranges=ranges,
        pages=(files, pages),
        ome=ome,
        left_out=dict(source.left_out),
        held_out=dict(source.held_out),
        format=source.format,
        notes=tuple(source.notes),
        config=config,
    )


def _extremes(picture: Picture) -> tuple[float, float]:
    """(smallest, largest) of the stored values."""
    values = values_of(picture)
    return float(values.min()), float(values.max())


def _moments(picture: Picture, config: DataConfig, declared: ValueRange | None) -> tuple[int, float, float]:
    info = describe(picture)
    fits = objection(info, config.channels, (0, 1)) is None
    pixels = prepare(
        picture,
        config.size,
        config.channels if fits else info.channels,
        fit=config.fit,
        background=config.background,
        pad_value=config.pad_value,
        value_range=declared if info.depth in ("int", "float") else config.value_range,
        patch=(0.5, 0.5) if config.patches == "random" else None,
    )
    values = pixels.astype(np.float64)
    values = values / 127.5 - 1.0 if pixels.dtype == np.uint8 else values
    return values.size, float(values.sum()), float((values * values).sum())
