"""The 1000 classes of ImageNet (ILSVRC-2012), which the published class-conditional models and classifiers know.

A class's number is its place in the sorted list of synset ids: n01440764 (tench) is 0, n15075141 (toilet tissue) is
999. A synset is an entry of WordNet 3.0, a set of words with one meaning; the words come from there (see
assets/imagenet_classes.LICENSE.txt). Nothing is read before it is needed.

A class's name is its synset's first word, except where two classes would share it whatever the case: the two cranes and
the two maillots are told apart in brackets, and the dog that WordNet calls Cardigan has its second name, so that
"cardigan" is the garment. No name holds a comma.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import resources

COUNT = 1000
_OWN_NAMES = {
    "n02012849": "crane (bird)",
    "n02113186": "Cardigan Welsh corgi",
    "n03126707": "crane (machine)",
    "n03710637": "maillot (tights)",
    "n03710721": "maillot (tank suit)",
}
_LISTED = 8  # names that a message shows
_NOT_A_LETTER = re.compile(r"[\W_]+")


@lru_cache(maxsize=1)
def _table() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(synset id, its words) of every class."""
    file = resources.files("undiffuse") / "assets" / "imagenet_classes.tsv"
    rows = (line.split("\t") for line in file.read_text(encoding="ascii").splitlines())
    return tuple((synset, tuple(words.split(", "))) for synset, words in rows)


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """One name for each of the 1000 classes, all different whatever their case, none with a comma."""
    return tuple(_OWN_NAMES.get(synset, words[0]) for synset, words in _table())


def are_these(labels: Sequence[str] | None) -> bool:
    """Whether the names of a model's classes are those of `names`, in this order."""
    return labels is not None and len(labels) == COUNT and tuple(labels) == names()


def synonyms(index: int) -> tuple[str, ...]:
    """All words of a class's synset, in WordNet's order: 207 -> ("golden retriever",), 282 -> ("tiger cat",)."""
    return _row(index)[1]


def synset(index: int) -> str:
    """The WordNet 3.0 id of a class: 207 -> "n02099601"."""
    return _row(index)[0]


def find(text: str) -> list[int]:
    """The classes that a text means, in order of their numbers; several if it is ambiguous, none if it is unknown.

    The first of these that finds anything decides:

        1. what names a class exactly (`exact`): number, synset id, name, synonym
        2. words of it: "retriever" -> all five of them; all given words must be in one name or synonym
        3. a part of it: "retriev"; fewer than four letters must be the beginning of a word
    """
    text = text.strip()
    return exact(text) or _by_words(text) or _by_part(text)


def exact(text: str) -> list[int]:
    """The classes that a text names in full: those of the first kind that finds any.

    A number from 0 to 999; a synset id ("n02099601"); a name letter for letter, then a synonym letter for letter
    ("Cardigan" is the dog, as in other lists of these classes); a name, then a synonym, where only letters and digits
    count, without their case ("Golden_Retriever", "jack-o-lantern"); all synonyms with commas, as some lists have them.
    """
    text = text.strip()
    if text.isascii() and text.isdigit():
        return [int(text)] if int(text) < COUNT else []
    for kind, key in (("synset", text.lower()), ("name", text), ("synonym", text),
                      ("plain name", _plain(text)), ("plain synonym", _plain(text))):  # fmt: skip
        found = _index()[kind].get(key)
        if found:
            return list(found)
    return []


def search(text: str = "", limit: int | None = None) -> list[int]:
    """Classes for a listing, best matches first: exact ones, then those with its words, then with it as a part.

    Without text all 1000; none where nothing matches (see `similar`).
    """
    text = text.strip()
    if not text:
        return list(range(COUNT))[:limit]
    return _once([*exact(text), *_by_words(text), *_by_part(text)])[:limit]


