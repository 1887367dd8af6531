"""Sampling with conditions besides the class: every way to give them, guidance, records, names, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.cli_runs import call, conditional_model, one_thread, pixels, write_model, write_upsampler
from undiffuse.conditions import ImageCondition, ModelConditions, NumberCondition
from undiffuse.config import SamplerConfig
from undiffuse.models import DiffusionModel, load_diffusion, save_model
from undiffuse.pictures import read_record
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.conditioning import give_conditions
from undiffuse.pipelines.record import regenerate
from undiffuse.util.errors import ConfigError

NUMBERS = NumberCondition.of(("age", "angle"), np.array([[20.0, -90], [40, 0], [60, 90]]))
ALL = ModelConditions(tags=("hat", "scarf", "shoe"), numbers=NUMBERS, image=ImageCondition(channels=1))


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    with one_thread():
        yield


def model(conditions: ModelConditions = ALL, dropout: float = 0.1, classes: int | None = None) -> DiffusionModel:
    return conditional_model(conditions, dropout, None if classes is None else ("left", "right", "top")[:classes])


def pipeline(made: DiffusionModel | None = None, **settings: Any) -> Pipeline:
    save_model("model.safetensors", made or model())
    return Pipeline.from_pretrained("model.safetensors", device="cpu", steps="4", **settings)


def picture(name: str = "a.png", seed: int = 0, folder: str = ".") -> str:
    Path(folder).mkdir(exist_ok=True)
    pixels_of = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels_of).save(Path(folder) / name)
    return str(Path(folder) / name)


def test_text_mapping_and_table_give_the_same() -> None:
    made, where = model(), picture()
    Path("rows.csv").write_text(f"age,angle,labels,image\n30,45,hat|scarf,{where}\n")
    ways: list[Any] = [
        ["age=30,angle=45", "labels=hat|scarf", f"image:{where}"],
        {"age": 30, "angle": 45, "labels": [["hat", "scarf"]], "image": pixels(Path(where)).astype(np.uint8)},
        "rows.csv",
    ]
    rows = [give_conditions(made, way) for way in ways]
    first = rows[0]
    assert first is not None
    expected = first.tensors([0])
    assert expected["numbers"].tolist()[0] == pytest.approx([(30 - 40) / math.sqrt(800 / 3), 45 / math.sqrt(5400)])
    assert expected["tags"].tolist() == [[1, 1, 0]]
    for given in rows[1:]:
        assert given is not None
        assert all(torch.equal(value, expected[name]) for name, value in given.tensors([0]).items())


def test_image_i_has_row_i_whatever_the_batch() -> None:
    pipe = pipeline()
    condition = {
        "age": [20, 40, 60],
        "angle": 0,
        "labels": ["hat", "scarf", "shoe"],
        "image": np.zeros((8, 8), np.uint8),
    }
    whole = pipe.sample(condition=condition, progress=False)
    assert len(whole) == 3
    single = pipe.sample(3, condition=condition, batch=1, progress=False)
    assert np.array_equal(whole.numpy(), single.numpy())
    second = pipe.sample(1, first=1, condition={**condition, "age": [40], "labels": "scarf"}, progress=False)
    assert np.array_equal(second.numpy()[0], whole.numpy()[1])
    other = pipe.sample(condition={**condition, "age": [20, 41, 60]}, progress=False)
    assert np.array_equal(other.numpy()[0], whole.numpy()[0])
    assert not np.array_equal(other.numpy()[1], whole.numpy()[1])


def test_guidance_works_with_every_condition() -> None:
    made = model(classes=3)
    plain, guided = pipeline(made), pipeline(made, cfg=3.0)
    for condition in ({"age": 60}, {"labels": "hat"}, {"image": np.full((8, 8), 200, np.uint8)}):
        images = [p.sample(1, classes=0, condition=condition, progress=False).numpy() for p in (plain, guided)]
        assert not np.array_equal(*images), condition
    none = plain.sample(1, classes=0, progress=False).numpy()
    zero = pipeline(made, cfg=0.0).sample(1, classes=0, condition={"age": 60}, progress=False).numpy()
    unconditional = made.denoiser()
    assert unconditional.conditions == {"y", "tags", "numbers", "cond_image"}
    assert not np.array_equal(none, zero), "scale 0 leaves the class out as well"
    with pytest.raises(ConfigError, match="requires a model trained with label dropout"):
        pipeline(model(dropout=0.0), cfg=2.0)


def test_conditions_left_out_are_remarks_or_errors() -> None:
    samples = pipeline().sample(2, condition="age=30", progress=False)
    assert samples.remarks == (
        "not given: the number 'angle', labels (of hat, scarf, shoe), a picture (image); the model chooses",
    )
    assert pipeline().sample(1, condition="age=70", progress=False).remarks[0] == (
        "age = 70 is outside the range of the training images, 20 to 60"
    )
    strict = pipeline(model(dropout=0.0))
    with pytest.raises(ConfigError, match="condition is missing: the model needs the number 'angle', labels"):
        strict.sample(1, condition="age=30", progress=False)
    with pytest.raises(ConfigError, match="condition is missing"):
        strict.sample(1, progress=False)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("agee=30", "takes no condition 'agee'; did you mean age"),
        ("labels=scraf", "'scraf' is not known; did you mean scarf"),
        ("age=old", "age = 'old' is not a finite number"),
        ("nothing", "'nothing' is not possible; expected NAME=VALUE, image:PATH, or a table"),
        ({"age": [1, 2, 3], "angle": [1, 2]}, "gives 3 of age, 2 of angle"),
        ("image:none.png", "there is no folder or file none.png|none.png"),
        ("map.csv", "there is no table map.csv"),
        (["age=30", "age=40"], "gives 'age' twice"),
    ],
)
def test_unclear_conditions_are_refused(condition: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        give_conditions(model(), condition)


def test_tables_are_read_by_their_columns() -> None:
    picture("x.png", 1, "pics")
    picture("y.png", 2, "pics")
    Path("pics/rows.csv").write_text(
        "name,age,hat,scarf,class,image\nfirst,20,1,0,left,x.png\nsecond,,1,1,right,y.png\n"
    )
    made = model(classes=3)
    given = give_conditions(made, "pics/rows.csv")
    assert given is not None
    assert given.classes == (0, 1)
    assert given.names == ("first", "second")
    assert given.tags is not None
    assert given.tags.tolist() == [[1, 0, 0], [1, 1, 0]]
    assert given.numbers is not None
    assert np.isnan(given.numbers).tolist() == [[False, True], [True, True]]
    assert given.picture_names == ("x.png", "y.png")
    samples = pipeline(made).sample(condition="pics/rows.csv", progress=False)
    assert samples.labels == [0, 1]
    samples.save("out")
    assert {file.name for file in Path("out").iterdir()} == {"first.png", "second.png", "grid.png", "run.json"}
    with pytest.raises(ConfigError, match="gives the class of each image, and `classes` does too"):
        pipeline(made).sample(condition="pics/rows.csv", classes="top", progress=False)
    Path("pics/rows.csv").write_text("age,wdth\n1,2\n")
    with pytest.raises(ConfigError, match="column 'wdth': the model takes no condition 'wdth'"):
        give_conditions(made, "pics/rows.csv")
    Path("pics/rows.csv").write_text("image\nx.png\nz.png\n")
    with pytest.raises(ConfigError, match="1 of 2 pictures are missing: pics/z.png"):
        give_conditions(made, "pics/rows.csv")


def test_pictures_keep_their_names_and_are_made_again_from_their_records() -> None:
    save_model("model.safetensors", model())
    for k in range(3):
        picture(f"p{k}.png", k, "pics")
    words = ("sample", "model.safetensors", "--steps", 4, "--device", "cpu", "--condition", "age=30,angle=45")
    more = ("--condition", "labels=hat|scarf", "--condition", "image:pics", "--out", "out", "--cfg", 2)
    assert call(*words, *more) == 0
    assert {file.name for file in Path("out").glob("p*.png")} == {"p0.png", "p1.png", "p2.png"}
    record = read_record(Path("out/p1.png"))
    assert record["condition"]["numbers"] == {"age": 30.0, "angle": 45.0}
    assert record["condition"]["labels"] == ["hat", "scarf"]
    assert record["condition"]["image"] == "p1.png"
    again = regenerate("out/p1.png", device="cpu")
    assert again.difference == 0
    Path("pics").rename("moved")
    with pytest.raises(ConfigError, match="pics"):
        regenerate("out/p1.png", device="cpu")
    assert regenerate("out/p1.png", condition="moved", device="cpu").difference == 0
    assert regenerate("out/p1.png", condition="moved/p1.png", device="cpu").difference == 0
    with pytest.raises(ConfigError, match="p1.png is not the one"):
        regenerate("out/p1.png", condition="moved/p0.png", device="cpu")
    assert call("sample", "--from-record", "out/p1.png", "--condition", "image:moved", "--out", "again.png") == 0


def test_a_run_with_other_conditions_does_not_resume() -> None:
    save_model("model.safetensors", model(ModelConditions(numbers=NUMBERS)))
    words = ("sample", "model.safetensors", "--steps", 3, "--device", "cpu", "--out", "out", "--count")
    assert call(*words, 2, "--condition", "age=30,angle=0") == 0
    assert call(*words, 4, "--condition", "age=30,angle=0") == 0
    assert len(list(Path("out").glob("*seed0*.png"))) == 4
    assert call(*words, 4, "--condition", "age=31,angle=0") != 0


def test_maps_are_seen_as_their_classes() -> None:
    made = model(ModelConditions(image=ImageCondition(kind="map", values=(0, 7))))
    given = give_conditions(made, {"image": np.array([[0, 7], [7, 0]], np.uint8)})
    assert given is not None
    seen = given.tensors([0])["cond_image"]
    assert seen.shape == (1, 2, 8, 8)
    assert seen[0, 1].sum() == 32
    with pytest.raises(ConfigError, match="has the value 9, which is none of its classes: 0, 7"):
        given_wrong = give_conditions(made, {"image": np.full((2, 2), 9, np.uint8)})
        assert given_wrong is not None
        given_wrong.tensors([0])


def test_super_resolution_takes_its_small_images_as_a_condition() -> None:
    up = Pipeline.from_pretrained(str(write_upsampler(Path("up.safetensors"))), device="cpu", steps="3")
    small = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), dtype=np.uint8)
    expected = up.sample(low_res=small, progress=False).numpy()
    assert np.array_equal(up.sample(condition={"image": small}, progress=False).numpy(), expected)
    with pytest.raises(ConfigError, match="gives the images to enlarge twice"):
        up.sample(condition={"image": small}, low_res=small, progress=False)
    Path("small").mkdir()
    for k in range(2):
        Image.fromarray(small[k, ..., 0]).save(f"small/{k}.png")
    for way, out in ((("--low-res", "small"), "a"), (("--condition", "image:small"), "b")):
        assert call("sample", "up.safetensors", "--steps", 3, "--device", "cpu", *way, "--out", out) == 0
    files = ["0.png", "1.png"]  # the names of the small images
    assert all(np.array_equal(pixels(Path("a") / name), pixels(Path("b") / name)) for name in files)
    of_folder = up.sample(condition="image:small", progress=False)
    assert np.array_equal(of_folder.numpy(), expected)
    one = ("--condition", "image:small/1.png", "--count", 2)  # a single picture, enlarged twice
    assert call("sample", "up.safetensors", "--steps", 3, "--device", "cpu", *one, "--out", "c") == 0
    of_one = up.sample(2, condition=["image:small/1.png"], progress=False)
    assert np.array_equal(of_one.numpy(), up.sample(2, low_res=small[1:], progress=False).numpy())
    of_one.save("d")
    made = sorted(Path("c").glob("1*.png"))
    assert [np.asarray(Image.open(file)).tolist() for file in made] == of_one.images[..., 0].tolist()
    again = call("sample", "--from-record", sorted(Path("d").glob("*-000001.png"))[0], "--out", "again.png")
    assert again == 0
    assert np.array_equal(np.asarray(Image.open("again.png")), of_one.images[1, ..., 0])


def test_models_without_conditions_refuse_them() -> None:
    plain = load_diffusion(write_model(Path("plain.safetensors")))
    assert plain.conditions == ModelConditions()
    assert plain.null_conditions == {}
    with pytest.raises(ConfigError, match="takes no conditions besides a class, so none called 'age'"):
        give_conditions(plain, "age=30")
    assert Pipeline.load(SamplerConfig(steps="2"), "cpu", model=plain).sample(1, progress=False).remarks == ()
