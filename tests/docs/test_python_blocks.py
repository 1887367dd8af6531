"""Every Python block of the documentation runs as it is printed, with small data and short runs.

A page's blocks run in order in one scope. `PAGES_WITH` gives a page the names that it takes for granted (a model, a
loader); `short` makes trainings and samplings short without changing a word of the page.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import undiffuse
import undiffuse.editing
import undiffuse.evaluation
import undiffuse.likelihood
from support.cli_runs import one_thread
from support.pages import PAGES, python_blocks
from undiffuse.config import SamplerConfig
from undiffuse.evaluation.compute import METRICS
from undiffuse.noise import NoiseSource
from undiffuse.solvers import build_solver
from undiffuse.solvers.registry import SOLVERS

Scope = dict[str, Any]
WITH_BLOCKS = [page for page in PAGES if python_blocks(page) and page != "docs/mathematics.md"]  # has a test of its own


@pytest.fixture(autouse=True)
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A working folder with the pictures that pages name, and short runs."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (40, 32, 32), np.uint8)
    for folder in ("my_photos", "photos", "sketches", "new_photos"):
        Path(folder).mkdir()
        for k in range(12):
            Image.fromarray(pixels[k]).save(f"{folder}/{k}.png")
    Path("photos/labels.csv").write_text("file,age\n" + "".join(f"{k}.png,{20 + k}\n" for k in range(12)))
    np.savez("samples.npz", arr_0=pixels[:, :, :, None])
    np.savez("real.npz", arr_0=pixels[::-1, :, :, None])
    train, distill = TRAIN, undiffuse.distill

    def short_train(data: Any = None, **given: Any) -> Any:
        small = {} if given.get("resume") or isinstance(given.get("model"), nn.Module) else {"width": 8, "size": 16}
        images = 32 if given.get("resume") else 16
        return train(data, **{"recipe": None if given.get("resume") else "tiny", **given, **small, "images": images,
                              "batch": None if given.get("resume") else 8, "progress": False})  # fmt: skip

    def bound_distill(*args: Any, **given: Any) -> Any:
        inspect.signature(distill).bind(*args, **given)
        return SimpleNamespace(pipeline=lambda: undiffuse.Pipeline.from_pretrained("fashion-mnist-32", steps=2))

    monkeypatch.setattr(undiffuse, "train", short_train)
    monkeypatch.setattr(undiffuse, "distill", bound_distill)
    for name in ("inpaint", "restore", "vary", "translate"):
        monkeypatch.setattr(undiffuse.editing, name, _quick_edit(getattr(undiffuse.editing, name)))
    measure, flow = undiffuse.likelihood.measure, undiffuse.likelihood.FlowConfig
    monkeypatch.setattr(
        undiffuse.likelihood, "measure", lambda *a, **k: measure(*a, **{**k, "count": 2, "terms": 2, "progress": False})
    )
    monkeypatch.setattr(undiffuse.likelihood, "FlowConfig", lambda **k: flow(**{**k, "tol": 0.5, "probes": 1}))
    sweep = undiffuse.evaluation.frontier
    monkeypatch.setattr(
        undiffuse.evaluation,
        "frontier",
        lambda *a, **k: sweep(
            *a, **{**k, "count": 12, "solvers": ["ddim"], "nfe": [2, 3], "against": "ddim:4"}, keep=False
        ),
    )
    make, load = undiffuse.Pipeline.sample, undiffuse.Pipeline.from_pretrained

    def few_steps(*args: Any, **given: Any) -> Any:
        return load(*args, **({**given, "steps": 4} if "steps" in given else given))

    monkeypatch.setattr(undiffuse.Pipeline, "from_pretrained", few_steps)
    monkeypatch.setattr(
        undiffuse.Pipeline, "sample", lambda self, count=2, **k: make(self, min(count, 10), **{**k, "progress": False})
    )
    with one_thread():
        yield
    for registry, known in zip((SOLVERS, METRICS), KNOWN, strict=True):
        for name in set(registry) - known:
            del registry[name]


KNOWN = (set(SOLVERS), set(METRICS))
TRAIN = undiffuse.train


def _quick_edit(function: Callable[..., Any]) -> Callable[..., Any]:
    def quick(*args: Any, **given: Any) -> Any:
        model = given.pop("model", "fashion-mnist-32")
        return function(*args, **given, model=SamplerConfig(model=str(model), steps="3"))

    return quick


def _loaded() -> Scope:
    """What the reader of a page on the parts has: models with a null class, a path and noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 1), np.uint8)
    given = {"labels": np.arange(20) % 10, "out": "runs/my_photos", "label_dropout": 0.1, "process.steps": 20}
    model = TRAIN(pixels, recipe="tiny", width=8, images=8, batch=8, progress=False, **given).model
    Path("masks").mkdir()
    for name in ("hole.png", *(f"masks/{k}.png" for k in range(12))):
        Image.fromarray(np.pad(np.full((8, 8), 255, np.uint8), 12)).save(name)
    shutil.copy("photos/0.png", "sketch.png")
    denoiser, classes = model.denoiser(), torch.tensor([0, 3])
    return {
        "model": model, "denoiser": denoiser, "classifier": undiffuse.load_classifier("fashion-mnist-32-classifier"),
        "classes": classes, "cond": {"y": classes}, "noise": NoiseSource(0, range(2)), "shape": model.image_shape,
        "chain": denoiser.chain.respaced("4"), "path": denoiser.chain.respaced("4"),
        "x0": torch.zeros(2, 1, 32, 32), "small": torch.zeros(2, 1, 8, 8), "solver": build_solver("ddim"),
        "generate": undiffuse.generate,
    }  # fmt: skip


