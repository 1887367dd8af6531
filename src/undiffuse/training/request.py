"""What a user asks of a training: a few settings, from which `undiffuse.training.plan` derives all others.

The request is kept in the run folder (run.json), so that a run can be resumed without repeating it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from undiffuse import checkpoints
from undiffuse.data.formats import samples
from undiffuse.data.opening import NAMED_SETS
from undiffuse.data.tables import parse_spec
from undiffuse.util.errors import ConfigError
from undiffuse.util.files import atomic_file

__all__ = ["RUN_FILE", "RunFolderError", "TrainRequest", "is_run_folder", "read_request", "write_request"]

RUN_FILE = "run.json"
KINDS = ("diffusion", "classifier")


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """Settings of a training as a user gives them; None leaves a choice to the recipe or the data.

    Attributes:
        data: Folder, zip, npz or named set; for data in memory a name for people.
        kind: "diffusion" or "classifier" (of noisy images, for guidance).
        recipe: Name of a recipe; None chooses by the data.
        init_from: Model whose weights, network and process the run starts from.
        size: Image size in pixels, one number or (height, width).
        channels: 1 grey, 3 RGB, 4 RGBA; another number takes pictures of that many channels as they are.
        width: Channels of the network's first level (its `model_channels`).
        unconditional: Leave the labels out.
        label_dropout: Share of the images trained without their label and other conditions, for classifier-free
            guidance; by default 0.1 with a `condition` besides the class.
        condition: What the model is conditioned on: "labels" (classes, or several labels of an image),
            "numbers:COLUMN[,COLUMN]", "image:PATH", "map:PATH", see `undiffuse.data.condition_specs`. () takes classes
            if the data have them. Conditions in memory are noted as "numbers:memory".
        partner: For a classifier: the diffusion model that it will guide.
        clean: For a classifier: train on clean images only.
        clean_fraction: For a classifier: share of clean images.
        labels: Where labels come from, see `undiffuse.data.open_data`.
        fit: "crop" or "pad".
        flip: Mirror half of the images at random.
        on_broken: Unreadable images: "refuse" or "skip".
        on_tiny: Images smaller than `size`: "upscale", "refuse" or "skip".
        frames: "first" or "all" frames of files that hold several.
        layout: Axes of arrays of pictures: "auto", "HWC" or "CHW".
        value_range: (low, high) of the stored values that become -1 and 1, "auto" to find them by percentiles, or
            None for 8-bit levels.
        patches: "random" or "tiled" windows of `size` pixels instead of whole pictures.
        max_pixels: Pixels of the largest picture that is decoded; None is the usual limit.
        workers: Decoding threads.
        validation: Held-out images: a share of the data (for example 0.05), other data, or None.
        images: Images after which the run ends.
        steps: Updates after which the run ends.
        batch: Images per update, over all processes.
        seed: Decides the weights, the order of the images and all noise.
        device: "auto", "cpu", "cuda" or "mps".
        out: Run folder; None derives one from the data.
        log: Names of loggers, see `undiffuse.training.loggers`.
        distillation: How a model is distilled, see `undiffuse.training.distillation`; empty for a plain training.
        evaluation: How samples are measured during the run: "every" and "images", and options of the front end.
        overrides: Values by path of a field, for example {"train.lr": 2e-4, "net.dropout": "0.1"}.
    """

    data: str
    kind: str = "diffusion"
    recipe: str | None = None
    init_from: str | None = None
    size: int | tuple[int, int] | None = None
    channels: int | None = None
    width: int | None = None
    unconditional: bool = False
    label_dropout: float | None = None
    condition: tuple[str, ...] = ()
    partner: str | None = None
    clean: bool = False
    clean_fraction: float | None = None
    labels: str = "auto"
    fit: str | None = None
    flip: bool | None = None
    on_broken: str = "refuse"
    on_tiny: str = "upscale"
    frames: str = "first"
    layout: str = "auto"
    value_range: tuple[float, float] | str | None = None
    patches: str | None = None
    max_pixels: int | None = None
    workers: int | None = None
    validation: float | str | None = None
    images: int | None = None
    steps: int | None = None
    batch: int | None = None
    seed: int = 0
    device: str = "auto"
    out: str | None = None
    log: tuple[str, ...] = ()
    distillation: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("kind", f"expected {' or '.join(KINDS)}, got {self.kind!r}")
        if self.channels is not None and self.channels < 1:
            raise ConfigError("channels", f"expected 1 (grey), 3 (RGB), 4 (RGBA) or more, got {self.channels!r}")
        if isinstance(self.value_range, str) and self.value_range != "auto":
            raise ConfigError("value_range", f'expected (low, high) or "auto", got {self.value_range!r}')
        if self.patches is not None and self.size is None:
            raise ConfigError("patches", "need the size of a patch: give `size`")
        if self.images is not None and self.steps is not None:
            raise ConfigError("steps", f"the length of the run is given by images={self.images:,} already")
        if self.unconditional and self.label_dropout is not None:
            raise ConfigError("label_dropout", "an unconditional model has no labels to drop")
        if self.clean and self.clean_fraction is not None:
            raise ConfigError("clean_fraction", "clean=True trains on clean images only")
        for name in ("size", "log", "value_range", "condition"):
            if isinstance(getattr(self, name), list):  # from JSON
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.condition and self.unconditional:
            raise ConfigError("condition", "is not possible: an unconditional model has no conditions")

    @property
    def reading(self) -> dict[str, Any]:
        """How the images are opened: arguments of `undiffuse.data.open_data` and fields of `DataConfig`."""
        limit = {} if self.max_pixels is None else {"max_pixels": self.max_pixels}
        return {"on_broken": self.on_broken, "frames": self.frames, "layout": self.layout, **limit}

    def changed(self, changes: Mapping[str, Any]) -> TrainRequest:
        """Returns the request with other values; None leaves a value, overrides are merged.

        An end that is given replaces the other kind of end (`images`, `steps`).
        """
        given = {name: value for name, value in changes.items() if value is not None}
        if "images" in given or "steps" in given:
            given = {"images": None, "steps": None, **given}
        for name in ("overrides", "evaluation"):
            given[name] = {**getattr(self, name), **(given.get(name) or {})}
        return replace(self, **given)

    def to_dict(self) -> dict[str, Any]:
        """Returns what differs from the defaults, ready for JSON."""
        out = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in ("data", "kind") or (value != one.default and value != {}):
                out[one.name] = dict(value) if isinstance(value, Mapping) else value
        return out


class RunFolderError(ConfigError):
    """A training run was given as data; `path` is its folder."""

    def __init__(self, path: str) -> None:
        super().__init__("data", f'{path} is a training run, not images; resume it with resume="{path}"')
        self.path = path


def is_run_folder(path: str | Path) -> bool:
    """Returns whether a folder holds a training run: its configuration, or checkpoints."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return False
    if (folder / RUN_FILE).is_file() and not samples.recognise(folder):
        return True
    if checkpoints.latest(folder) is not None:
        return True
    return (folder / "config.json").is_file() and (folder / "metrics.jsonl").is_file()


