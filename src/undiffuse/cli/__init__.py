"""The command line: `undiffuse COMMAND ...`.

`parser` declares the commands and options. It and its helpers import nothing heavy, so that help is printed at once.
Each command is a function `run(args) -> exit status` in the module of its name, which is imported when it is called.

To add a command, declare its options in `parser` and write its function `run` in a new module.

Exit status: 0 success; 1 the work failed (training diverged, an image could not be
repeated, another process of the job died); 2 invalid input, reported
in one message without a traceback (UNDIFFUSE_DEBUG=1 shows the traceback); 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import gc
import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from undiffuse.cli.options import settle
from undiffuse.cli.parser import COMMANDS, build_parser
from undiffuse.cli.words import in_options
from undiffuse.util.errors import ConfigError
from undiffuse.util.launch import is_main_process, launch

__all__ = ["COMMANDS", "main"]

INTERRUPTED = 130
MISTAKE = 2
LOST = 1
SHARED = {"train", "train-classifier", "sample", "encode", "decode", "inpaint", "restore", "vary", "translate", "nll"}
SHARED |= {"evaluate", "reference", "sweep"}
"""The commands that processes started by torchrun or srun share. Of the others only rank 0 does the work."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit status.

    Args:
        argv: The words after `undiffuse` (default: those of the process).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(words)
    try:
        args = parser.parse_args(words)
    except SystemExit as stop:  # help was shown, or an error was reported
        return int(stop.code or 0)
    if args.command is None:
        parser.print_help()
        return 0
    body: Any = None
    joined = False  # then rank 0 speaks for all
    try:
        settle(args)
        started = launch()
        if args.command not in SHARED and not started.is_main:
            return 0
        _set_wait_policy()
        body, files = _imported(f"undiffuse.cli.{args.module}", "undiffuse.cli.downloading")
        shares = started.world_size > 1 and args.command in SHARED
        with _joined() if shares else nullcontext(), files.downloading(offline=getattr(args, "offline", False)):
            joined = shares
            status = int(body.run(args))
        sys.stdout.flush()  # here, where a closed pipe can still be handled
        return status
    except KeyboardInterrupt:
        if joined and not is_main_process():
            return INTERRUPTED
        fail("interrupted. Files written so far are kept; repeat the command to resume", prefix="")
        return INTERRUPTED
    except BrokenPipeError:  # the reader (head, a pager) has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if joined and type(error).__name__ == "RankLostError":
            return LOST  # the line is written already, by the process that noticed
        known = _status(error)
        if known is None or os.environ.get("UNDIFFUSE_DEBUG", "0") not in ("", "0"):
            raise
        if joined and not is_main_process():
            return known
        fail(_message(error, getattr(body, "OPTION_NAMES", {})))
        return known


def _joined() -> Any:
    """Joins the other processes, see `undiffuse.distributed.join`."""
    from undiffuse.distributed import join

    return join()


def _set_wait_policy() -> None:
    """Decides how threads wait, before the command's modules import torch; help and mistakes do without."""
    from undiffuse.cli.waiting import set_wait_policy

    set_wait_policy()


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
