"""What belongs to each picture of a source besides its class: several labels, numbers, and a partner picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from undiffuse.conditions import ImageCondition, ModelConditions, NumberCondition
from undiffuse.data.channels import Background, upright
from undiffuse.data.decoding import Picture, describe
from undiffuse.data.images import prepare

if TYPE_CHECKING:
    from undiffuse.data.sources import Source

__all__ = ["Partners", "PictureConditions", "map_values", "model_conditions", "prepare_partner"]

_PROPORTIONS = 0.02
"""Relative difference of height / width by which a partner may differ from its picture, besides one pixel."""


@dataclass(frozen=True, kw_only=True)
class Partners:
    """Pictures that belong to the pictures of a source.

    Attributes:
        source: The partner pictures.
        index: int64 [N], the partner of each picture.
        condition: How a model sees them.
    """

    source: Source
    index: NDArray[np.int64]
    condition: ImageCondition

    def name(self, i: int) -> str:
        """The name of the partner of picture i."""
        return self.source.name(int(self.index[i]))

    def picture(self, i: int) -> Picture:
        """The partner of picture i, as it is stored."""
        return self.source.image(int(self.index[i]))


@dataclass(frozen=True, kw_only=True)
class PictureConditions:
    """Conditions of the N pictures of a source, in their order.

    Attributes:
        numbers: float32 [N, K] in the units of the data; NaN where one is not known. None without numbers.
        number_names: Names of the K numbers.
        tags: float32 [N, L] of 0 and 1, the labels that each picture has; None without.
        tag_names: Names of the L labels.
        partners: The partner pictures; None without.
    """

    numbers: NDArray[np.float32] | None = None
    number_names: tuple[str, ...] = ()
    tags: NDArray[np.float32] | None = None
    tag_names: tuple[str, ...] = ()
    partners: Partners | None = None

    def __bool__(self) -> bool:
        return self.numbers is not None or self.tags is not None or self.partners is not None

    def take(self, keep: Sequence[int] | NDArray[np.int64]) -> PictureConditions:
        """The conditions of the pictures `keep`, in that order."""
        chosen = np.asarray(keep, dtype=np.int64)
        partners = self.partners
        return replace(
            self,
            numbers=None if self.numbers is None else self.numbers[chosen],
            tags=None if self.tags is None else self.tags[chosen],
            partners=None if partners is None else replace(partners, index=partners.index[chosen]),
        )

    @property
    def digest(self) -> bytes:
        """SHA-256 of everything that these conditions are."""
        sha = hashlib.sha256()
        for names, values in ((self.number_names, self.numbers), (self.tag_names, self.tags)):
            if values is not None:
                sha.update(f"{list(names)} {list(values.shape)}".encode())
                sha.update(values.astype("<f4").tobytes())
        if self.partners is not None:
            sha.update(f"{self.partners.condition} {self.partners.source.fingerprint}".encode())
            sha.update(self.partners.index.astype("<i8").tobytes())
        return sha.digest()


def model_conditions(found: PictureConditions | None) -> ModelConditions:
    """Declares what a model trained on a source is conditioned on; numbers are measured over its pictures.

    Raises:
        ValueError: A number is the same for every picture.
    """
    if not found:
        return ModelConditions()
    numbers = None if found.numbers is None else NumberCondition.of(found.number_names, found.numbers)
    image = None if found.partners is None else found.partners.condition
    return ModelConditions(tags=found.tag_names, numbers=numbers, image=image)


def map_values(picture: Picture) -> NDArray[Any]:
    """The values of a map, integers [H, W]: levels of grey, or of a palette the numbers of its colours.

    Raises:
        ValueError: The picture has more than one value in each pixel, or values that are no integers.
    """
    if isinstance(picture, np.ndarray):
        values = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
    else:
        image = upright(picture)
        values = np.asarray(image) if image.mode in ("P", "L", "1", "I", "I;16", "I;16B") else np.zeros((1, 1, 3))
    if values.ndim != 2 or values.dtype.kind not in "uib":
        raise ValueError(
            f"a map has one whole number in each pixel, this picture has {describe(picture).mode}: take it as an "
            "image, or store the number of the class in each pixel"
        )
    return values.astype(np.int64)


def prepare_partner(
    picture: Picture,
    condition: ImageCondition,
    size: int | tuple[int, int],
    *,
    like: tuple[int, int] | None = None,
    fit: Literal["crop", "pad"] = "crop",
    flip: bool = False,
    crop: tuple[float, float, float] | None = None,
    patch: tuple[float, float] | None = None,
    background: Background = 255,
    pad_value: int = 0,
) -> NDArray[Any]:
    """Prepares a condition picture as `prepare` does the picture that it belongs to.

    Args:
        picture: As it is stored.
        condition: How a model sees it. Maps are resized by nearest neighbour and padded with their first class.
        size: As for the picture, see `prepare`.
        fit: As for the picture, see `prepare`.
        flip: As for the picture, see `prepare`.
        crop: As for the picture, see `prepare`.
        patch: As for the picture, see `prepare`.
        background: As for the picture, see `prepare`.
        pad_value: As for the picture, see `prepare`.
        like: (width, height) of the picture that it belongs to, as stored: a partner of other size is brought to it
            first, so that both are cut alike. None for a condition picture alone.

    Returns:
        uint8 [H, W, C], float32 with a value range, or of a map the places of its classes, uint8 [H, W, 1].

    Raises:
        ValueError: The partner has other proportions, other channels, or a class that the map does not have.
    """
    is_map = condition.kind == "map"
    shown: Picture = condition.places(map_values(picture)) if is_map else picture
    found = describe(shown)
    if like is not None and (found.width, found.height) != like:
        _check_proportions((found.width, found.height), like)
        if patch is not None:
            raise ValueError(
                f"it has {found.width}x{found.height} pixels, its picture {like[0]}x{like[1]}: patches need partners "
                "of the same size"
            )
    return prepare(
        shown,
        size,
        condition.channels,
        fit=fit,
        flip=flip,
        crop=crop,
        background=background,
        pad_value=0 if is_map else pad_value,
        value_range=condition.value_range,
        patch=patch,
        like=like,
        nearest=is_map,
    )


def _check_proportions(found: tuple[int, int], wanted: tuple[int, int]) -> None:
    """ValueError if a partner of (width, height) cannot be brought to the size of its picture without distortion."""
    exact = found[1] * wanted[0] / wanted[1]  # the width it should have
    if abs(found[0] - exact) > max(1.0, _PROPORTIONS * exact):
        raise ValueError(
            f"it has {found[0]}x{found[1]} pixels (width x height), its picture {wanted[0]}x{wanted[1]}: partners have "
            "the same proportions"
        )
