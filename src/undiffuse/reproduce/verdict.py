"""From the effects of several seeds to a verdict with its interval. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from undiffuse.reproduce.claim import Claim, Part, Recipe

REPRODUCED, REFUTED, NULL, UNTESTABLE, OPEN = "reproduced", "refuted", "null", "untestable", "not run"
VERDICTS = (REPRODUCED, REFUTED, NULL, UNTESTABLE, OPEN)
# 97.5 % points of Student's t for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Interval:
    """The mean of an effect over seeds with its 95 % interval (Student's t); one value alone has no width.

    Attributes:
        mean: Mean over the seeds.
        low: Lower end.
        high: Upper end.
        count: Number of seeds.
    """

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Returns the interval of values that are independent of each other."""
        count, mean = len(values), sum(values) / len(values)
        if count == 1:
            return cls(mean, mean, mean, 1)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
        half = (_T[count - 2] if count - 2 < len(_T) else 1.96) * deviation / math.sqrt(count)
        return cls(mean, mean - half, mean + half, count)


@dataclass(frozen=True)
class PartVerdict:
    """The verdict on one part of a claim.

    Attributes:
        part: The part.
        interval: The measured effect; None if it could not be measured.
        verdict: "reproduced", "refuted" or "null".
        reason: Why.
    """

    part: Part
    interval: Interval | None
    verdict: str
    reason: str


def judge(part: Part, values: Sequence[float]) -> PartVerdict:
    """Compares an effect with what was predicted.

    "greater" is reproduced if the interval is above 0 and the mean at least the smallest effect worth claiming, and
    refuted by the same distance on the other side. "equal" is reproduced if the whole interval is within the smallest
    effect, and refuted if the whole interval is beyond it. Everything else is a null result.

    Args:
        part: The prediction.
        values: The effect for each seed.
    """
    if not all(math.isfinite(value) for value in values):
        return PartVerdict(part, None, NULL, "the effect is not finite")
    found, least = Interval.of(values), part.smallest
    if part.expects == "equal":
        if -least < found.low and found.high < least:
            return PartVerdict(part, found, REPRODUCED, "no difference worth claiming")
        if found.low > least or found.high < -least:
            return PartVerdict(part, found, REFUTED, "there is a difference")
        return PartVerdict(part, found, NULL, "not resolved")
    if found.low > 0 and found.mean >= least:
        return PartVerdict(part, found, REPRODUCED, "as predicted")
    if found.high < 0 and found.mean <= -least:
        return PartVerdict(part, found, REFUTED, "the opposite")
    within = -least < found.low and found.high < least
    return PartVerdict(part, found, NULL, "smaller than worth claiming" if within else "not resolved")


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim at one tier.

    Attributes:
        claim: The claim.
        recipe: The recipe; None for a claim without a test.
        verdict: One of `VERDICTS`.
        reason: Why.
        parts: The verdicts on the parts, if it was run.
    """

    claim: Claim
    recipe: Recipe | None
    verdict: str
    reason: str
    parts: tuple[PartVerdict, ...] = ()


def verdict_of(claim: Claim, recipe: Recipe, record: Mapping[str, Any] | None) -> Verdict:
    """Returns the verdict that a record gives.

    Args:
        claim: The claim.
        recipe: Its recipe, as it is now.
        record: The record of `store.Records`, or None.

    Returns:
        The verdict; "not run" with the reason if seeds are missing, or if the recipe was changed after it was run.
    """
    if record is None:
        return Verdict(claim, recipe, OPEN, "no record")
    if record.get("recipe") != recipe.digest:
        return Verdict(claim, recipe, OPEN, "the recipe was changed after this record was made: run it again")
    rows = record["seeds"]
    missing = [seed for seed in recipe.seeds if str(seed) not in rows]
    if missing:
        return Verdict(claim, recipe, OPEN, f"seeds missing: {', '.join(map(str, missing))}")
    parts = tuple(
        judge(part, [_number(rows[str(seed)]["effects"][part.effect]) for seed in recipe.seeds])
        for part in recipe.parts
    )
    each = [part.verdict for part in parts]
    if REFUTED in each:
        return Verdict(claim, recipe, REFUTED, _share(each, REFUTED), parts)
    if NULL in each:
        return Verdict(claim, recipe, NULL, _share(each, REPRODUCED), parts)
    return Verdict(claim, recipe, REPRODUCED, "", parts)


def overall(claim: Claim, records: Mapping[tuple[str, str], Mapping[str, Any]]) -> Verdict:
    """Returns the verdict on a claim: that of its highest tier with a complete record, otherwise of its first recipe.

    Args:
        claim: The claim.
        records: Records by claim and tier.
    """
    if claim.untestable:
        return Verdict(claim, None, UNTESTABLE, claim.untestable)
    found = [verdict_of(claim, recipe, records.get((claim.id, recipe.tier))) for recipe in claim.recipes]
    run = [verdict for verdict in found if verdict.verdict != OPEN]
    stale = [verdict for verdict in found if verdict.reason != "no record"]
    return run[-1] if run else (stale or found)[0]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _share(each: Sequence[str], verdict: str) -> str:
    return "" if len(each) == 1 else f"{each.count(verdict)} of {len(each)} parts {verdict}"
