"""`undiffuse sweep --solvers ... --calls ...`: quality against network calls, as reports, table, plot and frontier."""

from __future__ import annotations

import argparse
import csv
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from undiffuse import frontiers
from undiffuse.cli import tuned
from undiffuse.cli.compare import LOW_IS_GOOD
from undiffuse.cli.console import duration, fields, say
from undiffuse.cli.reporting import markdown, number, with_error
from undiffuse.cli.sweeping import (
    PLOT,
    SETTINGS,
    TABLE,
    Plan,
    measured,
    same_sweep,
    sampler_of,
    save_reports,
    settings_of,
)
from undiffuse.cli.tune_steps import verdict
from undiffuse.distributed import Ranks, session
from undiffuse.evaluation import Report
from undiffuse.frontiers import Frontier, Point
from undiffuse.grids import grid
from undiffuse.methods import METHODS, method, read_options
from undiffuse.metrics import Estimate, MetricError, paired_error
from undiffuse.pictures import draw_curve, save_png
from undiffuse.pipelines.pipeline import Pipeline
from undiffuse.util.files import atomic_file

SOLVERS = ("ancestral", "dpmpp-2m", "dpmpp-2m-sde", "unipc")
CALLS, AGAINST = (5, 10, 20, 50), "ancestral:250"
FRONTIER, NUMBERS = "frontier.json", "table.csv"


@dataclass(frozen=True)
class Row:
    """A setting that was measured: its point, what decided by, and the whole report."""

    point: Point
    report: Report


def run(args: argparse.Namespace) -> int:
    """The command."""
    begin = time.monotonic()
    for name in ("solver", "steps", "grid", "solver_options", "eta"):
        if getattr(args, name):
            raise ValueError(f"a frontier takes its samplers from --solvers, --calls and --grids: leave --{name} out")
    folder = Path(args.out or "sweep")
    scales, against = args.scales or (0.0,), AGAINST if args.against is None else args.against
    solvers, calls, grids = args.solvers or SOLVERS, args.calls or CALLS, args.grids or ["own"]
    about = settings_of(args) | {
        "solvers": list(solvers), "calls": list(calls), "grids": list(grids), "scales": list(scales),
        "against": against, "by": args.by,
    }  # fmt: skip
    same_sweep(folder / SETTINGS, about, args.overwrite)
    floor, rows, metric = None, [], ""
    with session(args.device) as ranks:
        first = sampler_of(args, Plan("", {"guidance": scales[0]}), ranks)
        plans, left_out = planned(first, solvers, calls, grids, scales)
        long = [_long(against, scale) for scale in scales] if against != "none" else []
        for reference in long:  # a mistake in it is told before anything is sampled
            sampler_of(args, reference, ranks)
        if ranks.is_main and left_out:
            say(fields([("left out", text) for text in left_out]))
        plans = with_levels(args, plans, ranks)
        for plan, report, sampler in measured(args, [*plans, *long], ranks):
            metric = metric or _metric(report, args.by)  # a mistake in it is told after the first row, not the last
            if plan is None or sampler is None:
                floor = report
            else:
                rows.append((plan, report, _point(sampler, plan.label)))
        if not ranks.is_main:
            return 0
    count = len(rows) - len(long)
    against_of = {point.guidance: report for _, report, point in rows[count:]}
    done = [Row(_valued(point, report, against_of.get(point.guidance), metric), report) for _, report, point in rows]
    frontier = Frontier(
        model=first.model.digest,
        metric=metric,
        rising=not metric.startswith(LOW_IS_GOOD),
        points=tuple(row.point for row in done[:count]),
        references=tuple(row.point for row in done[count:]),
        about={
            "samples": about["count"],
            "against": rows[0][1].reference.get("where"),
            "seed": args.seed,
            "precision": args.precision,
            "clip": args.clip,
            "classes": args.classes,
            "model": Path(args.model).name,
        },
    )
    _write(folder, about, frontier, done, floor, args.model)
    kept = frontiers.keep(frontier)
    say(_table(frontier, done, floor))
    say(f"\n{folder / TABLE}, {NUMBERS}, {PLOT}, {FRONTIER} and a report for each row written after "
        f"{duration(time.monotonic() - begin)}")  # fmt: skip
    say(f"`undiffuse sample {args.model} --budget CALLS` now takes the best of these ({kept.name} in the cache)")
    return 0


