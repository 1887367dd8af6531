"""Replaces the library's arguments by options in messages."""

from __future__ import annotations

import re

_WORDS = re.compile(
    r"\b(on_broken|on_tiny|labels|frames|layout|fit|patches|grey|model|init_from|resume|format|validation)"
    r'=["\']([^"\']*)["\'](?:( or )"([^"]*)")?'
    r"|\bvalue_range=\(([^,()]+), ([^,()]+)\)|\b(max_pixels|channels|size)=(\d+)(?=[^:\d]|:?$)"
)


def in_options(text: str) -> str:
    """Rewrites a message of the library: on_broken="skip" becomes --on-broken skip."""

    def option(found: re.Match[str]) -> str:
        if found[5] is not None:
            return f"--range {found[5].upper()},{found[6].upper()}"
        if found[7] is not None:
            return f"--{found[7].replace('_', '-')} {found[8]}"
        name = f"--{found[1].replace('_', '-')}"
        value = f'"{found[2]}"' if " " in found[2] else found[2]
        return f"{name} {value}" + (f"{found[3]}{name} {found[4]}" if found[3] else "")

    for argument, typed in (("overwrite=True", "--overwrite"), ("weights=NAME", "--weights NAME")):
        text = text.replace(f"pass {argument} to replace it", f"add {typed}").replace(argument, typed)
    return _WORDS.sub(option, text)
