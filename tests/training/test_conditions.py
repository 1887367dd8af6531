"""Training with conditions besides the class: what is dropped, resuming, networks of one's own, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from support.cli_runs import one_thread
from support.training_runs import Recorder, assert_same_run
from undiffuse import recipes
from undiffuse.conditions import ImageCondition, ModelConditions, NumberCondition
from undiffuse.data import ArraySource, Batch
from undiffuse.models import load_diffusion
from undiffuse.nets import DDPMConfig
from undiffuse.noise import NoiseSource
from undiffuse.training.conditions import condition_tensors, drop_conditions
from undiffuse.training.face import TrainResult, train
from undiffuse.training.plan import plan
from undiffuse.training.request import TrainRequest, read_request
from undiffuse.util.errors import ConfigError

RNG = np.random.default_rng(0)
AGES = np.linspace(20, 80, 24)
IMAGES = np.clip(AGES[:, None, None] + RNG.normal(0, 4, (24, 8, 8)), 0, 255).astype(np.uint8)
CONDITION: dict[str, Any] = {
    "numbers": {"age": AGES, "side": np.arange(24) % 5}, "labels": ["a|b" if k % 3 else "a" for k in range(24)],
    "image": 255 - IMAGES,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "recipe": "tiny", "size": 8, "width": 8, "batch": 4, "images": 16, "device": "cpu", "progress": False,
    "ema_decays": (0.9,), "preview_steps": 2, "preview_count": 3, "flip": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    with one_thread():
        yield


def small(data: Any = None, **changes: Any) -> TrainResult:
    return train(IMAGES if data is None else data, **{**SMALL, **changes})


def test_everything_at_once_is_trained_and_is_in_the_file() -> None:
    result = small(out="run", labels=np.arange(24) % 3, condition=CONDITION, validation=0.2, validate_every=16)
    model = load_diffusion("run/model.safetensors")
    assert model.num_classes == 3
    assert model.null_class == 3
    found = model.conditions
    assert found.tags == ("a", "b")
    assert found.numbers is not None
    assert found.numbers.names == ("age", "side")
    assert found.image == ImageCondition(kind="image", channels=1)
    assert set(model.null_conditions) == {"y", "tags", "numbers", "cond_image"}
    assert model.manifest["objective"]["label_dropout"] == 0.1
    assert (model.spec.num_tags, model.spec.num_numbers, model.spec.cond_channels) == (2, 2, 1)
    assert [record["kind"] for record in result.records if record["kind"] in ("validation", "preview")]


def test_a_resumed_run_is_the_same_bit_for_bit() -> None:
    small(out="whole", labels=np.arange(24) % 3, condition=CONDITION, images=32, save_every=16)

    def stop(record: Any) -> None:
        if record.kind == "save" and record.images == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(out="stopped", labels=np.arange(24) % 3, condition=CONDITION, images=32, save_every=16, callbacks=[stop])
    small(out="stopped", labels=np.arange(24) % 3, condition=CONDITION, images=32, save_every=16)
    assert_same_run(Path("whole"), Path("stopped"))
    with pytest.raises(ValueError, match="begun with other settings"):
        small(out="whole", labels=np.arange(24) % 3, condition={"numbers": {"age": AGES + 1}}, images=32)


def _rows(count: int = 4000) -> dict[str, Tensor]:
    return {
        "numbers": torch.randn(count, 2), "tags": torch.zeros(count, 3), "cond_image": torch.randn(count, 1, 2, 2)
    }  # fmt: skip


def test_one_condition_is_dropped_with_its_share_and_several_together_too() -> None:
    positions = torch.arange(4000)
    labels = torch.zeros(4000, dtype=torch.int64)
    alone, kept = drop_conditions({"tags": torch.zeros(4000, 3)}, None, None, 0.2, NoiseSource(0, positions))
    assert kept is None
    assert float(alone["tags"].isnan().any(1).float().mean()) == pytest.approx(0.2, abs=0.03)
    cond, classes = drop_conditions(_rows(), labels, 7, 0.2, NoiseSource(0, positions))
    assert classes is not None
    gone = {
        "y": classes == 7, "age": cond["numbers"][:, 0].isnan(), "side": cond["numbers"][:, 1].isnan(),
        "tags": cond["tags"].isnan().all(1), "image": cond["cond_image"].isnan().flatten(1).all(1),
    }  # fmt: skip
    for name, dropped in gone.items():  # alone or with all
        assert float(dropped.float().mean()) == pytest.approx(1 - 0.8 * 0.8, abs=0.04), name
    every = torch.stack(list(gone.values())).all(0)
    assert float(every.float().mean()) == pytest.approx(0.2, abs=0.03)
    partly = cond["cond_image"].isnan().flatten(1)
    assert bool((partly.all(1) == partly.any(1)).all()), "a picture is dropped as a whole"


def test_what_is_dropped_depends_on_the_image_and_not_on_the_batch() -> None:
    rows = _rows(64)
    whole, _ = drop_conditions(rows, None, None, 0.3, NoiseSource(5, torch.arange(100, 164)))
    part, _ = drop_conditions(
        {name: value[16:32] for name, value in rows.items()}, None, None, 0.3, NoiseSource(5, torch.arange(116, 132))
    )
    for name, value in part.items():
        assert torch.equal(value.isnan(), whole[name][16:32].isnan())
        assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(whole[name][16:32]))


def test_class_labels_alone_are_dropped_as_before() -> None:
    positions, labels = torch.arange(50), torch.arange(50) % 3
    _, kept = drop_conditions({}, labels, 3, 0.3, NoiseSource(2, positions))
    expected = torch.where(NoiseSource(2, positions).uniform(0, "label") < 0.3, 3, labels)
    assert kept is not None
    assert torch.equal(kept, expected)


def test_tensors_are_normalised_and_maps_are_planes() -> None:
    declared = ModelConditions(
        numbers=NumberCondition.of(("age",), np.array([[20.0], [40.0]])),
        image=ImageCondition(kind="map", values=(0, 9)),
    )
    batch = Batch(
        images=torch.zeros(0), labels=None, positions=torch.zeros(2), indices=torch.zeros(2), names=("a", "b"),
        numbers=torch.tensor([[20.0], [math.nan]]), cond_images=torch.tensor([[[[0]]], [[[1]]]], dtype=torch.uint8),
    )  # fmt: skip
    found = condition_tensors(declared, batch, "cpu")
    assert found["numbers"][0].item() == pytest.approx(-1)
    assert bool(found["numbers"][1].isnan())
    assert found["cond_image"].flatten(1).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="conditioned on .*age.*, but the data have no numbers"):
        condition_tensors(declared, Batch(**{**vars(batch), "numbers": None}), "cpu")


def test_labels_are_used_only_if_they_are_named() -> None:
    result = small(out="a", labels=np.arange(24) % 3, condition={"numbers": {"age": AGES}})
    assert result.model.num_classes == 3, "labels that are given are meant"
    files = Path("data")
    for k in range(4):
        (files / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[k]).save(files / "ab"[k % 2] / f"{k}.png")
    (files / "labels.csv").write_text("file,age\n" + "".join(f"{'ab'[k % 2]}/{k}.png,{k}\n" for k in range(4)))
    request = TrainRequest(data="data", recipe="tiny", size=8, channels=1, condition=("numbers:age",), batch=2)
    assert plan(request).recipe.net.num_classes is None  # type: ignore[union-attr]
    named = plan(request.changed({"condition": ("labels", "numbers:age"), "labels": "folder"}))
    assert named.recipe.net.num_classes == 2  # type: ignore[union-attr]
    assert named.recipe.net.null_class  # type: ignore[union-attr]
    assert named.conditions.text() == "numbers age (0 to 3)"


class Own(nn.Module):
    """A network of one's own that takes numbers, and no classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.age = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(1, 1)

    def forward(self, x: Tensor, t: Tensor, numbers: Tensor | None = None) -> Tensor:
        shift = 0 if numbers is None else self.age(torch.nan_to_num(numbers))[:, :, None, None]
        return self.conv(x) + shift


