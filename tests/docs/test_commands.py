"""Every command line of the documentation is understood by the real parser, and names files and extras that exist."""

from __future__ import annotations

import re

import pytest

from support.pages import ALL, PAGES, ROOT, commands, console_lines
from undiffuse import recipes
from undiffuse.cli.parser import build_parser
from undiffuse.recipes import overrides

FOUND = [command for page in ALL for command in commands(page)]


def test_the_pages_have_commands() -> None:
    assert len(FOUND) > 120
    assert {command.words[0] for command in FOUND} >= {"train", "sample", "evaluate", "distill", "sweep", "nll"}


@pytest.mark.parametrize("page", ALL)
def test_command_lines_parse(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words, where in commands(page):
        if words[-1] in ("--help", "--help-all"):
            continue
        try:
            args = build_parser(words).parse_args(words)
        except SystemExit:
            pytest.fail(f"{where}: undiffuse {' '.join(words)}\n{capsys.readouterr().err}")
        if getattr(args, "recipe", None) is not None and args.recipe != "NAME":
            assert args.recipe in recipes.names(), where
        if words[0] == "train" and getattr(args, "sets", None):
            recipe = recipes.get(args.recipe or "general-32")
            sections = {name: getattr(recipe, name) for name in ("data", "net", "process", "objective", "train")}
            overrides.apply(sections, dict(args.sets))


@pytest.mark.parametrize("page", PAGES)
def test_programs_and_extras_exist(page: str) -> None:
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for number, line in console_lines(page):
        for name in re.findall(r"(?:^|\s)((?:examples|benchmarks)/[\w.-]+\.(?:py|sh))", line):
            assert (ROOT / name).is_file(), f"{page}:{number}: {name}"
        for names in re.findall(r'(?:undiffuse|"\.)\[([\w,]+)\]', line):
            assert set(names.split(",")) <= extras, f"{page}:{number}: {names}"
