"""Latents as files: what `undiffuse encode` writes and `undiffuse decode` reads.

One safetensors file: "latents" float32 [N, C, H, W], "labels" int64 [N] where the model is told classes; the key
"undiffuse.latents" of its header holds a JSON object with the sampler's record and notes and the images' names.
While a job runs, finished batches lie in PATH.parts/, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from undiffuse.checkpoints import weights_hash
from undiffuse.pictures.png import parse_json
from undiffuse.util.files import atomic_file

KEY = "undiffuse.latents"
_PART = re.compile(r"(\d{9})-(\d{9})\.safetensors")


@dataclass(frozen=True)
class Latents:
    """Encoded images: `about` holds "record", "notes" (see `sampler`), "names" [N], and "label_names"."""

    latents: Tensor
    labels: Tensor | None
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def digest(self) -> str:
        """sha256 of latents and labels: their identity."""
        tensors = {"latents": self.latents} | ({} if self.labels is None else {"labels": self.labels})
        return weights_hash(tensors)


def read_about(path: str | Path) -> dict[str, Any]:
    """The header of a latents' file. ValueError if it is something else."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error})") from error
    if text is None:
        raise ValueError(f"{path} holds no latents of `undiffuse encode`; `undiffuse inspect {path}` tells what it is")
    return _checked_about(parse_json(text, f"the header of {path}"), f"the header of {path}")


def read(path: str | Path) -> Latents:
    """A whole file. ValueError, which names it, if it is something else or damaged."""
    about = read_about(path)
    tensors = _tensors(path)
    latents, labels = tensors["latents"], tensors.get("labels")
    if labels is not None:
        whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        if not whole or labels.shape != latents.shape[:1]:
            raise ValueError(
                f"{path}: labels must be one whole number for each of the {len(latents)} images, got {labels.dtype} "
                f"{list(labels.shape)}"
            )
        labels = labels.long()
    return Latents(latents, labels, about)


def _tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file; "latents" is float32 [N, C, H, W], N >= 1. ValueError otherwise."""
    try:
        tensors = load_file(str(path))
    except Exception as error:  # SafetensorError, OSError; for types that this torch lacks also others
        raise ValueError(f"{path} is damaged ({error})") from error
    latents = tensors.get("latents")
    if latents is None:
        raise ValueError(f"{path} lacks the tensor latents; it has {', '.join(sorted(tensors)) or 'none'}")
    if not latents.is_floating_point() or latents.ndim != 4 or 0 in latents.shape:
        raise ValueError(
            f"{path}: latents must be floating-point numbers [N, C, H, W] of at least one image, got {latents.dtype} "
            f"{list(latents.shape)}"
        )
    return {**tensors, "latents": latents.float()}


def _checked_about(about: Any, where: str) -> dict[str, Any]:
    """`about`, if it is a dictionary with the dictionaries "record" and "notes"."""
    if not isinstance(about, dict):
        raise ValueError(f"{where} should hold a JSON object, and is a {type(about).__name__}")
    for name in ("record", "notes"):
        if not isinstance(about.get(name), dict):
            raise ValueError(f"{where} does not say how the latents were made: {name!r} is missing or no JSON object")
    return about


class LatentsWriter:
    """Collects batches of one job and packs them into one file.

    `about` must be the same when a job is continued; ValueError tells what differs.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any], overwrite: bool = False) -> None:
        self.path = Path(path)
        self.parts = self.path.with_name(self.path.name + ".parts")
        self.about = dict(about)
        if self.path.suffix != ".safetensors":
            raise ValueError(f"latents are kept as safetensors: name a file that ends so, not {self.path.name}")
        if overwrite:
            self.path.unlink(missing_ok=True)
            if self.parts.is_dir():
                shutil.rmtree(self.parts)
        self.done = self.path.exists()
        theirs = read_about(self.path) if self.done else self._begun()
        ours = json.loads(json.dumps(self.about))
        if theirs is not None and theirs != ours:
            differing = _differences(theirs, ours)
            raise ValueError(
                f"{self.path if self.done else self.parts} holds latents of another job ({differing}): name another "
                "--out, or replace them with --overwrite"
            )

    def missing(self, count: int) -> list[int]:
        """The images of 0..count-1 that are not encoded yet."""
        if self.done:
            return []
        there = {i for start, end, _ in self._found() for i in range(start, min(end, count))}
        return [i for i in range(count) if i not in there]

    def write(self, start: int, latents: Tensor) -> None:
        """Put one batch [B, C, H, W], the images start..start+B-1, on disk."""
        self.parts.mkdir(parents=True, exist_ok=True)
        about = self.parts / "about.json"
        if not about.exists():
            with atomic_file(about) as file:
                file.write(json.dumps(self.about).encode())
        name = f"{start:09d}-{start + len(latents):09d}.safetensors"
        with atomic_file(self.parts / name, overwrite=True) as file:
            file.write(save({"latents": latents.detach().float().cpu().contiguous()}))

    def finish(self, count: int, labels: Sequence[int] | None) -> Latents:
        """Pack all batches; the parts are removed once the file is whole."""
        if self.done:
            return read(self.path)
        rows: list[Tensor | None] = [None] * count
        shapes = set()
        for start, end, file in self._found():
            part = _tensors(file)["latents"]
            shapes.add(part.shape[1:])
            if end > count or len(part) != end - start or len(shapes) > 1:
                raise ValueError(f"{file} does not fit the job: delete it, and its images will be encoded again")
            rows[start:end] = part.unbind()
        there = [row for row in rows if row is not None]
        if len(there) != count or not there:
            raise ValueError(f"{count - len(there)} of {count} images are not encoded yet")
        latents = torch.stack(there)
        tensors = {"latents": latents}
        if labels is not None:
            tensors["labels"] = torch.tensor(labels, dtype=torch.int64)
        with atomic_file(self.path, overwrite=True) as out:
            out.write(save(tensors, metadata={KEY: json.dumps(self.about)}))
        shutil.rmtree(self.parts, ignore_errors=True)
        return Latents(latents, tensors.get("labels"), self.about)

    def _found(self) -> list[tuple[int, int, Path]]:
        if not self.parts.is_dir():
            return []
        named = [(m, p) for p in self.parts.iterdir() if (m := _PART.fullmatch(p.name))]
        return sorted((int(m.group(1)), int(m.group(2)), p) for m, p in named)

    def _begun(self) -> dict[str, Any] | None:
        about = self.parts / "about.json"
        return _checked_about(parse_json(about.read_bytes(), str(about)), str(about)) if about.is_file() else None


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Which entries differ, one level deep."""
    out = []
    for key in sorted({*there, *here}):
        a, b = there.get(key), here.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            out += [f"{k}: {a.get(k)} there, {b.get(k)} now" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
        else:
            out.append(key if isinstance(a, (list, dict)) else f"{key}: {a} there, {b} now")
    return "; ".join(out)
