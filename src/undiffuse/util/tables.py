"""Tables and lists as text: aligned columns in ASCII, at most 100 columns wide, and tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from undiffuse.util.text import shorten

__all__ = ["WIDTH", "fields", "markdown", "table"]

WIDTH = 100
_NARROWEST = 20  # columns below which wrapping a text does not help
_COMMANDS = ("undiffuse ", "pip ")


def table(
    rows: Sequence[Sequence[object]], head: Sequence[str] = (), right: Sequence[int] = (), indent: int = 0
) -> str:
    """Formats rows as aligned columns, two spaces apart.

    Text in the last column is wrapped where a line would be longer than 100 columns. What cannot be wrapped is cut.

    Args:
        rows: Cells of each row.
        head: Headings of the columns.
        right: Indices of the columns that are aligned to the right.
        indent: Number of spaces before each line.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    lines = [list(head), *cells] if head else cells
    if not lines:
        return ""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    out = []
    last = len(widths) - 1
    start = indent + sum(widths[:last]) + 2 * last
    for line in lines:
        wrapped = [line[last]] if last in right else _wrap(line[last], max(WIDTH - start, _NARROWEST))
        line = [*line[:last], wrapped[0]]
        parts = [cell.rjust(widths[k]) if k in right else cell.ljust(widths[k]) for k, cell in enumerate(line)]
        out.append(shorten((" " * indent + "  ".join(parts)).rstrip(), WIDTH))
        out += [shorten(" " * start + rest, WIDTH) for rest in wrapped[1:]]
    if head:
        out.insert(1, " " * indent + "  ".join("-" * w for w in widths)[: WIDTH - indent])
    return "\n".join(out)


def fields(rows: Sequence[tuple[str, object]], indent: int = 2) -> str:
    """Formats pairs as aligned lines `name  value`; wraps long values and leaves out those that are None."""
    shown = [(name, str(value)) for name, value in rows if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    start = indent + width + 2
    lines = []
    for name, value in shown:
        wrapped = [part for line in value.splitlines() or [""] for part in _wrap(line, WIDTH - start)]
        lines.append(f"{' ' * indent}{name.ljust(width)}  {wrapped[0]}".rstrip())
        lines += [" " * start + part for part in wrapped[1:]]
    return "\n".join(lines)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a table in Markdown, with all columns but the first aligned to the right."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "|".join(["---", *["---:"] * (len(heads) - 1)]) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "/").replace("+-", "±") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _wrap(text: str, width: int) -> list[str]:
    """Breaks a text at spaces into lines of at most `width`.

    A longer word (a path, a hash) stays whole, and so does a command, which would fail when it is pasted in two lines.
    """
    if text.lstrip().startswith(_COMMANDS):
        return [text]
    lines: list[str] = []
    for word in text.split(" "):
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines
