"""A long run of the fuzzer, stopped and resumed at any time, by as many processes as wanted.

    python -m fuzz.campaign FOLDER --seconds 3600             until each door has its share and all a million
    python -m fuzz.campaign FOLDER --seconds 3600 --guided    the same by coverage (pip install atheris)
    python -m fuzz.campaign FOLDER --record                   writes the table in docs/faults.md

Run it in the folder tests. A door belongs to one process at a time, for a slice of a few seconds; next is the one that
has had the fewest inputs for its share. Input n of a door is made from (door, n) alone, so `--input DOOR N` repeats it.
The doors' work is done in a child process, whose end by a signal or a standstill is a finding like any other.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import mmap
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.engine import Fuzzer, Report, Seen, door_names, guided

SHARE, TOTAL = 10_000, 1_000_000
SLICE = 4.0
STANDSTILL = 300
"""Seconds on the clock after which a child counts as standing still in code that no signal interrupts."""
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where inputs are written: a folder in memory, if there is one."""


class Ledger:
    """What a door has had: a JSON file of counts, and a file of the inputs' hashes."""

    def __init__(self, folder: Path, door: str) -> None:
        self.folder, self.door = folder, door
        self._counts, self._seen = folder / f"{door}.json", folder / f"{door}.seen"

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Whether this process has the door for the length of the block."""
        with open(self.folder / f"{self.door}.lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True

    def counts(self) -> dict[str, int]:
        """Inputs by way, refusals, failures; `next` is the number of the next random input."""
        empty = {"next": 0, "random": 0, "guided": 0, "repeated": 0, "refused": 0, "failed": 0}
        return {**empty, **(json.loads(self._counts.read_text()) if self._counts.is_file() else {})}

    def seen(self) -> set[int]:
        """Hashes of the inputs so far."""
        return set(np.fromfile(self._seen, np.uint64).tolist()) if self._seen.is_file() else set()

    def add(self, report: Report, way: str, number: int, new: set[int]) -> None:
        """Adds what a slice has tried."""
        counts = self.counts()
        counts["next"] = max(number, counts["next"])
        counts[way] += report.tried[self.door]
        counts["repeated"] += report.repeated[self.door]
        counts["refused"] += report.refused[self.door]
        counts["failed"] += len(report.failures)
        with open(self._seen, "ab") as file:
            np.fromiter(new, np.uint64, len(new)).tofile(file)
        part = self._counts.with_suffix(".part")
        part.write_text(json.dumps(counts))
        part.replace(self._counts)


def waiting(folder: Path) -> list[str]:
    """Doors in the order in which they should have their turn; none at the end.

    Every other time those below their share come first, by the inputs they have had; else any, so that quick doors get
    more inputs.
    """
    had = {door: inputs(Ledger(folder, door).counts()) for door in door_names()}
    if min(had.values()) >= SHARE and sum(had.values()) >= TOTAL:
        return []
    short = [door for door in had if had[door] < SHARE]
    names = list(had)
    random.shuffle(names)
    return sorted(short, key=lambda door: had[door]) if short and random.random() < 0.5 else names


def inputs(counts: dict[str, int]) -> int:
    """Different inputs of a door."""
    return counts["random"] + counts["guided"]


def slice_of(fuzzer: Fuzzer, ledger: Ledger, seconds: float, place: mmap.mmap) -> None:
    """Gives a door inputs for some seconds of computing."""
    door, number = ledger.door, ledger.counts()["next"]
    fuzzer.report, before = Report(), ledger.seen()
    fuzzer.seen[door] = set(before)
    end = time.process_time() + seconds
    while time.process_time() < end:
        place[:8] = struct.pack("<Q", number)
        fuzzer.trial(door, random.Random(f"{door}/{number}"))
        number += 1
    ledger.add(fuzzer.report, "random", number, fuzzer.seen[door] - before)


def child(folder: Path, end: float, place: mmap.mmap) -> None:
    """Slices of doors until the time is over."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        os.environ["UNDIFFUSE_CACHE"] = f"{name}/cache"
        fuzzer = Fuzzer(Path(name), keep=folder / "found")
        while time.time() < end and (names := waiting(folder)):
            for door in names:
                ledger = Ledger(folder, door)
                with ledger.held() as mine:
                    if mine:
                        place[8:40] = door.encode().ljust(32)
                        slice_of(fuzzer, ledger, SLICE, place)
                        place[8:40] = b" " * 32
                        break
            else:
                time.sleep(1)


