"""Values of options: the types argparse calls. Light: nothing is imported but the standard library."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

MOST = 2**32
"""No count is larger: images of a run are numbered by 32 bits."""
LARGEST_SIDE = 65536


def positive(text: str) -> int:
    """A whole number of at least 1; thousands may be grouped: 200_000, 200k, 2M."""
    return _whole(text, 1, "a whole number of at least 1, such as 20 or 200k")


def pixels(text: str) -> int:
    """A number of pixels of at least 1, such as 500M."""
    return _whole(text, 1, "a number of pixels of at least 1, such as 500M", 2**53, "that is more than any image has")


def value_range(text: str) -> tuple[float, float] | str:
    """The values of black and white, such as 0,4095 or -1000,2000; or "auto"."""
    if text.strip().lower() == "auto":
        return "auto"
    parts = text.split(",")
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        raise argparse.ArgumentTypeError(f"{text!r}: expected two numbers such as 0,4095 or -1000,2000, or auto")
    return low, high


def pair(text: str) -> tuple[float, float]:
    """The values of black and white, such as 0,4095."""
    found = value_range(text)
    if isinstance(found, str):
        raise argparse.ArgumentTypeError(f"{text!r}: expected two numbers such as 0,4095 or -1000,2000")
    return found


def patches(text: str) -> tuple[int | tuple[int, int], str]:
    """The size of patches and how they are cut: 256, 128x256, or 256,tiled."""
    first, _, how = text.partition(",")
    how = how.strip().lower() or "random"
    if how not in ("random", "tiled"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size, alone or with how: 256 or 256,tiled")
    return size(first), how


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0, "a whole number of at least 0")


def seed(text: str) -> int:
    """A seed, 0 <= seed < 2^64."""
    return _whole(text, 0, "a whole number from 0 to 2^64 - 1", 2**64 - 1, "a seed is from 0 to 2^64 - 1")


def amount(text: str) -> int | None:
    """A whole number of at least 1, or "all" (None)."""
    return None if text.strip().lower() == "all" else _whole(text, 1, 'a whole number of at least 1, or "all"')


def non_negative(text: str) -> float:
    """A finite number, 0 or more."""
    number = _number(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 on")
    return number


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is out of range: a number from 0 to 1 is expected")
    return number


def rate(text: str) -> float:
    """A number above 0."""
    number = _number(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: a number above 0 is expected")
    return number


def scale(text: str) -> float:
    """Any finite number."""
    number = _number(text)
    if not abs(number) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: a finite number is expected")
    return number


def scales(text: str) -> tuple[float, ...]:
    """Several strengths of guidance, such as 0,0.5,1."""
    found = tuple(scale(part.strip()) for part in text.split(",") if part.strip())
    if not found or len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected different numbers, such as 0,0.5,1,2")
    return found


def counts(text: str) -> tuple[int, ...]:
    """Several whole numbers of at least 1, such as 5,10,20."""
    found = tuple(positive(part.strip()) for part in text.split(",") if part.strip())
    if not found or len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected different whole numbers, such as 5,10,20")
    return found


def guidance_interval(text: str) -> tuple[str, float, float]:
    """An interval of noise levels, such as -1,3 (log-SNR), sigma:0.2,1.6 or steps:0.2,0.8: (unit, low, high)."""
    unit, colon, ends = text.strip().lower().rpartition(":")
    parts = ends.split(",")
    expected = 'expected LO,HI in log-SNR such as -1,3 (also inf), "sigma:0.2,1.6", or fractions "steps:0.2,0.8"'
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_shown(text)}: {expected}") from None
    least, most = {"": (-math.inf, math.inf), "sigma": (0, math.inf), "steps": (0, 1)}.get(unit, (1, 0))
    if unit == "" and colon or not least <= low < high <= most:
        raise argparse.ArgumentTypeError(f"{_shown(text)}: {expected}, the first number below the second")
    return unit or "logsnr", low, high


def interval_text(text: str) -> str:
    """An interval as `guidance_interval` reads it, as it was given."""
    guidance_interval(text)
    return text.strip().lower()


def clipping(text: str) -> str:
    """What is done to denoised images, as `denoiser.clip_function` reads it."""
    spec = text.replace(" ", "").lower()
    if not re.fullmatch(r"none|static(:[\d.]+)?|dynamic(:[\d.]+(,[\d.]+)?)?", spec):
        expected = "static, static:RANGE, dynamic, dynamic:QUANTILE, dynamic:QUANTILE,LARGEST or none"
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected {expected}")
    return spec


def words(text: str) -> list[str]:
    """A comma list of words."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected one or more words, separated by commas")
    return found


