"""Extensions of other installed packages, found through entry points."""

from __future__ import annotations

from typing import Any

__all__ = ["load_plugin"]


def load_plugin(group: str, name: str) -> Any | None:
    """Loads what an installed package offers under a name.

    Nothing is imported from a package until someone uses the name that it offers.

    Args:
        group: Name of the entry-point group, for example "undiffuse.metrics".
        name: Name of the entry point.

    Returns:
        The object that the entry point refers to; None if no installed package offers the name.
    """
    from importlib.metadata import entry_points

    for entry in entry_points(group=group, name=name):
        return entry.load()
    return None
