"""Summaries of a set of images by one extractor: features and their statistics, from a pass or from a file.

A reference file is one safetensors file with a manifest: for each extractor the mean and covariance of all images, the
features of some of them (for precision, recall and kernel distances), the cards, the number of images and the hash of
their pixels. OpenAI's reference batches (npz with mu, sigma, mu_s, sigma_s) are read as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from undiffuse.evaluation.features import Features
from undiffuse.metrics import Card, MetricError, Moments, Statistics
from undiffuse.util.errors import ConfigError
from undiffuse.util.files import atomic_file
from undiffuse.util.hashing import tensors_hash
from undiffuse.util.limits import check_header, open_npz
from undiffuse.util.records import parse_json

__all__ = ["NpzStatistics", "Summary", "is_reference", "npz_statistics", "read_reference", "write_reference"]

FORMAT = 1
_OWN_HASH = "manifest_sha256"
KEY = "undiffuse"
OPENAI = ("mu", "sigma", "mu_s", "sigma_s")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One extractor's view of a set of images.

    Args:
        card: How the features were made.
        spatial_card: The same of the spatial features; None without them.
        statistics: Mean and covariance over all images; None for fewer than two.
        spatial: The same of the spatial features.
        features: float32 [M, D] of the images whose features are kept; None for statistics alone.
        spatial_features: float32 [M, S].
        scores: Turns features [B, D] into class scores [B, K]; None without classes.
        labels: Class of each image, int64 [M].
        label_names: Names of the classes.
        about: Where the images came from, for reports.
        warnings: What a reader of the numbers should know.
    """

    card: Card
    spatial_card: Card | None = None
    statistics: Statistics | None = None
    spatial: Statistics | None = None
    features: Tensor | None = None
    spatial_features: Tensor | None = None
    scores: Callable[[Tensor], Tensor | None] | None = None
    labels: NDArray[np.int64] | None = None
    label_names: Sequence[str] | None = None
    about: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, features: Features, statistics: NpzStatistics | None = None) -> Summary:
        """Summarises features of a pass over images.

        Args:
            features: What the extractor made of the images.
            statistics: Statistics of a file, which take the place of the images' own as in OpenAI's evaluator.

        Raises:
            MetricError: The statistics were made by another extractor or protocol.
        """
        warnings = list(features.warnings)
        about = dict(features.about)
        first = _moments(features.features, features.card)
        second = _moments(features.spatial, features.spatial_card) if features.spatial is not None else None
        if statistics is not None:
            first = statistics.main(features.card)
            second = statistics.spatial(features.spatial_card)
            about["statistics"] = f"{', '.join(statistics.keys)} of the file, not of its {len(features)} images"
            about["statistics_sha256"] = statistics.sha256
        if first is None:
            warnings.append("a single image has no covariance: there is no Frechet distance")
        return cls(
            card=features.card,
            spatial_card=features.spatial_card,
            statistics=first,
            spatial=second,
            features=features.features,
            spatial_features=None if statistics is not None else features.spatial,
            scores=features.scores,
            labels=features.labels,
            label_names=features.label_names,
            about=about,
            warnings=tuple(warnings),
        )

    @property
    def own_statistics(self) -> bool:
        """Whether the statistics are those of exactly the features that are there."""
        return self.features is not None and self.statistics is not None and self.statistics.n == len(self.features)


def _moments(features: Tensor, card: Card | None) -> Statistics | None:
    if len(features) < 2:
        return None
    return Moments(features.shape[1], card).update(features).statistics()


