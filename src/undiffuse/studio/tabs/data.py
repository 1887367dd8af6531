"""The tab that looks through a data set, with what `undiffuse inspect` and `undiffuse doctor` find."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from undiffuse.reports.page import findings
from undiffuse.studio import views
from undiffuse.studio.datasets import PAGE
from undiffuse.studio.jobs import Job
from undiffuse.studio.page import BAD_INPUT, Page, message
from undiffuse.studio.runs import inspected
from undiffuse.studio.settings import Settings
from undiffuse.util.errors import ConfigError

__all__ = ["build"]

SLOT = "data"
_ALL = "all classes"


def build(page: Page) -> None:
    """Draws the tab.

    Args:
        page: What the tabs share.
    """
    with gr.Row(elem_classes="pair"):
        data = gr.Textbox("fashion-mnist:test", label="Data set", info="a folder, file or name; NAME:test for a split",
                          elem_id="data-path", scale=3)  # fmt: skip
        chosen = gr.Dropdown([_ALL], value=_ALL, label="Class", elem_id="data-class", scale=1, min_width=160)
    with gr.Row(elem_classes="buttons"):
        go = gr.Button("Look through", variant="primary", elem_id="data-go", elem_classes="go")
        back = gr.Button("Previous page", elem_id="data-back")
        on = gr.Button("Next page", elem_id="data-next")
        check = gr.Button("Inspect", elem_id="data-inspect")
        stop = gr.Button("Stop", variant="stop", elem_id="data-stop", elem_classes="stop")
    state = gr.HTML(views.said("Shows the images as a training sees them."), elem_id="data-state")
    found = gr.HTML(elem_id="data-findings")
    gallery = gr.HTML(elem_id="data-images")
    text = gr.Code(label="What undiffuse inspect says", interactive=False, wrap_lines=True, visible=False,
                   show_line_numbers=False, elem_id="data-inspected")  # fmt: skip
    place = gr.State(0)
    outputs = [state, found, gallery, chosen, place]

    def look(path: str, name: str, first: int, request: gr.Request) -> Iterator[list[Any]]:
        if not path.strip():
            yield [message(ConfigError("data", "is missing: name a data set")), *[gr.skip()] * 4]
            return
        only = None if name in (None, "", _ALL) else name
        inputs = {"data": path.strip(), "chosen": only, "first": max(0, first)}
        try:
            job = Job(task="data", settings=Settings(model=page.studio.model), inputs=inputs)
        except BAD_INPUT as error:
            yield [message(error), *[gr.skip()] * 4]
            return
        yield [views.progress(None, "Reading the data"), *[gr.skip()] * 4]
        for line, event in page.follow(request, SLOT, job):
            if event.kind != "done":
                yield [line, *[gr.skip()] * 4]
                continue
            v = event.values
            height, width = v["size"]
            end = min(v["count"], v["first"] + PAGE)
            said = f"{v['where']}: images {v['first'] + 1:,} to {end:,} of {v['count']:,}, shown at {height}x{width}."
            problems = [("problem", f"{name}: {why}", "") for name, why in v["broken"]]
            listed = [(_ALL, _ALL), *((f"{name} ({n:,})", name) for name, n in v["classes"].items())]
            listing = findings([*v["findings"], *problems]) if v["findings"] or problems else gr.skip()
            yield [views.said(said), listing, views.tiles(v["images"], v["names"], side=80),
                   gr.update(choices=listed, value=only or _ALL), v["first"]]  # fmt: skip

    def fresh(path: str, name: str, request: gr.Request) -> Iterator[list[Any]]:
        yield from look(path, name, 0, request)

    def forward(path: str, name: str, first: int, request: gr.Request) -> Iterator[list[Any]]:
        yield from look(path, name, first + PAGE, request)

    def backward(path: str, name: str, first: int, request: gr.Request) -> Iterator[list[Any]]:
        yield from look(path, name, first - PAGE, request)

    def inspect(path: str, request: gr.Request) -> Iterator[Any]:
        if not path.strip():
            yield message(ConfigError("data", "is missing: name a data set")), gr.skip()
            return
        ending = page.session(request).start(SLOT)
        yield views.progress(None, "Inspecting"), gr.skip()
        *_, said = inspected(path.strip(), ending)
        done = views.said("Stopped." if ending.is_set() else "Inspected.")
        yield done, gr.update(value=said, visible=bool(said))

    shared: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
    go.click(fresh, [data, chosen], outputs, **shared)
    chosen.input(fresh, [data, chosen], outputs, **shared)
    data.submit(fresh, [data, chosen], outputs, **shared)
    on.click(forward, [data, chosen, place], outputs, **shared)
    back.click(backward, [data, chosen, place], outputs, **shared)
    check.click(inspect, data, [state, text], **shared)
    page.stop(SLOT, stop)