def test_a_network_of_ones_own_takes_what_it_names() -> None:
    own = {**SMALL, "width": None}
    result = train(IMAGES, out="own", model=Own(), condition={"numbers": {"age": AGES}}, **own)
    assert result.plan.spec is not None
    assert result.plan.spec.num_numbers == 1
    assert result.plan.recipe.label_dropout == 0.0
    assert result.model.conditions.numbers is not None
    with pytest.raises(ConfigError, match="Own does not take tags"):
        train(IMAGES, out="b", model=Own(), condition={"labels": CONDITION["labels"]}, **own)
    with pytest.raises(ConfigError, match="names labels, which the network does not take"):
        train(IMAGES, out="c", model=Own(), labels=np.arange(24) % 3, condition={"labels": True}, **own)
    remarks = plan(TrainRequest(data="memory", recipe="tiny", size=8, channels=1), _labelled(), Own()).remarks
    assert any("labels of the data (3 classes) are not used: the network takes no `y`" in text for text in remarks)


def _labelled() -> Any:
    return ArraySource(IMAGES, np.arange(24) % 3, ["a", "b", "c"])


def test_unused_labels_and_numbers_are_said() -> None:
    Path("data").mkdir()
    for k in range(4):
        Image.fromarray(IMAGES[k]).save(f"data/{k}.png")
    rows = [f"{k}.png,{'hat|scarf' if k % 2 else 'hat'}\n" for k in range(4)]
    Path("data/labels.csv").write_text("file,labels\n" + "".join(rows))
    remarks = plan(TrainRequest(data="data", recipe="tiny", size=8, batch=2)).remarks
    assert any('(hat, scarf) are not used: condition="labels" conditions' in text for text in remarks)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"condition: the number 'age' is 1 for every image"):
        small(condition={"numbers": {"age": np.ones(24)}})
    other = replace(recipes.get("tiny"), net=DDPMConfig(image_size=8, model_channels=32))
    with pytest.raises(ConfigError, match="needs ADM's U-Net, and the recipe tiny has another network"):
        other.with_conditions({"num_numbers": 1}, 0.1)
    with pytest.raises(ConfigError, match="'depth' is not possible; expected labels, numbers, image or map"):
        small(condition={"depth": AGES})
    with pytest.raises(ConfigError, match="condition is not possible: an unconditional model has no conditions"):
        small(condition={"numbers": {"age": AGES}}, unconditional=True)
    with pytest.raises(ConfigError, match="needs data with a length|is in memory and the data are not"):
        train("nowhere", condition={"numbers": {"age": AGES}}, **SMALL)


