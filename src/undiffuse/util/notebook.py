"""HTML for notebooks: a card with a title, facts, notes and a picture."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["card"]


def card(
    title: str, facts: Iterable[tuple[str, object]], *, notes: Iterable[str] = (), picture: bytes | None = None
) -> str:
    """Formats an object as HTML, for `_repr_html_`.

    Args:
        title: What it is.
        facts: Names and values; a value of None is left out.
        notes: Sentences below the facts.
        picture: A PNG, shown below.
    """
    import base64  # here, because models import this module, and few of them are shown
    from html import escape

    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(str(value))}</td></tr>'
        for name, value in facts
        if value is not None
    )
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes)
    shown = "" if picture is None else base64.b64encode(picture).decode("ascii")
    return (
        f"<div><b>{escape(title)}</b><table>{rows}</table>"
        + (f"<ul>{listed}</ul>" if listed else "")
        + (f'<img alt="{escape(title)}" src="data:image/png;base64,{shown}">' if shown else "")
        + "</div>"
    )
