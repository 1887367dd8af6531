"""Commands in processes of their own, with a fault at a chosen moment of their work with files.

Python reports every opening, renaming and removal of a file to audit hooks before it happens. A hook here counts those
that change something below the working folder, and at the chosen one kills the process, sends it a signal, moves the
clock, or lets the operation fail as it does on a disk that is full, read-only or gone. Calls of networks can be made to
run out of memory or to give NaN.
"""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.training_runs import free_port

ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "gone": errno.EIO}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Fault:
    """What happens at which change of a file.

    Attributes:
        kind: "kill", "SIGTERM" or "SIGINT"; one of `ERRORS`, which lasts from then on; "memory", an error of memory;
            "clock", whose time of day jumps at all of `jumps`; "NaN" and "network memory", in calls of a network.
        at: Number of the change, from 0.
        seconds: Instead, the time after which a signal comes.
        rank: The process it happens in.
        jumps: Numbers of changes, from 0.
        call: Number of the network's call, from 0.
        lasts: Whether all calls after that one fail as well.
    """

    kind: str
    at: int | None = None
    seconds: float | None = None
    rank: int = 0
    jumps: tuple[int, ...] = ()
    call: int | None = None
    lasts: bool = False


class Clock:
    """The time of day of this process, which jumps; clocks that only count on stay."""

    def __init__(self) -> None:
        self.shift, self._random = 0.0, random.Random(0)

    def install(self) -> None:
        """Puts it in the place of the functions of `time`."""
        now, now_ns, local, gm, text = time.time, time.time_ns, time.localtime, time.gmtime, time.strftime
        time.time = lambda: now() + self.shift
        time.time_ns = lambda: now_ns() + int(self.shift * 1e9)
        time.localtime = lambda seconds=None: local(time.time() if seconds is None else seconds)  # type: ignore[assignment]
        time.gmtime = lambda seconds=None: gm(time.time() if seconds is None else seconds)  # type: ignore[assignment]
        time.strftime = lambda form, when=None: text(form, when or time.localtime())  # type: ignore[assignment]

    def jump(self) -> None:
        """Moves it by an hour to a year, there and back in turns."""
        self.shift = (-1 if self.shift > 0 else 1) * 3600 * self._random.uniform(1, 365 * 24)


class _Hook:
    """Counts changes below a folder; `events` are their texts."""

    def __init__(self, root: str, fault: Fault | None, listen: Callable[[str], None] | None) -> None:
        self.root, self.fault, self.listen = os.path.realpath(root), fault, listen
        self.clock = Clock()
        if fault is not None and fault.jumps:
            self.clock.install()
        self.count, self.active, self.failing = 0, True, False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            path, mode, flags = args
            writes = (isinstance(mode, str) and any(c in mode for c in "wax+")) or (
                mode is None and isinstance(flags, int) and bool(flags & _WRITING)
            )
            if not writes or not isinstance(path, (str, bytes, os.PathLike)):
                return
            verb = "write"
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.symlink"):
            path, verb = args[0], event[3:]
        else:
            return
        where = os.path.abspath(os.fsdecode(os.fspath(path)))
        if not where.startswith(self.root + os.sep):
            return
        self.active = False  # what is done here is not counted
        try:
            self._happen(verb, where, args)
        finally:
            self.active = True

    def _happen(self, verb: str, where: str, args: tuple[Any, ...]) -> None:
        number, self.count = self.count, self.count + 1
        if self.listen is not None:
            target = f" -> {os.path.relpath(os.fsdecode(args[1]), self.root)}" if verb in ("rename", "link") else ""
            self.listen(f"{verb} {os.path.relpath(where, self.root)}{target}")
        fault = self.fault
        if fault is not None and number in fault.jumps:
            self.clock.jump()
        if fault is None or fault.at is None or (number < fault.at):
            return
        if fault.kind in ERRORS:
            if verb not in ("remove", "rmdir") or fault.kind != "full":
                raise OSError(ERRORS[fault.kind], os.strerror(ERRORS[fault.kind]), where)
        elif number == fault.at:
            if fault.kind == "memory":
                raise MemoryError("no memory, says a test")
            os.kill(os.getpid(), signal.SIGKILL if fault.kind == "kill" else getattr(signal, fault.kind))
            time.sleep(0.01)


