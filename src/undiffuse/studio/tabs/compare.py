"""The tab that compares two settings from the same noise, with the difference of the pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from undiffuse.studio import views
from undiffuse.studio.form import SettingsForm
from undiffuse.studio.jobs import Job
from undiffuse.studio.page import BAD_INPUT, Copies, Page, message
from undiffuse.studio.settings import Settings
from undiffuse.studio.watching import PathView

__all__ = ["build"]

SLOT = "compare"


def build(page: Page) -> SettingsForm:
    """Draws the tab.

    Args:
        page: What the tabs share.

    Returns:
        The form of the second settings.
    """
    with gr.Row(elem_classes="buttons"):
        go = gr.Button("Compare", variant="primary", elem_id="compare-go", elem_classes="go")
        stop = gr.Button("Stop", variant="stop", elem_id="compare-stop", elem_classes="stop")
        same = gr.Button("Copy A to B", elem_id="compare-same")
    about = "A is the form of settings; B has settings of its own. Classes, images, seed and conditions are shared."
    state = gr.HTML(views.said(about), elem_id="compare-state")
    shown = gr.HTML(elem_id="compare-result")
    path = PathView(page, SLOT)
    with gr.Accordion("Settings of B", open=True, elem_id="compare-settings"):
        other = SettingsForm(Settings(model=page.studio.model), "b", whole=False)
    copies = Copies("compare")
    half = len(page.form.inputs)

    def compare(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
        try:
            first = page.form.read(values[:half])
            job = Job(task="compare", settings=first, other=other.read(values[half:], first))
        except BAD_INPUT as error:
            yield {state: message(error)}
            return
        texts = dict(zip(copies.outputs, copies.values(job, request), strict=True))
        yield {state: views.progress(None, "Starting"), shown: "", **path.cleared(), **texts}
        for text, event, changes in path.follow(request, job):
            out: dict[Any, Any] = {state: text, **changes}
            if event.kind == "done":
                v = event.values
                out[shown] = views.comparison(v["images"], v["difference"], v["rms"], v["captions"])
            yield out

    go.click(
        compare, [*page.form.inputs, *other.inputs], [state, shown, *path.outputs, *copies.outputs],
        concurrency_limit=None, show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    page.stop(SLOT, stop)

    def copy(*values: Any) -> Any:
        held = dict(zip(page.form.names, values, strict=True))
        return [held[name] for name in other.names]

    same.click(copy, page.form.inputs, other.inputs, show_progress="hidden", queue=False, api_visibility="private")
    return other
