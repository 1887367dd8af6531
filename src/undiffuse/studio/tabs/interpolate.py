"""The tab that interpolates between the samples of two seeds, or between two pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from undiffuse.studio import views
from undiffuse.studio.jobs import Job
from undiffuse.studio.page import BAD_INPUT, Copies, Page, message, upload
from undiffuse.studio.tabs.edit import left_out_text
from undiffuse.studio.watching import PathView
from undiffuse.util.errors import ConfigError

__all__ = ["build"]

SLOT = "interpolate"


def build(page: Page) -> dict[str, Any]:
    """Draws the tab.

    Args:
        page: What the tabs share.

    Returns:
        Its controls by the names of `links.values_of`.
    """
    with gr.Row(elem_classes="pair"):
        first = gr.Number(0, label="From seed", precision=0, minimum=0, elem_id="interpolate-from", min_width=120)
        second = gr.Number(1, label="To seed", precision=0, minimum=0, elem_id="interpolate-to", min_width=120)
        frames = gr.Slider(
            2, 21, value=7, step=1, label="Points", info="both ends included", elem_id="interpolate-frames"
        )
    with gr.Accordion("Between two pictures instead", open=False), gr.Row(elem_classes="pair"):
        pictures = [
            gr.File(label=label, file_types=["image"], height=120, elem_id=f"interpolate-picture-{k}")
            for k, label in enumerate(("From this picture", "To this picture"), 1)
        ]
    with gr.Row(elem_classes="buttons"):
        go = gr.Button("Interpolate", variant="primary", elem_id="interpolate-go", elem_classes="go")
        stop = gr.Button("Stop", variant="stop", elem_id="interpolate-stop", elem_classes="stop")
    about = "Goes from one latent to another on the sphere and decodes each point with DDIM, a row for each class."
    state = gr.HTML(views.said(about), elem_id="interpolate-state")
    grid = gr.Image(label="Interpolation", visible=False, interactive=False, type="filepath",
                    elem_id="interpolate-grid", buttons=["download", "fullscreen"], format="png")  # fmt: skip
    movie = gr.Image(label="There and back", visible=False, interactive=False, type="filepath", format="gif",
                     elem_id="interpolate-movie", buttons=["download"], elem_classes="pixels")  # fmt: skip
    path = PathView(page, SLOT)
    copies = Copies("interpolate")

    def interpolate(
        a: float, b: float, points: float, one: str | None, two: str | None, request: gr.Request, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        try:
            inputs: dict[str, Any] = {"frames": int(points)}
            if one or two:
                inputs["images"] = [str(upload(page.studio, file, "pictures")) for file in (one, two)]
            else:
                inputs["seeds"] = [_seed(a), _seed(b)]
            job = Job(task="interpolate", settings=page.form.read(values), inputs=inputs)
        except BAD_INPUT as error:
            yield {state: message(error)}
            return
        texts = dict(zip(copies.outputs, copies.values(job, request), strict=True))
        yield {state: views.progress(None, "Starting"), grid: gr.update(visible=False),
               movie: gr.update(visible=False), **path.cleared(), **texts}  # fmt: skip
        for text, event, changes in path.follow(request, job):
            out: dict[Any, Any] = {state: text, **changes}
            if event.kind == "done":
                out[state] = text + left_out_text(job)
                out[grid] = gr.update(value=event.values["grid"], visible=True)
                out[movie] = gr.update(value=event.values["movie"], visible=True)
            yield out

    go.click(
        interpolate, [first, second, frames, *pictures, *page.form.inputs],
        [state, grid, movie, *path.outputs, *copies.outputs],
        concurrency_limit=None, show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    page.stop(SLOT, stop)
    return {"from": first, "until": second, "frames": frames}


def _seed(value: float | None) -> int:
    if value is None or int(value) != value or value < 0:
        raise ConfigError("seed", f"{value} is not possible; expected a whole number of at least 0")
    return int(value)
