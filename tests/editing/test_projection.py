"""Editing by projection: results agree with the observation, what it does not determine stays the model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from support.cli_runs import call, pixels, write_images, write_model
from undiffuse.editing import Downsampling, Mask, Operator, inpaint, restore
from undiffuse.editing.projection import ProjectedDenoiser
from undiffuse.grids import grid
from undiffuse.noise_levels import Level, named_schedule
from undiffuse.sampling import generate
from undiffuse.solvers import build_solver
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser

CHAIN = named_schedule("cosine", 200)
SHAPE = (1, 2, 2)
SEEN = torch.tensor([True, True, False, False]).reshape(1, 1, 2, 2)
OPERATORS: dict[str, Operator] = {"mask": Mask(SEEN), "downsampling": Downsampling(2)}
DATA = Mixture.random(SHAPE, components=2, seed=5)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_denoised_image_agrees_with_the_observation(name: str) -> None:
    operator, oracle = OPERATORS[name], OracleDenoiser(DATA, CHAIN)
    y = operator(DATA.sample(6, seed=1))
    projected = ProjectedDenoiser(oracle, operator, y)
    level, x = CHAIN.level(120), DATA.sample(6, seed=2)
    found, plain = projected(x, level).x0, oracle(x, level).x0
    torch.testing.assert_close(operator(found), y)
    # the nearest such image: the change lies in the range of A^T
    change = found - plain
    torch.testing.assert_close(operator.adjoint(operator(change)) * (1 / operator.norm**2), change)


@pytest.mark.parametrize("solver", ["consistency", "ddpm", "ddim"])
def test_samples_agree_with_the_observation(solver: str) -> None:
    operator = OPERATORS["mask"]
    y = operator(DATA.sample(64, seed=1))
    denoiser = ProjectedDenoiser(OracleDenoiser(DATA, CHAIN), operator, y)
    made = generate(denoiser, grid(CHAIN, 8, "trailing"), build_solver(solver), Noise64(0, 64), SHAPE)
    torch.testing.assert_close(operator(made), y)


def test_the_part_that_is_not_seen_follows_the_data() -> None:
    """For independent pixels the posterior of the rest is the prior."""
    flat = Mixture(SHAPE, torch.ones(1, dtype=torch.float64), torch.full((1, 4), 0.3, dtype=torch.float64),
                   torch.full((1, 4), 0.04, dtype=torch.float64))  # fmt: skip
    operator = OPERATORS["mask"]
    y = operator(flat.sample(4000, seed=1))
    denoiser = ProjectedDenoiser(OracleDenoiser(flat, CHAIN), operator, y)
    made = generate(denoiser, CHAIN, build_solver("ddpm"), Noise64(0, 4000), SHAPE)
    rest = made[:, :, 1]
    assert abs(float(rest.mean()) - 0.3) < 0.02
    assert abs(float(rest.std()) - 0.2) < 0.02


class _Consistent:
    """The exact consistency function of independent Gaussian pixels."""

    conditions: frozenset[str] = frozenset()
    chain = CHAIN

    def __call__(self, x: Tensor, level: Level, cond: object = None) -> object:
        from undiffuse.prediction import Prediction

        mean, std = 0.3, 0.2
        s = level.sigma / level.alpha
        scaled = (x / float(level.alpha) - mean) * float(std / (std**2 + s**2).sqrt())
        return Prediction(x, level, "x0", mean + scaled)


def test_a_consistency_model_edits_in_a_few_calls() -> None:
    """Song et al. 2023, algorithm 4: two calls suffice where the consistency function is exact."""
    operator = OPERATORS["mask"]
    y = operator(0.3 + 0.2 * torch.randn(4000, *SHAPE, generator=torch.Generator().manual_seed(0)).double())
    denoiser = ProjectedDenoiser(_Consistent(), operator, y)  # type: ignore[arg-type]
    made = generate(denoiser, grid(CHAIN, 2, "at:-6,0"), build_solver("consistency"), Noise64(0, 4000), SHAPE)
    torch.testing.assert_close(operator(made), y)
    assert abs(float(made[:, :, 1].std()) - 0.2) < 0.01


def test_the_editing_functions_take_it(tmp_path: Path) -> None:
    model, images = write_model(tmp_path / "model.safetensors"), write_images(tmp_path / "images", each=1)
    filled = inpaint(images, hole=(2, 2, 3, 3), model=model, method="projection", progress=False)
    assert filled.errors["the known part, before it was put back, was off by"] < 0.01
    words = ["restore", images, "--upscale", 2, "--degrade", "--method", "projection", "--model", model]
    assert call(*words, "--out", tmp_path / "restored") == 0
    original, found = pixels(images / "left" / "0.png"), pixels(tmp_path / "restored" / "left" / "0.png")
    small = [array.reshape(4, 2, 4, 2).mean(axis=(1, 3)) for array in (original, found)]
    clipped = (found == 0) | (found == 255)
    inside = ~clipped.reshape(4, 2, 4, 2).any(axis=(1, 3))
    assert np.abs(small[0] - small[1])[inside].max(initial=0) <= 1.5
    whole = restore(images, upscale=2, degrade=True, model=model, method="projection", progress=False)
    assert len(whole) == 3
