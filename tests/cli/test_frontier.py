"""`sweep --solvers --nfe`, `sample --budget` and `tune-steps` as a user types them, on a tiny model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from support.cli_runs import call, write_classifier, write_model, write_upsampler
from support.evaluation_sets import images, save_npz
from undiffuse.frontiers import Frontier, keep
from undiffuse.models import DiffusionModel, load_diffusion, save_model
from undiffuse.pictures import read_record
from undiffuse.tuning import cache as tuned
from undiffuse.tuning import tune

SWEEP = ("sweep", "b.npz", "--model", "model.safetensors", "--extractor", "judge.safetensors", "--count", "12",
         "--device", "cpu", "--out", "sw")  # fmt: skip
SAMPLE = ("sample", "model.safetensors", "--count", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frontier")
    write_model(folder / "model.safetensors")
    write_classifier(folder / "judge.safetensors")
    save_npz(folder / "b.npz", images(50, 2, channels=1), arr_1=np.arange(50) % 3)
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(place / "cache"))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert call(*words) == 2
    return capsys.readouterr().err


def test_a_frontier_is_swept_and_sampled_from(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "needs a measured frontier of quality" in refused(capsys, *SAMPLE, "--budget", "5", "--out", "none")
    words = (*SWEEP, "--solvers", "ddim,heun", "--nfe", "2,5", "--against", "ddpm:8")
    assert call(*words) == 0
    out = capsys.readouterr().out
    assert "| ddpm 8 | 8 |" in out
    assert "ddim 2 chain, guidance 0 (1 of " in out and " left) ..." in out
    frontier = Frontier.load(place / "sw" / "frontier.json")
    assert call(*SAMPLE, "--budget", "4", "--out", "few") == 0
    told = capsys.readouterr().out
    best = frontier.best(4)
    assert best.text in told
    assert f"{best.nfe} calls, FD-judge" in told
    picture = next((place / "few").glob("*_seed*.png"))
    record = read_record(picture)
    assert (record["solver"], record["steps"], record.get("grid", "chain")) == (best.solver, best.steps, best.grid)
    assert "budget" not in record
    assert "FD-judge" in record["measured"]
    assert call("sample", "--from-record", picture, "--out", place / "x.png") == 0


def test_students_are_points_of_the_frontier_and_not_chosen_from_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_diffusion(place / "model.safetensors")
    card = {"method": "moment-matching", "calls": 2, "logsnr": [-200.0, 1.0], "anywhere": True}
    about = {"sampling": {"solver": "ddpm", "steps": "2", "grid": "trailing"}, "distillation": card}
    save_model(place / "student.safetensors", DiffusionModel(model.net, model.process, model.labels, about))
    words = (*SWEEP[:-1], "students", "--solvers", "ddim", "--nfe", "3", "--against", "ddpm:8")
    assert call(*words, "--students", "student.safetensors") == 0
    assert "| student student.safetensors, ddpm 2 trailing | 2 |" in capsys.readouterr().out
    frontier = Frontier.load(place / "students" / "frontier.json")
    (student,) = (point for point in frontier.points if point.student)
    assert (student.nfe, student.solver, student.grid) == (2, "ddpm", "trailing")
    with pytest.raises(ValueError, match="no point has 2 or fewer calls"):
        frontier.best(2)


def test_a_frontier_does_not_replace_another_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*SWEEP[:-1], "other", "--solvers", "ddim", "--nfe", "2", "--against", "none")
    assert call(*words) == 0
    text = (place / "other" / "table.md").read_text()
    assert "another sweep" in refused(capsys, *words, "--seed", "1")
    assert call(*words) == 0  # resumes
    assert (place / "other" / "table.md").read_text() == text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--budget", "0"), "whole number of at least 1"),
        (("--budget", "5", "--solver", "ddim"), "--solver cannot be combined with --budget, which chooses it"),
        (("--budget", "5", "--steps", "3"), "--steps cannot be combined with --budget, which chooses it"),
        (("--budget", "5", "--eta", "1"), "--eta cannot be combined with --budget, which chooses it"),
        (("--budget", "5", "--classifier", "judge.safetensors", "--guidance", "2"), "--scales 2"),
        (("--budget", "5", "--autoguide", "model.safetensors"), "without guidance or with one classifier"),
    ],
)
def test_what_a_budget_refuses(
    more: tuple[str, ...], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from undiffuse.frontiers import Point

    point = Point(solver="ddim", steps="2", grid="chain", nfe=2, value=1.0)
    digest = load_diffusion("model.safetensors").digest
    keep(Frontier(model=digest, metric="FD", higher_is_better=False, points=(point,)))
    assert message in refused(capsys, *SAMPLE, *more, "--out", "no")
    assert not (place / "no").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--solvers", "bosh3"), "--solvers: bosh3 chooses its number of network calls"),
        (("--solvers", "hewn"), "unknown solver 'hewn'"),
        (("--nfe", "5,5"), "different whole numbers"),
        (("--nfe", "5", "--grids", "kerras"), "unknown grid 'kerras'"),
        (("--nfe", "5", "--steps", "5"), "--steps: a frontier takes its samplers from"),
        (("--nfe", "5", "--against", "ddpm"), "--against: got 'ddpm', expected SOLVER:STEPS"),
        (("--by", "FD"), "--by requires a frontier"),
    ],
)
def test_what_is_refused(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, *SWEEP[:-2], "--out", "refused", *words)
    assert not Path("refused").exists()


def test_tuned_steps_are_printed_and_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("tune-steps", "model.safetensors", "--steps", "3", "--count", "4", "--device", "cpu")
    assert call(*words) == 0
    out = capsys.readouterr().out
    about = json.loads((place / "steps-dpmpp-2m-3.json").read_text())
    assert about["sampler"]["model"] == load_diffusion("model.safetensors").digest
    assert f"--solver dpmpp-2m --steps 3 --grid {about['grid']}" in out
    assert about["tried"][about["grid"]]["choice"] == min(tried["choice"] for tried in about["tried"].values())
    assert about["nfe"] == 3
    grid = next(spec for spec in about["tried"] if spec.startswith("at:"))
    assert call(*SAMPLE, "--solver", "dpmpp-2m", "--steps", "3", "--grid", grid, "--out", "tuned") == 0
    assert "exists already" in refused(capsys, *words)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--solver", "ddpm"), "'ddpm': expected one of ddim"),
        (("--steps", "1"), "2 or more steps"),
        (("--solver", "heun", "--solver-options", "churn=3"), "draws noise"),
        (("--classifier", "judge.safetensors", "--guidance-interval", "steps:0,0.5"), "in log-SNR or sigma"),
        (("--classifier", "judge.safetensors", "--guidance-at", "mean"), "works with the solver ddpm only"),
        (("--model", "up.safetensors"), "a super-resolution model"),
    ],
)
def test_what_cannot_be_tuned(
    more: tuple[str, ...], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "up.safetensors" in more:
        write_upsampler(place / "up.safetensors")
    else:
        more = ("model.safetensors", *more)
    words = ("tune-steps", "--steps", "3", "--count", "4", "--device", "cpu", "--out", "other.json")
    assert message in refused(capsys, *words, *more)
    assert not (place / "other.json").exists()


def test_tuned_levels_are_sampled_from_by_a_budget(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "tune", partial(tune, fine=12))  # for speed
    words = (*SWEEP[:-1], "tn", "--solvers", "dpmpp-2m", "--nfe", "3", "--grids", "tuned:images=4", "--against",
             "none")  # fmt: skip
    assert call(*words) == 0
    (point,) = Frontier.load(place / "tn" / "frontier.json").points
    capsys.readouterr()
    assert call(*SAMPLE, "--budget", "4", "--out", "by") == 0
    assert f"{point.text}: 3 calls" in capsys.readouterr().out
    picture = next((place / "by").glob("*_seed*.png"))
    record = read_record(picture)
    assert (record["solver"], record["steps"], record["grid"]) == ("dpmpp-2m", "3", point.grid)
    assert call("sample", "--from-record", picture, "--out", place / "again.png") == 0
