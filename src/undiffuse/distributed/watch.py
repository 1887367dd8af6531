"""The processes of a job watch each other: who died, why, and who stands still.

Every process keeps a connection to rank 0. The system closes it when a process dies, however it dies, so that rank 0
knows at once; a process that fails sends the reason first. Once a second each sends a beat: its progress, the number of
collective operations that it has begun, and for how long its main thread has stood still (`motion`). One process, rank
0 or, if that died, rank 1, then writes one line on stderr. The others end quietly.

Messages are lines of JSON. Connections without the secret word, which lies in the processes' common store, are closed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from undiffuse.distributed.motion import Motion
from undiffuse.util.text import printable

__all__ = ["PATIENCE", "STILL", "RankLostError", "Watch"]

STILL = 30.0
"""Seconds after which a process that stands still, or of which nothing is heard, is named."""
SILENT = 300.0
"""Seconds without a sign of life after which a process counts as dead."""
PATIENCE = 3.0
"""Seconds for which rank 0 may still fail with the error that another rank has reported, and then says it itself."""
GRACE = 5.0
"""Seconds in which the main thread can end its work after another process died. Saving has `SAVING` seconds."""
SAVING = 60.0
_BEAT, _LONGEST = 1.0, 65536
_active: weakref.WeakSet[Watch] = weakref.WeakSet()


class RankLostError(RuntimeError):
    """Another process of the job died or failed; the text names it. The line has been written already."""


@dataclass
class _Peer:
    """A process at the other end of a connection."""

    rank: int = -1
    name: str = ""
    sock: socket.socket | None = None
    received: bytes = b""
    beat: dict[str, Any] = field(default_factory=dict)
    heard: float = field(default_factory=time.monotonic)
    left: bool = False
    named: bool = False


class Watch:
    """Watches the processes of a job from a thread of its own, until `close`.

    Args:
        rank: This process.
        world_size: How many processes there are.
        host: The host of rank 0.
        exchange: Rank 0's text given, keeps it for the others; given None, returns it. Carries port and secret word.
        say: Writes a line for the user.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        host: str,
        exchange: Callable[[str | None], str],
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.failure: str | None = None
        self.calls = 0  # collective operations begun
        self.waiting = 0  # whether this process is in one, in which it stands still while others do not come
        self.sharing = False  # whether every process should be moving
        self.saving = False  # whether this process writes what must not be lost
        self.done: Callable[[], float] = lambda: 0.0
        self._say = say or _write
        self._motion, self._began = Motion(), time.monotonic()
        self._closing = threading.Event()
        self._acknowledged = threading.Event()
        self._lock = threading.Lock()
        self._reported: tuple[float, str] | None = None
        self._doomed: float | None = None
        self._me = _Peer(rank, _own_name(rank))
        self._kills = _memory_kills()
        self._peers: dict[int, _Peer] = {}
        self._server: socket.socket | None = None
        if rank == 0:
            self._word = secrets.token_hex(16)
            self._server = _listen()
            exchange(json.dumps({"port": self._server.getsockname()[1], "word": self._word, "name": self._me.name}))
        else:
            found = json.loads(exchange(None))
            server = _Peer(0, str(found["name"]), _connect(rank, host, int(found["port"])))
            self._peers[0] = server
            self._send(server, {"rank": rank, "name": self._me.name, "word": found["word"]})
        _active.add(self)
        self._thread = threading.Thread(target=self._run, name="undiffuse-watch", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises RankLostError if another process is lost."""
        if self.failure is not None:
            raise RankLostError(self.failure)

    def explain(self, error: BaseException, seconds: float = 2.0) -> None:
        """Raises RankLostError if an operation failed because another process is lost, as is known soon after."""
        end = time.monotonic() + seconds
        while self.failure is None and time.monotonic() < end:
            time.sleep(0.05)
        if self.failure is not None:
            raise RankLostError(self.failure) from error

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        """Counts an operation of all processes, and explains its failure if one of them is lost.

        Raises:
            RankLostError: Another process died or failed.
        """
        self.check()
        self.calls += 1
        self.waiting += 1
        try:
            yield
        except RankLostError:
            raise
        except RuntimeError as error:  # for instance: the connection was closed by a peer
            self.explain(error)
            raise
        finally:
            self.waiting -= 1

    def others_done(self) -> float:
        """Returns the sum of the other processes' progress, on rank 0."""
        return sum(float(peer.beat.get("done", 0.0)) for peer in list(self._peers.values()))

    def close(self, error: BaseException | None = None) -> None:
        """Leaves. Rank 0 waits until the others have left, because it keeps their store.

        Args:
            error: Why the work ends early; the other processes then end as well.
        """
        if error is not None and self.failure is None:
            text = _reason(error)
            if self.rank == 0:
                self._tell({"lost": f"{self._me.name} failed: {text}"})
            else:
                self._tell({"failed": text})
                self._acknowledged.wait(2 * PATIENCE)
        self._closing.set()
        farewell = {"beat": self._own_beat(), "left": True}
        if self.rank == 0 and self.failure is not None:
            farewell["lost"] = self.failure  # the thread may not have sent it yet, and nothing is read after a farewell
        self._tell(farewell)
        if self.rank == 0 and error is None:
            end = time.monotonic() + 2 * PATIENCE
            while time.monotonic() < end and not self._all_left():
                time.sleep(0.01)
        self._thread.join(2 * _BEAT)
        self.drop()

    def drop(self) -> None:
        """Closes the sockets, also in a process that was forked from this one."""
        for peer in self._peers.values():
            if peer.sock is not None:
                peer.sock.close()
        if self._server is not None:
            self._server.close()

    # -- the thread --

    def _run(self) -> None:
        last = beaten = time.monotonic()
        while True:
            self._listen_once(0.2)
            now = time.monotonic()
            if now - last > 5:  # this process was suspended: what was not heard meanwhile means nothing
                for peer in self._peers.values():
                    peer.heard += now - last
            last = now
            if now - beaten >= _BEAT:
                beaten = now
                self._tell({"beat": self._own_beat()})
                if not self._closing.is_set():
                    self._look()
            if self._reported is not None and now - self._reported[0] > PATIENCE and not self._closing.is_set():
                self._lose(self._reported[1])
            if self._closing.is_set() and (self.rank != 0 or self._all_left() or self._doomed is not None):
                return
            if self._doomed is not None and now > self._doomed + (SAVING if self.saving else 0):
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                os._exit(1)

    def _listen_once(self, seconds: float) -> None:
        peers = {peer.sock: peer for peer in self._peers.values() if peer.sock is not None and not peer.left}
        waiting = [*peers, *([self._server] if self._server is not None else [])]
        try:
            with selectors.DefaultSelector() as selector:  # not select, which takes no file beyond number 1024
                for sock in waiting:
                    selector.register(sock, selectors.EVENT_READ)
                ready: list[Any] = [key.fileobj for key, _ in selector.select(seconds)]
        except (OSError, ValueError):  # a socket was closed meanwhile
            time.sleep(seconds)
            return
        for sock in ready:
            if sock is self._server:
                self._accept()
            else:
                self._receive(peers[sock])

    def _accept(self) -> None:
        assert self._server is not None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            sock, _ = self._server.accept()
            sock.settimeout(5)
            line = b""
            while not line.endswith(b"\n") and len(line) < 1024:
                piece = sock.recv(1)
                if not piece:
                    break
                line += piece
            hello = json.loads(line)
            if not secrets.compare_digest(str(hello["word"]), self._word):
                sock.close()
                return
            self._peers[int(hello["rank"])] = _Peer(int(hello["rank"]), str(hello["name"]), sock)

    def _receive(self, peer: _Peer) -> None:
        assert peer.sock is not None
        try:
            data = peer.sock.recv(_LONGEST)
        except OSError:
            data = b""
        if not data:
            if not peer.left:
                peer.left = True
                self._ended(peer)
            return
        peer.heard = time.monotonic()
        *lines, peer.received = (peer.received + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            peer.beat = message.get("beat", peer.beat)
            if "left" in message:
                peer.left = True
            if "lost" in message:
                self._lose(str(message["lost"]), loud=False)
            if "failed" in message and self._reported is None:
                self._reported = (time.monotonic(), f"{peer.name} failed: {message['failed']}")
        if peer.left and self.rank != 0:
            self._acknowledged.set()

    def _ended(self, peer: _Peer) -> None:
        """A connection was closed without a farewell."""
        self._acknowledged.set()
        if self._closing.is_set() or self.failure is not None:
            return
        if self._reported is not None and peer.rank != 0:
            self._lose(self._reported[1])
            return
        memory = _memory_kills() > self._kills
        self._lose(f"{peer.name} was killed" + (" because memory ran out" if memory else " or crashed"))

    def _lose(self, text: str, loud: bool = True) -> None:
        """Notes that another process is lost, says so once, and gives the main thread some seconds to end."""
        with self._lock:
            if self.failure is not None:
                return
            self.failure = text
            self._doomed = time.monotonic() + GRACE
        self._acknowledged.set()
        if loud and self.rank in (0, 1):
            self._say(f"undiffuse: error: {text}; the job ends, and the same command resumes it")
        if self.rank == 0:
            self._tell({"lost": text})

    def _look(self) -> None:
        """Names processes that stand still or of which nothing is heard."""
        now = time.monotonic()
        missing = [rank for rank in range(1, self.world_size) if self.rank == 0 and rank not in self._peers]
        if missing and now - self._began > STILL:
            self._began = float("inf")
            self._say(f"undiffuse: rank {missing[0]} has not started after {STILL:.0f} s; the others wait for it")
        self._me.beat = self._own_beat()
        everyone = [self._me, *self._peers.values()] if self.rank == 0 else list(self._peers.values())
        ahead = max(int(peer.beat.get("calls", 0)) for peer in [self._me, *self._peers.values()])
        for peer in everyone:
            silent = 0.0 if peer is self._me or peer.left else now - peer.heard
            still = float(peer.beat.get("still", 0.0)) if self.rank == 0 and not peer.left else 0.0
            behind = int(peer.beat.get("calls", 0)) < ahead
            if silent > SILENT:
                self._lose(f"{peer.name} has given no sign of life for {silent:.0f} s")
            elif silent > STILL or (still > STILL and (behind or self.sharing)):
                if not peer.named and self.rank in (0, 1):
                    what = f"has stood still for {still:.0f} s in {peer.beat.get('where')}"
                    if silent > STILL:
                        what = f"has given no sign of life for {silent:.0f} s"
                    self._say(f"undiffuse: {peer.name} {what}" + ("; the others wait for it" if behind else ""))
                peer.named = True
            elif max(still, silent) < STILL / 2:
                peer.named = False

    def _own_beat(self) -> dict[str, Any]:
        still = self._motion.look()
        still = 0.0 if self.waiting or self.saving else still
        return {"done": self.done(), "calls": self.calls, "still": round(still, 1), "where": self._motion.where}

    def _all_left(self) -> bool:
        return len(self._peers) == self.world_size - 1 and all(peer.left for peer in self._peers.values())

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in list(self._peers.values()):
            self._send(peer, message)

    def _send(self, peer: _Peer, message: dict[str, Any]) -> None:
        with self._lock, contextlib.suppress(OSError):  # its end is noticed where it is read from
            if peer.sock is not None:
                peer.sock.sendall(json.dumps(message).encode() + b"\n")


def _own_name(rank: int) -> str:
    return f"rank {rank} (process {os.getpid()} on {socket.gethostname()})"


def _reason(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted"
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return printable((text if isinstance(error, (ValueError, OSError)) and text else f"{kind}: {text}")[:500])


def _listen() -> socket.socket:
    """A socket that other machines can connect to, by IPv6 and IPv4 where the system has both."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", 0), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=1024)


def _connect(rank: int, host: str, port: int) -> socket.socket:
    """A connection to rank 0; OSError, which says where it should be, without one."""
    try:
        connection = socket.create_connection((host, port), timeout=60)
    except OSError as error:
        raise OSError(
            f"rank {rank} cannot connect to port {port} of {host}, where rank 0 listens ({error}): the machines of a "
            "job must reach each other on any port"
        ) from error
    connection.settimeout(5)
    return connection


def _memory_kills() -> int:
    """How many processes of this container the system has killed for lack of memory, as far as it says."""
    try:
        with open("/sys/fs/cgroup/memory.events", encoding="ascii") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    except (OSError, ValueError, IndexError):
        return 0


def _write(line: str) -> None:
    """Writes a line on stderr, below a progress line if there is one."""
    with contextlib.suppress(OSError):
        os.write(2, ("\n" if os.isatty(2) else "").encode() + printable(line).encode() + b"\n")


def _forked() -> None:
    for watch in list(_active):
        watch.drop()


if hasattr(os, "register_at_fork"):  # a child with a copy of the connection would hide the death of its parent
    os.register_at_fork(after_in_child=_forked)
