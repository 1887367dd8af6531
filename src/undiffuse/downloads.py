"""Downloads that can be trusted: pinned by SHA-256, resumed where they broke off, put in place atomically.

Only the standard library is used. A download goes to ``NAME.part`` beside its destination, continues there with an HTTP
``Range`` request after an interruption (of the connection or of the process), is compared with its checksum, and is
only then renamed to its final name. A file under its final name is therefore always complete and right.

Of a file whose SHA-256 nobody published the first download is examined by what is known (its MD5 sum, the one its
server tells, its own structure) and its SHA-256 written to ``NAME.sha256`` beside it: from then on it is pinned too.
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

from undiffuse.util.limits import limit

__all__ = ["DownloadError", "alone", "cache_dir", "digest_of", "fetch", "recorded", "report", "reporting"]

_BLOCK = 1 << 18
_CORRUPT_LIMIT = 2
"""How many complete downloads with a wrong checksum are accepted before giving up."""
_WORTHWHILE = 1 << 14
"""Bytes that an attempt must bring to count as one that got further."""
_SLOWEST = 1024
"""Bytes a second below which a connection counts as broken."""

Content = Literal["file", "gunzipped"]
Report = Callable[[str, int, "int | None"], None]
Check = Callable[[Path], str]
"""Looks at a file and says what is wrong with it; an empty text if nothing is."""

_REPORT: ContextVar[Report | None] = ContextVar("report", default=None)


class DownloadError(OSError):
    """A file could not be brought here; the message names it, the reason, and how to place it by hand."""


class _Fatal(Exception):
    """A reason for which trying again would be pointless (for example HTTP 404)."""


def cache_dir(*parts: str) -> Path:
    """The folder for downloaded files: ``$UNDIFFUSE_CACHE``, else ``$XDG_CACHE_HOME/undiffuse``, else
    ``~/.cache/undiffuse``.

    The folder is not created; `parts` are appended to it.
    """
    own = os.environ.get("UNDIFFUSE_CACHE")
    if own:
        return Path(own).expanduser().joinpath(*parts)
    base = os.environ.get("XDG_CACHE_HOME")
    root = Path(base).expanduser() if base else Path.home() / ".cache"
    return root.joinpath("undiffuse", *parts)


def digest_of(path: str | Path, content: Content = "file") -> str:
    """SHA-256 of a file as 64 hexadecimal digits, or of what is inside it when `content` is ``"gunzipped"``.

    A gzip file that cannot be unpacked has no digest of its content: the answer then says ``"not a readable gzip
    file"``.
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
    """Within it, `to(what, bytes_so_far, bytes_in_all_or_None)` hears of long work on files: downloads, conversions."""
    token = _REPORT.set(to)
    try:
        yield
    finally:
        _REPORT.reset(token)


def report(what: str, done: int, total: int | None) -> None:
    """Tell whoever listens (see `reporting`) how far some work on a file is."""
    listener = _REPORT.get()
    if listener is not None:
        listener(what, done, total)


