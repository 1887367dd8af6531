"""Foreign weights as checkpoints of ours: converted once, into the cache.

    published_checkpoint(name)   a published model: downloaded unless it is in the cache, and converted
    convert(path)                a PyTorch file, other safetensors or a folder of diffusers
    identify(path)               what it is and who says so, without converting it

A converted file is called by the hash of what it was made from and by how that was understood (network, process, and
published model), so nothing in the cache is ever out of date, and processes that want the same wait for each other.
What it was made from is remembered in its manifest, under "source".
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from undiffuse import checkpoints, downloads
from undiffuse.adapters import (
    ddp_weights,
    ddpm_weights,
    diffusers_config,
    diffusers_import,
    edm_weights,
    exporting,
    foreign,
    imagenet_classes,
    openai_flags,
    programs,
    published,
    published_consistency,
    returning,
)
from undiffuse.adapters.interpretation import REASONS, Interpretation, Like, interpret
from undiffuse.adapters.openai_weights import as_ours, looks_like, recognise
from undiffuse.adapters.published_entry import CONSISTENCY, DDPM, Published
from undiffuse.checkpoints import CheckpointError
from undiffuse.config import SamplerConfig
from undiffuse.config.advice import to_manifest
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import ClassifierConfig, DDPMConfig

_Found: TypeAlias = tuple[Interpretation, Mapping[str, Tensor], str, Mapping[str, Any]]
"""Meaning, weights by our names, what they are called, more entries of the manifest."""

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".pkl", ".bin", ".pt2")

FORMAT = 1
"""Of what is written here; another number makes every file be converted anew."""


@dataclass(frozen=True)
class Identified:
    """Foreign weights and what they mean: `state` has our names, `source` is what is remembered of them,
    `more` are further entries of the manifest."""

    meaning: Interpretation
    state: Mapping[str, Tensor]
    weights: str
    source: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """ "diffusion" or "classifier", as manifests have it."""
        return "classifier" if isinstance(self.meaning.config, ClassifierConfig) else "diffusion"

    def manifest(self) -> dict[str, Any]:
        """The manifest of the converted file."""
        config, entry = self.meaning.config, self.meaning.entry
        named = entry is not None and config.num_classes == openai_flags.CLASSES
        manifest: dict[str, Any] = {
            "kind": self.kind,
            "net": asdict(config),
            "process": asdict(self.meaning.process),
            "labels": list(imagenet_classes.names()) if named else None,
            "ema": [],
            "weights": self.weights,
            "source": dict(self.source),
        }
        if entry is not None and self.kind == "diffusion":
            manifest["objective"] = _objective(entry)
        return {**manifest, **self.more}


def identify(
    path: str | Path,
    like: str | None = None,
    which: str | None = None,
    known: Published | None = None,
    digest: str | None = None,
) -> Identified:
    """What a foreign file or folder is.

    `like`    what shapes cannot tell: a published model, or the flags it was trained with (see `Like`)
    `which`   of several state dicts in one file
    `known`   the published file that it is known to be
    `digest`  the file's SHA-256 where it is known

    ValueError (CheckpointError where the file itself is at fault) if that cannot be told, and says what is missing.
    """
    path = Path(path)
    home = path if path.is_dir() else diffusers_config.beside(path)
    folder = diffusers_config.find(home, which) if home is not None else None
    if path.is_dir() and folder is None:
        only = only_weights(path)
        if only is None:
            raise ValueError(f"the folder {path} holds neither checkpoints of a run nor a diffusers model")
        return identify(only, like, which, known, digest)
    said = Like.parse(like) if like is not None else None
    files = (path,) if folder is None else folder.files
    digest = _digest(files) if digest is None else digest
    more: Mapping[str, Any] = {}
    try:
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
    """Whether a folder is one of diffusers, sound or not."""
    try:
        return diffusers_config.find(folder) is not None
    except ValueError:
        return True


def only_weights(folder: Path) -> Path | None:
    """The only file of weights in a folder; None if there is none.

    Raises:
        ValueError: There are several.
    """
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in WEIGHT_SUFFIXES and path.is_file())
    found = [path for path in found if not path.name.startswith((".", "opt", "optimizer"))]
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:6]) + (", ..." if len(found) > 6 else "")
        raise ValueError(f"the folder {folder} holds several files of weights, {names}: give one of them")
    return found[0] if found else None


def _of_folder(folder: diffusers_config.Folder, files: tuple[Path, ...], path: Path, said: Like | None) -> _Found:
    """What a folder of diffusers holds."""
    said = said or Like()
    if said.entry is not None or said.release not in (None, DDPM):
        raise ValueError(f"{path} says itself what it is: only what it leaves out can be said, by name=value")
    flags = {**said.stored, **said.flags}
    if flags.get("sigma_small") is not None:
        flags["variance"] = openai_flags.process_config({"sigma_small": flags.pop("sigma_small")}).variance
    state: dict[str, Tensor] = {}
    for file in files:
        state |= foreign.tensors(file)
    got = diffusers_import.read(folder, state, flags)
    return Interpretation(got.config, got.process, got.facts), got.state, got.weights, got.manifest


def _of_file(path: Path, digest: str, said: Like | None, which: str | None, known: Published | None) -> _Found:
    """What a file holds."""
    more: dict[str, Any] = {}
    if returning.is_program(path):
        back = returning.of_program(path)
        return _returned(back, path)
    weights = foreign.read(path, which)
    if weights.program == programs.EDM:
        return _of_edm(weights, said)
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
    if ddp_weights.looks_like(weights.tensors):
        return _of_ddp(weights, said)
    meaning, state = _ddpm(weights.tensors, path, said, known)
    return meaning, state, weights.name, {}


def _of_edm(weights: foreign.Weights, said: Like | None) -> _Found:
    """What a network pickle of EDM holds."""
    if said is not None:
        raise ValueError("a network pickle of EDM says itself what it is: nothing is to be said of it")
    content = weights.beside
    module = content.get(weights.name) if isinstance(content, Mapping) else content
    config, process, state = edm_weights.read(module, weights.tensors)
    facts = {"its own arguments": f"EDM's network, {config.design}, images of {config.size[0]} pixels",
             "licence": edm_weights.LICENCE}  # fmt: skip
    more = {"sampling": to_manifest(edm_weights.advice(config))}
    return Interpretation(config, process, facts), state, weights.name, more


def _of_ddp(weights: foreign.Weights, said: Like | None) -> _Found:
    """What a file of denoising-diffusion-pytorch holds."""
    said = said or Like()
    if said.entry is not None or said.release is not None:
        raise ValueError("this is a model of denoising-diffusion-pytorch: only what it leaves out can be said")
    beside = weights.beside if isinstance(weights.beside, Mapping) else {}
    version = str(beside.get("version") or "")
    config, process, state = ddp_weights.read(weights.tensors, {**said.stored, **said.flags}, version)
    facts = {
        "shapes": f"the U-Net of denoising-diffusion-pytorch {version}".rstrip(),
        "its tables": f"{process.levels_text}, predicts {process.target}, variance {process.variance}",
    }
    advice = SamplerConfig(solver="ddpm", steps=str(process.steps), clip="static")
    return Interpretation(config, process, facts), state, weights.name, {"sampling": to_manifest(advice)}


def _returned(back: returning.Returned, path: Path) -> _Found:
    facts = {exporting.about_path(path).name: "a model that undiffuse exported, its weights unchanged"}
    return Interpretation(back.config, back.process, facts), back.state, back.weights, back.manifest


def _digest(files: tuple[Path, ...]) -> str:
    """SHA-256 of a file, or of the hashes of several."""
    digests = [content_hash(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def convert(
    path: str | Path,
    like: str | None = None,
    which: str | None = None,
    known: Published | None = None,
    digest: str | None = None,
) -> Path:
    """A checkpoint of ours in the cache with the weights of a foreign file; arguments and errors as in `identify`.

    OSError if the cache cannot be written.
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
            f"{target.parent} cannot be written, where {path} would be converted to; UNDIFFUSE_CACHE chooses "
            "another folder"
        ) from error
    return target


