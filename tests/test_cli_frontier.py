"""`sweep --solvers --calls`, `sample --budget` and `tune-steps` as a user types them, on a tiny model."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_runs import call, write_classifier, write_model, write_upsampler
from evaluation_sets import images, save_npz
from undiffuse.cli import tuned
from undiffuse.cli.frontier import steps_within
from undiffuse.cli.sweeping import save_reports
from undiffuse.cli.tune_steps import verdict
from undiffuse.evaluation import Report
from undiffuse.frontiers import Frontier, keep, known
from undiffuse.methods import METHODS
from undiffuse.models import load_diffusion
from undiffuse.pictures import read_record
from undiffuse.pipelines.pipeline import Pipeline, SamplerConfig
from undiffuse.tuning import Measured, Tuned, tune

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
        (("--calls", "5", "--grids", "own", "tuned:count=8"), "expected tuned, or tuned:images=N"),
        (("--calls", "5", "--grids", "tuned:images=1"), "expected tuned, or tuned:images=N"),
        (("--calls", "5", "--grids", "logsnr:rho=5"), "has no option 'rho'"),
        (("--calls", "5", "--solvers", "ancestral", "--grids", "tuned", "--against", "none"), "it draws noise"),
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
    write_upsampler(place / "up.safetensors")
    assert "a super-resolution model" in refused(
        capsys, "tune-steps", "up.safetensors", *words[2:], "--out", "other.json"
    )
    assert not (place / "other.json").exists()


def test_a_sweep_tunes_levels_to_the_model(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each solver of the flow and each budget, once: a second run finds them in the cache."""
    asked: list[tuple[str, int, int]] = []
    real = tuned.choose

    def choose(sampler: Any, steps: int, images: int, *rest: Any) -> Any:
        asked.append((sampler.settings.solver, steps, images))
        found, count = real(sampler, steps, images, *rest)
        return replace(found, spec=next(spec for spec in found.tried if spec.startswith("at:"))), count

    monkeypatch.setattr(tuned, "choose", choose)
    monkeypatch.setattr(tuned, "tune", partial(tune, fine=12))  # for speed
    words = (*SWEEP[:-1], "tn", "--solvers", "dpmpp-2m,ancestral", "--calls", "1,3", "--grids", "logsnr",
             "tuned:images=4", "--against", "none")  # fmt: skip
    assert call(*words) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in ("ancestral with 3 calls on tuned:images=4: it draws noise", "dpmpp-2m with 1 calls on tuned:images=4"):
        assert text in out
    assert asked == [("dpmpp-2m", 3, 4)]
    frontier = Frontier.load(place / "tn" / "frontier.json")
    *named, ours = sorted(frontier.points, key=lambda p: bool(p.label))
    assert {p.grid for p in named} == {"logsnr"}
    assert ours.grid.startswith("at:")
    assert len(ours.grid.split(",")) == int(ours.steps) == 3
    assert ours.text == "dpmpp-2m 3 tuned:images=4"
    table = (place / "tn" / "table.md").read_text()
    assert f"- {ours.text}: `--grid {ours.grid}`" in table
    assert all(len(line) < 300 for line in table.splitlines() if line.startswith("|"))
    row = next(r for r in csv.DictReader((place / "tn" / "table.csv").open()) if r["label"])
    assert (row["grid"], row["steps"], float(row["FD-judge"])) == (ours.grid, "3", ours.value)
    assert Report.load(place / "tn" / "dpmpp-2m-3-tuned-images-4-guidance-0.json").get("FD-judge").value == ours.value

    assert (
        call("tune-steps", "model.safetensors", "--steps", "3", "--count", "4", "--device", "cpu", "--out", "t.json")
        == 0
    )
    assert json.loads((place / "t.json").read_text())["grid"] == ours.grid  # the same machinery, to the last digit
    asked.clear()
    before = frontier.points
    assert call(*words) == 0
    assert asked == []
    assert Frontier.load(place / "tn" / "frontier.json").points == before
    assert call(*words, "--no-cache", "--out", "fresh") == 0
    assert asked == [("dpmpp-2m", 3, 4)]
    for path in (place / "cache" / "tuned").glob("*.json"):
        path.write_text(path.read_text()[:-20])
    assert call(*words) == 0
    assert asked == [("dpmpp-2m", 3, 4)] * 2  # a damaged file is no answer
    assert Frontier.load(place / "tn" / "frontier.json").points == before

    only = replace(frontier, points=(ours,))
    keep(only)
    capsys.readouterr()
    assert call(*SAMPLE, "--budget", "4", "--out", "by") == 0
    told = capsys.readouterr().out
    assert f"{ours.text}: 3 calls" in told
    record = read_record(next((place / "by").glob("*_seed*.png")))
    assert (record["solver"], record["steps"], record["grid"]) == ("dpmpp-2m", "3", ours.grid)
    assert call("sample", "--from-record", next((place / "by").glob("*_seed*.png")), "--out", place / "again.png") == 0


