"""Names the kinds of work that the page does, and the settings that each of them takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from undiffuse.config import GuidanceConfig, SamplerConfig
from undiffuse.config.fields import settings_of
from undiffuse.config.sampler import RUNTIME, SAMPLER
from undiffuse.studio.settings import Settings
from undiffuse.util.errors import ConfigError

__all__ = ["EDITS", "Job", "MAKES", "MAPPED"]

EDITS = ("inpaint", "restore", "vary", "translate")
MAKES = ("sample", "compare", "interpolate", *EDITS)
"""The kinds of work that make pictures."""
MAPPED = "image:"
"""What a condition begins with that names a picture."""

_SOLVER = {found.name for _, found in settings_of(SamplerConfig) if found.group == SAMPLER}
_RUNTIME = {found.name for _, found in settings_of(SamplerConfig) if found.group == RUNTIME}
_GUIDANCE = {found.name for _, found in settings_of(GuidanceConfig)}
_TAKEN = {
    "interpolate": {"steps", "clip"} | _RUNTIME,
    "translate": {"steps", "clip"} | _RUNTIME | _GUIDANCE,
    **dict.fromkeys(("inpaint", "restore", "vary"), (_SOLVER - {"budget"}) | _RUNTIME | _GUIDANCE),
}
"""Settings of the sampler that a kind of work takes, as its command does; one that is not named takes all."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work for a model process.

    Attributes:
        task: One of `MAKES`, or "describe", "classify", "prepare", "shrink" or "data".
        settings: The model and the sampler.
        inputs: What else the task takes, by the names of its function's arguments.
        other: Of a comparison, the second settings.
    """

    task: str
    settings: Settings = field(default_factory=Settings)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    other: Settings | None = None

    def sampler(self) -> dict[str, Any]:
        """Returns the settings of the sampler that the task takes."""
        taken = _TAKEN.get(self.task)
        return {name: value for name, value in self.settings.sampler.items() if taken is None or name in taken}

    def left_out(self) -> list[str]:
        """Returns the names of the settings that are chosen and that the task does not take."""
        return [name for name in self.settings.sampler if name not in self.sampler()]

    def config(self) -> SamplerConfig:
        """Returns the sampler's settings as the task takes them."""
        return self.settings.replace(sampler=self.sampler()).config()

    def one_class(self) -> str | None:
        """Returns the class of all images of an edit; None for those of the pictures.

        Raises:
            ConfigError: There are several ("classes").
        """
        classes = self.settings.class_list()
        if classes is None:
            return None
        if len(classes) > 1:
            raise ConfigError("classes", f"takes one class for an edit; {len(classes)} are chosen")
        return classes[0]
