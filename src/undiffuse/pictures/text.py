"""Text in pictures: measuring, shortening and wrapping with Pillow's built-in font or the caller's."""

from __future__ import annotations

import os
import unicodedata
from functools import lru_cache

from PIL import ImageDraw, ImageFont

__all__ = ["INK", "MUTED", "Typeface"]

INK = (28, 28, 30)
MUTED = (110, 110, 118)
_ELLIPSIS = "\u2026"
# Spellings of common characters in scientific labels that the built-in font, which is nearly plain ASCII, lacks.
_SPELLED = str.maketrans(
    {
        "\u00d7": "x", "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u2192": "->", "\u2190": "<-", "\u2265": ">=",
        "\u2264": "<=", "\u00b1": "+/-", "\u03c3": "sigma", "\u03b7": "eta", "\u03b1": "alpha", "\u03b2": "beta",
        "\u03bb": "lambda", "\u03bc": "mu", "\u00b5": "mu", "\u00df": "ss", "\u00f8": "o", "\u00d8": "O",
        "\u00e6": "ae", "\u00c6": "AE", "\u0142": "l", "\u0141": "L", "\u0131": "i",
    }
)  # fmt: skip


class Typeface:
    """Provides one font at any size.

    A character without a glyph is drawn as its base letter (without accents) or an ASCII spelling, otherwise as "?".

    Args:
        path: TrueType or OpenType file, for scripts that the built-in font (ASCII) lacks.

    Raises:
        ValueError: The file does not exist.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else os.fspath(path)
        if self._path is not None and not os.path.isfile(self._path):
            raise ValueError(
                f"the font file {self._path!r} does not exist: give a .ttf or .otf file, or None for the built-in font."
            )

    def at(self, size: int) -> ImageFont.FreeTypeFont:
        """Returns the font at `size` pixels."""
        return _font(self._path, size)

    def width(self, text: str, size: int) -> float:
        """Returns the width of one line of text in pixels."""
        return self.at(size).getlength(text)

    def line_height(self, size: int) -> int:
        """Returns the distance between lines in pixels."""
        return round(size * 1.3)

    def legible(self, text: str) -> str:
        """Returns `text` on one line, with characters that the font lacks replaced."""
        out = []
        for char in unicodedata.normalize("NFC", " ".join(str(text).split())):
            if self._has(char):
                out.append(char)
                continue
            base = "".join(
                c for c in unicodedata.normalize("NFKD", char.translate(_SPELLED)) if not unicodedata.combining(c)
            )
            visible = unicodedata.category(char)[0] not in "CM"  # control characters and lone accents are dropped
            out.append(base if base and all(self._has(c) for c in base) else "?" * visible)
        return "".join(out)

    def shorten(self, text: str, size: int, width: float) -> str:
        """Shortens `text` with an ellipsis to at most `width` pixels; returns "" if not even the ellipsis fits."""
        text = self.legible(text)
        if self.width(text, size) <= width:
            return text
        for keep in range(len(text) - 1, -1, -1):
            short = text[:keep].rstrip() + _ELLIPSIS
            if self.width(short, size) <= width:
                return short
        return ""

    def wrap(self, text: str, size: int, width: float, lines: int) -> list[str]:
        """Breaks `text` after spaces and / - _ into at most `lines` lines of `width` pixels; the rest is cut."""
        words = _breakable(self.legible(text))
        out: list[str] = []
        while words and len(out) < lines - 1:
            line = words.pop(0)
            while words and self.width((line + words[0]).rstrip(), size) <= width:
                line += words.pop(0)
            out.append(self.shorten(line.rstrip(), size, width))
        if words:
            out.append(self.shorten("".join(words), size, width))
        return [line for line in out if line]

    def draw(self, draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int,
             fill: tuple[int, int, int] = INK, anchor: str = "lm") -> None:  # fmt: skip
        """Draws one line of text; `anchor` as in Pillow ("lm": `at` is the left end, at half height)."""
        draw.text((round(at[0]), round(at[1])), text, fill=fill, font=self.at(size), anchor=anchor)

    def _has(self, char: str) -> bool:
        return char == " " or _has_glyph(self._path, char)


@lru_cache(maxsize=64)
def _font(path: str | None, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size) if path is None else ImageFont.truetype(path, size)
    if not isinstance(font, ImageFont.FreeTypeFont):  # a Pillow without FreeType
        raise RuntimeError(
            "this Pillow has no FreeType, so it cannot draw scalable text: install its wheel (pip install pillow)."
        )
    return font


@lru_cache(maxsize=4096)
def _has_glyph(path: str | None, char: str) -> bool:
    if unicodedata.category(char)[0] == "C":
        return False
    font, missing = _font(path, 24), "\uffff"  # never a character: the font draws its glyph for missing ones
    return (bytes(font.getmask(char)), font.getlength(char)) != (bytes(font.getmask(missing)), font.getlength(missing))


def _breakable(text: str) -> list[str]:
    words, word = [], ""
    for char in text:
        word += char
        if char in " /-_":
            words.append(word)
            word = ""
    return [*words, word] if word else words
