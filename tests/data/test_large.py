"""What large data sets are indexed by: names as bytes, headers read once, one process at a time."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from undiffuse.data import headers, index, open_data
from undiffuse.data.formats import files
from undiffuse.data.headers import known_headers, read_headers
from undiffuse.data.names import Names
from undiffuse.data.screening import find_flaws
from undiffuse.data.split import split


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and everything counts as large."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "FROM", 5)
    monkeypatch.setattr(files, "_SETTLED", -10.0)


def pictures(root: Path, names: list[str]) -> Path:
    """PNG files of 8x9, the last one of 20x10."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10) if i + 1 == len(names) else (8, 9), (i, 0, 0)).save(root / name)
    return root


def test_names_are_a_sequence() -> None:
    texts = ["a/b/é.png", "a/b/undecodable-\udcff.png", "a/c.png", "top.png", ""]
    names = Names.of(texts)
    assert list(names) == texts == names and names[-2] == "top.png" and names[1:3] == texts[1:3] and len(names) == 5
    assert names[::2] == texts[::2] and names[3:1] == [] and "a/c.png" in names and Names.of(names) is names
    assert names.take([3, 0, 0]) == ["top.png", texts[0], texts[0]] and names.take(range(5)) is names
    assert names.take([]) == [] and list(Names.of([])) == [] and names != texts[:4]
    assert names.runs.folders == ["a/b", "a", ""] and names.runs.starts.tolist() == [0, 2, 3, 5]
    again = Names.of_arrays(names.arrays())
    assert again == names and again.runs.folders == names.runs.folders and pickle.loads(pickle.dumps(names)) == names
    with pytest.raises(IndexError):
        names[5]
    many = [f"{i % 7}/{i}" for i in range(40_000)]
    assert list(Names.of(many)) == many and list(Names.of(many).take(range(39_999, -1, -3))) == many[::-3]


def test_files_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    names = ["a-b/z.png", "a.png", "a/m.png", "a/sub/1.png", "a/t.png", "a0/x.png", "b.png", "Z/q.png", "ä/1.png"]
    root = pictures(tmp_path / "data", names)
    for _ in range(2):
        listing = files.list_files(root)
        assert (
            list(listing.names) == sorted(names) and listing.names.runs.folders == Names.of(sorted(names)).runs.folders
        )
        assert listing.sizes.tolist() == [(root / name).stat().st_size for name in sorted(names)]


def test_headers_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pictures(tmp_path / "data", [f"c{i % 2}/{i}.png" for i in range(12)])
    (root / "c0" / "broken.png").write_bytes(b"none")
    (root / "c1" / "grey.tif").write_bytes(b"")
    Image.fromarray(np.zeros((9, 8), np.float32)).save(root / "c1" / "grey.tif")
    source = open_data(root, check="none")
    assert known_headers(source) is None
    plain = find_flaws(source, check="full", min_size=10)
    looked = find_flaws(source, check="headers", min_size=10)
    assert looked.broken.keys() == plain.broken.keys() and len(looked.broken) == 2 and looked.tiny == plain.tiny
    assert "no defined white" in looked.broken[len(source) - 1]
    monkeypatch.setattr(headers, "_read", lambda *_: pytest.fail("read again"))
    again = open_data(root, check="headers", on_broken="skip")
    assert len(again) == 12 and find_flaws(source, check="headers", value_range=(0, 1)).broken.keys() == {
        list(source.names).index("c0/broken.png")
    }
    kept = known_headers(again)
    assert kept is not None and kept.sizes.shape == (12, 2) and not kept.broken
    assert sorted(map(tuple, kept.sizes.tolist()))[-1] == (20, 10)
    assert read_headers(again.subset([0, 1]), 1) is not None


def test_splits_of_large_sets_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pictures(tmp_path / "data", [f"c{i % 2}/{i}.png" for i in range(20)])
    first = [split(open_data(root), 0.2).validation.name(i) for i in range(4)]
    assert [split(open_data(root), 0.2).validation.name(i) for i in range(4)] == first
    monkeypatch.setattr(index, "FROM", 1000)
    assert [split(open_data(root), 0.2).validation.name(i) for i in range(4)] == first


def test_one_process_makes_an_index_and_the_others_wait(tmp_path: Path) -> None:
    made = []

    def build() -> dict[str, np.ndarray]:
        made.append(1)
        time.sleep(0.3)
        return {"a": np.arange(5)}

    threads = [threading.Thread(target=index.cached, args=("kind", "what", build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    code = (
        "import numpy as np; from undiffuse.data import index\n"
        "print(index.cached('kind', 'what', lambda: {'a': np.zeros(1)})['a'].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0, 1, 2, 3, 4]"


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    path = index.place("kind", "x")
    index.write(path, {"a": np.arange(1000), "empty": np.zeros((0, 3)), "two": np.arange(6).reshape(2, 3).T})
    found = index.read(path)
    assert found is not None and found["a"].tolist() == list(range(1000)) and found["empty"].shape == (0, 3)
    assert found["two"].tolist() == [[0, 3], [1, 4], [2, 5]]
    data = bytearray(path.read_bytes())
    for place in range(0, len(data), 97):
        changed = bytearray(data)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        again = index.read(path)
        assert again is None or (again.keys() <= found.keys() | {""} or len(again) == 3)
        if again is not None and "a" in again:
            assert np.array_equal(again["a"], found["a"])
    path.write_bytes(data[:500])
    assert index.read(path) is None
