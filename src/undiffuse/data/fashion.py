"""Fashion-MNIST by name: 60,000 + 10,000 grey pictures of clothes, 28 x 28, ten classes (Xiao, Rasul & Vollgraf, 2017).

Looked for in the cache folder and where Debian's package ``dataset-fashion-mnist`` puts it; downloaded otherwise. The
checksums are of the unpacked files, because Debian packs them anew: both its copies and the original ones are accepted.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.array_source import ArraySource
from undiffuse.downloads import cache_dir, fetch

__all__ = ["FASHION_CLASSES", "fashion_mnist"]

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""The class names in the order of the labels (the data set's own order, not sorted)."""

_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_SHA256 = {  # of the unpacked content
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_MOST_BYTES = 28_000_000
_PREFIXES = {"train": "train", "test": "t10k"}


def fashion_mnist(
    split: str = "train", *, labels: bool = True, folders: Sequence[str | Path] | None = None, url: str = _URL
) -> ArraySource:
    """Fashion-MNIST as a source of uint8 [28, 28] pictures, wholly in memory (47 MB for "train").

    Args:
        split: "train" (60,000) or "test" (10,000).
        labels: whether to give the labels along.
        folders: where to look before downloading (default: the cache folder, then Debian's). Downloads go to the first.
        url: the address of the folder to download from.

    Raises:
        ValueError: another split.
        DownloadError: nowhere found, and the download did not work; the message says where to put the file by hand.
    """
    if split not in _PREFIXES:
        raise ValueError(f"fashion-mnist has no split {split!r}: expected fashion-mnist (train) or fashion-mnist:test")
    places = [Path(place) for place in folders] if folders else [cache_dir("fashion-mnist"), _DEBIAN]
    prefix = _PREFIXES[split]
    images = _idx(_content(f"{prefix}-images-idx3-ubyte.gz", places, url))
    where = f"fashion-mnist ({split})"
    if not labels:
        return ArraySource(images, where=where, item_name=f"fashion-mnist:{split}")
    numbers = _idx(_content(f"{prefix}-labels-idx1-ubyte.gz", places, url)).astype(np.int64)
    return ArraySource(images, numbers, FASHION_CLASSES, where=where, item_name=f"fashion-mnist:{split}")


def _content(name: str, places: Sequence[Path], url: str) -> bytes:
    """The unpacked content of one file, checked."""
    for place in places:
        content = _unpacked(place / name)
        if content is not None and hashlib.sha256(content).hexdigest() == _SHA256[name]:
            return content
    path = fetch(url + name, places[0] / name, sha256=_SHA256[name], content="gunzipped", size=_MOST_BYTES)
    return gzip.decompress(path.read_bytes())


def _unpacked(path: Path) -> bytes | None:
    """What is inside a .gz, or None where there is none; people who place files by hand may have unpacked them."""
    try:
        if path.is_file():
            return gzip.decompress(path.read_bytes())
        bare = path.with_suffix("")
        return bare.read_bytes() if bare.is_file() else None
    except (OSError, EOFError, zlib.error):
        return None


def _idx(content: bytes) -> NDArray[np.uint8]:
    """An IDX file: 00 00 08 (unsigned bytes), number of axes, each length (big-endian uint32), the values."""
    axes = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=axes, offset=4).astype(np.int64)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)
