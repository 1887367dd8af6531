"""HTTP transfers that end: connections which are watched, whatever a server does."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import urllib.request
from typing import Any

__all__ = ["Watch"]

_SLOWEST = 1024
"""Bytes per second below which a connection counts as broken."""


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections without reading what the answer holds besides, which may have no end."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """Asks for the address that the answer names."""
        fp.read = lambda *_: b""
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class Watch:
    """Ends a transfer that has become too slow, in whatever it waits for: a handshake, a header, a body, a trailer.

    A connection's own timeout starts again with each byte, so a server that drips bytes would never reach it.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout, self.got, self.slow = timeout, 0, ""
        self._connections: list[http.client.HTTPConnection] = []
        self._sockets: list[socket.socket] = []  # a connection gives its socket away with the answer
        self._over = threading.Event()

    def opener(self) -> urllib.request.OpenerDirector:
        """An opener whose connections are watched."""
        watch = self

        class Plain(http.client.HTTPConnection):
            def connect(self) -> None:
                watch._connections.append(self)
                super().connect()
                watch._sockets.append(self.sock)

        class Secure(http.client.HTTPSConnection):
            def connect(self) -> None:
                watch._connections.append(self)
                super().connect()
                watch._sockets.append(self.sock)

        class Handler(urllib.request.HTTPHandler):
            def http_open(self, req: Any) -> Any:
                return self.do_open(Plain, req)

        class SecureHandler(urllib.request.HTTPSHandler):
            def https_open(self, req: Any) -> Any:
                return self.do_open(Secure, req)

        return urllib.request.build_opener(Redirects, Handler, SecureHandler)

    def __enter__(self) -> Watch:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _run(self) -> None:
        marked, periods = 0, 0
        while not self._over.wait(self.timeout):
            periods += 1
            if self.got == 0 and periods < 2:  # the first answer may take longer
                continue
            if self.got - marked < _SLOWEST * self.timeout:
                seconds = self.timeout if self.got else periods * self.timeout
                self.slow = f"the server sent {self.got - marked} bytes in {seconds:.0f} seconds"
                for end in (*self._sockets, *(connection.sock for connection in self._connections)):
                    if end is not None:
                        with contextlib.suppress(OSError):
                            socket.socket.shutdown(end, socket.SHUT_RDWR)  # below TLS, which would hand out raw bytes
            marked = self.got
