"""The registry of published weights: what each file is, where it is, its published results and how to sample it.

`undiffuse.recipes` takes results and advice from here, and loading a file takes from here what its shapes cannot show.
The entries are in `published_guided`, `published_others` and `published_consistency`.

    published.get("256x256_diffusion")            an entry by its name; ValueError lists near names
    published.of_file("x/256x256_diffusion.pt")   the entry whose file is called like this, or None
    published.ENTRIES                             all, by name
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

from undiffuse.adapters.published_consistency import CONSISTENCY_FILES
from undiffuse.adapters.published_entry import Published, Result
from undiffuse.adapters.published_guided import FILES
from undiffuse.adapters.published_others import DDPM_FILES, IMPROVED_FILES

__all__ = ["ENTRIES", "Published", "Result", "get", "near", "of_file", "upsamplers_of"]

_ALL = (*FILES, *IMPROVED_FILES, *CONSISTENCY_FILES, *DDPM_FILES)
ENTRIES: Mapping[str, Published] = {entry.name: entry for entry in _ALL}


def get(name: str) -> Published:
    """Returns the entry of this name; ValueError for an unknown name suggests similar ones."""
    if name in ENTRIES:
        return ENTRIES[name]
    raise ValueError(f"there is no published model {name!r}{near(name)}")


def near(name: str) -> str:
    """Returns "; did you mean ...?" with the most similar names, or a hint to `undiffuse models`."""
    wanted = name.strip().casefold()
    words = re.findall("[a-z0-9]+", wanted)
    found = [known for known in ENTRIES if words and all(word in known.casefold() for word in words)]
    found += difflib.get_close_matches(wanted, ENTRIES, n=4, cutoff=0.6)
    named = list(dict.fromkeys(found))[:6]
    return f"; did you mean {' or '.join(named)}?" if named else "; `undiffuse models` lists them"


def of_file(path: str | Path) -> Published | None:
    """Returns the entry whose file (and folder, if it has one) has the name of `path`; None if there is none."""
    parts = Path(path).parts
    for entry in ENTRIES.values():
        own = Path(entry.file).parts
        if parts[-len(own) :] == own:
            return entry
    return None


def upsamplers_of(name: str) -> list[Published]:
    """Returns the upsamplers made for the samples of the model `name`."""
    return [e for e in ENTRIES.values() if e.base == name]
