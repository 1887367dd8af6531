"""Training by recipe: what a plan makes of a request and data, before a run begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from undiffuse import recipes
from undiffuse.data import ArraySource, open_data
from undiffuse.data.probe import DataProbe
from undiffuse.training import TrainConfig, TrainPlan, TrainRequest
from undiffuse.training import plan as make_plan
from undiffuse.training.estimate import disk_bytes
from undiffuse.training.plan import _default_folder
from undiffuse.training.request import RunFolderError, is_run_folder, read_request, write_request
from undiffuse.util.errors import ConfigError


def plan(data: object, **request: Any) -> TrainPlan:
    return make_plan(TrainRequest(data=str(data)).changed(request))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(4):
        Image.new("L", (32, 32), k).save(folder / f"large{k}.png")
    Image.new("L", (40, 20)).save(folder / "small.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


def test_remarks_name_what_is_left_out_and_what_is_enlarged(photos: Path) -> None:
    left, enlarged, cropped = plan(photos, size=32, on_broken="skip").remarks
    assert left.startswith("left out 1 image: bad.png (")
    assert enlarged.startswith("1 image is smaller than 32x32 (height x width) and enlarged: small.png (20x40).")
    assert cropped.startswith("1 image is cropped by more than 10 % to the shape 32x32: of 20x40 (height x width), 50")
    (photos / "bad.png").unlink()
    (photos / "small.png").unlink()
    assert plan(photos, size=16).remarks == []


def test_tiny_images_are_left_out_or_refused_as_asked(photos: Path) -> None:
    skipping = plan(photos, size=32, on_broken="skip", on_tiny="skip")
    assert len(skipping.dataset) == 4
    assert skipping.dataset.config.on_tiny == "skip"
    (left,) = skipping.remarks
    assert left.startswith("left out 2 images: bad.png (")
    assert "small.png (20x40 is tiny)" in left
    with pytest.raises(ValueError, match=r"smaller than 32x32.*small\.png \(20x40\).*on_tiny"):
        plan(photos, size=32, on_broken="skip", on_tiny="refuse")


def test_a_classifier_without_labels_hears_of_labels(photos: Path) -> None:
    with pytest.raises(ConfigError, match=r"^labels: .*has no labels.*\"prefix\".*FILE\.csv"):
        plan(photos, kind="classifier", on_broken="skip")


@pytest.mark.parametrize(
    ("size", "whole"),
    [((32, 32), None), ((64, 32), (32, 64)), ((32, 64), (64, 32)), ((320, 180), (64, 112)), ((33, 32), None)],
)
def test_a_size_that_keeps_images_whole_can_be_trained(
    size: tuple[int, int], whole: tuple[int, int] | None, tmp_path: Path
) -> None:
    for k in range(2):
        Image.new("L", size).save(tmp_path / f"{k}.png")
    assert DataProbe(open_data(tmp_path, check="none")).whole_size == whole
    if whole is not None:
        assert plan(tmp_path, size=whole, labels="none").dataset.shape[:2] == whole


def array(count: int = 20, channels: int = 3, classes: int | None = 2) -> ArraySource:
    images = np.random.default_rng(0).integers(0, 255, (count, 8, 8, channels), dtype=np.uint8)
    if classes is None:
        return ArraySource(images)
    return ArraySource(images, np.arange(count) % classes, [str(k) for k in range(classes)])


@pytest.mark.parametrize(("ground", "border"), [("white", 255), ("black", 0), ("transparent", 255), ("grey", 0)])
def test_a_border_continues_the_ground_of_the_pictures(tmp_path: Path, ground: str, border: int) -> None:
    """Black bars beside pictures on white would be learned."""
    for k in range(6):
        picture = Image.new("RGBA", (48, 30), (0, 0, 0, 0) if ground == "transparent" else ground)
        picture.paste((200, 30, 30, 255), (15, 8, 30, 20))
        picture.save(tmp_path / f"{k}.png")
    made = plan(tmp_path, recipe="tiny", size=16, fit="pad", batch=4)
    assert made.dataset.config.pad_value == border
    assert set(np.unique(made.dataset.plain(0).image[0])) == {border}
    (tmp_path / "run").mkdir()
    begun = {"data": {"config": {"fit": "pad", "pad_value": 9}}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(begun))
    resumed = plan(tmp_path, recipe="tiny", size=16, fit="pad", batch=4, out=str(tmp_path / "run"))
    assert resumed.dataset.config.pad_value == 9
    chosen = plan(tmp_path, recipe="tiny", size=16, fit="pad", batch=4, overrides={"data.pad_value": 7})
    assert chosen.dataset.config.pad_value == 7


def test_data_in_memory_and_a_share_held_out() -> None:
    made = make_plan(TrainRequest(data="mine", recipe="tiny", size=16, validation=0.2, batch=4), array())
    assert made.dataset.shape == (16, 16, 3)
    assert made.validation is not None
    assert (len(made.dataset), len(made.validation), made.labels) == (16, 4, ["0", "1"])
    assert made.recipe.net.num_classes == 2
    free = make_plan(TrainRequest(data="mine", recipe="tiny", size=16, unconditional=True, batch=4), array())
    assert free.labels is None
    assert free.recipe.net.num_classes is None


def test_tiny_is_small_and_takes_any_channels() -> None:
    for channels in (1, 3):
        made = make_plan(TrainRequest(data="mine", recipe="tiny", batch=4), array(channels=channels))
        parameters = sum(p.numel() for p in made.build_task().net.parameters())
        assert 0.8e6 < parameters < 1.2e6
        assert made.dataset.shape == (32, 32, channels)


@pytest.mark.parametrize("recipe", ["general-32", "tiny", "ddpm-cifar10-32", None])
def test_width_makes_a_network_of_another_size(recipe: str | None) -> None:
    classes = None if recipe == "ddpm-cifar10-32" else 2
    request = TrainRequest(data="mine", recipe=recipe, width=24, size=32, batch=4)
    task = make_plan(request, array(classes=classes)).build_task()
    assert task.net.config.model_channels == 24
    with pytest.raises(ConfigError, match="^width: expected a number of channels of at least 1"):
        make_plan(TrainRequest(data="mine", recipe=recipe, width=0, size=32, batch=4), array(classes=classes))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"recipe": "general-32-classifier"}, "^recipe: general-32-classifier is for a classifier: use kind='class"),
        ({"overrides": {"train.lr": "fast"}}, "^train.lr: expected a number"),
        ({"images": 5, "steps": 5}, "^steps: the length of the run is given by images"),
        ({"channels": 0}, "^channels: expected 1"),
        ({"kind": "text"}, "^kind: expected diffusion or classifier"),
        ({"unconditional": True, "label_dropout": 0.1}, "^label_dropout: an unconditional model"),
    ],
)
def test_errors_name_the_argument(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(TrainRequest(data="mine", **request_), array())


def test_disk_space_is_estimated_from_the_checkpoints() -> None:
    config = TrainConfig(batch=10, images=1000, ema_decays=(0.9, 0.99), keep=2)
    one, everything = disk_bytes(1_000_000, config)
    assert one == 4_000_000 * 5  # weights, two moments, two averages
    assert everything == 3 * one + 4_000_000
    assert disk_bytes(1_000_000, TrainConfig(batch=10, images=1000, milestones=100))[1] > everything


def test_a_request_is_kept_in_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    request = TrainRequest(
        data=str(tmp_path / "photos"), size=(8, 16), overrides={"train.lr": 1e-3, "train.ema_decays": (0.9,)}, seed=3
    )
    write_request(tmp_path / "run", request)
    again = read_request(tmp_path / "run")
    assert again.to_dict() == {**request.to_dict(), "out": str(tmp_path / "run"), "overrides": {
        "train.lr": 1e-3, "train.ema_decays": [0.9]}}  # fmt: skip
    assert again.changed({"images": 5, "seed": None}).to_dict() == {**again.to_dict(), "images": 5}
    assert again.changed({"steps": 2}).changed({"images": 5}).steps is None
    with pytest.raises(ConfigError, match="^resume: .* has no run.json: it is no run"):
        read_request(tmp_path)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"request": {"colour": "red"}}))
    with pytest.raises(ConfigError, match="^resume: .*run.json cannot be read"):
        read_request(tmp_path / "run")
    write_request(tmp_path / "run", request, stored=False)
    with pytest.raises(ConfigError, match="was in memory"):
        read_request(tmp_path / "run")
    assert read_request(tmp_path / "run", data_given=True).seed == 3


def test_a_run_is_not_taken_for_images(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "previews").mkdir(parents=True)
    Image.new("L", (8, 8)).save(run / "previews" / "a.png")
    assert not is_run_folder(run)
    write_request(run, TrainRequest(data="x"))
    assert is_run_folder(run)
    with pytest.raises(RunFolderError, match="is a training run, not images; resume it with resume="):
        plan(run)


def test_every_recipe_of_ones_own_data_can_be_planned() -> None:
    for name in recipes.names():
        recipe = recipes.get(name)
        if name.startswith(("general", "tiny")):
            made = make_plan(TrainRequest(data="mine", kind=recipe.kind, recipe=name, batch=4), array(40, classes=3))
            assert made.recipe.name == name


def test_a_classifier_is_named_after_the_model_that_it_guides(tmp_path: Path) -> None:
    run = tmp_path / "emo"
    run.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (run / name).write_text("{}\n")
    recipe = recipes.get("general-32-classifier")
    named = TrainRequest(data="photos", kind="classifier", partner=str(run))
    assert _default_folder(named, recipe) == Path("runs/emo-classifier")
    assert _default_folder(TrainRequest(data="photos", kind="classifier"), recipe) == Path("runs/photos-classifier")
