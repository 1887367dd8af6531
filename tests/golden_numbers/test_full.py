"""Published networks at their full size: from a .pt file of drawn weights to the original's outputs.

Slow: a file of up to 2.2 GB is drawn, written, recognised, converted and loaded, and the network runs once on the CPU.
One network is in memory at a time. Other names than those here are tested too, if the directory in UNDIFFUSE_GOLDEN
has them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from support.foreign_files import write
from support.golden_files import NETWORKS, Golden, directory, draw_weights, of_kind
from undiffuse.adapters import published
from undiffuse.models import ClassifierModel, load_model, resolve

FILES = sorted((directory() / "full").glob("*.safetensors"))


def layout(name: str) -> dict[str, list[int]]:
    """Names and shapes of a published file's tensors."""
    for path in of_kind("published_layouts"):
        data = path.read_bytes()
        lines = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data).get(name, ())
        if lines:
            return {key: [int(n) for n in shape.split("x")] for key, shape in (line.split() for line in lines)}
    raise AssertionError(f"there is no layout of {name}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the file and the cache are; emptied at once, since they are large."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.unlink()


def normal(seed: int, size: int) -> torch.Tensor:
    drawn = np.random.RandomState(seed).standard_normal((1, 3, size, size))
    return torch.from_numpy(drawn.astype("float32"))


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=[p.stem for p in FILES])
def test_golden_full_size(path: Path, folder: Path) -> None:
    golden = Golden(path)
    meta = golden.meta
    name, size, seed = meta["file"], meta["size"], meta["seed"]
    entry = published.get(name)
    assert (entry.family, entry.image_size, entry.low_size) == (meta["family"], size, meta["small_size"])
    file = write(folder / entry.file, draw_weights(layout(name), seed))
    converted = resolve(file)
    file.unlink()  # what follows needs the converted file only
    model = load_model(converted)
    assert model.published == entry
    assert (model.net.config, model.process) == (entry.net, entry.process)
    more: dict[str, torch.Tensor] = {}
    if meta["class_label"] is not None and not isinstance(model, ClassifierModel):
        more["y"] = torch.tensor([meta["class_label"]])
    if meta["small_size"] is not None:
        more["low_res"] = normal(seed + 2, meta["small_size"])
    time = golden.take("t") if "t" in golden else torch.tensor([371.25])
    with torch.no_grad():
        output = model.net(normal(seed + 1, size), time, **more)
    stride = meta["stride"]
    golden.compare("output", output if output.ndim == 2 else output[:, :, ::stride, ::stride], NETWORKS)
    for key, value in (("mean", output.mean()), ("abs_mean", output.abs().mean())):
        if abs(value.item() - meta[key]) > NETWORKS * output.abs().max().item():
            golden.fail(f"{key} of the whole output is {value.item()}, expected {meta[key]}")
    golden.finish()
