"""The tab that edits one's own picture: inpaint, enlarge or deblur, vary, translate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from undiffuse.editing.methods import METHODS
from undiffuse.editing.restoration import METHODS as RESTORING
from undiffuse.studio import views
from undiffuse.studio.drawing import canvas, drawn_mask, png_bytes
from undiffuse.studio.jobs import Job
from undiffuse.studio.page import BAD_INPUT, Copies, Page, message, upload
from undiffuse.studio.watching import PathView
from undiffuse.util.errors import ConfigError

__all__ = ["build", "left_out_text"]

SLOT = "edit"


def left_out_text(job: Job) -> str:
    """Returns a line on the settings of the form that a job does not take; "" if it takes all."""
    names = ", ".join(views.label_of(name) for name in job.left_out())
    return views.said(f"Not used here: {names}.") if names else ""


def build(page: Page) -> tuple[dict[str, dict[str, Any]], Any]:
    """Draws the tab.

    Args:
        page: What the tabs share.

    Returns:
        The controls of each edit by the names of `links.values_of`, and the tabs of the edits.
    """
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            file = gr.File(label="Your picture", file_types=["image"], height=140, elem_id="edit-file")
        with gr.Column(scale=1, min_width=240):
            number = gr.Number(1, label="Or a picture that was made here", precision=0, minimum=1,
                               elem_id="edit-number", info="its place in the last run, 1 is the first")  # fmt: skip
            take = gr.Button("Take it", elem_id="edit-take")
    state = gr.HTML(views.said("Choose a picture first."), elem_id="edit-state")
    gr.HTML(
        '<p class="head">The model of the form edits it. Choose one class there to say what the picture shows '
        "(otherwise its record or its folder says it).</p>"
    )
    with gr.Tabs(elem_id="edit-tabs") as edits:
        with gr.Tab("Inpaint", id="inpaint"):
            editor = gr.ImageEditor(
                label="Paint over the part to fill", type="numpy", image_mode="RGBA", sources=(), transforms=(),
                layers=False, brush=gr.Brush(default_size=60, colors=["#d55e00"], color_mode="fixed"), format="png",
                canvas_size=(512, 512), elem_id="edit-canvas", height=560,
            )  # fmt: skip
            hole = gr.Textbox(
                "", label="Or a rectangle", elem_id="edit-hole",
                info="top, left, height, width in pixels of the model's images, for example 8,8,16,16",
            )  # fmt: skip
            method = gr.Dropdown(
                list(METHODS), value="repaint", label="Method", elem_id="edit-inpaint-method",
                info="repaint goes back and forth; dps, pigdm and mmps follow what is known; projection suits students",
            )  # fmt: skip
            fill = _buttons("inpaint", "Inpaint", page)
        with gr.Tab("Restore", id="restore"):
            task = gr.Radio(["enlarge", "deblur"], value="enlarge", label="Task", elem_id="edit-restore-task")
            amount = gr.Number(2, label="Factor, or blur", elem_id="edit-amount",
                               info="times larger; or the blur's standard deviation in pixels")  # fmt: skip
            degrade = gr.Checkbox(True, label="The picture is whole: make it smaller or blur it first",
                                  elem_id="edit-degrade")  # fmt: skip
            restoring = gr.Dropdown(list(RESTORING), value="pigdm", label="Method", elem_id="edit-restore-method",
                                    info="all follow what is known; projection suits students")  # fmt: skip
            enlarge = _buttons("restore", "Restore", page)
        with gr.Tab("Vary", id="vary"):
            strength = gr.Slider(0, 1, value=0.5, step=0.05, label="Strength", elem_id="edit-strength",
                                 info="0 changes nothing, 1 keeps nothing")  # fmt: skip
            variants = gr.Slider(1, 16, value=6, step=1, label="Variants", elem_id="edit-variants")
            vary = _buttons("vary", "Vary", page)
        with gr.Tab("Translate", id="translate"):
            to = gr.Dropdown([], label="To class", allow_custom_value=True, elem_id="edit-to")
            far = gr.Slider(0.05, 1, value=1, step=0.05, label="Strength", elem_id="edit-far")
            translate = _buttons("translate", "Translate", page)
    gallery = gr.Gallery(
        label="Results", columns=4, fit_columns=False, height="auto", object_fit="contain", interactive=False,
        elem_id="edit-gallery", elem_classes="pixels", visible=False, buttons=["download", "fullscreen"],
    )  # fmt: skip
    sheet = gr.Image(label="Before and after", visible=False, interactive=False, elem_id="edit-sheet", format="png",
                     buttons=["download", "fullscreen"])  # fmt: skip
    path = PathView(page, SLOT)
    copies = Copies("edit")
    outputs = [state, gallery, sheet, *path.outputs, *copies.outputs]

    def prepared(file: str, values: tuple[Any, ...], request: gr.Request) -> Iterator[tuple[Any, Any]]:
        """Keeps a picture for this page and shows it, as the model sees it, on the canvas."""
        page.session(request).kept["picture-file"] = file
        try:
            job = Job(task="prepare", settings=page.form.read(values), inputs={"image": file})
        except BAD_INPUT as error:
            yield message(error), gr.skip()
            return
        yield views.progress(None, "Reading the picture"), gr.skip()
        text, event = page.finish(request, "prepare", job)
        if event.kind != "done":
            yield text, gr.skip()
            return
        page.session(request).kept["size"] = event.values["image"].shape[:2]
        image = canvas(event.values["image"])
        height, width = event.values["stored"]
        own = event.values["image"].shape[:2]
        changed = "" if (height, width) == own else f", which becomes {own[0]}x{own[1]} for the model"
        size = (image.shape[1], image.shape[0])
        value = {"background": image, "layers": [], "composite": image}
        yield views.said(f"A picture of {height}x{width} (height x width){changed}."), \
            gr.update(value=value, canvas_size=size)  # fmt: skip

    def chosen(file: str | None, request: gr.Request, *values: Any) -> Iterator[tuple[Any, Any]]:
        if file is None:
            page.session(request).kept.pop("picture-file", None)
            yield views.said("Choose a picture first."), None
            return
        try:
            kept = str(upload(page.studio, file))
        except BAD_INPUT as error:
            page.session(request).kept.pop("picture-file", None)
            yield message(error), None
            return
        yield from prepared(kept, values, request)

    def taken(place: float, request: gr.Request, *values: Any) -> Iterator[tuple[Any, Any]]:
        entries = page.session(request).entries
        files = next((entry.files for entry in entries if entry.job.task != "interpolate"), ())
        if not files or place is None or not 1 <= int(place) <= len(files):
            there = f"1 to {len(files)}" if files else "none yet: sample first"
            yield message(ConfigError("number", f"there is no such picture; there are {there}")), gr.skip()
            return
        yield from prepared(str(files[int(place) - 1]), values, request)

    def edit(name: str, inputs: Callable[..., dict[str, Any]], count: int) -> Callable[..., Iterator[dict[Any, Any]]]:
        """The function of a button: `inputs` makes the task's own arguments of its first `count` controls."""

        def go(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
            try:
                picture = page.session(request).kept.get("picture-file")
                if picture is None:
                    raise ConfigError("image", "is missing: choose a picture first")
                own = inputs(page.session(request), *values[:count])
                given = {"images": [picture], **own}
                job = Job(task=name, settings=page.form.read(values[count:]), inputs=given)
                texts = dict(zip(copies.outputs, copies.values(job, request), strict=True))
            except BAD_INPUT as error:
                yield {state: message(error)}
                return
            yield {state: views.progress(None, "Starting"), gallery: gr.update(visible=False),
                   sheet: gr.update(visible=False), **path.cleared(), **texts}  # fmt: skip
            for text, event, changes in path.follow(request, job):
                out: dict[Any, Any] = {state: text, **changes}
                if event.kind == "done":
                    found = event.values
                    offs = "".join(views.said(f"{what[:1].upper()}{what[1:]} {value:.2f} of 255 (root mean square)")
                                   for what, value in found["errors"].items())  # fmt: skip
                    out[state] = text + offs + left_out_text(job)
                    out[gallery] = gr.update(value=found["files"], visible=True)
                    out[sheet] = gr.update(value=found["page"], visible=True)
                yield out

        return go

    def masked(session: Any, drawn: Any, rectangle: str, way: str) -> dict[str, Any]:
        if rectangle.strip():
            return {"hole": _rectangle(rectangle), "method": way}
        size = _size(page, session)
        return {"mask": str(page.studio.keep(png_bytes(drawn_mask(drawn, size)), ".png")), "method": way}

    def restored(session: Any, what: str, much: float, whole: bool, way: str) -> dict[str, Any]:
        if much is None or much <= 0:
            raise ConfigError("upscale", f"{much} is not possible; expected a number above 0")
        task = {"upscale": int(much)} if what == "enlarge" else {"deblur": float(much)}
        fit = {} if whole or what == "deblur" else {"fit": "crop"}
        return {**task, "degrade": True, "method": way} if whole else {**task, **fit, "method": way}

    shared: dict[str, Any] = {
        "concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private",
    }  # fmt: skip
    file.change(chosen, [file, *page.form.inputs], [state, editor], **shared)
    take.click(taken, [number, *page.form.inputs], [state, editor], **shared)
    for button, name, inputs, own in (
        (fill, "inpaint", masked, [editor, hole, method]),
        (enlarge, "restore", restored, [task, amount, degrade, restoring]),
        (vary, "vary", lambda session, s, n: {"strength": float(s), "variants": int(n)}, [strength, variants]),
        (translate, "translate", lambda session, c, s: {"to": _target(c), "strength": float(s)}, [to, far]),
    ):
        button.click(edit(name, inputs, len(own)), [*own, *page.form.inputs], outputs, **shared)

    def offered(request: gr.Request) -> Any:
        return gr.update(choices=page.session(request).kept.get("classes") or [])

    to.focus(offered, None, to, queue=False, show_progress="hidden", api_visibility="private")
    return {
        "inpaint": {"hole": hole, "method": method},
        "restore": {"task": task, "amount": amount, "degrade": degrade, "method": restoring},
        "vary": {"strength": strength, "variants": variants},
        "translate": {"to": to, "strength": far},
    }, edits


def _buttons(name: str, text: str, page: Page) -> Any:
    with gr.Row(elem_classes="buttons"):
        go = gr.Button(text, variant="primary", elem_id=f"{name}-go", elem_classes="go")
        stop = gr.Button("Stop", variant="stop", elem_id=f"{name}-stop", elem_classes="stop")
    page.stop(SLOT, stop)
    return go


def _rectangle(text: str) -> tuple[int, ...]:
    try:
        hole = tuple(int(part) for part in text.split(","))
    except ValueError:
        hole = ()
    if len(hole) != 4:
        raise ConfigError("hole", f"{text!r} is not possible; expected top, left, height, width, for example 8,8,16,16")
    return hole


def _size(page: Page, session: Any) -> tuple[int, int]:
    size = session.kept.get("size")
    if size is None:
        raise ConfigError("image", "is missing: choose a picture first")
    return size


def _target(name: str | None) -> str:
    if not name:
        raise ConfigError("to", "is missing: choose the class to translate to")
    return str(name)
