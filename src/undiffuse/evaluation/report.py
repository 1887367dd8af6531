"""Reports of evaluations: values with their provenance, as JSON, text and HTML."""

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
from undiffuse.evaluation.text import report_html, report_text
from undiffuse.metrics import Card, Estimate, MetricError
from undiffuse.util.files import atomic_file
from undiffuse.util.records import parse_json
from undiffuse.util.text import shown

__all__ = ["Report", "environment"]

FORMAT = 1


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """One evaluation of one set of samples against one reference, by one or more extractors.

    Args:
        name: What the evaluation is called in tables.
        samples: Where the samples came from: kind, counts, hashes, sampler settings and seeds.
        reference: The same of the reference.
        estimates: All values, each with its card.
        skipped: Why a metric was not computed, by "extractor: metric".
        environment: Versions, device, threads.
        seconds: Duration of each stage.
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
        """Makes a report of the evaluations by each extractor.

        Args:
            name: What the evaluation is called.
            parts: Samples, reference and result of each extractor. The sides' provenance completes every card.
            seconds: Duration of each stage.
            device: Where it ran.
        """
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
        """What two reports must share for their numbers to compare: the reference and the extractors."""
        cards = dict.fromkeys(
            f"{e.card.extractor} {e.card.protocol} {e.card.weights_sha256}"
            for e in self.estimates
            if e.card is not None
        )
        reference = self.reference
        identity = reference.get("statistics_sha256") or reference.get("sha256") or reference.get("file_sha256")
        return (str(identity), *cards)

    def get(self, name: str) -> Estimate | None:
        """Returns the estimate of this name; None if there is none."""
        return next((estimate for estimate in self.estimates if estimate.name == name), None)

    def __repr__(self) -> str:
        return report_text(self, full=False)

    def _repr_html_(self) -> str:
        return report_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of the JSON file."""
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
        """Writes the JSON file atomically; FileExistsError if it exists, unless `overwrite`."""
        with atomic_file(path, overwrite=overwrite) as file:
            file.write(self.to_json().encode() + b"\n")
        return Path(path)

    def to_json(self) -> str:
        """Returns the content of the JSON file as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False, default=_plain)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Reads a file of `save`; MetricError for anything else."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise MetricError(f"{path} is no evaluation, or it is damaged ({error})") from error

    @classmethod
    def from_json(cls, text: str, where: str = "the text") -> Report:
        """Reads the text of `to_json`; MetricError, which calls it `where`, for anything else."""
        try:
            values = parse_json(text, where)
            if not isinstance(values, dict) or values.get("kind") != "evaluation" or values.get("format") != FORMAT:
                raise MetricError(f"{where} is no evaluation of this version; make it by `undiffuse evaluate`")
            estimates = []
            for entry in values["metrics"]:
                card = Card.from_dict(entry.pop("card")) if entry.get("card") else None
                _check_entry(entry)
                estimates.append(Estimate(**{**entry, "warnings": tuple(entry["warnings"]), "card": card}))
            for name in ("samples", "reference", "skipped", "environment", "seconds"):
                _check("a table", values[name], name, dict)
            _check("a text", values["name"], "name", str)
            for name, seconds in values["seconds"].items():
                _check("a number", seconds, name, *_NUMBER)
            names = ("name", "samples", "reference", "skipped", "environment", "seconds")
            made = cls(estimates=estimates, **{name: values[name] for name in names})
            report_text(made)  # what cannot be shown is damaged as well
            return made
        except MetricError:
            raise
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            raise MetricError(f"{where} is no evaluation, or it is damaged ({error})") from error


_NUMBER = (int, float)


def _check(what: str, value: object, name: str, *types: type) -> None:
    """Raises TypeError unless a value of the file has one of the types; truth values are no numbers."""
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise TypeError(f"{name} is {shown(value, 40)}, not {what}")


def _check_entry(entry: Mapping[str, Any]) -> None:
    """Raises TypeError unless the fields of an estimate have the types that they are written with."""
    _check("a text", entry["name"], "name", str)
    _check("a number", entry["value"], "value", *_NUMBER)
    _check("a number", entry["n"], "n", int)
    for name in ("stderr", "bias", "n_reference"):
        if entry.get(name) is not None:
            _check("a number", entry[name], name, *_NUMBER)
    for name in ("extra", "settings"):
        _check("a table", entry.get(name, {}), name, dict)
    for name, value in entry.get("extra", {}).items():
        _check("a number", value, name, *_NUMBER, type(None))
    _check("a list", entry["warnings"], "warnings", list)
    for text in entry["warnings"]:
        _check("a text", text, "warnings", str)


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
    """Returns versions and settings that could matter for the last digits."""
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
