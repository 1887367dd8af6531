"""Verified downloads: pinned by SHA-256, resumed after interruptions, and put in place atomically.

Only the standard library is used. A download is written to `NAME.part` next to its destination. After an interruption
of the connection or the process, it resumes there with an HTTP `Range` request. It is compared with its checksum, and
only then renamed, so a file under its final name is always complete and correct.

If the publisher gives no SHA-256, the first download is verified by other means: its MD5 sum, the MD5 sum from the
server, or its structure. Its SHA-256 is then written to `NAME.sha256` next to it and pins the file from then on.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import gzip
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

from undiffuse.util import files
from undiffuse.util.files import atomic_file
from undiffuse.util.limits import limit
from undiffuse.util.transfers import Watch

__all__ = ["DownloadError", "alone", "cache_dir", "digest_of", "fetch", "recorded", "report", "reporting"]

_BLOCK = 1 << 18
_CORRUPT_LIMIT = 2
"""Number of complete downloads with a wrong checksum that are tolerated."""
_WORTHWHILE = 1 << 14
"""Bytes that an attempt must bring to count as progress."""

Content = Literal["file", "gunzipped"]
Report = Callable[[str, int, "int | None"], None]
Check = Callable[[Path], str]
"""Checks a file and returns a description of the problem, or an empty text."""

_REPORT: ContextVar[Report | None] = ContextVar("report", default=None)


class DownloadError(OSError):
    """A file could not be downloaded. The message names the file and the reason, and says how to place it by hand."""


class _Fatal(Exception):
    """A failure for which a retry is pointless, for example HTTP 404."""


def cache_dir(*parts: str) -> Path:
    """Returns the folder for downloaded files; it is not created.

    It is `$UNDIFFUSE_CACHE`, else `$XDG_CACHE_HOME/undiffuse`, else `~/.cache/undiffuse`.

    Args:
        parts: Path components to append.
    """
    own = os.environ.get("UNDIFFUSE_CACHE")
    if own:
        return Path(own).expanduser().joinpath(*parts)
    base = os.environ.get("XDG_CACHE_HOME")
    root = Path(base).expanduser() if base else Path.home() / ".cache"
    return root.joinpath("undiffuse", *parts)


def digest_of(path: str | Path, content: Content = "file") -> str:
    """Computes the SHA-256 of a file.

    Args:
        path: The file.
        content: "file" for the file itself, "gunzipped" for its uncompressed content.

    Returns:
        64 hexadecimal digits, or "not a readable gzip file" if the content cannot be unpacked.
    """
    sha = hashlib.sha256()
    try:
        with gzip.open(path, "rb") if content == "gunzipped" else open(path, "rb") as stream:
            while block := stream.read(_BLOCK):
                sha.update(block)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return "not a readable gzip file"
    return sha.hexdigest()


@contextlib.contextmanager
def reporting(to: Report) -> Iterator[None]:
    """Sends the progress of long work on files (downloads, conversions) to a callback inside the block.

    Args:
        to: Called as `to(what, bytes_done, bytes_total_or_None)`.
    """
    token = _REPORT.set(to)
    try:
        yield
    finally:
        _REPORT.reset(token)


def report(what: str, done: int, total: int | None) -> None:
    """Reports progress to the callback of `reporting`, if there is one.

    Args:
        what: Description of the work.
        done: Bytes done so far.
        total: Total bytes; None if unknown.
    """
    listener = _REPORT.get()
    if listener is not None:
        listener(what, done, total)


def recorded(path: str | Path) -> str | None:
    """Returns the SHA-256 of the first download of `path`, recorded in `NAME.sha256`; None if there is no record.

    The record has the format of `sha256sum`.
    """
    try:
        found = re.match(r"([0-9a-f]{64})  ", _record(Path(path)).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return found.group(1) if found else None


def fetch(
    url: str,
    path: str | Path,
    *,
    sha256: str | None,
    md5: str | None = None,
    check: Check | None = None,
    content: Content = "file",
    size: int | None = None,
    retries: int = 4,
    timeout: float = 30.0,
    wait: float = 1.0,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Downloads `url` to `path`, unless the file is already there, and returns `path`.

    A file with the right checksum is used without a connection; one with a wrong checksum is replaced. Interrupted
    transfers resume. If several processes fetch the same file, one downloads it and the others wait (on POSIX systems).

    Args:
        url: `http://` or `https://` address.
        path: Destination; missing folders are created.
        sha256: Expected SHA-256, 64 hexadecimal digits. If None, `md5` and `check` verify the first download, and its
            recorded SHA-256 verifies the file from then on.
        md5: Expected MD5 sum, used if there is no SHA-256.
        check: Returns what is wrong with a complete file, used if there is no SHA-256.
        content: What the checksum refers to: the "file" itself, or its "gunzipped" content, which accepts recompressed
            files from mirrors and distributions.
        size: Maximum number of bytes; a server that sends more is cut off. None uses UNDIFFUSE_MAX_DOWNLOAD, see
            `undiffuse.util.limits`.
        retries: Number of consecutive attempts that bring less than 16 KiB before giving up.
        timeout: Seconds without data, or with less than 1 KiB per second, after which a connection counts as broken.
        wait: Seconds before the first retry; doubled after each attempt without progress, up to 30.
        progress: Called as `progress(bytes_done, bytes_total_or_None)`.

    Raises:
        ValueError: The address is not HTTP(S), the checksum is not a SHA-256, or nothing can verify the file.
        DownloadError: The download failed (no network, `UNDIFFUSE_OFFLINE=1`, HTTP error, or repeatedly wrong content).
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"cannot download {url!r}: expected an address starting with http:// or https://")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"{sha256!r} is not a SHA-256 checksum: expected 64 hexadecimal digits")
    if sha256 is None and md5 is None and check is None:
        raise ValueError(f"cannot verify {url}: give sha256, md5 or check")
    if sha256 is None and content != "file":
        raise ValueError(f"content={content!r} requires sha256, to verify {url}")
    path = Path(path)
    pinned = (sha256 or recorded(path) or "").lower()
    if pinned and path.is_file() and digest_of(path, content) == pinned:
        return path
    if progress is None:
        name = f"downloading {path.name}"
        progress = lambda done, total: report(name, done, total)  # noqa: E731
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path) as part:
            # Another process may have finished the file while this one waited.
            pinned = pinned or recorded(path) or ""
            examine = _Examiner(path, content, pinned, "" if sha256 else md5 or "", None if sha256 else check)
            if path.is_file() and not examine(path, ""):
                if not pinned:  # the user has placed it
                    _write_record(path, path, url)
                return path
            if os.environ.get("UNDIFFUSE_OFFLINE", "") not in ("", "0"):
                raise _Fatal(f"downloads are disabled (UNDIFFUSE_OFFLINE is set){examine.problem_text}")
            _download(url, part, examine, size, retries, timeout, wait, progress)
            if sha256 is None:
                _write_record(path, part, url)
            files.place(part, path, overwrite=True)
    except _Fatal as error:
        raise DownloadError(_by_hand(url, path, str(error))) from error
    except PermissionError as error:
        raise DownloadError(_by_hand(url, path, f"{path.parent} cannot be written: {error.strerror}")) from error
    return path


class _Examiner:
    """Verifies a file: examine(file, server_md5) returns the problem, or "".

    `problem_text` is the last problem, phrased as an addition to another message.
    """

    def __init__(self, path: Path, content: Content, pinned: str, md5: str, check: Check | None) -> None:
        self.path, self.content, self.pinned, self.md5, self.check = path, content, pinned, md5, check
        self.problem_text = ""

    def __call__(self, file: Path, servers_md5: str) -> str:
        problem = self._problem(file, servers_md5)
        self.problem_text = f"; the existing file is wrong: {problem}" if problem else ""
        return problem

    def _problem(self, file: Path, servers_md5: str) -> str:
        if self.pinned:
            found = digest_of(file, self.content)
            if found == self.pinned:
                return ""
            what = "content" if self.content == "gunzipped" else "file"
            problem = f"the {what} has the wrong checksum (SHA-256 {found}, expected {self.pinned})"
            if recorded(self.path) == self.pinned:
                problem += f"; {_record(self.path)} records that of the first download, delete it to start again"
            return problem
        for expected, whose in ((self.md5, "expected"), (servers_md5, "the server gives")):
            found = _md5_of(file) if expected else expected
            if found != expected:
                return f"the file has the wrong checksum (MD5 {found}, {whose} {expected})"
        return self.check(file) if self.check is not None else ""


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _write_record(path: Path, file: Path, url: str) -> None:
    """Records the SHA-256 and size of `file`, which is or will be `path`."""
    record = _record(path)
    text = f"{digest_of(file)}  {path.name}\n# {file.stat().st_size} bytes, from {url}\n"
    with atomic_file(record, overwrite=True) as out:
        out.write(text.encode())


def _md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _by_hand(url: str, path: Path, reason: str) -> str:
    return (
        f"could not download {url}: {reason}. Without a network, get the file by hand, save it as {path} "
        "and run the same command again (UNDIFFUSE_CACHE sets the cache folder)."
    )


@contextlib.contextmanager
def alone(path: Path) -> Iterator[Path]:
    """Locks `path` for this process inside the block and yields the name of its partial file."""
    try:
        import fcntl
    except ImportError:  # no advisory locks: use one partial file per process, which cannot be resumed
        yield path.with_name(f"{path.name}.{os.getpid()}.part")
        return
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        # The lock ends with the process, so a killed download never blocks the next one.
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path.with_name(path.name + ".part")


def _download(
    url: str,
    part: Path,
    examine: _Examiner,
    size: int | None,
    retries: int,
    timeout: float,
    wait: float,
    progress: Callable[[int, int | None], None] | None,
) -> None:
    """Downloads into `part` until the file is verified."""
    idle = corrupt = 0
    servers_md5 = ""
    said: dict[str, int] = {}
    most = limit("UNDIFFUSE_MAX_DOWNLOAD") if size is None else size
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            servers_md5 = _attempt(url, part, most, timeout, progress, said) or servers_md5
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing after the last byte: the file is complete, or the partial file is not ours
                reason = ""
            elif 400 <= error.code < 500 and error.code not in (408, 429):
                raise _Fatal(f"the server answered {error.code} {error.reason}") from error
            else:
                reason = f"the server answered {error.code} {error.reason}"
        except (
            urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ValueError, OverflowError,
        ) as error:  # fmt: skip
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        except _Contradiction as error:
            part.unlink(missing_ok=True)
            said.clear()
            corrupt += 1
            if corrupt > _CORRUPT_LIMIT:
                raise _Fatal(str(error)) from error
            continue
        else:
            reason = ""
        if not reason:
            problem = examine(part, servers_md5) if part.exists() else "the answer was empty"
            if not problem:
                return
            part.unlink(missing_ok=True)
            # An older partial file may be the cause, so a wrong checksum is worth a fresh start.
            corrupt += 1
            if corrupt > _CORRUPT_LIMIT:
                raise _Fatal(problem)
            continue
        grew = part.exists() and part.stat().st_size >= before + _WORTHWHILE
        idle = 0 if grew else idle + 1
        if idle > retries:
            raise _Fatal(f"{reason} ({idle} attempts)")
        if wait > 0:
            time.sleep(min(30.0, wait * 2 ** max(0, idle - 1)))


class _Contradiction(Exception):
    """A server contradicts what it said about a file before."""


def _attempt(
    url: str,
    part: Path,
    size: int,
    timeout: float,
    progress: Callable[[int, int | None], None] | None,
    said: dict[str, int],
) -> str:
    """Appends the missing bytes to `part` over one connection; raises if the server's data ends early.

    Args:
        size: Maximum number of bytes of the file.
        said: Receives the "total" bytes of the whole file from the first answer; later answers must agree.

    Returns:
        The MD5 sum of the whole file from the server, or "".
    """
    with Watch(timeout) as watch:
        try:
            return _watched_attempt(url, part, size, timeout, progress, said, watch)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if watch.slow and not isinstance(error, urllib.error.HTTPError):
                raise http.client.HTTPException(watch.slow) from error
            raise


def _watched_attempt(
    url: str,
    part: Path,
    size: int,
    timeout: float,
    progress: Callable[[int, int | None], None] | None,
    said: dict[str, int],
    watch: Watch,
) -> str:
    """`_attempt` over the connections of `watch`."""
    have = part.stat().st_size if part.exists() else 0
    opener = watch.opener()
    request = urllib.request.Request(url, headers={"User-Agent": "undiffuse", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with opener.open(request, timeout=timeout) as answer:
        start = 0
        if answer.status == 206:
            match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            start = int(match.group(1)) if match else -1
            if start != have:
                part.unlink(missing_ok=True)
                raise http.client.HTTPException("the server sent a different part of the file than requested")
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdigit() and len(length) < 16 else None
        if total is not None and total != said.setdefault("total", total):
            raise _Contradiction(f"the server first said that the file has {said['total']} bytes, then {total}")
        if total is not None and total > size:
            raise _Fatal(f"the server offers {total} bytes, expected at most {size}")
        got = start
        with open(part, "ab" if start else "wb") as out:
            try:
                while block := _read(answer):
                    out.write(block)
                    got += len(block)
                    watch.got += len(block)
                    if got > size:
                        raise _Fatal(f"the server sent more than the expected {size} bytes")
                    if progress is not None:
                        progress(got, total)
            finally:
                out.flush()
                os.fsync(out.fileno())
        if watch.slow:
            raise http.client.HTTPException(watch.slow)
        if total is not None and got < total:
            raise http.client.HTTPException(f"the connection ended after {got} of {total} bytes")
        return _told_md5(answer)


def _told_md5(answer: http.client.HTTPResponse) -> str:
    """Returns the MD5 sum of the whole file from an answer's headers, in hexadecimal digits; "" if there is none.

    Azure's header also describes the whole file in partial answers, so it is read first; Content-MD5 describes the
    bytes sent.
    """
    digest_header = answer.headers.get("x-ms-blob-content-md5")
    if digest_header is None and answer.status == 200:
        digest_header = answer.headers.get("Content-MD5")
    try:
        digest = base64.b64decode(digest_header or "", validate=True)
    except (binascii.Error, ValueError):
        return ""
    return digest.hex() if len(digest) == 16 else ""


def _read(answer: http.client.HTTPResponse) -> bytes:
    """Reads the next bytes; connection errors (TLS included) become HTTPException, unlike errors of the disk."""
    try:
        return answer.read1(_BLOCK)
    except OSError as error:
        raise http.client.HTTPException(str(error) or type(error).__name__) from error
