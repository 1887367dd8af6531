"""Opens a data set to look through: a page of its images, by class, and what is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np

from undiffuse.data import DataConfig, ImageDataset, open_data
from undiffuse.data.probe import DataProbe
from undiffuse.data.sources import BrokenImageError
from undiffuse.doctor import check_data
from undiffuse.pictures import preview

__all__ = ["PAGE", "look"]

PAGE = 48
"""Images of one page."""


def look(data: str, chosen: str | None = None, first: int = 0) -> dict[str, Any]:
    """Returns a page of a data set's images, prepared as for training.

    Args:
        data: Images as `undiffuse.data.open_data` takes them.
        chosen: The name of a class to show alone; None for all.
        first: The number of the page's first image among those that are shown.

    Returns:
        "images" uint8 arrays [H, W, C], "names" of each, "broken" (name, reason) of those that cannot be read,
        "count" images to page through, "classes" {name: count}, "size" (height, width), and "findings"
        (severity, text, what to do) on the first page of all classes.

    Raises:
        FileNotFoundError, ValueError: The data cannot be opened.
    """
    source = open_data(data, on_broken="skip", check="none", value_range="found")
    probe = DataProbe(source, getattr(source, "found_range", None))
    prepared = probe.preparation
    size: Any = prepared["size"]
    names = list(source.label_names or ())
    labels = source.labels
    counts: dict[str, int] = {}
    if names and labels is not None:
        amounts = np.bincount(np.asarray(labels)[np.asarray(labels) >= 0], minlength=len(names))
        counts = {name: int(amount) for name, amount in zip(names, amounts, strict=True)}
    numbers = np.arange(len(source))
    if chosen and chosen in names and labels is not None:
        numbers = np.flatnonzero(np.asarray(labels) == names.index(chosen))
    config = DataConfig(path=data, labels="none", value_range=probe.value_range, on_broken="skip", **prepared)
    dataset = ImageDataset(source, config)
    images, captions, broken = [], [], []
    start = max(0, min(first, len(numbers) - 1)) // PAGE * PAGE
    for index in numbers[start : start + PAGE].tolist():
        name = source.name(index)
        try:
            image = dataset.plain(index).image
        except BrokenImageError as error:
            broken.append((name, str(error)))
            continue
        images.append(_levels(np.asarray(image)))
        label = source.label(index) if labels is not None else None
        captions.append(f"{name} ({names[label]})" if names and label is not None and label >= 0 else name)
    findings = []
    if not chosen and not start:
        findings = [(item.severity, item.text, item.do) for item in check_data(data)]
    height, width = (size, size) if isinstance(size, int) else size
    return {
        "images": list(preview(np.stack(images))) if images else [], "names": captions, "broken": broken,
        "count": len(numbers), "first": start, "classes": counts, "size": (height, width), "findings": findings,
        "where": source.where,
    }  # fmt: skip


def _levels(image: np.ndarray) -> np.ndarray:
    """A prepared image as uint8."""
    return image if image.dtype == np.uint8 else ((image + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
