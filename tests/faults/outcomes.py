"""Chains of faults: a command is disturbed again and again, then left alone, and its results must be the usual ones."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.commands import COMMANDS, EARLIER, Command, copy, prepare, results
from faults.injection import Fault, run

MOMENTS = "UNDIFFUSE_FAULTS"
"""The environment variable with the number of moments of a chain."""
STOPPED = {"kill": {-9}, "SIGTERM": {-15, 0, 75, 143}, "SIGINT": {130, 0, 75, 143, -2}}
"""Exit codes after a signal; 0 where the command was done, or a training saved and stopped."""


def moments(default: int) -> int:
    """How many moments a chain has."""
    return int(os.environ.get(MOMENTS, default))


@dataclass
class Reference:
    """The undisturbed command: its results, and how many changes of files it makes in what time."""

    results: dict[str, str]
    events: list[str]
    seconds: float


@dataclass
class Lab:
    """The inputs of all commands, and references of those that ran."""

    root: Path
    references: dict[str, Reference] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inputs = prepare(self.root / "inputs")
        code, said = run(COMMANDS["sample"].words, self.inputs)  # compiles kernels, once for all
        assert code == 0, said
        shutil.rmtree(self.inputs / COMMANDS["sample"].out)

    def place(self, name: str, command: Command, cold: bool = False) -> Path:
        """A fresh folder with the inputs of a command, and a cache; an empty one if it is cold."""
        for result, words in EARLIER.items():
            if result in command.begin and not (self.inputs / result).exists():
                code, said = run(words, self.inputs)
                assert code == 0, said
        place = self.root / name.replace(" ", "-")
        shutil.rmtree(place, ignore_errors=True)
        copy(self.inputs, place)
        if cold:
            shutil.rmtree(place / "cache")
        return place

    def reference(self, command: Command) -> Reference:
        """Runs a command undisturbed, once."""
        if command.name not in self.references:
            place, trace = self.place("reference", command), self.root / "trace.json"
            begun = time.monotonic()
            code, said = run(command.words, place, trace=trace)
            assert code == 0, said
            seconds = time.monotonic() - begun
            found = results(place, command)
            assert found, f"{command.name} wrote nothing to {command.out}"
            self.references[command.name] = Reference(found, json.loads(trace.read_text()), seconds)
        return self.references[command.name]

    def chain(
        self, command: Command, kind: str, count: int, by: str = "change", ranks: int = 1, cold: bool = False
    ) -> dict[str, Any]:
        """Disturbs a command `count` times, each time where it was left, and then lets it finish.

        Args:
            command: The command.
            kind: See `Fault`.
            count: How many times at most; the chain ends earlier where the command does.
            by: "change" for moments before a change of a file, "time" for any moment.
            ranks: How many processes share the work; the fault hits one of them in turn.
            cold: Whether the cache is empty at first.

        Returns:
            A row for the page: moments, those at which the command was done already, seconds.
        """
        reference, rng = self.reference(command), random.Random(f"{command.name} {kind} {by}")
        place, last = self.place(f"{command.name}-{kind}-{by}-{ranks}", command, cold), len(reference.events)
        # At first moments of the whole command; a resumed one has fewer changes left.
        numbers = sorted(rng.sample(range(last), min(count, last))) if by == "change" else [0] * count
        row = {"moments": 0, "already done": 0}
        for k, number in enumerate(numbers):
            if by == "change":
                fault = Fault(kind, at=number, rank=k % ranks)
            else:
                fault = Fault(kind, seconds=rng.uniform(0.0, reference.seconds), rank=k % ranks)
            code, said = run(self.words(command, place), place, fault, ranks=ranks)
            row["moments"] += 1
            row["already done"] += code == 0
            self._check_ending(command, fault, code, said)
            self.check_files(command, place, str(fault))
            if not command.resumes and (place / command.out).exists():
                continue
        code, said = run(self.words(command, place), place, ranks=ranks)
        assert code == 0, f"{command.name} does not resume after {kind}:\n{said}"
        found = results(place, command)
        different = sorted(
            name for name in {*found, *reference.results} if found.get(name) != reference.results.get(name)
        )
        assert not different, f"{command.name} after {row['moments']} times {kind}: {different[:5]} differ"
        leftovers = [file for file in place.rglob("*") if temporary(file)]
        assert not leftovers, f"{command.name} after {kind} leaves {leftovers[:5]}"
        shutil.rmtree(place)
        return row

    def words(self, command: Command, place: Path) -> tuple[Any, ...]:
        """The words that repeat a command."""
        out = place / command.out
        if command.resumes or not out.exists():
            return command.words
        if not command.again:
            shutil.rmtree(out) if out.is_dir() else out.unlink()
        return (*command.words, *command.again)

    def _check_ending(self, command: Command, fault: Fault, code: int, said: str) -> None:
        """A command that was disturbed ends as it should, and says in words why."""
        where = f"{command.name}, {fault}: exit {code}\n{said[-3000:]}"
        assert "Traceback" not in said, where
        if fault.kind in STOPPED:
            assert code in STOPPED[fault.kind] or (fault.kind != "kill" and code == 0) or (code == 0), where
        else:
            assert code in (0, 1, 2), where
            assert code == 0 or "error: " in said, where

    def check_files(self, command: Command, place: Path, where: str) -> None:
        """Whatever has its final name is whole; what only one file is, is the usual one."""
        found = results(place, command)
        if not command.resumes and found.keys() == self.references[command.name].results.keys():
            assert found == self.references[command.name].results, f"{command.name}, {where}: half a result"


def temporary(file: Path) -> bool:
    return file.name.startswith(".undiffuse-") or file.name.endswith((".tmp", ".part", ".new"))
