"""`scan`: what is in a data set, for people and for recipes."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from undiffuse.data.dataset import DataConfig
from undiffuse.data.images import Picture, prepare
from undiffuse.data.labels import listed
from undiffuse.data.screening import default_workers
from undiffuse.data.sources import BrokenImageError, Excluded, Source
from undiffuse.data.values import eight_bit

__all__ = ["DataSummary", "scan"]

_MEASURED = 2048
"""How many images, evenly spaced, the mean and deviation are measured on."""


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

    def text(self) -> str:
        """A readable report of a few lines."""
        lines = [self.description]
        if self.scanned < self.count:
            lines.append(f"looked at {self.scanned:,} of {self.count:,} images, evenly spaced")
        lines.append(
            "stored sizes, height x width: " + listed((f"{h}x{w} ({n:,})" for (w, h), n in self.sizes.items()), 8)
        )
        lines.append("stored formats: " + listed((f"{mode} ({n:,})" for mode, n in self.modes.items()), 8))
        if self.class_counts:
            lines.append("classes: " + listed((f"{name} ({n:,})" for name, n in self.class_counts.items()), 20))
        for title, items in (("broken", self.broken), ("left out on opening", self.excluded)):
            if items:
                lines.append(f"{title}: {len(items):,}: " + listed(f"{item.name} ({item.reason})" for item in items))
        if self.tiny:
            lines.append(f"smaller than the size asked for: {len(self.tiny):,}: " + listed(self.tiny))
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

    def look(i: int) -> _Look:
        try:
            stored = source.image(i)
            picture = eight_bit(stored, source.value_range)
            moments = _moments(picture, config) if i in measured else (0, 0.0, 0.0)
        except BrokenImageError as error:
            return _Look(index=i, broken=error.reason)
        except (ValueError, OSError) as error:
            return _Look(index=i, broken=str(error))
        size, mode = _what(stored)
        return _Look(index=i, size=size, mode=mode, alpha=_has_alpha(picture), moments=moments)

    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    broken: list[Excluded] = []
    tiny: list[str] = []
    alpha = 0
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
    )


def _what(picture: Picture) -> tuple[tuple[int, int], str]:
    """(width, height) and pixel format of a stored picture."""
    if isinstance(picture, Image.Image):
        return picture.size, picture.mode
    channels = 1 if picture.ndim == 2 else picture.shape[2]
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}.get(channels, f"{channels} channels")
    return (picture.shape[1], picture.shape[0]), mode if picture.dtype == np.uint8 else f"{mode} {picture.dtype.name}"


def _has_alpha(picture: Picture) -> bool:
    """Whether preparing the picture for fewer than four channels lays it over the background (`to_mode`)."""
    if isinstance(picture, Image.Image):
        return picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info
    return picture.ndim == 3 and picture.shape[2] in (2, 4)


def _moments(picture: Picture, config: DataConfig) -> tuple[int, float, float]:
    pixels = prepare(
        picture,
        config.size,
        config.channels,
        fit=config.fit,
        background=config.background,
        pad_value=config.pad_value,
    )
    values = pixels.astype(np.float64) / 127.5 - 1.0
    return values.size, float(values.sum()), float((values * values).sum())
