"""Damage to honest inputs: bytes that flip, numbers and values that nobody expects, and where the choices come from."""

from __future__ import annotations

import json
import random
from typing import Any

ODD_NUMBERS = [0, 1, -1, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**63 - 1, 2**64 - 1]
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1e308, float("nan"), float("inf"), 10**30, "", "\0", "x" * 3000, "\x1b[2J", "\ud800",
    "nan", [], {}, [[]], [None], {"a": {}}, [1, "a"], "../../x", "1e999", "0x10", "½", 0.1, -(2**63),
]  # fmt: skip


class ByteRandom(random.Random):
    """A random generator whose choices are read from bytes, so that whoever changes the bytes changes the choices.

    A fuzzer that looks for new paths through the program can then steer every decision of the functions below. When the
    bytes are used up, choices go on from a generator seeded by the first four.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 4
        super().__init__(int.from_bytes(data[:4], "little"))

    def getrandbits(self, k: int) -> int:
        size = (k + 7) // 8
        if self._at + size > len(self._data):
            self._at = len(self._data)
            return super().getrandbits(k)
        number = int.from_bytes(self._data[self._at : self._at + size], "little")
        self._at += size
        return number >> (8 * size - k)

    def random(self) -> float:
        return self.getrandbits(53) / 2**53


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes with one to four flips, odd numbers, cuts, repeats or moves."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            break
        at, kind = rng.randrange(len(out)), rng.randrange(7)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            size = rng.choice([1, 2, 4, 8])
            number = (rng.choice(ODD_NUMBERS) & (2 ** (8 * size) - 1)).to_bytes(size, rng.choice(["little", "big"]))  # type: ignore[arg-type]
            out[at : at + size] = number
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at : at + rng.randint(1, 64)]
        elif kind == 5:
            out[at:at] = out[at : at + rng.randint(1, 64)]
        else:
            other = rng.randrange(len(out))
            out[at : at + 8] = out[other : other + 8]
    return bytes(out)


def odd(rng: random.Random, value: Any) -> Any:
    """A JSON value with one part, somewhere, replaced, renamed, removed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {name: part for name, part in value.items() if name != key}
        if kind < 0.2:
            return {**value, key + "x": value[key]}
        return {**value, key: odd(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], odd(rng, value[at]), *value[at + rng.randint(0, 1) :]]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice(ODD_NUMBERS) * rng.choice([1, -1])
    if isinstance(value, str) and rng.random() < 0.5:
        return "".join(rng.choice([c, c, c, "", ":", ",", "-", "9", "\0", "é"]) for c in value)
    return rng.choice(ODD_VALUES)


def odd_json(rng: random.Random, value: Any, bytes_too: float = 0.2) -> bytes:
    """The text of a JSON value after one to three changes, now and then with damaged bytes."""
    for _ in range(rng.randint(1, 3)):
        value = odd(rng, value)
    text = json.dumps(value).encode("utf-8", "replace")
    return damaged(rng, text) if rng.random() < bytes_too else text
