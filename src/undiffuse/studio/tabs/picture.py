"""The picture that a model is conditioned on or enlarges: drawn on a canvas, or a file; shown for such models only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr
import numpy as np

from undiffuse.adapters import published
from undiffuse.adapters.importing import place_of
from undiffuse.studio import views
from undiffuse.studio.drawing import drawn_map, map_colours, png_bytes
from undiffuse.studio.jobs import MAPPED, Job
from undiffuse.studio.page import BAD_INPUT, Page, message, upload
from undiffuse.studio.settings import Settings
from undiffuse.util.errors import ConfigError

__all__ = ["PicturePart"]

_CANVAS = 512


class PicturePart:
    """The canvas and the file of a model's picture, and what describes a model that was chosen.

    Args:
        page: What the tabs share.
        state: The tab's line of state.
    """

    def __init__(self, page: Page, state: Any) -> None:
        self._page, form = page, page.form
        with gr.Accordion("The picture that the model takes", open=True, visible=False, elem_id="sample-draw") as part:
            about = gr.HTML(elem_id="sample-picture-about")
            file = gr.File(label="Your picture", file_types=["image"], height=110, elem_id="sample-picture")
            editor = gr.ImageEditor(
                label="Or draw it", type="numpy", image_mode="RGB", sources=(), transforms=(), layers=False,
                canvas_size=(_CANVAS, _CANVAS), fixed_canvas=True, elem_id="sample-canvas", format="png",
            )  # fmt: skip
            use = gr.Button("Use this drawing", elem_id="sample-use-drawing")
        self.outputs = [form.state, form.classes, part, about, editor, use]
        self._part, self._about, self._editor, self._use = part, about, editor, use
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        weights = form.inputs[form.names.index("weights")]
        form.model.change(
            self._chosen, [form.model, weights], self.outputs, concurrency_limit=None, trigger_mode="always_last",
            **quiet,
        )  # fmt: skip
        use.click(self._drawn, [editor, *form.inputs], [form.condition, state], **quiet)
        file.change(self._given, [file, *form.inputs], [form.condition, state], concurrency_limit=None, **quiet)

    def _chosen(self, model: str, weights: str, request: gr.Request) -> Iterator[list[Any]]:
        for changes in self.describe(model, weights, request):
            yield [changes.get(part, gr.skip()) for part in self.outputs]

    def describe(self, model: str, weights: str, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Yields the changes to the form and this part that describe a chosen model."""
        form, session = self._page.form, self._page.session(request)
        if model in published.ENTRIES and not place_of(published.ENTRIES[model]).is_file():
            megabytes = published.ENTRIES[model].about_bytes / 1e6
            text = f"{model} is not on this computer: Sample downloads it (about {megabytes:,.0f} MB)."
            yield {form.state: views.said(text)}
            return
        try:
            if not model:
                raise ConfigError("model", "is missing: choose a model")
            settings = Settings(model=model, weights=weights.strip() or None)
        except BAD_INPUT as error:
            yield {form.state: message(error)}
            return
        yield {form.state: views.progress(None, "Loading the model")}
        text, event = self._page.finish(request, "describe", Job(task="describe", settings=settings))
        if event.kind != "done":
            yield {form.state: text}
            return
        found = event.values
        said, classes = form.described(found)
        height, width = found["shape"][1:]
        picture, low = found["picture"], found["low_size"]
        session.kept |= {
            "picture": None if picture is None else {**picture, "size": (height, width)},
            "low": found["super_resolution"], "classes": found["classes"],
        }  # fmt: skip
        enlarges = found["super_resolution"] and picture is None
        out = {
            form.state: views.said(said), form.classes: classes,
            self._part: gr.update(visible=picture is not None or enlarges),
            self._use: gr.update(visible=picture is not None), self._editor: gr.update(visible=picture is not None),
        }  # fmt: skip
        if enlarges:
            small = "small pictures" if low is None else f"pictures of {low[0]}x{low[1]}"
            out[self._about] = views.said(
                f"This model enlarges {small} to {height}x{width}. Choose one; a larger picture is made smaller first."
            )
        elif picture is not None:
            canvas, brush, size = _blank(picture, (height, width))
            what = "Each colour is a class of the map." if picture["kind"] == "map" else "A picture of any size."
            out[self._about] = views.said(f"This model takes a {picture['kind']} for each image. {what}")
            value = {"background": canvas, "layers": [], "composite": canvas}
            out[self._editor] = gr.update(value=value, brush=brush, canvas_size=size, visible=True)
        yield out

    def _drawn(self, request: gr.Request, *values: Any) -> Any:
        """Keeps what was drawn and puts it among the conditions."""
        drawing, *rest = values
        try:
            settings = self._page.form.read(rest)
            kept = self._page.session(request).kept.get("picture")
            file = str(drawn_map(self._page.studio, drawing, kept))
        except BAD_INPUT as error:
            return gr.skip(), message(error)
        return _with(settings, file), views.said("The drawing is the condition now: press Sample.")

    def _given(self, file: str | None, request: gr.Request, *values: Any) -> Iterator[tuple[Any, Any]]:
        """Keeps a picture that was chosen, made smaller for a model that enlarges, and puts it among the conditions."""
        page = self._page
        try:
            settings = page.form.read(values)
            if file is None:
                yield _with(settings, None), views.said("The picture is no condition any more.")
                return
            kept = upload(page.studio, file)
            said = "The picture is the condition now: press Sample."
            if page.session(request).kept.get("low"):
                yield gr.skip(), views.progress(None, "Reading the picture")
                job = Job(task="shrink", settings=settings, inputs={"image": str(kept)})
                text, event = page.finish(request, "prepare", job)
                if event.kind != "done":
                    yield gr.skip(), text
                    return
                image, (height, width) = event.values["image"], event.values["stored"]
                if image.shape[:2] != (height, width):
                    kept = page.studio.keep(png_bytes(image), ".png")
                    said = (
                        f"The picture of {height}x{width} was cropped and made {image.shape[0]}x{image.shape[1]}. "
                        "The model enlarges this: press Sample."
                    )
        except BAD_INPUT as error:
            yield gr.skip(), message(error)
            return
        yield _with(settings, str(kept)), views.said(said)


def _with(settings: Settings, file: str | None) -> str:
    """The text of the conditions with another picture, or none."""
    others = [text for text in settings.condition if not text.startswith((MAPPED, "map:"))]
    return "\n".join([*others, *([] if file is None else [f"{MAPPED}{file}"])])


def _blank(picture: Mapping[str, Any], size: tuple[int, int]) -> tuple[np.ndarray, Any, tuple[int, int]]:
    """An empty canvas for a picture of a size (height, width), its brush, and its own (width, height)."""
    colours = map_colours(picture["values"])
    height, width = (side * max(1, _CANVAS // max(size)) for side in size)
    blank = np.zeros((height, width, 3), np.uint8)
    if colours:
        blank[:] = tuple(bytes.fromhex(colours[0][1:]))
    brush = gr.Brush(colors=colours or "auto", color_mode="fixed" if colours else "defaults", default_size=40)
    return blank, brush, (width, height)