def recorded(path: str | Path) -> str | None:
    """The SHA-256 that the first download of `path` gave, from ``NAME.sha256`` beside it; None if there is none.

    The record is in the format of the program ``sha256sum``.
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
    """Make sure that `path` holds the file at `url`, and return `path`.

    A file that is already there and has the right checksum is used without any connection; one with a wrong checksum is
    replaced. Interrupted transfers go on where they stopped. Several processes may ask for the same file at once: one
    downloads, the others wait for it (on POSIX systems).

    Args:
        url: ``http://`` or ``https://`` address.
        path: where the file shall be; missing folders are created.
        sha256: the expected SHA-256, 64 hexadecimal digits. None where nobody published it: then the file is examined
            by `md5` and `check` when it first comes, its SHA-256 is recorded beside it, and holds from then on.
        md5: the expected MD5 sum, used where there is no SHA-256.
        check: looks at a whole file and says what is wrong with it, used where there is no SHA-256.
        content: what the checksum is of: the ``"file"`` itself, or its ``"gunzipped"`` content. The latter accepts
            every re-compression of the same data, which is what mirrors and distributions make.
        size: the most bytes the file may have; a server that sends more is cut off. None takes the limit
            UNDIFFUSE_MAX_DOWNLOAD of `undiffuse.util.limits`.
        retries: how often in a row an attempt may bring less than 16 KiB before giving up.
        timeout: seconds without a byte, or with less than 1 KiB a second, after which a connection counts as broken.
        wait: seconds before the first new attempt; doubled after each attempt that brought nothing, at most 30.
        progress: called as ``progress(bytes_so_far, bytes_in_all_or_None)`` while the file comes in.

    Raises:
        ValueError: the address is not HTTP(S), the checksum is not a SHA-256, or there is nothing to examine a file by.
        DownloadError: it did not work (no network, ``UNDIFFUSE_OFFLINE=1``, HTTP error, wrong content every time).
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"cannot download {url!r}: expected an address starting with http:// or https://")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"{sha256!r} is not a SHA-256 checksum: expected 64 hexadecimal digits")
    if sha256 is None and md5 is None and check is None:
        raise ValueError(f"nothing is known to examine {url} by: give its SHA-256, its MD5 sum or a check")
    if sha256 is None and content != "file":
        raise ValueError(f"the content of {url} needs a SHA-256 to be compared with")
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
            # Another process may have finished the file while this one waited for its turn.
            pinned = pinned or recorded(path) or ""
            examine = _Examiner(path, content, pinned, "" if sha256 else md5 or "", None if sha256 else check)
            if path.is_file() and not examine(path, ""):
                if not pinned:  # it was brought here by hand
                    _write_record(path, path, url)
                return path
            if os.environ.get("UNDIFFUSE_OFFLINE", "") not in ("", "0"):
                raise _Fatal(f"this is offline (--offline, or UNDIFFUSE_OFFLINE is set){examine.told}")
            _download(url, part, examine, size, retries, timeout, wait, progress)
            if sha256 is None:
                _write_record(path, part, url)
            os.replace(part, path)
    except _Fatal as error:
        raise DownloadError(_by_hand(url, path, str(error))) from error
    except PermissionError as error:
        raise DownloadError(_by_hand(url, path, f"{path.parent} cannot be written: {error.strerror}")) from error
    return path


class _Examiner:
    """Says what is wrong with a file: examine(file, md5 told by the server) -> "" if nothing is.

    `told` is what it last said, as an addition to another message.
    """

    def __init__(self, path: Path, content: Content, pinned: str, md5: str, check: Check | None) -> None:
        self.path, self.content, self.pinned, self.md5, self.check = path, content, pinned, md5, check
        self.told = ""

    def __call__(self, file: Path, servers_md5: str) -> str:
        problem = self._problem(file, servers_md5)
        self.told = f"; the file that is there is not the right one: {problem}" if problem else ""
        return problem

    def _problem(self, file: Path, servers_md5: str) -> str:
        if self.pinned:
            found = digest_of(file, self.content)
            if found == self.pinned:
                return ""
            what = "content" if self.content == "gunzipped" else "file"
            problem = f"the {what} has the wrong checksum (SHA-256 {found}, expected {self.pinned})"
            if recorded(self.path) == self.pinned:
                problem += f"; that of the first download is recorded in {_record(self.path)}, delete it to begin anew"
            return problem
        for expected, whose in ((self.md5, "expected"), (servers_md5, "its server says")):
            found = _md5_of(file) if expected else expected
            if found != expected:
                return f"the file has the wrong checksum (MD5 {found}, {whose} {expected})"
        return self.check(file) if self.check is not None else ""


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _write_record(path: Path, file: Path, url: str) -> None:
    """Record the SHA-256 and size of `file`, which is or will be `path`."""
    record = _record(path)
    text = f"{digest_of(file)}  {path.name}\n# {file.stat().st_size} bytes, from {url}\n"
    new = record.with_name(record.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, record)


