"""Puts the tabs together and serves the page, on this computer only unless an address is given."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
os.environ["GRADIO_RUN_HISTORY"] = "False"  # Gradio's own history, whose page offers to keep it elsewhere
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr  # noqa: E402

from undiffuse.models import SHIPPED  # noqa: E402
from undiffuse.reports.page import asset  # noqa: E402
from undiffuse.studio.form import SettingsForm  # noqa: E402
from undiffuse.studio.links import Opened, opened  # noqa: E402
from undiffuse.studio.logs import leave_out_disconnects  # noqa: E402
from undiffuse.studio.page import BAD_INPUT, Page, message  # noqa: E402
from undiffuse.studio.processes import ModelProcesses  # noqa: E402
from undiffuse.studio.restored import Restored  # noqa: E402
from undiffuse.studio.runs import Trainings  # noqa: E402
from undiffuse.studio.sessions import Studio  # noqa: E402
from undiffuse.studio.settings import Settings  # noqa: E402
from undiffuse.studio.tabs import compare, data, edit, history, interpolate, sample, training  # noqa: E402

# Charts keep their numbers in a <script type="application/json">, which nothing has to execute.
warnings.filterwarnings("ignore", message="A `<script>` tag was found", category=UserWarning)

__all__ = ["Server", "build", "serve"]

TITLE = "undiffuse studio"
LARGEST_UPLOAD = 64 * 2**20
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; worker-src 'self' blob:; font-src 'self' data:; "
    "frame-ancestors 'self'; form-action 'self'"
)
"""The page loads nothing from elsewhere; the browser refuses it even where a part of Gradio would."""


def build(studio: Studio, trainings: Trainings) -> gr.Blocks:
    """Returns the page.

    Args:
        studio: What all open pages share.
        trainings: The trainings.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML("<h1>undiffuse studio</h1>", elem_id="title")
        with gr.Tabs(elem_id="rooms") as rooms:
            with gr.Tab("Make", id="make"), gr.Row(elem_id="make"):
                with gr.Column(scale=2, min_width=300, elem_id="form"):
                    form = SettingsForm(Settings(model=studio.model), "form")
                page = Page(studio, form, trainings)
                with gr.Column(scale=5, min_width=320), gr.Tabs(elem_id="ways") as ways:
                    with gr.Tab("Sample", id="sample"):
                        picture = sample.build(page)
                    with gr.Tab("Compare", id="compare"):
                        other = compare.build(page)
                    with gr.Tab("Interpolate", id="interpolate"):
                        ends = interpolate.build(page)
                    with gr.Tab("Edit", id="edit"):
                        controls, edits = edit.build(page)
            restored = Restored(form, other, {"interpolate": ends, **controls}, rooms, ways, edits)
            with gr.Tab("History", id="history") as tab:
                history.build(page, tab, restored)
            with gr.Tab("Train", id="train") as tab:
                training.build(page, tab)
            with gr.Tab("Data", id="data"):
                data.build(page)

        def arrived(request: gr.Request) -> Iterator[Any]:
            """Puts the settings of a link into the form, and describes the model."""
            found, problem = Opened(settings=Settings(model=studio.model)), None
            try:
                pairs = [(str(name), str(value)) for name, value in request.query_params.multi_items()]
                found = opened(pairs, studio.model)
            except BAD_INPUT as error:
                problem = message(error)
            yield restored.changes(found)
            yield from picture.describe(found.settings.model, found.settings.weights or "", request)
            if problem is not None:
                yield {form.state: problem}

        def closed(request: gr.Request) -> None:
            studio.drop(request.session_hash)

        changed = [*restored.outputs, *(part for part in picture.outputs if part not in form.inputs)]
        blocks.load(arrived, None, changed, show_progress="hidden", api_visibility="private", concurrency_limit=None)
        blocks.unload(closed)
    return blocks


