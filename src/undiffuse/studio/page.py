"""What the tabs share: the form, following a job, keeping uploads, and how to copy what is on the page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from undiffuse.pictures.png import open_picture
from undiffuse.studio import snippets, views
from undiffuse.studio.form import SettingsForm
from undiffuse.studio.jobs import Job
from undiffuse.studio.links import query_of
from undiffuse.studio.processes import Event
from undiffuse.studio.runs import Trainings
from undiffuse.studio.sessions import Session, Studio
from undiffuse.util.errors import ConfigError

__all__ = ["Copies", "Page", "link", "message", "upload"]

_EVERY = 0.15  # seconds between two changes of the page
BAD_INPUT = (ValueError, OSError, MemoryError)
"""Errors that a user can cause and put right."""


@dataclass(frozen=True)
class Page:
    """What a tab is built with.

    Attributes:
        studio: What all pages share.
        form: The form of model and sampler.
        trainings: The trainings.
    """

    studio: Studio
    form: SettingsForm
    trainings: Trainings

    def session(self, request: gr.Request | None) -> Session:
        """Returns the session of the page that sent a request."""
        return self.studio.session(request.session_hash if request is not None else None)

    def follow(self, request: gr.Request, slot: str, job: Job) -> Iterator[tuple[str, Event]]:
        """Does a job and yields (the state as HTML, the event), not more often than a page can show.

        Args:
            request: Of the page.
            slot: The tab.
            job: The job.
        """
        text, shown = views.progress(None, "Starting"), 0.0
        for event in self.studio.run(self.session(request), slot, job):
            text = views.status(event) or text
            now = time.monotonic()
            if event.last or event.kind in ("waiting", "started", "begin") or now - shown >= _EVERY:
                shown = now
                yield text, event

    def finish(self, request: gr.Request, slot: str, job: Job) -> tuple[str, Event]:
        """Does a job without showing anything on the way; returns the state and the last event."""
        *_, last = self.follow(request, slot, job)
        return last

    def stop(self, slot: str, button: Any) -> None:
        """Connects a button that stops the job of a tab."""

        def stop(request: gr.Request) -> None:
            self.session(request).stop(slot)

        button.click(stop, queue=False, show_progress="hidden", api_visibility="private")


def message(error: Exception) -> str:
    """Returns the page's line for an error."""
    if isinstance(error, ConfigError):
        return views.error(error.text, error.field)
    return views.error(str(error) or type(error).__name__)


def upload(studio: Studio, file: str | None, what: str = "image") -> Path:
    """Checks a picture that was uploaded and keeps it.

    Args:
        studio: Where it is kept.
        file: The uploaded file; None if there is none.
        what: What messages call it.

    Raises:
        ConfigError: There is none ("image").
        OSError, ValueError: It cannot be read as a picture, or is too large.
    """
    if file is None:
        raise ConfigError(what, "is missing: choose a picture")
    name = Path(file).name
    try:
        with open_picture(file) as picture:
            picture.load()
    except BAD_INPUT as error:
        raise ValueError(str(error).replace(str(file), name)) from error
    except Exception as error:  # decoders raise anything
        raise ValueError(f"{name} cannot be read as a picture ({type(error).__name__})") from error
    return studio.keep(Path(file).read_bytes(), Path(file).suffix)


class Copies:
    """The part of a tab that gives what is on it as a command, as Python and as a link.

    Args:
        name: Begins the names of the elements on the page.
        opened: Whether it is unfolded.
    """

    def __init__(self, name: str, opened: bool = False) -> None:
        with gr.Accordion("Copy as command, Python or link", open=opened, elem_id=f"{name}-copies"):
            self.command = gr.Code(label="Command", language="shell", interactive=False, wrap_lines=True, lines=1,
                                   show_line_numbers=False, elem_id=f"{name}-command")  # fmt: skip
            self.python = gr.Code(label="Python", language="python", interactive=False, wrap_lines=True, lines=1,
                                  show_line_numbers=False, elem_id=f"{name}-python")  # fmt: skip
            self.link = gr.Textbox(label="Link", info="opens this page with these settings", interactive=False,
                                   buttons=["copy"], elem_id=f"{name}-link")  # fmt: skip

    @property
    def outputs(self) -> list[Any]:
        """The elements, in the order of `values`."""
        return [self.command, self.python, self.link]

    def values(self, job: Job, request: gr.Request) -> list[str]:
        """Returns command, Python and link of a job."""
        return [snippets.command(job), snippets.python(job), link(request, query_of(job))]


def link(request: gr.Request, query: str) -> str:
    """Returns the address of the page that sent a request, with another query."""
    return f"{str(request.headers.get('referer') or '').split('?')[0]}?{query}"
