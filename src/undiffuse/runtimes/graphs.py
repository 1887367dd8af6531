"""ONNX graphs of networks, kept in the cache folder, so that each network is exported once.

A graph takes any number of images. Its folder is named by the hash of everything that decides it: the weights, the
network's config, and the version of this package. Deleting the folders is safe.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from undiffuse import __version__
from undiffuse.adapters.export_graph import write_onnx
from undiffuse.adapters.exporting import Model
from undiffuse.downloads import alone, cache_dir
from undiffuse.nets.registry import config_to_dict
from undiffuse.runtime_specs import require

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["graph_path", "make_graph"]

FILE = "network.onnx"
PACKAGES = ("onnx", "onnxscript")


def graph_path(model: Model, digest: str) -> Path:
    """Returns where the graph of a model is or will be.

    Args:
        model: The model.
        digest: The hash of its weights.
    """
    about = {"weights": digest, "net": config_to_dict(model.net, model.spec), "version": __version__}
    key = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
    return cache_dir("runtimes", key[:32], FILE)


def make_graph(model: Model, path: Path, runtime: str, *, again: bool = False) -> bool:
    """Exports a network, unless its graph exists. A second process that wants the same graph waits for the first.

    Args:
        model: The model, its network on the CPU and in evaluation mode.
        path: What `graph_path` returned.
        runtime: The runtime that needs the graph, for messages.
        again: Whether to replace an existing graph.

    Returns:
        Whether a graph was made.

    Raises:
        ConfigError: Packages are missing ("runtime").
        ValueError: The network cannot be exported.
    """
    if path.is_file() and not again:
        return False
    require(runtime, *PACKAGES)
    folder = path.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if path.is_file() and not again:
            return True
        for leftover in _leftovers(folder):  # of killed processes
            shutil.rmtree(leftover, ignore_errors=True)
        new = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}.new")
        try:
            new.mkdir()
            write_onnx(model, new / path.name)
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return True


def _leftovers(folder: Path) -> Iterator[Path]:
    return folder.parent.glob(f".{folder.name}-*.new")
