"""The tab of pictures that were made: their records, how to make them again, and the recipe of a dropped picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from undiffuse.studio import views
from undiffuse.studio.links import Opened, query_of
from undiffuse.studio.page import BAD_INPUT, Copies, Page, link, message, upload
from undiffuse.studio.restored import Restored
from undiffuse.studio.sessions import Entry, Session, describe_picture, read_entries

__all__ = ["build"]

_SHOWN = 200
"""Pictures of the gallery."""


def build(page: Page, tab: Any, restored: Restored) -> None:
    """Draws the tab.

    Args:
        page: What the tabs share.
        tab: The tab, which brings its gallery up to date when it is opened.
        restored: What puts the settings of a picture back on the page.
    """
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            earlier = gr.Checkbox(
                False, label=f"Also earlier runs in the folder {page.studio.out}", elem_id="history-earlier"
            )
            gallery = gr.Gallery(
                label="Pictures, the newest first", columns=6, fit_columns=False, height=420, object_fit="contain",
                interactive=False, allow_preview=False, elem_id="history-gallery", elem_classes="pixels", buttons=[],
            )  # fmt: skip
        with gr.Column(scale=2, min_width=280):
            drop = gr.File(label="Drop a picture here to get its recipe", height=150, elem_id="history-drop")
            state = gr.HTML(views.said("Choose a picture, or drop one made by undiffuse."), elem_id="history-state")
            picked = gr.HTML(elem_id="history-picture")
            use = gr.Button("Use these settings", visible=False, elem_id="history-use")
            download = gr.DownloadButton("Download the picture", visible=False, elem_id="history-download")
    copies = Copies("history", opened=True)
    with gr.Accordion("Record", open=True):
        record = gr.HTML(elem_id="history-record")
    outputs = [state, picked, use, download, record, *copies.outputs]
    quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}

    def refresh(all_runs: bool, request: gr.Request) -> Any:
        session = page.session(request)
        entries = list(session.entries)
        if all_runs:
            own = {entry.folder for entry in entries}
            entries += [entry for entry in read_entries(page.studio.out) if entry.folder not in own]
        session.kept["history"] = [(entry, file) for entry in entries for file in entry.files][:_SHOWN]
        return [(str(file), entry.folder.name) for entry, file in session.kept["history"]]

    tab.select(refresh, earlier, gallery, **quiet)
    earlier.change(refresh, earlier, gallery, **quiet)

    def shown(session: Session, file: Path, entry: Entry | None, request: gr.Request) -> list[Any]:
        found = describe_picture(file, entry)
        settings = found["settings"]
        recipe = None
        if entry is not None:
            recipe = Opened.of(entry.job)
        elif settings is not None:
            recipe = Opened(settings=settings)
        session.kept["recipe"] = recipe
        query = query_of(entry.job) if entry is not None else settings.to_query() if settings is not None else None
        address = "" if query is None else link(request, query)
        made = f"{file.name}, made by undiffuse {found['record'].get('command', '?')}"
        picture = views.tiles([views.stored_image(file)], [made], side=192)
        return [views.said(made), picture, gr.update(visible=recipe is not None),
                gr.update(value=str(file), visible=True), views.record_table(found["record"]), found["command"],
                found["python"], address]  # fmt: skip

    def select(event: gr.SelectData, request: gr.Request) -> list[Any]:
        session = page.session(request)
        known = session.kept.get("history") or []
        index = int(event.index)
        try:
            entry, file = known[index]
            return shown(session, file, entry, request)
        except IndexError:
            return [views.error("The history has changed: open the tab again."), *[gr.skip()] * 7]
        except BAD_INPUT as error:
            return [message(error), *[gr.skip()] * 7]

    gallery.select(select, None, outputs, **quiet)

    def dropped(path: str | None, request: gr.Request) -> Iterator[list[Any]]:
        if path is None:
            yield [gr.skip()] * len(outputs)
            return
        session = page.session(request)
        session.kept["recipe"] = None
        try:
            yield shown(session, upload(page.studio, path), None, request)
        except BAD_INPUT as error:
            text = str(error)
            for kept in sorted((page.studio.out / "inputs").glob("*")):
                text = text.replace(str(kept), Path(path).name)
            nothing = [views.error(text), "", gr.update(visible=False), gr.update(visible=False), "", "", "", ""]
            yield nothing

    drop.change(dropped, drop, outputs, show_progress="hidden", api_visibility="private")

    def back(request: gr.Request) -> Any:
        recipe = page.session(request).kept.get("recipe")
        return gr.skip() if recipe is None else restored.changes(recipe)

    use.click(back, None, restored.outputs, **quiet)