def size(text: str) -> int | tuple[int, int]:
    """An image size: "64" (square) or "48x64" (height x width)."""
    parts = text.lower().split("x")
    expected = "a size like 64, or 48x64 (height x width)"
    if len(parts) > 2 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected {expected}")
    limit = f"a side has at most {LARGEST_SIDE:,} pixels"
    sides = [_whole(part, 1, expected, LARGEST_SIDE, limit) for part in parts]
    return sides[0] if len(sides) == 1 or sides[0] == sides[1] else (sides[0], sides[1])


def decays(text: str) -> tuple[float, ...]:
    """EMA decays: "0.999,0.9999", or "none"."""
    if text.strip().lower() == "none":
        return ()
    numbers = tuple(_number(part) for part in text.split(","))
    if not all(0 <= number < 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: EMA decays are from 0 to below 1, such as 0.999,0.9999")
    return numbers


def seed_pair(text: str) -> tuple[int, int]:
    """Two seeds: "1,2"."""
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"{text!r}: expected two seeds, such as 1,2")
    return seed(parts[0]), seed(parts[1])


def rectangle(text: str) -> tuple[int, int, int, int]:
    """A rectangle of pixels: "top,left,height,width"."""
    parts = text.split(",")
    if len(parts) != 4:
        raise argparse.ArgumentTypeError(f"{_shown(text)}: expected top,left,height,width in pixels, such as 8,8,16,16")
    return natural(parts[0]), natural(parts[1]), positive(parts[2]), positive(parts[3])


def assignment(text: str) -> tuple[str, str]:
    """path.to.field=value."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: expected FIELD=VALUE, such as train.lr=2e-4 or net.dropout=0.1")
    return path.strip(), value.strip()


def choice(*options: str) -> Callable[[str], str]:
    """One of some words, whatever the case."""

    def parse(text: str) -> str:
        if text.lower() not in options:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(options)}")
        return text.lower()

    return parse


def solver(text: str) -> str:
    """The name of a solver, whatever the case."""
    from undiffuse.solvers.registry import FORMER_NAMES, SOLVERS, solver_info

    try:
        solver_info(text.lower())
    except ValueError as error:
        now = FORMER_NAMES.get(text.lower())
        known = str(error) if now else f"{text!r} is none of {', '.join(SOLVERS)}"
        raise argparse.ArgumentTypeError(known) from None
    return text.lower()


def _whole(text: str, least: int, expected: str, most: int = MOST, limit: str = "at most 2^32 is possible") -> int:
    plain = text.strip().replace("_", "")
    factor = {"k": 1_000, "m": 1_000_000}.get(plain[-1:].lower(), 1)
    digits = plain[:-1] if factor > 1 else plain
    if not (digits.isascii() and digits.isdigit()):
        raise argparse.ArgumentTypeError(f"{_shown(text)}: {expected} is expected")
    # Python refuses to read numbers of thousands of digits.
    number = int(digits.lstrip("0") or 0) * factor if len(digits.lstrip("0")) <= 30 else most + 1
    if number > most:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is too large: {limit}")
    if number < least:
        raise argparse.ArgumentTypeError(f"{_shown(text)}: {expected} is expected")
    return number


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
