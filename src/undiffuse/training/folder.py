"""A run's folder: who may write there, whether the run resumes or begins, what is kept.

config.json       the resolved settings          metrics.jsonl     one record a line
loss_curve.png    drawn anew at every save       previews/         grids from raw and averaged weights
checkpoints/      0000123456.safetensors, by images seen
data_index.npz    checksums of the images' files    last-finite.safetensors  the state of a run that diverged
run.json          the settings as they were given sessions.jsonl   command, versions and hardware of every start
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from undiffuse import checkpoints, sharded_checkpoints
from undiffuse.data import index
from undiffuse.data.content import ContentIndex, Recheck
from undiffuse.data.decoding import IMAGE_SUFFIXES
from undiffuse.denoiser import ProcessConfig
from undiffuse.objectives import ObjectiveConfig
from undiffuse.pictures import claim_output
from undiffuse.train_config import TrainConfig, differences
from undiffuse.util import files
from undiffuse.util.files import atomic_file, remove_leftovers
from undiffuse.util.locks import FolderLock
from undiffuse.util.text import count_of, size_text

DATA_INDEX = "data_index.npz"
LAST_FINITE = "last-finite.safetensors"
"""The state of a run that ended because its losses or gradients were no longer finite."""
_OURS = ("config.json", "run.json", "metrics.jsonl", "checkpoints")
"""Files and folders that only a run has."""
# The parts of a manifest that identify a run; the others (progress, version, hashes) change as it trains.
IDENTITY = (
    "kind", "net", "process", "objective", "labels", "conditions", "train", "data", "init", "custom", "distillation",
)  # fmt: skip


class RunFolder:
    """The folder of one run, used by the main process only. Open it as a context: it is locked meanwhile."""

    def __init__(self, path: Path | str, config: TrainConfig) -> None:
        self.path = Path(path)
        self.config = config
        self._lock: FolderLock | None = None
        self._recheck: Recheck | None = None

    def __enter__(self) -> RunFolder:
        if self.path.is_dir():
            # Logs may lie where a run will; pictures of somebody else may not, for data are all pictures of a folder.
            claim_output(self.path, _OURS, lambda name: not name.lower().endswith(IMAGE_SUFFIXES))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"{self.path} is not a folder, so no run can be kept in it; name another") from error
        self._lock = FolderLock(self.path, "training")
        checkpoints.remove_leftovers(self.path)
        for folder in (self.path, *(part for part in self.path.iterdir() if part.is_dir())):
            remove_leftovers(folder)
        return self

    def __exit__(self, *_: object) -> None:
        if self._recheck is not None:
            self._recheck.stop()
        if self._lock is not None:
            self._lock.close()  # which also unlocks

    @property
    def metrics(self) -> Path:
        """The JSONL file of all records."""
        return self.path / "metrics.jsonl"

    def resume(
        self,
        identity: Mapping[str, Any],
        load: Callable[[Mapping[str, Tensor], Mapping[str, Any]], None] = lambda tensors, progress: None,
        content: ContentIndex | None = None,
    ) -> Resume | None:
        """Finds the newest sound checkpoint, if the folder holds a run of the same settings.

        Damaged newer files are renamed to *.damaged, so that they are neither mistaken for checkpoints nor lost.

        Args:
            identity: The settings of the run.
            load: Takes over tensors and counters of a checkpoint. A checkpoint that it cannot use is passed over.
            content: The contents of the images to train on, if they are files.

        Returns:
            The checkpoint; None if the folder holds no run.

        Raises:
            ValueError: The run in the folder was begun with other settings (the message lists the differences), or
                none of its checkpoints is sound.
        """
        notes: list[str] = []

        def take(path: Path, tensors: Mapping[str, Tensor], manifest: dict[str, Any]) -> None:
            notes[:] = self._compare(manifest, identity, content)
            try:
                images, expected = manifest["progress"]["images"], checkpoints.images_of(path)
                if images != expected:
                    raise ValueError(f"its manifest is of {images!r} images, its name of {expected}")
                load(tensors, manifest["progress"])
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
                what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
                raise checkpoints.CheckpointError(f"{path} cannot be resumed: {what}") from error

        found = checkpoints.newest_sound(self.path, take)
        if found is None:
            self._check_vacant()
            return None
        path, tensors, manifest, problems = found
        if not manifest["progress"].get("bad_in_a_row"):  # a run in trouble keeps its older checkpoints
            checkpoints.prune(self.path, self.config.keep, self.config.milestones, self.config.batch)
        for newer in checkpoints.checkpoints(self.path):
            if checkpoints.images_of(newer) > checkpoints.images_of(path):
                newer.replace(newer.with_name(newer.name + ".damaged"))
        return Resume(path=path, tensors=tensors, manifest=manifest, problems=problems, notes=notes)

    def _compare(
        self, manifest: Mapping[str, Any], identity: Mapping[str, Any], content: ContentIndex | None
    ) -> list[str]:
        """Changed settings that deserve a note. ValueError if the run was begun with others that matter."""
        before = {name: manifest.get(name) for name in IDENTITY}
        forbidden, notes = differences(_comparable(before), _comparable(identity))
        other_data = self._changed_data(before.get("data") or {}, identity.get("data") or {}, content)
        if forbidden or other_data:
            lines = [line for line in forbidden if not line.startswith("data.fingerprint:")]
            raise ValueError(
                f"{self.path} holds a run that was begun with other {'settings' if lines else 'images'}, so it cannot "
                "be resumed:\n  "
                + "\n  ".join([*([other_data] if other_data else []), *lines])
                + "\n"
                + ("(there -> now) Use the settings of that run, or another folder" if lines else "Put the images back")
                + (
                    f"; init_from={str(self.path)!r} in another folder starts from its weights with the images as they "
                    "are now."
                    if other_data
                    else "."
                )
            )
        return notes

    def _changed_data(self, before: Mapping[str, Any], now: Mapping[str, Any], content: ContentIndex | None) -> str:
        """How the images differ from those a run was begun with, in words; "" if they are the same."""
        same = before.get("fingerprint") == now.get("fingerprint")
        if same and (before.get("content") is None or content is None or before["content"] == content.hash):
            return ""
        stored = index.read(self.path / DATA_INDEX) if content is not None else None
        if stored is not None and content is not None and {"names", "sums"} <= set(stored):
            earlier = ContentIndex.of_arrays(stored)
            if earlier.hash != content.hash:
                return f"data: the images to train on are others ({earlier.changes(content)})"
        return _changed_counts(before, now)

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

    def write_config(self, identity: Mapping[str, Any], content: ContentIndex | None = None) -> None:
        """Writes config.json, all settings of the run as resolved, and the checksums of the images' files."""
        with atomic_file(self.path / "config.json", overwrite=True) as file:
            file.write((json.dumps(identity, indent=2) + "\n").encode())
        if content is None:
            return
        if content.trusted is not None and self._recheck is None:
            self._recheck = Recheck(content.trusted)
        stored, arrays = index.read(self.path / DATA_INDEX), content.arrays()
        if stored is None or not all(np.array_equal(stored.get(name, ()), array) for name, array in arrays.items()):
            with atomic_file(self.path / DATA_INDEX, overwrite=True) as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]

    def check_images(self, wait: bool = True) -> None:
        """Raises ValueError if images were found to differ from their index in the cache, which the run relied on.

        Args:
            wait: Wait until every file was looked at.
        """
        changed = "" if self._recheck is None else self._recheck.result(wait)
        if changed:
            raise ValueError(
                f"data: the images to train on have changed since they were indexed ({changed}). The index has been "
                "updated: repeat the command to see whether the run fits the images as they are"
            )

    def check_room(self, size: int) -> None:
        """Finds out, before any training, whether checkpoints can be written.

        A first checkpoint and the next one must fit, because the older one is deleted only after the newer is whole.

        Args:
            size: Size of a checkpoint in bytes.

        Raises:
            OSError: The folder cannot be written, or has no room.
        """
        folder = self.path / checkpoints.FOLDER
        needed = size * max(1, 2 - len(checkpoints.checkpoints(self.path)))
        probe = folder / f"{files.PREFIX}room{files.SUFFIX}"
        try:
            folder.mkdir(exist_ok=True)
            free = shutil.disk_usage(folder).free
            if free < needed:
                raise OSError(errno.ENOSPC, f"only {size_text(free)} are free")
            with open(probe, "wb") as file:
                _reserve(file, needed)
        except OSError as error:
            raise OSError(
                f"{self.path} has no room for the run's checkpoints ({error.strerror or error}): {size_text(needed)} "
                "are needed. Free some space, or choose another folder"
            ) from error
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)

    def check_present(self) -> None:
        """Finds out whether the folder is still the one the run began in.

        Raises:
            FolderLostError: It was deleted, or replaced by that of another run.
            ValueError: The images are others than those the run began with.
        """
        self.check_images(wait=False)
        state = "held" if self._lock is None else self._lock.state
        if state == "deleted":
            raise FolderLostError(f"the run folder {self.path} was deleted while the run was training", True)
        if state == "replaced":
            raise FolderLostError(f"the run folder {self.path} was replaced by that of another run", False)

    def number(self) -> int:
        """Returns the number of the folder's lock on its disk, the same on all machines that share it; 0 if none."""
        try:
            return os.stat(self.path / ".lock").st_ino
        except OSError:
            return 0

    def save(self, images: int, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any], prune: bool = True) -> Path:
        """Writes a checkpoint and, once it is durable and if `prune` is true, deletes what is no longer kept."""
        self.check_images()
        path = checkpoints.checkpoint_path(self.path, images)
        with self._explained(path):
            checkpoints.write(path, tensors, manifest)
        if prune:
            checkpoints.prune(self.path, self.config.keep, self.config.milestones, self.config.batch)
        return path

    def complete(
        self, path: Path, processes: int, seal: Callable[[Mapping[str, Any]], str], lost: Callable[[], bool]
    ) -> Path:
        """Completes a sharded checkpoint, see `sharded_checkpoints.complete`, and deletes what is no longer kept."""
        self.check_images()
        with self._explained(path):
            sharded_checkpoints.complete(path, processes, seal, lost)
        checkpoints.prune(self.path, self.config.keep, self.config.milestones, self.config.batch)
        return path

    @contextmanager
    def _explained(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            older = checkpoints.latest(self.path)
            raise OSError(
                f"the checkpoint {path} could not be written ({error}); "
                + (f"the run can be resumed from {older}" if older else "there is no older one")
            ) from error


class FolderLostError(OSError):
    """The folder of a run was deleted or replaced while the run was training.

    Attributes:
        free: Whether the place is free, so that the state can be saved there again.
    """

    def __init__(self, message: str, free: bool) -> None:
        super().__init__(message)
        self.free = free


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Where a run resumes: the checkpoint, problems of newer ones, and changed settings that deserve a note."""

    path: Path
    tensors: Mapping[str, Tensor]
    manifest: dict[str, Any]
    problems: list[str]
    notes: list[str]


def json_plain(value: Any) -> Any:
    """What JSON makes of a value (tuples become lists), to compare settings in memory with settings in a file."""
    return json.loads(json.dumps(value))


def _reserve(file: IO[bytes], size: int) -> None:
    """Takes space on the disk for a file, as far as the system can, and writes to it."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    file.write(b"\0" * 4096)
    file.flush()
    os.fsync(file.fileno())


def _changed_counts(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How the images differ from those a run was begun with, as far as their numbers tell."""
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
    free = ("path", "workers", "check", "max_pixels", "conditions")
    prepared = {k: v for k, v in (data.get("config") or {}).items() if k not in free}
    plain["data"] = {"fingerprint": data.get("fingerprint"), **prepared}
    # Of the model that a run began with, which it was; what became of its weights follows from that and the rest.
    plain["init"] = (plain.get("init") or {}).get("from")
    plain["custom"] = plain.get("custom") or {}
    plain["conditions"] = plain.get("conditions") or {}
    # Of a distillation its settings; how its students are sampled follows from them.
    plain.pop("sampling", None)
    plain["distillation"] = {k: v for k, v in (plain.get("distillation") or {}).items() if k not in _DERIVED}
    return plain


_DERIVED = ("logsnr", "anywhere")
_CONFIGS: dict[str, type] = {"train": TrainConfig, "process": ProcessConfig, "objective": ObjectiveConfig}


def _defaults(config: type) -> dict[str, Any]:
    """The fields of a dataclass that have a default, as JSON has them."""
    return json_plain({f.name: f.default for f in fields(config) if f.default is not MISSING})
