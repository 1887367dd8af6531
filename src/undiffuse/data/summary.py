"""`scan` summarizes a data set, for users and for recipes."""

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
    """The result of `scan`.

    Attributes:
        description: One line about the source.
        count: Images in the source.
        scanned: Images that were checked; if fewer than `count`, they are evenly spaced.
        sizes: Stored sizes {(width, height): count}, most frequent first.
        modes: Stored pixel formats {"RGB", "L", "P", "I;16", ...: count}, most frequent first.
        class_counts: {class name: count} over the whole source; empty without labels.
        broken: Images that cannot be read or prepared, with the reason.
        tiny: Names of the images smaller than the requested size.
        alpha: Checked images with transparency (an alpha channel, or a transparent palette entry or colour).
        excluded: Images that were left out on opening.
        mean: Mean pixel value of prepared images, in [-1, 1]; NaN if none could be prepared.
        sigma_data: Standard deviation of prepared pixel values (the name is that of Karras et al. 2022).
        fingerprint: SHA-256 of the source.
        channels: Channels for a model of these images: 1 if all are grey, 3 if any has colours, else as stored.
        ranges: Smallest and largest value of images with more than 8 bits, by format {"I;16": (0, 2944)}.
        pages: (files with several frames or pages, total number of their frames) among the checked files.
        ome: Whether such files are OME-TIFF, whose pages are channels and slices.
        left_out: Files of other kinds {"files ending in .txt": count}.
        notes: Sentences about what was read and from where.
        held_out: Number of images in the parts of the data set that were not opened.
        format: The recognised format.
        config: How the images were prepared.
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
        """Returns remarks for the user: what was read from where, what was left out, and possible problems."""
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
        """Returns remarks about the pixels: dark 16-bit images, values beyond the range, large crops."""
        ranges = [self._range_text(mode, *ends) for mode, ends in self.ranges.items()]
        return [*ranges, *self._shallow_text(), *self._alpha_text(), *self._crop_text()]

    def _alpha_text(self) -> list[str]:
        """Returns a remark about transparency that is lost."""
        if not self.alpha or (self.config is not None and self.config.channels == 4):
            return []
        every = 1 < self.alpha == sum(self.sizes.values())
        images = "all images have" if every else "1 image has" if self.alpha == 1 else f"{self.alpha:,} images have"
        return [f"{images} transparency: the background becomes white; channels=4 keeps alpha"]

    def _shallow_text(self) -> list[str]:
        """Returns a remark about 8-bit images if the declared range is wider than theirs."""
        declared = None if self.config is None else self.config.value_range
        shallow = sum(count for mode, count in self.modes.items() if mode not in self.ranges)
        if declared is None or not shallow or abs(declared[1] - declared[0]) <= 255 or not self.ranges:
            return []
        low, high = declared
        black, white = (min(255, max(0, round((value - low) * 255 / (high - low)))) for value in (0, 255))
        images = f"{shallow:,} 8-bit image{'s' if shallow > 1 else ''}"
        return [f"{images}: 0 becomes {black} and 255 becomes {white} of 255, because their values are not rescaled"]

    def _range_text(self, mode: str, low: float, high: float) -> str:
        name = {"I;16": "16-bit grey", "RGB;16": "16-bit RGB", "RGBA;16": "16-bit RGBA"}.get(mode, mode)
        declared = None if self.config is None else self.config.value_range
        if declared is not None:
            beyond = low < min(declared) or high > max(declared)
            more = "; values beyond are clipped" if beyond else ""
            return f"{name}, {low:g}..{high:g}: value_range=({declared[0]:g}, {declared[1]:g}) is black and white{more}"
        if ";16" not in mode and not mode.endswith("uint16"):
            return f"{name}, {low:g}..{high:g}"
        text = f"{name}, {low:g}..{high:g}: the brightest becomes {round(high / 257)} of 255"
        if high >= _DARK:
            return text
        if any(";16" not in other and not other.endswith("uint16") for other in self.modes):
            return f"{text}; there are 8-bit images too, whose white is 255: convert all images to the same depth"
        return f"{text}; use value_range=(0, {declared_for(high)}) to train on the full range of values"

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
        """Returns a readable report of a few lines."""
        lines = [self.description]
        if self.scanned < self.count:
            lines.append(f"checked {self.scanned:,} of {self.count:,} images, evenly spaced")
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
            lines.append(f"smaller than the requested size: {len(self.tiny):,}: " + join_names(self.tiny))
        lines += self.remarks()
        lines.append(f"pixels in [-1, 1]: mean {self.mean:.4f}, standard deviation {self.sigma_data:.4f}")
        lines.append(f"fingerprint: {self.fingerprint}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """A checked picture: its properties, and the moments of its prepared pixels (count, sum, sum of squares)."""

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
    """Decodes the pictures of a source (all, or `limit` evenly spaced ones) and summarizes them.

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
    """Returns the smallest and the largest stored value."""
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