def published_checkpoint(name: str) -> Path:
    """The checkpoint of a published model, downloaded and converted unless that was done before.

    ValueError for an unknown name, DownloadError (an OSError) if the file cannot be brought here.
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
    """The published file itself, in the cache, downloaded unless it is there."""
    entry = published.get(name)
    path = place_of(entry)
    if entry.url is None:
        if not path.is_file():
            raise downloads.DownloadError(
                f"{entry.name} cannot be downloaded by a program. Follow the link on {entry.page} and save the file as "
                f"{path}, or give its path in place of the name"
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
    """Where in the cache a published file is, or would be."""
    return downloads.cache_dir("models", "published", *Path(entry.file).parts)


def is_here(name: str) -> bool:
    """Whether a published model can be used without a network."""
    entry = published.get(name)
    digest = entry.sha256 or downloads.recorded(place_of(entry))
    converted = digest is not None and _is_sound(_target(digest, foreign.ALONE, entry.net, entry.process, entry))
    return converted or place_of(entry).is_file()


def content_hash(path: Path) -> str:
    """SHA-256 of a file. It is remembered by the file's path, size and time, since large files take seconds."""
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
        memo.parent.mkdir(parents=True, exist_ok=True)
        new = memo.with_name(f".{memo.name}.{os.getpid()}")
        new.write_text(digest + "\n", encoding="ascii")
        os.replace(new, memo)
    except OSError:  # a cache that cannot be written costs time, and is told where it matters
        pass
    return digest


