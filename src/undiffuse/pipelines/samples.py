"""Finished images, as a notebook shows them, and as PIL, NumPy, tensors or files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from undiffuse.pictures import SampleWriter
from undiffuse.pictures.arrays import as_picture
from undiffuse.pipelines import grids
from undiffuse.pixels import from_uint8
from undiffuse.util.text import count_of

__all__ = ["Samples"]

_IN_GRID = 100  # images that a grid shows


class Samples(Sequence[Image.Image]):
    """Images of one call of `Pipeline.sample`; a sequence of PIL images that shows itself in a notebook.

    Args:
        images: uint8 [N, H, W, C].
        labels: The class of each image; None without classes.
        names: The names of all classes; None without classes.
        indices: The numbers of the images within their run.
        run: The record that all images share, see `pictures.SampleWriter`.
        notes: What is good to know.
        caption: The settings in a few words.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int] | None,
        names: Sequence[str] | None,
        indices: Sequence[int],
        run: Mapping[str, Any],
        notes: Mapping[str, Any],
        caption: str,
    ) -> None:
        self.images, self.names, self.indices = images, names, list(indices)
        self.labels = None if labels is None else list(labels)
        self.run, self.notes, self.caption = dict(run), dict(notes), caption

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        """A PIL image, or for a slice a part of the samples."""
        if isinstance(index, slice):
            labels = None if self.labels is None else self.labels[index]
            return Samples(
                self.images[index], labels, self.names, self.indices[index], self.run, self.notes, self.caption
            )
        return as_picture(self.images[index])

    def __iter__(self) -> Iterator[Image.Image]:
        return (as_picture(image) for image in self.images)

    def pil(self) -> list[Image.Image]:
        """Returns PIL images."""
        return list(self)

    def numpy(self) -> np.ndarray:
        """Returns the pixels, uint8 [N, H, W, C]."""
        return self.images

    def tensor(self) -> Tensor:
        """Returns the images as the network sees images, float32 [N, C, H, W] in [-1, 1]."""
        return from_uint8(self.images)

    def grid(self) -> Image.Image:
        """Draws the first 100 images side by side; a column for each class where there are few."""
        count = min(len(self), _IN_GRID)
        classes = self.labels
        if classes is not None:  # a run cycles through its classes: one period of it
            period = next((k for k in range(1, len(classes)) if classes[k] == classes[0]), len(classes))
            regular = all(label == classes[k % period] for k, label in enumerate(classes))
            classes = classes[:period] if regular else None
            count = grids.grid_count(count, classes)
        title = count_of(len(self), "sample")
        return grids.class_grid(self.images[:count], classes, self.names, title, self._described)

    def save(self, folder: str | Path) -> Path:
        """Writes one PNG for each image, each with the record that makes it again, and a grid.

        Args:
            folder: A folder for them; it may hold other images of the same run.

        Returns:
            The folder.

        Raises:
            ValueError: If the folder holds something else.
        """
        out = Path(folder)
        writer = SampleWriter(out, "png", run=self.run, notes=self.notes, label_names=self.names)
        writer.write(self.indices, self.images, self.labels)
        from undiffuse.pictures import save_png

        ends = [min(self.indices), max(self.indices)]
        save_png(out / "grid.png", self.grid(), {**self.run, **self.notes, "images": ends}, overwrite=True)
        return out

    @property
    def _described(self) -> str:
        return f"{Path(str(self.notes.get('model_file', 'model'))).stem}, {self.caption}, seed {self.run.get('seed')}"

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.grid().save(out, "PNG")
        return out.getvalue()

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"Samples({count_of(len(self), 'image')} of {shape}: {self._described})"