@dataclass(frozen=True, kw_only=True)
class NpzStatistics:
    """Statistics in an npz file, of a set that may be larger than the images in the file.

    Args:
        path: The file.
        arrays: "mu", "sigma" and possibly "mu_s", "sigma_s".
        protocol: How the features were made; None if it is not known. OpenAI's layout (with mu_s, which nobody else
            writes) is "adm".
        sha256: Hash of the arrays.
    """

    path: str
    arrays: dict[str, NDArray[Any]]
    protocol: str | None
    sha256: str

    @property
    def keys(self) -> list[str]:
        """Names of the arrays."""
        return list(self.arrays)

    def main(self, card: Card) -> Statistics:
        """Returns mean and covariance of the features; MetricError if `card` has another protocol or dimension."""
        if self.protocol is None:
            raise ConfigError(
                "protocol",
                f"{self.path} holds statistics but does not say how they were made. Give their protocol if you know it "
                "(adm for OpenAI's), or make a reference file from the images",
            )
        if self.protocol != card.protocol:
            raise MetricError(
                f"the statistics of {self.path} are of protocol {self.protocol!r}, the samples' features of "
                f"{card.protocol!r}: numbers of different protocols cannot be compared. Evaluate with "
                f"{self.protocol!r}, or make a reference file from the images"
            )
        return self._statistics("mu", "sigma", card)

    def spatial(self, card: Card | None) -> Statistics | None:
        """Returns those of the spatial features; None if the file or the extractor has none."""
        if card is None or "mu_s" not in self.arrays:
            return None
        return self._statistics("mu_s", "sigma_s", card)

    def _statistics(self, mean: str, covariance: str, card: Card) -> Statistics:
        mu, sigma = self.arrays[mean], self.arrays[covariance]
        if mu.shape != (card.dimension,) or sigma.shape != (card.dimension, card.dimension):
            raise MetricError(
                f"{self.path}: {mean} {list(mu.shape)} and {covariance} {list(sigma.shape)} are no statistics of "
                f"{card.extractor} {card.layer}, which has {card.dimension} features"
            )
        try:
            return Statistics(torch.from_numpy(mu.astype(np.float64)), torch.from_numpy(sigma.astype(np.float64)),
                              None, card)  # fmt: skip
        except MetricError as error:
            raise MetricError(f"{self.path}: {mean}, {covariance}: {error}") from error


def npz_statistics(path: str | Path, protocol: str | None = None) -> tuple[NpzStatistics | None, bool]:
    """Reads the statistics in an npz file. No pickle is executed.

    Args:
        path: The file.
        protocol: How the features were made, for a file with mu and sigma alone, which does not say it.

    Returns:
        The statistics (None without any), and whether the file holds images as well.

    Raises:
        MetricError: A damaged file, or incomplete statistics.
    """
    path = Path(path)
    try:
        with open_npz(path) as file:
            names = list(file.files)
            arrays = {name: file[name] for name in OPENAI if name in names}
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy, zipfile, zlib and tokenize have many words for a broken file
        raise MetricError(f"{path} cannot be read as an npz file: {str(error) or type(error).__name__}") from error
    if not arrays:
        return None, "arr_0" in names
    for mean, covariance in (OPENAI[:2], OPENAI[2:]):
        if (mean in arrays) != (covariance in arrays):
            missing = covariance if mean in arrays else mean
            raise MetricError(f"{path} holds {', '.join(arrays)} but no {missing}: the statistics are incomplete")
    if "mu" not in arrays:
        raise MetricError(f"{path} holds mu_s and sigma_s but no mu and sigma: the statistics are incomplete")
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise MetricError(f"{path}: {name} is {array.dtype}, expected floating-point numbers")
    if protocol is None and "mu_s" in arrays:
        protocol = "adm"
    sha = tensors_hash({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})
    return NpzStatistics(path=str(path), arrays=arrays, protocol=protocol, sha256=sha), "arr_0" in names


