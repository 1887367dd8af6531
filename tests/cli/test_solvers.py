"""`undiffuse sample --solver NAME --grid SPEC`: every method, its record, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cli_runs import call, one_thread, pixels, write_classifier, write_model
from undiffuse.cli.parser import build_parser
from undiffuse.config import SamplerConfig
from undiffuse.denoiser import ProcessConfig
from undiffuse.grid_specs import GRIDS
from undiffuse.pictures import read_record
from undiffuse.pipelines import Pipeline
from undiffuse.solvers.registry import SOLVERS

PROCESS = ProcessConfig(steps=20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with one_thread():
        yield write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier") / "classifier.safetensors")


@pytest.mark.parametrize("name", SOLVERS)
def test_every_method_samples_guided_and_its_picture_can_be_made_again(
    name: str, model: Path, classifier: Path, tmp_path: Path
) -> None:
    out, words = tmp_path / "out", ("--classifier", classifier, "--guidance", 0.5, "--device", "cpu")
    made = call("sample", "--model", model, "--solver", name, "--steps", 3, "--count", 1, "--out", out, *words)
    assert made == 0
    picture = next(out.glob("*_seed*.png"))
    record = read_record(picture)
    assert (record["solver"], record["steps"]) == (name, "3")
    assert record.get("grid", "chain") == SOLVERS[name].grid
    again = tmp_path / "again.png"
    assert call("sample", "--from-record", picture, "--out", again, "--device", "cpu") == 0
    assert abs(pixels(again).astype(int) - pixels(picture)).max() == 0
    assert read_record(again)["solver"] == name


def test_grid_and_options_are_in_the_record_where_they_say_something(model: Path, tmp_path: Path) -> None:
    words = ("--model", model, "--count", 1, "--device", "cpu", "--steps", 3)
    for folder, more, grid, kept in (
        ("plain", ("--solver", "ddim"), None, None),
        ("heun", ("--solver", "heun", "--solver-options", "churn=2, s_noise=1"), "karras", "churn=2.0"),
        ("at", ("--solver", "dpmpp-2m", "--grid", "at:-6,-1,5"), "at:-6,-1,5", None),
        ("ends", ("--solver", "unipc", "--grid", "logsnr:from=-5,to=7"), "logsnr:from=-5,to=7", None),
    ):
        assert call("sample", *words, *more, "--out", tmp_path / folder) == 0
        record = read_record(next((tmp_path / folder).glob("*_seed*.png")))
        assert (record.get("grid"), record.get("solver_options")) == (grid, kept)
        settings = SamplerConfig.from_record(record, model=str(model))
        assert (settings.grid, settings.solver_options) == (grid or "chain", kept or "")
        assert Pipeline.load(settings, "cpu").record == {k: record[k] for k in Pipeline.load(settings, "cpu").record}


def test_a_record_of_an_earlier_version_means_the_chain(model: Path, tmp_path: Path) -> None:
    old = Pipeline.load(SamplerConfig(model=str(model), solver="heun", steps="3", grid="chain"), "cpu")
    assert "grid" not in old.record
    assert "solver_options" not in old.record
    again = SamplerConfig.from_record({**old.record, **old.notes})
    assert (again.grid, again.solver_options) == ("chain", "")
    with pytest.raises(ValueError, match="has grid = 3; expected text"):
        SamplerConfig.from_record({**old.record, **old.notes, "grid": 3})
    with pytest.raises(ValueError, match="has solver_options = None; expected text"):
        SamplerConfig.from_record({**old.record, **old.notes, "solver_options": None})


def test_defaults_by_method() -> None:
    def chosen(**given: str) -> tuple[str | None, str | None]:
        settings = SamplerConfig(**given).resolved(ProcessConfig(steps=1000))
        return settings.steps, settings.grid

    assert chosen(solver="ddpm") == ("100", "chain")
    assert chosen(solver="ddim") == ("ddim50", "chain")
    assert chosen(solver="ddim", grid="karras") == ("50", "karras")
    for name, method in SOLVERS.items():
        if name not in ("ddpm", "ddim"):
            assert chosen(solver=name) == (str(method.steps), method.grid)
    assert chosen(solver="unipc", steps="ddim25") == ("ddim25", "chain")
    assert chosen(solver="unipc", grid="at:-4,0,4") == ("3", "at:-4,0,4")
    assert SamplerConfig(solver="heun").resolved(PROCESS).steps == "18"
    assert SamplerConfig(solver="euler").resolved(PROCESS).steps == "20"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--solver", "hewn"), "'hewn': expected one of ddpm, ddim"),
        (("--solver", "unipc", "--solver-options", "churn=1"), "unipc has no option 'churn'"),
        (("--solver", "unipc", "--solver-options", "order=7"), "order=7: expected a whole number from 1 to 3"),
        (("--solver", "unipc", "--steps", "ddim10", "--grid", "karras"), "needs a plain number of steps"),
        (("--solver", "unipc", "--grid", "kerras"), "unknown grid"),
        (("--solver", "unipc", "--grid", ""), "argument --grid: '': expected text"),
        (("--solver", "unipc", "--eta", "0.5"), "--eta is the noise of ddim; unipc has"),
        (("--solver", "ddpm", "--steps", "25", "--grid", "uniform"), "at most the 20 trained steps"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: tuple[str, ...], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--model", model, "--device", "cpu", "--out", tmp_path / "out", *words)
    try:
        assert call("sample", *given) == 2
    except SystemExit as end:
        assert end.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_full_help_lists_every_method_and_grid_in_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["sample", "--help-all"])
    lines = capsys.readouterr().out.splitlines()
    for name in [*SOLVERS, *GRIDS]:
        assert any(line.split()[:1] == [name] for line in lines), name
    assert max(map(len, lines)) <= 100
    with pytest.raises(SystemExit):
        build_parser().parse_args(["sample", "--help"])
    short = capsys.readouterr().out
    assert "--guidance-every" in "\n".join(lines)
    assert "--guidance-every" not in short
    assert len(short.splitlines()) <= 60
