"""Declares what a model is conditioned on besides one class: several labels, numbers, and a picture.

A declaration is kept in the model file. It turns values in a user's own units (years, degrees, names of labels, pixels)
into the tensors that networks take, and back into words. NaN means "not given" everywhere: networks replace it by a
learned embedding or a declared null picture, which is what classifier-free guidance contrasts with.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KEYWORDS", "ImageCondition", "ModelConditions", "NumberCondition", "near_names", "tag_vector", "target_key"]

KEYWORDS = ("tags", "numbers", "cond_image")
"""Keywords by which networks take these conditions, besides "y" for a class and "low_res"."""


@dataclass(frozen=True, kw_only=True)
class NumberCondition:
    """Numbers that a model is conditioned on, with what normalises them.

    Attributes:
        names: Names of the K numbers, for example ("age", "angle").
        mean: Means over the training images, in the units of the data.
        std: Standard deviations, above 0.
        low: Smallest values that were trained.
        high: Largest values that were trained.

    Raises:
        ValueError: The fields have different lengths, or a standard deviation is not positive.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        for name in ("mean", "std", "low", "high"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        lengths = {len(getattr(self, name)) for name in ("names", "mean", "std", "low", "high")}
        if lengths != {len(self.names)} or not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"numbers need distinct names with a mean, std, low and high each; got {self}")
        if not all(0 < value < float("inf") for value in self.std):
            raise ValueError(f"the standard deviation of a number must be positive; got {self.std}")

    @classmethod
    def of(cls, names: Sequence[str], values: NDArray[Any]) -> NumberCondition:
        """Measures the numbers of the training images.

        Args:
            names: Names of the K numbers.
            values: [N, K] in the units of the data; NaN where a number is not known.

        Raises:
            ValueError: A number is known of no image, or is the same for all.
        """
        found = np.asarray(values, dtype=np.float64)
        for name, column in zip(names, found.T, strict=True):
            known = column[np.isfinite(column)]
            if not len(known) or known.min() == known.max():
                said = f"is {known[0]:g} for every image" if len(known) else "is known of no image"
                raise ValueError(f"the number {name!r} {said}, so a model cannot learn what it does: leave it out")
        return cls(
            names=tuple(names), mean=tuple(np.nanmean(found, axis=0)), std=tuple(np.nanstd(found, axis=0)),
            low=tuple(np.nanmin(found, axis=0)), high=tuple(np.nanmax(found, axis=0)),
        )  # fmt: skip

    def normalised(self, values: NDArray[Any] | Tensor) -> Tensor:
        """Returns (v - mean) / std, float32 [N, K], of values [N, K] in the units of the data; NaN stays."""
        given = torch.as_tensor(np.asarray(values, dtype=np.float64)).reshape(-1, len(self.names))
        mean, std = torch.tensor(self.mean, dtype=torch.float64), torch.tensor(self.std, dtype=torch.float64)
        return ((given - mean) / std).float()

    def restored(self, values: Tensor) -> Tensor:
        """Returns normalised values [N, K] in the units of the data, float32 on the CPU."""
        mean, std = torch.tensor(self.mean, dtype=torch.float64), torch.tensor(self.std, dtype=torch.float64)
        return (values.detach().cpu().double() * std + mean).float()

    def remarks(self, values: NDArray[Any]) -> list[str]:
        """Says which of the values [N, K] are outside the range that was trained."""
        out = []
        for name, column, low, high in zip(self.names, np.asarray(values).T, self.low, self.high, strict=True):
            slack = 1e-6 * (high - low)  # float32 rounds
            beyond = column[(column < low - slack) | (column > high + slack)]
            if len(beyond):
                shown = ", ".join(f"{value:g}" for value in dict.fromkeys(beyond.tolist()[:3]))
                out.append(f"{name} = {shown} is outside the range of the training images, {low:g} to {high:g}")
        return out


