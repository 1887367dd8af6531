"""`undiffuse sweep`: what guidance buys and what it costs, at several strengths, as reports, a table and a plot.

A sweep over solvers and network calls is `frontier`'s; what both share is in `sweeping`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image

from undiffuse.cli.console import duration, say
from undiffuse.cli.reporting import markdown, side_by_side
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
from undiffuse.distributed import session
from undiffuse.evaluation import Report
from undiffuse.pictures import draw_curve, save_png, stack
from undiffuse.pipelines.guidance import GuidanceConfig, listed
from undiffuse.pipelines.pipeline import Pipeline
from undiffuse.util.files import atomic_file

PANEL = (760, 420)
SCALES, COMPARED = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0), (1.0, 1.5, 2.0, 3.0, 5.0)
OVER = {"guidance": ("guidance", SCALES), "cfg": ("cfg", COMPARED), "autoguide": ("autoguide_scale", COMPARED)}
"""What can be swept: the option that a scale is, and its values where nobody names any."""
LABELS = {"guidance": "guidance scale", "cfg": "--cfg (1: none)", "autoguide": "--autoguide-scale (1: none)"}


@dataclass(frozen=True)
class Point:
    """One row of the sweep: a strength of guidance, or None for the real images."""

    scale: float | None
    report: Report


def run(args: argparse.Namespace) -> int:
    """The command: the strengths of guidance, or with --solvers, --calls or --grids a frontier."""
    if args.over == "guidance" and len(listed(args.classifier)) > 1:
        raise ValueError("the strengths of one classifier are swept: give --classifier once")
    if args.solvers or args.calls or args.grids:
        from undiffuse.cli import frontier

        if more := ", ".join(map(option, guides_of(args))):
            raise ValueError(
                f"a frontier is of strengths (--scales) of a classifier and no other guidance: leave {more} out"
            )
        return frontier.run(args)
    for name in ("against", "by"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} is of a frontier: give --solvers and --calls, or leave it out")
    begin = time.monotonic()
    folder = Path(args.out or "sweep")
    plans = planned(args)
    (swept,) = plans[0].changes
    about = settings_of(args) | {"scales": [plan.changes[swept] for plan in plans]} | guides_of(args)
    same_sweep(folder / SETTINGS, about, args.overwrite)
    points: list[Point] = []
    with session(args.device) as ranks:
        for plan, report, made_with in measured(args, plans, ranks):
            sampler = made_with or sampler_of(args, plans[0], ranks)
            points.append(Point(None if plan is None else plan.changes[swept], report))
        if not ranks.is_main:
            return 0
    _write(folder, about, guides_of(args), points, sampler)
    say(_table(points))
    say(f"\n{folder / TABLE}, {PLOT} and a report for each row written after {duration(time.monotonic() - begin)}")
    return 0


def planned(args: argparse.Namespace) -> list[Plan]:
    """The strengths of what is swept. ValueError where its strength is given too, or what it needs is not."""
    name, usual = OVER[args.over]
    if listed(getattr(args, name)):
        raise ValueError(f"{option(name)} is what is swept: give its values by --scales")
    if args.over == "autoguide" and not (args.autoguide or args.autoguide_weights):
        raise ValueError("--over autoguide needs the model that guides: give --autoguide WEAK")
    return [Plan(f"{args.over} {scale:g}", {name: scale}) for scale in args.scales or usual]


def guides_of(args: argparse.Namespace) -> dict[str, Any]:
    """What guides beside the first classifier, as given, by the names of the options; nothing that was not."""
    names = [f.name for f in fields(GuidanceConfig) if f.name != "more_classifiers"]
    given = {name: getattr(args, name) for name in ("guidance", *names) if getattr(args, name) is not None}
    return given | ({"over": args.over} if args.over != "guidance" else {})


def option(name: str) -> str:
    """What a setting is called on the command line."""
    return f"--{name.replace('_', '-')}"


def metric_names(points: Sequence[Point]) -> list[str]:
    """The metrics that any row has, in the order of the reports."""
    return list(dict.fromkeys(estimate.name for point in points for estimate in point.report.estimates))


def plot(points: Sequence[Point], title: str, label: str = LABELS["guidance"]) -> Image.Image:
    """Every metric over the strength of guidance, the real images as a dashed line, and precision against recall.

    ValueError where there is no strength with a value.
    """
    swept = sorted((p for p in points if p.scale is not None), key=lambda p: p.scale or 0.0)
    real = next((p.report for p in points if p.scale is None), None)
    panels = []
    for names in _panels(metric_names(points)):
        curves, errors, levels = {}, {}, {}
        for name in names:
            found = [(p.scale or 0.0, e) for p in swept if (e := p.report.get(name)) is not None]
            if found:
                curves[name] = [(scale, e.value) for scale, e in found]
                errors[name] = [e.stderr or 0.0 for _, e in found]
            floor = None if real is None else real.get(name)
            if floor is not None:
                levels[f"{name} of real images" if len(names) > 1 else "real images"] = floor.value
        if curves:
            panels.append(
                draw_curve(curves, title=names[0] if len(names) == 1 else " and ".join(names), x_label=label,
                           errors=errors, levels=levels, size=PANEL)
            )  # fmt: skip
    pairs = [(p.scale or 0.0, p.report.get("precision"), p.report.get("recall")) for p in swept]
    both = [(scale, a, b) for scale, a, b in pairs if a is not None and b is not None]
    if both:
        series = {f"{label} at each point": [(b.value, a.value) for _, a, b in both]}
        panels.append(
            draw_curve(series, title="Fidelity against diversity", x_label="recall", y_label="precision", size=PANEL,
                       errors={name: [a.stderr or 0.0 for _, a, _ in both] for name in series},
                       notes={name: [f"{scale:g}" for scale, _, _ in both] for name in series})
        )  # fmt: skip
    if not panels:
        raise ValueError("nothing to draw: no metric was computed")
    return stack(_pairs(panels), title=title) if title else stack(_pairs(panels))


def _table(points: Sequence[Point]) -> str:
    """A row a metric, a column a strength: there are more metrics than strengths."""
    heads, rows = side_by_side([p.report for p in points], metric_names(points))
    columns = list(zip(heads, *rows, strict=True))
    return markdown(["metric", *columns[0][1:]], [list(column) for column in columns[2:]])


def _panels(names: Sequence[str]) -> list[list[str]]:
    """Precision with recall, density with coverage (of one extractor each), each of the others by itself."""
    partner = {"precision": "recall", "density": "coverage"}
    pairs = []
    for name in names:
        word, _, rest = name.partition(" ")
        other = f"{partner.get(word, '')} {rest}".strip()
        if word in partner and other in names:
            pairs.append([name, other])
    return [[name] for name in names if not any(name in pair for pair in pairs)] + pairs


def _pairs(panels: Sequence[Image.Image]) -> list[Image.Image]:
    """Panels two a row."""
    rows = []
    for k in range(0, len(panels), 2):
        row = Image.new("RGB", (2 * PANEL[0], PANEL[1]), "white")
        for j, panel in enumerate(panels[k : k + 2]):
            row.paste(panel, (j * PANEL[0], 0))
        rows.append(row)
    return rows


def _value(value: Any) -> str:
    """As given on the command line; of a file its name."""
    return Path(value).name if isinstance(value, str) else " ".join(map(str, listed(value)))


def _write(
    folder: Path, about: dict[str, Any], guides: Mapping[str, Any], points: Sequence[Point], sampler: Pipeline
) -> None:
    names = save_reports(folder, [point.report for point in points])
    files = [{"scale": point.scale, "file": name} for point, name in zip(points, names, strict=True)]
    warnings = list(dict.fromkeys(text for p in points for text in p.report.warnings))
    last = points[-1].report
    shaped = "".join(
        f", `{option(name)}{'' if value is True else f' {_value(value)}'}`" for name, value in guides.items()
    )
    text = [
        f"{Path(about['model']).name} against {last.reference.get('where')}: {about['count']:,} samples each, "
        f"{sampler.settings.solver} {sampler.settings.steps}{shaped}, seed {about['seed']}. Value ± standard error.",
        "",
        _table(points),
        "",
        *(f"- {warning}" for warning in warnings),
    ]
    with atomic_file(folder / TABLE, overwrite=True) as file:
        file.write("\n".join(text).rstrip().encode() + b"\n")
    title = f"{Path(about['model']).name}: {about['count']:,} samples at each strength of guidance"
    save_png(
        folder / PLOT, plot(points, title, LABELS[guides.get("over", "guidance")]), {"settings": about}, overwrite=True
    )
    with atomic_file(folder / SETTINGS, overwrite=True) as file:
        file.write(json.dumps({"settings": about, "rows": files}, indent=1).encode() + b"\n")
