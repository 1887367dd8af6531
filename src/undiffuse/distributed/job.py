"""The processes of one job: joining them, and sharing work among them in whole batches.

Needs no process group: processes meet in a store of key and value, so that any of them may be slow, and each takes the
next batch when it is free. Alone, everything is as if this module did not exist.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from undiffuse.distributed.watch import Watch
from undiffuse.util.agreement import deciding
from undiffuse.util.launch import Launch, launch
from undiffuse.util.locks import FolderLock
from undiffuse.util.progress import NoProgress

__all__ = ["Job", "join"]

TIMEOUT = timedelta(hours=2)  # of connecting, and of the collective operations of a process group
_PAUSES = (0.002, 0.1)  # seconds between two looks at the store, the first and the longest
_current: Job | None = None
_store: Any = None  # of this process, kept until it ends: rank 0 serves it
_joined = 0

T = TypeVar("T")


class Job:
    """This process among those of the job; see `join`.

    All methods but `check` and `first` are collective: every process calls them in the same order.

    Attributes:
        launch: Rank, number of processes and host.
        store: A `torch.distributed.Store` of the job; None for a process alone.
        watch: Notices processes that die or stand still; None for a process alone.
        meanwhile: Called now and then while this process waits for others; None for nothing.
    """

    def __init__(self, started: Launch, store: Any = None, watch: Watch | None = None) -> None:
        self.launch, self.store, self.watch = started, store, watch
        self.rank, self.world_size, self.is_main = started.rank, started.world_size, started.is_main
        self.meanwhile: Callable[[], object] | None = None
        self._number = 0  # of the operations, which makes their keys

    def check(self) -> None:
        """Raises RankLostError if another process died or failed."""
        if self.watch is not None:
            self.watch.check()

    def broadcast_json(self, value: Any) -> Any:
        """Returns the JSON value of rank 0 on every rank; the argument of the other ranks is ignored."""
        if self.store is None:
            return value
        key = self.new_key()
        with self._operation():
            if self.is_main:
                self.store.set(key, json.dumps(value))
                return json.loads(json.dumps(value))
            self._wait(lambda: self.store.check([key]))
            return json.loads(self.store.get(key).decode())

    def first(self, name: str, text: str) -> str:
        """Returns what the first process that calls this with a name gives; not collective, and nobody waits."""
        return text if self.store is None else self.store.compare_set(f"first/{name}", "", text).decode()

    def barrier(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Waits until every process has arrived.

        Args:
            meanwhile: Called now and then.
        """
        if self.store is None:
            return
        key = self.new_key()
        with self._operation():
            if self.store.add(f"{key}/arrived", 1) == self.world_size:
                self.store.set(key, "1")
            self._wait(lambda: self.store.check([key]), meanwhile)

    def gather_json(self, value: Any) -> list[Any]:
        """Returns the JSON values of all ranks, in their order, on every rank."""
        if self.store is None:
            return [value]
        key = self.new_key()
        with self._operation():
            self.store.set(f"{key}/{self.rank}", json.dumps(value))
            keys = [f"{key}/{rank}" for rank in range(self.world_size)]
            self._wait(lambda: self.store.check(keys))
            return [json.loads(self.store.get(one).decode()) for one in keys]

    def main_first(self, action: Callable[[bool], T]) -> T:
        """Calls `action(True)` on rank 0 and then `action(False)` on the others.

        Args:
            action: For example opens a folder that rank 0 has to claim or clear first.

        Raises:
            ValueError, OSError: What `action` raised on rank 0, in every process.
        """
        if self.store is None:
            return action(True)
        result: Any = None
        failure: ValueError | OSError | None = None
        if self.is_main:
            try:
                result = action(True)
            except (ValueError, OSError) as error:
                failure = error
        problem = self.broadcast_json(None if failure is None else [isinstance(failure, OSError), str(failure)])
        if failure is not None:
            raise failure
        if problem is not None:
            raise (OSError if problem[0] else ValueError)(problem[1])
        return result if self.is_main else action(False)

    @contextmanager
    def only_user(self, folder: str | os.PathLike[str], doing: str) -> Iterator[None]:
        """A context in which no other job works in a folder.

        Args:
            folder: The folder, which is created.
            doing: What this job does there, for the message that another one gets: "sampling".

        Raises:
            ValueError: Another process works there, or `folder` is a file.
        """
        lock = self.main_first(lambda main: FolderLock(Path(folder), doing) if main else None)
        try:
            yield
        finally:
            if lock is not None:
                lock.close(remove=True)

    def finish(self, action: Callable[[], Any]) -> Any:
        """Calls `action` on rank 0 and returns its JSON value on every rank.

        Args:
            action: For example puts together what all processes have made.

        Raises:
            ValueError, OSError: What `action` raised on rank 0, in every process.
        """
        value = self.main_first(lambda main: action() if main else None)
        return self.broadcast_json(value)

    def shared(
        self, items: Sequence[int], size: int, bar: NoProgress, reserved: int = 0
    ) -> Iterator[tuple[list[int], NoProgress]]:
        """Yields this process's batches of a common list, whenever it is free, until none is left anywhere.

        Batches are cut as for one process, whoever takes them, so that results do not depend on the number of
        processes. Nor do choices that a process makes at its first batch: it is a full one.

        Args:
            items: Numbers of the results to make; those of rank 0 count.
            size: How many a batch has; that of rank 0 counts.
            bar: Counts finished items; that of rank 0 shows those of all processes.
            reserved: Batches at the beginning that rank 0 makes.

        Yields:
            A batch of items, and the bar to advance while it is made.
        """
        if self.store is None or self.watch is None:
            for start in range(0, len(items), size):
                yield list(items[start : start + size]), bar
            return
        numbers: list[int]
        numbers, size, reserved = self.broadcast_json([list(items), size, reserved])
        common = _CommonProgress(bar, self.watch)
        self.watch.done, self.watch.sharing = (lambda: common.done), True
        try:
            count, short = -(-len(numbers) // size), bool(len(numbers) % size)
            for number in self._batches(count, short, max(1, reserved)):
                self.check()
                yield numbers[number * size : (number + 1) * size], common
            self.watch.sharing = False
            self.barrier(lambda: common.advance(0.0))
            common.finish(len(numbers))
        finally:
            self.watch.sharing = False

    def _batches(self, count: int, last_is_short: bool, reserved: int) -> Iterator[int]:
        """The numbers of this process's batches: rank 0 begins with the reserved ones, the others with one each."""
        key = self.new_key()
        given = reserved + self.world_size - 1
        mine = list(range(reserved)) if self.is_main else [reserved + self.rank - 1]
        if last_is_short and reserved < count <= given:  # a process's first batch must be a full one
            mine = [*mine, count - 1] if self.is_main else [number for number in mine if number != count - 1]
        yield from (number for number in mine if number < count)
        while True:
            self.check()
            number = given + self.store.add(key, 1) - 1
            if number >= count or (not mine and last_is_short and number == count - 1):
                return
            yield number

    def _operation(self) -> AbstractContextManager[None]:
        return nullcontext() if self.watch is None else self.watch.operation()

    def _wait(self, ready: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
        pause, longest = _PAUSES
        while not ready():
            self.check()
            meanwhile()
            if self.meanwhile is not None:
                self.meanwhile()
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def new_key(self) -> str:
        """Returns a key of the store for the next operation, the same in every process."""
        self._number += 1
        return f"operation/{self._number}"


class _CommonProgress(NoProgress):
    """Counts this process's work, and shows that of all processes."""

    def __init__(self, bar: NoProgress, watch: Watch) -> None:
        super().__init__(bar.total)
        self._bar, self._watch, self._others = bar, watch, 0.0

    def advance(self, amount: float) -> None:
        """See `NoProgress.advance`."""
        super().advance(amount)
        others = self._watch.others_done()
        self._bar.advance(amount + others - self._others)
        self._others = others

    def clear(self) -> None:
        """See `NoProgress.clear`."""
        self._bar.clear()

    def finish(self, total: float) -> None:
        """Shows that everything is done; the last beats of the others may not have come."""
        self._bar.advance(total - self.done - self._others)


@contextmanager
def join() -> Iterator[Job]:
    """Joins the processes that torchrun or srun started together, and watches them until the end of the block.

    Inside another such block it is the same job. If a process dies or fails, the others end within seconds: with
    RankLostError where they wait for each other, or else by leaving the process.

    Raises:
        ValueError: The environment is incomplete.
    """
    global _current, _joined
    if _current is not None:
        yield _current
        return
    started = launch()
    if dist.is_available() and dist.is_initialized():
        started = Launch(
            rank=dist.get_rank(), world_size=dist.get_world_size(), local_rank=started.local_rank,
            address=started.address or "localhost", by=started.by,
        )  # fmt: skip
    if started.world_size == 1:
        yield Job(started)
        return
    _joined += 1
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps its store when it starts processes again
    store = dist.PrefixStore(f"undiffuse/{again}/{_joined}", _common_store(started))

    def exchange(text: str | None) -> str:
        if text is not None:
            store.set("watch", text)
            return text
        store.wait(["watch"], TIMEOUT)
        return str(store.get("watch").decode())

    watch = Watch(started.rank, started.world_size, started.address, exchange)
    job = _current = Job(started, store, watch)
    error: BaseException | None = None
    try:
        job.barrier()  # a process that failed before the others have connected would leave them alone
        with deciding(job.first):
            yield job
        job.barrier()
    except BaseException as caught:
        error = caught
        raise
    finally:
        _current = None
        watch.close(error)


def _common_store(started: Launch) -> Any:
    """The store of the processes: that of a process group, of torchrun, or one that rank 0 opens."""
    global _store
    if dist.is_initialized():
        return dist.distributed_c10d._get_default_store()
    if _store is None and started.by == "torchrun":
        _store = next(iter(dist.rendezvous("env://", started.rank, started.world_size, timeout=TIMEOUT)))[0]
    elif _store is None:
        try:
            _store = dist.TCPStore(
                started.address, started.port, started.world_size, is_master=started.is_main, timeout=TIMEOUT,
                multi_tenant=True, wait_for_workers=False,
            )  # fmt: skip
        except RuntimeError as error:
            raise ValueError(
                f"rank {started.rank} cannot reach port {started.port} of {started.address}, where rank 0 should be: "
                f"{str(error).splitlines()[0]}. Set MASTER_PORT to a free port if that one is in use"
            ) from error
    return _store
