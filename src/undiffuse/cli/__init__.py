"""The command line: `undiffuse COMMAND ...`.

`parser` declares the commands and options. It and its helpers import nothing heavy, so that help is printed at once.
Each command is a function `run(args) -> exit status` in the module of its name, which is imported when it is called.

To add a command, declare its options in `parser` and write its function `run` in a new module.

Exit status: 0 success; 1 the work failed (training diverged, an image could not be
repeated, another process of the job died); 2 invalid input, reported
in one message without a traceback (UNDIFFUSE_DEBUG=1 shows the traceback); 130 interrupted by Ctrl-C; 143 stopped by
SIGTERM.
"""

from __future__ import annotations

import gc
import importlib
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from undiffuse.cli.options import settle
from undiffuse.cli.parser import COMMANDS, SHARED, build_parser
from undiffuse.cli.words import in_options
from undiffuse.util.errors import Advice, ConfigError
from undiffuse.util.launch import is_main_process, launch

__all__ = ["COMMANDS", "main"]

INTERRUPTED = 130
TERMINATED = 143
MISTAKE = 2
LOST = 1
_LAST = 2.0  # seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit status.

    Args:
        argv: The words after `undiffuse` (default: those of the process).
    """
    status = _main(argv)
    if status and not is_main_process():
        time.sleep(_LAST)  # torchrun ends all processes at the first failure, and rank 0 has something to say
    return status


def _main(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if shell := os.environ.get("UNDIFFUSE_COMPLETE"):  # a shell asks at a Tab
        from undiffuse.cli.completion import answer

        return answer(words, shell)
    parser = build_parser(words)
    try:
        args = parser.parse_args(words)
    except SystemExit as stop:  # help was shown, or an error was reported
        return int(stop.code or 0)
    if args.command is None:
        parser.print_help()
        return 0
    body: Any = None
    speaks = is_main_process()  # for all processes
    try:
        settle(args)
        started = launch()
        if args.command not in SHARED and started.world_size > 1:
            if not started.is_main:
                return 0
            os.environ["WORLD_SIZE"] = "1"  # nothing it calls waits for the others
            started = launch()
        if getattr(args, "processes", None) not in (None, 1) and started.world_size == 1:
            from undiffuse.cli.processes import run_processes

            return run_processes(args.processes, words)
        _set_wait_policy()
        body, files = _imported(f"undiffuse.cli.{args.module}", "undiffuse.cli.downloading")
        shares = started.world_size > 1 and args.command in SHARED
        speaks = True  # of not finding the others
        with (
            nullcontext() if started.world_size > 1 else _terminable(),
            _joined() if shares else nullcontext(),
            files.downloading(offline=getattr(args, "offline", False)),
            _kernels(getattr(args, "kernels", None)),
            _advice(started.is_main),
        ):
            speaks = started.is_main
            status = int(body.run(args))
        sys.stdout.flush()  # here, where a closed pipe can still be handled
        return status
    except KeyboardInterrupt as stop:
        by = "stopped by SIGTERM" if isinstance(stop, _Terminated) else "interrupted"
        if speaks:
            fail(f"{by}. Files written so far are kept; repeat the command to resume", prefix="")
        return TERMINATED if isinstance(stop, _Terminated) else INTERRUPTED
    except BrokenPipeError:  # the reader (head, a pager) has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if type(error).__name__ == "RankLostError":
            return LOST  # the line is written already, by the process that noticed
        known = _status(error)
        if known is None or os.environ.get("UNDIFFUSE_DEBUG", "0") not in ("", "0"):
            raise
        if speaks:
            fail(_message(error, getattr(body, "OPTION_NAMES", {})))
        return known


class _Terminated(KeyboardInterrupt):
    """SIGTERM came. It ends a command like Ctrl-C, so that unfinished files are removed."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Raises `_Terminated` in the block at the first SIGTERM; the second one ends the process at once."""

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _joined() -> Any:
    """Joins the other processes, see `undiffuse.distributed.join`."""
    from undiffuse.distributed import join

    return join()


def _set_wait_policy() -> None:
    """Decides how threads wait, before the command's modules import torch; help and mistakes do without."""
    from undiffuse.cli.waiting import set_wait_policy

    set_wait_policy()


def _kernels(words: str | None) -> AbstractContextManager[object]:
    """Uses the implementations of --kernels, if it is given."""
    if words is None:
        return nullcontext()
    from undiffuse.kernels.choice import parse, using

    parse(words, "--kernels")
    return using(words)


@contextmanager
def _advice(speaks: bool) -> Iterator[None]:
    """Prints warnings that are for users as one line, and only in the main process."""
    with warnings.catch_warnings():
        before = warnings.showwarning

        def show(message: Any, category: Any, *more: Any, **also: Any) -> None:
            if not issubclass(category, Advice):
                before(message, category, *more, **also)
            elif speaks:
                fail(str(message), prefix="note: ")

        warnings.showwarning = show
        yield


def fail(text: str, prefix: str = "error: ") -> None:
    """Prints an error on stderr. Imports `console` only now, because help does not need it."""
    from undiffuse.cli import console

    console.fail(text, prefix)


def _imported(*modules: str) -> list[Any]:
    """Imports modules by name with garbage collection off, because each collection would traverse all of torch.

    If they import torch, all objects are then frozen: the collection at exit alone would take a third of a second.
    """
    first, enabled = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        imported = [importlib.import_module(module) for module in modules]
    finally:
        if enabled:
            gc.enable()
    if first:
        gc.freeze()
    return imported


def _status(error: Exception) -> int | None:
    """Returns the exit status of an error that the user can fix; None for a bug of this program."""
    if isinstance(error, (ValueError, OSError, MemoryError)):
        return MISTAKE
    known = {"NonFiniteError": 1, "OutOfMemoryError": MISTAKE}
    return known.get(type(error).__name__)


def _message(error: Exception, names: Mapping[str, str]) -> str:
    """Returns the text of an error. `names` maps arguments to options with another name."""
    if isinstance(error, ConfigError):
        names = {"classes": "class", **names}
        named = lambda name: f"--{str(names.get(name, name)).replace('_', '-')}"  # noqa: E731
        return re.sub(r"`([a-z_]+)`", lambda found: named(found[1]), error.message(named(error.field)))
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory; use a smaller --batch or --precision bf16 ({str(error).splitlines()[0]})"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return in_options(str(error)) or type(error).__name__