class Server:
    """A running page.

    Attributes:
        url: Its address.
        studio: What the open pages share.
        trainings: The trainings.
    """

    def __init__(self, blocks: gr.Blocks, url: str, studio: Studio, trainings: Trainings) -> None:
        self._blocks, self.url, self.studio, self.trainings = blocks, url, studio, trainings

    def wait(self) -> None:
        """Waits until the program is interrupted."""
        self._blocks.block_thread()

    def close(self) -> None:
        """Ends the page, the model processes and the trainings, which save first."""
        self._blocks.close(verbose=False)
        self.studio.processes.close()
        self.trainings.close()


def serve(
    model: str = SHIPPED[0],
    *,
    out: str | Path = "studio",
    host: str = "127.0.0.1",
    port: int | None = None,
    device: str = "auto",
    processes: int = 1,
    offline: bool = False,
    open_browser: bool = False,
    workshop: Callable[[str], Any] | None = None,
) -> Server:
    """Starts the page.

    Args:
        model: The model that it begins with.
        out: The folder of results.
        host: The address to listen on. Everyone who can reach it can use this computer's models and files.
        port: The port; None takes the first free one from 7860.
        device: As in `Pipeline.load`.
        processes: Model processes, each with models of its own; users wait for each other where there is one.
        offline: Whether nothing may be downloaded.
        open_browser: Whether to open the page in a browser.
        workshop: See `worker.main`.

    Returns:
        The running page.

    Raises:
        OSError: The port is in use.
    """
    pool = ModelProcesses(processes, device=device, offline=offline, workshop=workshop)
    studio, trainings = Studio(pool, Path(out).absolute(), model), Trainings(offline)
    pool.warm()
    try:
        blocks = build(studio, trainings)
        blocks.queue(default_concurrency_limit=16, max_size=256)
        with _no_proxy(host):
            _, url, _ = blocks.launch(
                server_name=host, server_port=port, inbrowser=open_browser, prevent_thread_lock=True, quiet=True,
                share=False, show_error=True, ssr_mode=False, pwa=False, footer_links=[], max_file_size=LARGEST_UPLOAD,
                allowed_paths=[str(studio.out)], enable_monitoring=False, mcp_server=False, css=_styles(),
                head=_head(), theme=_theme(), app_kwargs=_protected(),
                _frontend=False,  # or else it gives up on a busy computer whose page does not answer in time
            )  # fmt: skip
        leave_out_disconnects()
    except BaseException:
        pool.close()
        raise
    return Server(blocks, url, studio, trainings)


@contextmanager
def _no_proxy(host: str) -> Iterator[None]:
    """Lets Gradio reach its own page, which it calls as it starts, where the environment names a proxy."""
    names = ("NO_PROXY", "no_proxy")
    before = {name: os.environ.get(name) for name in names}
    own = {"localhost", "127.0.0.1", "::1", host}
    for name in names:
        os.environ[name] = ",".join([*filter(None, [before[name]]), *sorted(own)])
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _theme() -> Any:
    """Gradio's theme with fonts that are on every computer, so that none is loaded."""
    sans = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    return gr.themes.Default(font=sans, font_mono=mono, primary_hue="blue", spacing_size="sm", radius_size="sm")


def _styles() -> str:
    folder = Path(__file__).parent
    return asset("charts.css") + (folder / "studio.css").read_text(encoding="utf-8")


def _head() -> str:
    folder = Path(__file__).parent
    own = (folder / "studio.js").read_text(encoding="utf-8")
    return f"<script>{asset('charts.js')}{own}</script>"


def _protected() -> dict[str, Any]:
    """Adds the policy to every answer, see `POLICY`."""
    from starlette.middleware import Middleware

    return {"middleware": [Middleware(_Policy)], "docs_url": None, "redoc_url": None}


class _Policy:
    """Adds headers to answers (ASGI)."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(event: Any) -> None:
            if event["type"] == "http.response.start":
                headers = [(name, value) for name, value in event["headers"] if name != b"content-security-policy"]
                more = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"same-origin")]
                event = {**event, "headers": [*headers, *more]}
            await send(event)

        await self.app(scope, receive, sending)