def similar(text: str) -> list[int]:
    """At most five classes with a name or synonym spelled like the text, else those that share a word with it."""
    spelled: dict[str, int] = {}
    for index in range(COUNT):
        for term in _terms(index):
            spelled.setdefault(" ".join(_words(term)), index)
    near = difflib.get_close_matches(" ".join(_words(text)), spelled, 5, cutoff=0.72)
    if near:
        return _once(spelled[term] for term in near)
    wanted = {word for word in _words(text) if len(word) > 2}
    return _once(index for index, words, _ in _searched() if wanted & words)[:5]


def index_of(text: str) -> int:
    """The one class that a text means (see `find`). ValueError tells the possible ones, or names spelled like it."""
    found = find(text)
    if len(found) == 1:
        return found[0]
    text = text.strip()
    if not text:
        raise ValueError("the name of a class is missing")
    if re.fullmatch(r"-?\d+", text):
        raise ValueError(f"class {text} does not exist; ImageNet's classes are 0 to {COUNT - 1}")
    if found:
        shown = [f"{names()[index]} ({index})" for index in found[:_LISTED]]
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise ValueError(
            f"class {text!r} could mean {', '.join(shown)}{more}; give a full name or a number. "
            f"`undiffuse models --classes {_quoted(text)}` lists them"
        )
    near = [names()[index] for index in similar(text)]
    meant = f"; did you mean {' or '.join(near)}?" if near else "."
    raise ValueError(
        f"class {text!r} is none of ImageNet's {COUNT}{meant} `undiffuse models --classes TEXT` searches them, and "
        f"numbers from 0 to {COUNT - 1} and synset ids (n02099601) are understood too"
    )


def _row(index: int) -> tuple[str, tuple[str, ...]]:
    if not 0 <= index < COUNT:
        raise ValueError(f"class {index} does not exist; ImageNet's classes are 0 to {COUNT - 1}")
    return _table()[index]


def _terms(index: int) -> tuple[str, ...]:
    """Name and synonyms of a class, each once."""
    return tuple(dict.fromkeys([names()[index], *_table()[index][1]]))


def _plain(text: str) -> str:
    """Letters and digits alone, without their case."""
    return _NOT_A_LETTER.sub("", text.casefold())


def _words(text: str) -> list[str]:
    return _NOT_A_LETTER.sub(" ", text.casefold().replace("'", "")).split()


@lru_cache(maxsize=1)
def _index() -> dict[str, dict[str, list[int]]]:
    """Classes by what names them exactly, one dictionary for each kind of naming."""
    out: dict[str, dict[str, list[int]]] = {
        kind: {} for kind in ("synset", "name", "synonym", "plain name", "plain synonym")
    }

    def enter(kind: str, key: str, index: int) -> None:
        classes = out[kind].setdefault(key, [])
        if index not in classes:
            classes.append(index)

    for index, ((synset_id, words), name) in enumerate(zip(_table(), names(), strict=True)):
        enter("synset", synset_id, index)
        enter("name", name, index)
        enter("plain name", _plain(name), index)
        for word in (*words, ", ".join(words)):
            enter("synonym", word, index)
            enter("plain synonym", _plain(word), index)
    return out


@lru_cache(maxsize=1)
def _searched() -> tuple[tuple[int, frozenset[str], str], ...]:
    """(class, words, letters) of every name and synonym."""
    return tuple(
        (index, frozenset(_words(term)), " ".join(_words(term))) for index in range(COUNT) for term in _terms(index)
    )


def _by_words(text: str) -> list[int]:
    wanted = set(_words(text))
    return _once(index for index, words, _ in _searched() if wanted and wanted <= words)


def _by_part(text: str) -> list[int]:
    wanted = " ".join(_words(text))
    sought = wanted if len(wanted) >= 4 else f" {wanted}"
    return _once(index for index, _, letters in _searched() if wanted and sought in f" {letters}")


def _once(indices: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(indices))


def _quoted(text: str) -> str:
    return f'"{text}"' if " " in text else text
