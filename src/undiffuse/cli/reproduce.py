"""`undiffuse reproduce`: runs the claims of the literature and says which of them are reproduced."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from undiffuse.cli.console import say
from undiffuse.cli.training_options import naming_options
from undiffuse.reproduce import ledger
from undiffuse.reproduce.store import SHIPPED, read_records
from undiffuse.reproduce.text import details, listing, plan_text
from undiffuse.reproduce.verdict import Verdict, verdict_of
from undiffuse.util.text import compared_time, duration


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    out = Path(args.out)
    if args.page:
        from undiffuse.reproduce.page import write_page

        for file in write_page(args.page, read_records(SHIPPED, out / "records")):
            say(f"{file} written")
        return 0
    if args.list:
        return _list(args, out)
    from undiffuse.reproduce.run import Run, choose, execute, pieces, plan

    with naming_options(claims="CLAIM"):
        chosen = choose(args.claims, args.tier)
    work = Run(out, args.device)
    jobs = plan(work, chosen)
    cut = pieces(jobs)
    if args.plan:
        say(plan_text(cut, args.tier))
        return 0
    if args.piece is not None:
        if args.piece > len(cut):
            raise ValueError(f"--piece {args.piece}: there are {len(cut)} pieces; see --plan")
        jobs = cut[args.piece - 1]
    left = sum(job.minutes for job in jobs if not job.done)
    if left > 1:
        say(f"about {duration(60 * left)} expected; a stopped run resumes, and --plan shows it in pieces")
    begin = time.monotonic()
    execute(work, jobs, say)
    if left > 1:
        say(compared_time(60 * left, time.monotonic() - begin))
    records = read_records(out / "records")
    verdicts = [verdict_of(claim, recipe, records.get((claim.id, recipe.tier))) for claim, recipe in chosen]
    if args.json:
        say(json.dumps([_as_json(verdict) for verdict in verdicts], indent=1))
    elif len(verdicts) <= 5:
        for verdict in verdicts:
            key = (verdict.claim.id, verdict.recipe.tier if verdict.recipe is not None else "")
            say(details(verdict, records.get(key)))
    else:
        say(listing(verdicts))
    return 0


def _list(args: argparse.Namespace, out: Path) -> int:
    wanted = {name.upper() for name in args.claims}
    verdicts = [
        verdict
        for verdict in ledger(out)
        if (not wanted or verdict.claim.id in wanted)
        and (args.tier is None or verdict.claim.recipe(args.tier) is not None)
    ]
    unknown = wanted - {verdict.claim.id for verdict in verdicts}
    if unknown and args.tier is None:
        raise ValueError(f"there is no claim {sorted(unknown)[0]}; `undiffuse reproduce --list` shows all")
    if args.json:
        say(json.dumps([_as_json(verdict) for verdict in verdicts], indent=1))
    elif wanted:
        say("\n\n".join(details(verdict) for verdict in verdicts))
    else:
        say(listing(verdicts))
    return 0


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "claim": verdict.claim.id,
        "title": verdict.claim.title,
        "published": verdict.claim.published,
        "mark": verdict.claim.mark,
        "tier": None if verdict.recipe is None else verdict.recipe.tier,
        "recipe": None if verdict.recipe is None else verdict.recipe.digest,
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "parts": [
            {
                "says": found.part.says,
                "unit": found.part.unit,
                "smallest": found.part.smallest,
                "interval": None if found.interval is None else asdict(found.interval),
                "verdict": found.verdict,
                "reason": found.reason,
            }
            for found in verdict.parts
        ],
    }