@dataclass(frozen=True, kw_only=True)
class ImageCondition:
    """A picture that a model is conditioned on: a sketch, a map, another modality, a picture of low quality.

    Attributes:
        kind: "image" is resized smoothly and seen as values in [-1, 1]; "map" holds a class in each pixel, is resized
            by nearest neighbour and seen as one plane for each class (one-hot).
        channels: Channels of the stored picture; 1 for a map.
        values: The stored values of a map's classes, ascending.
        value_range: (low, high) of an image's stored values that become -1 and 1; None for 8-bit levels.
    """

    kind: Literal["image", "map"] = "image"
    channels: int = 1
    values: tuple[int, ...] = ()
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(int(value) for value in self.values))
        if self.value_range is not None:
            object.__setattr__(self, "value_range", (float(self.value_range[0]), float(self.value_range[1])))
        if self.kind not in ("image", "map") or self.channels < 1:
            raise ValueError(f'a condition picture is of the kind "image" or "map" with channels >= 1; got {self}')
        if (self.kind == "map") != bool(self.values):
            raise ValueError(f"a map, and only a map, lists the values of its classes; got {self}")

    @property
    def planes(self) -> int:
        """Channels that a network sees."""
        return len(self.values) if self.kind == "map" else self.channels

    def tensor(self, pixels: NDArray[Any] | Tensor, device: torch.device | str | None = None) -> Tensor:
        """Returns what a network sees.

        Args:
            pixels: Prepared pictures [B, H, W, C]: uint8, or floats in [-1, 1] with a value range; of a map the places
                of the classes in `values`, uint8 [B, H, W, 1].
            device: Where the result is.

        Returns:
            float32 [B, planes, H, W].
        """
        from undiffuse.pixels import from_pixels

        if self.kind == "image":
            return from_pixels(pixels, device)
        places = torch.as_tensor(np.array(pixels) if isinstance(pixels, np.ndarray) else pixels)[..., 0].long()
        places = places.to(device) if device is not None else places
        return F.one_hot(places, len(self.values)).permute(0, 3, 1, 2).float().contiguous()

    def places(self, stored: NDArray[Any]) -> NDArray[np.uint8]:
        """Returns the places of a map's classes, uint8, of stored values of the same shape.

        Raises:
            ValueError: A value is none of the classes.
        """
        values = np.asarray(self.values)
        found = np.searchsorted(values, stored).clip(0, len(values) - 1)
        strange = np.unique(stored[values[found] != stored])
        if len(strange):
            known = ", ".join(map(str, self.values[:20])) + (", ..." if len(values) > 20 else "")
            raise ValueError(f"the map has the value {strange[0]}, which is none of its classes: {known}")
        return found.astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class ModelConditions:
    """Everything that a model is conditioned on besides one class.

    Attributes:
        tags: Names of labels of which a picture has any number.
        numbers: Numbers.
        image: A picture.
    """

    tags: tuple[str, ...] = ()
    numbers: NumberCondition | None = None
    image: ImageCondition | None = None

    def __bool__(self) -> bool:
        return bool(self.keywords)

    @property
    def keywords(self) -> tuple[str, ...]:
        """The keywords of `KEYWORDS` by which a network takes them."""
        given = {"tags": bool(self.tags), "numbers": self.numbers is not None, "cond_image": self.image is not None}
        return tuple(name for name in KEYWORDS if given[name])

    @property
    def widths(self) -> dict[str, int]:
        """Fields of a network's config or spec: numbers of labels, numbers, and channels of the picture."""
        return {
            "num_tags": len(self.tags),
            "num_numbers": len(self.numbers.names) if self.numbers is not None else 0,
            "cond_channels": self.image.planes if self.image is not None else 0,
        }

    def text(self) -> str:
        """Names the conditions in a few words: "labels hat, scarf; numbers age, angle; a picture (3 channels)"."""
        parts = []
        if self.tags:
            parts.append(f"labels {', '.join(self.tags[:6])}{', ...' if len(self.tags) > 6 else ''}")
        if self.numbers is not None:
            ranges = zip(self.numbers.names, self.numbers.low, self.numbers.high, strict=True)
            parts.append("numbers " + ", ".join(f"{name} ({low:g} to {high:g})" for name, low, high in ranges))
        if self.image is not None:
            count = f"{self.image.planes} class{'es' if self.image.planes != 1 else ''}"
            channels = f"{self.image.channels} channel{'s' if self.image.channels != 1 else ''}"
            parts.append(f"a map ({count})" if self.image.kind == "map" else f"a picture ({channels})")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary for JSON of what is there."""
        plain = asdict(self)
        return {name: plain[name] for name in ("tags", "numbers", "image") if plain[name]}

    @classmethod
    def from_dict(cls, about: Mapping[str, Any] | None) -> ModelConditions:
        """The inverse of `to_dict`, also after a trip through JSON; None means no conditions.

        Raises:
            TypeError, ValueError: The fields are not those of conditions.
        """
        about = about or {}
        unknown = set(about) - {"tags", "numbers", "image"}
        if unknown:
            raise ValueError(f"unknown kinds of conditions {', '.join(sorted(unknown))}")
        numbers, image = about.get("numbers"), about.get("image")
        return cls(
            tags=tuple(about.get("tags") or ()),
            numbers=None if not numbers else NumberCondition(**numbers),
            image=None if not image else ImageCondition(**image),
        )


def target_key(number: int) -> str:
    """Returns the name by which the denoiser takes what regressor `number` guides towards, counted from 0."""
    return f"target_{number}"


def tag_vector(names: Iterable[str], known: Sequence[str]) -> NDArray[np.float32]:
    """Returns labels as a vector [L] of 0 and 1.

    Args:
        names: The labels of a picture; case does not matter where that is unambiguous.
        known: The L labels of the model.

    Raises:
        ValueError: The model does not know a label; those that are spelt alike are named.
    """
    vector = np.zeros(len(known), dtype=np.float32)
    folded = [name.casefold() for name in known]
    for name in names:
        if name in known:
            vector[list(known).index(name)] = 1
        elif folded.count(name.casefold()) == 1:
            vector[folded.index(name.casefold())] = 1
        else:
            raise ValueError(f"the label {name!r} is not known{near_names(name, known)}")
    return vector


def near_names(name: str, known: Sequence[str]) -> str:
    """Returns "; did you mean ..." with names that are spelt alike, or "; expected one of ..."."""
    folded = {entry.casefold(): entry for entry in known}
    near = [folded[key] for key in difflib.get_close_matches(name.casefold(), folded, 3, 0.6)]
    near += [entry for entry in known if name and name.casefold() in entry.casefold() and entry not in near][:3]
    if near:
        return f"; did you mean {', '.join(near[:3])}?"
    shown = ", ".join(known[:12]) + (f" and {len(known) - 12:,} more" if len(known) > 12 else "")
    return f"; expected some of {shown}" if shown else ""
