"""Sweeps and frontiers from Python, on a tiny model: points, tables, plots, resuming, and what is refused."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.cli_runs import one_thread, write_classifier, write_model
from support.evaluation_sets import images, save_npz
from undiffuse.config import SamplerConfig
from undiffuse.evaluation import FrontierSweep, Report, evaluate, frontier, sweep
from undiffuse.evaluation.frontier_sweep import steps_within
from undiffuse.evaluation.sweeps import save_reports
from undiffuse.frontiers import Frontier, known
from undiffuse.models import load_diffusion
from undiffuse.solvers.registry import SOLVERS
from undiffuse.tuning import Measured, Tuned, tune
from undiffuse.tuning import cache as tuned

BY: dict[str, Any] = {"extractor": "judge.safetensors", "count": 12, "device": "cpu", "progress": False}
THREE = SamplerConfig(solver="ddpm", steps="3")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps")
    write_model(folder / "model.safetensors")
    write_classifier(folder / "judge.safetensors")
    save_npz(folder / "a.npz", images(40, 1, channels=1), arr_1=np.arange(40) % 3)
    save_npz(folder / "b.npz", images(50, 2, channels=1), arr_1=np.arange(50) % 3)
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(place / "cache"))


@pytest.fixture(scope="module")
def swept(place: Path) -> FrontierSweep:
    """A frontier of two solvers on two grids, written to the folder "fr"."""
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.chdir(place)
        patch.setenv("UNDIFFUSE_CACHE", str(place / "cache"))
        return frontier(
            "model.safetensors", "b.npz", solvers=["ddim", "heun"], nfe=[2, 5], grids=["own", "logsnr"],
            against="ddpm:8", out="fr", **BY,
        )  # fmt: skip


def test_steps_that_a_budget_has_room_for() -> None:
    assert [steps_within(name, 10) for name in ("ddim", "dpmpp-2m", "heun", "dpmpp-3m", "pndm")] == [10, 10, 5, 9, 4]
    assert steps_within("pndm", 20) == 11
    assert steps_within("restart", 10) == 1
    for name, method in SOLVERS.items():
        if name != "bosh3":
            steps = steps_within(name, 30)
            assert steps is not None
            assert (method.nfe(steps, method.settings()) or 99) <= 30


def test_a_frontier_has_every_solver_on_every_grid(swept: FrontierSweep) -> None:
    found = swept.frontier
    assert found.model == load_diffusion("model.safetensors").digest
    assert [(p.solver, p.steps, p.grid, p.nfe) for p in found.points] == [
        ("ddim", "2", "chain", 2), ("ddim", "5", "chain", 5), ("ddim", "2", "logsnr", 2), ("ddim", "5", "logsnr", 5),
        ("heun", "1", "karras", 1), ("heun", "3", "karras", 5), ("heun", "1", "logsnr", 1), ("heun", "3", "logsnr", 5),
    ]  # fmt: skip
    (long,) = found.references
    assert (long.solver, long.steps, long.nfe) == ("ddpm", "8", 8)
    assert (found.metric, found.higher_is_better, found.about["samples"]) == ("FD-judge", False, 12)
    assert [point.value for point, _ in swept.rows] == [r.get("FD-judge").value for r in swept.reports]  # type: ignore[union-attr]


def test_a_point_is_what_evaluate_measures(swept: FrontierSweep) -> None:
    config = SamplerConfig(solver="heun", steps="3", grid="logsnr")
    alone = evaluate("model.safetensors", "b.npz", config=config, **BY)
    assert [e.value for e in alone.estimates] == [e.value for e in swept.reports[7].estimates]


def test_a_frontier_is_kept_where_a_budget_finds_it(swept: FrontierSweep) -> None:
    assert swept.frontier in known(swept.frontier.model)


def test_the_files_of_a_frontier(swept: FrontierSweep, place: Path) -> None:
    found, folder = swept.frontier, place / "fr"
    assert Frontier.load(folder / "frontier.json") == found
    assert len([Report.load(path) for path in folder.glob("*guidance-0*.json")]) == 9
    rows = list(csv.DictReader((folder / "table.csv").open()))
    everything = (*found.points, *found.references)
    assert [float(row["FD-judge"]) for row in rows] == [p.value for p in everything]
    assert [row["frontier"] == "1" for row in rows] == [p in found.pareto() for p in everything]
    assert "two-sided test at 5 %" in (folder / "table.md").read_text()
    assert swept.table() in (folder / "table.md").read_text()
    with Image.open(folder / "plot.png") as plot:
        assert plot.width > 800
    assert json.loads((folder / "sweep.json").read_text())["settings"] == json.loads(json.dumps(swept.settings))


def test_a_frontier_resumes_with_the_same_numbers(swept: FrontierSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the cache of features: nothing is sampled again."""
    monkeypatch.setattr("undiffuse.pipelines.source.SampleSource.make", None)
    again = frontier(
        "model.safetensors", "b.npz", solvers=["ddim", "heun"], nfe=[2, 5], grids=["own", "logsnr"],
        against="ddpm:8", out="fr", **BY,
    )  # fmt: skip
    assert again.frontier == swept.frontier


