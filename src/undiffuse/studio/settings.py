"""Holds what is chosen on the page: model, classes, seed and sampler; as a link and from a picture's record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from undiffuse.config import GuidanceConfig, SamplerConfig
from undiffuse.config.fields import Setting, settings_of
from undiffuse.config.kinds import Flag
from undiffuse.models import SHIPPED
from undiffuse.util.errors import ConfigError

__all__ = ["Settings", "declared", "sampler_values", "text_of"]

MOST = 64
"""Images of one run on the page; the command line makes any number."""


def declared() -> Iterator[tuple[Any, Setting]]:
    """Yields (default, declaration) of each setting of the sampler and of guidance."""
    for config in (SamplerConfig, GuidanceConfig):
        for f, found in settings_of(config):
            yield f.default, found


def text_of(value: Any) -> str:
    """Returns a value as it is typed on the command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def sampler_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Reads settings of the sampler from the fields of a form.

    Args:
        given: Values by the name of the setting: text, numbers, flags, or None for an empty field. Settings that may
            have several values are text with commas.

    Returns:
        The values that are not at their defaults.

    Raises:
        ConfigError: A value is not possible.
    """
    out: dict[str, Any] = {}
    for default, found in declared():
        value = given.get(found.name)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        words = [part.strip() for part in str(value).split(",")] if found.many else [value]
        read = [_read(found, word) for word in words if word != ""]
        chosen = tuple(read) if found.many else read[0]
        if chosen != default:
            out[found.name] = chosen
    return out


def _read(found: Setting, value: Any) -> Any:
    if isinstance(found.kind, Flag) and isinstance(value, bool):
        return value
    try:
        return found.kind.parse(text_of(value))
    except ValueError as error:
        raise ConfigError(found.name, str(error)) from None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A model and how it is sampled.

    Attributes:
        model: A model file, a run folder, or the name of a shipped or published model.
        weights: Which of its weights; None for the default.
        classes: Names or numbers of classes; empty for all.
        count: How many images, 1 to 64.
        seed: Seed of the noise.
        condition: Conditions besides the class, see `Pipeline.sample`.
        sampler: Settings of `SamplerConfig` and `GuidanceConfig` by name, those that are not at their defaults.

    Raises:
        ConfigError: A value is not possible.
    """

    model: str = SHIPPED[0]
    weights: str | None = None
    classes: tuple[str, ...] = ()
    count: int = 10
    seed: int = 0
    condition: tuple[str, ...] = ()
    sampler: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", str(self.model or "").strip())
        if not self.model:
            raise ConfigError("model", "is missing: choose a model")
        for name, low, high in (("count", 1, MOST), ("seed", 0, 2**64 - 1)):
            value = getattr(self, name)
            if isinstance(value, float) and value.is_integer():
                object.__setattr__(self, name, int(value))
            elif not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(name, f"{value!r} is not possible; expected a whole number from {low} to {high}")
            if not low <= getattr(self, name) <= high:
                raise ConfigError(name, f"{value} is not possible; expected a whole number from {low} to {high}")
        self.config()

    def config(self) -> SamplerConfig:
        """Returns the sampler's settings.

        Raises:
            ConfigError: A value is not possible, or settings exclude each other.
        """
        return SamplerConfig().replace(model=self.model, weights=self.weights, **self.sampler)

    def class_list(self) -> list[str] | None:
        """Returns the chosen classes; None for all."""
        names = [name.strip() for name in self.classes if name.strip()]
        return None if not names or names == ["all"] else names

    def replace(self, **changes: Any) -> Settings:
        """Returns a copy with changes."""
        return replace(self, **changes)

    def with_sampler(self, **changes: Any) -> Settings:
        """Returns a copy with other settings of the sampler; None puts one back to its default."""
        sampler = {**self.sampler, **changes}
        return replace(self, sampler={name: value for name, value in sampler.items() if value is not None})

    def to_query(self) -> str:
        """Returns the settings as the query of a link, without those at their defaults."""
        plain = Settings()
        pairs = [
            (f.name, text_of(getattr(self, f.name)))
            for f in fields(self)
            if f.name not in ("sampler", "condition", "classes")
            and getattr(self, f.name) not in (None, getattr(plain, f.name))
        ]
        pairs += [("class", name) for name in self.classes]
        pairs += [("condition", text) for text in self.condition]
        for name, value in self.sampler.items():
            pairs.append((name, ",".join(map(text_of, value)) if isinstance(value, (tuple, list)) else text_of(value)))
        return urlencode(pairs)

    @classmethod
    def from_query(cls, query: str | Iterable[tuple[str, str]]) -> Settings:
        """Reads the query of a link; names of other programs are left out.

        Raises:
            ConfigError: A value is not possible.
        """
        pairs = list(parse_qsl(query) if isinstance(query, str) else query)
        given = dict(pairs)
        own: dict[str, Any] = {name: given[name] for name in ("model", "weights") if name in given}
        for name in ("count", "seed"):
            if name in given:
                if not given[name].isdecimal():
                    raise ConfigError(name, f"{given[name]!r} is not possible; expected a whole number")
                own[name] = int(given[name])
        classes, condition = (tuple(value for name, value in pairs if name == key) for key in ("class", "condition"))
        return cls(**own, classes=classes, condition=condition, sampler=sampler_values(given))

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str = "the record") -> Settings:
        """Reads the record of a picture that was sampled or edited.

        Args:
            record: What `pictures.read_record` returns.
            where: What messages call it.

        Raises:
            ValueError: The record does not say how to make an image.
        """
        config = SamplerConfig.from_record(record, where=where)
        sampler = {}
        for part in (config, config.guidance):
            for f, found in settings_of(part):
                value = getattr(part, f.name)
                if value != f.default and value is not None:
                    sampler[found.name] = value
        classes = record.get("classes")
        if isinstance(classes, list):
            named = record.get("class_name")
            one = isinstance(named, str) and set(classes) == {record.get("class")}
            classes = [named] if one else classes
        index, seed = record.get("index"), record.get("seed")
        return cls(
            model=str(config.model), weights=config.weights,
            classes=tuple(map(str, classes)) if isinstance(classes, list) else (),
            count=min(MOST, index + 1) if isinstance(index, int) else cls.count,
            seed=seed if isinstance(seed, int) else 0, sampler=sampler,
        )  # fmt: skip
