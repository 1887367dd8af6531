"""Architectures by name: what files call a network, and how it is built again.

The library's own are `UNetConfig` and `ClassifierConfig` (their files give no architecture), and those of `_NAMED`.
Others are added by `register_network`, or by packages that declare an entry point:

    [project.entry-points."undiffuse.networks"]
    my-dit = "my_package:DiTConfig"

The entry point of a name is loaded only when a file or a network of that name is met.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

import torch
from torch import nn

from undiffuse.nets.classifier import ClassifierConfig
from undiffuse.nets.ddpm import DDPMConfig
from undiffuse.nets.edm2_unet import EDM2UNetConfig
from undiffuse.nets.edm_unet import EDMUNetConfig
from undiffuse.nets.meta import build_on_meta
from undiffuse.nets.protocol import NetworkSpec, describe
from undiffuse.nets.resnet import ResNetConfig
from undiffuse.nets.unet import UNetConfig
from undiffuse.nets.unet2d import UNet2DConfig
from undiffuse.nets.unet_rms import RMSUNetConfig

GROUP = "undiffuse.networks"
_NAMED: dict[str, Any] = {
    "ddpm": DDPMConfig,
    "edm": EDMUNetConfig,
    "edm2": EDM2UNetConfig,
    "resnet": ResNetConfig,
    "unet2d": UNet2DConfig,
    "unet-rms": RMSUNetConfig,
}
_OWN = (UNetConfig, ClassifierConfig, *_NAMED.values())
_RESERVED = ("unet", "classifier", *_NAMED)
_registered: dict[str, Any] = {}
Builder = TypeVar("Builder", bound=Callable[..., Any])


class UnknownArchitecture(ValueError):
    """A file or config names an architecture that is not registered."""


def register_network(name: str, builder: Any = None) -> Any:
    """Register an architecture, so that its networks can be saved with their name and loaded again.

    Can be used as a decorator: `@register_network("dit")`.

    Args:
        name: The name that files give the architecture, for example "dit".
        builder: One of
            - a config class, best a frozen dataclass, with a method `build()` that returns the network; networks carry
              their config as `net.config`;
            - a network class whose arguments are the fields of `net.config`, a dataclass or dictionary;
            - a function with such arguments that returns a network; the networks carry `architecture = name`.
            Arguments must be JSON values. Lists come back as lists where tuples were saved.

    Returns:
        `builder`, or a decorator if it was not given.

    Raises:
        ValueError: The name is empty, taken by another architecture, or one of the library's own.
    """
    if builder is None:
        return lambda given: register_network(name, given)
    if not isinstance(name, str) or not name.strip() or name in _RESERVED:
        raise ValueError(f"an architecture cannot be called {name!r}; the library uses {', '.join(_RESERVED)} itself")
    if not callable(builder):
        raise ValueError(f"architecture {name!r}: expected a class or a function, got {builder!r}")
    before = _registered.get(name)
    if before is not None and _origin(before) != _origin(builder):  # a reloaded module or notebook cell may come again
        raise ValueError(f"the architecture {name!r} is already registered, for {_origin(before)}")
    _registered[name] = builder
    return builder


def config_from_dict(about: Mapping[str, Any], kind: str = "diffusion") -> Any:
    """Return the config of a network, as it stands in a file's manifest as "net".

    Args:
        about: The config's fields; "architecture" names the architecture if it is not the library's U-Net.
        kind: "diffusion" or "classifier": which of the library's own architectures is meant if none is named.

    Returns:
        A `UNetConfig`, `DDPMConfig` or `ClassifierConfig`, or the config of a registered architecture. All have
        `build()`.

    Raises:
        UnknownArchitecture: The architecture is not registered.
        TypeError, ValueError: The fields do not fit the architecture.
    """
    name = about.get("architecture")
    if name is None:
        return ClassifierConfig(**about) if kind == "classifier" else UNetConfig(**about)
    if name in _NAMED:
        return _NAMED[name](**about)
    builder = _find(str(name))
    if builder is None:
        known = ", ".join(sorted({*_NAMED, *_registered}))
        raise UnknownArchitecture(
            f"unknown architecture {name!r}. If it is yours, register it first: undiffuse.nets.register_network"
            f"({name!r}, its_config_class); if a package provides it, install or import that. Known here: {known}"
        )
    fields = {key: value for key, value in about.items() if key != "architecture"}
    if isinstance(builder, type) and not issubclass(builder, nn.Module):
        return builder(**fields)
    return _Arguments(str(name), builder, fields)


def config_to_dict(net: nn.Module, spec: NetworkSpec | None = None) -> dict[str, Any]:
    """Return what a file says of a network, so that `config_from_dict` can build it again.

    A network of no registered architecture is described by its class and its images; such a file can be loaded into a
    network that the caller builds.

    Args:
        net: The network.
        spec: What its images are; default `describe(net)`.

    Returns:
        A JSON-ready dictionary.

    Raises:
        ValueError: A registered network's config is no dataclass or dictionary of JSON values.
    """
    config: Any = getattr(net, "config", None)
    if type(config) in _OWN:
        return config_fields(config)
    name = architecture_of(net)
    if name is None:
        return {"architecture": _origin(_class_of(net)), **(spec or describe(net)).to_dict()}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = asdict(config)
    elif isinstance(config, Mapping):
        fields = dict(config)
    else:
        raise ValueError(
            f"a network of the architecture {name!r} must have a config, a dataclass or dictionary; "
            f"{type(net).__name__}.config is {config!r}"
        )
    fields.pop("architecture", None)
    try:
        return {"architecture": name, **json.loads(json.dumps(fields))}
    except TypeError as error:
        raise ValueError(f"the config of {name!r} has fields that JSON cannot express: {error}") from error


def config_fields(config: Any) -> dict[str, Any]:
    """Return the fields of a config of one of the library's own networks, as files have them."""
    return config.to_dict() if isinstance(config, UNetConfig | ClassifierConfig) else asdict(config)


