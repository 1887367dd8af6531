"""`undiffuse reproduce`: listing, plan, run, page and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from undiffuse.cli import main


def test_a_claim_is_run_and_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "c06", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "L_T about 1e-5 bits/dim" in out
    assert "verdict    reproduced" in out
    assert main(["reproduce", "C06", "--out", str(tmp_path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "reproduced"
    assert found["parts"][0]["interval"]["count"] == 1


def test_the_ledger_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("C") for line in lines) == 83
    assert lines[-1].startswith("83 claims: ")
    assert max(map(len, lines)) <= 100


def test_the_plan_names_pieces_and_their_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--tier", "gpu", "--plan", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "undiffuse reproduce --tier gpu --piece 1\n" in out
    assert "train bound-fixed-1" in out
    assert out.splitlines()[-1].endswith("of a GPU in all")
    assert not any(tmp_path.iterdir())


def test_a_page_is_written_from_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "mine.md"
    assert main(["reproduce", "--page", str(page), "--out", str(tmp_path / "out")]) == 0
    text = page.read_text()
    assert "![Effects over the smallest effect worth claiming](mine.png)" in text
    assert "**C06. " in text
    assert (tmp_path / "mine.png").is_file()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["C99"], "there is no claim 'C99'"),
        (["C02"], "cannot be tested here"),
        (["--tier", "arithmetic", "--piece", "9"], "there are 1 pieces"),
        (["--list", "C99"], "there is no claim C99"),
    ],
)
def test_mistakes_are_explained(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *words, "--out", str(tmp_path)]) != 0
    assert text in capsys.readouterr().err
