"""A structure-aware fuzzer: honest files and values, damaged with knowledge of their forms, given to every door.

A door may refuse its input with a ValueError or an OSError. Anything else, ten seconds of work, a gigabyte of memory,
or damage that goes unnoticed where something could notice it counts as a failure. By hand, from the folder tests:

    python -m fuzz.engine --seconds 300 --seed 1 --keep FOLDER
    python -m fuzz.engine --seconds 300 --guided --corpus FOLDER      coverage-guided, needs `pip install atheris`

`fuzz.campaign` does both for hours, and survives what ends a process.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT_SECONDS, LIMIT_BYTES = 10.0, 10**9
LIMIT_TICKS = 120
SLICE = 0.1
"""Seconds for a door until it is the next one's turn."""

Seen = dict[str, set[int]]
"""Hashes of the inputs that doors have had."""


class Hang(BaseException):
    """An input took longer than it may."""


@dataclass
class Report:
    """What came of a run: different inputs and refusals by door, and failures as (door, error, input)."""

    tried: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, bytes]] = field(default_factory=list)
    slowest: float = 0.0
    grown: int = 0

    def text(self) -> str:
        lines = [f"{name:12} {count:7,} inputs, {self.refused[name]:7,} refused" for name, count in self.tried.items()]
        kinds = Counter(f"{door}: {error.strip().splitlines()[-1][:100]}" for door, error, _ in self.failures)
        lines.append(f"{self.tried.total():,} inputs, {len(self.failures)} failures, slowest {self.slowest:.2f} s, "
                     f"{self.grown / 1e6:.0f} MB more memory")  # fmt: skip
        return "\n".join([*lines, *(f"{count} x {kind}" for kind, count in kinds.most_common())])

    def new_failures(self) -> Iterator[tuple[str, str, bytes]]:
        """The first failure of every place in the code."""
        seen = set()
        for door, error, data in self.failures:
            lines = error.splitlines()
            kind = (*[line for line in lines if "undiffuse/" in line][-1:], lines[-1][:40])
            if kind not in seen:
                seen.add(kind)
                yield door, error, data


def doors_class() -> Any:
    """The class of all doors. It is made late, so that what it imports can be instrumented."""
    from fuzz.answers import Answers
    from fuzz.containers import Containers
    from fuzz.foreign import ForeignFiles
    from fuzz.own import OwnFiles
    from fuzz.results import Results

    class Doors(OwnFiles, Containers, ForeignFiles, Results, Answers):  # type: ignore[misc]
        """Each method on_NAME makes an input from a random generator, and the call that gives it to the door."""

    return Doors


def door_names() -> list[str]:
    """Names of all doors."""
    return [name.removeprefix("on_") for name in dir(doors_class()) if name.startswith("on_")]


def doors_in(folder: Path) -> Any:
    """All doors, whose inputs are written to a folder."""
    doors = doors_class()()
    doors.folder = folder
    doors.prepare_own()
    doors.prepare_foreign()
    doors.prepare_results()
    return doors


class Fuzzer:
    """Gives inputs to doors and keeps account.

    Args:
        folder: Where inputs are written.
        only: Names of doors; all without.
        keep: Where inputs that fail are kept.
    """

    def __init__(self, folder: Path, only: tuple[str, ...] = (), keep: Path | None = None) -> None:
        self.doors, self.report, self.keep = doors_in(folder), Report(), keep
        self.names = list(only) or door_names()
        for name in self.names:  # what imports and warms up is no input's fault
            with contextlib.suppress(Exception), quiet():
                getattr(self.doors, f"on_{name}")(random.Random(0))[1]()
        self.seen: Seen = {name: set() for name in self.names}
        self._start = memory()

    def trial(self, name: str, rng: random.Random) -> None:
        """One input for one door; one that the door has had is counted as repeated and not given again."""
        report, error = self.report, ""
        self.doors.written = written = hashlib.blake2b(digest_size=8)
        data, call = getattr(self.doors, f"on_{name}")(rng)
        written.update(data)
        digest = int.from_bytes(written.digest(), "little")
        if digest in self.seen[name]:
            report.repeated[name] += 1
            return
        self.seen[name].add(digest)
        for again in (False, True):
            began = time.process_time()
            try:
                with watched(), warnings.catch_warnings(), quiet():
                    warnings.simplefilter("ignore")
                    call()
            except (ValueError, OSError, argparse.ArgumentTypeError):
                report.refused[name] += 1
            except Hang:
                error = traceback.format_exc()
                if not again:  # a machine that was stopped or crowded for a moment is no fault of the input
                    error = ""
                    continue
            except Exception:
                error = traceback.format_exc()
            break
        report.tried[name] += 1
        report.slowest = max(report.slowest, time.process_time() - began)
        if memory() - self._start > LIMIT_BYTES:
            error, self._start = error or f"more than 1 GB of memory: {memory() - self._start:,}", memory()
        if error:
            report.failures.append((name, error, data))
            if self.keep is not None:
                self.keep.mkdir(parents=True, exist_ok=True)
                stem = f"{name}-{hashlib.sha256(data).hexdigest()[:8]}"
                (self.keep / stem).write_bytes(data)
                (self.keep / f"{stem}.txt").write_text(error)
        report.grown = max(report.grown, memory() - self._start)