def test_several_scales_have_a_reference_each(place: Path) -> None:
    found = frontier(
        "model.safetensors", "b.npz", solvers=["ddim"], nfe=[2], scales=[0, 2], against="ddpm:3", keep=False,
        config=SamplerConfig().replace(classifier="judge.safetensors"), metrics="fd", **BY,
    ).frontier  # fmt: skip
    assert [p.guidance for p in (*found.points, *found.references)] == [0.0, 2.0, 0.0, 2.0]
    assert found.reference_of(found.points[1]) is found.references[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solvers": ["bosh3"]}, "^solvers: bosh3 chooses its number of network calls"),
        ({"solvers": ["hewn"]}, "unknown solver 'hewn'"),
        ({"grids": ["own", "tuned:count=8"]}, "expected tuned, or tuned:images=N"),
        ({"grids": ["tuned:images=1"]}, "expected tuned, or tuned:images=N"),
        ({"grids": ["logsnr:rho=5"]}, "has no option 'rho'"),
        ({"solvers": ["ddpm"], "grids": ["tuned"]}, "it draws noise"),
        ({"nfe": [50]}, "nothing is left to measure"),
        ({"against": "ddpm"}, "^against: got 'ddpm'"),
        ({"against": "ddpm:250"}, "the number of steps|hold|keep"),
        ({"by": "xyz"}, "^by: there is no such metric 'xyz'"),
        ({"config": SamplerConfig(steps="5")}, "^steps: a frontier takes its samplers"),
        ({"config": SamplerConfig().replace(cfg=2.0)}, "^cfg: a frontier compares"),
        ({"count": 0}, "^count: got 0"),
    ],
)
def test_what_a_frontier_refuses(changes: dict[str, Any], message: str) -> None:
    given = {"solvers": ["ddim"], "nfe": [2], "against": None, "out": "refused", **BY, **changes}
    with pytest.raises(ValueError, match=message):
        frontier("model.safetensors", "b.npz", **given)
    assert not Path("refused").exists()


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What levels are chosen for: (solver, steps, images); always optimised ones."""
    asked: list[tuple[str, int, int]] = []
    real = tuned.tune_pipeline

    def choose(pipeline: Any, steps: int, images: int, *rest: Any) -> Any:
        asked.append((pipeline.config.solver, steps, images))
        found, count = real(pipeline, steps, images, *rest)
        return replace(found, spec=next(spec for spec in found.tried if spec.startswith("at:"))), count

    monkeypatch.setattr(tuned, "tune_pipeline", choose)
    monkeypatch.setattr(tuned, "tune", partial(tune, fine=12))  # for speed
    return asked


TUNED: dict[str, Any] = {
    "solvers": ["dpmpp-2m", "ddpm"], "nfe": [1, 3], "grids": ["logsnr", "tuned:images=4"], "against": None,
    "keep": False, **BY,
}  # fmt: skip


def test_levels_are_tuned_for_solvers_of_the_flow(place: Path, chosen: list[Any], tmp_path: Path) -> None:
    said: list[str] = []
    result = frontier("model.safetensors", "b.npz", out=tmp_path / "tn", notify=said.append, **TUNED)
    text = " ".join(" ".join(said).split())
    for reason in ("ddpm with 3 calls on tuned:images=4: it draws noise", "dpmpp-2m with 1 calls on tuned"):
        assert reason in text
    assert chosen == [("dpmpp-2m", 3, 4)]
    *named, ours = sorted(result.frontier.points, key=lambda p: bool(p.label))
    assert {p.grid for p in named} == {"logsnr"}
    assert ours.grid.startswith("at:")
    assert len(ours.grid.split(",")) == int(ours.steps) == 3
    assert ours.text == "dpmpp-2m 3 tuned:images=4"
    table = (tmp_path / "tn" / "table.md").read_text()
    assert f"- {ours.text}: `--grid {ours.grid}`" in table
    assert all(len(line) < 300 for line in table.splitlines() if line.startswith("|"))
    row = next(r for r in csv.DictReader((tmp_path / "tn" / "table.csv").open()) if r["label"])
    assert (row["grid"], row["steps"], float(row["FD-judge"])) == (ours.grid, "3", ours.value)
    report = Report.load(tmp_path / "tn" / "dpmpp-2m-3-tuned-images-4-guidance-0.json")
    assert report.get("FD-judge").value == ours.value  # type: ignore[union-attr]


def test_tuned_levels_are_found_in_the_cache(place: Path, chosen: list[Any]) -> None:
    given: dict[str, Any] = {**TUNED, "seed": 7, "metrics": "fd"}  # a seed that no other test has
    points = frontier("model.safetensors", "b.npz", **given).frontier.points
    assert frontier("model.safetensors", "b.npz", **given).frontier.points == points
    assert chosen == [("dpmpp-2m", 3, 4)]
    frontier("model.safetensors", "b.npz", **given, cache=False)
    assert chosen == [("dpmpp-2m", 3, 4)] * 2
    for path in (place / "cache" / "tuned").glob("*.json"):
        path.write_text(path.read_text()[:-20])
    assert frontier("model.safetensors", "b.npz", **given).frontier.points == points
    assert chosen == [("dpmpp-2m", 3, 4)] * 3  # a damaged file is no answer


def test_levels_that_have_a_name_are_measured_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And carry the label, where nothing else measures them."""
    errors = {"karras": Measured(0.1, 0.1, 0.01), "logsnr": Measured(0.2, 0.2, 0.01)}
    monkeypatch.setattr(tuned, "tune_pipeline", lambda *given: (Tuned("karras", errors, 3), 4))
    said: list[str] = []
    given: dict[str, Any] = {
        **TUNED,
        "seed": 8,
        "metrics": "fd",
        "solvers": ["dpmpp-2m"],
        "nfe": [3],
        "notify": said.append,
    }
    (point,) = frontier("model.safetensors", "b.npz", **{**given, "grids": ["tuned", "karras"]}).frontier.points
    text = " ".join(" ".join(said).split())
    assert "2.00 times less error than logsnr" in text
    assert "measured once, as dpmpp-2m 3 karras" in text
    assert (point.grid, point.label) == ("karras", "")
    (point,) = frontier("model.safetensors", "b.npz", **{**given, "grids": ["tuned"]}).frontier.points
    assert (point.grid, point.label) == ("karras", "tuned")


