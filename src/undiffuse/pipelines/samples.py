"""Finished images, as a notebook shows them, and as PIL, NumPy, tensors or files."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from undiffuse.pictures import save_png
from undiffuse.pictures.arrays import as_picture
from undiffuse.pictures.names import output_names
from undiffuse.pictures.units import IN_UNITS, check_format, default_format, preview, preview_text
from undiffuse.pipelines import grids
from undiffuse.pixels import from_uint8, to_uint8, to_units
from undiffuse.util.notebook import card
from undiffuse.util.text import count_of

if TYPE_CHECKING:
    from undiffuse.pipelines.given import GivenConditions

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
        given: Conditions besides the class; None without.
        values: The images as float32 [N, H, W, C] in the units of `value_range`; by default the levels of `images`.
        value_range: (low, high) of the model's training images; None for 8-bit levels, (0, 255).
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
        given: GivenConditions | None = None,
        *,
        values: np.ndarray | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        self.value_range, self._values = value_range, values
        self.images, self.names, self.indices = images, names, list(indices)
        self.labels = None if labels is None else list(labels)
        self.run, self.notes, self.caption, self.given = dict(run), dict(notes), caption, given

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        """A PIL image, or for a slice a part of the samples."""
        if isinstance(index, slice):
            labels = None if self.labels is None else self.labels[index]
            return Samples(
                self.images[index], labels, self.names, self.indices[index], self.run, self.notes, self.caption,
                self.given,
                values=None if self._values is None else self._values[index], value_range=self.value_range,
            )  # fmt: skip
        return as_picture(preview(self.images[index][None])[0])

    def __iter__(self) -> Iterator[Image.Image]:
        return (as_picture(preview(image[None])[0]) for image in self.images)

    @classmethod
    def of(cls, x: Tensor, value_range: tuple[float, float] | None, *about: Any) -> Samples:
        """Takes images as a model makes them.

        Args:
            x: Float [N, C, H, W] in [-1, 1].
            value_range: As above.
            *about: The arguments after `images`.
        """
        values = to_units(x.float(), value_range).numpy()
        return cls(to_uint8(x.float()).cpu().numpy(), *about, values=values, value_range=value_range)

    @property
    def values(self) -> np.ndarray:
        """The images, float32 [N, H, W, C] in the units of the model's training images."""
        if self._values is not None:
            return self._values
        return to_units(from_uint8(self.images), self.value_range).numpy()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is good to know of the conditions: values outside the range that was trained, conditions left out."""
        return () if self.given is None else self.given.remarks

    def pil(self) -> list[Image.Image]:
        """Returns PIL images, 8 bits each; `undiffuse.pictures.preview` says how other channels are shown."""
        return list(self)

    def numpy(self) -> np.ndarray:
        """Returns the pixels, uint8 [N, H, W, C]; `values` has them in units."""
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

    def save(self, folder: str | Path, format: Any = None, overwrite: bool = False) -> Path:
        """Writes one file for each image, with the record that makes it again (except in npy files), and a grid.

        Args:
            folder: A folder for them; it may hold other images of the same run.
            format: "png", or in the units of the model's training images "png16", "tiff" (32-bit float) or "npy"; None
                takes "png", and "tiff" for images of other than 1, 3 or 4 channels.
            overwrite: Whether to remove the samples of an earlier run from the folder first.

        Returns:
            The folder.

        Raises:
            ConfigError: The format cannot hold the images ("format").
            ValueError: The folder belongs to a run with other settings.
            FileExistsError: The folder holds files that no run wrote.
        """
        out, channels = Path(folder), self.images.shape[-1]
        format = default_format(channels) if format is None else format
        check_format(format, channels)
        writer = grids.open_writer(
            out, format, overwrite, ["grid.png"],
            run=self.run, notes=self.notes, label_names=self.names, value_range=self.value_range,
            names=self._file_names,
        )  # fmt: skip
        entries = None if self.given is None else [{"condition": self.given.entry(i)} for i in self.indices]
        writer.write(self.indices, self.values if format in IN_UNITS else self.images, self.labels, entries)
        ends = [min(self.indices), max(self.indices)]
        save_png(out / "grid.png", self.grid(), {**self.run, **self.notes, "images": ends}, overwrite=True)
        return out

    @property
    def _file_names(self) -> list[str] | None:
        """What the files are called: as the condition pictures, if they were files."""
        names = None if self.given is None else self.given.names
        if names is None:
            return None
        return output_names([names[i % len(names)] for i in range(max(self.indices) + 1)], "")

    @property
    def _described(self) -> str:
        text = f"{Path(str(self.notes.get('model_file', 'model'))).stem}, {self.caption}, seed {self.run.get('seed')}"
        text += f", {self.given.text()}" if self.given is not None else ""
        shows = preview_text(self.images.shape[-1], self.value_range)
        return f"{text}, {shows}" if shows else text

    def _repr_html_(self) -> str:
        """The grid for notebooks, with the settings and what is good to know."""
        facts = [("conditions", None if self.given is None else self.given.text())]
        title = f"{count_of(len(self), 'sample')}: {self._described}"
        return card(title, facts, notes=self.remarks, picture=self._repr_png_())

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.grid().save(out, "PNG")
        return out.getvalue()

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"Samples({count_of(len(self), 'image')} of {shape}: {self._described})"
