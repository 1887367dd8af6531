"""Help is fast and complete; mistakes are told in one line, with the right word where it is near."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from undiffuse import __version__
from undiffuse.cli import COMMANDS, main, values
from undiffuse.cli.parser import build_parser


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["sample", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\n"
        f"from undiffuse.cli import main; status = main({words!r})\n"
        "heavy = {'torch', 'numpy', 'PIL', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("usage: undiffuse", f"undiffuse {__version__}"))


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "undiffuse"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "quickstart" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_fits_a_hundred_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: undiffuse {command} ")
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 100


def test_every_option_has_a_help_text() -> None:
    parser = build_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    assert list(commands.choices) == list(COMMANDS)
    for name, command in commands.choices.items():
        silent = [action.dest for action in command._actions if not action.help]
        assert not silent, (name, silent)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["smaple"], "there is no command 'smaple'; expected quickstart"),
        (["smaple"], "did you mean sample?"),
        (["sample", "--step", "5"], "there is no option --step; did you mean --steps?"),
        (["sample", "--seed", "-5"], "--seed: '-5': expected a whole number from 0 to 2^64 - 1"),
        (["sample", "--solver", "hewn"], "'hewn': expected one of ddpm, ddim"),
        (["sample", "--eta", "-1"], "expected a number of at least 0"),
        (["train"], "one of the arguments DATA --resume is required"),
        (["train", "x", "--images", "3", "--steps", "4"], "not allowed with argument"),
        (["train", "x", "--size", "3x4x5"], "expected a size, for example 64 or 48x64"),
        (["train", "x", "--set", "lr"], "expected FIELD=VALUE"),
        (["interpolate", "--seeds", "1"], "expected two seeds"),
    ],
)
def test_mistakes_on_the_command_line(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert expected in told.err
    assert told.err.startswith("undiffuse: error: ")
    assert len(told.err.splitlines()) == 2  # the error, and where help is


def test_values() -> None:
    assert values.positive("200k") == 200_000
    assert values.positive("2M") == 2_000_000
    assert values.positive("1_000") == 1000
    assert values.amount("all") is None
    assert values.size("64") == 64
    assert values.size("48x64") == (48, 64)
    assert values.size("32x32") == 32
    assert values.decays("0.9,0.99") == (0.9, 0.99)
    assert values.decays("none") == ()
    assert values.seed_pair("1,2") == (1, 2)
    assert values.seed(str(2**64 - 1)) == 2**64 - 1
    for wrong in ("0", "-1", "1.5", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            values.positive(wrong)
    with pytest.raises(argparse.ArgumentTypeError, match="too large"):
        values.seed(str(2**64))
    with pytest.raises(argparse.ArgumentTypeError, match="finite"):
        values.scale("nan")


def test_debugging_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "no-such-thing"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("UNDIFFUSE_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["inspect", "no-such-thing"])


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ValueError("wrong number"), 2, "undiffuse: error: wrong number\n"),
        (PermissionError(13, "Permission denied", "/x"), 2, "undiffuse: error: Permission denied: /x\n"),
        (MemoryError("no room"), 2, "undiffuse: error: no room\n"),
        (KeyboardInterrupt(), 130, "undiffuse: interrupted. Files written so far are kept; repeat"),
    ],
)
def test_errors_of_a_command(
    error: BaseException, status: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from undiffuse.cli import recipes

    def broken(args: object) -> int:
        raise error

    monkeypatch.setattr(recipes, "run", broken)
    assert main(["recipes"]) == status
    assert capsys.readouterr().err.startswith(told)


def test_faults_of_the_program_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from undiffuse.cli import recipes

    def broken(args: object) -> int:
        raise KeyError("a fault")

    monkeypatch.setattr(recipes, "run", broken)
    with pytest.raises(KeyError):
        main(["recipes"])
