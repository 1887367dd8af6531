"""Starts, watches, stops and resumes trainings: processes of the command line, whose run folders say how they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from undiffuse.pictures import Panel
from undiffuse.reports.runs import preview_files, run_panels, run_summary, settings_of_run
from undiffuse.studio.snippets import training_command
from undiffuse.training.checkup import check_run
from undiffuse.training.events import read_events
from undiffuse.training.request import is_run_folder
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import duration, printable

__all__ = ["RunView", "Trainings", "inspected"]

LOG = "studio.log"
_TAIL = 4000  # bytes of the output that are shown


@dataclass(frozen=True)
class RunView:
    """How a run is.

    Attributes:
        folder: The run folder.
        state: "running", "stopping", "finished", "stopped", "failed" or "not running".
        progress: (images seen, images in all); None before the first record.
        speed: Images per second; None before the first record.
        left: Seconds that are left; None if that is not known.
        summary: Rows (name, value).
        panels: The curves.
        previews: (images seen, file) of the averaged weights, or of the trained ones.
        findings: (severity, text, what to do).
        output: The end of what the process wrote.
    """

    folder: Path
    state: str
    progress: tuple[int, int] | None = None
    speed: float | None = None
    left: float | None = None
    summary: list[tuple[str, str]] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    previews: list[tuple[int, Path]] = field(default_factory=list)
    findings: list[tuple[str, str, str]] = field(default_factory=list)
    output: str = ""

    @property
    def line(self) -> str:
        """The state in one line."""
        parts = [self.state]
        if self.progress is not None:
            seen, total = self.progress
            parts.append(f"{seen:,} of {total:,} images ({100 * seen / total:.1f}%)")
        if self.state == "running" and self.speed is not None:
            parts.append(f"{self.speed:.3g} images/s")
        if self.state == "running" and self.left is not None:
            parts.append(f"{duration(self.left)} left")
        return ", ".join(parts)


class Trainings:
    """The trainings that this program has started.

    Args:
        offline: Whether they may not download.
    """

    def __init__(self, offline: bool = False) -> None:
        self.offline = offline
        self._running: dict[Path, subprocess.Popen[bytes]] = {}
        self._stopping: set[Path] = set()
        self._lock = threading.Lock()

    def start(self, data: str, out: str, recipe: str = "", more: Sequence[str] = ()) -> Path:
        """Starts a training.

        Args:
            data: The training data.
            out: The run folder.
            recipe: A recipe's name; "" for the one that fits the data.
            more: Further options of `undiffuse train`.

        Raises:
            ConfigError: Data or folder is missing, or the folder belongs to a run already.
        """
        if not data.strip():
            raise ConfigError("data", "is missing: give a folder of pictures or the name of a data set")
        if not out.strip():
            raise ConfigError("out", "is missing: give a folder for the run")
        folder = Path(out.strip()).expanduser()
        if is_run_folder(folder):
            raise ConfigError("out", f"{folder} holds a run already: resume it, or choose another folder")
        return self._begin(folder, training_command(data.strip(), str(folder), recipe, more))

    def resume(self, folder: str | Path) -> Path:
        """Resumes a run.

        Raises:
            ConfigError: There is no run, or it is running.
        """
        place = Path(folder).expanduser()
        if not is_run_folder(place):
            raise ConfigError("run", f"{folder} holds no training run")
        return self._begin(place, ["train", "--resume", str(place)])

    def stop(self, folder: str | Path) -> None:
        """Asks a run to save and to end.

        Raises:
            ConfigError: It was not started here, or has ended.
        """
        place = Path(folder).expanduser()
        with self._lock:
            process = self._running.get(place.absolute())
            if process is None or process.poll() is not None:
                raise ConfigError(
                    "run", f"{folder} is not running here: only runs that this page started can be stopped"
                )
            self._stopping.add(place.absolute())
            process.send_signal(signal.SIGTERM)

    def _begin(self, folder: Path, words: list[str]) -> Path:
        key = folder.absolute()
        with self._lock:
            before = self._running.get(key)
            if before is not None and before.poll() is None:
                raise ConfigError("run", f"{folder} is running")
            log = self._log(folder)
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "wb") as file:
                command = [sys.executable, "-m", "undiffuse", *words, *(["--offline"] if self.offline else [])]
                self._running[key] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
                )
            self._stopping.discard(key)
        return folder

    @staticmethod
    def _log(folder: Path) -> Path:
        """Beside the folder, which has to be empty when a run begins."""
        return folder.parent / f".{folder.name}-{LOG}"

    def known(self, root: str | Path = "runs") -> list[str]:
        """Returns the run folders below a folder, and those that were started here, the newest first."""
        found = {Path(folder) for folder in self._running}
        place = Path(root)
        if place.is_dir():
            found |= {inner.absolute() for inner in place.iterdir() if is_run_folder(inner)}
        here = Path.cwd()
        shown = sorted(found, key=lambda folder: -(folder.stat().st_mtime if folder.exists() else time.time()))
        return [str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder) for folder in shown]

    def view(self, folder: str | Path) -> RunView:
        """Returns how a run is; what its folder does not say yet is left out."""
        place = Path(folder).expanduser()
        output, state = self._output(place), self._state(place)
        if not is_run_folder(place):
            return RunView(place, state, output=output)
        records = list(read_events(place / "metrics.jsonl"))
        last = next((r for r in reversed(records) if r.get("kind") == "train"), None)
        try:
            settings, findings = settings_of_run(place), check_run(place)
        except ValueError as error:
            return RunView(place, state, findings=[("problem", str(error), "")], output=output)
        previews = preview_files(place / "previews")
        if state == "not running" and last is not None and last["images"] >= last["total_images"]:
            state = "finished"
        return RunView(
            place, state,
            progress=None if last is None else (last["images"], last["total_images"]),
            speed=None if last is None else _number(last.get("images_per_second")),
            left=None if last is None else _number(last.get("seconds_left")),
            summary=run_summary(settings, records), panels=run_panels(records),
            previews=next(iter(previews.values()), []),
            findings=[(item.severity, item.text, item.do) for item in findings], output=output,
        )  # fmt: skip

    def _state(self, place: Path) -> str:
        process = self._running.get(place.absolute())
        if process is None:
            return "not running"
        code = process.poll()
        if code is None:
            return "stopping" if place.absolute() in self._stopping else "running"
        return "finished" if code == 0 else "stopped" if code in (130, 143, 75) else "failed"

    def _output(self, place: Path) -> str:
        try:
            data = self._log(place).read_bytes()[-_TAIL:]
        except OSError:
            return ""
        return printable(data.decode("utf-8", "replace").replace("\r", "\n")).strip()

    def close(self, wait: float = 30.0) -> None:
        """Asks all runs to save and to end, and waits for them."""
        with self._lock:
            alive = [process for process in self._running.values() if process.poll() is None]
        for process in alive:
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + wait
        for process in alive:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def inspected(data: str, stop: threading.Event) -> Iterator[str]:
    """Runs `undiffuse inspect` on a data set and yields its output: "" while it works, and the text at the end.

    Args:
        data: The data.
        stop: Set by the caller to end it.
    """
    environment: dict[str, Any] = {**os.environ, "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "undiffuse", "inspect", data], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env=environment,
    )  # fmt: skip
    text: list[bytes] = []
    reader = threading.Thread(target=lambda: text.append(process.stdout.read() if process.stdout else b""), daemon=True)
    reader.start()
    try:
        while reader.is_alive() and not stop.is_set():
            reader.join(0.2)
            yield ""
    finally:
        if process.poll() is None and stop.is_set():
            process.kill()
        process.wait()
    yield b"".join(text).decode("utf-8", "replace").strip()


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
