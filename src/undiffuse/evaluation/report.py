"""What an evaluation leaves behind: a JSON file in which every value carries its card, and tables for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import undiffuse
from undiffuse.evaluation.compute import Evaluation
from undiffuse.evaluation.summary import Summary
from undiffuse.metrics import Card, Estimate, MetricError
from undiffuse.util.files import atomic_file

__all__ = ["Report", "environment"]

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Report:
    """One evaluation of one set of samples against one reference, by one or more extractors.

    `samples`, `reference`  where they came from: kind, counts, hashes, sampler settings and seeds
    `estimates`             all values, each with its card
    `skipped`               "extractor: metric" -> why it was not computed
    `environment`           versions, device, threads; `seconds` by stage
    """

    name: str
    samples: Mapping[str, Any]
    reference: Mapping[str, Any]
    estimates: Sequence[Estimate]
    skipped: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        parts: Sequence[tuple[Summary, Summary, Evaluation]],
        seconds: Mapping[str, float],
        device: torch.device | str = "cpu",
    ) -> Report:
        """From the evaluations by each extractor: (samples, reference, result). Every estimate's card is completed
        with the sides' provenance."""
        estimates: list[Estimate] = []
        skipped: dict[str, str] = {}
        for samples, reference, result in parts:
            details = {"samples": _side(samples), "reference": _side(reference)}
            taken = {estimate.name for estimate in estimates}
            for estimate in result.estimates:
                card = estimate.card.with_details(**details) if estimate.card is not None else None
                # Precision by one extractor is not precision by another; the first one's keeps the plain name.
                whose = f" ({samples.card.distance.removeprefix('FD-')})" if estimate.name in taken else ""
                estimates.append(replace(estimate, card=card, name=estimate.name + whose))
            skipped |= {f"{samples.card.protocol}: {metric}": why for metric, why in result.skipped.items()}
            own = {f"{samples.card.protocol}: {metric}": value for metric, value in result.seconds.items()}
            seconds = {**seconds, **own}
        first = parts[0]
        return cls(
            name=name,
            samples=_side(first[0]),
            reference=_side(first[1]),
            estimates=estimates,
            skipped=skipped,
            environment=environment(device),
            seconds=dict(seconds),
        )

    @property
    def warnings(self) -> list[str]:
        """Every warning once, in order."""
        return list(dict.fromkeys(text for estimate in self.estimates for text in estimate.warnings))

    @property
    def comparable(self) -> tuple[str, ...]:
        """What must be equal for two reports' numbers to stand in one table: the reference and the extractors."""
        cards = dict.fromkeys(
            f"{e.card.extractor} {e.card.protocol} {e.card.weights_sha256}"
            for e in self.estimates
            if e.card is not None
        )
        reference = self.reference
        identity = reference.get("statistics_sha256") or reference.get("sha256") or reference.get("file_sha256")
        return (str(identity), *cards)

    def get(self, name: str) -> Estimate | None:
        """The estimate of this name, None if there is none."""
        return next((estimate for estimate in self.estimates if estimate.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": FORMAT,
            "kind": "evaluation",
            "name": self.name,
            "samples": dict(self.samples),
            "reference": dict(self.reference),
            "metrics": [estimate.to_dict() for estimate in self.estimates],
            "skipped": dict(self.skipped),
            "environment": dict(self.environment),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the JSON file, whole or not at all; FileExistsError unless `overwrite`."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False, default=_plain)
        with atomic_file(path, overwrite=overwrite) as file:
            file.write(text.encode() + b"\n")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Back from `save`; MetricError for anything else."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(values, dict) or values.get("kind") != "evaluation" or values.get("format") != FORMAT:
                raise MetricError(f"{path} is no evaluation of this version; make it by `undiffuse evaluate`")
            estimates = []
            for entry in values["metrics"]:
                card = Card.from_dict(entry.pop("card")) if entry.get("card") else None
                estimates.append(Estimate(**{**entry, "warnings": tuple(entry["warnings"]), "card": card}))
            return cls(
                name=values["name"],
                samples=values["samples"],
                reference=values["reference"],
                estimates=estimates,
                skipped=values["skipped"],
                environment=values["environment"],
                seconds=values["seconds"],
            )
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise MetricError(f"{path} is no evaluation, or it is damaged ({error})") from error


def _side(summary: Summary) -> dict[str, Any]:
    return json.loads(json.dumps(summary.about, default=_plain))  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.tolist()
    if isinstance(value, Path):
        return value.name
    return str(value)


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions and settings that could matter for the last digits."""
    where = torch.device(device)
    out: dict[str, Any] = {
        "undiffuse": undiffuse.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "device": where.type,
        "threads": torch.get_num_threads(),
        "tf32": False,  # extractors switch it off, see `exact_arithmetic`
        "extractor_precision": "float32",
    }
    if where.type == "cuda":
        out["device_name"] = torch.cuda.get_device_name(where)
    return out
