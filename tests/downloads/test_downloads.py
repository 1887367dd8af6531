"""Downloads against a server that breaks off, lies about sizes and sends wrong bytes."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.file_server import CONTENT, SHA, Server, serving
from undiffuse.data import fashion_mnist
from undiffuse.downloads import DownloadError, cache_dir, digest_of, fetch


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNDIFFUSE_OFFLINE", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def get(server: Server, path: Path, **keywords: object) -> Path:
    return fetch(server.url, path, **{"sha256": SHA, "wait": 0.0, "timeout": 5.0, **keywords})  # type: ignore[arg-type]


def test_plain_download_reports_progress_and_is_not_repeated(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = get(server, tmp_path / "deep" / "file.bin", progress=lambda got, total: seen.append((got, total)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    get(server, path)
    assert len(server.ranges) == 1
    assert not path.with_name("file.bin.part").exists()


def test_broken_connections_are_resumed(server: Server, tmp_path: Path) -> None:
    server.faults = ["break", "break", "break"]
    assert get(server, tmp_path / "f", retries=0).read_bytes() == CONTENT
    starts = [0 if asked is None else int(asked[6:-1]) for asked in server.ranges]
    assert starts[0] == 0 and starts == sorted(set(starts)) and len(starts) == 4


def test_partial_file_of_an_earlier_process_is_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT[:123_456])
    assert get(server, tmp_path / "f").read_bytes() == CONTENT
    assert server.ranges == ["bytes=123456-"]


@pytest.mark.parametrize("junk", [b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 5)])
def test_foreign_partial_file_is_thrown_away(server: Server, tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "f.part").write_bytes(junk)
    assert get(server, tmp_path / "f").read_bytes() == CONTENT


def test_complete_partial_file_needs_only_the_rename(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT)
    assert get(server, tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["claims more", "claims less", "no length", "corrupt", "500", "503", "429"])
def test_one_fault_is_survived(server: Server, tmp_path: Path, fault: str) -> None:
    server.faults = [fault]
    assert get(server, tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("second", ["no ranges", "other range"])
def test_servers_that_cannot_resume(server: Server, tmp_path: Path, second: str) -> None:
    server.faults = ["break", second]
    assert get(server, tmp_path / "f").read_bytes() == CONTENT
    # Without ranges the second answer is the whole file; bytes of another place are thrown away and asked for anew.
    assert len(server.ranges) == (2 if second == "no ranges" else 3) and server.ranges[1] is not None
    assert second == "no ranges" or server.ranges[2] is None


def test_corrupt_every_time_is_refused_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(DownloadError, match="wrong checksum") as caught:
        get(server, tmp_path / "f")
    assert SHA in str(caught.value) and str(tmp_path / "f") in str(caught.value)
    assert len(server.ranges) == 3
    assert not (tmp_path / "f").exists() and not (tmp_path / "f.part").exists()


def test_missing_file_is_not_retried(server: Server, tmp_path: Path) -> None:
    server.faults = ["404"] * 9
    with pytest.raises(DownloadError, match="404"):
        get(server, tmp_path / "f")
    assert len(server.ranges) == 1


def test_failing_server_is_retried_a_limited_number_of_times(server: Server, tmp_path: Path) -> None:
    server.faults = ["500"] * 99
    with pytest.raises(DownloadError, match="500.*3 attempts"):
        get(server, tmp_path / "f", retries=2)
    assert len(server.ranges) == 3


def test_server_that_sends_too_much_is_cut_off(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="at most 1000"):
        get(server, tmp_path / "f", size=1000)
    server.faults = ["no length"]
    with pytest.raises(DownloadError, match="more than the expected 1000"):
        get(server, tmp_path / "g", size=1000)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("endless", "more than the expected 5000000 bytes"),
        ("drip", r"bytes in 1 seconds \(3 attempts\)"),
        ("one byte", r"\(3 attempts\)"),
        ("dripping header", r"sent 0 bytes in 2 seconds \(3 attempts\)"),
        ("dripping chunk size", r"sent 0 bytes in 2 seconds \(3 attempts\)"),
        ("endless trailer", r"sent [05] bytes in \d seconds \(3 attempts\)"),
        ("another length", "first said that the file has"),
    ],
)
def test_servers_without_an_end_are_given_up(
    server: Server, tmp_path: Path, fault: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDIFFUSE_MAX_DOWNLOAD", "5000000")
    server.always = fault
    with pytest.raises(DownloadError, match=said):
        fetch(server.url, tmp_path / "f", sha256="0" * 64, retries=2, wait=0, timeout=1)
    assert len(server.ranges) < 10


def test_wrong_file_in_place_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    assert get(server, tmp_path / "f").read_bytes() == CONTENT


def test_no_connection_says_what_to_do_by_hand(server: Server, tmp_path: Path) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError) as caught:
        fetch(url, tmp_path / "file.bin", sha256=SHA, retries=1, wait=0.0)
    text = str(caught.value)
    assert url in text and str(tmp_path / "file.bin") in text and "by hand" in text


def test_offline_switch_makes_no_connection(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_OFFLINE", "1")
    with pytest.raises(DownloadError, match="UNDIFFUSE_OFFLINE"):
        get(server, tmp_path / "f")
    assert server.ranges == []
    (tmp_path / "f").write_bytes(CONTENT)
    assert get(server, tmp_path / "f").read_bytes() == CONTENT


def test_threads_that_want_the_same_file_download_it_once(server: Server, tmp_path: Path) -> None:
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(get(server, tmp_path / "f").read_bytes())) for _ in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 4
    assert len(server.ranges) == 1


def test_checksum_of_what_is_inside_a_gzip(server: Server, tmp_path: Path) -> None:
    for level in (1, 9):
        server.content = gzip.compress(CONTENT, level, mtime=level)
        path = get(server, tmp_path / f"{level}.gz", content="gunzipped")
        assert path.read_bytes() == server.content
        assert digest_of(path, "gunzipped") == SHA != digest_of(path)
    (tmp_path / "bad.gz").write_bytes(server.content[:-20])
    assert digest_of(tmp_path / "bad.gz", "gunzipped") != SHA


def test_impossible_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="http"):
        fetch("file:///etc/hostname", tmp_path / "f", sha256=SHA)
    with pytest.raises(ValueError, match="64 hexadecimal"):
        fetch("http://localhost/f", tmp_path / "f", sha256="abc")


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    monkeypatch.delenv("UNDIFFUSE_CACHE", raising=False)
    assert cache_dir("a", "b") == tmp_path / "x" / "undiffuse" / "a" / "b"
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "own"))
    assert cache_dir("a") == tmp_path / "own" / "a"


@pytest.fixture
def small_fashion(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Three pictures in the files' own format, with their checksums in place of the real ones."""
    images = np.arange(3 * 28 * 28, dtype=np.int64).astype(np.uint8)
    raw = {
        "t10k-images-idx3-ubyte.gz": b"\0\0\x08\x03" + np.array([3, 28, 28], ">u4").tobytes() + images.tobytes(),
        "t10k-labels-idx1-ubyte.gz": b"\0\0\x08\x01" + np.array([3], ">u4").tobytes() + bytes([9, 2, 1]),
    }
    monkeypatch.setattr("undiffuse.data.fashion._SHA256", {k: hashlib.sha256(v).hexdigest() for k, v in raw.items()})
    return raw


