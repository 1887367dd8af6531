"""Kinds of values: each reads a value from text, checks one from Python or JSON, and says what is expected."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from undiffuse.util.text import join_names, shown

__all__ = ["Choice", "Flag", "Key", "Kind", "Number", "Parsed", "SolverName", "Text", "clipping", "interval"]


class Kind(Protocol):
    """What a field can hold."""

    @property
    def expected(self) -> str:
        """The values that are possible, for messages: "a number from 0 to 1"."""

    def accepts(self, value: Any) -> bool:
        """Whether a value from Python or JSON is of this kind."""

    def parse(self, text: str) -> Any:
        """Reads a value from text. Raises ValueError with what was given and what is expected."""


class _Parsing:
    """`parse` by `_read` and `accepts`, for the kinds below."""

    expected: str

    def accepts(self, value: Any) -> bool:
        raise NotImplementedError

    def _read(self, text: str) -> Any:
        return text

    def parse(self, text: str) -> Any:
        try:
            value = self._read(text.strip())
        except ValueError:
            value = None
        if value is None or not self.accepts(value):
            raise ValueError(f"{shown(text)}: expected {self.expected}")
        return value


@dataclass(frozen=True)
class Number(_Parsing):
    """A finite number.

    Args:
        low: The least value.
        high: The largest value.
        whole: Whether it must be an integer.
        above: Whether `low` itself is excluded.
    """

    low: float = -1e30
    high: float = 1e30
    whole: bool = False
    above: bool = False

    @property
    def expected(self) -> str:  # type: ignore[override]
        """See `Kind.expected`."""
        kind = "a whole number" if self.whole else "a number"
        if self.low <= -1e30 and self.high >= 1e30:
            return f"{kind.replace('a ', 'a finite ', 1)}"
        if self.high >= 1e30:
            return f"{kind} above {self.low:g}" if self.above else f"{kind} of at least {self.low:g}"
        return f"{kind} from {self.low:g} to {self.high:g}"

    def accepts(self, value: Any) -> bool:
        """See `Kind.accepts`."""
        kinds = (int,) if self.whole else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high
        return fits and not (self.above and value == self.low)

    def _read(self, text: str) -> float:
        return int(text) if self.whole else float(text)


@dataclass(frozen=True, init=False)
class Choice(_Parsing):
    """One of a few words; case does not matter when it is read from text."""

    words: tuple[str, ...]

    def __init__(self, *words: str) -> None:
        object.__setattr__(self, "words", words)

    @property
    def expected(self) -> str:  # type: ignore[override]
        """See `Kind.expected`."""
        return f"one of {join_names(self.words, 30)}" if len(self.words) > 4 else join_names(self.words, last=" or ")

    def accepts(self, value: Any) -> bool:
        """See `Kind.accepts`."""
        return value in self.words

    def _read(self, text: str) -> str:
        return text.lower()


class Key(_Parsing):
    """A key of a table that may grow, for example the solvers by name."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.table = table

    @property
    def expected(self) -> str:  # type: ignore[override]
        """See `Kind.expected`."""
        return f"one of {join_names(self.table, 40)}"

    def accepts(self, value: Any) -> bool:
        """See `Kind.accepts`."""
        return isinstance(value, str) and value in self.table

    def _read(self, text: str) -> str:
        return text.lower()


class SolverName(Key):
    """The name of a solver: one of the table, or one that an installed package offers."""

    def accepts(self, value: Any) -> bool:
        """See `Kind.accepts`."""
        from undiffuse.solvers.registry import solver_info

        if not isinstance(value, str):
            return False
        try:
            solver_info(value)
        except ValueError:
            return False
        return True

    def parse(self, text: str) -> Any:
        """See `Kind.parse`; a name that solvers had before is explained."""
        from undiffuse.solvers.registry import FORMER_NAMES

        now = FORMER_NAMES.get(text.strip().lower())
        if now is not None:
            raise ValueError(f"{shown(text)}: it is now called {now!r}")
        return super().parse(text)


@dataclass(frozen=True)
class Text(_Parsing):
    """Text that is not empty, or with `empty` any text."""

    empty: bool = False
    expected: str = "text"

    def accepts(self, value: Any) -> bool:
        """See `Kind.accepts`."""
        return isinstance(value, str) and (self.empty or bool(value.strip()))


@dataclass(frozen=True)
class Flag(_Parsing):
    """True or False."""

    expected: str = "true or false"

    def accepts(self, value: Any) -> bool:
        """See `Kind.accepts`."""
        return isinstance(value, bool)

    def _read(self, text: str) -> bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else bool(int("x"))


@dataclass(frozen=True)
class Parsed(_Parsing):
    """Text in a small language of its own, which `check` reads; `check` raises ValueError for what it cannot read."""

    check: Callable[[str], Any]
    expected: str

    def accepts(self, value: Any) -> bool:
        """See `Kind.accepts`."""
        if not isinstance(value, str):
            return False
        try:
            self.check(value)
        except ValueError:
            return False
        return True


INTERVAL = 'LO,HI in log-SNR, for example -1,3 (also inf), "sigma:0.2,1.6", or fractions of the steps "steps:0.2,0.8"'


def interval(text: str) -> tuple[str, float, float]:
    """Reads an interval of noise levels.

    Args:
        text: "-1,3" in log-SNR, "sigma:0.2,1.6" in sigma / alpha, or "steps:0.2,0.8" in fractions of the path.

    Returns:
        (unit, low, high), the unit being "logsnr", "sigma" or "steps".

    Raises:
        ValueError: If the text is no such interval, or its first end is not below the second.
    """
    unit, colon, ends = text.strip().lower().rpartition(":")
    try:
        low, high = (float(part) for part in ends.split(","))
    except ValueError:
        raise ValueError(f"{shown(text)}: expected {INTERVAL}") from None
    least, most = {"": (-math.inf, math.inf), "sigma": (0, math.inf), "steps": (0, 1)}.get(unit, (1, 0))
    if unit == "" and colon or not least <= low < high <= most:
        raise ValueError(f"{shown(text)}: expected {INTERVAL}, with the first number below the second")
    return unit or "logsnr", low, high


CLIPPING = "static, static:RANGE, dynamic, dynamic:QUANTILE, dynamic:QUANTILE,LARGEST or none"


def clipping(text: str) -> None:
    """Checks a specification of what is done to denoised images, see `denoiser.clip_function`.

    Raises:
        ValueError: If there is no such specification.
    """
    if not re.fullmatch(r"none|static(:[\d.]+)?|dynamic(:[\d.]+(,[\d.]+)?)?", text):
        raise ValueError(f"{shown(text)}: expected {CLIPPING}")
