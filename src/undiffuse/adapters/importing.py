"""Converts weights of other programs to undiffuse checkpoints, once, into the cache.

    published_checkpoint(name)   downloads (unless cached) and converts a published model
    convert(path)                converts a PyTorch file, another safetensors file or a diffusers folder
    identify(path)               determines what a file is, without converting it

The name of a converted file contains the hash of its source and of the interpretation (network, process and published
model), so cached files are never out of date. Processes that need the same file wait for each other. The manifest
records the source.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from undiffuse import checkpoints, downloads
from undiffuse.adapters import (
    diffusers_config,
    exporting,
    foreign,
    imagenet_classes,
    openai_flags,
    published,
    published_consistency,
    returning,
)
from undiffuse.adapters.ddpm_interpretation import interpret_ddpm
from undiffuse.adapters.interpretation import Found, Interpretation, Like, interpret
from undiffuse.adapters.openai_weights import as_ours, looks_like, recognise
from undiffuse.adapters.published_entry import CONSISTENCY, DDPM, Published
from undiffuse.checkpoints import CheckpointError
from undiffuse.config.advice import to_manifest
from undiffuse.nets import ClassifierConfig
from undiffuse.nets.registry import config_fields
from undiffuse.util.errors import reading
from undiffuse.util.files import atomic_file

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".pkl", ".bin", ".pt2")

FORMAT = 1
"""Version of the converted files; a new number makes every file be converted again."""


@dataclass(frozen=True)
class Identified:
    """Weights of another program with their interpretation.

    Attributes:
        meaning: The network, the process and the sources of this information.
        state: Weights by our names.
        weights: Name of the weights.
        source: The description of the source for the manifest.
        more: Further entries of the manifest.
    """

    meaning: Interpretation
    state: Mapping[str, Tensor]
    weights: str
    source: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind in the manifest, "diffusion" or "classifier"."""
        return "classifier" if isinstance(self.meaning.config, ClassifierConfig) else "diffusion"

    def manifest(self) -> dict[str, Any]:
        """Returns the manifest of the converted file."""
        config, entry = self.meaning.config, self.meaning.entry
        named = entry is not None and config.num_classes == openai_flags.CLASSES
        manifest: dict[str, Any] = {
            "kind": self.kind,
            "net": config_fields(config),
            "process": asdict(self.meaning.process),
            "labels": list(imagenet_classes.names()) if named else None,
            "ema": [],
            "weights": self.weights,
            "source": dict(self.source),
        }
        if entry is not None and self.kind == "diffusion" and entry.process.target != "consistency":
            manifest["objective"] = _objective(entry)
        return {**manifest, **self.more}


def identify(
    path: str | Path,
    like: str | None = None,
    which: str | None = None,
    known: Published | None = None,
    digest: str | None = None,
) -> Identified:
    """Determines the network and process of a file or folder of another program.

    Args:
        path: The file or folder.
        like: What shapes cannot show: a published model, or training flags (see `Like`).
        which: Name of one of several state dicts in the file.
        known: The published file that it is, if known.
        digest: The file's SHA-256, if known.

    Raises:
        ValueError: It cannot be determined; the message says what is missing.
        CheckpointError: The file is damaged or of an unknown kind.
    """
    path = Path(path)
    home = path if path.is_dir() else diffusers_config.beside(path)
    folder = diffusers_config.find(home, which) if home is not None else None
    if path.is_dir() and folder is None:
        only = only_weights(path)
        if only is None:
            raise ValueError(f"the folder {path} contains neither checkpoints of a run nor a diffusers model")
        return identify(only, like, which, known, digest)
    said = Like.parse(like) if like is not None else None
    files = (path,) if folder is None else folder.files
    digest = _digest(files) if digest is None else digest
    more: Mapping[str, Any] = {}
    try:
        with reading(str(path)):
            if folder is not None:
                found = _of_folder(folder, files, path, said)
            else:
                found = _of_file(path, digest, said, which, known)
        meaning, state, called, more = found
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    entry = meaning.entry
    source: dict[str, Any] = {
        "file": path.name,
        "sha256": digest,
        "bytes": sum(file.stat().st_size for file in files),
        "published": entry.name if entry is not None else None,
        "known_by": meaning.by or None,
        "facts": dict(meaning.facts),
    }
    if entry is not None and meaning.by in ("download", "hash", "name"):
        source |= {"family": entry.family, "url": entry.url or entry.page, "licence": entry.licence}
    return Identified(meaning, state, called, source, more)


