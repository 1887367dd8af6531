"""What the server prints in the terminal."""

from __future__ import annotations

import logging

__all__ = ["leave_out_disconnects"]


def leave_out_disconnects() -> None:
    """Keeps tracebacks of browsers that close a page during an upload out of the terminal: nothing is wrong."""
    logging.getLogger("uvicorn.error").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ != "ClientDisconnect"
