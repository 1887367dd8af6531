"""Sections of evaluations and of sweeps: values with their errors, cards and warnings, and the curves of a sweep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from undiffuse.evaluation.frontier_sweep import FRONTIER, FrontierSweep
from undiffuse.evaluation.report import Report
from undiffuse.evaluation.sweeps import SETTINGS, GuidanceSweep, SweepPoint
from undiffuse.evaluation.text import report_html, report_text
from undiffuse.frontiers import Frontier
from undiffuse.reports.charts import charts
from undiffuse.reports.page import Section, details
from undiffuse.util.records import flat, read_json

__all__ = ["evaluation_section", "is_evaluation", "is_sweep", "sweep_section"]


def is_evaluation(path: Path) -> bool:
    """Returns whether a file is an evaluation, by its content."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    try:
        return read_json(path.read_bytes(), str(path)).get("kind") == "evaluation"
    except ValueError:
        return False


def is_sweep(path: Path) -> bool:
    """Returns whether a folder holds a sweep."""
    return (path / SETTINGS).is_file()


def evaluation_section(path: Path) -> Section:
    """Returns the section of an evaluation file.

    Raises:
        MetricError: The file is damaged.
    """
    report = Report.load(path)
    return Section(title=f"Evaluation: {report.name}", body=_evaluation(report))


def _evaluation(report: Report) -> str:
    text = report_text(report)
    return f'<div class="wide">{report_html(report)}</div>' + details(
        "How it was measured", f"<pre>{escape(text)}</pre>"
    )


def sweep_section(folder: Path) -> Section:
    """Returns the section of a folder that `undiffuse sweep` wrote: its curves, its table and every evaluation.

    Raises:
        ValueError: A file of the sweep is missing or damaged.
    """
    stored = read_json((folder / SETTINGS).read_bytes(), str(folder / SETTINGS))
    settings = stored.get("settings")
    rows = stored.get("rows")
    if not isinstance(settings, dict) or not isinstance(rows, list):
        raise ValueError(f"{folder / SETTINGS} is damaged: it has no settings or no rows")
    frontier = folder / FRONTIER
    sweep = _frontier(folder, settings, rows) if frontier.is_file() else _guidance(folder, settings, rows)
    panels = [sweep.panel()] if isinstance(sweep, FrontierSweep) else sweep.panels()
    reports = [*([] if sweep.floor is None else [sweep.floor]), *sweep.reports]
    body = charts(panels) + _markdown(sweep.table())
    warnings = list(dict.fromkeys(text for report in reports for text in report.warnings))
    if warnings:
        body += "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in warnings) + "</ul>"
    body += "".join(details(report.name, _evaluation(report)) for report in reports)
    shown = "\n".join(f"{name}: {json.dumps(value)}" for name, value in flat(settings).items())
    body += details("Settings", f"<pre>{escape(shown)}</pre>")
    return Section(title=f"Sweep {folder.resolve().name}", body=body)


def _guidance(folder: Path, settings: dict[str, Any], rows: Sequence[Any]) -> GuidanceSweep:
    floor, points, reports = None, [], []
    for row in rows:
        report = Report.load(folder / str(row["file"]))
        if row["scale"] is None:
            floor = report
        else:
            scale = float(row["scale"])
            points.append(SweepPoint(title=report.name, config=None, scale=scale))  # type: ignore[arg-type]
            reports.append(report)
    return GuidanceSweep(points=points, reports=reports, floor=floor, settings=settings, sampler="")


def _frontier(folder: Path, settings: dict[str, Any], rows: Sequence[Any]) -> FrontierSweep:
    found = Frontier.load(folder / FRONTIER)
    reports = [Report.load(folder / str(name)) for name in rows]
    count = len(found.points) + len(found.references)
    if len(reports) not in (count, count + 1):
        raise ValueError(f"{folder} holds {len(reports)} evaluations for {count} settings")
    floor = reports.pop(0) if len(reports) == count + 1 else None
    return FrontierSweep(frontier=found, reports=reports, floor=floor, settings=settings)


def _markdown(text: str) -> str:
    """A table in Markdown as HTML."""
    lines = [line.strip().strip("|").split("|") for line in text.splitlines() if line.strip()]
    heads, body = lines[0], lines[2:]
    head = "".join(f"<th>{escape(cell.strip())}</th>" for cell in heads)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell.strip())}</td>" for cell in row) + "</tr>" for row in body)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
