"""Checkpoints: one self-describing safetensors file each, with a JSON manifest in its header.

Tensors:   "net.<parameter>", "ema.<decay>.<parameter>", "optimizer.<parameter>.<state>", "sampler.<array>"
Metadata:  the key "undiffuse" holds the manifest, a JSON object:

    format    1                                 kind      "diffusion" or "classifier"
    net       the network's config              process   the diffusion process's config
    train     the training's config             data      fingerprint, source, size, count of the data
    labels    names of the classes              ema       names of the averages, ["0.999", "0.9999"]
    progress  {"images": ..., "steps": ...}     version   of this package
    sha256    hash of the net's weights         hashes    the same for every group of tensors
    manifest_sha256  hash of the manifest itself, without this entry (older files lack it)

Shipped weights use the same format with "net." tensors only. No file is ever unpickled.

A file is written under a temporary name, flushed to disk and renamed, so its final name always holds a complete file.
Every group of tensors and the manifest have a hash, which reveals damage anywhere in the file. The files of a run are
named by the number of images seen:
`checkpoints/0000123456.safetensors`. Sharded runs have folders instead, see `undiffuse.sharded_checkpoints`; all
functions that read take both.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from undiffuse import sharded_checkpoints
from undiffuse.sharded_checkpoints import ShardedTensors, is_sharded_folder
from undiffuse.util import files
from undiffuse.util.files import remove
from undiffuse.util.hashing import weights_hash
from undiffuse.util.limits import check_header

FORMAT = 1
METADATA_KEY = "undiffuse"
MANIFEST_HASH = "manifest_sha256"
FOLDER = "checkpoints"
_NAME = re.compile(r"^(\d{10,})\.(safetensors|sharded)$")


_TYPES: dict[str, tuple[Any, str]] = {
    "kind": (str, "a word"),
    "net": (dict, "the network's config"),
    "process": (dict, "the diffusion process's config"),
    "hashes": (dict, "hashes by group of tensors"),
    "ema": (list, "a list of decays"),
    "labels": ((list, type(None)), "a list of names, or null"),
    "weights": (str, "the name of the weights"),
}

# Former names in stored settings. Fields by section, and values by section and field.
_FORMER_FIELDS = {"process": {"family": "preconditioning"}, "train": {"levels": "density"}}
_FORMER_VALUES: dict[tuple[str, str], dict[str, str]] = {
    ("process", "target"): {"u": "velocity", "F": "edm", "mean": "previous_mean"},
    ("process", "variance"): {
        "range": "learned_range", "direct": "learned", "beta": "fixed_large", "posterior": "fixed_small",
    },
    ("objective", "weighting"): {"u": "velocity"},
}  # fmt: skip


def with_current_names(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a manifest with former names of fields and values, as in older files, replaced by the current ones."""
    current = dict(manifest)
    for section, former in _FORMER_FIELDS.items():
        if isinstance(current.get(section), dict):
            current[section] = {former.get(key, key): value for key, value in current[section].items()}
    for (section, key), former in _FORMER_VALUES.items():
        settings = current.get(section)
        if isinstance(settings, dict) and isinstance(settings.get(key), str):
            current[section] = {**settings, key: former.get(settings[key], settings[key])}
    return current


class CheckpointError(ValueError):
    """The file is not a checkpoint, is damaged, or lacks the requested content."""


