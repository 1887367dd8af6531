"""WebDataset: tar shards whose members belong together by the name before the first dot.

``000017.jpg``, ``000017.cls`` and ``000017.json`` are one sample, in folders or not. A shard is indexed once (names,
offsets, lengths), then every picture is read at random; the order of a run is the library's own, so shards need no
shuffling. Compressed shards are unpacked into the cache folder. A tar without label files, such as an archive of
folders of classes, is read as the folder that it holds.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.data import index
from undiffuse.data.formats.base import Reading, choose_part, part_of, peek, with_labels
from undiffuse.data.formats.files import at_level, is_image, part_level
from undiffuse.data.formats.imagefolder import LABELS
from undiffuse.data.formats.spans import SpanSource, expand_braces, identity_of, is_url, open_shard, unpacked_shard
from undiffuse.data.labels import join_names
from undiffuse.data.sources import Source
from undiffuse.util.limits import check_name, limit

__all__ = ["Sample", "open", "open_shards", "recognise"]

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_TEXTS = ("cls", "cls2", "txt", "text", "json", "id", "index", "label")
_LABELS = ("label", "class")
"""What members are called that hold the label: "label.cls", "class.txt"."""
_INNER = (
    ".bin",
    "ubyte",
    ".npz",
    ".npy",
    ".mat",
    ".h5",
    ".hdf5",
    ".parquet",
    ".arrow",
    ".tfrecord",
    ".mdb",
    ".meta",
    ".html",
)
"""Endings of data sets in other formats, which people download as a tar."""
TABLES = (
    "labels.csv", "labels.tsv", "labels.jsonl", "labels.json", "labels.parquet", "metadata.jsonl", "metadata.csv",
    "metadata.parquet", "dataset.json", "list_attr_celeba.txt", "list_attr_celeba.csv", "identity_CelebA.txt",
)  # fmt: skip
"""Label tables that an archive of a folder may hold."""
_INDEXED = 1000
"""Members of a shard from which its list is kept."""
_SMALL = 1 << 20
"""Labels are read from members up to this many bytes."""


@dataclass
class Sample:
    """Members of a shard that belong together: {extension: (offset, bytes)} under one key."""

    key: str
    shard: int
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


def recognise(path: Path) -> bool:
    """A tar file, or a folder that holds tar files and no pictures beside them."""
    if path.is_file():
        return path.name.lower().endswith(SUFFIXES)
    return bool(_shards_in(path)) and not any(is_image(name) for name in peek(path).files)


def _shards_in(folder: Path) -> list[Path]:
    entries = peek(folder)
    if any(name.lower().endswith(SUFFIXES) for name in entries.files):
        return sorted(file for file in folder.iterdir() if file.name.lower().endswith(SUFFIXES) and file.is_file())
    below = [folder / name for name in entries.folders if part_of(name)]
    return sorted(file for part in below for file in part.iterdir() if file.name.lower().endswith(SUFFIXES))


def open(path: Path, reading: Reading) -> Source:  # noqa: A001
    """The samples of a shard or of a folder of shards."""
    if path.is_file():
        return open_shards([str(path)], str(path), reading)
    shards = _shards_in(path)
    parts: dict[str, list[Path]] = {}
    for shard in shards:
        parts.setdefault(_part_name(shard, path), []).append(shard)
    if not any(part_of(name) == "train" for name in parts):
        if reading.part not in (None, "all"):
            choose_part({name: 0 for name in parts if name}, reading, str(path))
        return open_shards([str(shard) for shard in shards], str(path), reading, base=path)
    chosen = choose_part({name: len(files) for name, files in parts.items() if name}, reading, str(path))
    taken = [shard for name in chosen for shard in parts[name]]
    source = open_shards([str(shard) for shard in taken], f"{path} ({', '.join(chosen)})", reading, base=path)
    for name, files in parts.items():
        if name and name not in chosen:
            source.held_out[name] = sum(_count(file) for file in files)
        elif not name and name not in chosen:
            source.left_out["shards outside the parts"] = len(files)
    return source


def _part_name(shard: Path, root: Path) -> str:
    """The part that a shard belongs to by its folder or its name: "train/0.tar", "x-train-000.tar"."""
    if shard.parent != root:
        return shard.parent.name
    words = shard.name.replace("_", "-").replace(".", "-").split("-")
    return next((word for word in words if part_of(word)), "")


def _count(shard: Path) -> int:
    return sum(any(_is_picture(e) for e in sample.members) for sample in _samples([str(shard)], Counter()))


def open_shards(shards: Sequence[str], where: str, reading: Reading, base: Path | None = None) -> Source:
    """The samples of shards, which are paths or addresses, in the order of the shards.

    Raises:
        ValueError: a shard that is no tar file, no pictures, or several pictures a sample of which none was named.
    """
    names = [name for shard in shards for name in expand_braces(shard)]
    local = [unpacked_shard(name) for name in names]
    described = where if len(names) == 1 else f"{where}: {len(names):,} shards"
    classes = _classes_beside(local)
    identity = "\0".join([*map(identity_of, local), *names, repr(base), repr(reading), repr(classes)])
    path = index.place("samples", identity)
    stored = index.read(path)
    if stored is not None:
        return SpanSource.of_arrays(described, local, stored)
    with index.turn(path):
        stored = index.read(path)
        if stored is not None:
            return SpanSource.of_arrays(described, local, stored)
        source = _indexed(names, local, where, described, reading, base)
        if isinstance(source, SpanSource) and len(source) >= index.FROM and not source.tables:
            index.write(path, source.arrays())
        return source


def _indexed(
    names: Sequence[str], local: Sequence[str], where: str, described: str, reading: Reading, base: Path | None
) -> Source:
    """The samples of shards, found by reading the headers of all their members, and the labels."""
    left_out: Counter[str] = Counter()
    samples = list(_samples(local, left_out))
    with_picture = [sample for sample in samples if any(_is_picture(e) for e in sample.members)]
    if not with_picture:
        held = join_names((f"{name} ({count:,})" for name, count in _extensions(samples).most_common()), 8)
        kinds = [e for e in _extensions(samples) if e.endswith(_INNER)]
        hint = f". Unpack it first (tar -xf {where}) and give the folder" if kinds or not samples else ""
        raise ValueError(f"{where} holds no images: {len(samples):,} samples of {held or 'nothing'}{hint}")
    chosen = _picture_of(with_picture, where)
    taken = [sample for sample in with_picture if _one(sample, chosen)]
    parts = [(sample, _one(sample, chosen)) for sample in taken]
    picture_names = [_name(sample, extension, names, base) for sample, extension in parts]
    span = SpanSource(
        described,
        local,
        np.array([sample.shard for sample in taken], dtype=np.int32),
        np.array([sample.members[extension][0] for sample, extension in parts], dtype=np.int64),
        [sample.members[extension][1] for sample, extension in parts],
        picture_names,
    )
    source: Source = span
    if len(names) == 1:  # an archive of a folder has its tables and parts
        span.tables = {name: place for sample in samples for name, place in _tables_of(sample)}
    missing = len(samples) - len(taken) - len(span.tables)
    if missing:
        left_out["samples without a picture"] += missing
    source.left_out.update(left_out)
    level, found = part_level(span.names.runs) if len(names) == 1 else (0, {})
    if found:
        counts = {name: count for name, count in found.items() if part_of(name)}
        wanted = choose_part(counts, reading, where)
        keep = [i for i, name in enumerate(picture_names) if at_level(name, level) in wanted]
        source, parts = span.labelled(keep, None, None, []), [parts[i] for i in keep]
        source.held_out.update({name: count for name, count in counts.items() if name not in wanted})
        source.notes.append(f"images of the part {', '.join(wanted)}")
        if len(picture_names) > sum(counts.values()):
            source.left_out["images outside the parts"] = len(picture_names) - sum(counts.values())
    elif reading.part not in (None, "all") and len(names) == 1 and base is None:
        raise ValueError(f"{where} has no parts such as train/ and test/, so it has no part {reading.part!r}")
    return _labelled(source, [sample for sample, _ in parts], {e for _, e in parts}, local, reading)


def _tables_of(sample: Sample) -> list[tuple[str, tuple[int, int]]]:
    """The members of a sample that are called as label tables are."""
    if len(sample.members) > 1:
        return []
    members = ((f"{sample.key}.{extension}", place) for extension, place in sample.members.items())
    return [(name, place) for name, place in members if posixpath.basename(name) in TABLES]


def _samples(shards: Sequence[str], left_out: Counter[str]) -> Iterator[Sample]:
    """The samples of all shards: consecutive members with one name before the first dot."""
    for number, shard in enumerate(shards):
        current: Sample | None = None
        for name, offset, size in _members(shard, left_out):
            folder, _, base = name.rpartition("/")
            stem, dot, extension = base.partition(".")
            if base.startswith(".") or not dot or (name.startswith("__") and name.endswith("__")):
                left_out["members without a name or an ending"] += 1
                continue
            key, extension = posixpath.join(folder, stem), extension.lower()
            if current is not None and (current.key != key or extension in current.members):
                yield current
                current = None
            current = current or Sample(key, number)
            current.members[extension] = (offset, size)
        if current is not None:
            yield current


def _members(shard: str, left_out: Counter[str]) -> Iterator[tuple[str, int, int]]:
    """(name, offset of its data, bytes) of every file in a tar; of a large one the list is kept in the cache folder."""

    def build() -> index.Arrays:
        members: list[tuple[str, int, int]] = []
        others = 0
        try:
            with open_shard(shard) as file, tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined] # or every header stays in memory
                    check_name(member.name, shard)
                    if len(members) > limit("UNDIFFUSE_MAX_MEMBERS"):
                        raise ValueError(f"{shard} has more members than UNDIFFUSE_MAX_MEMBERS allows")
                    if member.isfile():
                        members.append((member.name.removeprefix("./"), member.offset_data, member.size))
                    else:
                        others += not member.isdir()
        except tarfile.TarError as error:
            raise ValueError(f"{shard} cannot be read as a tar file: {error}") from error
        places = np.array([place for _, *place in members], dtype=np.int64).reshape(-1, 2)
        return {"names": index.joined([name for name, *_ in members]), "places": places, "others": np.array(others)}

    found = index.cached("shards", identity_of(shard), build, keep=lambda arrays: len(arrays["places"]) >= _INDEXED)
    if int(found["others"]):
        left_out["links and devices"] += int(found["others"])
    for name, (offset, size) in zip(index.split(found["names"]), found["places"].tolist(), strict=True):
        yield name, offset, size


def _is_picture(extension: str) -> bool:
    return is_image(f"x.{extension}")


def _extensions(samples: Sequence[Sample]) -> Counter[str]:
    return Counter(f".{extension}" for sample in samples for extension in sample.members)


def _picture_of(samples: Sequence[Sample], where: str) -> str | None:
    """The extension of the pictures where samples hold several; None where each holds one."""
    several = next((s for s in samples if sum(_is_picture(e) for e in s.members) > 1), None)
    if several is None:
        return None
    counts = Counter(e for sample in samples for e in sample.members if _is_picture(e))
    plain = [e for e in counts if "." not in e]
    if len(plain) == 1:
        return plain[0]
    names = [e for e in counts if e.partition(".")[0] in ("image", "img", "input", "picture")]
    if len(names) == 1:
        return names[0]
    raise ValueError(
        f"{where}: a sample has several pictures ({several.key}: {join_names('.' + e for e in several.members)}), and "
        "none of them is the plain one; write the ones to train on into shards of their own"
    )


def _one(sample: Sample, chosen: str | None) -> str:
    """The extension of a sample's picture; "" where it has not the chosen one."""
    if chosen is not None:
        return chosen if chosen in sample.members else ""
    return next(extension for extension in sample.members if _is_picture(extension))


