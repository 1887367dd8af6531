"""The small images that a super-resolution model enlarges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from undiffuse.data import IMAGE_SUFFIXES, DataConfig, FolderSource, ImageDataset, Source
from undiffuse.data.headers import known_headers
from undiffuse.models import DiffusionModel
from undiffuse.pictures.names import output_names
from undiffuse.pipelines.inputs import model_images
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import count_of, one_line


@dataclass(frozen=True)
class LowRes:
    """Small images by number; image i of a run enlarges image i mod n of the data."""

    dataset: ImageDataset
    labels: list[int] | None
    fingerprint: str
    made: bool = False  # by an earlier stage, so that the names mean nothing to anybody
    where: str | None = None  # their path, for the notes of records; None where somebody else notes it

    def __len__(self) -> int:
        return len(self.dataset)

    def notes(self) -> dict[str, Any]:
        """Returns which images they are and where, for records."""
        return {} if self.where is None else {"low_res": self.fingerprint, "low_res_data": self.where}

    @classmethod
    def open(
        cls, model: DiffusionModel, path: str | None, size: int | tuple[int, int] | None = None, labelled: bool = True
    ) -> LowRes | None:
        """Opens the images that a super-resolution model enlarges; None for other models.

        Args:
            model: The model.
            path: A folder, zip, npz or known name, or one picture.
            size: Their height and width, where the model does not say it.
            labelled: Whether a class-conditional model takes their labels.

        Raises:
            ConfigError: If the model needs them and they are missing, or the reverse.
            ValueError: If they cannot be read, lack labels, or have another size: nothing is shrunk or enlarged first.
        """
        if not model.spec.super_resolution:
            if path is not None:
                raise ConfigError("low_res", "was given, but this model does not enlarge images: leave it out")
            return None
        if path is None:
            raise ConfigError(
                "low_res", "is missing: this model enlarges images; give a folder or npz of them, or a picture"
            )
        wanted = low_size(model, size)
        conditional = model.num_classes is not None and labelled
        config = DataConfig(
            path=path, labels="auto" if conditional else "none", size=wanted, channels=model.image_shape[0],
            value_range=model.value_range,
        )  # fmt: skip
        file = Path(path).expanduser()
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
            source: Source = FolderSource(file.parent, [file.name], [file.stat().st_size])
        else:
            source = config.open(model.labels if conditional else None)
        _check_sizes(source, wanted)
        if conditional and source.labels is None:
            raise ValueError(f"{source.where} has no labels, which the model needs: give a class for all images")
        labels = [int(k) for k in source.labels] if conditional and source.labels is not None else None
        return cls(ImageDataset(source, config), labels, source.fingerprint)

    @classmethod
    def of_npz(cls, path: Path, size: tuple[int, int], channels: int) -> LowRes:
        """All images of an npz of samples, without their labels."""
        config = DataConfig(path=str(path), labels="none", size=size, channels=channels)
        source = config.open(None)
        return cls(ImageDataset(source, config), None, source.fingerprint, made=True)

    def file_names(self, count: int) -> list[str] | None:
        """Names for the first `count` results, after those of the images; None where these have no names."""
        if self.made:
            return None
        once = output_names([self.dataset.source.name(i) for i in range(len(self))])
        used, names = {name.lower() for name in once}, once[:count]
        for i in range(len(self), count):  # the second result of an image, the third, ...
            name = f"{once[i % len(self)].removesuffix('.png')}_{i // len(self) + 1}"
            while f"{name}.png".lower() in used:
                name += "_"
            used.add(f"{name}.png".lower())
            names.append(f"{name}.png")
        return names

    def labels_of(self, indices: Sequence[int]) -> list[int] | None:
        """The classes of some images of the run."""
        return None if self.labels is None else [self.labels[i % len(self)] for i in indices]

    def images_of(self, indices: Sequence[int]) -> Tensor:
        """[B, C, h, w] in [-1, 1]."""
        return model_images(self.dataset, [i % len(self) for i in indices], "cpu")


def _check_sizes(source: Source, wanted: tuple[int, int]) -> None:
    """ConfigError if an image has another size than the model enlarges."""
    headers, size = known_headers(source), (wanted[1], wanted[0])
    sizes = map(tuple, headers.sizes.tolist()) if headers is not None else map(source.stored_size, range(len(source)))
    others = [i for i, found in enumerate(sizes) if found != size]
    if others:
        width, height = source.stored_size(others[0])
        raise ConfigError(
            "low_res",
            f"has {count_of(len(others), 'image')} of another size than the model enlarges: "
            f"{one_line(source.name(others[0]))} is {height}x{width}, expected {wanted[0]}x{wanted[1]} (height x "
            f"width). Images are not made smaller or larger first; `undiffuse convert --size {wanted[0]}` does that",
        )


def low_size(model: DiffusionModel, given: int | tuple[int, int] | None = None) -> tuple[int, int]:
    """(height, width) of the images that a model enlarges: as given, or as it says. ValueError if neither tells."""
    size = given or (model.manifest.get("objective") or {}).get("low_size")
    if size is None:
        raise ConfigError("low_size", "is missing: the model does not say how large the images are that it enlarges")
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