def _problem(file: Path, entry: Published) -> str:
    """What is wrong with a file that should be the published one; "" if nothing."""
    problem = foreign.problem_with_archive(file)
    if problem:
        return problem
    try:
        found = identify(file, known=entry, digest="")
    except ValueError as error:
        return str(error)
    same = found.meaning.config == entry.net and found.meaning.process == entry.process
    return "" if same else f"it is not the network of {entry.name}"


def _ddpm(
    state: Mapping[str, Tensor], path: Path, said: Like | None, known: Published | None
) -> tuple[Interpretation, Mapping[str, Tensor]]:
    """What a file of weights of DDPM's U-Net means, and the weights by our names."""
    said = said or Like()
    if said.release not in (None, DDPM):
        raise ValueError(f"{path} is not like {said.entry.name if said.entry else said.release}: it is DDPM's U-Net")
    unknown = sorted(set(said.flags) - {"image_size", "sigma_small"})
    if unknown:
        raise ValueError(f"the flags of DDPM's U-Net are image_size and sigma_small, not {', '.join(unknown)}")
    entry, by = known or said.entry, "download" if known else "like"
    if entry is None:
        named = published.of_file(path)
        entry, by = (named, "name") if named is not None and named.release == DDPM else (None, "")
    config, process, ours = _convert_ddpm(state, said, entry)
    if entry is not None and (entry.net.widths, entry.net.num_res_blocks) != (config.widths, config.num_res_blocks):
        if by != "name":
            widths = "/".join(map(str, config.widths))
            raise ValueError(f"{path} is not like {entry.name}: its levels have {widths} channels")
        entry, by = None, ""
        config, process, ours = _convert_ddpm(state, said, None)
    shapes = f"{config.model_channels} channels x {'/'.join(f'{m:g}' for m in config.channel_mult)}"
    told = f"{entry.name}, {REASONS[by]}" if entry is not None else "as all of DDPM's"
    facts = {
        "shapes": f"DDPM's U-Net, {config.in_channels} channels: {shapes}, {config.num_res_blocks} blocks a level",
        told: f"images of {config.size[0]} pixels, {process.levels_text}, predicts {process.target}, "
        f"variance {process.variance}",
    }
    return Interpretation(config, process, facts, entry, by), ours


def _convert_ddpm(
    state: Mapping[str, Tensor], said: Like, entry: Published | None
) -> tuple[DDPMConfig, ProcessConfig, dict[str, Tensor]]:
    """`ddpm_weights.convert` with what is known beside the weights."""
    size = entry.image_size if entry is not None else None
    variance = entry.process.variance if entry is not None else None
    if "image_size" in said.flags:
        size = _number(said.flags["image_size"], "image_size")
    if "sigma_small" in said.flags:
        variance = openai_flags.process_config({"sigma_small": said.flags["sigma_small"]}).variance
    return ddpm_weights.convert(
        state,
        unet=diffusers_config.DDPM_SETTINGS if entry is not None else None,
        image_size=size,
        variance=variance,
        dropout=entry.net.dropout if entry is not None else None,
    )


def _number(text: str, name: str) -> int:
    if not text.isdigit():
        raise ValueError(f"{name} {text}: expected a whole number")
    return int(text)


def _objective(entry: Published) -> dict[str, Any]:
    """What a published model was trained with, in the words of `undiffuse.objectives.ObjectiveConfig`."""
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
    """Where the conversion of the file with this hash is, understood in this way."""
    about = [FORMAT, digest, weights, asdict(config), asdict(process), entry and entry.name, *([more] if more else [])]
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return downloads.cache_dir("models", "converted", f"{digest[:12]}-{key[:12]}.safetensors")


def _is_sound(path: Path) -> bool:
    """Whether a converted file is there and whole (its weights are compared with their hash when they are loaded)."""
    try:
        checkpoints.read_manifest(path)
    except CheckpointError:
        return False
    return True
