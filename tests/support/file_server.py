"""A local HTTP server that serves one file and misbehaves on request."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

CONTENT = np.random.default_rng(3).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
SHA = hashlib.sha256(CONTENT).hexdigest()


_ENDLESS_LINES = {
    "dripping header": (b"X: ", b"x"),
    "dripping chunk size": (b"Transfer-Encoding: chunked\r\n\r\n5;", b"x"),
    "endless trailer": (b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n", b"X: x\r\n"),
}
"""Answers that never come to an end in their lines: how they go on after the first one, and what is repeated."""


class Server(ThreadingHTTPServer):
    """Serves `content`; `faults` are used up one a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.faults: list[str] = []
        self.ranges: list[str | None] = []
        self.md5_header = ""
        self.always = ""  # the fault of every request without one of its own

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        fault = self.server.faults.pop(0) if self.server.faults else self.server.always
        data, start = self.server.content, 0
        if fault in _ENDLESS_LINES:
            beginning, line = _ENDLESS_LINES[fault]
            with suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\n" + beginning)
                for _ in range(200):
                    self.wfile.write(line)
                    time.sleep(0.05)
            self.close_connection = True
            return
        if fault.isdigit():
            self.send_error(int(fault))
            return
        if asked and fault != "no ranges":
            match = re.match(r"bytes=(\d+)-", asked)
            assert match
            start = int(match.group(1))
            if start >= len(data):
                self.send_error(416)
                return
        body = data[start:]
        if fault == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:]
        self.send_response(206 if start else 200)
        if start:
            shown = start + 1 if fault == "other range" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(data) - 1}/{len(data)}")
        length = {"claims more": len(body) + 1000, "claims less": len(body) - 1000}.get(fault, len(body))
        if fault == "another length":
            length += len(self.server.ranges)
        if fault not in ("no length", "endless"):
            self.send_header("Content-Length", str(length))
        if self.server.md5_header:
            self.send_header(self.server.md5_header, base64.b64encode(hashlib.md5(data).digest()).decode())
        self.end_headers()
        if fault == "endless":
            with suppress(OSError):
                while True:
                    self.wfile.write(body)
        elif fault in ("drip", "one byte"):
            with suppress(OSError):
                for k in range(1 if fault == "one byte" else 100):
                    self.wfile.write(body[k : k + 1])
                    time.sleep(0.05 if fault == "drip" else 0)
        elif fault == "another length":
            self.wfile.write(body[: len(body) // 3])
        else:
            self.wfile.write(body[: len(body) // 3] if fault == "break" else body)
        self.close_connection = True


@contextmanager
def serving() -> Iterator[Server]:
    """A server for the duration of a test."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