class MyNet(nn.Module):
    """A reader's network: one convolution."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.config = config or SimpleNamespace(image_size=16, in_channels=1, num_classes=None)
        self.layer = nn.Conv2d(self.config.in_channels, self.config.in_channels, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@dataclass(frozen=True)
class _OwnConfig:
    image_size: int = 16
    in_channels: int = 1
    num_classes: int | None = None

    def build(self) -> MyNet:
        return MyNet(self)


class _Pairs(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, n: int) -> Any:
        return Image.new("L", (16, 16), 20 * n), n % 2


class _Tensors(_Pairs):
    def __getitem__(self, n: int) -> Any:
        return torch.full((1, 16, 16), 20 * n, dtype=torch.uint8), n % 2


class _Dictionaries(_Pairs):
    def __getitem__(self, n: int) -> Any:
        return {"image": Image.new("L", (16, 16), 20 * n), "label": n % 2}


def _edited() -> Scope:
    """An unconditional model beside the others, because the photos have no classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), np.uint8)
    given = {"out": "runs/faces", "process.steps": 20}
    TRAIN(pixels, recipe="tiny", width=8, images=8, batch=8, progress=False, **given)
    shutil.copy("runs/faces/model.safetensors", "faces.safetensors")
    return _loaded()


def _measured() -> Scope:
    found = _loaded()
    labels = "".join(f"{k}.png,{k % 10}\n" for k in range(12))
    Path("my_photos/labels.csv").write_text("file,label\n" + labels)
    return found


def _converted() -> Scope:
    from undiffuse.data import convert, open_data

    convert(open_data("my_photos"), "cats.parquet", "parquet")
    return {}


def _training() -> Scope:
    return {
        "torchvision_dataset": _Pairs(), "hub_dataset": _Dictionaries(),
        "loader": torch.utils.data.DataLoader(_Tensors(), batch_size=4), "MyNet": lambda: MyNet(_OwnConfig()),
    }  # fmt: skip


def _conditions() -> Scope:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 1), np.uint8)
    return {"images": pixels, "ages": np.arange(20.0, 44.0, 2.0)}


PAGES_WITH: dict[str, Callable[[], Scope]] = {
    "docs/guidance.md": _loaded,
    "docs/editing.md": _edited,
    "docs/likelihood.md": _measured,
    "docs/formats.md": _converted,
    "docs/training.md": _training,
    "docs/conditions.md": _conditions,
}


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_blocks_run(page: str) -> None:
    scope = PAGES_WITH.get(page, dict)()
    for number, block in enumerate(python_blocks(page), 1):
        exec(compile(block, f"{page}, block {number}", "exec"), scope)
