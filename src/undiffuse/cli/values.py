"""Parses the values of options, as argparse's types. Imports only the standard library."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

MOST = 2**32
"""The largest count: images of a run are numbered by 32 bits."""
LARGEST_SIDE = 65536


def positive(text: str) -> int:
    """Parses a whole number of at least 1, for example 20, 200_000, 200k or 2M."""
    return _whole(text, 1, "a whole number of at least 1, for example 20 or 200k")


def pixels(text: str) -> int:
    """Parses a number of pixels, for example 500M."""
    return _whole(text, 1, "a number of pixels of at least 1, for example 500M", 2**53, "no image has so many pixels")


def value_range(text: str) -> tuple[float, float] | str:
    """Parses the values of black and white, for example 0,4095 or -1000,2000; or "auto"."""
    if text.strip().lower() == "auto":
        return "auto"
    parts = text.split(",")
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        raise argparse.ArgumentTypeError(f"{text!r}: expected two numbers, for example 0,4095 or -1000,2000; or auto")
    return low, high


def pair(text: str) -> tuple[float, float]:
    """The values of black and white, such as 0,4095."""
    found = value_range(text)
    if isinstance(found, str):
        raise argparse.ArgumentTypeError(f"{text!r}: expected two numbers such as 0,4095 or -1000,2000")
    return found


def patches(text: str) -> tuple[int | tuple[int, int], str]:
    """Parses the size of patches and how to cut them: 256, 128x256, or 256,tiled."""
    first, _, how = text.partition(",")
    how = how.strip().lower() or "random"
    if how not in ("random", "tiled"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size, or a size and random or tiled: 256 or 256,tiled")
    return size(first), how


def natural(text: str) -> int:
    """Parses a whole number of at least 0."""
    return _whole(text, 0, "a whole number of at least 0")


def seed(text: str) -> int:
    """Parses a seed, 0 <= seed < 2^64."""
    return _whole(text, 0, "a whole number from 0 to 2^64 - 1", 2**64 - 1, "the maximum is 2^64 - 1")


def amount(text: str) -> int | None:
    """Parses a whole number of at least 1, or "all", which becomes None."""
    return None if text.strip().lower() == "all" else _whole(text, 1, 'a whole number of at least 1, or "all"')


def non_negative(text: str) -> float:
    """Parses a finite number of at least 0."""
    number = _number(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of at least 0")
    return number


def fraction(text: str) -> float:
    """Parses a number from 0 to 1."""
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to 1")
    return number


def rate(text: str) -> float:
    """Parses a number above 0."""
    number = _number(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return number


def time_span(text: str) -> float:
    """Parses a time in seconds: 90, 45m, 3h50m, 1d12h30s, or as Slurm writes it 3:50:00 and 1-12:00:00."""
    units = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s?)?", text.strip().lower())
    clock = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", text.strip())
    if clock is not None:
        days, *parts = clock.groups()
        numbers = [days, *(parts if parts[2] is not None or days else [None, *parts[:2]])]  # 50:00 are minutes
    else:
        numbers = list(units.groups()) if units is not None else []
    seconds = sum(int(n or 0) * size for n, size in zip(numbers, (86_400, 3600, 60, 1), strict=False))
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a time such as 45m, 3h50m or 1-12:00:00")
    return float(seconds)


def scale(text: str) -> float:
    """Parses a finite number."""
    number = _number(text)
    if not abs(number) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a finite number")
    return number


def scales(text: str) -> tuple[float, ...]:
    """Parses guidance scales, for example 0,0.5,1."""
    found = tuple(scale(part.strip()) for part in text.split(",") if part.strip())
    if not found or len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected different numbers, for example 0,0.5,1,2")
    return found


def counts(text: str) -> tuple[int, ...]:
    """Parses whole numbers of at least 1, for example 5,10,20."""
    found = tuple(positive(part.strip()) for part in text.split(",") if part.strip())
    if not found or len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected different whole numbers, for example 5,10,20")
    return found


def guidance_interval(text: str) -> tuple[str, float, float]:
    """Parses an interval of noise levels into (unit, low, high): -1,3 (log-SNR), sigma:0.2,1.6 or steps:0.2,0.8."""
    unit, colon, ends = text.strip().lower().rpartition(":")
    parts = ends.split(",")
    expected = 'expected LO,HI in log-SNR, for example -1,3 or 1,inf; or "sigma:0.2,1.6"; or fractions "steps:0.2,0.8"'
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_shown(text)}: {expected}") from None
    least, most = {"": (-math.inf, math.inf), "sigma": (0, math.inf), "steps": (0, 1)}.get(unit, (1, 0))
    if unit == "" and colon or not least <= low < high <= most:
        raise argparse.ArgumentTypeError(f"{_shown(text)}: {expected}; the first number must be below the second")
    return unit or "logsnr", low, high


def interval_text(text: str) -> str:
    """Returns an interval as text, after checking it with `guidance_interval`."""
    guidance_interval(text)
    return text.strip().lower()


def clipping(text: str) -> str:
    """Parses a clipping method, as `denoiser.clip_function` reads it."""
    spec = text.replace(" ", "").lower()
    if not re.fullmatch(r"none|static(:[\d.]+)?|dynamic(:[\d.]+(,[\d.]+)?)?", spec):
        expected = "static, static:RANGE, dynamic, dynamic:QUANTILE, dynamic:QUANTILE,LARGEST or none"
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected {expected}")
    return spec


def words(text: str) -> list[str]:
    """Parses a comma-separated list of words."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected one or more words separated by commas")
    return found


