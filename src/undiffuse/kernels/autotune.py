"""Chooses among the implementations of an operation by timing them once on the machine at hand.

Implementations round differently, so a run keeps one choice for each shape, whatever the batch of a call: a `Plan`. It
chooses for the batch of its first call, and can be recorded and used again. Where there is no plan of a run, a plan for
batches of eight is used.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.kernels.building import processor
from undiffuse.kernels.choice import OPERATIONS, setting

if TYPE_CHECKING:  # imported by the functions that need them, since few runs time anything
    from undiffuse.kernels.timing import Trial
    from undiffuse.kernels.timing_table import Case, Entry, TimingTable

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
LEAST = 256
"""Tiles of 2x2 results from which on our convolution is assumed to be faster, on processors without a matrix unit."""
START, SHARE = 0.15, 0.03  # seconds a process may spend on timing, or this share of the time since its start
_BATCH = 8  # of calls outside any run
_MARGIN = 1.03  # a way has to be that many times faster than the assumed one
_PATIENCE = 2  # such cases until a process stops trying
_FAR = 3.0  # factors of two up to which cases are near each other

_began = time.monotonic()
_spent = 0.0
_disturbed = 0  # cases that could not be timed because the machine is busy
_table: TimingTable | None = None
_assumed: set[str] = set()  # cases that stay untimed in this process, so that all its runs decide alike
_again: set[str] = set()  # what UNDIFFUSE_KERNELS=measure has timed in this process

Key = tuple[str, str, int, int, int, int]  # operation, precision, channels, output channels, height, width


class Plan:
    """The implementations that a run uses, by operation and shape. They are chosen when they are first needed.

    Args:
        batch: Images of a call to choose for; default those of the first call.
        recorded: What `record` of another plan returned: its choices are used as far as they are possible here.
    """

    def __init__(self, batch: int | None = None, recorded: Any = None) -> None:
        self.batch = batch
        self.notes: list[str] = []
        self._chosen: dict[Key, str] = {}
        self._recorded: dict[Key, str] = {}
        if isinstance(recorded, Mapping):
            number = recorded.get("batch")
            self.batch = number if isinstance(number, int) and number > 0 else batch
            for way, cases in recorded.items():
                keys = map(_key_of, cases) if isinstance(cases, list) else ()
                self._recorded |= {key: way for key in keys if key is not None and way in OPERATIONS[key[0]]}

    def choose(self, key: Key, batch: int, ways: tuple[str, ...], trial: Trial) -> str:
        """Returns the implementation to use.

        Args:
            key: The operation, precision, channels in and out, height and width.
            batch: Images of this call.
            ways: The implementations that are possible here.
            trial: Makes calls to time, see `timing.Trial`.
        """
        chosen = self._chosen.get(key)
        pins = setting().pins
        if chosen is not None and chosen in ways and not pins:
            return chosen
        pinned = pins.get(key[0])
        if pinned in ways:
            self._chosen[key] = pinned
            return pinned
        if self.batch is None:
            self.batch = max(1, batch)
        recorded = self._recorded.get(key)
        if recorded is not None and recorded not in ways:
            self.notes.append(f"{recorded} for {_text_of(key)} is not available here, which changes rounding")
            del self._recorded[key]
        elif recorded is not None:
            chosen = recorded
        if chosen is None or chosen not in ways:
            chosen = _decide(key, self.batch, ways, trial)
        self._chosen.setdefault(key, chosen)
        return chosen

    def record(self) -> dict[str, Any]:
        """Returns the choices as JSON values: the batch, and for each implementation what it is used for."""
        found: dict[str, Any] = {} if self.batch is None else {"batch": self.batch}
        for key, way in sorted({**self._recorded, **self._chosen}.items()):
            found.setdefault(way, []).append(_text_of(key))
        return found

    def note(self) -> dict[str, Any]:
        """Returns {"kernels": self.record()} for the notes of a run; empty if nothing was chosen."""
        return {"kernels": self.record()} if self._chosen or self._recorded else {}


_default = Plan(batch=_BATCH)
_current: ContextVar[Plan | None] = ContextVar("plan", default=None)


def current_plan() -> Plan:
    """Returns the plan that is in use."""
    return _current.get() or _default


@contextmanager
def planned(plan: Plan | None = None, *, outermost: bool = False) -> Iterator[Plan]:
    """Uses a plan inside the block.

    Args:
        plan: The plan; default a new one.
        outermost: Whether to keep the plan of a surrounding block, if there is one.
    """
    before = _current.get()
    plan = before if outermost and before is not None else plan or Plan()
    token = _current.set(plan)
    try:
        yield plan
    finally:
        _current.reset(token)


def timings() -> TimingTable:
    """Returns the table of this machine's times."""
    global _table
    from undiffuse.kernels.timing_table import TimingTable, table_path

    if _table is None:
        _table = TimingTable(table_path())
    return _table


