"""The part of a tab that shows the path of its job: live while it runs, and with a slider afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from undiffuse.studio.jobs import Job
from undiffuse.studio.page import Page
from undiffuse.studio.paths import Path
from undiffuse.studio.processes import Event

__all__ = ["PathView"]


class PathView:
    """The path of a tab's last job.

    Args:
        page: What the tabs share.
        slot: The tab; it begins the names of the elements on the page.
    """

    def __init__(self, page: Page, slot: str) -> None:
        self._page, self._slot = page, slot
        self.live = gr.HTML(elem_id=f"{slot}-live")
        self.scrub = gr.Slider(
            1, 2, value=2, step=1, label="Step of the path", info="Move it to look through the path again.",
            visible=False, elem_id=f"{slot}-scrub",
        )  # fmt: skip
        self.charts = gr.HTML(elem_id=f"{slot}-charts")
        self.scrub.input(
            self._show, self.scrub, self.live, show_progress="hidden", trigger_mode="always_last", queue=False,
            api_visibility="private",
        )  # fmt: skip

    @property
    def outputs(self) -> list[Any]:
        """The elements that a job changes."""
        return [self.live, self.scrub, self.charts]

    def cleared(self) -> dict[Any, Any]:
        """Returns the changes as a job begins."""
        return {self.live: "", self.charts: "", self.scrub: gr.update(visible=False)}

    def follow(self, request: gr.Request, job: Job) -> Iterator[tuple[str, Event, dict[Any, Any]]]:
        """Does a job and yields (the state as HTML, the event, the changes), see `Page.follow`."""
        session, seen = self._page.session(request), 0
        for text, event in self._page.follow(request, self._slot, job):
            out: dict[Any, Any] = {}
            path = session.paths.get(self._slot) or Path()
            if path.count > seen:
                seen = path.count
                out[self.live] = path.html()
            if event.last and seen:
                most = len(path)
                out[self.charts] = path.charts()
                out[self.scrub] = gr.update(minimum=1, maximum=max(2, most), value=most, visible=most > 1)
            yield text, event, out

    def _show(self, place: float | None, request: gr.Request) -> Any:
        path = self._page.session(request).paths.get(self._slot)
        return gr.skip() if not path or place is None else path.html(int(place))