def test_fine_tuning_keeps_the_conditions_and_their_normalisation() -> None:
    small(out="first", condition={"numbers": {"age": AGES}})
    base = {name: value for name, value in SMALL.items() if name not in ("recipe", "width")}
    shifted = {"numbers": {"age": AGES + 5}}
    result = train(IMAGES, model="first/model.safetensors", out="second", condition=shifted, **base)
    assert result.model.conditions == load_diffusion("first/model.safetensors").conditions
    with pytest.raises(ConfigError, match="is conditioned on numbers age .*, the data give nothing but the class"):
        train(IMAGES, model="first/model.safetensors", out="third", **base)


def test_runs_are_resumed_from_any_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("data", "maps"):
        Path(name).mkdir()
        for k in range(4):
            Image.fromarray(IMAGES[k] // 40 if name == "maps" else IMAGES[k]).save(f"{name}/{k}.png")
    recorder = Recorder()
    options = {**SMALL, "batch": 2, "images": 4}
    train("data", out="run", condition="map:maps", callbacks=[recorder], **options)
    (Path("elsewhere")).mkdir()
    monkeypatch.chdir("elsewhere")
    again = train(resume="../run", images=8, progress=False)
    assert again.outcome.images == 8
    assert read_request("../run").condition[0] == f"map:{Path('../maps').resolve()}"


def test_super_resolution_is_a_condition_made_from_the_pictures() -> None:
    result = small(out="up", condition="low_res:4")
    model = result.model
    assert model.spec.super_resolution
    assert model.manifest["objective"]["low_size"] == [4, 4]
    pictures = result.pipeline(steps="2").sample(condition={"image": IMAGES[:2, ::2, ::2, None]}, progress=False)
    assert len(pictures) == 2
    with pytest.raises(ConfigError, match="low_res:8 must be smaller than the images, 8x8"):
        small(out="b", condition="low_res:8")
    with pytest.raises(ConfigError, match="must say the shorter side"):
        small(condition="low_res:half")
