"""What the server of the tests' processes imports once, so that a command begins at once."""

from __future__ import annotations

import importlib

import PIL.PngImagePlugin  # noqa: F401
import torch._dynamo  # noqa: F401

import undiffuse.solvers  # noqa: F401
from undiffuse.cli.parser import COMMANDS

for module in ("downloading", *{str(command).replace("-", "_") for command in COMMANDS}):
    try:
        importlib.import_module(f"undiffuse.cli.{module}")
    except ImportError:
        continue
