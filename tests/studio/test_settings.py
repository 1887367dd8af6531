"""Settings of the page: links, records, fields of the form."""

from __future__ import annotations

from pathlib import Path

import pytest

from undiffuse.pictures import read_record
from undiffuse.pipelines import Pipeline
from undiffuse.studio.jobs import Job
from undiffuse.studio.settings import Settings, sampler_values
from undiffuse.util.errors import ConfigError

MANY = {
    "solver": "dpmpp-2m", "steps": "12", "classifier": ("a.safetensors", "b.safetensors"), "guidance": (2.0, 0.5),
    "guidance_interval": "-1,3", "clip_after_guidance": False, "cfg": 1.5,
}  # fmt: skip


def test_a_link_gives_the_settings_back() -> None:
    s = Settings(
        model="runs/a b", weights="0.99", classes=("Ankle boot", "T-shirt/top, old"), count=7, seed=2**53 + 1,
        condition=("age=30,angle=-4", "labels=a&b|c"), sampler=MANY,
    )  # fmt: skip
    assert Settings.from_query(s.to_query()) == s
    assert Settings().to_query() == ""
    assert Settings.from_query("fbclid=1&__theme=dark") == Settings()


@pytest.mark.parametrize(
    ("query", "field"),
    [("count=x", "count"), ("count=65", "count"), ("seed=-1", "seed"), ("solver=nothing", "solver"), ("eta=-1", "eta"),
     ("guidance=1,2&classifier=a", "guidance"), ("model=%20", "model")],
)  # fmt: skip
def test_a_wrong_link_names_the_setting(query: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_query(query)
    assert caught.value.field == field


def test_fields_are_read_and_defaults_left_out() -> None:
    given = {
        "solver": "", "steps": " 20 ", "guidance": "2, 0.5", "classifier": "x,y", "eta": 0, "cfg": None,
        "guidance_at": "x_t", "clip_after_guidance": True, "guidance_every": 2.0, "cfg_rescale": 0.25,
    }  # fmt: skip
    assert sampler_values(given) == {
        "steps": "20", "classifier": ("x", "y"), "guidance": (2.0, 0.5), "guidance_every": 2, "cfg_rescale": 0.25,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="guidance_every"):
        sampler_values({"guidance_every": 1.5})


def test_a_picture_gives_its_settings_back(tmp_path: Path) -> None:
    """The settings of a record make the same picture again, with the same number in its run."""
    pipeline = Pipeline.from_pretrained("fashion-mnist-32", device="cpu", solver="ddim", steps=2, guidance=1.5, eta=0.5)
    samples = pipeline.sample(3, classes=["Bag", "Coat"], seed=11, progress=False)
    samples.save(tmp_path / "s")
    file = sorted((tmp_path / "s").glob("*-000002.png"))[0]
    s = Settings.from_record(read_record(file))
    assert (s.model, s.classes, s.count, s.seed) == ("fashion-mnist-32", ("8", "4"), 3, 11)
    assert s.sampler["guidance"] == (1.5,)
    again = Pipeline.load(s.config(), "cpu").sample(s.count, s.class_list(), s.seed, progress=False)
    assert (again.images == samples.images).all()
    one = pipeline.sample(1, classes="Bag", seed=0, progress=False)
    one.save(tmp_path / "one")
    assert Settings.from_record(read_record(next((tmp_path / "one").glob("*-000000.png")))).classes == ("Bag",)


def test_a_record_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="does not say how to make an image"):
        Settings.from_record({"command": "quickstart"})


def test_a_task_takes_the_settings_that_its_command_takes() -> None:
    s = Settings(sampler={"solver": "ddpm", "steps": "9", "guidance": (2.0,), "budget": 5, "clip": "none"})
    assert set(Job(task="sample", settings=s).sampler()) == {"solver", "steps", "guidance", "budget", "clip"}
    interpolation = Job(task="interpolate", settings=s)
    assert set(interpolation.sampler()) == {"steps", "clip"}
    assert interpolation.left_out() == ["solver", "guidance", "budget"]
    assert "budget" not in Job(task="vary", settings=s).sampler()
    assert set(Job(task="translate", settings=s).sampler()) == {"steps", "guidance", "clip"}
    with pytest.raises(ConfigError, match="one class"):
        Job(task="vary", settings=s.replace(classes=("a", "b"))).one_class()