def _name(sample: Sample, extension: str, shards: Sequence[str], base: Path | None) -> str:
    name = f"{sample.key}.{extension}"
    if len(shards) == 1:
        return name
    shard = shards[sample.shard]
    if base is not None and not is_url(shard):
        shard = Path(shard).relative_to(base).as_posix()
    return f"{posixpath.basename(shard) if base is None else shard}/{name}"


def _labelled(
    source: Source, samples: Sequence[Sample], pictures: set[str], shards: Sequence[str], reading: Reading
) -> Source:
    """Labels from .cls, else from a field of .json, else none; what else the samples hold is counted."""
    others = Counter(e for sample in samples for e in sample.members if e not in pictures)
    ways = [e for e in others if e.rpartition(".")[2] in _TEXTS]
    marked = [e for e in others if {"cls", *_LABELS}.intersection(e.split(".")) and e.rpartition(".")[2] in _TEXTS]
    label = "cls" if "cls" in others else marked[0] if len(marked) == 1 else None
    content: dict[str, list[Any]] = {}
    if "json" in others and reading.labels != "none" and (reading.labels != "auto" or label is None):
        content["json"] = _records(samples, shards)
    keys = list(dict.fromkeys(key for record in content.get("json", ()) if isinstance(record, dict) for key in record))
    used, values = None, None
    if reading.of_files:
        pass
    elif reading.labels == "auto" and label is not None:
        used, values = label, _texts(samples, label, shards)
    elif reading.labels == "auto" and content and all(isinstance(r, int) for r in content["json"] if r is not None):
        used, values = "json", content["json"]
    else:
        field = reading.field(source.where, [*ways, *keys], LABELS)
        if field in ways and field != "json":
            used, values = field, _texts(samples, str(field), shards)
        elif field is not None:
            used = f"json: {field}"
            values = [r.get(field) if isinstance(r, dict) else None for r in content.get("json", ())]
    for extension, count in others.items():
        if used is None or extension != used.partition(":")[0]:
            source.left_out[f"members .{extension} of the samples"] = count
    if used is not None and used.startswith("json: ") and len(keys) > 1:
        source.notes.append(f"fields of .json that are not used: {join_names(k for k in keys if f'json: {k}' != used)}")
    numbered = used == label and all(isinstance(value, int) for value in values or ())
    several = any(isinstance(value, list) for value in values or ())
    names = _classes_beside(shards) if numbered or several else None
    if values is None or used is None:
        source.labels_settled = reading.labels == "none"
        return source
    return with_labels(
        source,
        values,
        reading,
        names=names,
        field=f".{used}" if ":" not in used else used.replace("json:", "field", 1) + " of .json",
        head=used.partition(": ")[2] or "label",
    )


