"""The rule of the verdicts, on effects whose answer is plain."""

from __future__ import annotations

import math

import pytest

from undiffuse.reproduce import CLAIMS, Interval
from undiffuse.reproduce.claim import Part
from undiffuse.reproduce.ledger.base import more, same
from undiffuse.reproduce.store import rounded
from undiffuse.reproduce.verdict import judge, overall, verdict_of

GREATER = more("effect", "It is larger.", 0.1, "units")
EQUAL = same("effect", "They are equal.", 0.1, "units")


def test_the_interval_is_students() -> None:
    found = Interval.of([1.0, 2.0, 3.0])
    assert found.mean == pytest.approx(2.0)
    assert found.high - found.mean == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)
    assert Interval.of([0.5]) == Interval(0.5, 0.5, 0.5, 1)


@pytest.mark.parametrize(
    ("part", "values", "verdict", "reason"),
    [
        (GREATER, [0.3, 0.31, 0.32], "reproduced", "as predicted"),
        (GREATER, [0.05, 0.051, 0.052], "null", "smaller"),
        (GREATER, [0.9, -0.2, 0.3], "null", "not resolved"),
        (GREATER, [-0.3, -0.31, -0.32], "refuted", "opposite"),
        (GREATER, [-0.05, -0.051, -0.052], "null", "smaller"),
        (GREATER, [0.2], "reproduced", "as predicted"),
        (EQUAL, [0.01, -0.01, 0.02], "reproduced", "no difference"),
        (EQUAL, [0.3, 0.31, 0.32], "refuted", "difference"),
        (EQUAL, [-0.3, -0.31, -0.32], "refuted", "difference"),
        (EQUAL, [0.05, -0.2, 0.1], "null", "not resolved"),
        (GREATER, [0.3, math.nan, 0.3], "null", "not finite"),
    ],
)
def test_the_rule(part: Part, values: list[float], verdict: str, reason: str) -> None:
    found = judge(part, values)
    assert found.verdict == verdict
    assert reason in found.reason


def _record(effects: dict[str, float]) -> dict[str, object]:
    claim = next(claim for claim in CLAIMS if claim.id == "C13")
    return {"recipe": claim.recipes[0].digest, "seeds": {"0": {"effects": effects}}}


GOOD = {"gap closes": 0.5, "share of first steps": 0.4, "outside the bounds": 0.0, "fraction falls": 0.7}


@pytest.mark.parametrize(
    ("change", "verdict", "reason"),
    [
        ({}, "reproduced", ""),
        ({"gap closes": 0.1}, "null", "3 of 4 parts reproduced"),
        ({"gap closes": -0.5}, "refuted", "1 of 4 parts refuted"),
    ],
)
def test_a_claim_is_reproduced_if_all_its_parts_are(change: dict[str, float], verdict: str, reason: str) -> None:
    claim = next(claim for claim in CLAIMS if claim.id == "C13")
    found = verdict_of(claim, claim.recipes[0], _record({**GOOD, **change}))
    assert (found.verdict, found.reason) == (verdict, reason)


def test_a_record_of_a_changed_recipe_gives_no_verdict() -> None:
    claim = next(claim for claim in CLAIMS if claim.id == "C13")
    record = {**_record(GOOD), "recipe": "0" * 16}
    found = verdict_of(claim, claim.recipes[0], record)
    assert found.verdict == "not run"
    assert "changed after" in found.reason
    assert overall(claim, {("C13", "arithmetic"): record}).verdict == "not run"


def test_missing_seeds_are_named() -> None:
    claim = next(claim for claim in CLAIMS if claim.id == "C69")
    record = {"recipe": claim.recipes[0].digest, "seeds": {"1": {"effects": {}}}}
    assert verdict_of(claim, claim.recipes[0], record).reason == "seeds missing: 2, 3"


def test_what_is_not_finite_is_kept_as_nothing() -> None:
    assert rounded({"a": math.nan, "b": [1.23456789012, math.inf]}) == {"a": None, "b": [1.234568, None]}
