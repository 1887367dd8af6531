"""Formats evaluations for people: one in full as text or HTML, many side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from undiffuse.metrics import Estimate
from undiffuse.util.tables import fields, table
from undiffuse.util.text import duration

if TYPE_CHECKING:
    from undiffuse.evaluation.report import Report

__all__ = ["number", "report_html", "report_text", "side_by_side", "with_error"]

PLAIN = 4  # significant digits of a value without an error


def number(value: float, error: float | None = None) -> str:
    """Formats a value with the digits that its error makes meaningful, without an error with four digits."""
    if not math.isfinite(value):
        return str(value)
    if error is None or not error > 0:
        return f"{value:.{PLAIN}g}" if abs(value) < 1e4 else f"{value:,.0f}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{min(digits, 12)}f}"


def with_error(estimate: Estimate) -> str:
    """Formats an estimate as "value +- error", or its value alone if no error is known."""
    error = estimate.stderr
    if error is None or not error > 0:
        return number(estimate.value)
    return f"{number(estimate.value, error)} +- {number(error, error)}"


def report_text(report: Report, full: bool = True) -> str:
    """Formats a report as text.

    Args:
        report: What to show.
        full: Also shows how the numbers were made: both sides, features, environment, time.
    """
    head = f"{report.name}\n  against {report.reference.get('where', 'the reference')}"
    out = [head, "", table(_rows(report), head=_HEADS, right=(1,), indent=2)]
    out += ["", fields(_cards(report))] if full else []
    warnings = report.warnings
    if warnings:
        out += ["", *(fields([("warning", text)]) for text in warnings)]
    if report.skipped:
        out += ["", *(fields([("left out", f"{name}: {why}")]) for name, why in report.skipped.items())]
    return "\n".join(out)


def report_html(report: Report) -> str:
    """Formats a report as HTML for notebooks."""
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row).replace('+- ', '± ')}</tr>" for row in _rows(report)
    )
    heads = "".join(f"<th>{head}</th>" for head in _HEADS)
    against = escape(str(report.reference.get("where", "the reference")))
    notes = [*(f"warning: {text}" for text in report.warnings), *(f"{k}: {why}" for k, why in report.skipped.items())]
    listed = f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""
    table_html = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<div><b>{escape(report.name)}</b><br>against {against}{table_html}{listed}</div>"


_HEADS = ("metric", "value", "error", "remarks")


def _rows(report: Report) -> list[tuple[str, str, str, str]]:
    return [
        (e.name, number(e.value, e.stderr), "" if e.stderr is None else f"+- {number(e.stderr, e.stderr)}", _remark(e))
        for e in report.estimates
    ]


def _remark(e: Estimate) -> str:
    """Formats the bias and corrections of a value."""
    extra = e.extra
    parts = []
    if e.bias is not None:
        parts.append(f"bias about {number(e.bias, e.stderr)}")
    if "two_halves" in extra:
        parts.append(f"corrected {number(extra['two_halves'], e.stderr)}")
    if "std" in extra and "chunks" in extra:
        chunks = int(extra["chunks"])
        parts.append(f"std {number(extra['std'])} over {chunks} chunks" if chunks > 1 else "one chunk")
    if {"low", "high", "p"} <= set(extra):
        parts.append(f"95 % interval {100 * extra['low']:.1f} to {100 * extra['high']:.1f} %; {_by_chance(extra['p'])}")
    if "k" in e.settings:
        parts.append(f"k = {e.settings['k']}, {e.settings['distances']}")
    if e.stderr is None and e.name.startswith(("FD", "FID", "sF")):
        parts.append("no error: too few samples, or statistics only")
    return "; ".join(parts)


def _by_chance(p: float) -> str:
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"


def _cards(report: Report) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("samples", _side(report.samples)), ("reference", _side(report.reference))]
    seen = set()
    for estimate in report.estimates:
        card = estimate.card
        if card is None or (card.protocol, card.layer) in seen:
            continue
        seen.add((card.protocol, card.layer))
        weights = f", weights {card.weights_sha256[:12]}" if card.weights_sha256 else ""
        text = f"{card.protocol}: {card.extractor}{weights}, {card.layer} [{card.dimension}], {card.dtype}; "
        text += f"{card.resize}, {card.normalisation}"
        rows.append(("features", text))
    about = report.environment
    rows.append(("run on", f"{about.get('device')}, torch {about.get('torch')}, undiffuse {about.get('undiffuse')}"))
    spent = {name: value for name, value in report.seconds.items() if value >= 0.05}
    rows.append(("time", ", ".join(f"{name} {duration(value)}" for name, value in spent.items())))
    return rows


def _side(about: Any) -> str:
    parts = [str(about.get("where", ""))]
    if about.get("n"):
        shape = "x".join(map(str, about.get("shape", ())))
        parts.append(f"{about['n']:,} images{f' {shape}' if shape else ''}")
    if about.get("statistics"):
        parts.append(f"distances from {about['statistics']}")
    record = about.get("record") or {}
    if record.get("solver"):
        parts.append(
            f"{record['solver']} {record.get('steps')}, guidance {record.get('guidance')}, seed {record.get('seed')}"
        )
    for name in ("sha256", "statistics_sha256", "file_sha256"):
        if about.get(name):
            parts.append(f"{name} {str(about[name])[:12]}")
    if about.get("model"):
        parts.append(f"model {str(about['model'])[:12]}")
    return ", ".join(part for part in parts if part)


def side_by_side(reports: Sequence[Report], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Returns heads and rows of a table with one row for each report and one column for each metric."""
    heads = ["run", "samples", *names]
    rows = []
    for report in reports:
        found = [report.get(name) for name in names]
        cells = ["" if estimate is None else with_error(estimate) for estimate in found]
        n = report.samples.get("n")
        rows.append([report.name, f"{n:,}" if n else "", *cells])
    return heads, rows
