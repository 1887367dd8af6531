"""The weights that ship with the package: present in the installed wheel, small, sound, and what they say they are."""

from __future__ import annotations

from importlib import metadata, resources
from pathlib import Path

import pytest
import torch

from undiffuse import checkpoints, frontiers
from undiffuse.grids import grid
from undiffuse.guidance import ClassifierGuidance
from undiffuse.likelihood import bits_per_dim, mean_and_error
from undiffuse.models import SHIPPED, check_pair, load_classifier, load_diffusion, resolve
from undiffuse.noise import NoiseSource
from undiffuse.recipes import get
from undiffuse.sampling import generate
from undiffuse.solvers import DDPM, build_solver
from undiffuse.solvers.registry import read_options

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def test_the_assets_are_files_of_the_installed_package_and_small() -> None:
    files = [resources.files("undiffuse") / "assets" / f"{name}.safetensors" for name in SHIPPED]
    assert all(f.is_file() for f in files)
    sizes = [len(f.read_bytes()) for f in files]
    assert sum(sizes[:2]) <= 15 * 10**6  # the model and its classifier
    assert sum(sizes[2:]) <= 3 * 10**6


def test_the_wheel_lists_the_assets() -> None:
    listed = {str(f) for f in metadata.files("undiffuse") or []}
    if any(path.startswith("__editable__") for path in listed):
        return  # a development checkout has no list of its own; CI installs the wheel
    assert {f"undiffuse/assets/{name}.safetensors" for name in SHIPPED} <= listed
    assert "undiffuse/py.typed" in listed


def test_the_frontier_is_of_the_model_that_ships(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))  # none but the shipped one
    frontier = frontiers.known(load_diffusion(SHIPPED[0]).digest)
    assert frontier is not None
    best = frontier.best(10)
    assert (best.nfe, frontier.verdict(best)) == (10, "equal")
    build_solver(best.solver, **read_options(best.solver, best.solver_options))
    assert grid(load_diffusion(SHIPPED[0]).process.chain(), best.steps, best.grid).steps == 10


def test_they_are_what_the_recipes_make() -> None:
    for name in SHIPPED:
        manifest = checkpoints.read_manifest(resolve(name))
        recipe = get(name)
        assert manifest["kind"] == recipe.kind
        built = type(recipe.net)(**manifest["net"])
        assert built == recipe.net
        assert tuple(manifest["labels"]) == CLASSES


def test_the_model_draws_the_classes_it_is_asked_for_and_guidance_sharpens() -> None:
    """Twenty images in 25 steps: most are taken for their class, more with guidance, and surer."""
    model, classifier = load_diffusion(SHIPPED[0]), load_classifier(SHIPPED[1])
    check_pair(model, classifier)
    judge = classifier.level_classifier()
    y = torch.arange(20) % 10
    chain = model.denoiser().chain.respaced("25")
    log_prob = {}
    for scale in (0.0, 4.0):
        guided = ClassifierGuidance(model.denoiser(), judge, scale=scale)
        x = generate(guided, chain, DDPM(), NoiseSource(0, range(20)), model.image_shape, cond={"y": y})
        with torch.no_grad():
            log_prob[scale] = judge.log_prob(x, chain.level(0), y)
    assert (log_prob[0.0] > -2.3).float().mean() > 0.6  # better than chance, exp(-2.3) = 1/10
    assert log_prob[4.0].mean() > log_prob[0.0].mean()


def test_the_model_compresses_its_kind_of_image_and_not_noise() -> None:
    model = load_diffusion(SHIPPED[0])
    denoiser = model.denoiser()
    y = torch.arange(6)
    x = generate(
        denoiser, denoiser.chain.respaced("25"), DDPM(), NoiseSource(1, range(6)), model.image_shape, cond={"y": y}
    )
    clothes = (((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5) - 1
    static = torch.randint(0, 256, clothes.shape, generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    bits = [
        mean_and_error(
            bits_per_dim(denoiser, denoiser.chain, images, NoiseSource(2, range(6)), cond={"y": y}, terms=12).total
        )[0]
        for images in (clothes, static)
    ]
    assert bits[0] < 6
    assert bits[1] > 8


def test_they_say_how_their_images_are_prepared_and_not_where_they_lay() -> None:
    """Padded from 28 to 32 pixels: `nll` and `encode` must prepare images alike (cropping costs 1.3 bits)."""
    for name in SHIPPED:
        data = checkpoints.read_manifest(resolve(name))["data"]
        assert (data["config"]["fit"], data["config"]["size"], data["config"]["channels"]) == ("pad", 32, 1)
        assert "source" not in data
        assert "path" not in data["config"]