def architecture_of(net: nn.Module) -> str | None:
    """Return the name under which a network's architecture is registered; None if it is not."""
    named = getattr(net, "architecture", None)
    if isinstance(named, str) and _find(named) is not None:
        return named
    classes = (type(getattr(net, "config", None)), _class_of(net))
    for name, builder in _registered.items():
        if builder in classes:
            return name
    origins = {f"{cls.__module__}:{cls.__qualname__}" for cls in classes}
    for point in entry_points(group=GROUP):
        if point.value in origins and _find(point.name) in classes:
            return point.name
    return None


def _class_of(net: nn.Module) -> type[Any]:
    """Return a network's own class, also if it is split over processes, where PyTorch makes it a subclass of it."""
    return next(cls for cls in type(net).__mro__ if not cls.__module__.startswith("torch.distributed"))


def is_registered(net: nn.Module) -> bool:
    """Return whether a file that holds `net` can be loaded without help: whether its architecture is known by name."""
    return type(getattr(net, "config", None)) in _OWN or architecture_of(net) is not None


def check_rebuilds(net: nn.Module) -> None:
    """Check, before a training, that a registered network can be built again from what its file will say.

    Raises:
        ValueError: The config does not build a network with the same parameters.
    """
    name = architecture_of(net)
    if name is None:
        return
    about = config_to_dict(net)
    try:
        config = config_from_dict(about)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the architecture {name!r} cannot be built again from its config {about}: {error}") from error
    try:
        again = build_on_meta(config.build)
    except (NotImplementedError, RuntimeError):
        return  # a network that cannot be made without memory is checked when it is loaded
    shapes = [{key: tuple(value.shape) for key, value in part.state_dict().items()} for part in (net, again)]
    if shapes[0] != shapes[1]:
        odd = sorted(key for key in shapes[0].keys() | shapes[1].keys() if shapes[0].get(key) != shapes[1].get(key))
        raise ValueError(f"the config of {name!r} builds another network: {odd[0]} differs ({len(odd)} tensors do)")


def check_size(config: Any, tensors: int) -> None:
    """Raises ValueError if a config has more parts than there are weights for, before time is spent on building them.

    Args:
        config: The config of a network.
        tensors: Number of tensors that the file of the config holds.
    """
    for name in ("num_res_blocks", "num_numbers"):  # each of which is a module, or several
        parts = getattr(config, name, 0)
        if isinstance(parts, (int, float)) and parts > tensors:
            raise ValueError(f"{name} is {parts:g}, but the file holds only {tensors} tensors")


def build(config: Any) -> nn.Module:
    """Return the network of a config, to be given weights by `load_state_dict(..., assign=True)`.

    The library's own networks are made without memory. Others are initialised as usual, since they may compute tables
    that files do not hold; torch's random generator is left as it was.
    """
    if type(config) in _OWN:
        return build_on_meta(config.build)
    with torch.random.fork_rng(devices=[]):
        return config.build()


@dataclass(frozen=True)
class _Arguments:
    """The config of a network that a class or function builds from arguments."""

    architecture: str
    builder: Callable[..., Any]
    arguments: Mapping[str, Any]

    def build(self) -> nn.Module:
        built = self.builder(**self.arguments)
        if not isinstance(built, nn.Module):
            raise TypeError(f"the architecture {self.architecture!r} built a {type(built).__name__}, not a network")
        return built


def _find(name: str) -> Any:
    """Return the builder of an architecture, loading its package's entry point if it has one; None if there is none."""
    if name not in _registered and name not in _RESERVED:
        for point in entry_points(group=GROUP, name=name):
            register_network(name, point.load())
            break
    return _registered.get(name)


def _origin(builder: Any) -> str:
    return f"{getattr(builder, '__module__', '?')}.{getattr(builder, '__qualname__', repr(builder))}"
