"""The section of a folder of samples: images by class, their settings, and the training images nearest to them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undiffuse.data import DataConfig
from undiffuse.pictures import read_record
from undiffuse.pictures.stored import RUN, keeps_names, read_file, sample_files, sample_label
from undiffuse.reports.page import Section, details, figure, grid, table
from undiffuse.util.records import flat, read_json
from undiffuse.util.text import count_of

__all__ = ["is_samples", "samples_section"]

PER_CLASS = 8
CLASSES = 40
SEARCHED = 8
"""Samples whose nearest training images are shown."""
_BLOCK = 512  # training images in memory at once


def is_samples(path: Path) -> bool:
    """Returns whether a folder holds samples."""
    if not path.is_dir() or not (path / RUN).is_file():
        return False
    try:
        return "command" in read_json((path / RUN).read_bytes(), str(path / RUN))
    except ValueError:
        return False


def samples_section(folder: Path, training: str | None = None) -> Section:
    """Returns the section of a folder of samples.

    Args:
        folder: The folder of `undiffuse sample` or of a command that edits images.
        training: The training data, to show the nearest training images of some samples.

    Raises:
        ValueError: The folder holds no samples, or the training images have another number of channels.
    """
    files = sample_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no image files of samples")
    recorded = keeps_names(folder)
    by_class: dict[str, list[Path]] = {}
    names = _class_names(folder)
    for _, path in sorted(files.items()):
        label = sample_label(path, recorded)
        by_class.setdefault("" if label is None else names.get(label, f"class {label}"), []).append(path)
    body = f"<p>{count_of(len(files), 'image')}.</p>"
    for name, paths in list(by_class.items())[:CLASSES]:
        body += f"<h3>{escape(name)}</h3>" if name else ""
        pictures = [read_file(path) for path in paths[: PER_CLASS if name else 4 * PER_CLASS]]
        body += grid(pictures, scale=_scale(pictures[0]))
    if len(by_class) > CLASSES:
        body += f"<p>{len(by_class) - CLASSES:,} more classes are not shown.</p>"
    if training is not None:
        body += _neighbours([files[k] for k in sorted(files)], training)
    rows = list(flat(read_json((folder / RUN).read_bytes(), str(folder / RUN))).items())
    body += details("Settings", table(["setting", "value"], rows))
    return Section(title=f"Samples {folder.resolve().name}", body=body)


def _class_names(folder: Path) -> dict[int, str]:
    """Names of the classes, from the records of the images."""
    out: dict[int, str] = {}
    for path in sample_files(folder).values():
        try:
            record: dict[str, Any] = read_record(path)
        except (OSError, ValueError):
            continue
        if isinstance(record.get("class"), int) and isinstance(record.get("class_name"), str):
            out[record["class"]] = record["class_name"]
    return out


def _scale(image: np.ndarray) -> int:
    return max(1, 96 // max(image.shape[:2]))


def _levels(image: np.ndarray) -> np.ndarray:
    """A prepared training image as uint8."""
    return image if image.dtype == np.uint8 else ((image + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


def _neighbours(files: Sequence[Path], training: str) -> str:
    """Some samples, each beside its nearest training images by squared distance of pixels."""
    chosen = [files[round(k)] for k in np.linspace(0, len(files) - 1, min(SEARCHED, len(files)))]
    samples = np.stack([read_file(path) for path in chosen])
    height, width, channels = samples.shape[1:]
    size = height if height == width else (height, width)
    dataset = DataConfig(path=training, size=size, channels=channels, labels="none", on_broken="skip").build()
    shown = torch.from_numpy(samples.astype(np.float32)).flatten(1)
    best = torch.full((len(samples),), float("inf"))
    nearest = np.zeros_like(samples)
    for start in range(0, len(dataset), _BLOCK):
        block = np.stack([_levels(dataset.plain(k).image) for k in range(start, min(start + _BLOCK, len(dataset)))])
        squared = torch.cdist(shown, torch.from_numpy(block.astype(np.float32)).flatten(1)).square()
        least, where = squared.min(dim=1)
        closer = least < best
        nearest[closer.numpy()] = block[where[closer].numpy()]
        best = torch.where(closer, least, best)
    distance = (best / shown.shape[1]).sqrt()
    scale = _scale(samples[0])
    pairs = "".join(
        figure(np.concatenate([a, b], axis=1), f"{path.name}: differs by {off:.1f} of 255 (root mean square)", scale)
        for a, b, path, off in zip(samples, nearest, chosen, distance.tolist(), strict=True)
    )
    return (
        "<h3>Nearest training images</h3>"
        f"<p>Each sample (left) beside the training image whose pixels are nearest (right), of {len(dataset):,}. "
        "The training images are cropped to the size of the samples. Pictures that are almost equal were copied.</p>"
        f'<div class="tiles">{pairs}</div>'
    )