def write(path: Path | str, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a checkpoint atomically: `path` holds either the old file or the complete new one.

    Args:
        path: The file; missing folders are created.
        tensors: Tensors by name, see the module.
        manifest: The manifest, to which "format", "sha256", "hashes" and "manifest_sha256" are added.

    Returns:
        The manifest as written.

    Raises:
        CheckpointError: There are no "net." tensors.
        OSError: The file cannot be written.
    """
    path = Path(path)
    ready = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    owners: set[int] = set()
    for name, tensor in ready.items():  # tied parameters: safetensors rejects tensors that share memory
        if tensor.numel() and tensor.data_ptr() in owners:
            ready[name] = tensor.clone()
        owners.add(tensor.data_ptr())
    if not any(name.startswith("net.") for name in ready):
        raise CheckpointError("a checkpoint needs the network's weights, but no tensor name starts with 'net.'")
    hashes = _hashes(ready, manifest.get("ema", []))
    full = _sealed({**manifest, "hashes": hashes, "sha256": hashes["net"]})
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with files.temporary(path.parent) as new:
            mode = new.stat().st_mode  # safetensors makes files readable by their owner only; follow the umask
            save_file(ready, new, metadata={METADATA_KEY: json.dumps(full, allow_nan=True)})
            os.chmod(new, mode)
            files.sync(new)
            files.place(new, path, overwrite=True)
    except safetensors.SafetensorError as error:  # raised for a full disk, too
        raise OSError(f"{path} could not be written: {error}") from error
    return full


def sharded_manifest(manifest: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    """Returns the text of manifest.json of a sharded checkpoint.

    Args:
        manifest: The manifest, to which "format", "files" and "manifest_sha256" are added.
        files: Size and sha256 of every file by name.
    """
    return json.dumps(_sealed({**manifest, "files": dict(files)}), allow_nan=True)


def is_ours(path: Path) -> bool:
    """Returns whether a file is a checkpoint of this library, including a damaged one."""
    try:
        check_header(path)
        with safetensors.safe_open(str(path), framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError):
        return path.suffix.lower() == ".safetensors"


def read_manifest(path: Path | str) -> dict[str, Any]:
    """Reads the manifest from the header, without the tensors; raises CheckpointError if there is none."""
    if is_sharded_folder(path):
        return _folder_manifest(Path(path))
    with _open(path) as file:
        return _manifest(path, file)


def read(path: Path | str, group: str | None = None, verify: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint.

    Args:
        path: The file, or the folder of a sharded one.
        group: One group of tensors: "net", "ema.0.9999", "optimizer" or "sampler"; None for all.
        verify: Compare the tensors with the hashes in the manifest.

    Returns:
        Tensors on the CPU by their full names, and the manifest.

    Raises:
        CheckpointError: The file is truncated or damaged, or lacks the group.
    """
    if is_sharded_folder(path):
        lazy, manifest = _read_folder(Path(path), group, verify)
        return dict(lazy), manifest
    with _open(path) as file:
        manifest = _manifest(path, file)
        emas = manifest.get("ema", [])
        names = [name for name in file.keys() if group is None or _group(name, emas) == group]  # noqa: SIM118
        if not names:
            there = sorted({_group(name, emas) for name in file.keys()})  # noqa: SIM118
            raise CheckpointError(f"{path} holds no {group!r} tensors; it holds: {', '.join(there)}")
        try:
            tensors = {name: file.get_tensor(name) for name in names}
        except (safetensors.SafetensorError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); it may be truncated") from error
    if verify:
        expected = manifest.get("hashes", {"net": manifest.get("sha256")})
        found = _hashes(tensors, emas)
        for name, value in found.items():
            if expected.get(name) not in (None, value):
                raise CheckpointError(
                    f"{path} is damaged: the hash of its {name!r} tensors is {value[:12]}..., "
                    f"the manifest says {_short(expected[name])}"
                )
        lost = set(expected) - set(found) if group is None and "hashes" in manifest else set()
        strange = set(found) - set(expected) if MANIFEST_HASH in manifest else set()
        if lost or strange:
            what = f"has no {min(lost)!r} tensors" if lost else f"has {min(strange)!r} tensors"
            raise CheckpointError(f"{path} is damaged: it {what}, unlike its manifest")
    return tensors, manifest


def open_state(path: Path | str, verify: bool = True) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Reads a whole checkpoint like `read`, but the tensors of a folder are put together one by one when used."""
    return _read_folder(Path(path), None, verify) if is_sharded_folder(path) else read(path, verify=verify)


def _read_folder(path: Path, group: str | None, verify: bool) -> tuple[ShardedTensors, dict[str, Any]]:
    manifest = _folder_manifest(path)
    emas = manifest.get("ema", [])
    damage = sharded_checkpoints.verify(path, manifest.get("files")) if verify else None
    if damage is not None:
        raise CheckpointError(f"{path} is damaged: {damage}")
    try:
        tensors = ShardedTensors(path, None if group is None else lambda name: _group(name, emas) == group)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not tensors:
        raise CheckpointError(f"{path} holds no {group!r} tensors")
    return tensors, manifest


def _folder_manifest(path: Path) -> dict[str, Any]:
    try:
        text = (path / sharded_checkpoints.MANIFEST).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its manifest cannot be read ({error})") from error
    return _parsed(path, text)


def weight_names(manifest: Mapping[str, Any]) -> list[str]:
    """Returns the names of a file's weights: "net" and its averages; for a slim file, the weights it was made from."""
    averages = list(manifest.get("ema", []))
    return ["net", *averages] if averages else [manifest.get("weights", "net")]


def default_weights(manifest: Mapping[str, Any]) -> str:
    """Returns the weights to sample from by default: the slowest average, or the only weights."""
    averages = manifest.get("ema", [])
    return max(averages, key=float) if averages else weight_names(manifest)[0]


def load_weights(path: Path | str, which: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a network's weights.

    Args:
        path: The checkpoint.
        which: One of `weight_names`: "net" for the trained weights, or the name of an average ("0.9999"). None uses
            `default_weights`.

    Returns:
        Weights by parameter name, and the manifest.

    Raises:
        CheckpointError: The file cannot be read or lacks these weights.
    """
    manifest = read_manifest(path)
    names = weight_names(manifest)
    which = default_weights(manifest) if which is None else which
    if which not in names:
        raise CheckpointError(f"{path} has no weights {which!r}; it has: {', '.join(names)}")
    group = f"ema.{which}" if which in manifest.get("ema", []) else "net"
    tensors, manifest = read(path, group)
    return {name[len(group) + 1 :]: tensor for name, tensor in tensors.items()}, manifest


def checkpoint_path(run_dir: Path | str, images: int, sharded: bool = False) -> Path:
    """Returns the path of a run's checkpoint after `images` images."""
    return Path(run_dir) / FOLDER / f"{images:010d}{sharded_checkpoints.SUFFIX if sharded else '.safetensors'}"


def checkpoints(run_dir: Path | str) -> list[Path]:
    """Lists the checkpoints of a run, oldest first, by file name (they are not opened)."""
    folder = Path(run_dir) / FOLDER
    found = [(int(m.group(1)), p) for p in folder.glob("*.s*") if (m := _NAME.match(p.name))]
    return [path for _, path in sorted(found)]


def images_of(path: Path | str) -> int:
    """Returns the number of images seen, from the file's name."""
    match = _NAME.match(Path(path).name)
    if match is None:
        raise CheckpointError(
            f"{path} does not have the name of a checkpoint; expected one like 0000123456.safetensors"
        )
    return int(match.group(1))


def latest(run_dir: Path | str) -> Path | None:
    """Returns the newest checkpoint of a run, or None."""
    return (checkpoints(run_dir) or [None])[-1]  # type: ignore[list-item]


def newest_sound(
    run_dir: Path | str, load: Callable[[Path, Mapping[str, Tensor], dict[str, Any]], None] | None = None
) -> tuple[Path, Mapping[str, Tensor], dict[str, Any], list[str]] | None:
    """Reads the newest checkpoint that is readable and whose hashes match.

    Args:
        run_dir: The run folder.
        load: Takes over the path, tensors and manifest of a checkpoint. If it raises CheckpointError, the file is
            skipped like a damaged one.

    Returns:
        (path, tensors, manifest, problems), where `problems` says for every newer file why it was skipped. None if
        there are no checkpoints.

    Raises:
        CheckpointError: There are checkpoints, but none is intact.
    """
    problems: list[str] = []
    for path in reversed(checkpoints(run_dir)):
        try:
            tensors, manifest = open_state(path)
            if load is not None:
                load(path, tensors, manifest)
        except (CheckpointError, OSError) as error:
            problems.append(str(error))
        else:
            return path, tensors, manifest, problems
    if problems:
        raise CheckpointError(
            f"no checkpoint of {run_dir} can be read:\n  "
            + "\n  ".join(problems)
            + "\nmove these files away to start from the beginning"
        )
    return None


def prune(run_dir: Path | str, keep: int, milestones: int | None = None, batch: int = 1) -> list[Path]:
    """Deletes all checkpoints but the last `keep` and the milestones.

    Args:
        run_dir: Folder of the run.
        keep: Number of checkpoints to keep; at least one is kept.
        milestones: Interval in images. A milestone is the first checkpoint at or after a multiple of it.
        batch: Images per update; milestones are the checkpoints with images % milestones < batch.

    Returns:
        The deleted files.
    """
    gone = []
    for path in checkpoints(run_dir)[: -max(keep, 1)]:
        if milestones is None or images_of(path) % milestones >= batch:
            remove(path)
            gone.append(path)
    return gone


def remove_leftovers(run_dir: Path | str) -> None:
    """Deletes half-written files of a process that was killed while writing."""
    for path in (Path(run_dir) / FOLDER).glob(".*.tmp"):
        remove(path)


def _group(name: str, emas: Iterable[str]) -> str:
    for ema in emas:
        if name.startswith(f"ema.{ema}."):
            return f"ema.{ema}"
    return name.split(".", 1)[0]


def _hashes(tensors: Mapping[str, Tensor], emas: Iterable[str]) -> dict[str, str]:
    groups: dict[str, dict[str, Tensor]] = {}
    emas = list(emas)
    for name, tensor in tensors.items():
        group = _group(name, emas)
        groups.setdefault(group, {})[name[len(group) + 1 :]] = tensor
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        return dict(zip(groups, pool.map(weights_hash, groups.values()), strict=True))


def _sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    full = {**manifest, "format": FORMAT}
    return {**full, MANIFEST_HASH: _manifest_hash(full)}


def _manifest_hash(manifest: Mapping[str, Any]) -> str:
    """The sha256 of a manifest without its own hash: of its JSON with sorted keys and no spaces."""
    plain = json.loads(json.dumps({key: value for key, value in manifest.items() if key != MANIFEST_HASH}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _open(path: Path | str) -> Any:
    if not Path(path).is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        check_header(path)
        return safetensors.safe_open(str(path), framework="pt")
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    except (safetensors.SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}); it may be truncated") from error


def _manifest(path: Path | str, file: Any) -> dict[str, Any]:
    text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise CheckpointError(
            f"{path} is a safetensors file, but not an undiffuse checkpoint: its header has no {METADATA_KEY!r}"
        )
    return _parsed(path, text)


def _parsed(path: Path | str, text: str) -> dict[str, Any]:
    """The manifest in a text; CheckpointError if it is damaged or of another format."""
    try:
        manifest = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the manifest is not JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        given = manifest.get("format") if isinstance(manifest, dict) else None
        raise CheckpointError(f"{path} has format {given!r}; this version reads format {FORMAT}")
    if MANIFEST_HASH in manifest and manifest[MANIFEST_HASH] != _manifest_hash(manifest):
        raise CheckpointError(
            f"{path} is damaged: the hash of its manifest is {_manifest_hash(manifest)[:12]}..., the manifest says "
            f"{_short(manifest[MANIFEST_HASH])}"
        )
    for key, (kind, expected) in _TYPES.items():
        if key in manifest and not isinstance(manifest[key], kind):
            raise CheckpointError(f"{path}: {key} in the manifest is {_short(manifest[key])}; expected {expected}")
    if not all(isinstance(name, str) and _is_number(name) for name in manifest.get("ema", [])):
        raise CheckpointError(f"{path}: ema in the manifest is {_short(manifest['ema'])}; expected decays like '0.999'")
    if not all(isinstance(name, str) for name in manifest.get("labels") or []):
        raise CheckpointError(f"{path}: labels in the manifest are {_short(manifest['labels'])}; expected names")
    return with_current_names(manifest)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
