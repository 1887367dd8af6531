"""What the library requires of a network, its own or anybody's, and how it reads what a network is for.

Any `torch.nn.Module` that is called as `Network` describes can be trained and sampled. What its images and classes are
is read by `describe`, from the network's `spec`, from its `config`, or from arguments. Networks of a registered
architecture (`undiffuse.nets.registry`) can also be loaded again from files.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Network(Protocol):
    """A diffusion network, called as `net(x, t, **conditions)`.

    A network may have these attributes. None is required.

        conditions: Names of the conditions it accepts, a set of strings. Without it they are read from the names of the
            parameters of `forward` that follow `x` and `t`.
        config: A dataclass or dictionary of JSON values that describes it, see `describe`. Files keep it.
        spec: A `NetworkSpec`, for networks whose config has fields of other names.
        architecture: The name under which it is registered, needed only if a function builds it.
        channels_last: True if images and weights should be in the channels-last memory layout.
    """

    def __call__(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Predicts what the process says: the noise, the image, ...

        Args:
            x: Noisy images [B, C, H, W], scaled as the process says.
            t: The time input [B], float32: step numbers of a chain, or a function of the noise level (see
                `preconditioning`).
            **conditions: Tensors by name: `y` [B] int64 class indices, `low_res` [B, C, h, w] small images, `tags`
                [B, L] of 0 and 1 (labels of which an image has any number), `numbers` [B, K] normalised, `cond_image`
                [B, planes, H, W] a picture. In the last three NaN means "not given".

        Returns:
            [B, C_out, H, W], where C_out is C, or 2 C if the process learns the variance. A classifier of noisy images
                returns scores [B, num_classes].
        """
        ...


