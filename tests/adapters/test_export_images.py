"""The table of docs/models.md by which exported models give equal images in diffusers, row by row; needs diffusers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.export_models import SMALL, model
from undiffuse.adapters import export_diffusers
from undiffuse.config.sampler import SamplerConfig
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.grids import grid
from undiffuse.nets import UNetConfig
from undiffuse.sampling import generate
from undiffuse.solvers import build_solver
from undiffuse.solvers.registry import read_options

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
ADM: dict[str, Any] = {**SMALL, "use_scale_shift_norm": True, "resblock_updown": True, "num_head_channels": 16}
LEVEL = 2 / 255


def table(name: str) -> list[list[str]]:
    """The rows of a table of the page, code freed of its ticks."""
    text = PAGE.read_text(encoding="utf-8").split(f"<!-- {name} -->")[1].split("<!-- end -->")[0]
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in text.strip().splitlines()]
    return rows[2:]


def test_there_is_a_table() -> None:
    assert len(table("schedulers")) >= 7
    assert {row[0].split()[1] for row in table("schedulers")} >= {"ddpm", "ddim", "dpmpp-2m", "unipc", "heun"}


class Replayed:
    """The noise that diffusers draws from a generator: the start, then once a step."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.generator = count, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.count

    def normal(self, shape: Any, step: int = 0, purpose: str = "", device: Any = "cpu") -> Tensor:
        return torch.randn((self.count, *shape), generator=self.generator)


def ours(given: Any, command: str) -> Tensor:
    words = shlex.split(command)
    chosen = {words[i].lstrip("-").replace("-", "_"): words[i + 1] for i in range(0, len(words), 2)}
    settings = SamplerConfig(**chosen).resolved(given.process)
    assert settings.solver and settings.steps and settings.grid and settings.clip
    denoiser = ChainDenoiser(given.net, given.process, settings.clip)
    options = {"eta": 0.0} if settings.solver == "ddim" else {}
    solver = build_solver(settings.solver, True, **options, **read_options(settings.solver, settings.solver_options))
    path = grid(denoiser.chain, settings.steps, settings.grid)
    return generate(denoiser, path, solver, Replayed(2, 3), (3, *given.net.config.size))


def theirs(library: Any, folder: Path, scheduler: str, output: str, more: str, size: tuple[int, int]) -> Tensor:
    unet = library.UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
    c = library.DDPMScheduler.from_pretrained(folder, subfolder="scheduler").config
    name = re.match(r"\w+", scheduler)
    assert name is not None
    made = eval(scheduler, {name[0]: getattr(library, name[0]), "c": c})
    made.set_timesteps(10)
    keywords = eval(f"dict({more})")
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((2, 3, *size), generator=generator) * getattr(made, "init_noise_sigma", 1.0)
    if name[0] in ("DDPMScheduler",):
        keywords["generator"] = generator
    for t in made.timesteps:
        out = unet(made.scale_model_input(x, t), t).sample
        x = made.step(eval(output, {"out": out, "C": 3}), t, x, **keywords).prev_sample
    return x


@pytest.mark.parametrize("learned", [True, False], ids=["learned variance", "fixed variance"])
@pytest.mark.parametrize("row", table("schedulers"), ids=lambda row: " ".join(row[0].split()[1:4]) + row[1][:8])
@torch.no_grad()
def test_images_are_equal(row: list[str], learned: bool, tmp_path: Path) -> None:
    library = pytest.importorskip("diffusers", reason="compares with diffusers, which is not needed otherwise")
    command, scheduler, output, more = row
    config = UNetConfig(**{**ADM, "out_channels": 6 if learned else 3})
    given = model(config, ProcessConfig(variance="learned_range" if learned else "fixed_small"))
    (tmp_path / "m").mkdir()
    export_diffusers.export_diffusers(given, tmp_path / "m")
    expected = ours(given, command)
    images = theirs(library, tmp_path / "m", scheduler, output, more, config.size)
    assert (images.clamp(-1, 1) - expected.clamp(-1, 1)).abs().max() < LEVEL
    if more:  # without it, they are not
        other = theirs(library, tmp_path / "m", scheduler, output, "", config.size)
        assert (other.clamp(-1, 1) - expected.clamp(-1, 1)).abs().max() > 3 * LEVEL