def fuzz(folder: Path, seconds: float, seed: int = 0, only: tuple[str, ...] = (), keep: Path | None = None) -> Report:
    """Gives damaged inputs to all doors in turn until the time is over."""
    fuzzer, end = Fuzzer(folder, only, keep), time.monotonic() + seconds
    given = dict.fromkeys(fuzzer.names, 0)  # a door's inputs are the same on every machine; quick ones get further
    while time.monotonic() < end:
        for name in fuzzer.names:
            begun = time.process_time()  # as much time for every door, so that quick ones get many inputs
            while time.process_time() - begun < SLICE:
                fuzzer.trial(name, random.Random(f"{seed}/{given[name]}/{name}"))
                given[name] += 1
    return fuzzer.report


def guided(folder: Path, seconds: float, seed: int, only: tuple[str, ...], keep: Path | None, corpus: Path,
           finish: Callable[[Report, Seen], None], seen: Seen | None = None) -> None:  # fmt: skip
    """Lets libFuzzer choose every decision of the doors, by the paths through this package that they lead to.

    The first byte of an input chooses the door. libFuzzer ends the process, so `finish` is called before it does.
    """
    import atheris

    from fuzz.damage import ByteRandom

    with atheris.instrument_imports(include=["undiffuse"]):
        fuzzer = Fuzzer(folder, only, keep)
    fuzzer.seen.update(seen or {})
    corpus.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for k, _ in enumerate(fuzzer.names):  # some beginnings for every door
        for j in range(4):
            (corpus / f"begin-{k}-{j}").write_bytes(bytes([k]) + rng.randbytes(60))
    end = time.monotonic() + seconds

    def one(data: bytes) -> None:
        if len(data) > 1:
            fuzzer.trial(fuzzer.names[data[0] % len(fuzzer.names)], ByteRandom(data[1:]))
        if time.monotonic() > end:
            finish(fuzzer.report, fuzzer.seen)
            os._exit(bool(fuzzer.report.failures))

    atheris.Setup([sys.argv[0], str(corpus), "-max_len=400", "-timeout=0", "-rss_limit_mb=0", f"-seed={seed + 1}",
                   "-verbosity=0", "-print_final_stats=0"], one)  # fmt: skip
    atheris.Fuzz()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Prints of the block go nowhere."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Raises Hang inside the block after ten seconds of computing, or two minutes on the clock of a busy machine.

    The clock is one of ticks, because a process that is stopped and continued has not waited.
    """
    ticks = 0

    def stop(*_: Any) -> None:
        raise Hang(f"more than {LIMIT_SECONDS:g} s")

    def tick(*_: Any) -> None:
        nonlocal ticks
        ticks += 1
        if ticks >= LIMIT_TICKS:
            raise Hang(f"more than {LIMIT_TICKS} s on the clock")

    timers = (
        (signal.ITIMER_PROF, signal.SIGPROF, stop, LIMIT_SECONDS),
        (signal.ITIMER_REAL, signal.SIGALRM, tick, 1.0),
    )
    before = [signal.signal(number, handler) for _, number, handler, _ in timers]
    for timer, _, _, seconds in timers:
        signal.setitimer(timer, seconds, seconds)
    try:
        yield
    finally:
        for (timer, number, _, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def memory() -> int:
    """The most bytes this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """The fuzzer by hand."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--guided", action="store_true")
    parser.add_argument("--corpus", type=Path)
    args = parser.parse_args()

    def finish(report: Report, _: Any = None) -> None:
        print(report.text())
        for door, error, _ in report.new_failures():
            print(f"\n{door}\n" + "\n".join(error.splitlines()[-9:]))
        sys.stdout.flush()

    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, only = Path(name), tuple(args.only)
        os.environ["UNDIFFUSE_CACHE"] = str(folder / "cache")
        if args.guided:
            guided(folder, args.seconds, args.seed, only, args.keep, args.corpus or folder / "corpus", finish)
        report = fuzz(folder, args.seconds, args.seed, only, args.keep)
    finish(report)
    raise SystemExit(bool(report.failures))


if __name__ == "__main__":
    main()
