"""`undiffuse studio`: a web page to sample, guide, edit, train and look at data."""

from __future__ import annotations

import argparse
import importlib.util
import os

from undiffuse.cli.console import say
from undiffuse.models import resolve

OPTION_NAMES = {"data": "DATA"}


def run(args: argparse.Namespace) -> int:
    """Runs the command until it is interrupted."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError('the studio needs Gradio, which is not installed: pip install "undiffuse[studio]"')
    if not os.path.exists(args.model):
        resolve(args.model)  # a wrong name is reported here, not on the page
    from undiffuse.studio.app import serve

    server = serve(
        args.model, out=args.out, host=args.host, port=args.port, device=args.device, processes=args.workers,
        offline=args.offline, open_browser=args.open,
    )  # fmt: skip
    try:
        say(f"The studio is at {server.url}\nPictures go to {server.studio.out}. Ctrl-C ends it.")
        if args.host not in ("127.0.0.1", "localhost", "::1"):
            say("Everyone who can reach this address can use this computer's models and read its pictures.")
        server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.close()
    return 0