def test_strengths_of_guidance_are_swept(place: Path) -> None:
    given: dict[str, Any] = {"config": THREE.replace(classifier="judge.safetensors"), "scales": [0, 2], **BY}
    result = sweep("model.safetensors", "b.npz", floor="a.npz", out="gs", **given)
    assert result.table().splitlines()[0] == "| metric | real images | guidance 0 | guidance 2 |"
    assert result.table() in (place / "gs" / "table.md").read_text()
    assert "12 samples each, ddpm 3, classifier=judge.safetensors, seed 0." in (place / "gs" / "table.md").read_text()
    assert result.metrics[:3] == ["FD-judge", "IS-judge", "precision"]
    plain = evaluate("model.safetensors", "b.npz", config=THREE, **BY)
    assert [e.value for e in result.reports[0].estimates] == [e.value for e in plain.estimates]
    assert [r.samples["guidance"] for r in result.reports] == [0, 2]
    titles = [panel.title for panel in result.panels()]
    assert {"FD-judge", "precision and recall", "density and coverage", "fidelity against diversity"} <= set(titles)
    assert all(panel.x_label for panel in result.panels())
    (panel,) = (panel for panel in result.panels() if panel.title == "FD-judge")
    assert panel.hlines == {"real images": result.floor.get("FD-judge").value}  # type: ignore[union-attr]
    with pytest.raises(FileExistsError, match="another sweep"):
        sweep("model.safetensors", "b.npz", floor="a.npz", out="gs", seed=1, **given)
    again = sweep("model.safetensors", "b.npz", floor="a.npz", out="gs", seed=1, overwrite=True, **given)
    assert again.table() != result.table()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"over": "steps"}, "^over: got 'steps', expected guidance, cfg, autoguide"),
        ({"over": "autoguide"}, "^autoguide: a sweep over autoguidance needs the model"),
        ({"scales": []}, "^scales: got none"),
        ({"scales": [1]}, "^guidance: 1 needs a classifier"),
        ({"metrics": "fid"}, "no metric fid"),
    ],
)
def test_what_a_sweep_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep("model.safetensors", "b.npz", **{"scales": [0], "config": THREE, "out": "no", **BY, **changes})
    assert not Path("no").exists()


def test_without_matplotlib_a_sweep_still_writes_its_numbers(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said: list[str] = []
    sweep("model.safetensors", "b.npz", scales=[0], config=THREE, out=tmp_path / "np", notify=said.append, **BY)
    assert (tmp_path / "np" / "table.md").is_file()
    assert not (tmp_path / "np" / "plot.png").exists()
    assert [text for text in said if 'pip install "undiffuse[plot]"' in text] == [said[-1]]


def test_reports_of_like_names_get_files_of_their_own(tmp_path: Path) -> None:
    given = [
        Report(name=name, samples={}, reference={}, estimates=())
        for name in ("guidance 1", "guidance -1", "Guidance 1")
    ]
    names = save_reports(tmp_path, given)
    assert names == ["guidance-1.json", "guidance-1-2.json", "Guidance-1-3.json"]
    assert [Report.load(tmp_path / name).name for name in names] == [report.name for report in given]
