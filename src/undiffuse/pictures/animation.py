"""Animations of the denoising path: GIF for compatibility, APNG for exact colours and transparency."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from undiffuse.pictures.arrays import Images
from undiffuse.pictures.grid import PAPER, tile
from undiffuse.pictures.png import RECORD_KEY, record_text
from undiffuse.util.files import atomic_file

__all__ = ["save_animation"]


def save_animation(
    path: str | os.PathLike[str],
    frames: Iterable[Images | Image.Image],
    *,
    columns: int | None = None,
    scale: int = 1,
    gap: int = 2,
    frame_ms: int = 60,
    hold_ms: int = 1500,
    loops: int = 0,
    background: int | tuple[int, int, int] = PAPER[0],
    record: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes frames as an animation, GIF or APNG by the suffix (.gif, .png, .apng).

    Equal consecutive frames are stored once with their total time. GIF has 256 colours: greys are exact, colours use
    the best palette of each frame, transparent pixels become white, and times are multiples of 10 ms. APNG stores
    everything exactly.

    Args:
        path: File to write.
        frames: Batches uint8 [N, H, W, C], tiled by `tile`, or finished PIL pictures.
        columns: See `tile`.
        scale: See `tile`.
        gap: See `tile`.
        frame_ms: Duration of a frame in milliseconds.
        hold_ms: Duration of the last frame in milliseconds.
        loops: Number of times the animation plays; 0 repeats forever.
        background: See `tile`.
        record: Metadata, stored as by `save_png`.
        overwrite: Replace an existing file.

    Returns:
        The path.

    Raises:
        ValueError: There are no frames, their sizes differ, or viewers would not respect the times (GIF: under 20 ms).
        FileExistsError: The file exists and `overwrite` is False.
    """
    target = Path(path)
    kind = target.suffix.lower()
    if kind not in (".gif", ".png", ".apng"):
        raise ValueError(f"unknown animation format of {target.name!r}: the name must end in .gif, .png or .apng.")
    shortest = 20 if kind == ".gif" else 1
    if frame_ms < shortest or hold_ms < shortest or hold_ms > 60_000 or frame_ms > 60_000:
        raise ValueError(
            f"frame_ms and hold_ms must be from {shortest} to 60000 milliseconds for {kind}; "
            f"got frame_ms={frame_ms}, hold_ms={hold_ms}."
        )
    if loops < 0:
        raise ValueError(f"loops must be the number of times to play, or 0 to repeat forever; got {loops}.")
    pictures = [
        frame if isinstance(frame, Image.Image) else tile(frame, columns, scale=scale, gap=gap, background=background)
        for frame in frames
    ]
    if not pictures:
        raise ValueError("an animation needs at least one frame.")
    if len({(p.size, p.mode) for p in pictures}) > 1:
        sizes = sorted({f"{p.width}x{p.height} {p.mode}" for p in pictures})
        raise ValueError(f"all frames of an animation must have the same size and mode, got {', '.join(sizes)}.")
    pictures, times = _merge([_prepare(p, kind) for p in pictures], frame_ms, hold_ms)
    text = None if record is None else record_text(record)
    # GIF stores the number of repetitions, or nothing if there is none; APNG stores the number of plays.
    with atomic_file(target, overwrite=overwrite) as file:
        first, rest = pictures[0], pictures[1:]
        if kind == ".gif":
            times = [round(t / 10) * 10 for t in times]
            repeats = {} if loops == 1 else {"loop": max(0, loops - 1)}
            comment = {} if text is None else {"comment": f"{RECORD_KEY} {text}".encode("ascii")}
            first.save(
                file,
                format="GIF",
                save_all=True,
                append_images=rest,
                duration=times,
                optimize=False,
                **repeats,
                **comment,
            )
        else:
            info = PngInfo()
            if text is not None:
                info.add_text(RECORD_KEY, text)
            first.save(file, format="PNG", save_all=True, append_images=rest, duration=times, loop=loops, pnginfo=info)
    return target


def _prepare(picture: Image.Image, kind: str) -> Image.Image:
    if picture.mode not in ("L", "RGB", "RGBA"):
        picture = picture.convert("RGB")
    if kind != ".gif" or picture.mode == "L":
        return picture
    if picture.mode == "RGBA":  # GIF transparency is on or off, so half-transparent edges would become jagged
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture).convert("RGB")
    return picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)


def _merge(pictures: Sequence[Image.Image], frame_ms: int, hold_ms: int) -> tuple[list[Image.Image], list[int]]:
    """Merges equal consecutive frames, here rather than in the encoder, so that both formats keep the same times."""
    kept: list[Image.Image] = []
    times: list[int] = []
    for k, picture in enumerate(pictures):
        time = hold_ms if k == len(pictures) - 1 else frame_ms
        same = kept and kept[-1].tobytes() == picture.tobytes() and kept[-1].getpalette() == picture.getpalette()
        if same and times[-1] + time <= 60_000:
            times[-1] += time
        else:
            kept.append(picture)
            times.append(time)
    return kept, times