def is_diffusers(folder: Path) -> bool:
    """Returns whether a folder is a diffusers folder, even a damaged one."""
    try:
        return diffusers_config.find(folder) is not None
    except ValueError:
        return True


def only_weights(folder: Path) -> Path | None:
    """Returns the only weights file in a folder; None if there is none.

    Raises:
        ValueError: There are several.
    """
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in WEIGHT_SUFFIXES and path.is_file())
    found = [path for path in found if not path.name.startswith((".", "opt", "optimizer"))]
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:6]) + (", ..." if len(found) > 6 else "")
        raise ValueError(f"the folder {folder} contains several weights files, {names}: give one of them")
    return found[0] if found else None


def _of_folder(folder: diffusers_config.Folder, files: tuple[Path, ...], path: Path, said: Like | None) -> Found:
    """Interprets a diffusers folder."""
    from undiffuse.adapters import diffusers_import  # which most files do not need

    said = said or Like()
    if said.entry is not None or said.release not in (None, DDPM):
        raise ValueError(f"{path} has its own configuration: only settings that it lacks can be given, as name=value")
    flags = {**said.stored, **said.flags}
    if flags.get("sigma_small") is not None:
        flags["variance"] = openai_flags.process_config({"sigma_small": flags.pop("sigma_small")}).variance
    state: dict[str, Tensor] = {}
    for file in files:
        state |= foreign.tensors(file)
    got = diffusers_import.read(folder, state, flags)
    return Interpretation(got.config, got.process, got.facts), got.state, got.weights, got.manifest


def _of_file(path: Path, digest: str, said: Like | None, which: str | None, known: Published | None) -> Found:
    """Interprets a weights file."""
    more: dict[str, Any] = {}
    if returning.is_program(path):
        back = returning.of_program(path)
        return _returned(back, path)
    weights = foreign.read(path, which)
    from undiffuse.adapters import other_programs  # which most files do not need

    other = other_programs.read(weights, said)
    if other is not None:
        return other
    if said is None and known is None:
        returned = returning.of_state(returning.about(path), weights.tensors)
        if returned is not None:
            return _returned(returned, path)
    if looks_like(weights.tensors):
        blocks = said.flags.get("num_res_blocks") or said.flags.get("classifier_depth") if said else None
        found = recognise(weights.shapes, int(blocks) if blocks and blocks.isdigit() else None)
        meaning = interpret(found, path, digest, said, known, weights.arguments)
        if meaning.clean_only:
            more = {"objective": {"loss": "cross-entropy", "noise": False}}
        elif meaning.entry is None and meaning.process.target == "edm":
            more = {"sampling": to_manifest(published_consistency.TEACHER)}
        return meaning, as_ours(weights.tensors), weights.name, more
    meaning, state = interpret_ddpm(weights.tensors, path, said, known)
    return meaning, state, weights.name, {}


def _returned(back: returning.Returned, path: Path) -> Found:
    facts = {exporting.about_path(path).name: "a model exported by undiffuse, with unchanged weights"}
    return Interpretation(back.config, back.process, facts), back.state, back.weights, back.manifest


