"""Verdicts and plans as text for people: the ledger, the details of a claim, and the plan of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from undiffuse.reproduce.verdict import REFUTED, REPRODUCED, VERDICTS, PartVerdict, Verdict
from undiffuse.util.tables import table
from undiffuse.util.text import duration

if TYPE_CHECKING:
    from undiffuse.reproduce.run import Job


def effect_text(found: PartVerdict) -> str:
    """Returns an effect with its interval, for example "0.31 [0.22, 0.40] bits/dim"."""
    if found.interval is None:
        return found.reason
    i = found.interval
    span = "" if i.count == 1 else f" [{i.low:.3g}, {i.high:.3g}]"
    return f"{i.mean:.3g}{span} {found.part.unit}"


def verdict_text(verdict: Verdict) -> str:
    """Returns the verdict, with "in part" if the claim says more than what is tested."""
    partly = verdict.recipe is not None and verdict.recipe.untested and verdict.verdict in (REPRODUCED, REFUTED)
    return f"{verdict.verdict} in part" if partly else verdict.verdict


def listing(verdicts: Sequence[Verdict]) -> str:
    """Returns the ledger as a table with a line for each claim and the number of each verdict."""
    rows = [
        [v.claim.id, v.recipe.tier if v.recipe is not None else "-", verdict_text(v), v.claim.title] for v in verdicts
    ]
    return f"{table(rows, ('claim', 'tier', 'verdict', 'what is claimed'))}\n\n{counts(verdicts)}"


def counts(verdicts: Sequence[Verdict]) -> str:
    """Returns how many claims have each verdict, as a sentence."""
    found = Counter(verdict_text(v) for v in verdicts)
    names = [name for verdict in VERDICTS for name in (verdict, f"{verdict} in part")]
    parts = [f"{found[name]} {name}" for name in names if found[name]]
    return f"{len(verdicts)} claims: {', '.join(parts)}."


def details(verdict: Verdict, record: Mapping[str, Any] | None = None) -> str:
    """Returns everything about one claim.

    Args:
        verdict: The verdict.
        record: Its record, for the measured numbers.
    """
    claim, recipe = verdict.claim, verdict.recipe
    lines = [f"{claim.id}  {claim.title}", f"  source     {claim.source}", f"  published  {claim.published}"]
    lines.append(f"  verdict    {verdict_text(verdict)}" + (f" ({verdict.reason})" if verdict.reason else ""))
    for found in verdict.parts:
        lines.append(f"    {found.part.says}\n      {effect_text(found)}: {found.verdict}, {found.reason}")
    if recipe is not None:
        lines.append(f"  tested as  {recipe.tier}, {len(recipe.seeds)} seeds, about {recipe.minutes:g} minutes")
        lines += [f"  differs    {recipe.differs}"] if recipe.differs else []
        lines += [f"  untested   {recipe.untested}"] if recipe.untested else []
        lines.append(f"  recipe     {recipe.digest}")
    if record is not None:
        first = next(iter(record["seeds"].values()))
        lines += [f"  {name}: {value}" for name, value in first.get("numbers", {}).items() if name != "series"]
    return "\n".join(lines)


def plan_text(parts: Sequence[Sequence[Job]], tier: str | None) -> str:
    """Returns the plan of a run in pieces, with the command for each piece and the expected time.

    Args:
        parts: The jobs, cut into pieces.
        tier: The tier that was chosen, for the commands.
    """
    option = f" --tier {tier}" if tier else ""
    lines, total = [], 0.0
    for number, jobs in enumerate(parts, 1):
        left = [job for job in jobs if not job.done]
        minutes = sum(job.minutes for job in left)
        total += minutes
        state = f"{minutes:.1f} min" if left else "done"
        lines.append(f"piece {number:2}  {state:9} undiffuse reproduce{option} --piece {number}")
        trained = [f"{job.name}-{job.seed}" for job in left if job.kind == "train"]
        measured = sorted({job.name for job in left if job.kind == "measure"})
        lines += [f"          train {', '.join(trained)}"] if trained else []
        lines += [f"          measure {', '.join(measured)}"] if measured else []
    device = "of a GPU" if tier == "gpu" else "of one thread of a CPU"
    return "\n".join([*lines, f"about {duration(60 * total)} {device} in all"])


def outcome_row(verdict: Verdict) -> list[str]:
    """Returns the cells of a claim in the table of the documentation's page."""
    claim = verdict.claim
    ours = "; ".join(effect_text(found) for found in verdict.parts) or "-"
    tier = "-" if verdict.recipe is None else verdict.recipe.tier
    return [claim.id, claim.title, f"{claim.published} [{claim.mark}]", ours, tier, verdict_text(verdict)]
