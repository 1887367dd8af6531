"""The times of implementations on this machine, kept in the cache folder."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from undiffuse.downloads import alone, cache_dir
from undiffuse.kernels.building import flags, processor, sources
from undiffuse.kernels.choice import OPERATIONS
from undiffuse.util.files import atomic_file

_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "CC")  # they change how fast things are


@dataclass(frozen=True)
class Case:
    """A class of calls that one timing stands for.

    Attributes:
        operation: A key of `OPERATIONS`.
        precision: "fp32" or "bf16".
        channels: Mean of input and output channels, a power of two. Of attention, those of a head.
        side: Height and width in pixels, a power of two.
        batch: Images, a power of two. Of attention, images times heads.
    """

    operation: str
    precision: str
    channels: int
    side: int
    batch: int

    @classmethod
    def of(cls, operation: str, precision: str, channels: int, out: int, height: int, width: int, batch: int) -> Case:
        """Returns the class that a call belongs to. Of attention, `out` is the number of heads."""
        if operation.startswith("attention"):
            batch, out = batch * out, channels
        return cls(operation, precision, _power(channels * out, 2), _power(height * width, 2), _power(batch, 1))

    def __str__(self) -> str:
        return f"{self.operation} {self.precision} {self.channels}x{self.side}x{self.side} batch {self.batch}"

    def distance(self, other: Case) -> float:
        """Returns in how many factors of two the sizes differ; infinite for another operation or precision."""
        if (self.operation, self.precision) != (other.operation, other.precision):
            return math.inf
        pairs = ((self.channels, other.channels), (self.side, other.side), (self.batch, other.batch))
        return sum(abs(math.log2(one / two)) for one, two in pairs)


@dataclass(frozen=True)
class Entry:
    """What is known of a case.

    Attributes:
        way: The implementation to use.
        seconds: The time of each implementation.
    """

    way: str
    seconds: Mapping[str, float]


def machine() -> dict[str, Any]:
    """Returns what times depend on: processor, versions, limits that the environment sets."""
    import undiffuse

    model, features = processor()
    return {
        "processor": model,
        "features": hashlib.sha256(features.encode()).hexdigest()[:16],
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "undiffuse": undiffuse.__version__,
        "kernels": hashlib.sha256(sources() + " ".join(flags()).encode()).hexdigest()[:16],
        **{name: os.environ[name] for name in _LIMITS if os.environ.get(name)},
    }


def table_path() -> Path:
    """Returns the file of this machine's times."""
    text = json.dumps(machine(), sort_keys=True)
    return cache_dir("kernels") / f"timings-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


class TimingTable:
    """The entries of a file. A file that is damaged or cannot be written counts as empty: times are made again.

    Args:
        path: The file; default that of this machine.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = table_path() if path is None else path
        self.entries: dict[str, Entry] = _read(self.path)

    def add(self, case: Case, entry: Entry, *, replace: bool = False) -> Entry:
        """Stores an entry.

        Several processes may measure at once: the first entry stays, so that all of them decide alike.

        Args:
            case: The case.
            entry: What was found.
            replace: Whether an entry that another process stored is replaced.

        Returns:
            The entry that is stored.
        """
        with contextlib.suppress(OSError), self._locked():
            stored = _read(self.path)
            if replace or str(case) not in stored:
                stored[str(case)] = entry
                with atomic_file(self.path, overwrite=True, durable=False) as file:
                    file.write(_text(stored).encode())
            self.entries = {**self.entries, **stored}
        if replace:
            self.entries[str(case)] = entry
        return self.entries.setdefault(str(case), entry)

    def text(self) -> str:
        """Returns the table in words, a line for each case: its times in milliseconds, the chosen implementation."""
        if not self.entries:
            return f"none yet: implementations are timed when they are first used, and kept in {self.path}"
        lines = [f"milliseconds of a call, in {self.path}"]
        for text, entry in sorted(self.entries.items()):
            times = [f"{way} {1000 * seconds:.3g}" for way, seconds in entry.seconds.items()]
            lines.append(f"{text}: {entry.way} ({', '.join(times)})")
        return "\n".join(lines)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with alone(self.path):
            yield


def case_of(text: str) -> Case | None:
    """Returns the case that `str(case)` describes; None if the text describes none."""
    try:
        operation, precision, size, word, batch = text.split()
        channels, side, again = (int(part) for part in size.split("x"))
        case = Case(operation, precision, channels, side, int(batch))
    except ValueError:
        return None
    sizes = (case.channels, case.side, case.batch)
    fits = word == "batch" and side == again and min(sizes) > 0 and operation in OPERATIONS
    return case if fits and precision in ("fp32", "bf16") else None


def _read(path: Path) -> dict[str, Entry]:
    try:
        found = json.loads(path.read_bytes())
        listed = dict(found["entries"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    entries = {}
    for text, value in listed.items():
        case = case_of(text)
        if case is None or not isinstance(value, dict):
            continue
        seconds, ways = value.get("seconds"), OPERATIONS[case.operation]
        if not (isinstance(seconds, dict) and seconds and value.get("way") in ways):
            continue
        if all(name in ways and _is_time(time) for name, time in seconds.items()):
            entries[text] = Entry(value["way"], seconds)
    return entries


def _is_time(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


def _text(entries: Mapping[str, Entry]) -> str:
    listed = {text: {"way": entry.way, "seconds": dict(entry.seconds)} for text, entry in sorted(entries.items())}
    return json.dumps({"machine": machine(), "entries": listed}, indent=1)


@functools.lru_cache
def _power(product: int, factors: int) -> int:
    """The power of two nearest to the mean of `factors` numbers, given by their product."""
    return int(2 ** round(math.log2(max(1, product)) / factors))
