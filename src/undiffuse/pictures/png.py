"""PNG files that know where they come from: a JSON record (seed, index, model hash, settings...) in a text chunk."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from undiffuse.pictures.arrays import Images, as_picture
from undiffuse.util.files import atomic_file

__all__ = ["RECORD_KEY", "check_record", "is_whole_png", "open_picture", "parse_json", "read_record", "save_png"]

RECORD_KEY = "undiffuse"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
DEEPEST = 64
"""How deep JSON from a file may be nested; what this library writes is three or four deep."""
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def save_png(
    path: str | os.PathLike[str],
    image: Image.Image | Images,
    record: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    durable: bool = True,
) -> Path:
    """Write one picture, a PIL image or uint8 [H, W, C], as PNG, with ``record`` under the text key "undiffuse".

    The file appears whole or not at all. Returns its path.
    Raises FileExistsError when it exists and ``overwrite`` is false, ValueError for a wrong image, suffix or record.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ValueError(f"save_png writes PNG files, but {target.name!r} does not end in .png: rename it.")
    picture = as_picture(image)
    info = PngInfo()
    if record is not None:
        info.add_text(RECORD_KEY, record_text(record))
    with atomic_file(target, overwrite=overwrite, durable=durable) as file:
        picture.save(file, format="PNG", pnginfo=info)
    return target


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of a PNG (or GIF) that this library wrote.

    Raises ValueError when the file carries none, as after editing in a program that drops text chunks, and OSError or
    ValueError naming the file when it is damaged.
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
        raise ValueError(f"{path} carries no undiffuse record that can be read: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(
            f"{path} carries no undiffuse record: it was not written by undiffuse, or was saved again by a program "
            "that drops PNG text. Read the file as it was first written."
        )
    return record


@contextmanager
def open_picture(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """A picture to read. Whatever a decoder says of a damaged or huge one is an OSError or ValueError with its name."""
    try:
        with Image.open(path) as picture:
            yield picture
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large a picture to be opened safely: {error}") from error
    except OSError as error:
        if error.errno is not None:  # the system's word, which names the file
            raise
        raise OSError(f"{path} cannot be read as a picture: {error}") from error
    except Exception as error:  # decoders raise SyntaxError, struct.error, zlib.error, ValueError, OverflowError...
        raise OSError(f"{path} cannot be read as a picture ({type(error).__name__}: {error})") from error


def parse_json(text: str | bytes, where: str) -> Any:
    """JSON that came from a file. ValueError that begins with ``where`` if it is none, or not such as we write.

    Not written by this library: NaN, numbers of thousands of digits, and nesting that would exhaust the stack.
    """

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON number")

    try:
        value = json.loads(text, parse_constant=constant)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply to be read") from None
    except ValueError as error:
        raise ValueError(f"{where} is not readable JSON ({error})") from error
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return value
    raise ValueError(f"{where} is nested too deeply to be read")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def record_text(record: Mapping[str, Any]) -> str:
    """The record as one line of ASCII JSON, after ``check_record``."""
    return json.dumps(check_record(record), ensure_ascii=True, allow_nan=False, separators=(", ", ": "))


def check_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A plain copy of ``record`` that JSON gives back unchanged (tuples become lists).

    Raises ValueError naming the entry that is not text, a finite number, true, false, null, or a list or dict of these.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"a record is a dict of settings, not {type(record).__name__}.")
    return _plain(record, "")


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        if value.isascii() or value.encode("utf-8", "ignore").decode("utf-8") == value:
            return str(value)
        raise ValueError(f"record entry {where!r} is text with half a character (an unpaired surrogate): {value!r}.")
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{k}]") for k, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(
                    f"record keys are text, but {key!r} in {where or 'the record'} is {type(key).__name__}: use str()."
                )
        return {key: _plain(item, f"{where}.{key}" if where else key) for key, item in value.items()}
    raise ValueError(
        f"record entry {where!r} is {type(value).__name__} {value!r}, which JSON cannot hold: use text, numbers, "
        "True, False, None, or lists and dicts of these (int(...), float(...), str(...) and .tolist() convert)."
    )


def is_whole_png(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins and ends as a PNG does: cheap, and enough to see a copy or a write that was cut off."""
    try:
        with open(path, "rb") as file:
            if file.read(len(_SIGNATURE)) != _SIGNATURE:
                return False
            file.seek(-len(_END), os.SEEK_END)
            return file.read() == _END
    except OSError:
        return False
