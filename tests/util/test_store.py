"""Resumable stores: claiming, differences, what is missing, pieces that are whole or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undiffuse.util.records import ABSENT, check_record, difference_text, differences, parse_json, read_json
from undiffuse.util.store import Parts, RowStore, Store, whole_numbers


def test_differences_are_named_by_their_path() -> None:
    there = {"a": 1, "solver": {"name": "ddim", "eta": 0.0}, "gone": None, "list": [1, 2]}
    here = {"a": 1, "solver": {"name": "ddim", "eta": 0.5}, "new": {}, "list": [1, 3]}
    found = differences(there, here)
    assert [item.name for item in found] == ["gone", "list", "new", "solver.eta"]
    assert found[0].here is ABSENT
    assert found[0].there is None
    assert difference_text(found).splitlines() == [
        "  gone: none there, not set now", "  list: 1, 2 there, 1, 3 now", "  new: not set there, {} now",
        "  solver.eta: 0.0 there, 0.5 now",
    ]  # fmt: skip
    assert differences(here, here) == []
    assert differences({}, {"a": 1})[0].name == "a"
    assert str(differences({"h": "a" * 64}, {"h": "b" * 200})[0]) == f"h: {'a' * 12}... there, {'b' * 77}... now"


def test_json_of_files_is_checked() -> None:
    assert parse_json(b"[1, 2]", "x") == [1, 2]
    for text in ("{", "NaN", "[" * 100_000, "[" * 65 + "]" * 65, "1" * 5000):
        with pytest.raises(ValueError, match="^the file is"):
            parse_json(text, "the file")
    with pytest.raises(ValueError, match="should hold a JSON object, but holds a list"):
        read_json("[]", "the file")
    assert check_record({"a": (1, {"b": None})}) == {"a": [1, {"b": None}]}
    with pytest.raises(ValueError, match=r"'a\.b'"):
        check_record({"a": {"b": object()}})


class Numbers(Store):
    """Text files 0, 1, 2, ... of a folder."""

    def __init__(self, place: Path, settings: dict[str, Any]) -> None:
        super().__init__(place, settings, "numbers")
        self.claim(place / "job.json", unclaimed=bool(self.done()))

    def done(self) -> set[int]:
        return {int(file.stem) for file in self.place.glob("*.txt")}


def test_a_place_belongs_to_one_job(tmp_path: Path) -> None:
    store = Numbers(tmp_path, {"seed": 1, "path": ("a", "b")})
    assert json.loads((tmp_path / "job.json").read_text()) == {"seed": 1, "path": ["a", "b"]}
    assert store.missing(3) == [0, 1, 2]
    (tmp_path / "1.txt").touch()
    assert Numbers(tmp_path, {"seed": 1, "path": ["a", "b"]}).missing(3) == [0, 2]
    with pytest.raises(ValueError, match=r"2 of 3 numbers are missing \(0, 2\)"):
        store.require(3)
    with pytest.raises(ValueError, match=r"0 of 0 numbers are missing \(nothing was written\)"):
        store.require(0)
    with pytest.raises(ValueError, match="expected the number of numbers"):
        store.missing(-1)
    with pytest.raises(ValueError, match=r"holds numbers made with other settings:\n  seed: 1 there, 2 now\nChoose"):
        Numbers(tmp_path, {"seed": 2, "path": ["a", "b"]})
    (tmp_path / "job.json").write_text("[]")
    with pytest.raises(ValueError, match=r"job\.json should hold a JSON object.*restore it"):
        Numbers(tmp_path, {"seed": 1})
    (tmp_path / "job.json").unlink()
    with pytest.raises(ValueError, match=r"holds numbers but no job\.json"):
        Numbers(tmp_path, {"seed": 1})


def test_parts_hold_rows_in_any_order(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts")
    assert parts.found() == {}
    rows = np.arange(12).reshape(4, 3)
    parts.write(np.array([5, 0]), x=rows[:2], label=np.array([7, 8]))
    parts.write(np.array([2, 1]), x=rows[2:], label=None)
    assert set(parts.found()) == {0, 1, 2, 5}
    read = list(parts.rows([0, 1, 2, 5]))
    assert [row["x"].tolist() for row in read] == [
        rows[1].tolist(),
        rows[3].tolist(),
        rows[2].tolist(),
        rows[0].tolist(),
    ]
    assert [int(row["label"]) if "label" in row else None for row in read] == [8, None, None, 7]
    parts.remove(below=3)
    assert set(parts.found()) == {0, 5}  # a part that reaches further stays whole
    damaged = next((tmp_path / "parts").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-30])
    assert parts.found() == {}
    (tmp_path / "parts" / "part-x.npz").write_bytes(b"")
    (tmp_path / "parts" / ".undiffuse-1.tmp").write_bytes(b"")
    parts.remove(below=6)
    assert not (tmp_path / "parts").exists()


def test_parts_of_objects_are_not_executed(tmp_path: Path) -> None:
    np.savez(tmp_path / "part-0.npz", indices=np.array([{}], dtype=object), x=np.zeros(1))
    assert Parts(tmp_path).found() == {}


def test_rows_survive_a_kill(tmp_path: Path) -> None:
    file, settings = tmp_path / "rows.jsonl", {"seed": 1}
    store = RowStore(file, settings, "rows")
    store.write({"images": [0, 2], "x": 0.5})
    with open(file, "a") as out:
        out.write('{"images": [1], "x"')
    again = RowStore(file, settings, "rows")
    assert again.missing(3) == [1]
    again.write({"images": [1], "x": 1.5})
    assert [row["x"] for row in RowStore(file, settings, "rows").rows] == [0.5, 1.5]
    with pytest.raises(ValueError, match="seed: 1 there, 2 now"):
        RowStore(file, {"seed": 2}, "rows")
    (tmp_path / "report.json").write_text("{}")
    results = [tmp_path / "report.json"]
    assert RowStore(file, settings, "rows", results).missing(4) == [3]
    assert RowStore(file, {"seed": 2}, "rows", results, overwrite=True).rows == []
    assert not results[0].exists()


@pytest.mark.parametrize("values", [[0.5], [-1], [[0]], [0, 1], ["a"], [True]])
def test_what_is_no_whole_number(values: Any) -> None:
    with pytest.raises(ValueError, match="places must be 1 whole numbers of 0 or more"):
        whole_numbers(values, "places", 1)


def test_rows_of_several_processes_become_one_file(tmp_path: Path) -> None:
    """Each process writes a file of its own; whoever opens the store next, finds all rows in order."""
    file, settings = tmp_path / "rows.jsonl", {"seed": 1}
    main, other, third = (RowStore(file, settings, "rows", process=process) for process in range(3))
    third.write({"images": [4], "x": 4.0})
    other.write({"images": [2, 3], "x": 2.0})
    main.write({"images": [0, 1], "x": 0.0})
    with open(tmp_path / "rows.1.jsonl", "a") as cut:
        cut.write('{"images": [5], "x"')  # killed while it wrote
    (tmp_path / "rows.7.jsonl").write_text('{"seed": 2}\n{"images": [6], "x": 6.0}\n')  # of a job with other settings
    again = RowStore(file, settings, "rows")
    assert [row["x"] for row in again.rows] == [0.0, 2.0, 4.0]
    assert again.missing(7) == [5, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    other.write({"images": [5], "x": 5.0})
    other.write({"images": [0, 1], "x": 9.0})  # there already
    again.merge()
    assert [row["x"] for row in again.rows] == [0.0, 2.0, 4.0, 5.0]
    other.read()
    assert other.rows == again.rows
    assert RowStore(file, {"seed": 2}, "rows", overwrite=True).rows == []
