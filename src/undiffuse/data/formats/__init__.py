"""Containers of pictures, one format a module, found through `registry`."""

from __future__ import annotations

from undiffuse.data.formats.base import Frames, Layout, Reading
from undiffuse.data.formats.registry import FORMATS, Format, find_format

__all__ = ["FORMATS", "Format", "Frames", "Layout", "Reading", "find_format"]
