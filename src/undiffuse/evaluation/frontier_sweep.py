"""Frontiers: quality against network calls of one model with several solvers, budgets, grids and scales of guidance."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse import frontiers
from undiffuse.distributed import DistContext, session
from undiffuse.evaluation.compute import higher_is_better
from undiffuse.evaluation.inputs import EvaluationConfig, pipeline_of
from undiffuse.evaluation.points import guides, point_of, with_guidance, with_solver, without_strength
from undiffuse.evaluation.report import Report
from undiffuse.evaluation.sweeps import (
    PLOT,
    SETTINGS,
    TABLE,
    Notify,
    SweepPoint,
    check_same_sweep,
    measured,
    put,
    save_plot,
    save_reports,
    settings_of,
)
from undiffuse.evaluation.text import number, with_error
from undiffuse.frontiers import Frontier, Point
from undiffuse.grids import grid
from undiffuse.metrics import Estimate, MetricError, paired_error
from undiffuse.pictures import Panel
from undiffuse.solvers.registry import SOLVERS, solver_info
from undiffuse.tuning.cache import cached_levels, check_tunable, tuned_images, verdict
from undiffuse.util.errors import ConfigError
from undiffuse.util.tables import fields, markdown

if TYPE_CHECKING:
    from undiffuse.config import SamplerConfig
    from undiffuse.pipelines import Pipeline

__all__ = ["FrontierSweep", "frontier", "planned", "steps_within"]

DEFAULT_SOLVERS = ("ddpm", "dpmpp-2m", "dpmpp-2m-sde", "unipc")
CALLS, AGAINST = (5, 10, 20, 50), "ddpm:250"
FRONTIER, NUMBERS = "frontier.json", "table.csv"


@dataclass(frozen=True, kw_only=True)
class FrontierSweep:
    """A frontier with the reports that it was made of.

    Args:
        frontier: All points with their values.
        reports: A report for each of `frontier.points` and `frontier.references`, in this order.
        floor: Report of real images, measured as samples are; None without.
        settings: Everything that decides the numbers, for JSON.
    """

    frontier: Frontier
    reports: Sequence[Report]
    floor: Report | None
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        return self.table()

    def _repr_markdown_(self) -> str:
        return self.table()

    @property
    def rows(self) -> list[tuple[Point, Report]]:
        """Each point with its report."""
        return list(zip((*self.frontier.points, *self.frontier.references), self.reports, strict=True))

    def table(self) -> str:
        """Returns a table in Markdown with a row for each setting, by rising calls."""
        best, metric = self.frontier.pareto(), self.frontier.metric
        heads = ["sampler", "nfe", metric, "frontier", "against the reference", "smallest visible difference"]
        cells = []
        for point, report in sorted(self.rows, key=lambda row: row[0].nfe):
            reach = self.frontier.resolution(point)
            cells.append(
                [
                    point.text, str(point.nfe), with_error(_estimate(report, metric)), "*" if point in best else "",
                    self.frontier.verdict(point), "" if reach is None else number(reach),
                ]
            )  # fmt: skip
        if self.floor is not None:
            cells.append(["real images", "", with_error(_estimate(self.floor, metric)), "", "", ""])
        return markdown(heads, cells)

    def panel(self) -> Panel:
        """Returns a plot of the metric over network calls: a line for each solver, grid and scale, and the frontier."""
        series: dict[str, list[Point]] = {}
        for point in sorted(self.frontier.points, key=lambda p: p.nfe):
            guided = f", guidance {point.guidance:g}" if len({p.guidance for p in self.frontier.points}) > 1 else ""
            name = "students" if point.student else f"{point.solver} {point.way}{guided}"
            series.setdefault(name, []).append(point)
        best = self.frontier.pareto()
        levels = {f"{r.text} ({r.nfe} calls)": r.value for r in self.frontier.references}
        if self.floor is not None:
            levels["real images"] = _estimate(self.floor, self.frontier.metric).value
        curves = {name: [(p.nfe, p.value) for p in points] for name, points in series.items()}
        values = [value for points in curves.values() for _, value in points]
        wide = min(values) > 0 and max(values) > 10 * min(values)  # a few calls may be worse by orders of magnitude
        return Panel(
            lines=curves | {"frontier": [(p.nfe, p.value) for p in best]},
            title=f"{Path(str(self.settings['model'])).name}: {self.settings['count']:,} samples each",
            x_label="network calls an image", y_label=self.frontier.metric, log_x=True, log_y=wide,
            errors={name: [p.stderr or 0.0 for p in points] for name, points in series.items()},
            notes={"frontier": [f"{p.solver} {p.steps}" for p in best]}, hlines=levels,
        )  # fmt: skip

    def save(self, folder: str | Path) -> list[str]:
        """Writes table, plot, numbers, frontier, settings and every report into a folder, over what is there.

        Returns:
            Notes: what could not be written and why (the plot without matplotlib).
        """
        out, about = Path(folder), self.settings
        files = save_reports(out, [*([] if self.floor is None else [self.floor]), *self.reports])
        put(out / TABLE, self._text())
        put(out / NUMBERS, self._csv())
        notes = save_plot(out / PLOT, [self.panel()], "", about)
        self.frontier.save(out / FRONTIER, overwrite=True)
        put(out / SETTINGS, json.dumps({"settings": about, "rows": files}, indent=1) + "\n")
        return notes

    def _text(self) -> str:
        about = self.frontier.about
        against = " or ".join(f"{r.text} ({r.nfe} calls)" for r in self.frontier.references)
        text = [
            f"{Path(str(self.settings['model'])).name} against {about['against']}: {about['samples']:,} samples each, "
            f"seed {about['seed']}. Value ± standard error; * on the frontier (no setting with as few calls is better, "
            "errors aside).",
            "",
            self.table(),
            "",
            f"equal: the difference from the reference of the same guidance, {against or 'of which there is none'}, is "
            f"at most {frontiers.Z} standard errors of that difference, over the same reference images and the same "
            "initial noise (a two-sided test at 5 %). That does not prove equality: differences below the last column "
            "cannot be seen.",
        ]
        levels = [f"- {point.text}: `--grid {point.grid}`" for point, _ in self.rows if point.label]
        return "\n".join([*text, *(["", "Levels that were tuned to the model:", "", *levels] if levels else [])]) + "\n"

    def _csv(self) -> str:
        out = io.StringIO()
        names = list(dict.fromkeys(e.name for report in self.reports for e in report.estimates))
        writer = csv.writer(out, lineterminator="\n")
        keys = ["solver", "steps", "grid", "label", "solver_options", "guidance", "nfe", "frontier", "verdict"]
        writer.writerow([*keys, *(column for name in names for column in (name, f"{name} error"))])
        best = self.frontier.pareto()
        for p, report in self.rows:
            numbers: list[Any] = []
            for e in map(report.get, names):
                numbers += ["", ""] if e is None else [e.value, "" if e.stderr is None else e.stderr]
            writer.writerow([p.solver, p.steps, p.grid, p.label, p.solver_options, p.guidance, p.nfe, int(p in best),
                             self.frontier.verdict(p), *numbers])  # fmt: skip
        return out.getvalue()


def frontier(
    model: str,
    reference: Any,
    *,
    solvers: Sequence[str] = DEFAULT_SOLVERS,
    nfe: Sequence[int] = CALLS,
    grids: Sequence[str] = ("own",),
    scales: Sequence[float] = (0.0,),
    students: Sequence[str] = (),
    against: str | None = AGAINST,
    by: str | None = None,
    config: SamplerConfig | None = None,
    floor: Any = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    keep: bool = True,
    device: str = "auto",
    notify: Notify | None = None,
    **settings: Any,
) -> FrontierSweep:
    """Measures quality against network calls of a model with several solvers.

    Args:
        model: Name or path of a model.
        reference: What the samples are measured against, see `evaluate`.
        solvers: Names of solvers.
        nfe: Budgets of network calls for an image; each solver takes as many steps as fit.
        grids: How the steps are spaced: names of grids, "own" for each solver's default, "tuned" or "tuned:images=N"
            for levels that are chosen for the model.
        scales: Strengths of a classifier's guidance.
        students: Names or paths of models distilled from it, each measured as its file says, without guidance.
        against: A long run, "SOLVER:STEPS", that the others are compared with; None for no comparison.
        by: Name, or beginning of the name, of the metric that decides; by default the first Frechet distance.
        config: How the model is sampled otherwise.
        floor: Real images, as many as samples, that are measured like samples.
        out: Folder for tables, plot, reports and frontier.json; None writes nothing.
        overwrite: Replaces another sweep in the folder.
        keep: Keeps the frontier in the cache, where a sampler with a `budget` finds it.
        device: Where it runs.
        notify: Called with a line of text before each point, for what is left out and what could not be drawn.
        **settings: Fields of `EvaluationConfig`: `count`, `extractor`, `metrics`, `seed`, `classes` and others.

    Raises:
        ValueError: Solvers, grids or settings that do not go together, or nothing that can be measured.
        FileExistsError: The folder holds another sweep.
    """
    from undiffuse.config import SamplerConfig

    notify = notify or (lambda text: None)
    measured_by = EvaluationConfig(**settings)
    base = (config or SamplerConfig()).replace(model=str(model))
    for name in ("solver", "steps", "grid", "solver_options", "eta"):
        if getattr(base, name):
            raise ConfigError(name, "a frontier takes its samplers from solvers, calls and grids: leave it out")
    if more := guides(base):
        raise ConfigError(more[0], "a frontier compares strengths of one classifier, without other guidance")
    about = settings_of(without_strength(base, "guidance"), measured_by, reference, floor) | {
        "solvers": list(solvers), "nfe": list(nfe), "grids": list(grids), "scales": list(scales),
        "against": against, "by": by, **({"students": list(students)} if students else {}),
    }  # fmt: skip
    if out is not None:
        check_same_sweep(Path(out) / SETTINGS, about, overwrite)
    real, rows, metric = None, [], ""
    with session(device) as ranks, nullcontext() if out is None else ranks.only_user(out, "measuring"):
        first = pipeline_of(base.model, with_guidance(base, "guidance", scales[0]), str(ranks.device))
        points, left_out = planned(base, first, solvers, nfe, grids, scales)
        long = [] if against is None else [_long(base, against, scale) for scale in scales]
        for point in long:  # a mistake in it shows before anything is sampled
            pipeline_of(base.model, point.config, str(ranks.device))
        if left_out and ranks.is_main:
            notify(fields([("left out", text) for text in left_out]))
        points = [*_with_levels(points, measured_by, ranks, notify), *_students(students, base)]
        for found, report, pipeline in measured([*points, *long], reference, measured_by, ranks, floor, notify):
            metric = metric or _metric(report, by)  # a mistake in it shows after the first point, not the last
            if found is None or pipeline is None:
                real = report
            else:
                rows.append((report, point_of(pipeline, found.label, found.student)))
        count = len(rows) - len(long)
        against_of = {point.guidance: report for report, point in rows[count:]}
        valued = [_valued(point, report, against_of.get(point.guidance), metric) for report, point in rows]
        result = FrontierSweep(
            frontier=Frontier(
                model=first.model.digest,
                metric=metric,
                higher_is_better=higher_is_better(_estimate(rows[0][0], metric)),
                points=tuple(valued[:count]),
                references=tuple(valued[count:]),
                about={
                    "samples": about["count"],
                    "against": rows[0][0].reference.get("where"),
                    "seed": measured_by.seed,
                    "precision": base.precision,
                    "clip": base.clip,
                    "classes": about["classes"],
                    "model": Path(str(base.model)).name,
                },
            ),
            reports=[report for report, _ in rows],
            floor=real,
            settings=about,
        )
        if ranks.is_main:
            if out is not None:
                for note in result.save(out):
                    notify(note)
            if keep:
                frontiers.keep(result.frontier)
    return result


def planned(
    config: SamplerConfig,
    pipeline: Pipeline,
    solvers: Sequence[str],
    nfe: Sequence[int],
    grids: Sequence[str],
    scales: Sequence[float],
) -> tuple[list[SweepPoint], list[str]]:
    """Returns every solver on every grid with as many steps as each budget permits, at every scale, once each.

    Returns:
        The points, and what does not exist with the reason.

    Raises:
        ValueError: A solver or grid that does not exist or has no budget, or nothing is left.
    """
    points: dict[str, SweepPoint] = {}
    missing: list[str] = []
    chain = pipeline.model.process.chain()
    for name in solvers:
        if solver_info(name).nfe(2, solver_info(name).settings()) is None:
            raise ConfigError(
                "solvers", f"{name} chooses its number of network calls while it runs, so it has no budget"
            )
        for spec in dict.fromkeys(SOLVERS[name].grid if spec == "own" else spec for spec in grids):
            for budget in nfe:
                steps = steps_within(name, budget)
                try:
                    if steps is None:
                        raise ValueError(f"a step takes more than {budget} calls")
                    if tuned_images(spec):
                        check_tunable(name, steps)
                    else:
                        grid(chain, str(steps), spec)
                except ValueError as error:
                    if str(error).startswith(("unknown grid", "the grid")):
                        raise
                    missing.append(f"{name} with {budget} calls on {spec}: {error}")
                    continue
                for scale in scales:
                    title = f"{name} {steps} {spec}, guidance {scale:g}"
                    guided = with_guidance(config, "guidance", scale)
                    points[title] = SweepPoint(
                        title=title, config=with_solver(guided, name, str(steps), spec), scale=scale
                    )
    if not points:
        raise ValueError(f"nothing is left to measure: {'; '.join(missing)}")
    return list(points.values()), missing


def steps_within(name: str, budget: int) -> int | None:
    """Returns the most steps of a solver that take at most `budget` network calls; None if not even one does."""
    settings = solver_info(name).settings()
    fits = [n for n in range(1, budget + 1) if (solver_info(name).nfe(n, settings) or budget + 1) <= budget]
    return max(fits, default=None)


def _with_levels(
    points: Sequence[SweepPoint], measured_by: EvaluationConfig, ranks: DistContext, notify: Notify
) -> list[SweepPoint]:
    """The points with the levels of the grids "tuned" chosen; without those whose levels another point has."""
    named = [point for point in points if tuned_images(str(point.config.grid)) is None]
    found: list[SweepPoint] = []
    gains: list[tuple[str, str]] = []
    for point in points:
        c = point.config
        images = tuned_images(str(c.grid))
        if images is None:
            found.append(point)
            continue
        spec, gain = "", ""
        if ranks.is_main:
            notify(f"{point.title}: choosing levels ...")
            pipeline = pipeline_of(c.model, with_solver(c, str(c.solver), str(c.steps), "logsnr"), str(ranks.device))
            chosen = cached_levels(
                pipeline, int(str(c.steps)), images, measured_by.seed, measured_by.classes, measured_by.cache,
                measured_by.progress,
            )  # fmt: skip
            spec, gain = chosen.spec, verdict(chosen, str(c.solver))
        config = with_solver(c, str(c.solver), str(c.steps), ranks.broadcast_json(spec))
        same = next((other.title for other in (*named, *found) if other.config == config), None)
        if same is None:
            found.append(replace(point, config=config, label=str(c.grid)))
        gains.append((point.title, gain + (f"; measured once, as {same}" if same else "")))
    if ranks.is_main and gains:
        notify(fields(gains))
    return found


def _students(students: Sequence[str], config: SamplerConfig) -> list[SweepPoint]:
    """The distilled models, sampled as their files say."""
    from undiffuse.config import SamplerConfig

    plain = SamplerConfig(precision=config.precision, runtime=config.runtime)
    points = []
    for student in students:
        name = Path(student).parent.name if Path(student).stem == "model" else Path(student).name
        points.append(
            SweepPoint(title=f"student {name}", config=plain.replace(model=str(student)), scale=0.0, student=name)
        )
    return points


def _long(config: SamplerConfig, text: str, scale: float) -> SweepPoint:
    name, colon, steps = text.partition(":")
    if not colon or not steps or name not in SOLVERS:
        raise ConfigError("against", f"got {text!r}, expected SOLVER:STEPS, for example ddpm:250")
    return SweepPoint(
        title=f"{name} {steps}, guidance {scale:g} (reference)",
        config=with_solver(with_guidance(config, "guidance", scale), name, steps, None),
        scale=scale,
    )


def _metric(report: Report, wanted: str | None) -> str:
    """The metric that decides: the one whose name (or its beginning) is given, else the first Frechet distance."""
    names = [e.name for e in report.estimates]
    if wanted is None:
        return next((name for name in names if name.startswith(("FID", "FD"))), names[0])
    for fits in (str.__eq__, str.startswith):
        for name in names:
            if fits(name.casefold(), wanted.casefold()):
                return name
    raise ConfigError("by", f"there is no such metric {wanted!r}; there are {', '.join(names)}")


def _valued(point: Point, report: Report, reference: Report | None, metric: str) -> Point:
    """The point with its value, and the error of its difference from the reference of the same guidance."""
    estimate = _estimate(report, metric)
    apart = None if reference in (None, report) else paired_error(estimate, _estimate(reference, metric))
    return replace(point, value=estimate.value, stderr=estimate.stderr, difference_stderr=apart)


def _estimate(report: Report, metric: str) -> Estimate:
    found = report.get(metric)
    if found is None:
        why = "; ".join(report.skipped.values()) or "choose another metric to decide by"
        raise MetricError(f"{report.name} has no {metric}: {why}")
    return found
