"""The pages of the documentation: their code blocks, command lines and links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
ALL = ["README.md", "CONTRIBUTING.md", *PAGES]
_COMMAND = re.compile(r"^(?:[A-Z_]+=\S* )*(?:\S*torchrun .*-m |srun .*?|.*?python -m )?undiffuse (?=[a-z-])")


class Command(NamedTuple):
    """A command line of a page: the words, and where it stands."""

    words: list[str]
    where: str


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def python_blocks(page: str) -> list[str]:
    """The Python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", text_of(page), flags=re.DOTALL | re.MULTILINE)


def console_lines(page: str) -> list[tuple[int, str]]:
    """The lines of all other code blocks, indented or fenced, with their numbers; continued lines are joined."""
    lines, fence, found = text_of(page).splitlines(), None, []
    carried, start = "", 0
    for number, line in enumerate(lines, 1):
        mark = re.match(r"^\s*(```|~~~)(\w*)", line)
        if mark:
            fence = None if fence is not None else mark[2]
            continue
        if fence is not None and fence not in ("", "bash", "console", "sh", "text"):
            continue
        if fence is None and not line.startswith("    "):
            continue
        start = start if carried else number
        carried += line.strip().removeprefix("$ ")
        if carried.endswith("\\"):
            carried = carried[:-1]
            continue
        found.append((start, carried))
        carried = ""
    return found


def commands(page: str) -> list[Command]:
    """The `undiffuse` command lines of a page."""
    found = []
    for number, line in console_lines(page):
        for part in line.split(" && "):
            match = _COMMAND.match(part)
            if match is None:
                continue
            plain = re.sub(r"\(the same options\)", "", part[match.end() :])
            words = [word for word in shlex.split(plain, comments=True) if word != "..."]
            words = words[: words.index(">")] if ">" in words else words
            found.append(Command(words, f"{page}:{number}"))
    return found


def anchor(heading: str) -> str:
    """The anchor of a heading, as Python-Markdown makes it."""
    plain = re.sub(r"`|\*|\[([^\]]*)\]\([^)]*\)", lambda m: m[1] or "", heading).strip()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)}