def write_reference(
    path: str | Path, summaries: Sequence[Summary], *, keep: int = 10_000, overwrite: bool = False
) -> Path:
    """Writes a reference file atomically: statistics of all images, and features of some of them.

    Args:
        path: File to write.
        summaries: One for each extractor.
        keep: Number of images, evenly spaced over the set, whose features are kept for precision, recall and KID.
        overwrite: Replaces a file that exists.

    Raises:
        FileExistsError: The file exists, and `overwrite` is false.
        MetricError: A set of fewer than two images.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    entries = []
    for number, summary in enumerate(summaries):
        if summary.statistics is None or summary.features is None:
            raise MetricError("a reference needs at least 2 images: there are no statistics of fewer")
        entry = {
            "card": summary.card.to_dict(),
            "spatial_card": None if summary.spatial is None else summary.spatial_card.to_dict(),  # type: ignore[union-attr]
            "n": summary.statistics.n,
            "about": summary.about,
            "warnings": list(summary.warnings),
        }
        tensors[f"{number}.mean"], tensors[f"{number}.covariance"] = (
            summary.statistics.mean,
            summary.statistics.covariance,
        )
        if summary.spatial is not None:
            tensors[f"{number}.spatial_mean"] = summary.spatial.mean
            tensors[f"{number}.spatial_covariance"] = summary.spatial.covariance
        total = len(summary.features)
        count = min(keep, total)
        if count:
            tensors[f"{number}.features"] = summary.features[torch.arange(count) * total // count]
        entry["kept"] = count
        entries.append(entry)
    manifest = {"format": FORMAT, "kind": "reference", "extractors": entries, "sha256": tensors_hash(tensors)}
    manifest[_OWN_HASH] = _hash(manifest)
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={KEY: json.dumps(manifest)})
    with atomic_file(path, overwrite=overwrite) as file:
        file.write(data)
    return path


def _hash(manifest: dict[str, Any]) -> str:
    """sha256 of a manifest without its own hash."""
    rest = json.loads(json.dumps({name: value for name, value in manifest.items() if name != _OWN_HASH}))
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def is_reference(path: str | Path) -> bool:
    """Whether a file was written by `write_reference`."""
    try:
        check_header(path)
        with safetensors.safe_open(str(path), framework="pt") as file:
            return json.loads((file.metadata() or {}).get(KEY, "{}")).get("kind") == "reference"
    except (OSError, ValueError, AttributeError, safetensors.SafetensorError):
        return False


def read_reference(path: str | Path) -> list[Summary]:
    """Returns the summaries of a reference file, one for each extractor; MetricError for any other or damaged file."""
    path = Path(path)
    try:
        check_header(path)
        with safetensors.safe_open(str(path), framework="pt") as file:
            manifest = parse_json((file.metadata() or {})[KEY], f"the header of {path}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise MetricError(f"{path} is no reference file, or it is damaged ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != "reference" or manifest.get("format") != FORMAT:
        raise MetricError(f"{path} is no reference file of this version: make it again")
    unknown = set(manifest) - {"format", "kind", "extractors", "sha256", _OWN_HASH}
    if unknown or manifest.get(_OWN_HASH, _hash(manifest)) != _hash(manifest):  # older files have no hash of it
        raise MetricError(f"{path} is damaged: its description does not have the hash it carries; make it again")
    if tensors_hash(tensors) != manifest.get("sha256"):
        raise MetricError(f"{path} is damaged: its content does not have the hash it carries; make it again")
    out = []
    try:
        for number, entry in enumerate(manifest["extractors"]):
            card = Card.from_dict(entry["card"])
            spatial_card = Card.from_dict(entry["spatial_card"]) if entry["spatial_card"] else None
            spatial = None
            if spatial_card is not None:
                spatial = Statistics(
                    tensors[f"{number}.spatial_mean"], tensors[f"{number}.spatial_covariance"], entry["n"], spatial_card
                )
            out.append(
                Summary(
                    card=card,
                    spatial_card=spatial_card,
                    statistics=Statistics(tensors[f"{number}.mean"], tensors[f"{number}.covariance"], entry["n"], card),
                    spatial=spatial,
                    features=tensors.get(f"{number}.features"),
                    about={**entry["about"], "file": path.name, "file_sha256": manifest["sha256"]},
                    warnings=tuple(entry["warnings"]),
                )
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise MetricError(f"{path} lacks {error}: it is damaged, or of another version") from error
    return out
