"""The tab that samples: the path is watched while it is made, and looked through afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from undiffuse.studio import views
from undiffuse.studio.jobs import Job
from undiffuse.studio.page import BAD_INPUT, Copies, Page, message, upload
from undiffuse.studio.tabs.picture import PicturePart
from undiffuse.studio.watching import PathView

__all__ = ["build"]

SLOT = "sample"


def build(page: Page) -> PicturePart:
    """Draws the tab.

    Args:
        page: What the tabs share.

    Returns:
        The part for the picture that a model takes, which describes a chosen model.
    """
    form = page.form
    with gr.Row(elem_classes="buttons"):
        go = gr.Button("Sample", variant="primary", elem_id="sample-go", elem_classes="go")
        stop = gr.Button("Stop", variant="stop", elem_id="sample-stop", elem_classes="stop")
    state = gr.HTML(views.said("Press Sample, or Ctrl+Enter. Escape stops."), elem_id="sample-state")
    gallery = gr.Gallery(
        label="Pictures", columns=5, fit_columns=False, height="auto", object_fit="contain", interactive=False,
        elem_id="sample-gallery", elem_classes="pixels", visible=False, buttons=["download", "fullscreen"],
    )  # fmt: skip
    path = PathView(page, SLOT)
    picture = PicturePart(page, state)
    copies = Copies("sample")

    def sample(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
        try:
            job = Job(task="sample", settings=form.read(values))
        except BAD_INPUT as error:
            yield {state: message(error)}
            return
        shown = dict(zip(copies.outputs, copies.values(job, request), strict=True))
        yield {state: views.progress(None, "Starting"), gallery: gr.update(visible=False), **path.cleared(), **shown}
        for text, event, changes in path.follow(request, job):
            out: dict[Any, Any] = {state: text, **changes}
            if event.kind == "done":
                labels = event.values["labels"]
                files = event.values["files"]
                named = [(file, labels[k] if k < len(labels) else None) for k, file in enumerate(files)]
                out[gallery] = gr.update(value=named, visible=True)
                out[state] = text + "".join(views.said(remark) for remark in event.values["remarks"])
            yield out

    go.click(
        sample, form.inputs, [state, gallery, *path.outputs, *copies.outputs], concurrency_limit=None,
        show_progress="hidden", api_visibility="private", scroll_to_output=False,
    )  # fmt: skip
    page.stop(SLOT, stop)

    def snippet(request: gr.Request, *values: Any) -> Any:
        try:
            return copies.values(Job(task="sample", settings=form.read(values)), request)
        except BAD_INPUT:
            return [gr.skip()] * 3

    gr.on([part.change for part in form.inputs], snippet, form.inputs, copies.outputs, show_progress="hidden",
          queue=False, trigger_mode="always_last", api_visibility="private")  # fmt: skip

    _classes_of_picture(page)
    return picture


def _classes_of_picture(page: Page) -> None:
    """Finds the class of an example picture and puts it into the form."""
    form = page.form

    def recognise(file: str | None, request: gr.Request, *values: Any) -> Iterator[Any]:
        if file is None:
            yield "", gr.skip()
            return
        try:
            job = Job(task="classify", settings=form.read(values), inputs={"image": str(upload(page.studio, file))})
        except BAD_INPUT as error:
            yield message(error), gr.skip()
            return
        yield views.progress(None, "Looking at the picture"), gr.skip()
        text, event = page.finish(request, "classify", job)
        if event.kind != "done":
            yield text, gr.skip()
            return
        found = event.values["classes"]
        shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in found[:3])
        yield views.said(f"{shares} ({event.values['judge']})"), [found[0][0]]

    form.example.change(
        recognise, [form.example, *form.inputs], [form.example_state, form.classes], concurrency_limit=None,
        show_progress="hidden", api_visibility="private",
    )  # fmt: skip
