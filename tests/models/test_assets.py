"""The weights that ship with the package: present in the installed wheel, small, sound, and what they say they are."""

from __future__ import annotations

import zlib
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse import checkpoints, frontiers
from undiffuse.evaluation import open_images
from undiffuse.grids import grid
from undiffuse.guidance import ClassifierGuidance
from undiffuse.likelihood import bits_per_dim, mean_and_error
from undiffuse.metrics.extractors import build_extractor
from undiffuse.models import SHIPPED, check_pair, current_digest, load_classifier, load_diffusion, resolve
from undiffuse.noise import NoiseSource
from undiffuse.pictures import read_record, save_png
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.record import regenerate
from undiffuse.recipes import get
from undiffuse.sampling import generate
from undiffuse.solvers import DDPM, build_solver
from undiffuse.solvers.registry import read_options

DEBIAN = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def test_the_assets_are_files_of_the_installed_package_and_small() -> None:
    files = [resources.files("undiffuse") / "assets" / f"{name}.safetensors" for name in SHIPPED]
    assert all(f.is_file() for f in files)
    sizes = [len(zlib.compress(f.read_bytes())) for f in files]  # as in a wheel
    assert sum(sizes[:2]) <= 10 * 10**6  # the model and its classifier
    assert sizes[2] <= 1.7 * 10**6  # the judge
    assert sum(sizes) <= 18.5 * 10**6  # 20 MB with the code


def test_the_wheel_lists_the_assets() -> None:
    listed = {str(f) for f in metadata.files("undiffuse") or []}
    if any(path.startswith("__editable__") for path in listed):
        return  # a development checkout has no list of its own; CI installs the wheel
    assert {f"undiffuse/assets/{name}.safetensors" for name in SHIPPED} <= listed
    assert "undiffuse/py.typed" in listed


def test_the_frontier_is_of_the_model_that_ships(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))  # none but the shipped one
    (frontier,) = frontiers.known(load_diffusion(SHIPPED[0]).digest)
    best = frontier.best(10)
    assert (best.nfe, frontier.verdict(best)) == (10, "equal")
    build_solver(best.solver, **read_options(best.solver, best.solver_options))
    assert grid(load_diffusion(SHIPPED[0]).process.chain(), best.steps, best.grid).steps == 10


def test_the_student_is_of_the_model_that_ships() -> None:
    """It was distilled from it, and `sample` calls it four times."""
    student, teacher = load_diffusion(SHIPPED[3]), load_diffusion(SHIPPED[0])
    about = student.manifest["distillation"]
    assert (about["calls"], about["method"]) == (4, "moment-matching")
    assert current_digest(about["origin"]["sha256"]) == teacher.digest
    assert student.labels == teacher.labels == CLASSES
    assert student.preparation == teacher.preparation


def test_pictures_of_the_classifier_before_it_was_rounded_are_made_again() -> None:
    """Its file has 16 bits since; the guided images of a record change by at most 1 of 255."""
    former = "ee587edce2b8f0c3b0fc067dfe609277d37b0ab7094cdda02b756b7e6516c832"
    pipeline = Pipeline.from_pretrained(SHIPPED[0], guidance=2.0, steps="2")
    assert pipeline.record["classifier"] == current_digest(former) != former
    pipeline.check_identity({**pipeline.record, "classifier": former})
    with pytest.raises(ValueError, match="the classifier fashion-mnist-32-classifier is not the one"):
        pipeline.check_identity({**pipeline.record, "classifier": "0" * 64})


def test_they_are_what_the_recipes_make() -> None:
    for name in SHIPPED[:3]:
        manifest = checkpoints.read_manifest(resolve(name))
        recipe = get(name)
        assert manifest["kind"] == recipe.kind
        built = type(recipe.net)(**manifest["net"])
        assert built == recipe.net
        assert tuple(manifest["labels"]) == CLASSES


@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's dataset-fashion-mnist is not installed")
@pytest.mark.parametrize("step", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_the_judge_names_as_many_test_images_as_its_recipe_says(step: int) -> None:
    """92.0 +/- 0.3 % of all, of the file as it ships, in 16 bits; of 500 images within four standard errors."""
    source = open_images("fashion-mnist:test", size=32, channels=1, fit="pad")
    assert source.labels is not None
    images, labels = source.batch(0, len(source))[::step], source.labels[::step]
    judge = build_extractor("fashion")
    found = [judge(images[k : k + 250]).logits for k in range(0, len(images), 250)]
    right = torch.cat([part.argmax(1) for part in found if part is not None]).numpy() == labels
    assert right.mean() == pytest.approx(0.920, abs=0.003 if step == 1 else 4 * (0.92 * 0.08 / len(labels)) ** 0.5)


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
        how = ("crop", 32, 3) if name.startswith("emoji") else ("pad", 32, 1)
        assert (data["config"]["fit"], data["config"]["size"], data["config"]["channels"]) == how
        assert "source" not in data
        assert "path" not in data["config"]


def test_a_picture_made_before_the_weights_were_rounded_is_made_again_with_a_remark(tmp_path: Path) -> None:
    pipeline = Pipeline.from_pretrained(SHIPPED[0], steps="2")
    pipeline.sample(1, seed=3).save(tmp_path)
    (file,) = (path for path in tmp_path.glob("*.png") if path.name != "grid.png")
    record = {**read_record(file), "model": "b7c647f8c67dbca79acbe597570090ae2ff562f2ede504a089d40a260d9a1134"}
    save_png(tmp_path / "old.png", Image.open(file), record)
    assert regenerate(file).remarks == ()
    again = regenerate(tmp_path / "old.png")
    assert again.agrees
    assert again.remarks == ("the weights of the model were rounded to 16 bits since, which changes pixels",)


def test_the_colour_model_is_what_its_recipe_makes_and_its_classifier_guides_it() -> None:
    model, classifier = load_diffusion("emoji-32"), load_classifier("emoji-32-classifier")
    assert model.net.config == get("emoji-32").net
    assert model.process == get("emoji-32").process
    assert classifier.net.config == get("emoji-32-classifier").net
    check_pair(model, classifier)
    assert model.labels == classifier.labels
    assert len(model.labels or ()) == 9
    pipeline = Pipeline.from_pretrained("emoji-32", guidance=2.0, solver="dpmpp-2m-sde", steps="10")
    pixels = np.stack([np.asarray(image) for image in pipeline.sample(18, seed=0)]).astype(float)
    assert pixels.shape == (18, 32, 32, 3)
    corners = pixels[:, ::31, ::31]
    assert corners.mean() > 200  # the background is white, what is in the middle is not
    assert pixels[:, 8:24, 8:24].mean() < 200
    colours = pixels[:, 8:24, 8:24].mean((1, 2))
    assert (colours.max(1) - colours.min(1)).mean() > 15  # in colour
