"""Recipes: every one builds and fits together, and the published ones describe the published files.

Networks are built on the meta device, where a parameter has a shape and no numbers.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from undiffuse import recipes
from undiffuse.adapters.openai_flags import classifier_config, loss_name, process_config, unet_config
from undiffuse.data import DataConfig
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import ClassifierConfig, NoisyClassifier, ResNet, UNet, UNetConfig
from undiffuse.objectives import ObjectiveConfig
from undiffuse.recipes import Recipe, for_data, get, names
from undiffuse.recipes.base import NOT_RUN
from undiffuse.training import ClassifierTask, DiffusionTask, TrainConfig, learning_rate

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINTS: dict[str, Any] = json.loads((GOLDEN / "published_checkpoints.json").read_bytes())
LAYOUTS: dict[str, list[str]] = json.loads(gzip.decompress((GOLDEN / "published_layouts.json.gz").read_bytes()))
PUBLISHED = [name for name in names() if name.startswith(("ddpm-", "improved-", "adm-"))]
WITH_FILE = [name for name in PUBLISHED if "file" in get(name).published]
GENERAL = [name for name in names() if name.startswith("general-")]
each = pytest.mark.parametrize("name", names())


def build(config: UNetConfig | ClassifierConfig) -> Any:
    with torch.device("meta"):
        return config.build()


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def entry(name: str) -> tuple[str, dict[str, Any]]:
    """The published file of a recipe: its name without suffix, and what the golden list says of it."""
    file = get(name).published["file"].removesuffix(".pt")
    return file, CHECKPOINTS[file]


def test_names_are_unique_and_those_of_the_recipes() -> None:
    assert len(names()) == len(set(names())) == len(recipes.RECIPES)
    assert [get(name).name for name in names()] == names()
    assert {"fashion-mnist-32", "fashion-mnist-32-classifier", "smoke"} <= set(names())
    assert len({get(name).summary for name in names()}) >= len(names()) - 1  # the horses differ in dropout only


@each
def test_frozen_and_hashable(name: str) -> None:
    recipe = get(name)
    assert recipe == get(name)
    assert hash(recipe) == hash(get(name))
    for part in (recipe, recipe.data, recipe.net, recipe.process, recipe.train, recipe.advice):
        field = next(iter(vars(part)))
        with pytest.raises(FrozenInstanceError):
            setattr(part, field, getattr(part, field))


@each
def test_configurations_survive_json(name: str) -> None:
    recipe = get(name)
    read = json.loads(json.dumps(recipe.to_dict()))
    assert type(recipe.net)(**read["net"]) == recipe.net
    assert ProcessConfig(**read["process"]) == recipe.process
    assert TrainConfig(**read["train"]) == recipe.train
    assert TrainConfig(**json.loads(json.dumps(recipe.train.to_dict()))) == recipe.train
    assert (ObjectiveConfig(**read["objective"]) if read["objective"] else None) == recipe.objective
    assert (read["name"], read["published"]) == (name, dict(recipe.published))


@each
def test_builds_and_fits_together(name: str) -> None:
    """Network, process, objective and pictures agree: the training task accepts them, and the data settings exist."""
    recipe = get(name)
    net = build(recipe.net)
    assert recipe.kind == ("classifier" if isinstance(net, NoisyClassifier | ResNet) else "diffusion")
    if recipe.objective is not None:
        assert isinstance(net, UNet)
        low = None if recipe.low_size is None else (recipe.low_size, recipe.low_size)
        DiffusionTask(net, recipe.process, recipe.objective, low_size=low)
    else:
        ClassifierTask(net, recipe.process, clean_fraction=recipe.clean_fraction)
    data = DataConfig(path="somewhere", **asdict(recipe.data))  # type: ignore[arg-type]
    assert (data.shape[2], *data.shape[:2]) == (recipe.net.in_channels, *recipe.net.size)
    assert recipe.train.total_images >= recipe.train.batch
    preview = f"ddim{recipe.train.preview_steps}"
    assert recipe.process.chain().respaced(preview).steps == recipe.train.preview_steps


@each
def test_advice_can_be_followed(name: str) -> None:
    """The steps are possible on the chain; the paired classifier exists and knows this chain, size and classes."""
    recipe = get(name)
    advice = recipe.advice
    steps = f"ddim{advice.steps}" if advice.solver == "ddim" else advice.steps
    assert recipe.process.chain().respaced(steps).steps == int(advice.steps)
    assert not advice.guidance.strength or advice.guidance.classifier
    if advice.guidance.classifier:
        (classifier,) = advice.guidance.classifier
        paired = get(classifier)
        assert paired.kind == "classifier"
        assert (paired.process, paired.net.size) == (recipe.process, recipe.net.size)
        assert isinstance(recipe.net, UNetConfig)
        assert recipe.net.num_classes in (None, paired.net.out_channels)


@pytest.mark.parametrize("name", [n for n in names() if "parameters" in get(n).summary])
def test_summary_counts_parameters(name: str) -> None:
    said = re.search(r"([\d.]+)M parameters", get(name).summary)
    assert said
    digits = len(said[1].partition(".")[2])
    assert round(parameters(build(get(name).net)) / 1e6, digits or None) == float(said[1])


def test_every_published_file_has_one_recipe() -> None:
    assert sorted(entry(name)[0] for name in WITH_FILE) == sorted(CHECKPOINTS) == sorted(LAYOUTS)
    assert {name for name in PUBLISHED if name not in WITH_FILE} == {n for n in PUBLISHED if n.startswith("ddpm-")}


@pytest.mark.parametrize("name", WITH_FILE)
def test_published_layout(name: str) -> None:
    file, about = entry(name)
    net = build(get(name).net)
    assert sorted(f"{k} {'x'.join(map(str, v.shape))}" for k, v in net.state_dict().items()) == LAYOUTS[file]
    assert parameters(net) == about["parameters"]


@pytest.mark.parametrize("name", WITH_FILE)
def test_published_flags(name: str) -> None:
    """What a layout does not show (heads, their order, dropout, chain, loss) equals the flags of the release."""
    recipe, (_, about) = get(name), entry(name)
    flags, family = about["flags"], about["family"]
    if family.endswith("classifier"):
        assert recipe.net == classifier_config(flags)
        return
    expected = unet_config(flags, family)
    # the number of heads has no influence where their width is given
    ignored = {"num_heads"} if expected.num_head_channels != -1 else set()
    ours, theirs = asdict(recipe.net), asdict(expected)
    assert {k: v for k, v in ours.items() if k not in ignored} == {k: v for k, v in theirs.items() if k not in ignored}
    assert recipe.process == process_config(flags, family)
    assert recipe.objective is not None
    loss = {("vlb", True): "RESCALED_KL", ("hybrid", True): "RESCALED_MSE", ("hybrid", False): "MSE"}
    assert loss[recipe.objective.loss, recipe.objective.rescale] == loss_name(flags, family)
    assert recipe.low_size == flags.get("small_size")


TEACHERS = [name for name in names() if name.startswith("edm-")]


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_of_consistency_models(name: str) -> None:
    """Their networks and processes are those of the published files; only dropout, which no file shows, is added."""
    file = get(name).published["file"].removesuffix(".pt")
    about = json.loads((GOLDEN / "published_consistency.json").read_bytes())[file]
    layouts = json.loads(gzip.decompress((GOLDEN / "published_consistency_layouts.json.gz").read_bytes()))
    recipe, net = get(name), build(get(name).net)
    ours = [f"{k} {'x'.join(map(str, v.shape))}" for k, v in net.state_dict().items()]
    theirs = layouts[file.split("_")[1]]  # whose attention has convolutions of images where ours are of sequences
    assert sorted(re.sub("(x1)+$", "", line) for line in ours) == sorted(re.sub("(x1)+$", "", line) for line in theirs)
    flags = {**about["flags"], "training_mode": "edm"}
    assert recipe.process == process_config(flags, "consistency_models")
    expected = unet_config(flags, "consistency_models")
    assert {**asdict(recipe.net), "dropout": 0.0} == asdict(expected)
    assert (recipe.process.target, recipe.process.time_factor, recipe.net.dropout) == ("edm", 250.0, 0.1)
    assert (recipe.train.density, recipe.train.lr) == ("lognormal:-1.2,1.2", 1e-4)
    assert "number of updates" in recipe.published["unverified"]


def test_there_is_a_recipe_for_every_teacher() -> None:
    published = json.loads((GOLDEN / "published_consistency.json").read_bytes())
    assert {get(name).published["file"] for name in TEACHERS} == {f"{n}.pt" for n in published if n.startswith("edm_")}


def test_ddpm_sizes() -> None:
    """The paper: 35.7 million parameters at 32x32, 114 million at 256x256, attention at 16x16 only."""
    for name in [n for n in PUBLISHED if n.startswith("ddpm-")]:
        net = get(name).net
        assert net.attention_resolutions == (net.size[0] // 16,)
        assert round(parameters(build(net)) / 1e6, 1) == (35.7 if "cifar" in name else 113.7)


# Batch, updates, learning rate, dropout: Dhariwal & Nichol 2021, Tables 11 to 13.
TABLES = {
    "adm-imagenet-64": (2048, 540_000, 3e-4, 0.1),
    "adm-imagenet-128": (256, 4_360_000, 1e-4, 0.0),
    "adm-imagenet-256": (256, 1_980_000, 1e-4, 0.0),
    "adm-imagenet-512": (256, 1_940_000, 1e-4, 0.0),
    "adm-lsun-bedroom-256": (256, 500_000, 1e-4, 0.1),
    "adm-lsun-horse-256": (256, 250_000, 1e-4, 0.1),
    "adm-lsun-cat-256": (256, 200_000, 1e-4, 0.1),
    "adm-imagenet-64-to-256": (256, 500_000, 1e-4, 0.0),
    "adm-imagenet-128-to-512": (256, 1_050_000, 1e-4, 0.0),
    "adm-imagenet-64-classifier": (1024, 300_000, 6e-4, 0.0),
    "adm-imagenet-128-classifier": (256, 300_000, 3e-4, 0.0),
    "adm-imagenet-256-classifier": (256, 500_000, 3e-4, 0.0),
    "adm-imagenet-512-classifier": (256, 500_000, 3e-4, 0.0),
}


@pytest.mark.parametrize(("name", "row"), TABLES.items(), ids=TABLES)
def test_tables_of_the_paper(name: str, row: tuple[int, int, float, float]) -> None:
    recipe = get(name)
    assert (recipe.train.batch, recipe.train.steps, recipe.train.lr, recipe.net.dropout) == row
    assert recipe.train.total_images == row[0] * row[1]
    assert recipe.train.precision == "fp16"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_are_the_papers(name: str) -> None:
    """One EMA of 0.9999 from the first update (classifiers: none), results with their source, and not run here."""
    recipe = get(name)
    assert recipe.measured == NOT_RUN
    assert recipe.published["source"]
    assert not recipe.train.ema_warmup
    assert recipe.train.ema_decays == (() if recipe.kind == "classifier" else (0.9999,))
    assert any(key.startswith(("FID", "accuracy")) for key in recipe.published)
    bound = recipe.objective is not None and recipe.objective.loss == "vlb"
    assert recipe.train.timesteps == ("loss-second-moment" if bound else "uniform")


def test_learning_rates_over_a_run() -> None:
    ddpm = get("ddpm-cifar10-32").train
    assert learning_rate(ddpm, 2_499 * 128) == pytest.approx(1e-4)
    assert learning_rate(ddpm, 4_999 * 128) == learning_rate(ddpm, 799_999 * 128) == pytest.approx(2e-4)
    classifier = get("adm-imagenet-128-classifier").train
    assert learning_rate(classifier, 0) == pytest.approx(3e-4)
    assert learning_rate(classifier, 150_000 * 256) == pytest.approx(1.5e-4)
    assert learning_rate(classifier, 300_000 * 256) == 0
    adm = get("adm-imagenet-256").train
    assert learning_rate(adm, 0) == learning_rate(adm, 10**8) == 1e-4


@each
def test_other_classes_and_shapes(name: str) -> None:
    recipe = get(name)
    side = 2 * recipe.net.downsampling
    other = recipe.with_shape((side, 2 * side), 4).with_classes(7)
    assert (other.data.size, other.data.channels) == ((side, 2 * side), 4)
    net = build(other.net)
    assert net.config.num_classes == 7
    assert (net.config.size, net.config.in_channels) == ((side, 2 * side), 4)
    assert (other.train, other.process, other.name) == (recipe.train, recipe.process, name)
    if recipe.kind == "diffusion":
        assert net.config.out_channels == recipe.process.out_channels(4)
        assert build(other.with_classes(None).net).conditions == net.conditions - {"y"}
    else:
        with pytest.raises(ValueError, match="labelled"):
            recipe.with_classes(None)


def test_unknown_names_are_answered_with_near_ones() -> None:
    cases = {
        "fashion-mnist": "fashion-mnist-32",
        "adm-imagnet-256": "adm-imagenet-256",
        "ADM_ImageNet_512": "adm-imagenet-512",
        "bedroom": "adm-lsun-bedroom-256",
        "classifier 128": "adm-imagenet-128-classifier",
    }
    for wrong, near in cases.items():
        with pytest.raises(ValueError, match=re.escape(repr(wrong))) as caught:
            get(wrong)
        assert near in str(caught.value)
        assert len(str(caught.value)) < 400
    for strange in ("stable diffusion", ""):
        with pytest.raises(ValueError) as caught:
            get(strange)
        assert all(name in str(caught.value) for name in names())


def test_looking_up_builds_no_network() -> None:
    """Neither importing the recipes nor making all of them creates a module."""
    code = (
        "import torch, undiffuse.training\n"
        "def refuse(self, *a, **k): raise SystemExit('a module was created')\n"
        "torch.nn.Module.__init__ = refuse\n"
        "from undiffuse import recipes\n"
        "print(len([recipes.get(n) for n in recipes.names()]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(names())


CHOICES = {16: 32, 32: 32, 48: 32, 56: 64, 64: 64, 96: 64, 112: 128, 128: 128, 256: 128}


@pytest.mark.parametrize(("size", "chosen"), CHOICES.items(), ids=str)
@pytest.mark.parametrize(("channels", "classes"), [(1, None), (3, 12)])
def test_general_recipe_for_a_folder(size: int, chosen: int, channels: int, classes: int | None) -> None:
    recipe = for_data(size, channels, classes)
    assert (recipe.name, recipe.measured) == (f"general-{chosen}", "not measured here")
    config = build(recipe.net).config
    assert (config.size, config.num_classes) == ((size, size), classes)
    assert (config.in_channels, config.out_channels) == (channels, 2 * channels)
    if classes is not None:
        paired = for_data(size, channels, classes, kind="classifier")
        assert ((paired.name,), paired.process) == (recipe.advice.guidance.classifier, recipe.process)
        assert build(paired.net).config.num_classes == classes


@pytest.mark.parametrize("size", [16, 56, 112])
def test_general_networks_run(size: int) -> None:
    x, t = torch.zeros(1, 4, size, size), torch.tensor([500.0])
    with torch.no_grad():
        assert for_data(size, 4, 2).net.build()(x, t, torch.tensor([1])).shape == (1, 8, size, size)
        assert for_data(size, 4, 2, kind="classifier").net.build()(x, t).shape == (1, 2)


def test_general_recipe_for_awkward_folders() -> None:
    wide: Recipe = for_data((32, 64), 3)
    assert (wide.name, wide.data.size) == ("general-64", (32, 64))
    assert for_data(32, 3, 1) == for_data(32, 3)  # one class says nothing
    with pytest.raises(ValueError, match="multiples of 8"):
        for_data(50, 3)
    for classes in (None, 1):
        with pytest.raises(ValueError, match="at least two classes"):
            for_data(32, 3, classes, kind="classifier")
    with pytest.raises(ValueError, match="diffusion or classifier"):
        for_data(32, 3, kind="upsampler")
    assert all("not measured here" in get(name).summary for name in GENERAL)