def write_request(run_dir: Path, request: TrainRequest, stored: bool = True) -> None:
    """Keeps a request in its run folder.

    Args:
        run_dir: The folder of the run.
        request: The request. Paths are stored in full, so that the run can be resumed from any folder.
        stored: Whether the data can be opened again by `request.data`; False for data in memory.
    """
    kept = request.to_dict()
    for name in ("data", "validation", "partner", "labels"):  # not init_from, which checkpoints know as it was given
        if name in kept:
            kept[name] = _absolute(name, kept[name])
    if "condition" in kept:
        kept["condition"] = [_absolute_condition(text) for text in kept["condition"]]
    kept.pop("out", None)
    with atomic_file(run_dir / RUN_FILE, overwrite=True) as file:
        text = json.dumps({"request": kept, "data_on_disk": stored}, indent=2, default=list)
        file.write((text + "\n").encode())


def _absolute(name: str, value: Any) -> Any:
    """A path in full; what is no path (a named data set, a share, a way to label) as it is."""
    text = str(value)
    table = parse_spec(text) if name == "labels" else None
    if text.partition(":")[0] in NAMED_SETS or (name == "labels" and table is None):
        return value
    if table is not None:  # FILE:COLUMN:COLUMN
        file = Path(table.file).expanduser()
        return f"{file.resolve()}{text[len(table.file) :]}" if file.exists() else value
    path = Path(text).expanduser()
    return str(path.resolve()) if path.exists() and isinstance(value, str) else value


def _absolute_condition(text: str) -> str:
    """A condition with its path or table in full."""
    kind, colon, where = text.partition(":")
    table, path = parse_spec(where), Path(where).expanduser()
    if table is not None:
        return f"{kind}:{_absolute('labels', where)}"
    if kind.partition("@")[0] in ("image", "map") and path.exists():
        return f"{kind}:{path.resolve()}"
    return text if not colon or Path(where.rpartition(":")[0]).suffix != ".npz" else _absolute_array(kind, where)


def _absolute_array(kind: str, where: str) -> str:
    file, _, key = where.rpartition(":")
    path = Path(file).expanduser()
    return f"{kind}:{path.resolve() if path.exists() else file}:{key}"


def read_request(run_dir: str | Path, data_given: bool = False) -> TrainRequest:
    """Returns the request of a run.

    Args:
        run_dir: The folder of the run.
        data_given: Whether the caller has the data, so that data in memory is no obstacle.

    Raises:
        ConfigError: The folder holds no run, or one whose data was in memory and is not given.
    """
    folder = Path(run_dir).expanduser()
    path = folder / RUN_FILE
    if not path.is_file():
        what = "was begun without this file; repeat its settings to resume it" if is_run_folder(folder) else "is no run"
        raise ConfigError("resume", f"{folder} has no {RUN_FILE}: it {what}")
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        request = TrainRequest(**{**kept["request"], "out": str(folder)})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError("resume", f"{path} cannot be read: {error}") from error
    if not kept.get("data_on_disk", True) and not data_given:
        raise ConfigError("resume", f"the data of {folder} was in memory ({request.data}); give it again")
    return request