def rule(key: Key, batch: int, ways: tuple[str, ...]) -> str:
    """Returns the implementation to use as far as it can be known without timing.

    Our convolution is assumed to be faster for large inputs, except in bfloat16 on processors with a matrix unit
    (AMX), which it does not use.
    """
    tiles = batch * -(-key[4] // 2) * -(-key[5] // 2)
    matrix_unit = key[1] == "bf16" and "amx_bf16" in processor()[1].split()
    if "winograd" in ways and tiles >= LEAST and not matrix_unit:
        return "winograd"
    return "packed" if "packed" in ways else "torch"


def _decide(key: Key, batch: int, ways: tuple[str, ...], trial: Trial) -> str:
    from undiffuse.kernels.timing_table import Case

    assumed, how = rule(key, batch, ways), setting().timing
    if "winograd" not in ways or how == "rule":  # oneDNN's packed weights are never slower than its others
        return assumed
    case, table = Case.of(*key, batch), timings()
    again = how == "measure" and str(case) not in _again
    known = None if again else table.entries.get(str(case))
    if known is None and (again or str(case) not in _assumed):
        known = _measured(case, assumed, ways, trial, table, again)
        if known is None:
            _assumed.add(str(case))
    return known.way if known is not None and known.way in ways else assumed


def _measured(
    case: Case, assumed: str, ways: tuple[str, ...], trial: Trial, table: TimingTable, again: bool
) -> Entry | None:
    """Times a case, or takes over the choice of a near one if there is no time left; None if neither is possible."""
    global _disturbed, _spent
    from undiffuse.kernels import timing
    from undiffuse.kernels.timing_table import Entry

    begin = time.monotonic()
    if _disturbed >= _PATIENCE:
        return None
    if again or _spent < max(START, SHARE * (begin - _began)):
        seconds = timing.measure(case, ways, trial, (10 if again else 1) * timing.LIMIT)
        _spent += time.monotonic() - begin
        if seconds is None:
            _disturbed += 1
            return None
        best = min(seconds, key=lambda way: seconds[way])
        way = assumed if seconds[assumed] <= _MARGIN * seconds[best] else best
        _again.add(str(case))
        return table.add(case, Entry(way, seconds), replace=again)
    return _taken_over(case, table)


def _taken_over(case: Case, table: TimingTable) -> Entry | None:
    from undiffuse.kernels.timing_table import Entry, case_of

    others = [(case.distance(other), text) for text in table.entries if (other := case_of(text)) is not None]
    timed = [(far, text) for far, text in others if far <= _FAR and not table.entries[text].near]
    if not timed:
        return None
    _, text = min(timed)
    return table.add(case, Entry(table.entries[text].way, {}, text))


def _text_of(key: Key) -> str:
    operation, precision, channels, out, height, width = key
    return f"{operation} {precision} {channels}-{out} {height}x{width}"


def _key_of(text: object) -> Key | None:
    try:
        operation, precision, channels, size = str(text).split()
        one, two = (int(part) for part in channels.split("-"))
        height, width = (int(part) for part in size.split("x"))
    except ValueError:
        return None
    return (operation, precision, one, two, height, width) if operation in OPERATIONS else None
