"""Pictures from disk to uint8 batches: sources, labels, preparation, order, batches, summaries.

The way of an image: `open_data` finds and labels it (`Source`), `ImageDataset` prepares it and puts it in the order of
a run, `batches` collects it; `undiffuse.pixels.from_uint8` makes it a float tensor. Everything random is a pure
function of (seed, position).
"""

from __future__ import annotations

from undiffuse.data.array_source import ArraySource
from undiffuse.data.batches import Batch, batches, pass_once
from undiffuse.data.convert import Converted, convert
from undiffuse.data.dataset import DataConfig, Example, ImageDataset, check_trainable
from undiffuse.data.fashion import FASHION_CLASSES, fashion_mnist
from undiffuse.data.formats.npz import open_npz
from undiffuse.data.images import prepare, size_pair, to_mode
from undiffuse.data.opening import IMAGE_SUFFIXES, NAMED_SETS, open_data
from undiffuse.data.order import epoch_of, index_at, indices_at, permutation, uniforms
from undiffuse.data.screening import find_flaws, screen
from undiffuse.data.sources import BrokenImageError, Excluded, FolderSource, Source, SubsetSource
from undiffuse.data.split import Split, split
from undiffuse.data.summary import DataSummary, scan
from undiffuse.data.zips import ZipSource

__all__ = [
    "FASHION_CLASSES",
    "IMAGE_SUFFIXES",
    "NAMED_SETS",
    "ArraySource",
    "Batch",
    "BrokenImageError",
    "Converted",
    "DataConfig",
    "DataSummary",
    "Example",
    "Excluded",
    "FolderSource",
    "ImageDataset",
    "Source",
    "Split",
    "SubsetSource",
    "ZipSource",
    "batches",
    "check_trainable",
    "convert",
    "epoch_of",
    "fashion_mnist",
    "find_flaws",
    "index_at",
    "indices_at",
    "open_data",
    "open_npz",
    "pass_once",
    "permutation",
    "prepare",
    "scan",
    "screen",
    "size_pair",
    "split",
    "to_mode",
    "uniforms",
]
