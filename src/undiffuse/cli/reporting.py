"""Evaluations as text: one in full, many side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from undiffuse.cli.console import duration, fields, table
from undiffuse.evaluation import Report
from undiffuse.metrics import Estimate

PLAIN = 4  # significant digits of a value without an error


def number(value: float, error: float | None = None) -> str:
    """A value with the digits that its error leaves meaningful (two of the error), else four significant ones."""
    if not math.isfinite(value):
        return str(value)
    if error is None or not error > 0:
        return f"{value:.{PLAIN}g}" if abs(value) < 1e4 else f"{value:,.0f}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{min(digits, 12)}f}"


def with_error(estimate: Estimate) -> str:
    """value +- error."""
    error = estimate.stderr
    if error is None or not error > 0:
        return number(estimate.value)
    return f"{number(estimate.value, error)} +- {number(error, error)}"


def report_text(report: Report) -> str:
    """All of a report that a reader of its numbers must know."""
    head = f"{report.name}\n  against {report.reference.get('where', 'the reference')}"
    rows = [
        (e.name, number(e.value, e.stderr), "" if e.stderr is None else f"+- {number(e.stderr, e.stderr)}", _remark(e))
        for e in report.estimates
    ]
    out = [head, "", table(rows, head=("metric", "value", "error", "remarks"), right=(1,), indent=2)]
    out += ["", fields(_cards(report))]
    warnings = report.warnings
    if warnings:
        out += ["", *(fields([("warning", text)]) for text in warnings)]
    if report.skipped:
        out += ["", *(fields([("left out", f"{name}: {why}")]) for name, why in report.skipped.items())]
    return "\n".join(out)


def _remark(e: Estimate) -> str:
    """What stands beside a value: what its bias and corrections are."""
    extra = e.extra
    parts = []
    if e.bias is not None:
        parts.append(f"bias about {number(e.bias, e.stderr)}")
    if "two_halves" in extra:
        parts.append(f"corrected {number(extra['two_halves'], e.stderr)}")
    if "std" in extra and "chunks" in extra:
        chunks = int(extra["chunks"])
        parts.append(f"std {number(extra['std'])} over {chunks} chunks" if chunks > 1 else "one chunk")
    if "k" in e.settings:
        parts.append(f"k = {e.settings['k']}, {e.settings['distances']}")
    if e.stderr is None and e.name.startswith(("FD", "FID", "sF")):
        parts.append("no error: too few samples, or statistics only")
    return "; ".join(parts)


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
    """(heads, rows) of a table with one row a report and one column a metric."""
    heads = ["run", "samples", *names]
    rows = []
    for report in reports:
        found = [report.get(name) for name in names]
        cells = ["" if estimate is None else with_error(estimate) for estimate in found]
        n = report.samples.get("n")
        rows.append([report.name, f"{n:,}" if n else "", *cells])
    return heads, rows


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "|".join(["---", *["---:"] * (len(heads) - 1)]) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "/").replace("+-", "±") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
