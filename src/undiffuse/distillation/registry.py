"""The methods of distillation by name, with their settings. It does not import torch."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from undiffuse.util.errors import ConfigError

if TYPE_CHECKING:
    from undiffuse.distillation.base import Method
    from undiffuse.preconditioning import Preconditioning

__all__ = ["DEFAULT", "METHODS", "MethodInfo", "Setting", "build_method", "read_settings"]


class Setting(NamedTuple):
    """A setting of a method.

    Attributes:
        default: Default value, which determines the type.
        line: One-line description.
        words: Allowed words of a text; empty for any number.
    """

    default: int | float | str
    line: str
    words: tuple[str, ...] = ()


class MethodInfo(NamedTuple):
    """Describes a method.

    Attributes:
        line: One-line description.
        method: Location of its class, "package.module:Class".
        settings: Settings by name.
        halves: Whether the student's calls are halved repeatedly, each time with the last student as teacher.
    """

    line: str
    method: str
    settings: Mapping[str, Setting] = {}
    halves: bool = False


ANY = ("*",)
"""In the place of allowed words: any text."""
_INPUTS = ("data", "own")
_CURVES = ("fixed", "original", "improved")
_DISTANCES = ("l1", "l2", "pseudo-huber")
_CONSISTENCY = {
    "segments": Setting(1, "1: every level maps to the image; 0: a segment for each call (multistep consistency)"),
    "curve": Setting("improved", "how the number of compared levels grows", _CURVES),
    "first": Setting(10, "number of levels at the beginning"),
    "last": Setting(160, "number of levels at the end"),
    "distance": Setting("pseudo-huber", "distance of two images", _DISTANCES),
    "target_decay": Setting(0.0, "decay of the average that the student is compared with; 0: the student itself"),
}
_HERE = "undiffuse.distillation"

METHODS: dict[str, MethodInfo] = {
    "moment-matching": MethodInfo(
        "samples of a few ancestral steps get the teacher's moments at every noise level (Salimans et al. 2024)",
        f"{_HERE}.moment_matching:MomentMatching",
        {
            "anchor": Setting(0.0, "weight that keeps the auxiliary network near the teacher"),
            "clip": Setting("static", "static: denoised images are clipped, as samplers do", ("static", "none")),
            "inputs": Setting("data", "what the student is called on: noisy images of the data, or its own", _INPUTS),
            "every": Setting(1, "train the student at every such update only, the other networks at all"),
            "wait": Setting(0, "updates at the beginning in which only the other networks are trained"),
            "top": Setting(1.0, "noisiest levels at which moments are compared, as a share of the chain"),
            "adversarial": Setting(0.0, "weight of the loss by which a discriminator tells the images from DATA"),
            "discriminator": Setting("", "classifier of noisy images that the discriminator starts from", ANY),
        },
    ),
    "progressive": MethodInfo(
        "one step learns two of the teacher, and the number of steps is halved (Salimans & Ho 2022)",
        f"{_HERE}.progressive:Progressive",
        {
            "start": Setting(64, "steps of the first student's teacher"),
            "inputs": Setting("data", "start from noisy images of the data, or from what the teacher makes", _INPUTS),
        },
        halves=True,
    ),
    "consistency-distillation": MethodInfo(
        "neighbouring levels of the teacher's trajectory give the same image (Song et al. 2023)",
        f"{_HERE}.consistency:ConsistencyDistillation",
        {**_CONSISTENCY, "curve": _CONSISTENCY["curve"]._replace(default="fixed"),
         "last": _CONSISTENCY["last"]._replace(default=40)},
    ),
    "consistency-training": MethodInfo(
        "the same without a teacher, from the data (Song et al. 2023; Song & Dhariwal 2024)",
        f"{_HERE}.consistency:ConsistencyTraining",
        _CONSISTENCY,
    ),
}  # fmt: skip
"""All methods; the first is the default."""

DEFAULT = next(iter(METHODS))


def read_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all settings of a method, with defaults for those not given.

    Args:
        name: Name of the method.
        given: Settings by name; texts are read.

    Raises:
        ConfigError: The method, a setting or a value is not possible.
    """
    if name not in METHODS:
        raise ConfigError("method", f"{name!r} is unknown; choose one of {', '.join(METHODS)}")
    known = METHODS[name].settings
    out: dict[str, Any] = {key: setting.default for key, setting in known.items()}
    for key, value in given.items():
        if key not in known:
            raise ConfigError("settings", f"{name} has no setting {key!r}; it has: {', '.join(known) or 'none'}")
        out[key] = _read(f"{name}: {key}", known[key], value)
    return out


def _read(name: str, setting: Setting, value: Any) -> Any:
    if setting.words == ANY:
        return str(value)
    if setting.words:
        if value not in setting.words:
            raise ConfigError("settings", f"{name}={value}: expected one of {', '.join(setting.words)}")
        return value
    whole = isinstance(setting.default, int)
    try:
        number = math.nan if isinstance(value, bool) else int(value) if whole else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ConfigError("settings", f"{name}={value}: expected a {'whole ' * whole}number of 0 or more")
    return number


def build_method(name: str, preconditioning: Preconditioning, calls: int, settings: Mapping[str, Any]) -> Method:
    """Returns a method for a student of `calls` calls.

    Args:
        name: Name of the method.
        preconditioning: The levels of the student's process.
        calls: Calls of the student, 1 or more.
        settings: Its settings, see `read_settings`.

    Raises:
        ConfigError: The settings are not possible.
    """
    full = read_settings(name, settings)
    module, _, kind = METHODS[name].method.partition(":")
    method: type[Method] = getattr(importlib.import_module(module), kind)
    try:
        return method.of(preconditioning, calls, full)
    except ValueError as error:
        raise ConfigError("settings", f"of {name} are not possible: {error}") from error
