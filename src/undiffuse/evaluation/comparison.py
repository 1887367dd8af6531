"""Puts reports side by side: those whose numbers compare stand in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from undiffuse.evaluation.compute import higher_is_better
from undiffuse.evaluation.report import Report
from undiffuse.evaluation.text import side_by_side
from undiffuse.metrics import MetricError
from undiffuse.util.tables import WIDTH, markdown, table

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """Reports against one reference by the same extractors.

    Args:
        reports: A row each.
        metrics: A column each.
    """

    reports: Sequence[Report]
    metrics: Sequence[str]

    def __repr__(self) -> str:
        return self.text()

    def _repr_markdown_(self) -> str:
        return self.markdown()

    @property
    def title(self) -> str:
        """What the reports were measured against."""
        about = self.reports[0].reference
        return f"against {about.get('where', 'the reference')}" + (f", {about['n']:,} images" if about.get("n") else "")

    @property
    def warnings(self) -> list[str]:
        """What a reader of the table should know."""
        counts = {report.samples.get("n") for report in self.reports}
        text = "the runs have different numbers of samples, on which distances, recall and coverage depend"
        return [text] if len(counts) > 1 else []

    def text(self) -> str:
        """Returns the rows as text, in as many tables as a width of 100 columns needs."""
        parts: list[list[str]] = [[]]
        for name in self.metrics:
            heads, rows = side_by_side(self.reports, [*parts[-1], name])
            width = sum(max(len(str(row[k])) for row in [heads, *rows]) + 2 for k in range(len(heads)))
            if parts[-1] and width > WIDTH:
                parts.append([])
            parts[-1].append(name)
        tables = []
        for names in parts:
            heads, rows = side_by_side(self.reports, names)
            tables.append(table(rows, head=heads, right=tuple(range(1, len(heads)))))
        return "\n".join([self.title, *tables, *(f"  {text}" for text in self.warnings)])

    def markdown(self) -> str:
        """Returns the rows as one table in Markdown."""
        return "\n".join([self.title, markdown(*side_by_side(self.reports, self.metrics)), *self.warnings])


def compare(
    reports: Sequence[Report | str | Path], metrics: Sequence[str] | None = None, sort: str | None = None
) -> list[Comparison]:
    """Compares evaluations.

    Args:
        reports: Reports, their JSON files, or folders of such files.
        metrics: Columns, by the metric's name or a part of it; None takes all.
        sort: Metric to sort by, best first.

    Returns:
        A comparison for each reference and extractor, whose numbers do not compare with those of another.

    Raises:
        ValueError: A file that is no evaluation, or a metric that no report has.
        FileNotFoundError: There is no such file.
    """
    groups: dict[tuple[str, ...], list[Report]] = {}
    for report in _loaded(reports):
        groups.setdefault(report.comparable, []).append(report)
    out = []
    for found in groups.values():
        names = _columns(found, metrics)
        out.append(Comparison(found if sort is None else _sorted(found, sort), names))
    return out


def _loaded(given: Sequence[Report | str | Path]) -> list[Report]:
    out: list[Report] = []
    files: dict[Path, None] = {}
    for item in given:
        if isinstance(item, Report):
            out.append(item)
            continue
        path = Path(item)
        found = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not found:
            raise MetricError(f"the folder {path} holds no evaluations (*.json)")
        files |= dict.fromkeys(found)
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; give JSON files of `undiffuse evaluate`")
    return [*out, *map(Report.load, files)]


def _columns(reports: Sequence[Report], wanted: Sequence[str] | None) -> list[str]:
    names = list(dict.fromkeys(estimate.name for report in reports for estimate in report.estimates))
    if wanted is None:
        return names
    chosen = []
    for word in (part.strip() for part in wanted):
        found = [name for name in names if name.casefold() == word.casefold()]
        found = found or [name for name in names if word.casefold() in name.casefold()]
        if not found:
            raise MetricError(f"no run has a metric {word!r}; there are {', '.join(names)}")
        chosen += found
    return list(dict.fromkeys(chosen))


def _sorted(reports: Sequence[Report], by: str) -> list[Report]:
    name = _columns(reports, [by])[0]

    def place(report: Report) -> tuple[bool, float]:
        estimate = report.get(name)
        if estimate is None:
            return True, 0.0
        return False, -estimate.value if higher_is_better(estimate) else estimate.value

    return sorted(reports, key=place)
