"""Overrides of recipes: typed values, checked fields, and errors that list what is possible."""

from __future__ import annotations

from typing import Any

import pytest

from undiffuse.data import DataConfig
from undiffuse.recipes import Recipe, get
from undiffuse.recipes.overrides import apply
from undiffuse.util.errors import ConfigError


@pytest.fixture
def sections() -> dict[str, Any]:
    recipe: Recipe = get("smoke")
    parts = {name: getattr(recipe, name) for name in ("net", "process", "objective", "train")}
    return {**parts, "data": DataConfig(path="x")}


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("net.dropout", "0.25", 0.25),
        ("net.use_scale_shift_norm", "no", False),
        ("net.attention_resolutions", "2,4", (2, 4)),
        ("net.channel_mult", "0.5,1,2", (0.5, 1.0, 2.0)),
        ("net.attention_resolutions", "", ()),
        ("net.num_heads_upsample", "-1", -1),
        ("process.schedule", "linear", "linear"),
        ("process.steps", "4k", 4000),
        ("objective.loss", "vlb", "vlb"),
        ("train.grad_clip", "none", None),
        ("train.grad_clip", "2", 2.0),
        ("train.betas", "0.9,0.99", (0.9, 0.99)),
        ("train.save_every", "10k", 10_000),
        ("train.lr_decay", "linear", "linear"),
        ("data.background", "255,0,9", (255, 0, 9)),
        ("data.background", "9", 9),
        ("data.on_tiny", "skip", "skip"),
    ],
)
def test_values_are_read_as_their_fields_type(sections: dict[str, Any], path: str, text: str, expected: object) -> None:
    section, _, name = path.partition(".")
    value = getattr(apply(sections, {path: text})[section], name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("path", "text", "told"),
    [
        ("net.droput", "1", "did you mean net.dropout? Its fields are attention_resolutions, "),
        ("net.xyzzy", "1", "net has no field 'xyzzy'. Its fields are attention_resolutions, "),
        ("lr", "1", "expected one of net.FIELD, process.FIELD, objective.FIELD, train.FIELD, data.FIELD"),
        ("train.lr", "fast", "expected a number"),
        ("train.batch", "1.5", "expected a whole number"),
        ("train.compile", "maybe", "expected true or false"),
        ("train.betas", "0.9", "expected a list of numbers"),
        ("data.fit", "stretch", "expected crop or pad"),
        ("net.image_size", "64", "follows from size"),
        ("net.num_classes", "3", "follows from the labels"),
        ("train.seed", "3", "follows from seed"),
        ("train.precision", "fp8", "precision is one of fp32, bf16, fp16; got 'fp8'"),
        ("net.dropout", "2", "dropout must be in [0, 1)"),
    ],
)
def test_mistakes_say_what_is_possible(sections: dict[str, Any], path: str, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        apply(sections, {path: text})
    assert error.value.field == path
    assert told in error.value.text


def test_values_from_python_are_taken_as_they_are(sections: dict[str, Any]) -> None:
    out = apply(sections, {"train.lr": 3e-4, "net.channel_mult": (1, 2), "train.grad_clip": None})
    assert (out["train"].lr, out["net"].channel_mult, out["train"].grad_clip) == (3e-4, (1, 2), None)
    with pytest.raises(ConfigError, match="train.batch: batch must be at least 1"):
        apply(sections, {"train.batch": 0})


def test_a_run_ends_once(sections: dict[str, Any]) -> None:
    assert sections["train"].images is not None
    train = apply(sections, {"train.steps": "7"})["train"]
    assert (train.images, train.steps) == (None, 7)
    with pytest.raises(ValueError, match="exactly one"):
        apply(sections, {"train.steps": "7", "train.images": "70"})


def test_a_section_that_does_not_apply(sections: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="this run has no objective: a classifier has no objective"):
        apply({**sections, "objective": None}, {"objective.loss": "vlb"})


def test_fields_that_only_fit_together_change_together(sections: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="20x20 do not fit"):
        apply(sections, {"net.dropout": "0"}, {"net": {"image_size": 20, "channel_mult": (1, 2, 2, 2)}})
    net = apply(sections, {"net.channel_mult": "1,2"}, {"net": {"image_size": 20}})["net"]
    assert net.size == (20, 20)
    assert apply(sections, {})["net"] == sections["net"]
