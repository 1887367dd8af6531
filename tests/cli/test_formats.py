"""`inspect` names the format, says what is taken and left out, and `train` says the same."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.cli_runs import call
from support.formats_made import COUNT, GREY, X, Y, write_pngs
from undiffuse.cli.parser import build_parser
from undiffuse.cli.train import request_of
from undiffuse.cli.words import in_options
from undiffuse.data import ImageDataset
from undiffuse.training.plan import TrainPlan, plan


def inspected(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert call("inspect", *words) == 0
    return capsys.readouterr().out


def commands(told: str) -> list[list[str]]:
    """The commands of `undiffuse` that a report prints."""
    return [shlex.split(line)[1:] for line in told.splitlines() if line.startswith("  undiffuse ")]


def planned(command: list[str]) -> TrainPlan:
    """What a command that `inspect` printed will do; a classifier's is printed after that of the model it is for."""
    if "--for" in command:
        at = command.index("--for")
        command = command[:at] + command[at + 2 :]
    return plan(request_of(build_parser().parse_args(command)))


def remarks(command: list[str]) -> str:
    """What `train` will say of the data, by a command that `inspect` printed."""
    return in_options("\n".join(planned(command).remarks))


def agree(told: str) -> None:
    """Every command that is printed makes a plan, and says of the data what inspect said."""
    taken = " ".join(told.partition("  taken ")[2].partition("  fingerprint")[0].split())
    assert commands(told)
    for command in commands(told):
        said = " ".join(remarks(command).split())
        assert taken in said or all(line.strip() in said for line in taken.split("  ") if line), (taken, said)


def test_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, chosen in (("train", range(8)), ("val", range(8, COUNT))):
        write_pngs(tmp_path / "data", [f"{part}/{'cat' if i % 2 else 'dog'}/{i}.png" for i in chosen], X[list(chosen)])
    told = inspected(capsys, tmp_path / "data")
    assert "format       folder of images" in told and "classes      2: cat (4), dog (4)" in told
    assert "parts not opened: val (4 images)" in told
    assert f"--validation {tmp_path / 'data'}:val" in told
    made = planned(commands(told)[0])
    assert isinstance(made.dataset, ImageDataset) and len(made.dataset) == 8
    assert made.validation is not None and len(made.validation) == 4
    agree(told)
    assert "images       4" in inspected(capsys, f"{tmp_path / 'data'}:val")


def test_files_of_other_kinds_and_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [Image.fromarray(image) for image in GREY[:4]]
    pictures[0].save(tmp_path / "a.tif", save_all=True, append_images=pictures[1:])
    (tmp_path / "b.heic").write_bytes(b"x")
    told = inspected(capsys, tmp_path)
    assert "1 file of other kinds left out: .heic (1)" in told
    assert "1 file holds 4 frames; the first of each is taken, --frames all takes all" in told
    agree(told)
    whole = inspected(capsys, tmp_path, "--frames", "all")
    assert "images       4" in whole and "--frames all" in whole
    agree(whole)
    single = inspected(capsys, tmp_path / "a.tif")
    assert "frames of one file" in single
    agree(single)


def test_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X[:2], y_test=Y[:2])
    told = inspected(capsys, tmp_path / "a.npz")
    assert "format       NumPy archive (npz)" in told and "parts not opened: test (2 images)" in told
    agree(told)
    np.savez(tmp_path / "ct.npz", images=GREY.astype(np.int16) * 10 - 1000)
    told = inspected(capsys, tmp_path / "ct.npz")
    assert "choose --range" in told and "--range=-" in told
    assert "int16" in remarks(commands(told)[0])
    agree(inspected(capsys, tmp_path / "ct.npz", "--range=-1000,1550"))
    with pytest.raises(ValueError) as caught:
        remarks(["train", str(tmp_path / "ct.npz")])
    assert "--range BLACK,WHITE" in in_options(str(caught.value))
    np.savez(tmp_path / "what.npz", images=np.zeros((2, 3, 5, 4), np.uint8))
    with pytest.raises(ValueError) as caught:
        remarks(["train", str(tmp_path / "what.npz")])
    assert "--layout HWC or --layout CHW" in in_options(str(caught.value))
    agree(inspected(capsys, tmp_path / "what.npz", "--layout", "HWC"))
    np.savez(tmp_path / "stats.npz", mu=np.zeros(4), sigma=np.zeros((4, 4)))
    assert "an npz file without images to train on" in inspected(capsys, tmp_path / "stats.npz")


def test_vectors_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "v.npz", x=X, y=np.linspace(0, 1, COUNT * 2).reshape(COUNT, 2))
    told = inspected(capsys, tmp_path / "v.npz")
    assert "none; a vector of 2 numbers per image" in told
    assert "the numbers (label[0], label[1]) are not used" in remarks(commands(told)[0])


def test_pictures_without_a_label_are_left_out_by_the_command_that_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=np.where(np.arange(COUNT) < 2, -1, Y))
    told = inspected(capsys, tmp_path / "a.npz")
    assert "left out     2: a.npz[0] (no label), a.npz[1] (no label)" in told and "--on-broken skip" in told
    agree(told)


def test_options_for_arguments() -> None:
    assert in_options('or leave them out with on_broken="skip"') == "or leave them out with --on-broken skip"
    assert in_options('say which by layout="HWC" or "CHW"') == "say which by --layout HWC or --layout CHW"
    assert in_options("raise it with max_pixels=200") == "raise it with --max-pixels 200"
    assert in_options("declare them by value_range=(black, white)") == "declare them by --range BLACK,WHITE"
