"""The records that ship: the page is made from them, and the oracle tier measures what they say."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from undiffuse.reproduce import CLAIMS, ledger
from undiffuse.reproduce.page import forest, page
from undiffuse.reproduce.store import SHIPPED, read_records

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "claims.md"
RECORDS = read_records(SHIPPED)
QUICK = {"C16", "C34", "C69", "C71", "C73", "C78", "C79", "C80"}
ORACLE = [(claim, claim.recipe("oracle")) for claim in CLAIMS if claim.recipe("oracle") is not None]


def test_the_page_says_what_the_records_say() -> None:
    """After a change: `undiffuse reproduce --page docs/claims.md`."""
    figures = [name for name in ("claims.png", "claims-curves.png") if (PAGE.parent / name).is_file()]
    assert PAGE.read_text(encoding="utf-8") == page(RECORDS, figures)


def test_every_record_is_of_a_recipe_as_it_is_now() -> None:
    recipes = {(claim.id, recipe.tier): recipe.digest for claim in CLAIMS for recipe in claim.recipes}
    assert {key: record["recipe"] for key, record in RECORDS.items()} == {key: recipes[key] for key in RECORDS}


def test_intervals_that_are_cut_in_the_figure_still_show_both_ends() -> None:
    """The bar of a null result crosses 0, also if its mean lies outside of the figure."""
    for panel in forest(RECORDS):
        points, bars = panel.lines.get("null", ()), panel.errors.get("null", ())
        for (x, y), (below, above) in zip(points, bars, strict=True):  # type: ignore[misc]
            if x == x and "effects" in panel.title:
                assert -10 <= y - below <= y + above <= 10
                # Seeds that agree exactly have an interval of one point; a cut may not make one.
                assert below + above > 0 or -10 < y < 10


def test_most_claims_have_a_verdict() -> None:
    found = [verdict.verdict for verdict in ledger()]
    assert sum(verdict in ("reproduced", "refuted", "null", "untestable") for verdict in found) >= 45


@pytest.mark.parametrize(
    ("claim", "recipe"),
    [
        pytest.param(claim, recipe, id=claim.id, marks=() if claim.id in QUICK else pytest.mark.slow)
        for claim, recipe in ORACLE
    ],
)
def test_the_oracle_tier_measures_what_the_records_say(claim: Any, recipe: Any) -> None:
    """The first seed, measured anew."""
    record = RECORDS.get((claim.id, "oracle"))
    if record is None:
        pytest.fail(f"{claim.id} has no record: undiffuse reproduce {claim.id}")
    module, _, name = recipe.method.partition(":")
    method = getattr(importlib.import_module(f"undiffuse.reproduce.methods.{module}"), name)
    seed = recipe.seeds[0]
    effects = method(None, seed, **recipe.settings)["effects"]
    kept = record["seeds"][str(seed)]["effects"]
    for part in recipe.parts:
        assert effects[part.effect] == pytest.approx(kept[part.effect], rel=1e-3, abs=0.02 * part.smallest)
