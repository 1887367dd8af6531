"""The claims of the literature as a ledger that can be run: `undiffuse reproduce`.

Every claim has its published figure and, where it can be tested, a recipe that was written down before it was run. A
recipe's result is a record with an effect for each seed; the verdict follows from the record and the recipe alone.

    from undiffuse.reproduce import reproduce
    for verdict in reproduce(["C17", "C69"]):
        print(verdict.claim.id, verdict.verdict)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from undiffuse.reproduce.claim import Claim, Part, Recipe
from undiffuse.reproduce.ledger import CLAIMS
from undiffuse.reproduce.store import SHIPPED, read_records
from undiffuse.reproduce.verdict import Interval, Verdict, overall, verdict_of

__all__ = ["CLAIMS", "Claim", "Interval", "Part", "Recipe", "Verdict", "ledger", "reproduce"]


def ledger(out: str | Path | None = None) -> list[Verdict]:
    """Returns the verdict on every claim, from the records that ship with the package.

    Args:
        out: Folder of a reproduction of your own, whose records replace the shipped ones.
    """
    records = read_records(SHIPPED, *([Path(out) / "records"] if out is not None else []))
    return [overall(claim, records) for claim in CLAIMS]


def reproduce(
    claims: Sequence[str] = (),
    *,
    tier: str | None = None,
    out: str | Path = "reproduction",
    device: str = "auto",
    tell: Callable[[str], None] = lambda text: None,
) -> list[Verdict]:
    """Runs the recipes of claims and returns their verdicts. The same call resumes a run that was stopped.

    Args:
        claims: Ids, for example ["C17", "C69"]; none means all.
        tier: "arithmetic" (seconds), "oracle" (minutes), "cpu" (hours) or "gpu". By default all but "gpu"; for named
            claims the first tier that they have.
        out: Folder for records, measurements and trained networks.
        device: Device of the tier "gpu": "auto", "cpu" or "cuda".
        tell: Called with a line after each training and each measurement.

    Raises:
        ConfigError: A claim or tier does not exist, or a claim cannot be tested there.
    """
    from undiffuse.reproduce.run import Run, choose, execute, plan

    run, chosen = Run(out, device), choose(claims, tier)
    execute(run, plan(run, chosen), tell)
    records = read_records(run.records.records)
    return [verdict_of(claim, recipe, records.get((claim.id, recipe.tier))) for claim, recipe in chosen]
