"""Arrays with names (npz, HDF5, Zarr, MATLAB): which are pictures, which are labels, and of which part."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.data.array_source import ArraySource
from undiffuse.data.formats.base import Reading, choose_part, part_of, with_labels
from undiffuse.data.formats.layout import arrange, axes_of, flat_shape, picture_shape
from undiffuse.data.formats.stored import EncodedSource, StoredSource
from undiffuse.data.labels import join_names
from undiffuse.data.sources import Source
from undiffuse.data.values import declare, guess_range
from undiffuse.util.limits import check_item, check_rows

__all__ = ["Part", "build", "find_parts"]

IMAGES = ("arr_0", "images", "image", "x", "imgs", "img", "data", "pictures", "samples", "pixels", "frames")
LABELS = ("arr_1", "labels", "label", "y", "targets", "target", "classes", "class", "cls", "fine_labels", "fine_label",
          "class_label", "class_labels", "ans")  # fmt: skip
NAMES = ("label_names", "class_names", "classes_names", "names", "classes", "categories", "target_names")
_WORDS = re.compile(r"[/_.\-\s]+")
_CAPITALS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Where words meet in "XTrain" and "trainImages"."""
_SHORT = re.compile(r"([xy])(train|val|valid|test)")


@dataclass
class Part:
    """The arrays of one part of a data set: {role: name}, where the role is the name without the part's."""

    name: str
    arrays: dict[str, str] = field(default_factory=dict)


def find_parts(names: Sequence[str]) -> dict[str, Part]:
    """The arrays by part: "x_train", "XTrain", "train/images" are of the part "train"; "" has the others."""
    parts: dict[str, Part] = {}
    for name in names:
        words = [word for word in _WORDS.split(_CAPITALS.sub("_", name)) if word]
        short = _SHORT.fullmatch(words[-1].lower()) if words else None
        words = [*words[:-1], *short.groups()] if short else words
        found = next((word.lower() for word in words if part_of(word)), "")
        role = (
            "_".join(word.lower() for word in words if word.lower() != found)
            if found
            else name.lower().replace("/", "_")
        )
        parts.setdefault(found, Part(found)).arrays[role] = name
    return parts


def build(
    where: str,
    item_name: str,
    arrays: Mapping[str, Any],
    opener: Callable[[str], Callable[[], Any]] | None,
    reading: Reading,
    names: Sequence[str] | None = None,
    side: Callable[[str], Any] | None = None,
) -> Source:
    """A source from named arrays.

    Args:
        where: what this is, for messages.
        item_name: what a picture is called: ``item_name[i]``.
        arrays: {name: anything with shape, dtype and numpy's indexing}.
        opener: for arrays in a file: name -> a function that opens the array, which is called once in each process;
            None where the arrays are NumPy's own.
        reading: which part, which labels, which layout.
        names: the class table, if the format declares one.
        side: part -> labels from elsewhere, where the arrays hold none.

    Raises:
        ValueError: no array of pictures, or several.
    """
    parts = find_parts(list(arrays))
    shared = parts.pop("", Part(""))
    found = {part.name: _pictures(part, arrays, where) for part in parts.values()}
    pictures = {name: key for name, key in found.items() if key is not None}
    own = _pictures(shared, arrays, where) if not pictures else None
    if own is None and not pictures:
        raise ValueError(
            f"{where} has the arrays {_described(arrays)}; expected images of shape [N, H, W] or [N, H, W, C] called "
            "arr_0, images, x, data or x_train, and optionally labels called arr_1, labels, y or y_train"
        )
    if own is not None:
        if reading.part not in (None, "all"):
            raise ValueError(f"{where} has no part {reading.part!r}")
        taken = [(shared, own)]
    else:
        chosen = choose_part({name: _length(arrays[key]) for name, key in pictures.items()}, reading, where)
        taken = [(parts[name], pictures[name]) for name in chosen]
    table = _names(shared, arrays, where) or names
    sources = [_one(where, item_name, part, key, arrays, opener, reading, table, side) for part, key in taken]
    if len(sources) == 1:
        source = sources[0]
    else:
        from undiffuse.data.formats.stored import concatenated

        source = concatenated(sources, where)
    used = {key for part, _ in taken for key in part.arrays.values()}
    source.held_out.update(
        {
            name: _length(arrays[key])
            for name, key in pictures.items()
            if name not in dict.fromkeys(p.name for p, _ in taken)
        }
    )
    of_parts = {key for part in parts.values() for key in part.arrays.values()}
    extra = [key for key in arrays if key not in used and key not in of_parts and key not in shared.arrays.values()]
    if extra:
        source.notes.append(f"arrays that are not used: {join_names(extra)}")
    return source


