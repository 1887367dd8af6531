"""`undiffuse restore`: upscales or deblurs images."""

from __future__ import annotations

import argparse

from undiffuse.cli.console import say
from undiffuse.cli.editing_options import arguments
from undiffuse.cli.options import sampler_config
from undiffuse.editing import restore


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    given = arguments(args, "upscale", "deblur", "degrade")
    restore(args.images, model=sampler_config(args), device=args.device, report=say, **given)
    return 0