def planned(
    sampler: Pipeline, solvers: Sequence[str], calls: Sequence[int], grids: Sequence[str], scales: Sequence[float]
) -> tuple[list[Plan], list[str]]:
    """Every solver on every grid with as many steps as each budget has room for, at every scale, without repetition;
    and what does not exist, with the reason. ValueError for what exists nowhere, or where nothing is left."""
    plans: dict[str, Plan] = {}
    missing: list[str] = []
    chain = sampler.model.process.chain()
    for name in solvers:
        if method(name).calls(2, method(name).settings()) is None:
            raise ValueError(
                f"--solvers {name}: it decides its number of calls by itself, so no budget can be given to it"
            )
        for spec in dict.fromkeys(METHODS[name].grid if spec == "own" else spec for spec in grids):
            for budget in calls:
                steps = steps_within(name, budget)
                try:
                    if steps is None:
                        raise ValueError(f"a step takes more than {budget} calls")
                    if tuned.images_of(spec):
                        tuned.check(name, steps)
                    else:
                        grid(chain, str(steps), spec)
                except ValueError as error:
                    if str(error).startswith(("unknown grid", "the grid")):
                        raise
                    missing.append(f"{name} with {budget} calls on {spec}: {error}")
                    continue
                for scale in scales:
                    title = f"{name} {steps} {spec}, guidance {scale:g}"
                    changes = {"solver": name, "steps": str(steps), "grid": spec, "guidance": scale}
                    plans[title] = Plan(title, changes)
    if not plans:
        raise ValueError(f"nothing is left to measure: {'; '.join(missing)}")
    return list(plans.values()), missing


def with_levels(args: argparse.Namespace, plans: Sequence[Plan], ranks: Ranks) -> list[Plan]:
    """The plans with the levels of those on a grid "tuned" chosen; without those whose levels another one has."""
    named = [plan for plan in plans if tuned.images_of(plan.changes["grid"]) is None]
    found: list[Plan] = []
    told: list[tuple[str, str]] = []
    for plan in plans:
        images = tuned.images_of(plan.changes["grid"])
        if images is None:
            found.append(plan)
            continue
        spec, gain = "", ""
        if ranks.is_main:
            say(f"{plan.title}: choosing levels ...")
            sampler = sampler_of(args, replace(plan, changes={**plan.changes, "grid": "logsnr"}), ranks)
            chosen = tuned.kept(sampler, int(plan.changes["steps"]), images, args.seed, args.classes, args.cache)
            spec, gain = chosen.spec, verdict(chosen, plan.changes["solver"])
        spec = ranks.broadcast_json(spec)
        changes = {**plan.changes, "grid": spec}
        same = next((other.title for other in (*named, *found) if other.changes == changes), None)
        if same is None:
            found.append(Plan(plan.title, changes, label=plan.changes["grid"]))
        told.append((plan.title, gain + (f"; measured once, as {same}" if same else "")))
    if ranks.is_main and told:
        say(fields(told))
    return found


def steps_within(name: str, budget: int) -> int | None:
    """The most steps of a method that take at most `budget` network calls; None where not even one does."""
    settings = method(name).settings()
    fits = [n for n in range(1, budget + 1) if (method(name).calls(n, settings) or budget + 1) <= budget]
    return max(fits, default=None)


def _long(text: str, scale: float) -> Plan:
    name, colon, steps = text.partition(":")
    if not colon or not steps or name not in METHODS:
        raise ValueError(f"--against {text}: expected SOLVER:STEPS, such as ancestral:250, or none")
    return Plan(
        f"{name} {steps}, guidance {scale:g} (reference)",
        {"solver": name, "steps": steps, "grid": None, "guidance": scale},
    )


def _point(sampler: Pipeline, label: str) -> Point:
    """What a sampler is and costs; its value is still to come."""
    s = sampler.settings
    assert s.solver and s.steps and s.grid  # named when it was loaded
    given = method(s.solver).settings(read_options(s.solver, s.solver_options))
    calls = method(s.solver).calls(sampler.chain.steps, given)
    if calls is None:
        raise ValueError(f"{s.solver} decides its number of calls by itself: choose another for --against")
    return Point(
        solver=s.solver, steps=s.steps, grid=s.grid, calls=calls, value=0.0, solver_options=s.solver_options,
        eta=s.eta, guidance=s.guidance, guidance_at=s.guidance_at, label=label,
    )  # fmt: skip


def _metric(report: Report, wanted: str | None) -> str:
    """The metric that decides: the one asked for by (the beginning of) its name, else the first Frechet distance."""
    names = [e.name for e in report.estimates]
    if wanted is None:
        return next((name for name in names if name.startswith(("FID", "FD"))), names[0])
    for fits in (str.__eq__, str.startswith):
        for name in names:
            if fits(name.casefold(), wanted.casefold()):
                return name
    raise MetricError(f"--by {wanted}: there is no such metric; there are {', '.join(names)}")


def _valued(point: Point, report: Report, reference: Report | None, metric: str) -> Point:
    """The point with its value, and the error of its difference from the reference of the same guidance."""
    estimate = _estimate(report, metric)
    apart = None if reference in (None, report) else paired_error(estimate, _estimate(reference, metric))
    return replace(point, value=estimate.value, stderr=estimate.stderr, difference_stderr=apart)


def _estimate(report: Report, metric: str) -> Estimate:
    found = report.get(metric)
    if found is None:
        raise MetricError(
            f"{report.name} has no {metric}: {'; '.join(report.skipped.values()) or 'choose another --by'}"
        )
    return found


