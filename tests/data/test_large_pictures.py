"""Large pictures are converted in pieces: the same pixels, in little more memory than the picture itself."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import textwrap
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.variants import few
from undiffuse.data import channels, decoding
from undiffuse.data.decoding import Planes, decode
from undiffuse.data.images import prepare


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def png16(values: np.ndarray, transparent: tuple[int, ...] | None = None) -> bytes:
    """A PNG of 16 bits in several channels, which Pillow does not write."""
    height, width, count = values.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    kind = {2: 4, 3: 2, 4: 6}[count]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    clear = chunk(b"tRNS", struct.pack(">3H", *transparent)) if transparent else b""
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)) + clear
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))  # fmt: skip


def pictures() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (37, 29, 4), np.uint8)
    deep = rng.integers(0, 65536, (37, 29, 4), np.uint16)
    palette = Image.fromarray(colours[..., 0] % 7).convert("P")
    palette.putpalette(list(range(21)))
    turned = Image.fromarray(colours[..., :3]).getexif()
    turned[0x0112] = 6
    return {
        "rgb": encoded(Image.fromarray(colours[..., :3]), "PNG"),
        "rgba": encoded(Image.fromarray(colours), "PNG"),
        "grey": encoded(Image.fromarray(colours[..., 0]), "PNG"),
        "bits": encoded(Image.fromarray(colours[..., 0]).convert("1"), "PNG"),
        "palette": encoded(palette, "PNG", transparency=3),
        "grey 16": encoded(Image.fromarray(deep[..., 0]), "PNG"),
        "turned": encoded(Image.fromarray(colours[..., :3]), "JPEG", exif=turned),
        "cmyk": encoded(Image.fromarray(colours, "CMYK"), "JPEG"),
        "la 16": png16(deep[..., :2]),
        "rgb 16": png16(deep[..., :3]),
        "rgb 16 with a transparent colour": png16(deep[..., :3], tuple(int(v) for v in deep[3, 4, :3])),
        "rgba 16": png16(deep),
    }


@pytest.mark.parametrize("name", pictures())
@pytest.mark.parametrize("wanted", [1, 3, 4])
@pytest.mark.parametrize("value_range", [None, (0, 200)])
def test_pieces_make_the_same_picture(
    name: str, wanted: int, value_range: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pictures()[name]
    whole = prepare(decode(io.BytesIO(data)), 16, wanted, value_range=value_range, background=77)
    for module in (channels, decoding):
        monkeypatch.setattr(module, "BAND", 100)
    pieces = prepare(decode(io.BytesIO(data)), 16, wanted, value_range=value_range, background=77)
    np.testing.assert_array_equal(whole, pieces)


def test_pieces_of_planes_and_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=(37, 29, 5)).astype(np.float32).view(Planes)
    whole = prepare(values, 16, 5, value_range=(-3, 3))
    monkeypatch.setattr(decoding, "BAND", 100)
    np.testing.assert_array_equal(whole, prepare(values, 16, 5, value_range=(-3, 3)))


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has at most is counted in other units")
@pytest.mark.parametrize("name", few(["rgba", "palette", "rgb 16"], count=1))
def test_memory_of_a_large_picture(name: str) -> None:
    """11 bytes a pixel (13 with 16 bits a channel), so that a picture at the limit of pixels takes about a gigabyte."""
    script = f"""
    import os
    import numpy as np
    from PIL import Image
    from data.test_large_pictures import encoded, png16, prepared
    side, name = 3000, {name!r}
    if name == "rgb 16":
        large = png16(np.zeros((side, side, 3), np.uint16))
    else:
        picture = Image.new("RGBA" if name == "rgba" else "P", (side, side))
        large = encoded(picture, "PNG", compress_level=1, **({{"transparency": 0}} if name == "palette" else {{}}))
        del picture
    peaks = []
    for data in (png16(np.zeros((8, 8, 3), np.uint16)), large):
        child = os.fork()
        if not child:
            prepared(data)
            os._exit(0)
        peaks.append(os.wait4(child, 0)[2].ru_maxrss * 1024)
    print((peaks[1] - peaks[0]) / side**2)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 14


def prepared(data: bytes) -> np.ndarray:
    """What a training does with a file."""
    return prepare(decode(io.BytesIO(data)), 8)