_WIDTHS = {"tags": "num_tags", "numbers": "num_numbers", "cond_image": "cond_channels"}
"""Fields that say how wide a condition is."""


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """What a network's inputs and outputs are.

    Attributes:
        size: (height, width) of the images in pixels.
        in_channels: Channels of the images.
        out_channels: Channels of the output, the number of scores of a classifier; None if it is not known.
        num_classes: Number of classes, counted from 0; None for an unconditional network.
        null_class: Whether the class index `num_classes` means "no class", for classifier-free guidance.
        super_resolution: Whether the network takes `low_res`, the image to enlarge.
        num_tags: Number of labels that it takes as `tags`; 0 for none.
        num_numbers: Number of numbers that it takes as `numbers`.
        cond_channels: Channels of the picture that it takes as `cond_image`.
    """

    size: tuple[int, int]
    in_channels: int
    out_channels: int | None = None
    num_classes: int | None = None
    null_class: bool = False
    super_resolution: bool = False
    num_tags: int = 0
    num_numbers: int = 0
    cond_channels: int = 0

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "num_classes"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if len(self.size) != 2 or any(not isinstance(side, int) or side < 1 for side in self.size):
            raise ValueError(f"the size of images must be (height, width) in pixels, got {self.size!r}")
        if self.null_class and self.num_classes is None:
            raise ValueError("null_class needs num_classes")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return (self.in_channels, *self.size)

    @property
    def null_index(self) -> int | None:
        """The class index that means "no class"; None if there is none."""
        return self.num_classes if self.null_class else None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary that `describe` reads."""
        more = {name: getattr(self, name) for name in _WIDTHS.values() if getattr(self, name)}
        return {
            "image_size": list(self.size),
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "num_classes": self.num_classes,
            "null_class": self.null_class,
            "super_resolution": self.super_resolution,
            **more,
        }

    def width_of(self, condition: str) -> int:
        """Return the width of "tags", "numbers" or "cond_image", 0 for a condition that the network does not take."""
        return int(getattr(self, _WIDTHS[condition]))


def describe(
    net: Any,
    *,
    image_shape: tuple[int, int, int] | None = None,
    out_channels: int | None = None,
    num_classes: int | None = None,
    null_class: bool | None = None,
    widths: Mapping[str, int] | None = None,
) -> NetworkSpec:
    """Return what a network's inputs and outputs are.

    They are read from `net.spec`, else from these fields of `net.config`: `size` or `image_size` (a number or (height,
    width)), `in_channels`, `out_channels`, `num_classes`, `null_class`, `super_resolution`, `num_tags`, `num_numbers`,
    `cond_channels`. All but the first two may be missing.

    Args:
        net: A network, its config, or a dictionary of a config's fields.
        image_shape: (channels, height, width), for networks that do not say it.
        out_channels: Channels of the output, likewise.
        num_classes: Number of classes, likewise.
        null_class: Whether the index `num_classes` means "no class", likewise.
        widths: `num_tags`, `num_numbers` and `cond_channels` of the data, for networks that take such conditions but do
            not say how many.

    Returns:
        The description.

    Raises:
        ValueError: The image's shape is not known, or the network says something other than the arguments.
    """
    found = net if isinstance(net, NetworkSpec) else getattr(net, "spec", None)
    if not isinstance(found, NetworkSpec):
        found = _from_config(getattr(net, "config", None) if isinstance(net, nn.Module) else net)
    if found is None:
        if image_shape is None:
            raise ValueError(
                f"{type(net).__name__} does not say which images it is for: pass image_shape=(channels, height, "
                "width), or give it a config with image_size and in_channels"
            )
        channels, *size = image_shape
        found = NetworkSpec(
            size=_size(size), in_channels=channels, out_channels=out_channels, num_classes=num_classes,
            null_class=bool(null_class), super_resolution="low_res" in conditions_of(net),
        )  # fmt: skip
        return _with_widths(found, net, widths)
    more: dict[str, Any] = {"out_channels": out_channels, "num_classes": num_classes, "null_class": null_class}
    if getattr(net, "spec", None) is None:  # arguments say what a config has no field for
        config = getattr(net, "config", None) if isinstance(net, nn.Module) else net
        new = {name: value for name, value in more.items() if value is not None and not _has(config, name)}
        found = replace(found, **new)
    given = {"image_shape": None if image_shape is None else tuple(image_shape), **more}
    for name, value in given.items():
        if value is not None and getattr(found, name) != value:
            raise ValueError(f"{name}={value!r} was given, but the network says {getattr(found, name)!r}")
    return _with_widths(found, net, widths)


def _with_widths(found: NetworkSpec, net: Any, widths: Mapping[str, int] | None) -> NetworkSpec:
    accepted = conditions_of(net)
    new = {
        field: widths[field]
        for name, field in _WIDTHS.items()
        if widths and name in accepted and not getattr(found, field) and widths.get(field)
    }
    return replace(found, **new)  # type: ignore[arg-type]


def conditions_of(net: Any) -> frozenset[str]:
    """Return the names of the conditions a network accepts, as it declares them or as its `forward` names them."""
    declared = getattr(net, "conditions", None)
    if declared is not None:
        return frozenset(declared)
    if not isinstance(net, nn.Module):
        return frozenset()
    try:
        parameters = list(inspect.signature(net.forward).parameters.values())[2:]
    except (TypeError, ValueError):
        return frozenset()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(parameter.name for parameter in parameters if parameter.kind in named)


def memory_format(net: nn.Module) -> torch.memory_format:
    """Return the memory layout in which a network wants its images and weights."""
    return torch.channels_last if getattr(net, "channels_last", False) else torch.contiguous_format


def _from_config(config: Any) -> NetworkSpec | None:
    """Read the fields of a config; None if it does not say what the images are."""

    def field(*names: str) -> Any:
        for name in names:
            value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
            if value is not None:
                return value
        return None

    size, channels = field("size", "image_size"), field("in_channels")
    if config is None or size is None or not isinstance(channels, int):
        return None
    return NetworkSpec(
        size=_size(size),
        in_channels=channels,
        out_channels=field("out_channels"),
        num_classes=field("num_classes"),
        null_class=bool(field("null_class")),
        super_resolution=bool(field("super_resolution")),
        **{name: int(field(name) or 0) for name in _WIDTHS.values()},
    )


def _has(config: Any, name: str) -> bool:
    return name in config if isinstance(config, Mapping) else hasattr(config, name)


def _size(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[return-value]
