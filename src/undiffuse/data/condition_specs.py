"""Conditions as users name them, "labels", "numbers:age,angle" or "image:maps/", put to the pictures of a source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from undiffuse.conditions import ImageCondition
from undiffuse.data.array_source import ArraySource
from undiffuse.data.columns import read_columns
from undiffuse.data.conditions import Partners, PictureConditions, _check_proportions, map_values
from undiffuse.data.labelled import own_tables, table_bytes
from undiffuse.data.labels import join_names
from undiffuse.data.screening import default_workers
from undiffuse.data.sources import Excluded, FileSource, FolderSource, Source, SubsetSource
from undiffuse.data.tables import TableSpec, parse_spec, read_table
from undiffuse.util.errors import ConfigError
from undiffuse.util.limits import open_npz

if TYPE_CHECKING:
    from undiffuse.data.dataset import DataConfig

__all__ = ["ConditionSpec", "attach", "open_partners", "pair_names", "parse_condition", "root_of"]

_SPEC = re.compile(r"(?P<kind>labels|numbers|image|map|low_res)(?:@(?P<option>[^:]*))?(?::(?P<where>.+))?", re.DOTALL)
_NPZ = re.compile(r"(?P<file>.+\.npz):(?P<key>[^:/\\]+)", re.DOTALL | re.IGNORECASE)
_NAME = re.compile(r"(?P<stem>.*?)(?:\.\w+)?(?P<part>\[[\d,]+\])?", re.DOTALL)
_SCANNED = 20_000
"""Maps that are read to find their classes; of more, evenly spaced ones."""
_COMPARED = 200
"""Pairs whose proportions are compared at once; the others are compared when they are drawn."""


@dataclass(frozen=True, kw_only=True)
class ConditionSpec:
    """One condition as a user names it.

    Attributes:
        kind: "labels", "numbers", "image", "map" or "low_res".
        where: a column or several, a table with columns, or a path; "" for the labels of the data. Of "low_res" the
            shorter side in pixels of the picture made small, from which a model learns to enlarge.
        option: what follows "@": the value range of an image, "LOW,HIGH", or the classes of a map.
    """

    kind: Literal["labels", "numbers", "image", "map", "low_res"]
    where: str = ""
    option: str = ""

    def __str__(self) -> str:
        return self.kind + (f"@{self.option}" if self.option else "") + (f":{self.where}" if self.where else "")


def parse_condition(text: str) -> ConditionSpec:
    """Parses "labels", "labels:TABLE:COLUMN", "numbers:[TABLE:]COLUMN[,COLUMN]", "image:PATH", "map:PATH", "low_res:N".

    Raises:
        ConfigError: It is none of these ("condition").
    """
    found = _SPEC.fullmatch(text.strip())
    expected = "expected labels, numbers:COLUMN[,COLUMN], image:PATH, map:PATH or low_res:PIXELS"
    if found is None:
        raise ConfigError("condition", f"{text!r} is not possible; {expected}")
    spec = ConditionSpec(
        kind=cast(Any, found["kind"]), where=found["where"] or "", option=(found["option"] or "").strip()
    )
    if spec.kind != "labels" and not spec.where:
        what = "the names of columns, for example numbers:age,angle" if spec.kind == "numbers" else "a path of pictures"
        raise ConfigError("condition", f"{text!r} lacks {what}")
    if spec.kind == "low_res" and not (spec.where.isdecimal() and int(spec.where) > 0):
        raise ConfigError("condition", f"{text!r} must say the shorter side in pixels, for example low_res:16")
    if spec.option and spec.kind in ("labels", "numbers", "low_res"):
        raise ConfigError("condition", f"{text!r} takes no option after @; {expected}")
    return spec


def attach(source: Source, config: DataConfig) -> Source:
    """Puts the conditions of a config to the pictures of a source.

    Args:
        source: The pictures, labelled and screened.
        config: Names the conditions, the labels, and what happens to pictures that lack one (`on_broken`).

    Returns:
        The source with `conditions`; without the pictures that lack one, if the config says so.

    Raises:
        ConfigError: A condition that is not there ("condition").
        ValueError: Pictures without a value or a partner; they are counted and named.
    """
    found = source.conditions or PictureConditions()
    lacking: dict[int, str] = {}
    for text in config.conditions:
        spec = parse_condition(text)
        if spec.kind == "labels":
            found = _labels(source, found)
        elif spec.kind == "numbers":
            names, values = _numbers(source, spec, config)
            twice = sorted(set(names) & set(found.number_names))
            if twice:
                raise ConfigError("condition", f"names the number {twice[0]!r} twice")
            before = [] if found.numbers is None else [found.numbers]
            joined = np.concatenate([*before, values], axis=1)
            found = replace(found, numbers=joined, number_names=(*found.number_names, *names))
            _lack(lacking, source, np.flatnonzero(np.isnan(values).any(axis=1)), f"no {' or '.join(names)}", spec)
        else:
            if found.partners is not None:
                raise ConfigError("condition", "names two pictures: put their channels into one file each")
            partners = _partners(source, spec, config)
            found = replace(found, partners=partners)
            _lack(lacking, source, np.flatnonzero(partners.index < 0), "no partner picture", spec)
    if lacking and config.on_broken == "refuse":
        named = join_names((f"{source.name(i)} ({why})" for i, why in lacking.items()), 5)
        raise ValueError(
            f"{len(lacking):,} of {len(source):,} images lack a condition: {named}. Add what is missing, or leave the "
            'images out with on_broken="skip"'
        )
    if len(lacking) == len(source):
        raise ValueError(f"every image of {source.where} lacks a condition: {next(iter(lacking.values()))}")
    keep = [i for i in range(len(source)) if i not in lacking]
    out = source.subset(keep, [Excluded(name=source.name(i), reason=why) for i, why in lacking.items()])
    out.conditions = found.take(keep)
    if out.conditions.partners is not None:
        _compare(out, out.conditions.partners)
    return out


def _lack(out: dict[int, str], source: Source, numbers: NDArray[np.int64], why: str, spec: ConditionSpec) -> None:
    if len(numbers) == len(source):
        raise ValueError(f"{spec}: none of the {len(source):,} images of {source.where} has one ({why})")
    for i in numbers.tolist():
        out.setdefault(i, why)


def root_of(source: Source) -> Source:
    """The source that a part of it, or a part of a part, was taken from."""
    while isinstance(source, SubsetSource):
        source = source.parent
    return source


def _names(source: Source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def _labels(source: Source, found: PictureConditions) -> PictureConditions:
    """Several labels of each picture as tags; one class of each is no condition of this kind."""
    if source.labels is not None or found.tags is not None:
        return found
    if source.multi_hot and source.vectors is not None:
        return replace(found, tags=source.vectors, tag_names=tuple(source.vector_names or ()))
    if source.vectors is not None:
        columns = join_names(source.vector_names or ["the numbers of the data"], 6)
        raise ConfigError("condition", f"names labels, and the data has numbers ({columns}): name them as numbers:...")
    raise ConfigError("condition", f"names labels, and {source.where} has none: say where they are with `labels`")


def _numbers(source: Source, spec: ConditionSpec, config: DataConfig) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """(names [K], values [N, K]) of the columns that a condition names."""
    named = parse_spec(spec.where)
    if named is not None and not named.label_columns:
        raise ConfigError("condition", f"{spec} lacks the columns: numbers:{named.file}:COLUMN[,COLUMN]")
    columns = named.label_columns if named is not None else tuple(
        part.strip() for part in spec.where.split(",") if part.strip()
    )  # fmt: skip
    if len(set(columns)) != len(columns) or not columns:
        raise ConfigError("condition", f"{spec} must name different columns")
    held = source.vector_names or []
    if named is None and source.vectors is not None and set(columns) <= set(held):
        return columns, source.vectors[:, [held.index(column) for column in columns]]
    root = root_of(source)
    if named is not None:
        data = table_bytes(root, named.file)
        if data is None:
            raise FileNotFoundError(f"there is no table {named.file}, neither as given nor inside {source.where}")
        tables = [(named, data)]
    else:
        tables = [(replace(spec_of, label_columns=columns), data) for spec_of, data in own_tables(root, config.labels)]
    problems = []
    for table_spec, data in tables:
        try:
            found = read_columns(read_table(data, table_spec.file), _names(source), table_spec)
            return columns, found.numbers()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("condition", f"{spec}: {'; '.join(problems)}")
    if not isinstance(root, FileSource):
        return columns, np.stack([_field(source, column, config) for column in columns], axis=1)
    raise ConfigError(
        "condition",
        f"{spec}: {source.where} has no table of labels, such as labels.csv, in which the columns could be: name one, "
        f"numbers:TABLE.csv:{','.join(columns)}",
    )


def _field(source: Source, field: str, config: DataConfig) -> NDArray[np.float32]:
    """A field of numbers of a format that holds several."""
    from undiffuse.data.opening import open_data

    try:
        other = open_data(config.path, labels=field, check="none", frames=config.frames, layout=config.layout)
    except ValueError as error:
        raise ConfigError("condition", f"numbers:{field}: {error}") from error
    if other.vectors is not None and other.vectors.shape[1] == 1:
        values = other.vectors[:, 0]
    elif other.labels is not None and other.label_names is not None:
        try:
            values = np.array([float(name) for name in other.label_names], dtype=np.float32)[other.labels]
        except ValueError as error:
            raise ConfigError("condition", f"numbers:{field}: the field holds names, not numbers ({error})") from error
    else:
        raise ConfigError("condition", f"numbers:{field}: {other.where} has no such field of one number for each image")
    place = {other.name(i): float(value) for i, value in enumerate(values)}
    return np.array([place.get(name, np.nan) for name in _names(source)], dtype=np.float32)


def _partners(source: Source, spec: ConditionSpec, config: DataConfig) -> Partners:
    """The partner of every picture; -1 in the index where there is none."""
    if source.augments:
        raise ConfigError("condition", "a data set with random transforms of its own has no partner pictures")
    table = parse_spec(spec.where)
    if table is not None:
        others, index = _of_column(source, spec, table)
    else:
        others = _opened(spec, config.max_pixels)
        _check_apart(root_of(source), root_of(others), spec)
        index = _pair(source, others, spec)
    return Partners(source=others, index=index, condition=_describe(others, index, spec))


def _check_apart(data: Source, others: Source, spec: ConditionSpec) -> None:
    """ConfigError if the partners are among the images to train on."""
    if isinstance(data, FolderSource) and isinstance(others, FolderSource):
        inside = [
            name for name in data.names[:1000] if (data.root / name).resolve().is_relative_to(others.root.resolve())
        ]
        if inside:
            raise ConfigError(
                "condition",
                f"{spec}: the partners are among the images to train on ({inside[0]}): give a folder of the images "
                "alone as data",
            )


def _of_column(source: Source, spec: ConditionSpec, table: TableSpec) -> tuple[Source, NDArray[np.int64]]:
    """Partners that a column of a table names, relative to the table's folder or to the data."""
    if len(table.label_columns) != 1:
        raise ConfigError("condition", f"{spec} must name the column of the partners: {spec.kind}:{table.file}:COLUMN")
    root = root_of(source)
    data = table_bytes(root, table.file)
    if data is None:
        raise FileNotFoundError(f"there is no table {table.file}, neither as given nor inside {source.where}")
    try:
        found = read_columns(read_table(data, table.file), _names(source), table)
    except ValueError as error:
        raise ConfigError("condition", f"{spec}: {error}") from error
    folders = [Path(table.file).expanduser().parent, *([root.root] if isinstance(root, FolderSource) else [])]
    files: dict[str, int] = {}
    index = np.full(len(source), -1, dtype=np.int64)
    gone = set(found.missing)
    for i, row in enumerate(found.cells):
        if i in gone or row is None:
            continue
        path = next((p for folder in folders if (p := folder / str(row[0]).strip()).is_file()), None)
        if path is not None:
            index[i] = files.setdefault(str(path), len(files))
    others = FolderSource(".", list(files), [Path(file).stat().st_size for file in files])
    others.where = f"{table.file}, column {found.names[0]}"
    return others, index


