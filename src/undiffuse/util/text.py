"""Numbers, names and values as short text for messages."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable

__all__ = ["count_of", "duration", "join_names", "one_line", "printable", "shorten", "shown", "size_text"]


def duration(seconds: float) -> str:
    """Formats a duration: 3.21 -> "3.2s", 75 -> "1m15s", 8000 -> "2h13m"; "?" if it is not finite."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 10:
        return f"{max(0.0, seconds):.1f}s"
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    return f"{s // 3600}h{s % 3600 // 60:02d}m" if s < 86400 else f"{s // 86400}d{s % 86400 // 3600:02d}h"


def compared_time(expected: float, took: float) -> str:
    """Says how good an estimate of a time was: "estimated 12m00s, took 14m02s"; both in seconds."""
    return f"estimated {duration(expected)}, took {duration(took)}"


def size_text(count: float) -> str:
    """Formats a number of bytes: 2215352344 -> "2.2 GB", 50000000 -> "50 MB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def count_of(number: int, noun: str) -> str:
    """Formats a count with its noun in the right form: (1, "image") -> "1 image", (2000, "image") -> "2,000 images"."""
    plural = noun[:-1] + "ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else noun + "s"
    plural = f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else plural
    return f"{number:,} {noun if number == 1 else plural}"


def shorten(text: str, width: int) -> str:
    """Cuts a text to at most `width` characters; a text that was cut ends in "..."."""
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."


def shown(value: object, width: int = 60) -> str:
    """Formats a value for a message: its repr, cut to `width` characters."""
    return shorten(repr(value), width)


def printable(text: str) -> str:
    """Escapes characters that change a terminal instead of showing: "a\x1b[2J" -> "a\\x1b[2J".

    These are control characters but for the end of a line and the tabulator, marks that turn the direction of writing,
    and bytes of file names that are no text.
    """
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or not _is_control(c) else repr(c)[1:-1] for c in text)


def one_line(name: str) -> str:
    """`printable` for a name: the end of a line and the tabulator are escaped as well, for a name could hold both."""
    return printable(name).replace("\n", "\\n").replace("\t", "\\t")


_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in _TURNS


def join_names(names: Iterable[object], most: int = 20, last: str = ", ") -> str:
    """Joins names by commas; of more than `most` only the first ones, and how many were left out.

    Args:
        names: What to join.
        most: The largest number of names to print.
        last: The separator before the last name, for example " or ".
    """
    items = [one_line(str(name)) for name in names]
    if len(items) > most:
        return f"{', '.join(items[:most])} and {len(items) - most:,} more"
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + last + items[-1] if items else ""