def test_what_the_tuned_levels_depend_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these has levels of its own in the cache; the same again has not."""
    asked: list[str] = []
    fake = Tuned("logsnr", {"logsnr": Measured(0.1, 0.1, 0.01)}, 3)
    monkeypatch.setattr(tuned, "choose", lambda sampler, steps, images, *rest: (asked.append(steps), (fake, images))[1])
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(place / "other"))
    usual = SamplerConfig(model="model.safetensors", solver="dpmpp-2m", steps="3", grid="logsnr")
    write_model(place / "second.safetensors", seed=1)
    changed = [
        {}, {"model": "second.safetensors"}, {"solver": "unipc"}, {"precision": "bf16"}, {"clip": "none"},
        {"classifier": "judge.safetensors", "guidance": 1.0}, {"classifier": "judge.safetensors", "guidance": 2.0},
    ]  # fmt: skip
    for changes in changed:
        sampler = Pipeline.load(replace(usual, **changes), "cpu")
        others = [(3, 4, 0, None), (4, 4, 0, None), (3, 5, 0, None), (3, 4, 1, None), (3, 4, 0, ["1"])]
        for case in others if not changes else others[:1]:
            count = len(asked)
            assert tuned.kept(sampler, *case) == fake
            assert len(asked) == count + 1, (changes, case)
            assert tuned.kept(sampler, *case) == fake
            assert len(asked) == count + 1, (changes, case)
    tuned.kept(Pipeline.load(replace(usual, steps="9", grid="karras"), "cpu"), 3, 4, 0, None)
    assert len(asked) == len(others) + len(changed) - 1  # neither the sampler's own grid nor its steps matter


def test_levels_that_have_a_name_are_measured_once(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And carry it, where nothing else measures them."""
    errors = {"karras": Measured(0.1, 0.1, 0.01), "logsnr": Measured(0.2, 0.2, 0.01)}
    monkeypatch.setattr(tuned, "choose", lambda *given: (Tuned("karras", errors, 3), 4))
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(place / "third"))
    words = (*SWEEP[:-1], "once", "--solvers", "dpmpp-2m", "--calls", "3", "--against", "none", "--grids", "tuned")
    assert call(*words, "karras") == 0
    out = capsys.readouterr().out
    assert "2.00 times less error than logsnr" in out
    assert "measured once, as dpmpp-2m 3 karras" in " ".join(out.split())
    (point,) = Frontier.load(place / "once" / "frontier.json").points
    assert (point.grid, point.label) == ("karras", "")
    assert call(*words, "--overwrite") == 0
    (point,) = Frontier.load(place / "once" / "frontier.json").points
    assert (point.grid, point.label) == ("karras", "tuned")


def test_reports_of_like_names_get_files_of_their_own(tmp_path: Path) -> None:
    given = [
        Report(name=name, samples={}, reference={}, estimates=())
        for name in ("guidance 1", "guidance -1", "Guidance 1")
    ]
    names = save_reports(tmp_path, given)
    assert names == ["guidance-1.json", "guidance-1-2.json", "Guidance-1-3.json"]
    assert [Report.load(tmp_path / name).name for name in names] == [report.name for report in given]


def test_a_gain_within_the_errors_is_called_none() -> None:
    usual, ours = Measured(0.2, 0.2, 0.02), Measured(0.1, 0.1, 0.02)
    assert "2.00 times less" in verdict(Tuned("at:1", {"at:1": ours, "logsnr": usual}, 9), "unipc")
    close = Measured(0.1, 0.16, 0.02)
    assert "nothing gained for certain" in verdict(Tuned("at:1", {"at:1": close, "logsnr": usual}, 9), "unipc")
    assert "was better" in verdict(Tuned("at:1", {"at:1": Measured(0.1, 0.3, 0.02), "logsnr": usual}, 9), "unipc")
    assert "was the best of all" in verdict(Tuned("logsnr", {"logsnr": usual}, 9), "unipc")
    assert "does not exist" in verdict(Tuned("at:1", {"at:1": ours}, 9), "ddim")
