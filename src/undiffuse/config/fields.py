"""Fields of settings that know their help, kind and name: what options, records and checks are made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from undiffuse.config.kinds import Kind
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import shown

__all__ = ["Setting", "check_values", "setting", "settings_of"]

_KEY = "undiffuse.setting"


@dataclass(frozen=True)
class Setting:
    """What is declared with a field.

    Args:
        help: One line for `--help` and for the reference.
        kind: The values that are possible.
        name: The name in records, keyword arguments and options; by default the field's own.
        metavar: What stands for a value in the help.
        group: The heading in the help.
        advanced: Whether only `--help-all` shows it.
        many: Whether the field is a tuple; its option may be given several times.
        off: The name of an option that switches a flag off which is on by default, without dashes.
    """

    help: str
    kind: Kind
    name: str = ""
    metavar: str | None = None
    group: str = ""
    advanced: bool = False
    many: bool = False
    off: str = ""


def setting(default: Any, help: str, kind: Kind, **more: Any) -> Any:
    """Declares a field of a frozen dataclass; the arguments are those of `Setting`."""
    return dataclasses.field(default=default, metadata={_KEY: Setting(help, kind, **more)})


def settings_of(cls: Any) -> Iterator[tuple[dataclasses.Field[Any], Setting]]:
    """Yields the declared fields of a dataclass with their `Setting`, in order, each with its name filled in."""
    for f in dataclasses.fields(cls):
        found = f.metadata.get(_KEY)
        if found is not None:
            yield f, found if found.name else dataclasses.replace(found, name=f.name)


def check_values(config: Any) -> None:
    """Checks every declared field of a config against its kind; None is possible where it is the default.

    Raises:
        ConfigError: Names the first field whose value is not possible.
    """
    for f, declared in settings_of(config):
        value = getattr(config, f.name)
        if value is None and f.default is None:
            continue
        for one in value if declared.many else (value,):
            if not declared.kind.accepts(one):
                raise ConfigError(declared.name, f"{shown(one)} is not possible; expected {declared.kind.expected}")


def given(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Picks the fields of `cls` out of `values`, which has them by their names in records and keyword arguments."""
    return {f.name: values[declared.name] for f, declared in settings_of(cls) if declared.name in values}
