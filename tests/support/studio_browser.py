"""The studio in a real browser: the server as a process of the command line, and Chromium driven by Playwright."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TIMEOUT = int(os.environ.get("UNDIFFUSE_BROWSER_TIMEOUT", "180")) * 1000
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def chromium() -> Iterator[Any]:
    """Yields the system's Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


def newest(folder: Path, task: str) -> Path:
    """Returns the newest folder of results of a task that a studio made in a folder."""
    return max((folder / "studio").glob(f"*-{task}"))


@contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    """Runs `undiffuse studio` in a folder and yields its address; the process ends as by Ctrl-C."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["studio", "--port", str(port), "--offline", "--device", "cpu", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = folder / "server.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "undiffuse", *words], cwd=folder, stdout=file, stderr=subprocess.STDOUT,
            env=environment,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}/"
        while url not in log.read_text() and process.poll() is None:
            try:
                process.wait(0.3)
            except subprocess.TimeoutExpired:
                continue
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            status = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert status == 0, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()


class Window:
    """A browser window with the studio in it.

    Attributes:
        page: Playwright's page.
        outside: Addresses beyond the studio that the page tried to load.
        errors: Errors of the page's scripts.
    """

    def __init__(self, browser: Any, url: str, query: str = "", width: int = 1400, height: int = 1000) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height})
        self.context.set_default_timeout(TIMEOUT)
        self.page = self.context.new_page()
        self.outside: list[str] = []
        self.errors: list[str] = []
        own = (url, "data:", "blob:")
        self.page.on("request", lambda r: None if r.url.startswith(own) else self.outside.append(r.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url + query)
        self.wait("#form-model-state", "parameters")

    def close(self) -> None:
        """Closes the window; nothing may have been loaded from elsewhere."""
        self.context.close()
        assert not self.outside, self.outside
        assert not self.errors, self.errors

    def tab(self, *names: str) -> None:
        """Opens a tab, and one within it."""
        for name in names:
            self.page.get_by_role("tab", name=name, exact=True).click()

    def text(self, where: str) -> str:
        """The state that a place shows."""
        found = self.page.locator(f"{where} .state")
        return " ".join(found.all_inner_texts())

    def wait(self, where: str, *texts: str) -> str:
        """Waits until a place says one of some texts, and returns what it says."""
        wanted = " || ".join(f"t.includes({text!r})" for text in texts)
        self.page.wait_for_function(
            f"(() => {{ const t = [...document.querySelectorAll({where + ' .state'!r})].map((e) => e.innerText)"
            f".join(' '); return {wanted}; }})()"
        )
        return self.text(where)

    def fill(self, where: str, value: str) -> None:
        """Types into a field."""
        field = self.page.locator(f"{where} textarea, {where} input:not([type=range]):not([type=checkbox])").first
        field.fill(value)
        field.press("Tab")

    def click(self, where: str) -> None:
        """Clicks a button."""
        self.page.locator(where).click()

    def unfold(self, name: str) -> None:
        """Opens a part that is folded away."""
        self.page.locator("button.label-wrap", has_text=name).locator("visible=true").first.click()

    def run(self, name: str, *ends: str) -> str:
        """Presses the button of a tab and waits for the end of its job."""
        state = "edit" if name in ("inpaint", "restore", "vary", "translate") else name
        assert self.page.locator(f"#{state}-state").count() == 1
        before = self.text(f"#{state}-state")
        self.click(f"#{name}-go")
        # Its progress, or its end where that comes at once.
        self.page.wait_for_function(
            f"document.querySelector('#{state}-state progress') !== null || "
            f"[...document.querySelectorAll('#{state}-state .state')].map((e) => e.innerText).join(' ') !== {before!r}"
        )
        return self.wait(f"#{state}-state", "Done in", *(ends or ("not possible", "missing")))

    def code(self, where: str) -> str:
        """What a block of code says."""
        lines = self.page.locator(f"{where} .cm-line").all_inner_texts()
        return "\n".join(line.rstrip("\n") for line in lines)

    def shot(self, name: str) -> None:
        """Takes a picture of the window into UNDIFFUSE_SHOTS, if that is set."""
        folder = os.environ.get("UNDIFFUSE_SHOTS")
        if folder:
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def number(text: str) -> int:
    """The first whole number of a text, without commas."""
    found = re.search(r"\d[\d,]*", text)
    assert found is not None, text
    return int(found[0].replace(",", ""))
