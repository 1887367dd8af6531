"""Downloads that can be trusted: pinned by SHA-256, resumed where they broke off, put in place atomically.

Only the standard library is used. A download goes to ``NAME.part`` beside its destination, continues there with an HTTP
``Range`` request after an interruption (of the connection or of the process), is compared with its checksum, and is
only then renamed to its final name. A file under its final name is therefore always complete and right.
"""

from __future__ import annotations

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
from pathlib import Path
from typing import Literal

__all__ = ["DownloadError", "cache_dir", "digest_of", "fetch"]

_BLOCK = 1 << 18
_CORRUPT_LIMIT = 2
"""How many complete downloads with a wrong checksum are accepted before giving up."""

Content = Literal["file", "gunzipped"]


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


def fetch(
    url: str,
    path: str | Path,
    *,
    sha256: str,
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
        sha256: the expected SHA-256, 64 hexadecimal digits.
        content: what the checksum is of: the ``"file"`` itself, or its ``"gunzipped"`` content. The latter accepts
            every re-compression of the same data, which is what mirrors and distributions make.
        size: the most bytes the file may have, if known; a server that sends more is cut off.
        retries: how often in a row an attempt may bring nothing new before giving up.
        timeout: seconds without a byte after which a connection counts as broken.
        wait: seconds before the first new attempt; doubled after each attempt that brought nothing, at most 30.
        progress: called as ``progress(bytes_so_far, bytes_in_all_or_None)`` while the file comes in.

    Raises:
        ValueError: the address is not HTTP(S) or the checksum is not a SHA-256.
        DownloadError: it did not work (no network, ``UNDIFFUSE_OFFLINE=1``, HTTP error, wrong content every time).
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"cannot download {url!r}: expected an address starting with http:// or https://")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"{sha256!r} is not a SHA-256 checksum: expected 64 hexadecimal digits")
    path, expected = Path(path), sha256.lower()
    if path.is_file() and digest_of(path, content) == expected:
        return path
    if os.environ.get("UNDIFFUSE_OFFLINE", "") not in ("", "0"):
        raise DownloadError(_by_hand(url, path, "UNDIFFUSE_OFFLINE is set"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path) as part:
            # Another process may have finished the file while this one waited for its turn.
            if not (path.is_file() and digest_of(path, content) == expected):
                _download(url, part, expected, content, size, retries, timeout, wait, progress)
                os.replace(part, path)
    except _Fatal as error:
        raise DownloadError(_by_hand(url, path, str(error))) from error
    except PermissionError as error:
        raise DownloadError(_by_hand(url, path, f"{path.parent} cannot be written: {error.strerror}")) from error
    return path


def _by_hand(url: str, path: Path, reason: str) -> str:
    return (
        f"could not download {url}: {reason}. Without a network, bring the file here by hand: save it as {path} "
        "and run the same command again (UNDIFFUSE_CACHE chooses another cache folder)."
    )


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """Hold the right to write the partial file of `path`, and give its name."""
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
    expected: str,
    content: Content,
    size: int | None,
    retries: int,
    timeout: float,
    wait: float,
    progress: Callable[[int, int | None], None] | None,
) -> None:
    """Fill `part` until its checksum is right."""
    idle = corrupt = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _attempt(url, part, size, timeout, progress)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing after the last byte: the file is complete, or the partial file is not ours
                reason = ""
            elif 400 <= error.code < 500 and error.code not in (408, 429):
                raise _Fatal(f"the server answered {error.code} {error.reason}") from error
            else:
                reason = f"the server answered {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        else:
            reason = ""
        if not reason:
            found = digest_of(part, content) if part.exists() else "an empty answer"
            if found == expected:
                return
            part.unlink(missing_ok=True)
            # A partial file left by an older attempt may be the culprit, so a bad sum is worth a fresh start.
            corrupt += 1
            if corrupt > _CORRUPT_LIMIT:
                what = "content" if content == "gunzipped" else "file"
                raise _Fatal(f"the {what} has the wrong checksum (SHA-256 {found}, expected {expected})")
            continue
        grew = part.exists() and part.stat().st_size > before
        idle = 0 if grew else idle + 1
        if idle > retries:
            raise _Fatal(f"{reason} ({idle} attempts)")
        if wait > 0:
            time.sleep(min(30.0, wait * 2 ** max(0, idle - 1)))


def _attempt(
    url: str, part: Path, size: int | None, timeout: float, progress: Callable[[int, int | None], None] | None
) -> None:
    """One connection: append to `part` what is missing. Raises if it ended before the server's own length."""
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
        total = start + int(length) if length is not None and length.isdigit() else None
        if size is not None and total is not None and total > size:
            raise _Fatal(f"the server offers {total} bytes, expected at most {size}")
        got = start
        with open(part, "ab" if start else "wb") as out:
            try:
                while block := _read(answer):
                    out.write(block)
                    got += len(block)
                    if size is not None and got > size:
                        raise _Fatal(f"the server sent more than the expected {size} bytes")
                    if progress is not None:
                        progress(got, total)
            finally:
                out.flush()
                os.fsync(out.fileno())
        if total is not None and got < total:
            raise http.client.HTTPException(f"the connection ended after {got} of {total} bytes")


def _read(answer: http.client.HTTPResponse) -> bytes:
    """The next bytes; what breaks the connection (TLS too) becomes an HTTPException, unlike errors of the disk."""
    try:
        return answer.read1(_BLOCK)
    except OSError as error:
        raise http.client.HTTPException(str(error) or type(error).__name__) from error
