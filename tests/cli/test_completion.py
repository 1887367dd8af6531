"""Shells complete commands, options and values. The functions of the real shells run where these are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from undiffuse import recipes
from undiffuse.adapters import published
from undiffuse.cli import COMMANDS, known_names, main
from undiffuse.cli.completion import FILES, candidates
from undiffuse.metrics.extractors.registry import EXTRACTORS
from undiffuse.models import SHIPPED
from undiffuse.solvers.registry import SOLVERS


def texts(*words: str, shell: str = "fish") -> list[str]:
    return [text for text, _ in candidates(words, shell)]


def test_the_names_are_those_of_the_registries() -> None:
    assert known_names.SHIPPED == SHIPPED
    assert set(known_names.PUBLISHED) == set(published.ENTRIES)
    assert set(known_names.RECIPES) == set(recipes.names())
    assert set(known_names.EXTRACTORS) == set(EXTRACTORS)


def test_what_fits() -> None:
    assert texts("")[: len(COMMANDS)] == list(COMMANDS)
    assert texts("tr") == ["train", "train-classifier", "translate"]
    assert texts("sample", "--solver", "dpmpp") == [name for name in SOLVERS if name.startswith("dpmpp")]
    assert texts("sample", "--solver=dd") == ["--solver=ddpm", "--solver=ddim"]
    assert texts("sample", "--solver", "=", "dd", shell="bash") == ["ddpm", "ddim"]
    assert texts("sample", "--solver", "=", shell="bash") == list(SOLVERS)
    assert texts("sweep", "fashion-mnist", "--solvers", "ddim,heu") == ["ddim,heun"]
    assert texts("train", "photos", "--recipe", "ti") == ["tiny"]
    assert texts("train", "photos", "--prec") == ["--precision"]
    assert texts("train", "photos", "--precision", "") == ["fp32", "bf16", "fp16"]
    assert texts("export", "model", "--to", "o") == ["openai", "onnx"]
    assert "fashion-mnist-32" in texts("sample", "fash") and FILES in texts("sample", "fash")
    assert "fashion-mnist-32-classifier" in texts("sample", "m", "--classifier", "fash")
    assert texts("train", "fashion-mnist:") == ["fashion-mnist:test", FILES]
    assert "general-32" in texts("recipes", "gen") and "64x64_diffusion" in texts("models", "64x")
    assert texts("sample", "--seed", "") == [] and texts("smaple", "") == []
    assert "--guidance-interval" in texts("sample", "--guidance-")  # advanced options too
    described = dict(candidates(["sample", "--solver", "heun"]))
    assert described["heun"] and "\n" not in described["heun"]


def test_every_option_of_every_command_is_offered_with_a_description() -> None:
    for command in COMMANDS:
        found = candidates([command, "--"])
        assert "--help" in dict(found)
        assert all(about and "\n" not in about for name, about in found), command


@pytest.fixture
def command(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has this package's command."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "undiffuse"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m undiffuse "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}


def output(words: list[str], env: dict[str, str], where: Path) -> list[str]:
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=where, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


BASH = """
eval "$(undiffuse completion bash)"
complete_line() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _undiffuse; printf '%s ' "${COMPREPLY[@]}"; echo; }
complete_line undiffuse sam
complete_line undiffuse sample --solver unip
complete_line undiffuse sample --solver = heu
complete_line undiffuse sample runs/my
"""


def test_bash(tmp_path: Path, command: dict[str, str]) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "my model").mkdir()
    lines = output(["bash", "-c", BASH], command, tmp_path)
    assert [line.strip() for line in lines] == ["sample", "unipc", "heun", "runs/my model"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish(tmp_path: Path, command: dict[str, str]) -> None:
    text = (
        "undiffuse completion fish | source; complete -C 'undiffuse sample --solver unip'; complete -C 'undiffuse sam'"
    )
    unipc, sample = output(["fish", "-c", text], command, tmp_path)
    assert unipc.startswith("unipc\t") and sample.startswith("sample\t")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh(tmp_path: Path, command: dict[str, str]) -> None:
    """zsh's completion runs in its line editor only, so `compadd` is replaced by one that prints."""
    text = """
    autoload -Uz compinit && compinit -u -D
    eval "$(undiffuse completion zsh)"
    compadd() { print -l -- $values; }
    _files() { print files; }
    words=(undiffuse sample --solver unip); CURRENT=4; _undiffuse
    words=(undiffuse sample fashion-mnist-32); CURRENT=3; _undiffuse
    print ${_comps[undiffuse]}
    """
    models = ["fashion-mnist-32", "fashion-mnist-32-student"]
    assert output(["zsh", "-f", "-c", text], command, tmp_path) == ["unipc", *models, "files", "_undiffuse"]


def test_an_answer_comes_without_torch() -> None:
    code = (
        "import sys, undiffuse.cli; undiffuse.cli.main(['sample', '--solver', '']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "UNDIFFUSE_COMPLETE": "bash"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ddpm\t")


def test_the_script_of_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "csh"]) == 2
    assert "expected bash, zsh, fish" in capsys.readouterr().err
