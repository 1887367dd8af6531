"""The registry of solvers: names, former names, solvers of one's own, and what it imports."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from typing import Any

import pytest

from undiffuse import solvers
from undiffuse.cli.parser import build_parser
from undiffuse.solvers import SOLVERS, build_solver, register_solver, solver_info
from undiffuse.solvers.ddim import DDIM
from undiffuse.solvers.registry import FORMER_NAMES, GROUP, SolverInfo, current_record
from undiffuse.testing import convergence_order


class Mine(DDIM):
    """DDIM under another name."""

    name = "mine"


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test registers is gone after it."""
    before = dict(SOLVERS)
    monkeypatch.setattr(solvers.registry, "SOLVERS", SOLVERS)
    yield
    SOLVERS.clear()
    SOLVERS.update(before)


def test_every_entry_leads_to_a_solver_that_says_its_name() -> None:
    for name in SOLVERS:
        solver = build_solver(name)
        assert callable(solver.step)
        assert solver.name == name, name


def test_the_registry_comes_without_torch() -> None:
    code = "import sys, undiffuse.solvers.registry, undiffuse.grid_specs; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_classes_are_found_by_the_package() -> None:
    assert solvers.DDIM is DDIM
    assert {"DDIM", "DDPM", "LangevinPC", "Solver"} <= set(dir(solvers))
    with pytest.raises(AttributeError, match="no attribute 'DDIN'"):
        _ = solvers.DDIN


def test_former_names_are_explained_and_read() -> None:
    for former, now in FORMER_NAMES.items():
        assert now in SOLVERS
        with pytest.raises(ValueError, match=f"'{former}': it is now called '{now}'"):
            build_solver(former)
    old = {"solver": "pc", "reclip": False, "steps": "10"}
    assert current_record(old) == {"solver": "langevin-pc", "clip_after_guidance": False, "steps": "10"}
    assert current_record(current_record(old)) == current_record(old)
    assert current_record({"solver": 3}) == {"solver": 3}


def test_a_solver_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    """By name in `build_solver` and on the command line, with the clipping it has a parameter for."""
    info = SolverInfo(line="mine", kind="ode", order=1, steps=7, grid="logsnr")
    register_solver("mine", Mine, info)
    solver = build_solver("mine", clip_after_guidance=True)
    assert isinstance(solver, Mine)
    assert solver.clip_after_guidance
    assert solver_info("mine").steps == 7
    args = build_parser().parse_args(["sample", "fashion-mnist-32", "--solver", "mine"])
    assert args.solver == "mine"
    with pytest.raises(SystemExit):
        build_parser().parse_args(["sample", "fashion-mnist-32", "--solver", "ancestral"])
    assert "it is now called 'ddpm'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ddim", "ancestral", "Mine", "a b", "a,b", ""])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="belongs to another|lower case"):
        register_solver(name, Mine)


def test_a_solver_by_where_it_is() -> None:
    assert register_solver("there", "undiffuse.solvers.ddim:DDIM").load() is DDIM
    register_solver("there", "undiffuse.solvers.ddim:DDIM")  # twice the same is no mistake
    assert isinstance(build_solver("there"), DDIM)


@pytest.mark.parametrize("what", ["class", "pair"])
def test_packages_offer_solvers_by_entry_points(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked up only for a name that is not known."""

    class Point:
        name = "theirs"

        def load(self) -> Any:
            info = SolverInfo(line="theirs", kind="ode", order=1, steps=3, grid="logsnr")
            return Mine if what == "class" else (Mine, info)

    asked = []

    def entry_points(group: str) -> list[Point]:
        asked.append(group)
        return [Point()]

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    build_solver("ddim")
    assert asked == []
    assert isinstance(build_solver("theirs"), Mine)
    assert asked == [GROUP]
    assert solver_info("theirs").steps == (3 if what == "pair" else 50)
    assert asked == [GROUP]
    with pytest.raises(ValueError, match="unknown solver 'nobodys'; choose one of ddpm"):
        solver_info("nobodys")


def test_orders_by_the_public_function() -> None:
    assert 0.75 < convergence_order("ddim", steps=(16, 32)) < 1.5
    assert 1.7 < convergence_order(lambda count: build_solver("dpmpp-2m"), steps=(24, 48)) < 2.6
    assert 0.75 < convergence_order(build_solver("ddpm"), steps=(16, 32)) < 1.5
    with pytest.raises(ValueError, match="'ode' or 'sde'"):
        convergence_order("ddim", kind="flow")
    with pytest.raises(ValueError, match="two or more"):
        convergence_order("ddim", steps=(16,))
