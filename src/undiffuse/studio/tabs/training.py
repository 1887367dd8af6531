"""The training room: start, watch, stop and resume runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import gradio as gr

from undiffuse.recipes import RECIPES
from undiffuse.studio import views
from undiffuse.studio.page import BAD_INPUT, Page, message
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import count_of

__all__ = ["build"]

_EVERY = 3.0  # seconds between two looks at a run


def build(page: Page, tab: Any) -> None:
    """Draws the tab.

    Args:
        page: What the tabs share.
        tab: The tab, which lists the runs when it is opened.
    """
    trainings = page.trainings
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            data = gr.Textbox("", label="Training data", placeholder="a folder of pictures, or fashion-mnist",
                              info="any format that undiffuse reads", elem_id="train-data")  # fmt: skip
            recipe = gr.Dropdown([("chosen to fit the data", ""), *sorted(RECIPES)], value="", label="Recipe",
                                 elem_id="train-recipe")  # fmt: skip
            out = gr.Textbox("runs/studio", label="Run folder", elem_id="train-out")
            images = gr.Textbox("", label="Images to train on in all", placeholder="400k", info="empty: the recipe's",
                                elem_id="train-images")  # fmt: skip
            more = gr.Textbox("", label="Further options of undiffuse train", elem_id="train-more",
                              placeholder="--size 32 --label-dropout 0.1")  # fmt: skip
            with gr.Row(elem_classes="buttons"):
                start = gr.Button("Start", variant="primary", elem_id="train-start", elem_classes="go")
        with gr.Column(scale=3, min_width=320):
            run = gr.Dropdown([], label="Run", allow_custom_value=True, elem_id="train-run",
                              info="a run folder; those in runs/ are listed")  # fmt: skip
            with gr.Row(elem_classes="buttons"):
                stop = gr.Button("Save and stop", variant="stop", elem_id="train-stop")
                resume = gr.Button("Resume", elem_id="train-resume")
            state = gr.HTML(views.said("Start a run, or choose one to watch."), elem_id="train-state")
            when = gr.Slider(1, 2, value=1, step=1, label="Preview", visible=False, elem_id="train-when")
            preview = gr.Image(label="Preview", visible=False, interactive=False, elem_id="train-preview", format="png",
                               buttons=["fullscreen"])  # fmt: skip
            shown = gr.HTML(elem_id="train-page")
            with gr.Accordion("Output of the process", open=False):
                output = gr.Code(label="Output", interactive=False, wrap_lines=True, elem_id="train-output",
                                 show_line_numbers=False)  # fmt: skip
    timer = gr.Timer(_EVERY)
    outputs = [state, when, preview, shown, output]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}

    def look(folder: str | None, request: gr.Request, again: bool = False) -> list[Any]:
        """The state of a run, if it has changed since the page last saw it."""
        if not folder:
            return [gr.skip()] * 5
        try:
            view = trainings.view(folder)
        except BAD_INPUT as error:
            return [message(error), *[gr.skip()] * 4]
        kept = page.session(request).kept
        signature = (folder, view.line, len(view.previews), view.output)
        if signature == kept.get("run") and not again:
            return [gr.skip()] * 5
        kept["run"] = signature
        kept["previews"] = view.previews
        count = len(view.previews)
        done = None if view.progress is None else view.progress[0] / view.progress[1]
        busy = view.state in ("running", "stopping")
        line = views.progress(done, view.line) if busy else views.said(view.line)
        if view.state == "failed":
            line = views.error(f"The run failed: {view.output.splitlines()[-1] if view.output else 'see its output'}")
        slider, picture = gr.update(visible=False), gr.update(visible=False)
        if count:
            slider = gr.update(minimum=1, maximum=max(2, count), value=count, visible=count > 1)
            picture = _picture(view.previews[-1])
        return [line, slider, picture, views.run_page(view), view.output]

    def begin(source: str, name: str, folder: str, amount: str, options: str, request: gr.Request) -> list[Any]:
        try:
            try:
                words = shlex.split(options)
            except ValueError as error:
                raise ConfigError("more", f"{options!r} cannot be split into words ({error})") from None
            words += ["--images", amount.strip()] if amount.strip() else []
            place = trainings.start(source, folder, name or "", words)
        except BAD_INPUT as error:
            return [message(error), *[gr.skip()] * 5]
        first = views.progress(None, f"Starting {place}")
        return [first, gr.update(visible=False), gr.update(visible=False), "", "",
                gr.update(choices=trainings.known(), value=str(place))]  # fmt: skip

    def ended(folder: str | None) -> str:
        try:
            trainings.stop(folder or "")
        except BAD_INPUT as error:
            return message(error)
        return views.progress(None, "Saving a checkpoint")

    def resumed(folder: str | None) -> str:
        try:
            if not folder:
                raise ConfigError("run", "is missing: choose a run")
            trainings.resume(folder)
        except BAD_INPUT as error:
            return message(error)
        return views.progress(None, f"Resuming {folder}")

    def chosen(folder: str | None, request: gr.Request) -> list[Any]:
        return look(folder, request, again=True)

    def earlier(number: float, request: gr.Request) -> Any:
        previews = page.session(request).kept.get("previews") or []
        return _picture(previews[min(len(previews), max(1, int(number))) - 1]) if previews else gr.skip()

    def listed(folder: str | None) -> Any:
        known = trainings.known()
        return gr.update(choices=known, value=folder or (known[0] if known else None))

    start.click(begin, [data, recipe, out, images, more], [*outputs, run], **quiet)
    stop.click(ended, run, state, **quiet)
    resume.click(resumed, run, state, **quiet)
    run.change(chosen, run, outputs, **quiet)
    when.input(earlier, when, preview, **quiet)
    tab.select(listed, run, run, **quiet)
    timer.tick(look, run, outputs, **quiet)


def _picture(found: tuple[int, Path]) -> Any:
    images, file = found
    try:
        return gr.update(
            value=views.preview_picture(file), visible=True, label=f"Preview after {count_of(images, 'image')}"
        )
    except OSError:  # it is being replaced
        return gr.skip()