def _classes_beside(shards: Sequence[str]) -> list[str] | None:
    """Class names from classes.txt beside local shards, a name a line."""
    file = Path(shards[0]).with_name("classes.txt")
    if is_url(shards[0]) or not file.is_file():
        return None
    return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]


def _contents(samples: Sequence[Sample], extension: str, shards: Sequence[str]) -> Iterator[bytes | None]:
    """The members of an extension, of all samples; None where a sample has none. A shard is opened once."""
    opened, file = -1, None
    try:
        for sample in samples:
            if extension not in sample.members:
                yield None
                continue
            offset, size = sample.members[extension]
            if size > _SMALL:
                raise ValueError(f"{sample.key}.{extension}: {size:,} bytes are too many for a label")
            if sample.shard != opened:
                if file is not None:
                    file.close()
                opened, file = sample.shard, open_shard(shards[sample.shard])
            assert file is not None
            file.seek(offset)
            yield file.read(size)
    finally:
        if file is not None:
            file.close()


def _texts(samples: Sequence[Sample], extension: str, shards: Sequence[str]) -> list[int | str | None]:
    out: list[int | str | None] = []
    for content in _contents(samples, extension, shards):
        text = None if content is None else content.decode("utf-8", "replace").strip()
        try:
            out.append(None if text is None else int(text))
        except ValueError:
            out.append(text)
    return out


def _records(samples: Sequence[Sample], shards: Sequence[str]) -> list[Any]:
    out = []
    for sample, content in zip(samples, _contents(samples, "json", shards), strict=True):
        try:
            out.append(None if content is None else json.loads(content))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{sample.key}.json is not JSON ({error})") from error
    return out
