"""What a frontier says: the best point, the Pareto set, equality with the reference, and files that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from undiffuse import frontiers
from undiffuse.config import SamplerConfig
from undiffuse.frontiers import Frontier, Point
from undiffuse.pipelines.budget import within_budget


def point(calls: int, value: float, stderr: float | None = 0.1, **more: Any) -> Point:
    return Point(
        **{"solver": "unipc", "steps": str(calls), "grid": "logsnr", **more}, nfe=calls, value=value, stderr=stderr
    )


LONG = point(250, 1.0, solver="ddpm", grid="chain")
POINTS = (point(5, 3.0), point(10, 1.2), point(12, 1.3, solver="ddim"), point(20, 1.29), point(50, 0.5, guidance=1.0))
FRONTIER = Frontier(
    model="a" * 64, metric="FD", higher_is_better=False, points=POINTS, references=(LONG,), about={"samples": 3}
)


def test_the_best_point_within_a_budget() -> None:
    assert FRONTIER.best(5) is POINTS[0]
    assert FRONTIER.best(11) is POINTS[1]
    assert FRONTIER.best(249) is POINTS[1]  # more calls that were not better
    assert FRONTIER.best(250) is LONG
    assert FRONTIER.best(50, 1.0) is POINTS[4]
    higher_is_better = replace(FRONTIER, higher_is_better=True)
    assert higher_is_better.best(20) is POINTS[0]
    for calls, guidance, at, message in (
        (4, 0.0, "x_t", "no point has 4 or fewer calls; the smallest number is 5"),
        (50, 2.0, "x_t", "no points at guidance=2"),
        (50, 1.0, "x0", "no points at guidance=1"),
    ):
        with pytest.raises(ValueError, match=message):
            FRONTIER.best(calls, guidance, at)


def test_pareto_points_beat_all_cheaper_ones() -> None:
    assert FRONTIER.pareto() == [POINTS[0], POINTS[1], POINTS[4]]
    same = [point(10, 2.0), point(10, 1.0), point(5, 1.0)]
    assert frontiers.pareto(same, higher_is_better=False) == [same[2]]
    assert frontiers.pareto(same, higher_is_better=True) == [same[2], same[0]]


def test_equality_is_the_stated_test() -> None:
    """|a - b| <= 1.96 sqrt(ea^2 + eb^2), against the reference of the same guidance."""
    reach = 1.96 * (0.1**2 + 0.1**2) ** 0.5
    assert FRONTIER.resolution(POINTS[1]) == pytest.approx(reach)
    for value, verdict in (
        (1.0 + 0.99 * reach, "equal"),
        (1.0 + 1.01 * reach, "worse"),
        (1.0 - 1.01 * reach, "better"),
    ):
        assert FRONTIER.verdict(point(9, value)) == verdict
    assert replace(FRONTIER, higher_is_better=True).verdict(point(9, 2.0)) == "better"
    assert [FRONTIER.verdict(p) for p in POINTS] == ["worse", "equal", "worse", "worse", ""]
    assert FRONTIER.verdict(LONG) == ""
    assert FRONTIER.verdict(point(9, 1.0, stderr=None)) == ""
    paired = point(9, 1.1, difference_stderr=0.04)  # of the same images: sharper than 1.96 * 0.14
    assert FRONTIER.resolution(paired) == pytest.approx(1.96 * 0.04)
    assert FRONTIER.verdict(paired) == "worse"


def test_it_is_kept_by_the_weights_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    assert frontiers.known("a" * 64) == []
    path = frontiers.keep(FRONTIER)
    assert frontiers.known("a" * 64) == [FRONTIER]
    assert frontiers.known("b" * 64) == []
    newer = replace(FRONTIER, points=POINTS[1:])
    assert frontiers.keep(newer) == path
    assert frontiers.known("a" * 64) == [newer]
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": "c" * 64}))
    with pytest.raises(ValueError, match="of another model: delete it"):
        frontiers.known("a" * 64)
    with pytest.raises(FileExistsError):
        FRONTIER.save(path)


def test_a_quick_sweep_does_not_take_the_place_of_a_better_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    guided = replace(FRONTIER, points=(point(10, 9.0, guidance=4.0),), references=(), about={"samples": 2})
    fewer = replace(FRONTIER, points=(point(10, 0.1, solver="ddim"),), about={"samples": 2})
    more = replace(FRONTIER, points=(point(10, 5.0, solver="unipc"),), about={"samples": 4})
    for measured in (FRONTIER, fewer, guided):
        frontiers.keep(measured)
    assert frontiers.known("a" * 64)[0] == FRONTIER
    frontiers.keep(more)
    assert frontiers.known("a" * 64)[:2] == [more, FRONTIER]
    chosen, text = within_budget(SamplerConfig(budget=10), "a" * 64)
    assert (chosen.solver, chosen.steps) == ("unipc", "10")
    four = SamplerConfig(budget=10).replace(classifier=("judge",), guidance=(4.0,))
    chosen, text = within_budget(four, "a" * 64)  # only the sweep of few samples has this guidance
    assert "guidance 4" in text


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "evaluation"}, {"format": 99}, {"points": []}, {"points": [{"solver": "x"}]}, {"model": 3},
        {"points": [{"solver": 1, "steps": "3", "grid": "g", "nfe": 1, "value": 1.0}]}, {"extra": 1},
        {"points": [{"solver": "a", "steps": "3", "grid": "g", "nfe": 1, "value": "x"}]},
    ],
)  # fmt: skip
def test_other_files_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = FRONTIER.save(tmp_path / "f.json")
    assert Frontier.load(path) == FRONTIER
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match="is not a frontier, or it is damaged"):
        Frontier.load(path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{"])
def test_what_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(ValueError, match="is not a frontier"):
        Frontier.load(tmp_path / "f.json")