def size(text: str) -> int | tuple[int, int]:
    """Parses an image size: "64" (square) or "48x64" (height x width)."""
    parts = text.lower().split("x")
    expected = "a size, for example 64 or 48x64 (height x width)"
    if len(parts) > 2 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected {expected}")
    limit = f"a side has at most {LARGEST_SIDE:,} pixels"
    sides = [_whole(part, 1, expected, LARGEST_SIDE, limit) for part in parts]
    return sides[0] if len(sides) == 1 or sides[0] == sides[1] else (sides[0], sides[1])


def decays(text: str) -> tuple[float, ...]:
    """Parses EMA decays: "0.999,0.9999", or "none"."""
    if text.strip().lower() == "none":
        return ()
    numbers = tuple(_number(part) for part in text.split(","))
    if not all(0 <= number < 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: expected decays from 0 to below 1, for example 0.999,0.9999")
    return numbers


def seed_pair(text: str) -> tuple[int, int]:
    """Parses two seeds: "1,2"."""
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text!r}: expected two seeds, for example 1,2")
    return seed(parts[0]), seed(parts[1])


def rectangle(text: str) -> tuple[int, int, int, int]:
    """Parses a rectangle in pixels: "top,left,height,width"."""
    parts = text.split(",")
    if len(parts) != 4:
        example = "for example 8,8,16,16"
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected top,left,height,width in pixels, {example}")
    return natural(parts[0]), natural(parts[1]), positive(parts[2]), positive(parts[3])


def assignment(text: str) -> tuple[str, str]:
    """Parses an assignment: path.to.field=value."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: expected FIELD=VALUE, for example train.lr=2e-4")
    return path.strip(), value.strip()


def choice(*options: str) -> Callable[[str], str]:
    """Returns a parser that accepts one of some words in any case."""

    def parse(text: str) -> str:
        if text.lower() not in options:
            raise argparse.ArgumentTypeError(f"{text!r}: expected one of {', '.join(options)}")
        return text.lower()

    return parse


def solver(text: str) -> str:
    """Parses the name of a solver in any case."""
    from undiffuse.solvers.registry import FORMER_NAMES, SOLVERS, solver_info

    try:
        solver_info(text.lower())
    except ValueError as error:
        now = FORMER_NAMES.get(text.lower())
        known = str(error) if now else f"{text!r}: expected one of {', '.join(SOLVERS)}"
        raise argparse.ArgumentTypeError(known) from None
    return text.lower()


def _whole(text: str, least: int, expected: str, most: int = MOST, limit: str = "the maximum is 2^32") -> int:
    plain = text.strip().replace("_", "")
    factor = {"k": 1_000, "m": 1_000_000}.get(plain[-1:].lower(), 1)
    digits = plain[:-1] if factor > 1 else plain
    if not (digits.isascii() and digits.isdigit()):
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected {expected}")
    # Python refuses to read numbers of thousands of digits.
    number = int(digits.lstrip("0") or 0) * factor if len(digits.lstrip("0")) <= 30 else most + 1
    if number > most:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is too large: {limit}")
    if number < least:
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected {expected}")
    return number


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