def _body(
    words: list[str], folder: str, fault: Fault | None, trace: str | None, env: dict[str, str], before: Any
) -> None:
    rank = int(env.get("RANK", "0"))
    os.environ.update(env)
    os.chdir(folder)
    log = open(os.path.join(os.path.dirname(folder), f"{os.path.basename(folder)}.{rank}.log"), "a")  # noqa: SIM115
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if before is not None:
        before()
    lines: list[str] = []
    hook = _Hook(folder, fault if fault is not None and fault.rank == rank else None,
                 None if trace is None else lines.append)  # fmt: skip
    if fault is not None and fault.call is not None:
        _disturb_networks(fault)
    elif fault is not None:
        sys.addaudithook(hook)
    elif trace is not None:
        if trace.endswith(".synced"):
            _note_syncs(lines, hook.root)
        sys.addaudithook(hook)
    from undiffuse.cli import main

    status = 1
    try:
        status = main(words)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 99
    finally:
        hook.active = False
        sys.stdout.flush()
        if trace is not None:
            Path(trace).write_text(json.dumps(lines))
        os._exit(status)


def _disturb_networks(fault: Fault) -> None:
    """Lets calls of networks give NaN or run out of memory, but for those that estimate the time of a run."""
    import torch

    from undiffuse.nets.runner import NetworkRunner
    from undiffuse.training import estimate

    original: Callable[..., Any] = NetworkRunner.__call__
    estimate.NetworkRunner = type("Undisturbed", (NetworkRunner,), {"__call__": original})  # type: ignore[misc]
    calls = itertools.count()

    def call(self: Any, *args: Any, **conditions: Any) -> Any:
        number = next(calls)
        hit = number == fault.call or (fault.lasts and number > (fault.call or 0))
        if hit and fault.kind == "network memory":
            raise torch.OutOfMemoryError("CUDA out of memory, says a test")
        out = original(self, *args, **conditions)
        return out * float("nan") if hit else out

    NetworkRunner.__call__ = call  # type: ignore[method-assign]


def _note_syncs(lines: list[str], root: str) -> None:
    """Notes every fsync among the changes."""
    real = os.fsync

    def fsync(fd: int) -> None:
        lines.append(f"sync {os.path.relpath(os.readlink(f'/proc/self/fd/{fd}'), root)}")
        real(fd)

    def everything() -> None:
        lines.append("sync everything")

    os.fsync = fsync  # type: ignore[assignment]
    os.sync = everything


class Process:
    """A running command."""

    def __init__(self, words: tuple[Any, ...], folder: Path, fault: Fault | None = None, trace: Path | None = None,
                 ranks: int = 1, before: Callable[[], None] | None = None) -> None:  # fmt: skip
        context = multiprocessing.get_context("forkserver")
        here = [str(path) for path in Path(__file__).resolve().parents[1:3]]
        there = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join([*here, *[p for p in there if p and p not in here]])
        context.set_forkserver_preload(["faults.preload"])
        self.folder, self.begun = folder, time.monotonic()
        env = {"UNDIFFUSE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        port = str(free_port())
        self.children = []
        for rank in range(ranks):
            more = {} if ranks == 1 else {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank),
                                          "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
            args = ([str(word) for word in words], str(folder), fault, None if trace is None else str(trace),
                    env | more, before)  # fmt: skip
            child = context.Process(target=_body, args=args)
            child.start()
            self.children.append(child)

    def send(self, number: int, rank: int = 0) -> None:
        """Sends a signal."""
        if self.children[rank].is_alive():
            os.kill(int(self.children[rank].pid or 0), number)

    def wait(self, seconds: float = 1200) -> list[int]:
        """Exit codes of all; the processes are killed if they take longer."""
        end = time.monotonic() + seconds
        for child in self.children:
            child.join(max(0.0, end - time.monotonic()))
        late = [child for child in self.children if child.is_alive()]
        for child in late:
            child.kill()
            child.join()
        assert not late, f"{len(late)} processes did not end in {seconds:g} seconds\n{self.said}"
        return [int(child.exitcode or 0) for child in self.children]

    @property
    def said(self) -> str:
        """What the processes printed."""
        logs = sorted(self.folder.parent.glob(f"{self.folder.name}.*.log"))
        return "".join(log.read_text(errors="replace") for log in logs)


def run(words: tuple[Any, ...], folder: Path, fault: Fault | None = None, **options: Any) -> tuple[int, str]:
    """Runs a command to its end: the exit status of rank 0 (negative for a signal) and what was printed since."""
    for log in folder.parent.glob(f"{folder.name}.*.log"):
        log.unlink()
    process = Process(words, folder, fault, **options)
    if fault is not None and fault.seconds is not None:
        time.sleep(fault.seconds)
        number = signal.SIGKILL if fault.kind == "kill" else getattr(signal, fault.kind)
        process.send(number, fault.rank)
    return process.wait()[0], process.said
