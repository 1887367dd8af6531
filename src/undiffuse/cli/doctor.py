"""`undiffuse doctor`: says what is wrong with an installation, a data set or a run, and what to do."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict

from undiffuse.cli.console import fields, say
from undiffuse.doctor import examine


def run(args: argparse.Namespace) -> int:
    """Runs the command; the status is 1 if there is a problem."""
    found = examine(args.what)
    if args.json:
        say(json.dumps([asdict(item) for item in found], indent=2))
    else:
        say(fields([(item.severity, f"{item.text}\n{_on_lines(item.do)}".rstrip()) for item in found], indent=0))
    return int(any(item.severity == "problem" for item in found))


def _on_lines(advice: str) -> str:
    """Puts a command at the end of an advice on a line of its own, where it can be copied."""
    return re.sub(r": ((?:undiffuse|pip) [^\n]+)$", r":\n\1", advice)