def _opened(spec: ConditionSpec, max_pixels: int) -> Source:
    """The pictures at a path; "FILE.npz:NAME" is an array of an npz file."""
    from undiffuse.data.opening import open_data

    array = _NPZ.fullmatch(spec.where)
    if array is not None and Path(array["file"]).expanduser().is_file():
        with open_npz(Path(array["file"]).expanduser()) as archive:
            if array["key"] not in archive.files:
                raise ConfigError("condition", f"{spec}: {array['file']} has the arrays {join_names(archive.files)}")
            values = archive[array["key"]]
        ranged = _range(spec)
        known = ranged or ((0.0, 255.0) if spec.kind == "map" else None)
        return ArraySource(values, where=spec.where, item_name=array["key"], value_range=known)
    try:
        others = open_data(
            spec.where, labels="none", check="none", max_pixels=max_pixels,
            value_range=_range(spec) or ("found" if spec.kind == "map" else None),
        )  # fmt: skip
    except (FileNotFoundError, ValueError) as error:
        hint = "; declare them as image@BLACK,WHITE:PATH" if "black and white" in str(error) else ""
        raise ConfigError("condition", f"{spec}: {error}{hint}") from error
    return others


def _range(spec: ConditionSpec) -> tuple[float, float] | None:
    if spec.kind != "image" or not spec.option:
        return None
    try:
        low, high = (float(part) for part in spec.option.split(","))
    except ValueError as error:
        raise ConfigError("condition", f"{spec}: expected two numbers after @, as in image@-1000,2000:PATH") from error
    return low, high