def run(folder: Path, seconds: float) -> None:
    """Random inputs: starts a child again as long as inputs end it."""
    end, place = time.time() + seconds, mmap.mmap(-1, 40)
    ended = False
    while not ended and time.time() < end:
        pid = os.fork()
        if pid == 0:
            child(folder, end, place)
            os._exit(0)
        last, looks = bytes(place[:40]), 0
        while (status := os.waitpid(pid, os.WNOHANG))[0] == 0:
            time.sleep(1)
            now = bytes(place[:40])
            if now != last or not now[8:].strip():
                last, looks = now, 0
            looks += 1  # not the clock, which goes on while both processes are stopped
            if looks > STANDSTILL:
                os.kill(pid, 9)
        ended = status[1] == 0
        if not ended:
            door, number = bytes(place[8:40]).decode().strip(), struct.unpack("<Q", place[:8])[0]
            if not door:
                raise SystemExit(f"the child ended with status {status[1]} outside an input")
            with Ledger(folder, door).held():
                report = Report()
                report.tried[door], report.failures = 1, [(door, f"ended by status {status[1]}", b"")]
                Ledger(folder, door).add(report, "random", number + 1, set())
            (folder / "found").mkdir(exist_ok=True)
            (folder / "found" / f"{door}-{number}.txt").write_text(f"ended the process with status {status[1]}\n")


def run_guided(folder: Path, seconds: float, each: float) -> None:
    """Guided inputs: a process for each door in turn, as libFuzzer ends the process that it is in."""
    end = time.time() + seconds
    while time.time() < end and (names := waiting(folder)):
        for door in sorted(names, key=lambda name: Ledger(folder, name).counts()["guided"]):
            with Ledger(folder, door).held() as mine:
                if mine:
                    command = [sys.executable, "-m", "fuzz.campaign", str(folder), "--guided-door", door, "--seconds"]
                    done = subprocess.run([*command, str(each)], capture_output=True, text=True, check=False)
                    if done.returncode not in (0, 1):
                        (folder / "found").mkdir(exist_ok=True)
                        (folder / "found" / f"{door}-guided-{time.time():.0f}.txt").write_text(done.stderr[-4000:])
                    break
        else:
            time.sleep(1)


def guided_door(folder: Path, door: str, seconds: float) -> None:
    """One slice of libFuzzer."""
    ledger = Ledger(folder, door)
    before = ledger.seen()
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        os.environ["UNDIFFUSE_CACHE"] = f"{name}/cache"

        def finish(report: Report, seen: Seen) -> None:
            ledger.add(report, "guided", 0, seen[door] - before)

        guided(Path(name), seconds, int(time.time()), (door,), folder / "found", folder / "corpus" / door, finish,
               {door: set(before)})  # fmt: skip


def record(folder: Path) -> None:
    """Adds the folder's counts up in docs/fuzz.json and writes the page."""
    from fuzz.page import write

    rows: dict[str, Any] = {}
    for door in door_names():
        counts = Ledger(folder, door).counts()
        rows[door] = {key: counts[key] for key in ("random", "guided", "refused", "failed")}
    write(rows)


def main() -> None:
    """The campaign by hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--guided", action="store_true")
    parser.add_argument("--guided-door", help=argparse.SUPPRESS)
    parser.add_argument("--each", type=float, default=120, help="seconds of a guided slice")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--input", nargs=2, metavar=("DOOR", "N"), help="repeats one input and shows its error")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.record:
        record(args.folder)
    elif args.guided_door:
        guided_door(args.folder, args.guided_door, args.seconds)
    elif args.guided:
        run_guided(args.folder, args.seconds, args.each)
    elif args.input:
        door, number = args.input
        with tempfile.TemporaryDirectory() as name:
            os.environ["UNDIFFUSE_CACHE"] = f"{name}/cache"
            fuzzer = Fuzzer(Path(name), (door,))
            fuzzer.trial(door, random.Random(f"{door}/{number}"))
        print(fuzzer.report.text(), *(error for _, error, _ in fuzzer.report.failures), sep="\n")
    else:
        run(args.folder, args.seconds)


if __name__ == "__main__":
    main()
