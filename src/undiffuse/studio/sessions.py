"""Keeps what each open page has made: paths, pictures with their jobs, and what is running."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from undiffuse.pictures import read_record
from undiffuse.studio import snippets
from undiffuse.studio.jobs import MAKES, Job
from undiffuse.studio.paths import Path as StepPath
from undiffuse.studio.processes import Event, ModelProcesses
from undiffuse.studio.settings import Settings
from undiffuse.util.files import atomic_file
from undiffuse.util.records import read_json
from undiffuse.util.text import count_of

__all__ = ["Entry", "Session", "Studio", "describe_picture", "read_entries"]

JOB_FILE = "studio.json"
MOST_SESSIONS = 64
"""Pages that are remembered; the one that was used the longest ago is forgotten first."""


@dataclass(frozen=True)
class Entry:
    """One finished job.

    Attributes:
        job: The job.
        folder: Where its pictures are.
        files: The pictures.
        when: Seconds since 1970.
        seconds: How long it took.
    """

    job: Job
    folder: Path
    files: tuple[Path, ...]
    when: float
    seconds: float = 0.0

    @property
    def title(self) -> str:
        """What was made, in a few words."""
        return f"{self.folder.name}: {count_of(len(self.files), 'picture')}"

    def save(self) -> None:
        """Writes the job beside its pictures, for later pages."""
        job = self.job
        settings = [one.to_query() for one in (job.settings, job.other) if one is not None]
        state = {
            "task": job.task, "settings": settings, "inputs": _plain(dict(job.inputs)), "when": self.when,
            "seconds": self.seconds, "files": [file.relative_to(self.folder).as_posix() for file in self.files],
        }  # fmt: skip
        with atomic_file(self.folder / JOB_FILE, overwrite=True, durable=False) as file:
            file.write(json.dumps(state, indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> Entry:
        """Reads what `save` wrote.

        Raises:
            ValueError, OSError: It cannot be read.
        """
        found = read_json((folder / JOB_FILE).read_bytes(), str(folder / JOB_FILE))
        try:
            settings = [Settings.from_query(query) for query in found["settings"]]
            job = Job(
                task=str(found["task"]), settings=settings[0], inputs=dict(found["inputs"]),
                other=settings[1] if len(settings) > 1 else None,
            )  # fmt: skip
            files = tuple(folder / name for name in found["files"] if (folder / name).is_file())
            return cls(job, folder, files, float(found["when"]), float(found["seconds"]))
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{folder / JOB_FILE} does not say what was made ({error!r})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def read_entries(out: Path, most: int = 60) -> list[Entry]:
    """Returns what is in a folder of results, the newest first; what cannot be read is left out."""
    found = []
    for folder in out.iterdir() if out.is_dir() else ():
        if (folder / JOB_FILE).is_file():
            try:
                found.append(Entry.read(folder))
            except (ValueError, OSError):
                continue
    return sorted(found, key=lambda entry: -entry.when)[:most]


@dataclass
class Session:
    """One open page.

    Attributes:
        paths: The path of the last job of each tab.
        entries: What it has made, the newest first.
        kept: Values of single tabs, by name.
    """

    paths: dict[str, StepPath] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)
    used: float = field(default_factory=time.monotonic)
    _stops: dict[str, threading.Event] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, slot: str) -> threading.Event:
        """Stops what runs in a slot (a tab) and returns the event that stops the next job there."""
        with self._lock:
            if slot in self._stops:
                self._stops[slot].set()
            self._stops[slot] = threading.Event()
            return self._stops[slot]

    def stop(self, slot: str | None = None) -> None:
        """Stops the job of a slot; of all slots if none is named."""
        with self._lock:
            for name, event in self._stops.items():
                if slot in (None, name):
                    event.set()


class Studio:
    """What all pages share: model processes, the folder of results, and the sessions by key.

    Args:
        processes: The model processes.
        out: The folder of results.
        model: The model that a new page begins with.
    """

    def __init__(self, processes: ModelProcesses, out: Path, model: str) -> None:
        self.processes, self.out, self.model = processes, out, model
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def session(self, key: str | None) -> Session:
        """Returns the session of a page, made at its first use."""
        with self._lock:
            found = self._sessions.setdefault(str(key), Session())
            found.used = time.monotonic()
            while len(self._sessions) > MOST_SESSIONS:
                oldest = min(self._sessions, key=lambda name: self._sessions[name].used)
                self._sessions.pop(oldest).stop()
            return found

    def drop(self, key: str | None) -> None:
        """Forgets a page that was closed, and stops what it was doing."""
        with self._lock:
            found = self._sessions.pop(str(key), None)
        if found is not None:
            found.stop()

    def run(self, session: Session, slot: str, job: Job) -> Iterator[Event]:
        """Does a job for a page and yields its events; a job that makes pictures becomes an entry of the session.

        Args:
            session: The page.
            slot: The tab, whose earlier job is stopped.
            job: The job.
        """
        stop = session.start(slot)
        folder = self._new_folder(job.task) if job.task in MAKES else None
        done = False
        path = session.paths[slot] = StepPath()
        try:
            for event in self.processes.run(job, None if folder is None else str(folder), stop):
                path.take(event.kind, event.values)
                if event.kind == "done" and folder is not None:
                    done = True
                    self._enter(session, job, folder, event.values)
                yield event
        finally:
            if folder is not None and not done:
                _remove_if_empty(folder)

    def _enter(self, session: Session, job: Job, folder: Path, values: dict[str, Any]) -> None:
        files = tuple(Path(file) for file in values["files"])
        entry = Entry(job, folder, files, time.time(), float(values["seconds"]))
        entry.save()
        session.entries.insert(0, entry)

    def keep(self, content: bytes, ending: str) -> Path:
        """Writes a picture that a page gave, so that commands which name it work later, and returns its file.

        Args:
            content: The bytes of the file.
            ending: Its ending, for example ".png".
        """
        name = hashlib.sha256(content).hexdigest()[:12]
        file = self.out / "inputs" / f"{name}{ending.lower()}"
        if not file.is_file():
            with atomic_file(file, overwrite=True, durable=False) as opened:
                opened.write(content)
        return file

    def _new_folder(self, task: str) -> Path:
        """Makes a folder that no other page has."""
        self.out.mkdir(parents=True, exist_ok=True)
        taken = [int(folder.name[:4]) for folder in self.out.iterdir() if folder.name[:4].isdecimal()]
        number = max(taken, default=0) + 1
        while True:
            folder = self.out / f"{number:04d}-{task}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                number += 1


def _remove_if_empty(folder: Path) -> None:
    """Removes the folder of a job that did not end, unless it holds pictures."""
    if folder.is_dir() and not any(file.suffix in (".png", ".tiff") for file in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)


def describe_picture(file: Path, entry: Entry | None = None) -> dict[str, Any]:
    """Returns what is known of a picture: its record, how to make it again, and the settings it was made with.

    Args:
        file: A picture of undiffuse.
        entry: The job that made it, if it is known.

    Returns:
        "record", "command", "python", and "settings" or None where no setting of the page is like it.

    Raises:
        ValueError, OSError: The picture has no record, or cannot be read.
    """
    record = read_record(file)
    settings: Settings | None = None
    with suppress(ValueError):
        settings = Settings.from_record(record, str(file))
    single = record.get("command") == "sample" and "index" in record
    if single:
        again = snippets.record_command(str(file))
        text = f"from undiffuse.pipelines.record import regenerate\n\nregenerate({str(file)!r}).save('again.png')\n"
    elif entry is not None:
        again, text = snippets.command(entry.job), snippets.python(entry.job)
    else:
        again = f"undiffuse inspect {snippets.quoted(str(file))}"
        text = f"from undiffuse.pictures import read_record\n\nread_record({str(file)!r})\n"
    if entry is not None:
        settings = entry.job.settings
    return {"record": record, "command": again, "python": text, "settings": settings}
