"""The code of other projects on the page "Coming from other code" runs where they are installed, and ours beside it.

pip install diffusers denoising-diffusion-pytorch k-diffusion
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

import undiffuse
from support import lucidrains
from support.cli_runs import one_thread
from support.pages import text_of
from undiffuse.cli.parser import build_parser
from undiffuse.noise_levels import named_schedule
from undiffuse.solvers.registry import SOLVERS
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser

PAGE = "docs/coming-from.md"
TABBED = re.findall(r'^    ```python title="([\w-]+)"\n(.*?)^    ```', text_of(PAGE), flags=re.DOTALL | re.MULTILINE)
DIFFUSERS, TRAINING, DDP, K = [k for k, (name, _) in enumerate(TABBED) if name != "undiffuse"]


def code(number: int) -> str:
    return "\n".join(line.removeprefix("    ") for line in TABBED[number][1].splitlines())


def run(number: int, scope: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code(number), f"{PAGE}, {TABBED[number][0]}", "exec"), scope)
    return scope


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for k in range(120):  # denoising-diffusion-pytorch wants at least 100
        Image.fromarray(np.full((16, 16), 2 * k, np.uint8)).save(tmp_path / "photos" / f"{k}.png")
    train = undiffuse.train
    monkeypatch.setattr(
        undiffuse, "train", lambda *a, **k: train(*a, **{**k, "images": 8, "batch": 8, "progress": False})
    )
    with one_thread():
        yield tmp_path


def test_both_sides_are_there() -> None:
    assert [name for name, _ in TABBED] == [
        "diffusers", "undiffuse", "diffusers", "undiffuse", "ddp", "undiffuse", "k-diffusion", "undiffuse",
    ]  # fmt: skip


def test_our_command_lines_parse(capsys: pytest.CaptureFixture[str]) -> None:
    lines = re.sub(r"\\\n\s*", "", text_of(PAGE))
    found = re.findall(r"^    undiffuse (.*)$", lines, flags=re.MULTILINE)
    assert len(found) >= 7
    for line in found:
        words = line.split()
        assert build_parser(words).parse_args(words).command in line


def test_our_settings_exist() -> None:
    text = text_of(PAGE)
    for names in re.findall(r"--solver ([\w-]+`(?:, `[\w-]+`)*)", text):
        assert {name.strip("`, ") for name in names.split("`") if name.strip("`, ")} <= set(SOLVERS), names
    for setting in re.findall(r"--set ([\w.]+)=", text):
        section, _, field = setting.partition(".")
        assert hasattr(getattr(undiffuse.recipes.get("tiny"), section), field), setting


def test_our_training_and_sampling() -> None:
    run(TRAINING + 1, {})
    scope = run(DDP + 1, {})
    assert len(scope["images"]) == 4


@needs("diffusers")
def test_diffusers(photos: Path) -> None:
    """A model trained by their loop is sampled by their pipeline and by ours."""
    import diffusers

    batches = [torch.zeros(4, 1, 16, 16), torch.ones(4, 1, 16, 16)]
    scope = run(TRAINING, {"batches": batches})
    assert torch.isfinite(scope["loss"])
    folder = str(photos / "exported")
    diffusers.DDPMPipeline(unet=scope["model"], scheduler=scope["scheduler"]).save_pretrained(folder)
    theirs = run(DIFFUSERS, {"FOLDER": folder})["images"]
    ours = run(DIFFUSERS + 1, {"FOLDER": folder})["images"]
    assert [image.size for image in theirs] == [image.size for image in ours] == [(16, 16)] * 4


@needs("denoising_diffusion_pytorch")
def test_denoising_diffusion_pytorch(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their trainer's file is read by ours."""
    lucidrains.library()
    _import_with_stubs("denoising_diffusion_pytorch.fid_evaluation")
    module = sys.modules["denoising_diffusion_pytorch.fid_evaluation"]
    monkeypatch.setattr(module, "FIDEvaluation", MagicMock())  # which its Trainer builds whether used or not
    scope = run(DDP, {})
    assert scope["images"].shape == (4, 1, 16, 16)
    scope["trainer"].save(1)
    model = undiffuse.load_diffusion(f"{photos / 'results' / 'model-1.pt'}@image_size=16")
    assert model.image_shape == (1, 16, 16)
    assert model.process.target == "v" and model.process.schedule.startswith("sigmoid")


def _import_with_stubs(name: str) -> None:
    """Imports a module; packages that it imports, and its samplers do not need, are replaced by stubs if missing."""
    package = name.partition(".")[0]
    for _ in range(40):
        try:
            importlib.import_module(name)
            return
        except ImportError as missing:
            for module in [module for module in sys.modules if module.partition(".")[0] == package]:
                del sys.modules[module]
            part = re.match(r"cannot import name '(\w+)'", str(missing))  # of a stub that another test made
            if part is not None:
                setattr(sys.modules[str(missing.name)], part[1], MagicMock())
            else:
                sys.modules[str(missing.name)] = MagicMock()
    raise AssertionError(f"{name} cannot be imported")


@needs("k_diffusion")
def test_k_diffusion() -> None:
    """The two samplers make the same images of two Gaussians from the same noise."""
    _import_with_stubs("k_diffusion.sampling")
    chain = named_schedule("linear", 1000)
    exact = OracleDenoiser(Mixture.scalar([0.4, 0.6], [-0.7, 0.5], [0.1, 0.2]), chain)
    source = Noise64(0, 5)

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        level = undiffuse.noise_levels.Level.from_ratio(sigma[:1].double())
        return exact(x * level.alpha.view(-1, 1, 1, 1), level).x0

    theirs = run(K, {"denoise": denoise, "noise": source.normal((1, 1, 1), purpose="x_T")})["images"]
    ours = run(K + 1, {"denoiser": exact, "noise": source, "shape": (1, 1, 1)})["images"]
    assert torch.allclose(theirs, ours, atol=2e-3)