def _pair(source: Source, others: Source, spec: ConditionSpec) -> NDArray[np.int64]:
    """The partner of each picture: of the same stem, or of the same number where neither is made of files."""
    if not isinstance(root_of(others), FileSource):
        if isinstance(root_of(source), FileSource):
            raise ConfigError("condition", f"{spec} is an array and the data are files: give the partners as files")
        whole = len(root_of(source))
        if len(others) != whole:
            raise ConfigError(
                "condition", f"{spec} holds {len(others):,} pictures for {whole:,} images: expected one each"
            )
        chain, index = source, np.arange(len(source), dtype=np.int64)
        while isinstance(chain, SubsetSource):
            index, chain = chain.indices[index], chain.parent
        return index
    return pair_names(_names(source), _names(others), str(spec))


def pair_names(names: Sequence[str], others: Sequence[str], where: str) -> NDArray[np.int64]:
    """Finds for each picture the other one of the same path without its ending, or else of the same stem.

    Args:
        names: Names of the pictures.
        others: Names of their partners.
        where: What messages call the partners.

    Returns:
        int64 [N], places in `others`; -1 where there is none.

    Raises:
        ConfigError: Two partners have the same name but for their endings.
    """
    ours, theirs = [_key(name) for name in names], [_key(name) for name in others]
    place = {key: j for j, key in enumerate(theirs)}
    found = [place.get(key, -1) for key in ours]
    if -1 in found:
        stems, bare = [PurePosixPath(key).name for key in theirs], [PurePosixPath(key).name for key in ours]
        if len(set(bare)) == len(bare):
            place, theirs = {stem: j for j, stem in enumerate(stems)}, stems
            found = [place.get(key, -1) for key in bare]
    twice = len(theirs) - len(place)
    if twice:
        used = {theirs[j] for j in found if j >= 0}
        names_of = sorted({others[j] for j, key in enumerate(theirs) if key in used and place[key] != j})
        if names_of:
            raise ConfigError("condition", f"{where}: several partners have one name: {join_names(names_of, 3)}")
    return np.array(found, dtype=np.int64)


