"""Options in the place of the library's arguments in messages."""

from __future__ import annotations

import re

_WORDS = re.compile(
    r'\b(on_broken|on_tiny|labels|frames|layout|fit|patches)="([^"]*)"(?:( or )"([^"]*)")?'
    r"|\bvalue_range=\(([^,()]+), ([^,()]+)\)|\bmax_pixels=(\d+)"
)


def in_options(text: str) -> str:
    """A message of the library with options for its arguments: on_broken="skip" becomes --on-broken skip."""

    def option(found: re.Match[str]) -> str:
        if found[5] is not None:
            return f"--range {found[5].upper()},{found[6].upper()}"
        if found[7] is not None:
            return f"--max-pixels {found[7]}"
        name = f"--{found[1].replace('_', '-')}"
        return f"{name} {found[2]}" + (f"{found[3]}{name} {found[4]}" if found[3] else "")

    return _WORDS.sub(option, text)
