"""What a metric returns: a number with its error, the counts behind it, what is wrong with it, and its provenance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torch import Tensor

__all__ = ["Card", "Estimate", "Influence", "MetricError", "check_same_protocol", "paired_error"]


class MetricError(ValueError):
    """The input cannot give a number: the message says what was given, what was expected and what to do."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Where features came from: everything that, if changed, would change the numbers.

    `protocol`       name of the whole preparation, "adm" for OpenAI's evaluator
    `distance`       what a Frechet distance of these features is called; "FID" only for the 2015 Inception's pool_3
    `extractor`      the network
    `weights_sha256` of the weights' file, or of the tensors where there is no file; None for a plain function
    `layer`          which of its outputs, `dimension` numbers an image
    `resize`         how an image comes to the network's size; `normalisation` how 0..255 comes to its range
    `dtype`          arithmetic of the network
    `details`        anything else worth recording (solver, seeds, hashes of files, versions): never compared
    """

    protocol: str
    distance: str
    extractor: str
    layer: str
    dimension: int
    weights_sha256: str | None = None
    resize: str = "none"
    normalisation: str = "none"
    dtype: str = "float32"
    details: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def with_details(self, **details: Any) -> Card:
        """The same card with further details."""
        return replace(self, details={**self.details, **details})

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Card:
        """Back from `to_dict`; MetricError if the fields are not those of a card."""
        names = {f.name for f in fields(cls)}
        try:
            if unknown := sorted(set(values) - names):
                raise TypeError(f"unknown fields {', '.join(unknown)}")
            return cls(**values)
        except TypeError as error:
            raise MetricError(f"this is not a card of features: {error}") from error


def check_same_protocol(samples: Card | None, reference: Card | None) -> None:
    """MetricError if two sets of features are known to have been made differently.

    Features without a card pass: their maker vouches for them.
    """
    if samples is None or reference is None or samples == reference:
        return
    names = [f.name for f in fields(Card) if f.compare]
    different = [
        f"{name} {getattr(samples, name)!r} against {getattr(reference, name)!r}"
        for name in names
        if getattr(samples, name) != getattr(reference, name)
    ]
    raise MetricError(
        f"samples and reference were prepared differently ({'; '.join(different)}), so no number would mean anything; "
        "make the features of one of them again with the other's protocol and weights"
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Influence:
    """How much each image moves a value, to first order: `samples` [N] and `reference` [M].

    The value's variance is var(samples) / N + var(reference) / M; None for a side that counts as known.
    """

    samples: Tensor | None = None
    reference: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One metric's value.

    `value`        as defined, uncorrected
    `stderr`       its standard error, None where none is known; `stderr_method` says how it was found
    `n`            images evaluated; `n_reference` images compared with, None where unknown or not needed
    `bias`         estimated part of `value` that is due to the finite number of images, None where not estimated
    `extra`        further numbers of the same computation (corrected values, ranks, spreads)
    `warnings`     what a reader must know before trusting the value
    `card`         how the features were made
    `influence`    of each image, where it is known: for `paired_error`, never stored
    """

    name: str
    value: float
    stderr: float | None = None
    stderr_method: str | None = None
    n: int
    n_reference: int | None = None
    bias: float | None = None
    extra: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    card: Card | None = None
    influence: Influence | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise MetricError(f"{self.name} came out as {self.value}, which is not a number; check the features")

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        error = f" +- {self.stderr:.2g}" if self.stderr is not None else ""
        return f"{self.name} {self.value:.6g}{error}"

    def with_warnings(self, warnings: Iterable[str]) -> Estimate:
        """The same estimate with further warnings."""
        return replace(self, warnings=(*self.warnings, *warnings))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = asdict(replace(self, influence=None))
        del values["influence"]
        return values


def paired_error(a: Estimate, b: Estimate) -> float | None:
    """Standard error of a.value - b.value, two values of the same metric against the same reference images.

        var = var_i(a_i - b_i) / N + var_j(a_j - b_j) / M

    over the influences of sample i and of reference image j on each. What both share, the reference images and (where
    image i of both began with the same noise and class) part of the samples' chance, cancels; where nothing is shared
    it is the error of independent values. None where influences are not known or the counts differ.
    """
    if a.influence is None or b.influence is None:
        return None
    variance = 0.0
    for ours, theirs in (
        (a.influence.samples, b.influence.samples),
        (a.influence.reference, b.influence.reference),
    ):
        if ours is None and theirs is None:
            continue
        if ours is None or theirs is None or len(ours) != len(theirs) or len(ours) < 2:
            return None
        variance += float((ours - theirs).double().var()) / len(ours)
    return math.sqrt(variance)
