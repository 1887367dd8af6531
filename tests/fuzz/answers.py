"""The door of downloads: a server whose answers lie, drip, never end or contradict each other."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.damage import damaged
from fuzz.own import Made, Silent

CONTENT = bytes(range(256)) * 8
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA = hashlib.sha256(CONTENT).hexdigest()
_HEADERS = [
    "Content-Length: {length}", "Content-Length: -1", "Content-Length: 99999999999999999999", "Content-Length: x",
    "Content-Length: 10", "Transfer-Encoding: chunked", "Content-Range: bytes {start}-{last}/{length}",
    "Content-Range: bytes 5-3/x", "Content-Range: bytes */0", "Content-MD5: {md5}", "Content-MD5: AAAA",
    "Content-MD5: \xff\xfe", "Location: http://127.0.0.1:1/x", "Location: file:///etc/hostname", "Location: //",
    "Location: ", "Content-Encoding: gzip", "Connection: keep-alive", "X: " + "y" * 70_000, "no colon", "",
    "\0: \0",
    "x-ms-blob-content-md5: {md5}", "Accept-Ranges: none", "Content-Type: text/html",
]  # fmt: skip
_STATUS = ["200 OK", "206 Partial Content", "200", "abc", "301 Moved", "302 Found", "304 Not Modified", "404 No",
           "416 Range", "429 Slow", "500 Broken", "503 Busy",
           "100 Continue", "204 Empty", "999 X", "-1 X", "200 \xff"]  # fmt: skip


class LyingServer:
    """Answers every connection with what it was given, byte by byte."""

    def __init__(self) -> None:
        self.answers: list[tuple[bytes, bytes]] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/file.bin"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, IndexError):
            connection.settimeout(5)
            connection.recv(65536)
            head, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            connection.sendall(head)
            if body == b"endless":
                while True:
                    connection.sendall(CONTENT)
            elif body.startswith(b"drip"):
                for k in range(400):
                    connection.sendall(body[k : k + 1])
                    time.sleep(0.01)
            else:
                connection.sendall(body)


class Answers:
    """The door of `downloads.fetch`."""

    folder: Path

    def _reply(self, rng: random.Random) -> tuple[bytes, bytes]:
        start = rng.choice([0, 0, 0, 100, 2047])
        values: dict[str, Any] = {
            "length": len(CONTENT) - start, "start": start, "last": len(CONTENT) - 1,
            "md5": base64.b64encode(hashlib.md5(CONTENT).digest()).decode(),
        }  # fmt: skip
        lines = [f"HTTP/1.1 {rng.choice(_STATUS[:2] if rng.random() < 0.6 else _STATUS)}"]
        lines += [rng.choice(_HEADERS).format(**values) for _ in range(rng.randint(0, 4))]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        head = damaged(rng, head) if rng.random() < 0.2 else head
        honest = CONTENT[start:]
        body: bytes = rng.choice([honest, honest[:1000], damaged(rng, honest), b"", honest * 3,
                                  b"5\r\nabcde\r\n0\r\n\r\n", b"zz\r\n", b"-5\r\n"])  # fmt: skip
        if rng.random() < 0.02:
            body = rng.choice([b"endless", b"drip" * 100])
        return head, body

    def on_answer(self, rng: random.Random) -> Made:
        from undiffuse import downloads

        if not hasattr(self, "_server"):
            self._server = LyingServer()
        server = self._server
        server.answers = [self._reply(rng) for _ in range(rng.randint(1, 3))]
        data = b"\n".join(head[:500] + body[:500] for head, body in server.answers)
        path = self.folder / "download" / "file.bin"
        by = rng.choice(["sha256", "md5"])
        said: dict[str, Any] = {"sha256": SHA} if by == "sha256" else {"sha256": None, "md5": MD5}
        size: int | None = rng.choice([None, 10_000])

        def call() -> None:
            for file in path.parent.glob("*") if path.parent.is_dir() else ():
                file.unlink()
            ignored: Callable[[int, int | None], None] = lambda done, total: None  # noqa: E731
            downloads.fetch(
                server.url, path, **said, size=10_000_000 if size is None else size, retries=1, timeout=0.3, wait=0,
                progress=ignored,
            )  # fmt: skip
            if path.read_bytes() != CONTENT:
                raise Silent("a download was accepted that is not the file")

        return data, call
