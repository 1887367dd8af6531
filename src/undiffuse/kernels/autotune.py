"""Chooses among the implementations of an operation by timing them once on the machine at hand.

Implementations round differently, so a run keeps one choice for each shape, whatever the batch of a call: a `Plan`. It
chooses for the batch of its first call, and can be recorded and used again. Where there is no plan of a run, a plan for
batches of eight is used. The processes of a job choose alike (`util.agreement`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.kernels.allocator import own_pages, return_memory
from undiffuse.kernels.building import processor
from undiffuse.kernels.choice import OPERATIONS, setting, timing
from undiffuse.kernels.choice import text as setting_text
from undiffuse.util.agreement import agreed

if TYPE_CHECKING:  # imported by the functions that need them, since few runs time anything
    from undiffuse.kernels.timing import Trial
    from undiffuse.kernels.timing_table import Case, TimingTable

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
LEAST = 256
"""Tiles of 2x2 results from which on our convolution is assumed to be faster, on processors without a matrix unit."""
START, SHARE = 0.2, 0.03
"""Seconds of processor time that a process may spend on timing, or this share of its processor time."""
_BATCH = 8  # of calls outside any run
_FAR = 3.0  # factors of two up to which cases are near each other
_PRODUCTS = 512, 16  # tokens up to which plain products are assumed to be faster, and sequences from which on they are

_BEFORE = {"conv1x1_packed": "packed", "conv3x3_weight": "torch"}  # what records mean that are older than a choice

_spent = 0.0
_table: TimingTable | None = None
_untimed: dict[str, str] = {}  # cases that stay untimed in this process, so that all its runs choose alike
_again: set[str] = set()  # what UNDIFFUSE_KERNELS=measure has timed in this process

Key = tuple[str, str, int, int, int, int]  # operation, precision, channels, output channels, height, width


class Plan:
    """The implementations that a run uses, by operation and shape. They are chosen when they are first needed.

    Args:
        batch: Images of a call to choose for; default those of the first call.
        recorded: What `record` of another plan returned: its choices are used as far as they are possible here. For
            operations that it does not mention, the rule chooses, as it did when the record is older than their
            choices; {} mentions none.
        seconds: Processor time that the process may spend on timing for this plan: more than the default for runs that
            take long.
    """

    def __init__(self, batch: int | None = None, recorded: Any = None, seconds: float = START) -> None:
        self.batch, self.seconds = batch, seconds
        self.notes: list[str] = []
        self.token: object = self  # another object whenever the setting of the kernels has changed
        self._setting: str | None = None
        self._chosen: dict[Key, str] = {}
        self._recorded: dict[Key, str] = {}
        self._mentioned: set[str] | None = None  # by the record, if there is one
        if isinstance(recorded, Mapping):
            number = recorded.get("batch")
            self.batch = number if isinstance(number, int) and number > 0 else batch
            for way, cases in recorded.items():
                keys = map(_key_of, cases) if isinstance(cases, list) else ()
                self._recorded |= {key: way for key in keys if key is not None and way in OPERATIONS[key[0]]}
            self._mentioned = {_kind(key) for key in self._recorded}

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
            older = self._mentioned is not None and _kind(key) not in self._mentioned
            by_rule = older or len(ways) < 2 or timing() == "rule"
            if older:
                chosen = _BEFORE.get(key[0]) or rule(key, self.batch, tuple(way for way in ways if way != "amx"))
            else:
                chosen = rule(key, self.batch, ways) if by_rule else _decide(key, self.batch, ways, trial, self.seconds)
        self._chosen.setdefault(key, chosen)
        return chosen

    def refresh(self) -> Plan:
        """Notices a changed setting of the kernels; those who keep a choice compare `token`. Returns the plan."""
        text = setting_text()
        if text != self._setting:
            self._setting, self.token = text, object()
        return self

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
    return _current.get() or _default.refresh()


@contextmanager
def planned(plan: Plan | None = None, *, outermost: bool = False) -> Iterator[Plan]:
    """Uses a plan inside the block.

    Args:
        plan: The plan; default a new one.
        outermost: Whether to keep the plan of a surrounding block, if there is one.
    """
    before = _current.get()
    plan = (before if outermost and before is not None else plan or Plan()).refresh()
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

    Our convolutions are assumed to be faster (3x3: for large inputs), in bfloat16 on processors with a matrix unit
    (AMX) those that use it; plain products for many short sequences, or where they are differentiated.
    """
    if "amx" in ways:
        return "amx"
    if "products" in ways:
        length, many = key[4] * key[5], batch * key[3] >= _PRODUCTS[1]
        return "products" if length <= _PRODUCTS[0] and (many or key[0] == "attention_grad") else "fused"
    tiles = batch * -(-key[4] // 2) * -(-key[5] // 2)
    matrix_unit = key[1] == "bf16" and "amx_bf16" in processor()[1].split()
    if key[0] == "conv3x3_weight":
        return "winograd" if "winograd" in ways else "torch"
    if "blocked" in ways and not matrix_unit:
        return "blocked"
    if "winograd" in ways and tiles >= LEAST and not matrix_unit:
        return "winograd"
    return "packed" if "packed" in ways else "torch"


def _decide(key: Key, batch: int, ways: tuple[str, ...], trial: Trial, seconds: float) -> str:
    from undiffuse.kernels.timing_table import Case

    case, assumed = Case.of(*key, batch), rule(key, batch, ways)
    chosen = agreed(f"kernels/{case}", lambda: _timed(case, assumed, ways, trial, seconds))
    return chosen if chosen in ways else assumed


def _timed(case: Case, assumed: str, ways: tuple[str, ...], trial: Trial, seconds: float) -> str:
    """Returns the choice of the table; times the case if it is not there, or uses that of a near one."""
    global _spent
    from undiffuse.kernels import timing as clock
    from undiffuse.kernels.timing_table import Entry

    table, text = timings(), str(case)
    again = timing() == "measure" and text not in _again
    known = None if again else table.entries.get(text)
    if known is not None:
        return known.way
    if not again and text in _untimed:
        return _untimed[text]
    found, begin = None, time.thread_time()
    if again or _spent < max(seconds, SHARE * time.process_time()):
        with own_pages():
            found = clock.measure(case, assumed, ways, trial, (10 if again else 1) * clock.LIMIT)
        return_memory()
        _spent += time.thread_time() - begin
    if found is None:
        return _untimed.setdefault(text, _of_a_near_case(case, table) or assumed)
    _again.add(text)
    return table.add(case, Entry(*found), replace=again).way


def _of_a_near_case(case: Case, table: TimingTable) -> str | None:
    from undiffuse.kernels.timing_table import case_of

    others = [(case.distance(other), text) for text in table.entries if (other := case_of(text)) is not None]
    near = [(far, text) for far, text in others if far <= _FAR]
    return table.entries[min(near)[1]].way if near else None


def _kind(key: Key) -> str:
    return key[0] if key[0] in _BEFORE else key[0].partition("_")[0]


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
