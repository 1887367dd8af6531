"""Downloads of files whose SHA-256 nobody published: examined at first, recorded, and pinned from then on."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.file_server import CONTENT, SHA, Server, serving
from undiffuse.downloads import DownloadError, fetch, recorded, report, reporting

MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNDIFFUSE_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def whole(path: Path) -> str:
    """What a file's own structure would tell: here, that its end is there and its first byte right."""
    found = path.read_bytes()
    return "" if len(found) == len(CONTENT) and found[:1] == CONTENT[:1] else "its structure is broken"


def get(server: Server, path: Path, **keywords: object) -> Path:
    settings = {"sha256": None, "check": whole, "wait": 0.0, "timeout": 5.0}
    return fetch(server.url, path, **{**settings, **keywords})  # type: ignore[arg-type]


def test_the_first_download_is_recorded_and_not_repeated(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path / "f")
    assert path.read_bytes() == CONTENT
    assert recorded(path) == SHA
    text = (tmp_path / "f.sha256").read_text()
    assert f"{len(CONTENT)} bytes" in text
    assert server.url in text
    get(server, path)
    assert len(server.ranges) == 1


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs the program sha256sum")
def test_the_record_is_one_that_sha256sum_reads(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path / "f")
    done = subprocess.run(["sha256sum", "-c", "f.sha256"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("fault", ["break", "claims more", "claims less", "corrupt", "no length", "503"])
def test_one_fault_is_survived(server: Server, tmp_path: Path, fault: str) -> None:
    server.faults = [fault]
    path = get(server, tmp_path / "f")
    assert path.read_bytes() == CONTENT
    assert recorded(path) == SHA


@pytest.mark.parametrize("how", ["check", "md5", "x-ms-blob-content-md5", "Content-MD5"])
def test_wrong_bytes_every_time_are_refused_and_not_recorded(server: Server, tmp_path: Path, how: str) -> None:
    """By its structure, by a published MD5 sum, or by the sum that the server itself sends."""
    told = {"check": "its structure is broken", "md5": f"expected {MD5}"}.get(how, "the server gives")
    server.faults = ["corrupt"] * 9
    server.md5_header = "" if how in ("check", "md5") else how
    known = (
        {"check": whole} if how == "check" else {"check": None, "md5": MD5} if how == "md5" else {"check": lambda _: ""}
    )
    with pytest.raises(DownloadError, match=told):
        get(server, tmp_path / "f", **known)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.lock"]
    assert len(server.ranges) == 3


def test_the_servers_sum_of_the_whole_file_also_counts_after_a_resumed_download(server: Server, tmp_path: Path) -> None:
    server.md5_header = "x-ms-blob-content-md5"
    (tmp_path / "f.part").write_bytes(b"other bytes than the server's")
    path = get(server, tmp_path / "f", check=lambda _: "")
    assert path.read_bytes() == CONTENT
    assert server.ranges == ["bytes=29-", None]


def test_a_file_that_changed_is_brought_again_as_it_was(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path / "f")
    path.write_bytes(CONTENT[:-1] + b"?")
    assert get(server, path).read_bytes() == CONTENT
    assert len(server.ranges) == 2


def test_another_file_at_the_same_address_is_refused(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path / "f")
    path.unlink()
    server.content = CONTENT[:-1] + b"?"  # as sound as the first by its structure
    with pytest.raises(DownloadError, match=".*f.sha256 records that of the first download, delete it to start again"):
        get(server, path)
    assert not path.exists()
    (tmp_path / "f.sha256").unlink()
    assert get(server, path).read_bytes() == server.content


def test_a_file_brought_by_hand_is_examined_and_recorded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDIFFUSE_OFFLINE", "1")
    path = tmp_path / "f"
    with pytest.raises(DownloadError, match="UNDIFFUSE_OFFLINE is set") as caught:
        get(server, path)
    assert str(path) in str(caught.value)
    path.write_bytes(b"not it")
    with pytest.raises(DownloadError, match="the existing file is wrong: its structure is broken"):
        get(server, path)
    path.write_bytes(CONTENT)
    assert get(server, path) == path
    assert recorded(path) == SHA
    assert server.ranges == []


def test_nothing_to_examine_by_is_a_mistake(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot verify .*: give sha256, md5 or check"):
        get(server, tmp_path / "f", check=None)
    with pytest.raises(ValueError, match="requires sha256"):
        get(server, tmp_path / "f", content="gunzipped")


@pytest.mark.parametrize("text", ["", "nonsense", "g" * 64 + "  f\n"])
def test_a_damaged_record_counts_as_none(server: Server, tmp_path: Path, text: str) -> None:
    (tmp_path / "f.sha256").write_text(text)
    assert recorded(get(server, tmp_path / "f")) == SHA


def test_work_on_files_is_reported_to_who_listens(server: Server, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int | None]] = []
    report("nobody listens", 0, None)
    with reporting(lambda *what: heard.append(what)):
        get(server, tmp_path / "f")
        report("something", 1, 2)
    report("nobody listens", 0, None)
    assert heard[-1] == ("something", 1, 2)
    assert heard[-2] == ("downloading f", len(CONTENT), len(CONTENT))
    assert os.path.basename(str(tmp_path / "f")) in heard[0][0]
