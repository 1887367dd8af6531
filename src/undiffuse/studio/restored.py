"""Puts settings back on the page: those of a link, or of an earlier picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from undiffuse.studio.form import SettingsForm
from undiffuse.studio.jobs import EDITS
from undiffuse.studio.links import Opened

__all__ = ["Restored"]


@dataclass(frozen=True)
class Restored:
    """The controls that settings are put back into.

    Attributes:
        form: The form of settings.
        other: The form of the second settings of a comparison.
        controls: The controls of the other tabs, by task and name.
        rooms: The tabs of the page.
        ways: The tabs of the ways to make pictures.
        edits: The tabs of the edits.
    """

    form: SettingsForm
    other: SettingsForm
    controls: Mapping[str, Mapping[str, Any]]
    rooms: Any
    ways: Any
    edits: Any

    @property
    def outputs(self) -> list[Any]:
        """All of them."""
        own = [part for controls in self.controls.values() for part in controls.values()]
        return [*self.form.inputs, *self.other.inputs, *own, self.rooms, self.ways, self.edits]

    def changes(self, found: Opened) -> dict[Any, Any]:
        """Returns the changes that put settings back, and open their tab."""
        out = dict(zip(self.form.inputs, self.form.write(found.settings), strict=True))
        if found.other is not None:
            out |= dict(zip(self.other.inputs, self.other.write(found.other), strict=True))
        for name, part in self.controls.get(found.task, {}).items():
            if name in found.values:
                out[part] = found.values[name]
        edited = found.task in EDITS
        out |= {self.rooms: gr.update(selected="make"), self.ways: gr.update(selected="edit" if edited else found.task)}
        return {**out, self.edits: gr.update(selected=found.task)} if edited else out
