"""`sweep --solvers --calls`, `sample --budget` and `tune-steps` as a user types them, on a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from cli_runs import call, write_classifier, write_model
from evaluation_sets import images, save_npz
from undiffuse.cli.frontier import steps_within
from undiffuse.cli.tune_steps import verdict
from undiffuse.evaluation import Report
from undiffuse.frontiers import Frontier, known
from undiffuse.methods import METHODS
from undiffuse.models import load_diffusion
from undiffuse.pictures import read_record
from undiffuse.tuning import Measured, Tuned

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


def test_steps_that_a_budget_has_room_for() -> None:
    assert [steps_within(name, 10) for name in ("ddim", "dpmpp-2m", "heun", "dpmpp-3m", "pndm")] == [10, 10, 5, 9, 4]
    assert steps_within("pndm", 20) == 11
    assert steps_within("restart", 10) == 1
    for name, method in METHODS.items():
        if name != "adaptive":
            steps = steps_within(name, 30)
            assert steps is not None
            assert (method.calls(steps, method.settings()) or 99) <= 30


def test_a_frontier_is_swept_kept_and_sampled_from(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*SWEEP, "--solvers", "ddim,heun", "--calls", "2,5", "--grids", "own", "logsnr", "--against", "ancestral:8")
    assert "no frontier of quality" in refused(capsys, *SAMPLE, "--budget", "5", "--out", "none")
    assert call(*words) == 0
    out = capsys.readouterr().out
    frontier = Frontier.load(place / "sw" / "frontier.json")
    assert frontier.model == load_diffusion("model.safetensors").digest
    assert known(frontier.model) == frontier
    found = [(p.solver, p.steps, p.grid, p.calls) for p in frontier.points]
    assert found == [
        ("ddim", "2", "chain", 2), ("ddim", "5", "chain", 5), ("ddim", "2", "logsnr", 2), ("ddim", "5", "logsnr", 5),
        ("heun", "1", "karras", 1), ("heun", "3", "karras", 5), ("heun", "1", "logsnr", 1), ("heun", "3", "logsnr", 5),
    ]  # fmt: skip
    (long,) = frontier.references
    assert (long.solver, long.steps, long.calls) == ("ancestral", "8", 8)
    assert (frontier.metric, frontier.rising, frontier.about["samples"]) == ("FD-judge", False, 12)
    reports = [Report.load(path) for path in (place / "sw").glob("*guidance-0*.json")]
    assert len(reports) == 9
    values = {e.value for r in reports for e in r.estimates if e.name == "FD-judge"}
    assert {p.value for p in (*frontier.points, long)} == values
    rows = list(csv.DictReader((place / "sw" / "table.csv").open()))
    assert [float(row["FD-judge"]) for row in rows] == [p.value for p in (*frontier.points, long)]
    assert [row["frontier"] == "1" for row in rows] == [p in frontier.pareto() for p in (*frontier.points, long)]
    assert "two-sided test at 5 %" in (place / "sw" / "table.md").read_text()
    assert (place / "sw" / "plot.png").stat().st_size > 5000
    assert "ancestral 8" in out

    assert call(*SAMPLE, "--budget", "4", "--out", "few") == 0
    told = capsys.readouterr().out
    best = frontier.best(4)
    assert best.text in told
    assert f"{best.calls} calls, FD-judge" in told
    record = read_record(next((place / "few").glob("*_seed*.png")))
    assert (record["solver"], record["steps"], record.get("grid", "chain")) == (best.solver, best.steps, best.grid)
    assert "budget" not in record
    assert "FD-judge" in record["measured"]
    assert call("sample", "--from-record", next((place / "few").glob("*_seed*.png")), "--out", place / "x.png") == 0

    text = (place / "sw" / "table.md").read_text()
    assert call(*words) == 0  # from the cache of features
    assert (place / "sw" / "table.md").read_text() == text
    assert "another sweep" in refused(capsys, *words, "--seed", "1")
    for more, message in (
        (("--budget", "0"), "whole number of at least 1"),
        (("--budget", "5", "--solver", "ddim"), "leave --solver out"),
        (("--budget", "5", "--steps", "3"), "leave --steps out"),
        (("--budget", "5", "--eta", "1"), "leave --eta out"),
        (("--budget", "5", "--classifier", "judge.safetensors", "--guidance", "2"), "--scales 2"),
        (("--budget", "5", "--autoguide", "model.safetensors"), "without guidance or with one classifier"),
    ):
        assert message in refused(capsys, *SAMPLE, *more, "--out", "no"), more
    assert not (place / "no").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--solvers", "adaptive"), "decides its number of calls by itself"),
        (("--solvers", "hewn"), "unknown solver 'hewn'"),
        (("--calls", "5,5"), "different whole numbers"),
        (("--calls", "5", "--grids", "kerras"), "unknown grid 'kerras'"),
        (("--calls", "5", "--steps", "5"), "leave --steps out"),
        (("--calls", "5", "--against", "ancestral"), "expected SOLVER:STEPS"),
        (("--calls", "5", "--against", "ancestral:250"), "the number of steps|hold|keep"),
        (("--calls", "50", "--solvers", "ddim", "--against", "none"), "nothing is left to measure"),
        (("--by", "FD"), "--by is of a frontier"),
        (("--calls", "2", "--solvers", "ddim", "--against", "none", "--by", "xyz", "--out", "by"), "no such metric"),
    ],
)
def test_what_is_refused(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, *SWEEP[:-2], "--out", "refused", *words)
    assert any(part in error for part in message.split("|")), error
    assert not Path("refused").exists()


def test_tuned_steps_are_printed_and_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("tune-steps", "model.safetensors", "--steps", "3", "--count", "4", "--device", "cpu")
    assert call(*words) == 0
    out = capsys.readouterr().out
    about = json.loads((place / "steps-dpmpp-2m-3.json").read_text())
    assert about["sampler"]["model"] == load_diffusion("model.safetensors").digest
    assert f"--solver dpmpp-2m --steps 3 --grid {about['grid']}" in out
    assert about["tried"][about["grid"]]["choice"] == min(tried["choice"] for tried in about["tried"].values())
    assert about["calls"] == 3
    grid = next(spec for spec in about["tried"] if spec.startswith("at:"))
    assert call(*SAMPLE, "--solver", "dpmpp-2m", "--steps", "3", "--grid", grid, "--out", "tuned") == 0
    assert "exists already" in refused(capsys, *words)
    for more, message in (
        (("--solver", "ancestral"), "'ancestral' is none of ddim"),
        (("--steps", "1"), "2 or more steps"),
        (("--solver", "heun", "--solver-options", "churn=3"), "draws noise"),
        (("--classifier", "judge.safetensors", "--guidance-interval", "steps:0,0.5"), "in log-SNR or sigma"),
        (("--classifier", "judge.safetensors", "--guidance-at", "mean"), "whose steps draw noise"),
    ):
        assert message in refused(capsys, *words, *more, "--out", "other.json"), more
    assert not (place / "other.json").exists()


def test_a_gain_within_the_errors_is_called_none() -> None:
    usual, ours = Measured(0.2, 0.2, 0.02), Measured(0.1, 0.1, 0.02)
    assert "2.00 times less" in verdict(Tuned("at:1", {"at:1": ours, "logsnr": usual}, 9), "logsnr", "unipc")
    close = Measured(0.1, 0.16, 0.02)
    assert "nothing gained for certain" in verdict(
        Tuned("at:1", {"at:1": close, "logsnr": usual}, 9), "logsnr", "unipc"
    )
    assert "was the best of all" in verdict(Tuned("logsnr", {"logsnr": usual}, 9), "logsnr", "unipc")
    assert "does not exist" in verdict(Tuned("at:1", {"at:1": ours}, 9), "chain", "ddim")