def _md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _by_hand(url: str, path: Path, reason: str) -> str:
    return (
        f"could not download {url}: {reason}. Without a network, bring the file here by hand: save it as {path} "
        "and run the same command again (UNDIFFUSE_CACHE chooses another cache folder)."
    )


@contextlib.contextmanager
def alone(path: Path) -> Iterator[Path]:
    """Hold the right to write `path`, which one process has at a time, and give the name of its partial file."""
    try:
        import fcntl
    except ImportError:  # no advisory locks here: a partial file of one's own instead, at the price of no resuming
        yield path.with_name(f"{path.name}.{os.getpid()}.part")
        return
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        # The lock goes away with the process, so a killed download never blocks the next one.
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
    """Fill `part` until nothing is wrong with it."""
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
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
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
            # A partial file left by an older attempt may be the culprit, so a bad sum is worth a fresh start.
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
    """A server says something else about a file than it said before."""


def _attempt(
    url: str,
    part: Path,
    size: int,
    timeout: float,
    progress: Callable[[int, int | None], None] | None,
    said: dict[str, int],
) -> str:
    """One connection: appends to `part` what is missing. Raises if it ended before the server's own length.

    Args:
        size: The most bytes the file may have.
        said: Gets the "total" bytes of the whole file as the server says; later answers must say the same.

    Returns:
        The MD5 sum of the whole file as the server tells it, or "".
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "undiffuse", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        start = 0
        if answer.status == 206:
            match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            start = int(match.group(1)) if match else -1
            if start != have:
                part.unlink(missing_ok=True)
                raise http.client.HTTPException("the server answered with another part of the file than asked for")
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdigit() and len(length) < 16 else None
        if total is not None and total != said.setdefault("total", total):
            raise _Contradiction(f"the server first said that the file has {said['total']} bytes, then {total}")
        if total is not None and total > size:
            raise _Fatal(f"the server offers {total} bytes, expected at most {size}")
        got = start
        marked, mark = got, time.monotonic()
        with open(part, "ab" if start else "wb") as out:
            try:
                while block := _read(answer):
                    out.write(block)
                    got += len(block)
                    if got > size:
                        raise _Fatal(f"the server sent more than the expected {size} bytes")
                    if progress is not None:
                        progress(got, total)
                    if time.monotonic() - mark >= timeout:
                        if got - marked < _SLOWEST * timeout:
                            raise http.client.HTTPException(
                                f"the server sent {got - marked} bytes in {timeout:.0f} seconds"
                            )
                        marked, mark = got, time.monotonic()
            finally:
                out.flush()
                os.fsync(out.fileno())
        if total is not None and got < total:
            raise http.client.HTTPException(f"the connection ended after {got} of {total} bytes")
        return _told_md5(answer)


def _told_md5(answer: http.client.HTTPResponse) -> str:
    """The MD5 sum of the whole file in an answer's header, in hexadecimal digits; "" if there is none.

    Azure's name for it, which also comes with a part of the file, is asked first; the common one is of what was sent.
    """
    told = answer.headers.get("x-ms-blob-content-md5")
    if told is None and answer.status == 200:
        told = answer.headers.get("Content-MD5")
    try:
        digest = base64.b64decode(told or "", validate=True)
    except (binascii.Error, ValueError):
        return ""
    return digest.hex() if len(digest) == 16 else ""


def _read(answer: http.client.HTTPResponse) -> bytes:
    """The next bytes; what breaks the connection (TLS too) becomes an HTTPException, unlike errors of the disk."""
    try:
        return answer.read1(_BLOCK)
    except OSError as error:
        raise http.client.HTTPException(str(error) or type(error).__name__) from error