def _one(
    where: str,
    item_name: str,
    part: Part,
    key: str,
    arrays: Mapping[str, Any],
    opener: Callable[[str], Callable[[], Any]] | None,
    reading: Reading,
    names: Sequence[str] | None,
    side: Callable[[str], Any] | None,
) -> Source:
    """The pictures and labels of one part."""
    images = arrays[key]
    place = f"{where} ({part.name})" if part.name else where
    label = f"{item_name}:{key}" if part.name else item_name
    source: Source
    if is_encoded(images):
        assert opener is not None
        source = EncodedSource(opener(key), _length(images), place, label)
    elif opener is None:
        view, notes = arrange(np.asanyarray(images), f"{place}: {key}", reading.layout)
        source = ArraySource(view, where=place, item_name=label, undeclared="values")
        source.notes += notes
        declare(source, guess_range(view))
    else:
        source = _stored(images, opener(key), f"{place}: {key}", place, label, reading)
    source.notes.insert(0, f"images from {key}")
    others = {role: name for role, name in part.arrays.items() if name != key}
    candidates = {role: name for role, name in others.items() if _length(arrays[name]) == _length(images)}
    field_name = reading.field(place, [*candidates.values(), *candidates], ())
    if field_name is None and reading.labels == "auto":
        field_name = next((candidates[role] for role in _preferred(candidates, LABELS)), None)
    field_name = candidates.get(field_name, field_name) if field_name else None
    wrong = next((others[role] for role in LABELS if role in others and role not in candidates), None)
    if field_name is None and wrong is not None and reading.labels == "auto":
        raise ValueError(f"{place}: {_length(images)} images but labels of shape {list(arrays[wrong].shape)} ({wrong})")
    unused = [name for name in others.values() if name != field_name and not is_names(arrays[name])]
    if unused:
        source.notes.append(f"arrays that are not used: {join_names(unused)}")
    source.labels_settled = True
    values = None
    if field_name is not None:
        check_rows(math.prod(arrays[field_name].shape), f"{place}: {field_name}")
        values = labels_from(np.asarray(arrays[field_name]))
        if len(values) != _length(images):
            raise ValueError(
                f"{place}: {_length(images)} images but labels of shape {list(values.shape)} ({field_name})"
            )
    elif side is not None and reading.labels == "auto":
        values = side(part.name)
    return source if values is None else with_labels(source, values, reading, names=names, field=field_name or "labels")


def _stored(images: Any, opener: Callable[[], Any], what: str, where: str, item_name: str, reading: Reading) -> Source:
    shape, notes = tuple(int(n) for n in images.shape), []
    check_item(shape[1:], np.dtype(images.dtype).itemsize, what)
    flat: tuple[int, ...] | None = None
    layout = reading.layout
    if len(shape) == 2:
        flat, note, layout = flat_shape(images, what, layout)
        notes = [note]
    axes, note = axes_of(flat or shape[1:], what, layout)
    source = StoredSource(opener, shape, np.dtype(images.dtype), axes, flat, where, item_name)
    source.notes += [*notes, *([note] if note else [])]
    declare(source, guess_range(images))
    return source


def labels_from(values: NDArray[Any]) -> NDArray[Any]:
    """Labels [N] or [N, D] from an array that may have axes of length 1 at its end."""
    while values.ndim > 1 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim > 2 or values.dtype.kind not in "iufbUSO":
        raise ValueError(
            f"labels must be integers or text [N], or numbers [N, D]; got {values.dtype} {list(values.shape)}"
        )
    return values


def is_encoded(array: Any) -> bool:
    """Whether the items are encoded files: bytes of varying length."""
    dtype = np.dtype(array.dtype)
    return len(array.shape) == 1 and dtype.kind in "OSV" and _length(array) > 0 and _is_file(array[0])


def _is_file(item: Any) -> bool:
    content = item.tobytes() if hasattr(item, "tobytes") else bytes(item) if isinstance(item, bytes) else b""
    return (
        content[:4] in (b"\x89PNG", b"RIFF", b"GIF8", b"II*\0", b"MM\0*")
        or content[:3] == b"\xff\xd8\xff"
        or (content[:2] == b"BM")
    )


def is_names(array: Any) -> bool:
    """Whether this is a list of texts."""
    return len(array.shape) == 1 and np.dtype(array.dtype).kind in "US"


def _pictures(part: Part, arrays: Mapping[str, Any], where: str) -> str | None:
    """The name of the array of pictures; None if there is none."""
    fitting = {role: key for role, key in part.arrays.items() if _may_be_pictures(arrays[key])}
    for role in _preferred(fitting, IMAGES):
        return fitting[role]
    shaped = [key for key in fitting.values() if len(arrays[key].shape) >= 3 or is_encoded(arrays[key])]
    if len(shaped) > 1:
        raise ValueError(f"{where} has several arrays that may be images: {_described({k: arrays[k] for k in shaped})}")
    return shaped[0] if shaped else None


def _may_be_pictures(array: Any) -> bool:
    shape, dtype = array.shape, np.dtype(array.dtype)
    if is_encoded(array):
        return True
    if dtype.kind not in "uifb":
        return False
    if len(shape) in (3, 4):
        return True
    if len(shape) != 2 or shape[1] < 48:
        return False
    try:
        return bool(picture_shape(shape[1], ""))
    except ValueError:
        return False


def _preferred(roles: Mapping[str, Any], usual: Sequence[str]) -> list[str]:
    """The roles that are called as usual, in the order of `usual`; also "img_data" for "img"."""
    exact = [name for name in usual if name in roles]
    return exact or [role for name in usual for role in roles if name in role.split("_")]


def _names(shared: Part, arrays: Mapping[str, Any], where: str) -> list[str] | None:
    for role in NAMES:
        key = shared.arrays.get(role)
        if (
            key is not None
            and role in NAMES[:2]
            and not (len(arrays[key].shape) == 1 and arrays[key].dtype.kind in "USO")
        ):
            raise ValueError(f"{where}: {key} must be text [K], got {arrays[key].dtype} {list(arrays[key].shape)}")
        if key is not None and np.dtype(arrays[key].dtype).kind in "USO" and len(arrays[key].shape) == 1:
            values = np.asarray(arrays[key])
            return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.tolist()]
    return None


def _length(array: Any) -> int:
    return int(array.shape[0]) if len(array.shape) else -1


def _described(arrays: Mapping[str, Any]) -> str:
    return join_names((f"{name} ({np.dtype(a.dtype)} {list(a.shape)})" for name, a in arrays.items()), 8) or "none"
