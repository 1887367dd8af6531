"""Conditions besides the class: columns of numbers, several labels, partner pictures; paired, prepared, refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from undiffuse.conditions import ImageCondition, ModelConditions, NumberCondition, near_names, tag_vector
from undiffuse.data import ArraySource, DataConfig, batches, pass_once, split
from undiffuse.data.condition_specs import pair_names, parse_condition
from undiffuse.data.conditions import model_conditions, prepare_partner
from undiffuse.data.given_conditions import sorted_conditions, with_arrays
from undiffuse.util.errors import ConfigError


def _pictures(folder: Path, count: int = 8, size: tuple[int, int] = (16, 16), seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for i in range(count):
        made.append(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        Image.fromarray(made[-1]).save(folder / f"{i:03d}.png")
    return made


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    _pictures(tmp_path / "data")
    rows = [f"{i:03d}.png,{10 + 5 * i},{-i / 4},{'ab'[i % 2]}" for i in range(8)]
    (tmp_path / "data" / "labels.csv").write_text("file,age,angle,kind\n" + "\n".join(rows) + "\n")
    return tmp_path / "data"


def test_the_words_of_a_condition() -> None:
    assert str(parse_condition("numbers:age,angle")) == "numbers:age,angle"
    assert parse_condition("image@-1000,2000:ct/").option == "-1000,2000"
    assert parse_condition("map@19:maps/").where == "maps/"
    for wrong in ("ages", "numbers", "image", "labels@3", "picture:a/"):
        with pytest.raises(ConfigError, match="condition"):
            parse_condition(wrong)


def test_numbers_of_a_table_are_in_the_batches(numbered: Path) -> None:
    config = DataConfig(path=str(numbered), labels="none", size=16, conditions=("numbers:age,angle",))
    dataset = config.build()
    batch = next(iter(pass_once(dataset, 8)))
    assert batch.numbers is not None
    assert batch.numbers[:, 0].tolist() == [10 + 5 * i for i in range(8)]
    assert batch.numbers[:, 1].tolist() == [-i / 4 for i in range(8)]
    drawn = next(batches(dataset, 0, 8))
    assert drawn.numbers is not None
    assert drawn.numbers[:, 0].tolist() == [10 + 5 * i for i in drawn.indices.tolist()]
    # Each number stays with its picture when pictures are held out.
    halves = split(dataset.source, 0.25)
    for part in (halves.train, halves.validation):
        assert part.conditions is not None
        assert part.conditions.numbers is not None
        expected = [10 + 5 * int(part.name(i)[:3]) for i in range(len(part))]
        assert part.conditions.numbers[:, 0].tolist() == expected


def test_class_and_numbers_come_from_one_table(numbered: Path) -> None:
    config = DataConfig(path=str(numbered), labels="labels.csv:kind", size=16, conditions=("numbers:age",))
    source = config.build().source
    assert source.label_names == ["a", "b"]
    assert source.conditions is not None
    assert source.conditions.number_names == ("age",)


def test_integers_of_few_values_are_numbers_not_classes(tmp_path: Path) -> None:
    _pictures(tmp_path / "data", 6)
    text = "".join(f"{i:03d}.png,{i % 2 - 1}\n" for i in range(6))
    (tmp_path / "t.csv").write_text("file,score\n" + text)
    config = DataConfig(path=str(tmp_path / "data"), size=16, conditions=(f"numbers:{tmp_path}/t.csv:score",))
    conditions = config.build().source.conditions
    assert conditions is not None
    assert conditions.numbers is not None
    assert conditions.numbers[:, 0].tolist() == [-1, 0, -1, 0, -1, 0]


def test_unknown_columns_and_empty_cells_are_named(numbered: Path) -> None:
    with pytest.raises(ConfigError, match="has no column 'weight'; its columns are file, age, angle, kind"):
        DataConfig(path=str(numbered), labels="none", size=16, conditions=("numbers:weight",)).build()
    with pytest.raises(ValueError, match="'kind' must hold numbers, and has 'a'"):
        DataConfig(path=str(numbered), labels="none", size=16, conditions=("numbers:kind",)).build()
    text = (numbered / "labels.csv").read_text().replace("003.png,25,", "003.png,,")
    (numbered / "labels.csv").write_text(text)
    config = DataConfig(path=str(numbered), labels="none", size=16, conditions=("numbers:age",))
    with pytest.raises(ValueError, match=r"1 of 8 images lack a condition: 003.png \(no age\)"):
        config.build()
    skipping = DataConfig(**{**config.to_dict(), "on_broken": "skip"})
    source = skipping.build().source
    assert len(source) == 7
    assert [item.name for item in source.excluded] == ["003.png"]


def test_several_labels_become_tags(tmp_path: Path) -> None:
    _pictures(tmp_path / "data", 4)
    rows = "000.png,hat|scarf\n001.png,hat\n002.png,scarf\n003.png,hat\n"
    (tmp_path / "data" / "labels.csv").write_text("file,labels\n" + rows)
    batch = next(iter(pass_once(DataConfig(path=str(tmp_path / "data"), size=16, conditions=("labels",)).build(), 4)))
    assert batch.tags is not None
    assert batch.tags.tolist() == [[1, 1], [1, 0], [0, 1], [1, 0]]
    assert batch.labels is None


def test_partners_are_cut_and_mirrored_with_their_pictures(tmp_path: Path) -> None:
    pictures = _pictures(tmp_path / "data", 6, (40, 24))
    (tmp_path / "partners").mkdir()
    for i, pixels in enumerate(pictures):  # the negative of each, so that equal treatment is seen
        Image.fromarray(255 - pixels).save(tmp_path / "partners" / f"{i:03d}.bmp")
    config = DataConfig(
        path=str(tmp_path / "data"), size=16, flip=True, random_crop=True, conditions=(f"image:{tmp_path}/partners",)
    )
    dataset = config.build()
    for position in range(12):
        example = dataset.example(position)
        assert example.cond_image is not None
        wrong = np.abs(255 - example.image.astype(int) - example.cond_image.astype(int)).max()
        assert wrong <= 1, f"position {position}: the partner is cut otherwise by up to {wrong} levels"


def test_a_smaller_partner_is_brought_to_the_size_of_its_picture(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (32, 1))
    for name, scale in (("data", 1), ("small", 4)):
        (tmp_path / name).mkdir()
        Image.fromarray(ramp[::scale, ::scale]).save(tmp_path / name / "a.png")
    config = DataConfig(path=str(tmp_path / "data"), size=32, channels=1, conditions=(f"image:{tmp_path}/small",))
    example = config.build().plain(0)
    assert example.cond_image is not None
    assert np.abs(example.image.astype(int) - example.cond_image).mean() < 8


def test_maps_are_resized_by_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    _pictures(tmp_path / "data", 2, (24, 24))
    for i in range(2):
        classes = np.zeros((24, 24), dtype=np.uint8)
        classes[:, 8:16], classes[:, 16:] = 7, 255
        Image.fromarray(classes).save(tmp_path / "maps" / f"{i:03d}.png")
    config = DataConfig(path=str(tmp_path / "data"), size=8, conditions=(f"map:{tmp_path}/maps",))
    dataset = config.build()
    assert dataset.source.conditions is not None
    assert dataset.source.conditions.partners is not None
    condition = dataset.source.conditions.partners.condition
    assert condition == ImageCondition(kind="map", values=(0, 7, 255))
    places = dataset.plain(0).cond_image
    assert places is not None
    assert set(np.unique(places)) == {0, 1, 2}, "no values between the classes"
    planes = condition.tensor(places[None])
    assert planes.shape == (1, 3, 8, 8)
    assert bool((planes.sum(1) == 1).all())


def test_palettes_are_numbers_of_classes() -> None:
    picture = Image.fromarray(np.array([[0, 1], [1, 2]], dtype=np.uint8), "L")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255] + [0] * 759)
    condition = ImageCondition(kind="map", values=(0, 1, 2))
    assert prepare_partner(picture, condition, 2)[..., 0].tolist() == [[0, 1], [1, 2]]
    with pytest.raises(ValueError, match="has the value 2, which is none of its classes: 0, 1"):
        prepare_partner(picture, ImageCondition(kind="map", values=(0, 1)), 2)
    with pytest.raises(ValueError, match="one whole number in each pixel, this picture has RGB"):
        prepare_partner(picture.convert("RGB"), condition, 2)


def test_missing_partners_are_counted_and_named(tmp_path: Path) -> None:
    _pictures(tmp_path / "data", 6)
    _pictures(tmp_path / "partners", 4)
    config = DataConfig(path=str(tmp_path / "data"), size=16, conditions=(f"image:{tmp_path}/partners",))
    with pytest.raises(ValueError, match=r"2 of 6 images lack a condition: 004.png \(no partner picture\), 005.png"):
        config.build()
    assert len(DataConfig(**{**config.to_dict(), "on_broken": "skip"}).build()) == 4
    Image.new("RGB", (32, 16)).save(tmp_path / "partners" / "004.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "partners" / "005.png")
    with pytest.raises(ConfigError, match="004.png.* has 32x16 pixels .*its picture 16x16"):
        config.build()


def test_a_column_of_a_table_names_the_partners(tmp_path: Path) -> None:
    _pictures(tmp_path / "data", 3)
    _pictures(tmp_path / "other", 3, seed=1)
    rows = "".join(f"{i:03d}.png,other/{2 - i:03d}.png\n" for i in range(3))
    (tmp_path / "pairs.csv").write_text("file,sketch\n" + rows)
    config = DataConfig(path=str(tmp_path / "data"), size=16, conditions=(f"image:{tmp_path}/pairs.csv:sketch",))
    partner = config.build().plain(0).cond_image
    assert partner is not None
    assert np.array_equal(partner, np.asarray(Image.open(tmp_path / "other" / "002.png")))


def test_two_arrays_of_an_npz_are_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, sketches = rng.integers(0, 256, (5, 8, 8, 3), np.uint8), rng.integers(0, 256, (5, 8, 8), np.uint8)
    np.savez(tmp_path / "both.npz", images=images, sketches=sketches)
    np.savez(tmp_path / "sketches.npz", sketches)
    for where in ("both.npz:sketches", "sketches.npz"):
        config = DataConfig(
            path=str(tmp_path / "both.npz"), labels="none", size=8, conditions=(f"image:{tmp_path}/{where}",)
        )
        example = config.build().plain(3)
        assert example.cond_image is not None
        assert np.array_equal(example.image, images[3])
        assert np.array_equal(example.cond_image[..., 0], sketches[3])
    np.savez(tmp_path / "few.npz", sketches[:4])
    with pytest.raises(ConfigError, match="holds 4 pictures for 5 images"):
        DataConfig(path=str(tmp_path / "both.npz"), labels="none", size=8,
                   conditions=(f"image:{tmp_path}/few.npz",)).build()  # fmt: skip
    with pytest.raises(ConfigError, match="has the arrays images, sketches"):
        DataConfig(path=str(tmp_path / "both.npz"), labels="none", size=8,
                   conditions=(f"image:{tmp_path}/both.npz:maps",)).build()  # fmt: skip


def test_stems_pair_files_of_other_folders_and_endings() -> None:
    found = pair_names(["a/1.jpg", "b/2.jpg", "b/3.jpg"], ["b/2.png", "a/1.png"], "maps")
    assert found.tolist() == [1, 0, -1]
    assert pair_names(["x/1.jpg", "x/2.jpg"], ["2.png", "1.png"], "maps").tolist() == [1, 0]
    with pytest.raises(ConfigError, match="several partners have one name: 1"):
        pair_names(["1.jpg"], ["1.png", "1.bmp"], "maps")


def test_conditions_in_memory() -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    specs, arrays = sorted_conditions(
        {"numbers": {"age": [1, 2, 3, 4]}, "labels": ["a|b", "a", "b", "a"], "image": np.zeros((4, 8, 8), np.uint8)}
    )
    assert specs == ()
    source = with_arrays(ArraySource(images), arrays)
    declared = model_conditions(source.conditions)
    assert declared.widths == {"num_tags": 2, "num_numbers": 1, "cond_channels": 1}
    assert source.subset([2]).conditions is not None
    assert source.subset([2]).conditions.numbers.tolist() == [[3]]  # type: ignore[union-attr]
    assert source.fingerprint != ArraySource(images).fingerprint
    other = with_arrays(ArraySource(images), {**arrays, "numbers": {"age": [1, 2, 3, 5]}})
    assert source.fingerprint != other.fingerprint
    with pytest.raises(ConfigError, match="expected 4 numbers as 'age'"):
        with_arrays(ArraySource(images), {"numbers": {"age": [1, 2]}})
    with pytest.raises(ConfigError, match="3 pictures for 4 images"):
        with_arrays(ArraySource(images), {"image": np.zeros((3, 8, 8), np.uint8)})


def test_numbers_are_normalised_by_the_training_set_and_back() -> None:
    values = np.array([[10.0, 0], [20, 1], [60, 1]])
    condition = NumberCondition.of(("age", "sign"), values)
    normal = condition.normalised(values)
    assert abs(float(normal[:, 0].mean())) < 1e-6
    assert float(normal[:, 0].std(unbiased=False)) == pytest.approx(1, abs=1e-6)
    assert np.allclose(condition.restored(normal), values, atol=1e-4)
    assert condition.remarks(np.array([[60, 1]])) == []
    assert condition.remarks(np.array([[70, 0]])) == ["age = 70 is outside the range of the training images, 10 to 60"]
    with pytest.raises(ValueError, match="'age' is 3 for every image"):
        NumberCondition.of(("age",), np.full((4, 1), 3.0))


def test_declarations_survive_json() -> None:
    declared = ModelConditions(
        tags=("a", "b"), numbers=NumberCondition.of(("age",), np.array([[1.0], [2.0]])),
        image=ImageCondition(kind="map", values=(0, 5)),
    )  # fmt: skip
    assert ModelConditions.from_dict(declared.to_dict()) == declared
    assert ModelConditions.from_dict(None) == ModelConditions()
    assert not ModelConditions()


def test_unknown_labels_name_those_that_are_near() -> None:
    assert tag_vector(["Hat"], ["hat", "scarf"]).tolist() == [1, 0]
    with pytest.raises(ValueError, match="'scraf' is not known; did you mean scarf"):
        tag_vector(["scraf"], ["hat", "scarf"])
    assert near_names("zzz", ["hat"]) == "; expected some of hat"


def test_partners_among_the_images_are_refused(tmp_path: Path) -> None:
    _pictures(tmp_path / "images", 3)
    _pictures(tmp_path / "maps", 3)
    config = DataConfig(path=str(tmp_path), labels="none", size=16, conditions=(f"image:{tmp_path}/maps",))
    with pytest.raises(ConfigError, match="partners are among the images to train on"):
        config.build()