def _key(name: str) -> str:
    parts = _NAME.fullmatch(name)
    assert parts is not None  # it matches any text
    return parts["stem"] + (parts["part"] or "")


def _describe(others: Source, index: NDArray[np.int64], spec: ConditionSpec) -> ImageCondition:
    """How a model sees the partners: their channels, or the classes of maps."""
    used = np.unique(index[index >= 0])
    if spec.kind == "map":
        return ImageCondition(kind="map", values=_classes(others, used, spec))
    from undiffuse.data.probe import DataProbe

    if not len(used):
        return ImageCondition()
    ranged = _range(spec) or others.value_range
    channels = DataProbe(others.subset(used), ranged).channels
    return ImageCondition(channels=channels, value_range=ranged)


def _classes(others: Source, used: NDArray[np.int64], spec: ConditionSpec) -> tuple[int, ...]:
    """The classes of maps, ascending: as declared, "19" for 0 to 18 or "0,1,255", or those that are there."""
    if spec.option:
        try:
            given = [int(part) for part in spec.option.split(",")]
        except ValueError as error:
            raise ConfigError("condition", f"{spec}: expected a number of classes after @, or their values") from error
        values = list(range(given[0])) if len(given) == 1 else sorted(set(given))
    else:
        chosen = used[np.unique(np.linspace(0, len(used) - 1, min(len(used), _SCANNED)).astype(np.int64))]
        with ThreadPoolExecutor(default_workers()) as pool:
            seen = pool.map(lambda j: np.unique(map_values(others.image(int(j)))).tolist(), chosen)
            try:
                values = sorted({value for found in seen for value in found})
            except ValueError as error:
                raise ConfigError("condition", f"{spec}: {error}") from error
    if not 2 <= len(values) <= 256:
        raise ConfigError(
            "condition",
            f"{spec}: maps have from 2 to 256 classes, these have {len(values):,} different values; take them as an "
            "image: if they are no classes",
        )
    return tuple(values)


def _compare(source: Source, partners: Partners) -> None:
    """Compares the proportions of some pairs, so that mistakes are found before the training."""
    if root_of(source).in_memory and root_of(partners.source).in_memory:
        chosen = np.arange(min(1, len(source)))
    else:
        chosen = np.unique(np.linspace(0, len(source) - 1, min(len(source), _COMPARED)).astype(np.int64))
    for i in chosen.tolist():
        try:
            _check_proportions(partners.source.stored_size(int(partners.index[i])), source.stored_size(i))
        except ValueError as error:
            raise ConfigError("condition", f"the partner {partners.name(i)} of {source.name(i)}: {error}") from error


def open_partners(spec: str, condition: ImageCondition, max_pixels: int) -> Source:
    """Opens condition pictures for a model that was trained with others of their kind.

    Args:
        spec: A path, or "FILE.npz:NAME".
        condition: How the model sees them.
        max_pixels: Larger pictures are refused.

    Raises:
        ConfigError: They cannot be opened ("condition").
    """
    ranged = condition.value_range
    option = f"{ranged[0]!r},{ranged[1]!r}" if ranged is not None and condition.kind == "image" else ""
    return _opened(ConditionSpec(kind=condition.kind, where=spec, option=option), max_pixels)