def _digest(files: tuple[Path, ...]) -> str:
    """Returns the SHA-256 of a file, or of the hashes of several files."""
    digests = [content_hash(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def convert(
    path: str | Path,
    like: str | None = None,
    which: str | None = None,
    known: Published | None = None,
    digest: str | None = None,
) -> Path:
    """Converts a file or folder of another program and returns the path of the checkpoint in the cache.

    Args:
        path: The file or folder.
        like: What shapes cannot show: a published model, or training flags (see `Like`).
        which: Name of one of several state dicts in the file.
        known: The published file that it is, if known.
        digest: The file's SHA-256, if known.

    Raises:
        ValueError: As in `identify`.
        OSError: The cache is not writable.
    """
    found = identify(path, like, which, known, digest)
    meaning = found.meaning
    target = _target(found.source["sha256"], found.weights, meaning.config, meaning.process, meaning.entry, found.more)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with downloads.alone(target.with_name("converting")):
            if not _is_sound(target):
                size = found.source["bytes"]
                downloads.report(f"converting {Path(path).name}", 0, size)
                state = {f"net.{name}": tensor.detach().float() for name, tensor in found.state.items()}
                checkpoints.write(target, state, found.manifest())
                downloads.report(f"converting {Path(path).name}", size, size)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise PermissionError(
            f"cannot write the conversion of {path} to {target.parent}: set UNDIFFUSE_CACHE to a writable folder"
        ) from error
    return target


def published_checkpoint(name: str) -> Path:
    """Returns the checkpoint of a published model. Downloads and converts the model if it is not in the cache.

    Raises:
        ValueError: The name is unknown.
        DownloadError: The download failed (an OSError).
    """
    entry = published.get(name)
    digest = entry.sha256 or downloads.recorded(place_of(entry))
    if digest is not None:
        target = _target(digest, foreign.ALONE, entry.net, entry.process, entry)
        if _is_sound(target):
            return target
    file = published_file(name)
    return convert(file, known=entry, digest=entry.sha256 or downloads.recorded(file))


def published_file(name: str) -> Path:
    """Returns the path of the published file in the cache. Downloads the file if it is not there."""
    entry = published.get(name)
    path = place_of(entry)
    if entry.url is None:
        if not path.is_file():
            raise downloads.DownloadError(
                f"{entry.name} cannot be downloaded automatically. Follow the link on {entry.page} and save the file "
                f"as {path}, or give its path instead of the name"
            )
        return path
    return downloads.fetch(
        entry.url,
        path,
        sha256=entry.sha256,
        md5=entry.md5,
        check=lambda file: _problem(file, entry),
        size=entry.size,
    )


def place_of(entry: Published) -> Path:
    """Returns the path of a published file in the cache, whether it exists or not."""
    return downloads.cache_dir("models", "published", *Path(entry.file).parts)


def is_here(name: str) -> bool:
    """Returns whether a published model can be used offline."""
    entry = published.get(name)
    digest = entry.sha256 or downloads.recorded(place_of(entry))
    converted = digest is not None and _is_sound(_target(digest, foreign.ALONE, entry.net, entry.process, entry))
    return converted or place_of(entry).is_file()


def content_hash(path: Path) -> str:
    """Returns the SHA-256 of a file. Caches it by path, size and time, because large files take seconds."""
    status = path.stat()
    about = [str(path.resolve()), status.st_size, status.st_mtime_ns]
    memo = downloads.cache_dir("models", "hashes", hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32])
    try:
        remembered = memo.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        remembered = ""
    if len(remembered) == 64:
        return remembered
    digest = downloads.digest_of(path)
    try:
        with atomic_file(memo, overwrite=True) as file:
            file.write(f"{digest}\n".encode())
    except OSError:  # without a writable cache, hashing only takes longer
        pass
    return digest


def _problem(file: Path, entry: Published) -> str:
    """Returns what is wrong with a downloaded published file; "" if nothing."""
    problem = foreign.problem_with_archive(file)
    if problem:
        return problem
    try:
        found = identify(file, known=entry, digest="")
    except ValueError as error:
        return str(error)
    same = found.meaning.config == entry.net and found.meaning.process == entry.process
    return "" if same else f"it is not the network of {entry.name}"


def _objective(entry: Published) -> dict[str, Any]:
    """Returns the training objective of a published model as fields of `undiffuse.objectives.ObjectiveConfig`."""
    if entry.release == DDPM:
        return {"loss": "simple"}
    if entry.release == CONSISTENCY:
        return {"loss": "simple", "weighting": "edm"}
    loss = openai_flags.loss_name(entry.flags, entry.family)
    kind = "vlb" if loss == "RESCALED_KL" else "hybrid" if entry.process.learns_variance else "simple"
    low = {} if entry.low_size is None else {"low_size": [entry.low_size, entry.low_size]}
    return {"loss": kind, "rescale": loss != "MSE", "decoder": "tanh", **low}


def _target(
    digest: str, weights: str, config: Any, process: Any, entry: Published | None = None, more: Any = None
) -> Path:
    """Returns the path of the conversion of a file with this hash and this interpretation."""
    fields = config_fields(config)
    about = [FORMAT, digest, weights, fields, asdict(process), entry and entry.name, *([more] if more else [])]
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return downloads.cache_dir("models", "converted", f"{digest[:12]}-{key[:12]}.safetensors")


def _is_sound(path: Path) -> bool:
    """Returns whether a converted file exists and is complete (its weights are checked by hash when loaded)."""
    try:
        checkpoints.read_manifest(path)
    except CheckpointError:
        return False
    return True
