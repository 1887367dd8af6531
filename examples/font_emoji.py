"""Draws a folder of small colour pictures with classes, to try the library on: the emoji of a font.

    apt install fonts-noto-color-emoji
    python examples/font_emoji.py my_photos

writes my_photos/animals/1F400.png and so on, 64x64 pixels on white.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
BITMAPS = 109  # pixels: the only size that the font has
CLASSES = {
    "animals": [(0x1F400, 0x1F43E), (0x1F980, 0x1F9AE)],
    "faces": [(0x1F600, 0x1F644), (0x1F910, 0x1F917), (0x1F920, 0x1F92F), (0x1F970, 0x1F97A)],
    "food": [(0x1F345, 0x1F37F), (0x1F950, 0x1F96F), (0x1F32D, 0x1F32F)],
    "hearts": [(0x1F493, 0x1F49F), (0x1F5A4, 0x1F5A4), (0x1F90D, 0x1F90E), (0x1F9E1, 0x1F9E1)],
    "plants": [(0x1F330, 0x1F344), (0x1F490, 0x1F490)],
    "things": [(0x1F4A0, 0x1F4FD), (0x1F380, 0x1F393), (0x1F3A0, 0x1F3CA)],
    "vehicles": [(0x1F680, 0x1F6A4), (0x1F6F0, 0x1F6FC)],
}


def draw_folder(out: Path, font: str = FONT, side: int = 64) -> int:
    """Draws the emoji and returns how many there are."""
    face = ImageFont.truetype(font, BITMAPS)
    count = 0
    for name, ranges in CLASSES.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        for code in (code for first, last in ranges for code in range(first, last + 1)):
            picture = Image.new("RGB", (136, 136), "white")
            ImageDraw.Draw(picture).text((68, 68), chr(code), font=face, embedded_color=True, anchor="mm")
            if picture.getextrema()[0][0] == 255:  # the font does not have this one
                continue
            picture.resize((side, side), Image.Resampling.LANCZOS).save(out / name / f"{code:X}.png")
            count += 1
    return count


if __name__ == "__main__":
    print(f"{draw_folder(Path(sys.argv[1]))} pictures in {sys.argv[1]}")