def plot(frontier: Frontier, floor: float | None, title: str) -> Image.Image:
    """The metric over network calls (logarithmic): a line for each solver, grid and scale with error bars, the Pareto
    frontier with its points named, the reference and real images as dashed lines."""
    series: dict[str, list[Point]] = {}
    for point in sorted(frontier.points, key=lambda p: p.calls):
        guided = f", guidance {point.guidance:g}" if len({p.guidance for p in frontier.points}) > 1 else ""
        series.setdefault(f"{point.solver} {point.way}{guided}", []).append(point)
    best = frontier.pareto()
    levels = {f"{r.text} ({r.calls} calls)": r.value for r in frontier.references}
    if floor is not None:
        levels["real images"] = floor
    curves = {name: [(p.calls, p.value) for p in points] for name, points in series.items()}
    values = [value for points in curves.values() for _, value in points]
    wide = min(values) > 0 and max(values) > 10 * min(values)  # a few calls may be worse by orders of magnitude
    return draw_curve(
        curves | {"frontier": [(p.calls, p.value) for p in best]},
        title=title, x_label="network calls an image", y_label=frontier.metric, log_x=True, log_y=wide,
        errors={name: [p.stderr or 0.0 for p in points] for name, points in series.items()},
        notes={"frontier": [f"{p.solver} {p.steps}" for p in best]}, levels=levels, size=(1040, 620),
    )  # fmt: skip


def _cells(frontier: Frontier, row: Row, best: Sequence[Point]) -> list[str]:
    reach = frontier.resolution(row.point)
    return [
        row.point.text, str(row.point.calls), with_error(_estimate(row.report, frontier.metric)),
        "*" if row.point in best else "", frontier.verdict(row.point), "" if reach is None else number(reach),
    ]  # fmt: skip


def _table(frontier: Frontier, rows: Sequence[Row], floor: Report | None) -> str:
    best = frontier.pareto()
    heads = ["sampler", "calls", frontier.metric, "frontier", "against the reference", "told apart from"]
    cells = [_cells(frontier, row, best) for row in sorted(rows, key=lambda row: row.point.calls)]
    if floor is not None:
        cells.append(["real images", "", with_error(_estimate(floor, frontier.metric)), "", "", ""])
    return markdown(heads, cells)


def _write(
    folder: Path, about: dict[str, Any], frontier: Frontier, rows: Sequence[Row], floor: Report | None, model: str
) -> None:
    files = save_reports(folder, [*([] if floor is None else [floor]), *(row.report for row in rows)])
    text = [
        f"{Path(model).name} against {frontier.about['against']}: {frontier.about['samples']:,} samples each, seed "
        f"{frontier.about['seed']}. Value ± standard error; * on the frontier (no setting of as few calls is better, "
        "errors aside).",
        "",
        _table(frontier, rows, floor),
        "",
        f"equal: the difference from the reference of the same guidance, {_references(frontier)}, is at most "
        f"{frontiers.Z} standard errors of that difference, over the same reference images and the same beginnings (a "
        "two-sided test at 5 %). That is no proof of equality: differences below the last column cannot be seen.",
    ]
    levels = [f"- {row.point.text}: `--grid {row.point.grid}`" for row in rows if row.point.label]
    if levels:
        text += ["", "Levels that were tuned to the model:", "", *levels]
    _put(folder / TABLE, "\n".join(text) + "\n")
    out = io.StringIO()
    names = list(dict.fromkeys(e.name for row in rows for e in row.report.estimates))
    writer = csv.writer(out, lineterminator="\n")
    keys = ["solver", "steps", "grid", "label", "solver_options", "guidance", "calls", "frontier", "verdict"]
    writer.writerow([*keys, *(column for name in names for column in (name, f"{name} error"))])
    best = frontier.pareto()
    for row in rows:
        p = row.point
        found = [row.report.get(name) for name in names]
        numbers = [
            v for e in found for v in (("", "") if e is None else (e.value, "" if e.stderr is None else e.stderr))
        ]
        writer.writerow([p.solver, p.steps, p.grid, p.label, p.solver_options, p.guidance, p.calls, int(p in best),
                         frontier.verdict(p), *numbers])  # fmt: skip
    _put(folder / NUMBERS, out.getvalue())
    real = None if floor is None else _estimate(floor, frontier.metric).value
    title = f"{Path(model).name}: {frontier.about['samples']:,} samples each"
    save_png(folder / PLOT, plot(frontier, real, title), {"settings": about}, overwrite=True)
    frontier.save(folder / FRONTIER, overwrite=True)
    _put(folder / SETTINGS, json.dumps({"settings": about, "rows": files}, indent=1) + "\n")


def _references(frontier: Frontier) -> str:
    return " or ".join(f"{r.text} ({r.calls} calls)" for r in frontier.references) or "of which there is none"


def _put(path: Path, text: str) -> None:
    with atomic_file(path, overwrite=True) as file:
        file.write(text.encode())


__all__ = ["planned", "plot", "run", "steps_within"]
