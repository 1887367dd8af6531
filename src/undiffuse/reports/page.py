"""The HTML page: sections, tables and pictures, with styles and scripts inside the file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

import numpy as np
from PIL import Image

from undiffuse.pictures.arrays import as_picture

__all__ = ["Section", "asset", "details", "figure", "findings", "grid", "render", "table"]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page.

    Attributes:
        title: Its heading, plain text.
        body: Its HTML.
    """

    title: str
    body: str


def render(title: str, sections: Sequence[Section], about: str = "") -> str:
    """Returns a complete HTML document that loads nothing from elsewhere.

    Args:
        title: The title of the page, plain text.
        sections: Its parts, in order. With more than one, a list of contents links to them.
        about: A line below the title, plain text.
    """
    entries = [(f"part-{k}", section) for k, section in enumerate(sections, 1)]
    contents = "".join(f'<li><a href="#{name}">{escape(section.title)}</a></li>' for name, section in entries)
    body = "".join(
        f'<section id="{name}"><h2>{escape(section.title)}</h2>{section.body}</section>' for name, section in entries
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{asset("charts.css")}{asset("page.css")}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p class="about">{escape(about)}</p>
<button id="theme" type="button" aria-label="Switch between light and dark">light / dark</button></header>
{f'<nav aria-label="Contents"><ul>{contents}</ul></nav>' if len(entries) > 1 else ""}
<main>{body}</main>
<script>{asset("page.js")}{asset("charts.js")}</script>
</body>
</html>
"""


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Returns a table as HTML.

    Args:
        heads: Column heads, plain text; an empty list leaves them out.
        rows: Cells, shown as text.
        right: Numbers of the columns that are aligned to the right.
    """

    def cells(row: Sequence[object], tag: str) -> str:
        parts = []
        for k, cell in enumerate(row):
            side = ' class="right"' if k in right else ""
            parts.append(f"<{tag}{side}>{escape('' if cell is None else str(cell))}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    head = f"<thead>{cells(heads, 'th')}</thead>" if heads else ""
    return f'<div class="wide"><table>{head}<tbody>{"".join(cells(row, "td") for row in rows)}</tbody></table></div>'


def details(summary: str, body: str) -> str:
    """Returns a part that is folded away until the reader opens it."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def findings(items: Sequence[tuple[str, str, str]]) -> str:
    """Returns a list of findings.

    Args:
        items: (severity, text, what to do) of each; the severity is "problem", "advice" or "fine".
    """
    parts = []
    for severity, what, do in items:
        remedy = f'<p class="do">{escape(do)}</p>' if do else ""
        parts.append(f'<li class="{escape(severity)}"><b>{escape(severity)}</b> {escape(what)}{remedy}</li>')
    return f'<ul class="findings">{"".join(parts)}</ul>'


def figure(picture: Image.Image | np.ndarray, caption: str = "", scale: int = 1) -> str:
    """Returns a picture with a caption, embedded as PNG.

    Args:
        picture: A picture, or uint8 [H, W, C].
        caption: Plain text below it, which also stands for the picture where it cannot be seen.
        scale: Each pixel is drawn as a square of this many.
    """
    shown = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{_img(picture, caption, scale)}{shown}</figure>"


def grid(pictures: Sequence[Image.Image | np.ndarray], captions: Sequence[str] | None = None, scale: int = 2) -> str:
    """Returns small pictures side by side, each with its caption."""
    names = captions if captions is not None else [""] * len(pictures)
    return '<div class="tiles">' + "".join(figure(p, c, scale) for p, c in zip(pictures, names, strict=True)) + "</div>"


def _img(picture: Image.Image | np.ndarray, alternative: str, scale: int) -> str:
    image = picture if isinstance(picture, Image.Image) else as_picture(picture)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{image.width * scale}" height="{image.height * scale}"'
    return f'<img {size} alt="{escape(alternative)}" src="data:image/png;base64,{data}">'


def asset(name: str) -> str:
    """Returns a style sheet or script of the page: "page.css", "charts.css", "page.js" or "charts.js"."""
    return resources.files("undiffuse.reports").joinpath(name).read_text(encoding="utf-8")
