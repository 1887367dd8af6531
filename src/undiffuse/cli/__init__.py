"""The command line: `undiffuse COMMAND ...`.

`parser` says which commands and options there are; it and its helpers import nothing heavy, so that help answers at
once. Every command is the function `run(args) -> exit status` of the module of its name, imported when it is called.

To add one: its options in `parser`, its body in a module of its own with a function `run`.

Exit status: 0 done; 1 the work failed (training diverged, an image could not be repeated); 2 a mistake in what was
asked for, told in one message without a traceback (UNDIFFUSE_DEBUG=1 shows it); 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import gc
import importlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from undiffuse.cli.options import settle
from undiffuse.cli.parser import COMMANDS, build_parser
from undiffuse.cli.words import in_options
from undiffuse.util.errors import ConfigError

__all__ = ["COMMANDS", "main"]

INTERRUPTED = 130
MISTAKE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line given in `argv` (default: the process's own); returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(words)
    try:
        args = parser.parse_args(words)
    except SystemExit as stop:  # help was shown, or a mistake was told
        return int(stop.code or 0)
    if args.command is None:
        parser.print_help()
        return 0
    body: Any = None
    try:
        settle(args)
        _set_wait_policy()
        body, files = _imported(f"undiffuse.cli.{args.module}", "undiffuse.cli.downloading")
        with files.downloading(offline=getattr(args, "offline", False)):
            status = int(body.run(args))
        sys.stdout.flush()  # here, where a closed pipe can still be handled
        return status
    except KeyboardInterrupt:
        fail("interrupted: what was written stays, and the same command goes on from it", prefix="")
        return INTERRUPTED
    except BrokenPipeError:  # the reader (head, a pager) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        known = _status(error)
        if known is None or os.environ.get("UNDIFFUSE_DEBUG", "0") not in ("", "0"):
            raise
        fail(_message(error, getattr(body, "OPTION_NAMES", {})))
        return known


def _set_wait_policy() -> None:
    """Decides how threads wait, before the command's modules import torch; help and mistakes do without."""
    from undiffuse.cli.waiting import set_wait_policy

    set_wait_policy()


def fail(text: str, prefix: str = "error: ") -> None:
    """Prints an error on stderr; `console` is imported for this alone, since help does without it."""
    from undiffuse.cli import console

    console.fail(text, prefix)


def _imported(*modules: str) -> list[Any]:
    """Modules by their names, imported without collections of garbage, each of which would look at all of torch again.

    Where they bring torch along, everything that is there afterwards counts as never garbage: the collection at the
    end of the process alone would take a third of a second.
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
    """The exit status of an error that a user can understand and mend; None for a fault of this program."""
    if isinstance(error, (ValueError, OSError, MemoryError)):
        return MISTAKE
    known = {"NonFiniteError": 1, "OutOfMemoryError": MISTAKE}
    return known.get(type(error).__name__)


def _message(error: Exception, names: Mapping[str, str]) -> str:
    """The text of an error; `names` are those of options that are not called as the library's arguments are."""
    if isinstance(error, ConfigError):
        names = {"classes": "class", **names}
        named = lambda name: f"--{str(names.get(name, name)).replace('_', '-')}"  # noqa: E731
        return re.sub(r"`([a-z_]+)`", lambda found: named(found[1]), error.message(named(error.field)))
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory; give a smaller --batch, or --precision bf16 ({str(error).splitlines()[0]})"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return in_options(str(error)) or type(error).__name__
