"""A run's folder: who may write there, whether the run resumes or begins, what is kept.

config.json       the resolved settings          metrics.jsonl     one record a line
loss_curve.png    drawn anew at every save       previews/         grids from raw and averaged weights
checkpoints/      0000123456.safetensors, by images seen
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from undiffuse import checkpoints
from undiffuse.data.decoding import IMAGE_SUFFIXES
from undiffuse.denoiser import ProcessConfig
from undiffuse.objectives import ObjectiveConfig
from undiffuse.pictures import claim_output
from undiffuse.train_config import TrainConfig, differences
from undiffuse.util.text import count_of

_OURS = ("config.json", "run.json", "metrics.jsonl", "checkpoints")
"""Files and folders that only a run has."""
# The parts of a manifest that identify a run; the others (progress, version, hashes) change as it trains.
IDENTITY = ("kind", "net", "process", "objective", "labels", "train", "data", "init", "custom")


class RunFolder:
    """The folder of one run, used by the main process only. Open it as a context: it is locked meanwhile."""

    def __init__(self, path: Path | str, config: TrainConfig) -> None:
        self.path = Path(path)
        self.config = config
        self._lock: IO[str] | None = None

    def __enter__(self) -> RunFolder:
        if self.path.is_dir():
            # Logs may lie where a run will; pictures of somebody else may not, for data are all pictures of a folder.
            claim_output(self.path, _OURS, lambda name: not name.lower().endswith(IMAGE_SUFFIXES))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"{self.path} is not a folder, so no run can be kept in it; name another") from error
        self._lock = _lock(self.path / ".lock")
        checkpoints.remove_leftovers(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()  # which also unlocks

    @property
    def metrics(self) -> Path:
        """The JSONL file of all records."""
        return self.path / "metrics.jsonl"

    def resume(self, identity: Mapping[str, Any]) -> Resume | None:
        """The newest sound checkpoint, if the folder holds a run of the same settings; None if it holds none.

        Damaged newer files are renamed to *.damaged, so that they are neither mistaken for checkpoints nor lost.
        ValueError listing the differences if the run in the folder was begun with other settings.
        """
        found = checkpoints.newest_sound(self.path)
        if found is None:
            self._check_vacant()
            return None
        checkpoints.prune(self.path, self.config.keep, self.config.milestones, self.config.batch)
        path, tensors, manifest, problems = found
        before = {name: manifest.get(name) for name in IDENTITY}
        forbidden, notes = differences(_comparable(before), _comparable(identity))
        if forbidden:
            other_data = _changed_data(before.get("data") or {}, identity.get("data") or {})
            lines = [line for line in forbidden if not line.startswith("data.fingerprint:")]
            raise ValueError(
                f"{self.path} holds a run that was begun with other settings, so it cannot be resumed:\n  "
                + "\n  ".join([*([other_data] if other_data else []), *lines])
                + "\n(there -> now) Use the settings of that run, or another folder"
                + (f"; init_from={str(self.path)!r} in another folder starts from its weights." if other_data else ".")
            )
        for newer in checkpoints.checkpoints(self.path):
            if checkpoints.images_of(newer) > checkpoints.images_of(path):
                newer.replace(newer.with_name(newer.name + ".damaged"))
        return Resume(path=path, tensors=tensors, manifest=manifest, problems=problems, notes=notes)

    def _check_vacant(self) -> None:
        """ValueError if a new run would overwrite files that are not those of a run of ours."""
        config = self.path / "config.json"
        try:
            ours = not config.exists() or "train" in json.loads(config.read_text(encoding="utf-8"))
        except (ValueError, TypeError, RecursionError):
            ours = False
        others = [
            name for name in ("metrics.jsonl", "model.safetensors", "loss_curve.png") if (self.path / name).exists()
        ]
        if not ours or (others and not config.exists()):
            names = ", ".join(others or ["config.json"])
            raise ValueError(
                f"{self.path} holds {names} of something else, which a run would overwrite; name another folder"
            )

    def write_config(self, identity: Mapping[str, Any]) -> None:
        """config.json: all settings of the run, as resolved."""
        temporary = self.path / f".config.json.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self.path / "config.json")

    def save(self, images: int, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> Path:
        """Writes a checkpoint and, only once it is durable, deletes what is no longer kept."""
        path = checkpoints.checkpoint_path(self.path, images)
        try:
            checkpoints.write(path, tensors, manifest)
        except OSError as error:
            older = checkpoints.latest(self.path)
            raise OSError(
                f"the checkpoint {path} could not be written ({error}); "
                + (f"the run can be resumed from {older}" if older else "there is no older one")
            ) from error
        checkpoints.prune(self.path, self.config.keep, self.config.milestones, self.config.batch)
        return path


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Where a run resumes: the checkpoint, problems of newer ones, and changed settings that deserve a note."""

    path: Path
    tensors: dict[str, Tensor]
    manifest: dict[str, Any]
    problems: list[str]
    notes: list[str]


def json_plain(value: Any) -> Any:
    """What JSON makes of a value (tuples become lists), to compare settings in memory with settings in a file."""
    return json.loads(json.dumps(value))


def _changed_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How the images differ from those a run was begun with, in words; "" if they are the same."""
    if before.get("fingerprint") == now.get("fingerprint"):
        return ""
    old, new = before.get("count"), now.get("count")
    if isinstance(old, int) and isinstance(new, int) and old != new:
        what = f"{count_of(old, 'image')} then, {new:,} now; another share of held-out images changes them too"
    else:
        known = count_of(old, "image") if isinstance(old, int) else "a stream"
        what = f"{known} both times, with other contents or labels"
    return f"data: the images to train on are others ({what})"


def _comparable(identity: Mapping[str, Any]) -> dict[str, Any]:
    plain = json_plain(dict(identity))
    # A setting that did not exist yet when a run was begun had the value that is the default now.
    for section, config in _CONFIGS.items():
        if isinstance(plain.get(section), dict) and (section != "objective" or plain.get("kind") == "diffusion"):
            plain[section] = {**_defaults(config), **plain[section]}
    # A data set may be moved or decoded by more threads; its contents and their preparation may not change.
    data = plain.get("data") or {}
    free = ("path", "workers", "check", "max_pixels")
    prepared = {k: v for k, v in (data.get("config") or {}).items() if k not in free}
    plain["data"] = {"fingerprint": data.get("fingerprint"), **prepared}
    # Of the model that a run began with, which it was; what became of its weights follows from that and the rest.
    plain["init"] = (plain.get("init") or {}).get("from")
    plain["custom"] = plain.get("custom") or {}
    return plain


_CONFIGS: dict[str, type] = {"train": TrainConfig, "process": ProcessConfig, "objective": ObjectiveConfig}


def _defaults(config: type) -> dict[str, Any]:
    """The fields of a dataclass that have a default, as JSON has them."""
    return json_plain({f.name: f.default for f in fields(config) if f.default is not MISSING})


def _lock(path: Path) -> IO[str] | None:
    """Holds the folder against a second run until the file is closed (the system closes it when a process is
    killed).
    """
    if sys.platform == "win32":
        return None
    import fcntl

    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held open on purpose
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise ValueError(f"{path.parent} is in use by {owner}; wait for it, stop it, or use another folder") from error
    except OSError:
        return file  # a file system without locks
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()}, which has been training since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    file.flush()
    return file