def test_fashion_is_downloaded_then_found(server: Server, tmp_path: Path, small_fashion: dict[str, bytes]) -> None:
    contents = iter(small_fashion.values())
    base = server.url.rsplit("/", 1)[0] + "/"
    server.content = gzip.compress(next(contents))
    with pytest.raises(DownloadError, match="t10k-labels-idx1-ubyte.gz.*wrong checksum"):
        fashion_mnist("test", folders=[tmp_path], url=base)
    server.content = gzip.compress(next(contents))
    source = fashion_mnist("test", folders=[tmp_path], url=base)
    before = len(server.ranges)
    again = fashion_mnist("test", folders=[tmp_path], url=base)
    assert len(server.ranges) == before
    assert source.fingerprint == again.fingerprint
    assert [source.label(i) for i in range(3)] == [9, 2, 1]
    assert source.label_names is not None and source.label_names[9] == "Ankle boot"
    assert np.array_equal(np.asarray(source.image(1)).ravel(), (np.arange(784, 1568) % 256).astype(np.uint8))


def test_fashion_files_unpacked_by_hand_are_found(tmp_path: Path, small_fashion: dict[str, bytes]) -> None:
    for name, content in small_fashion.items():
        (tmp_path / name.removesuffix(".gz")).write_bytes(content)
    assert len(fashion_mnist("test", folders=[tmp_path], url="http://127.0.0.1:9/")) == 3
