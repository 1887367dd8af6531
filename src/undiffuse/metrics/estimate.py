"""Defines what a metric returns: a value with its error, counts, warnings and provenance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torch import Tensor

__all__ = ["Card", "Estimate", "Influence", "MetricError", "check_same_protocol", "paired_error"]


class MetricError(ValueError):
    """The input cannot give a number; the text says what was given, what is expected and what to do."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Describes how features were made: everything that, if changed, would change the numbers.

    Args:
        protocol: Name of the whole preparation, "adm" for OpenAI's evaluator.
        distance: Name of a Frechet distance of these features; "FID" only for pool_3 of the 2015 Inception.
        extractor: Name of the network.
        layer: Which of its outputs is used.
        dimension: Numbers in the features of one image.
        weights_sha256: Hash of the weights' file, or of the tensors if there is no file; None for a plain function.
        resize: How an image is brought to the network's size.
        normalisation: How values 0..255 are brought to the network's range.
        dtype: Arithmetic of the network.
        details: Anything else worth recording (solver, seeds, hashes of files, versions). It is never compared.
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
        """Returns the same card with further details."""
        return replace(self, details={**self.details, **details})

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Card:
        """Reads the result of `to_dict`; raises MetricError if the fields are not those of a card."""
        names = {f.name for f in fields(cls)}
        try:
            if unknown := sorted(set(values) - names):
                raise TypeError(f"unknown fields {', '.join(unknown)}")
            for name, value in values.items():
                expected = {"dimension": int, "details": Mapping, "weights_sha256": str | None}.get(name, str)
                if not isinstance(value, expected):  # type: ignore[arg-type]
                    raise TypeError(f"{name} is {value!r:.60}")
            return cls(**values)
        except TypeError as error:
            raise MetricError(f"this is not a card of features: {error}") from error


def check_same_protocol(samples: Card | None, reference: Card | None) -> None:
    """Raises MetricError if two sets of features are known to have been made differently.

    Features without a card pass, because nothing is known of them.
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
    """Holds how much each image moves a value, to first order.

    The variance of the value is var(samples) / N + var(reference) / M.

    Args:
        samples: Influence of each sample, [N]; None if the samples count as known exactly.
        reference: Influence of each reference image, [M]; None if the reference counts as known exactly.
    """

    samples: Tensor | None = None
    reference: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Holds the value of one metric.

    Args:
        name: Name of the metric.
        value: The value as defined, uncorrected.
        stderr: Its standard error; None if none is known.
        stderr_method: How the standard error was found.
        n: Images that were evaluated.
        n_reference: Images they were compared with; None if unknown or not needed.
        bias: Estimated part of `value` that is due to the finite number of images; None if not estimated.
        extra: Further numbers of the same computation (corrected values, ranks, spreads).
        settings: Options that the value depends on.
        warnings: What a reader must know before trusting the value.
        card: How the features were made.
        influence: Influence of each image, where it is known, for `paired_error`; never stored.
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
        """Returns the same estimate with further warnings."""
        return replace(self, warnings=(*self.warnings, *warnings))

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        values = asdict(replace(self, influence=None))
        del values["influence"]
        return values


def paired_error(a: Estimate, b: Estimate) -> float | None:
    """Returns the standard error of a.value - b.value, for one metric against the same reference images.

        var = var_i(a_i - b_i) / N + var_j(a_j - b_j) / M

    over the influences of sample i and of reference image j on each value. What both share cancels: the reference
    images, and part of the samples' randomness if image i of both began with the same noise and class. If nothing is
    shared, this is the error of independent values.

    Args:
        a: One value.
        b: The other value.

    Returns:
        The standard error; None if influences are not known or the counts differ.
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
