"""Reads what users give as conditions to a sampler: "age=30,angle=45", "labels=hat|scarf", "image:PATH", a table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.conditions import ModelConditions, NumberCondition, near_names, tag_vector
from undiffuse.data import ArraySource, FolderSource, Source
from undiffuse.data.condition_specs import open_partners, root_of
from undiffuse.data.conditions import prepare_partner
from undiffuse.data.decoding import MAX_PIXELS
from undiffuse.data.sources import FileSource
from undiffuse.data.tables import TABLE_SUFFIXES, read_table
from undiffuse.models import DiffusionModel
from undiffuse.pipelines.classes import choose_classes
from undiffuse.pipelines.given import GivenConditions, checked
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import join_names, one_line, shown

if TYPE_CHECKING:
    from undiffuse.pipelines.pipeline import Pipeline

__all__ = ["as_low_res", "classes_of", "give_conditions", "recorded_conditions"]

_PICTURE = re.compile(r"(image|map):(?P<path>.+)", re.DOTALL)
_LABELS = ("labels", "tags")
_IMAGES = ("image", "map", "picture")
_CLASSES = ("class", "label")
_NAMES = ("name", "file")


def give_conditions(
    model: DiffusionModel, condition: Any, guides: Sequence[NumberCondition] = ()
) -> GivenConditions | None:
    """Reads the conditions of a run.

    Args:
        model: The model that is sampled.
        condition: None; a text "age=30,angle=45", "labels=hat|scarf", "image:PATH" (a file or folder) or the path of a
            table with a row for each image; several of these; or a mapping of the same names, whose values may be
            lists with an entry for each image: {"age": [20, 30], "labels": ["hat|scarf", "hat"], "image": array or
            path}.
        guides: Numbers of the regressors that guide, which are given by their names too.

    Returns:
        The conditions; None if there are none.

    Raises:
        ConfigError: The model takes no such condition, needs one that is missing, or a value cannot be used.
    """
    if isinstance(condition, GivenConditions):
        return checked(condition, model, guides)
    parts = _Parts(model, tuple(guides))
    texts = [condition] if isinstance(condition, (str, Mapping)) else list(condition or ())
    for item in texts:
        if isinstance(item, Mapping):
            for name, value in item.items():
                parts.add(str(name), value)
        else:
            parts.read(str(item))
    given = parts.build() if texts else None
    return checked(given, model, guides)


def recorded_conditions(
    model: DiffusionModel,
    record: Mapping[str, Any],
    where: str,
    pictures: str | None,
    guides: Sequence[NumberCondition] = (),
) -> GivenConditions | None:
    """Reads the conditions of a picture's record.

    Args:
        model: The model that made the picture.
        record: The record.
        where: What messages call it.
        pictures: Where the condition picture is now, a file or folder; None is where the record says.
        guides: Numbers of the regressors that guide.

    Returns:
        One row; None for a picture without conditions.

    Raises:
        ConfigError: The model takes no such condition, or the picture cannot be found or is another ("condition").
    """
    entry = record.get("condition")
    if entry is None:
        if pictures is not None:
            raise ConfigError("condition", f"{where} has no condition: omit the picture")
        return checked(None, model, guides)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("numbers", {}), Mapping):
        raise ConfigError("condition", f"{where} has condition = {shown(entry)}; expected an object")
    parts = _Parts(model, tuple(guides))
    for name, value in entry.get("numbers", {}).items():
        parts.add(str(name), value)
    if "labels" in entry:
        parts.add("labels", [list(entry["labels"])])
    if "image" in entry:
        data, name = pictures or record.get("condition_data"), entry["image"]
        if not isinstance(data, str) or data == "memory":
            raise ConfigError("condition", f"{where} was made from the picture {name} in memory: say where it is now")
        if Path(data).suffix.lower() in TABLE_SUFFIXES:
            data = str(Path(data).parent / str(name))
        parts.add("image", data)
        assert parts.pictures is not None
        found = [i for i in range(len(parts.pictures)) if parts.pictures.name(i) == name]
        if not found and len(parts.pictures) > 1:
            raise ConfigError("condition", f"there is no picture {name} in {data}, from which {where} was made")
        parts.pictures = parts.pictures.subset(found[:1] or [0])
    given = checked(parts.build(), model, guides)
    if given is not None and "image_sha256" in entry and given.entry(0).get("image_sha256") != entry["image_sha256"]:
        raise ConfigError("condition", f"the picture {entry['image']} is not the one that {where} was made from")
    return given


def as_low_res(model: DiffusionModel, low_res: Any, condition: Any) -> tuple[Any, Any]:
    """Takes the picture of a condition as the low-resolution images of a super-resolution model.

    Returns:
        (low_res, condition), without the picture in the condition.

    Raises:
        ConfigError: Both are given ("condition").
    """
    if not model.spec.super_resolution or model.conditions.image is not None or condition is None:
        return low_res, condition
    rest: list[Any] = []
    found = []
    for item in [condition] if isinstance(condition, (str, Mapping)) else list(condition):
        if isinstance(item, Mapping):
            found += [value for name, value in item.items() if name in _IMAGES]
            kept = {name: value for name, value in item.items() if name not in _IMAGES}
            rest += [kept] if kept else []
        else:
            picture = _PICTURE.fullmatch(str(item))
            found, rest = ([*found, picture["path"]], rest) if picture is not None else (found, [*rest, item])
    if len(found) + (low_res is not None) > 1:
        raise ConfigError("condition", "gives the images to enlarge twice: omit one")
    return (found[0] if found else low_res), rest or None


def classes_of(pipeline: Pipeline, classes: Any, given: GivenConditions | None) -> list[int] | None:
    """Returns the class numbers that a run cycles through: as given, or those of its conditions.

    Raises:
        ConfigError: Both tell classes ("condition").
    """
    if given is None or given.classes is None:
        return choose_classes(pipeline, classes)
    if classes:
        raise ConfigError("condition", "gives the class of each image, and `classes` does too: omit one")
    return list(given.classes)


@dataclass
class _Parts:
    """What was given so far, column by column; a column of one value is for all images."""

    model: DiffusionModel
    guides: tuple[NumberCondition, ...] = ()
    numbers: dict[str, list[float]] = field(default_factory=dict)
    tags: list[NDArray[np.float32]] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    pictures: Source | None = None
    where: str = ""

    @property
    def declared(self) -> ModelConditions:
        return self.model.conditions

    @property
    def known(self) -> list[str]:
        """Names of the conditions that the model takes."""
        declared = self.declared
        names = [] if declared.numbers is None else list(declared.numbers.names)
        names += [name for guide in self.guides for name in guide.names if name not in names]
        return [*names, *(["labels"] if declared.tags else []), *(["image"] if declared.image is not None else [])]

    def read(self, text: str) -> None:
        """Takes one text."""
        picture = _PICTURE.fullmatch(text)
        path = Path(text).expanduser()
        if picture is not None:
            self.add("image", picture["path"])
        elif "=" in text and not path.is_file():
            for part in re.split(r",(?=[^,=]+=)", text):
                name, equals, value = part.partition("=")
                if not equals:
                    raise ConfigError("condition", f"{text!r} is not possible; expected NAME=VALUE[,NAME=VALUE]")
                self.add(name.strip(), value.strip())
        elif path.suffix.lower() in TABLE_SUFFIXES:
            self.table(path)
        else:
            raise ConfigError(
                "condition",
                f"{text!r} is not possible; expected NAME=VALUE, image:PATH, or a table such as conditions.csv with a "
                f"row for each image. The model takes {join_names(self.known, 12) or 'no conditions'}",
            )

    def add(self, name: str, value: Any) -> None:
        """Takes a condition by its name; a list has a value for each image."""
        declared = self.declared
        if any(name in held.names for held in (declared.numbers, *self.guides) if held is not None):
            values = value if isinstance(value, (list, tuple, np.ndarray)) or hasattr(value, "tolist") else [value]
            values = values.tolist() if hasattr(values, "tolist") else values
            values = values if isinstance(values, (list, tuple)) else [values]
            self._once(name, self.numbers)
            self.numbers[name] = [_number(name, item) for item in values]
        elif name in _IMAGES:
            self._picture(value)
        elif name in _LABELS and declared.tags:
            rows = [value] if isinstance(value, str) else list(value)
            self.tags = [self._tags(row) for row in rows]
        elif name in _CLASSES and self.model.num_classes is not None:
            rows = [value] if isinstance(value, (str, int)) else list(value)
            self.classes = [self.model.class_index(row) for row in rows]
        else:
            hint = near_names(name, self.known) if self.known else ""
            what = "takes no condition" if self.known else "takes no conditions besides a class, so none called"
            raise ConfigError("condition", f"the model {what} {name!r}{hint}")

    def table(self, path: Path) -> None:
        """Takes a table with a row for each image."""
        try:
            table = read_table(path.read_bytes(), str(path))
        except OSError as error:
            raise ConfigError("condition", f"there is no table {path}") from error
        except ValueError as error:
            raise ConfigError("condition", str(error)) from error
        columns = list(table.columns) if table.columns is not None else [str(cell) for cell in table.rows[0]]
        rows = table.rows if table.columns is not None else table.rows[1:]
        if not rows:
            raise ConfigError("condition", f"{path} has no rows below its header")
        for k, name in enumerate(columns):
            cells = [row[k] if k < len(row) else "" for row in rows]
            if name in self.declared.tags and name not in self.known:
                continue
            if name in _IMAGES:
                cells = [str(_beside(path, str(cell))) for cell in cells]
                self._files(cells, str(path))
            elif name in _NAMES and name not in self.known:
                self.names = [str(cell) for cell in cells]
            else:
                try:
                    self.add(name, cells)
                except ConfigError as error:
                    raise ConfigError("condition", f"{path}, column {name!r}: {error.text}") from error
        self._hot(columns, rows)

    def _hot(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Columns that have the names of labels, 0 or 1 each."""
        held = [name for name in self.declared.tags if name in columns]
        if not held or self.tags:
            return
        for row in rows:
            has = [name for name in held if str(row[columns.index(name)]).strip() in ("1", "1.0", "true", "True")]
            self.tags.append(tag_vector(has, self.declared.tags))

    def build(self) -> GivenConditions:
        """Returns the rows.

        Raises:
            ConfigError: Columns of different lengths ("condition").
        """
        declared, model = self.declared, self.model
        lengths = {name: len(values) for name, values in self.numbers.items()}
        lengths |= {"labels": len(self.tags)} if self.tags else {}
        lengths |= {"image": len(self.pictures)} if self.pictures is not None else {}
        lengths |= {"class": len(self.classes)} if self.classes else {}
        lengths |= {"name": len(self.names)} if self.names else {}
        rows = max(lengths.values(), default=1)
        odd = {name: count for name, count in lengths.items() if count not in (1, rows)}
        if odd:
            shown = join_names((f"{count:,} of {name}" for name, count in {**lengths}.items() if count != 1), 6)
            raise ConfigError("condition", f"gives {shown}: expected one for all images, or as many of each")
        numbers, remarks = None, []
        if declared.numbers is not None and self.numbers:
            numbers = self._columns(declared.numbers, rows)
            remarks = declared.numbers.remarks(numbers)
        targets = tuple(self._columns(guide, rows) for guide in self.guides)
        for guide, values in zip(self.guides, targets, strict=True):
            remarks += [text for text in guide.remarks(values) if text not in remarks]
        names = [self.pictures.name(i % len(self.pictures)) for i in range(rows)] if self.pictures is not None else []
        of_files = self.pictures is not None and isinstance(root_of(self.pictures), FileSource)
        called = self.names or (names if of_files else None)
        return GivenConditions(
            declared=declared,
            rows=rows,
            numbers=numbers,
            tags=np.stack([self.tags[i % len(self.tags)] for i in range(rows)]) if self.tags else None,
            picture=_Prepared(model, self.pictures) if self.pictures is not None else None,
            picture_names=tuple(names),
            classes=tuple(self.classes[i % len(self.classes)] for i in range(rows)) if self.classes else None,
            names=None if called is None else tuple(called[i % len(called)] for i in range(rows)),
            targets=targets,
            guides=self.guides,
            where=self.where,
            remarks=tuple(remarks),
        )

    def _columns(self, declared: NumberCondition, rows: int) -> NDArray[np.float64]:
        """Numbers by name as [rows, K]; NaN where one is not given."""
        columns = [np.resize(self.numbers.get(name, [math.nan]), rows) for name in declared.names]
        return np.stack(columns, axis=1).astype(np.float64)

    def _once(self, name: str, held: Mapping[str, Any]) -> None:
        if name in held:
            raise ConfigError("condition", f"gives {name!r} twice")

    def _tags(self, row: Any) -> NDArray[np.float32]:
        names = [part.strip() for part in row.split("|") if part.strip()] if isinstance(row, str) else list(row)
        try:
            return tag_vector(names, self.declared.tags)
        except ValueError as error:
            raise ConfigError("condition", str(error)) from error

    def _picture(self, value: Any) -> None:
        condition = self.declared.image
        if condition is None:
            hint = "; give the small images as `low_res`" if self.model.spec.super_resolution else ""
            raise ConfigError("condition", f"the model takes no picture{hint}")
        if self.pictures is not None:
            raise ConfigError("condition", "gives pictures twice")
        if isinstance(value, Source):
            self.pictures = value
        elif isinstance(value, (str, Path)):
            path = Path(value).expanduser()
            if path.is_file() and path.suffix.lower() not in (".npz", ".zip", *TABLE_SUFFIXES):
                self._files([str(path)], str(path))
            else:
                self.pictures, self.where = open_partners(str(value), condition, MAX_PIXELS), str(value)
        elif isinstance(value, (list, tuple)) and value and all(isinstance(item, (str, Path)) for item in value):
            self._files([str(item) for item in value], "memory")
        else:
            array = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
            if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == condition.channels > 1):
                array = array[None]
            ranged = (0.0, 255.0) if condition.kind == "map" else condition.value_range
            try:
                self.pictures = ArraySource(array, where="condition", item_name="condition", value_range=ranged)
            except ValueError as error:
                raise ConfigError("condition", str(error)) from error
            self.where = "memory"

    def _files(self, files: Sequence[str], where: str) -> None:
        if self.declared.image is None:
            raise ConfigError("condition", "the model takes no picture")
        gone = [file for file in files if not Path(file).expanduser().is_file()]
        if gone:
            missing = f"{len(gone):,} of {len(files):,} pictures are missing: {join_names(gone, 5)}"
            raise ConfigError("condition", missing)
        paths = [Path(file).expanduser() for file in files]
        folder = paths[0].parent
        inside = all(path.parent == folder for path in paths)
        root, names = (folder, [path.name for path in paths]) if inside else (Path("."), [str(path) for path in paths])
        self.pictures, self.where = FolderSource(root, names, [path.stat().st_size for path in paths]), where


@dataclass(frozen=True)
class _Prepared:
    """Prepares the pictures of a source as the training's were; row i is picture i mod n."""

    model: DiffusionModel
    source: Source

    def __call__(self, row: int) -> NDArray[Any]:
        trained, condition = self.model.preparation, self.model.conditions.image
        assert condition is not None
        i = row % len(self.source)
        background = trained.get("background", 255)
        try:
            return prepare_partner(
                self.source.image(i),
                condition,
                self.model.spec.size,
                fit=trained.get("fit", "crop"),
                background=tuple(background) if isinstance(background, list) else background,
                pad_value=trained.get("pad_value", 0),
            )
        except ValueError as error:
            raise ConfigError("condition", f"the picture {one_line(self.source.name(i))}: {error}") from error


def _number(name: str, value: Any) -> float:
    text = str(value).strip()
    if text.lower() in ("", "none", "nan"):
        return math.nan  # not given
    try:
        number = float(text)
    except ValueError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError("condition", f"{name} = {value!r} is not a finite number")
    return number


def _beside(table: Path, cell: str) -> Path:
    """A file that a table names, relative to its folder or as it is."""
    path = Path(cell.strip()).expanduser()
    beside = table.parent / path
    return beside if beside.is_file() or not path.is_file() else path
