"""What the page offers to copy works when it is pasted, and gives the same pixels as the page."""

from __future__ import annotations

import ast
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.variants import few
from undiffuse.cli import main
from undiffuse.cli.parser import build_parser
from undiffuse.pictures import read_samples
from undiffuse.studio.jobs import Job
from undiffuse.studio.settings import Settings
from undiffuse.studio.snippets import command, python, record_command, training_command
from undiffuse.studio.work import Workshop

FAST = {"solver": "ddim", "steps": "3", "guidance": (1.5,)}
EDIT = Settings(classes=("Bag",), seed=3, sampler=FAST)


def pixels(folder: Path) -> np.ndarray:
    return read_samples(folder).images


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "my bag.png"
    values = np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return str(path)


@pytest.fixture
def mask(tmp_path: Path) -> str:
    path = tmp_path / "mask.png"
    values = np.zeros((32, 32), np.uint8)
    values[8:20, 8:24] = 255
    Image.fromarray(values).save(path)
    return str(path)


def jobs(picture: str, mask: str) -> dict[str, Job]:
    many = Settings(
        model="a model.safetensors", weights="0.9", classes=("T-shirt/top", "it's \"$HOME\""), count=2, seed=5,
        condition=("age=30", "labels=hat|scarf"),
        sampler={"guidance": (-1.0, 2.0), "classifier": ("c1", "c2"), "guidance_interval": "-1,3",
                 "clip_after_guidance": False, "runtime": "inductor", "autoguide": "weak.safetensors"},
    )  # fmt: skip
    return {
        "many": Job(task="sample", settings=many),
        "sample": Job(task="sample", settings=Settings(classes=("Bag", "Coat"), count=3, seed=7, sampler=FAST)),
        "compare": Job(task="compare", settings=Settings(count=2, sampler=FAST),
                       other=Settings(count=2, sampler={**FAST, "guidance": (6.0,)})),
        "interpolate": Job(task="interpolate", settings=Settings(classes=("Bag",), sampler={"steps": "3"}),
                           inputs={"seeds": [0, 4], "frames": 3}),
        "inpaint": Job(task="inpaint", settings=EDIT, inputs={"images": [picture], "mask": mask, "method": "repaint"}),
        "hole": Job(task="inpaint", settings=EDIT.replace(sampler={"steps": "3"}),
                    inputs={"images": [picture], "hole": (4, 4, 8, 8), "method": "pigdm"}),
        "restore": Job(task="restore", settings=EDIT.replace(sampler={"steps": "3"}),
                       inputs={"images": [picture], "upscale": 2, "degrade": True, "method": "pigdm"}),
        "vary": Job(task="vary", settings=EDIT, inputs={"images": [picture], "strength": 0.4, "variants": 2}),
        "translate": Job(task="translate", settings=EDIT.replace(sampler={"steps": "3"}),
                         inputs={"images": [picture], "to": "Coat", "strength": 0.5}),
    }  # fmt: skip


NAMES = ["many", "sample", "compare", "interpolate", "inpaint", "hole", "restore", "vary", "translate"]


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_python_can_be_parsed(name: str, picture: str, mask: str) -> None:
    job = jobs(picture, mask)[name]
    for line in command(job).splitlines():
        words = shlex.split(line)
        assert words[0] == "undiffuse"
        args = build_parser(words[1:]).parse_args(words[1:])
        if name == "many":
            assert args.classes == ["T-shirt/top", 'it\'s "$HOME"']
            assert args.guidance == [-1.0, 2.0]
            assert args.guidance_interval == "-1,3"
            assert args.clip_after_guidance is False
            assert (args.model, args.count, args.seed) == ("a model.safetensors", 2, 5)
            assert args.condition == ["age=30", "labels=hat|scarf"]
    ast.parse(python(job))


RUN = {
    "sample": "samples", "compare": "a", "inpaint": "inpainted", "hole": "inpainted", "restore": "restored",
    "vary": "variations", "translate": "translated", "interpolate": "interpolation",
}  # fmt: skip


@pytest.mark.parametrize("name", few(RUN, count=4))
def test_what_is_pasted_gives_the_pixels_of_the_page(
    name: str, picture: str, mask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs(picture, mask)[name]
    here = tmp_path / "page"
    here.mkdir()
    events: list[str] = []
    found = Workshop("cpu").do(job, str(here), lambda kind, values: events.append(kind))
    assert "progress" in events
    page = here / "a" if name == "compare" else here

    def made(folder: Path) -> Any:
        if name == "interpolate":
            return np.asarray(Image.open(folder / "interpolation.png"))
        return pixels(folder)

    for k, way in enumerate(("command", "python")):
        place = tmp_path / f"paste{k}"
        place.mkdir()
        monkeypatch.chdir(place)
        if way == "command":
            for line in command(job).splitlines():
                assert main([*shlex.split(line)[1:]]) == 0
        else:
            exec(compile(python(job), "pasted", "exec"), {})
        np.testing.assert_array_equal(made(place / RUN[name]), made(page))
        if name == "compare":
            np.testing.assert_array_equal(made(place / "b"), made(here / "b"))
    if name == "compare":
        difference = pixels(here / "b").astype(int) - pixels(here / "a").astype(int)
        np.testing.assert_allclose(found["rms"], np.sqrt((difference**2).mean(axis=(1, 2, 3))))
        assert np.abs(found["difference"].astype(int) - 128 - difference / 2).max() <= 1
    os.chdir(tmp_path)


def test_other_commands() -> None:
    assert shlex.split(record_command("my file.png")) == ["undiffuse", "sample", "--from-record", "my file.png"]
    words = training_command("photos", "runs/a", "tiny", ["--size", "32"])
    assert words == ["train", "photos", "--recipe", "tiny", "--out", "runs/a", "--size", "32"]
    assert build_parser(words).parse_args(words).recipe == "tiny"
