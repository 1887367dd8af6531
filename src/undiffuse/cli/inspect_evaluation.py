"""Describes evaluations and reference files for `undiffuse inspect`."""

from __future__ import annotations

import json
from pathlib import Path

from undiffuse.cli.console import fields
from undiffuse.evaluation import Report, read_reference
from undiffuse.evaluation.summary import Summary
from undiffuse.evaluation.text import report_text
from undiffuse.util.errors import reading
from undiffuse.util.text import count_of


def describe_reference(path: Path, as_json: bool = False) -> str:
    """Describes a file of `undiffuse reference`; MetricError (a ValueError) if it is damaged."""
    with reading(str(path)):
        summaries = read_reference(path)
        if as_json:
            found = [{"card": s.card.to_dict(), "about": s.about, "warnings": s.warnings} for s in summaries]
            return json.dumps(found, indent=2)
        return _reference_text(path, summaries)


def _reference_text(path: Path, summaries: list[Summary]) -> str:
    about = summaries[0].about
    shape = "x".join(map(str, about.get("shape", ())))
    rows: list[tuple[str, object]] = [
        ("images", f"{about.get('where')}, {about.get('n', 0):,} of {shape}, {about.get('preparation')}"),
        ("sha256", about.get("sha256")),
    ]
    for summary in summaries:
        card, n = summary.card, 0 if summary.features is None else len(summary.features)
        text = f"{card.extractor} ({card.protocol}), {card.dimension} features per image, weights "
        text += f"{str(card.weights_sha256)[:12]}; features of {count_of(n, 'image')} kept"
        text += ", with sFID" if summary.spatial else ""
        rows.append((card.distance, text))
    rows += [("warning", text) for text in summaries[0].warnings]
    return f"{path}: a reference for `undiffuse evaluate`\n{fields(rows)}"


def describe_evaluation(path: Path, as_json: bool = False) -> str:
    """Describes a file of `undiffuse evaluate`; MetricError (a ValueError) for anything else."""
    with reading(str(path)):
        report = Report.load(path)
        return json.dumps(report.to_dict(), indent=2) if as_json else report_text(report)
