"""PNG files with provenance: a JSON record (seed, index, model hash, settings, ...) in a text chunk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from undiffuse.pictures.arrays import Images, as_picture
from undiffuse.util.files import atomic_file
from undiffuse.util.limits import check_pixels
from undiffuse.util.records import check_record, parse_json

__all__ = ["RECORD_KEY", "is_whole_png", "open_picture", "read_png_record", "record_text", "save_png"]

RECORD_KEY = "undiffuse"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def save_png(
    path: str | os.PathLike[str],
    image: Image.Image | Images,
    record: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    durable: bool = True,
) -> Path:
    """Writes a PNG atomically, with `record` under the text key "undiffuse".

    Args:
        path: File to write; its suffix must be .png.
        image: PIL image or uint8 [H, W, C].
        record: Metadata as JSON values.
        overwrite: Replace an existing file.
        durable: Flush the file to disk before it gets its final name.

    Returns:
        The path.

    Raises:
        FileExistsError: The file exists and `overwrite` is False.
        ValueError: The image, the suffix or the record is invalid.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ValueError(f"save_png writes PNG files: the name {target.name!r} must end in .png.")
    picture = as_picture(image)
    info = PngInfo()
    if record is not None:
        info.add_text(RECORD_KEY, record_text(record))
    with atomic_file(target, overwrite=overwrite, durable=durable) as file:
        picture.save(file, format="PNG", pnginfo=info)
    return target


def read_png_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the record of a PNG or GIF file written by this library.

    Raises:
        ValueError: The file has no record, for example after editing in a program that drops text chunks, or it is
            damaged.
        OSError: The file cannot be read; the message names it.
    """
    with open_picture(path) as picture:
        if picture.format == "GIF":
            comment = picture.info.get("comment", b"").decode("ascii", "replace")
            text = comment[len(RECORD_KEY) + 1 :] if comment.startswith(RECORD_KEY + " ") else None
        else:
            picture.load()  # text may follow the pixels
            text = picture.info.get(RECORD_KEY)
    try:
        record = None if text is None else parse_json(text, "its text")
    except ValueError as error:
        raise ValueError(f"{path} carries no undiffuse record that can be read ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(
            f"{path} carries no undiffuse record: it was not written by undiffuse, or a program that drops PNG text "
            "has saved it again. Use the original file."
        )
    return record


@contextmanager
def open_picture(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Opens a picture; decoder errors for damaged or huge files become an OSError or ValueError that names the file."""
    try:
        with Image.open(path) as picture:
            try:
                check_pixels(picture.width, picture.height, "it")
            except ValueError as error:
                raise Image.DecompressionBombError(str(error)) from error
            yield picture
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large to be opened safely: {error}") from error
    except OSError as error:
        if error.errno is not None:  # an error of the system, which names the file
            raise
        raise OSError(f"{path} cannot be read as a picture: {error}") from error
    except Exception as error:  # decoders raise SyntaxError, struct.error, zlib.error, ValueError, OverflowError...
        raise OSError(f"{path} cannot be read as a picture ({type(error).__name__}: {error})") from error


def record_text(record: Mapping[str, Any]) -> str:
    """Returns the record as one line of ASCII JSON, after `check_record`."""
    return json.dumps(check_record(record), ensure_ascii=True, allow_nan=False, separators=(", ", ": "))


def is_whole_png(path: str | os.PathLike[str]) -> bool:
    """Returns whether the file starts and ends like a PNG: a cheap check that detects truncated files."""
    try:
        with open(path, "rb") as file:
            if file.read(len(_SIGNATURE)) != _SIGNATURE:
                return False
            file.seek(-len(_END), os.SEEK_END)
            return file.read() == _END
    except OSError:
        return False
