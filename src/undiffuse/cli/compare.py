"""`undiffuse compare`: evaluations side by side, those that compare in one table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from undiffuse.cli.console import WIDTH, say, table
from undiffuse.cli.reporting import markdown, side_by_side
from undiffuse.evaluation import Report
from undiffuse.metrics import MetricError

LOW_IS_GOOD = ("F", "sF", "clean", "sclean", "KID", "KD", "CMMD", "MMD", "copies", "closer")


def run(args: argparse.Namespace) -> int:
    """The command."""
    groups: dict[tuple[str, ...], list[Report]] = {}
    for path in _files(args.files):
        report = Report.load(path)
        groups.setdefault(report.comparable, []).append(report)
    if len(groups) > 1:
        say(f"{len(groups)} tables: runs with another reference or another extractor do not compare.\n")
    for number, reports in enumerate(groups.values()):
        names = _columns(reports, args.metrics)
        if args.sort:
            reports = _sorted(reports, args.sort, names)
        if number:
            say()
        about = reports[0].reference
        say(f"against {about.get('where', 'the reference')}" + (f", {about['n']:,} images" if about.get("n") else ""))
        for some in _fitting(reports, names) if args.format == "text" else [names]:
            heads, rows = side_by_side(reports, some)
            say(markdown(heads, rows) if args.format == "markdown" else _text(heads, rows))
        counts = {report.samples.get("n") for report in reports}
        if len(counts) > 1:
            say("  the runs have different numbers of samples, on which distances, recall and coverage depend")
    return 0


def _files(given: Sequence[str]) -> list[Path]:
    out: list[Path] = []
    for text in given:
        path = Path(text)
        found = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not found:
            raise MetricError(f"the folder {path} holds no evaluations (*.json)")
        out += found
    for path in out:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; give JSON files of `undiffuse evaluate`")
    return list(dict.fromkeys(out))


def _columns(reports: Sequence[Report], wanted: str | None) -> list[str]:
    names = list(dict.fromkeys(estimate.name for report in reports for estimate in report.estimates))
    if wanted is None:
        return names
    chosen = []
    for word in (part.strip() for part in wanted.split(",")):
        found = [name for name in names if name.casefold() == word.casefold()]
        found = found or [name for name in names if word.casefold() in name.casefold()]
        if not found:
            raise MetricError(f"no run has a metric {word!r}; there are {', '.join(names)}")
        chosen += found
    return list(dict.fromkeys(chosen))


def _sorted(reports: Sequence[Report], by: str, names: Sequence[str]) -> list[Report]:
    name = _columns(reports, by)[0]
    sign = 1 if name.startswith(LOW_IS_GOOD) else -1

    def place(report: Report) -> tuple[bool, float]:
        estimate = report.get(name)
        return (estimate is None, 0.0 if estimate is None else sign * estimate.value)

    return sorted(reports, key=place)


def _fitting(reports: Sequence[Report], names: Sequence[str]) -> list[list[str]]:
    """The columns in as many tables as the width of a page needs."""
    out: list[list[str]] = [[]]
    for name in names:
        heads, rows = side_by_side(reports, [*out[-1], name])
        width = sum(max(len(str(row[k])) for row in [heads, *rows]) + 2 for k in range(len(heads)))
        if out[-1] and width > WIDTH:
            out.append([])
        out[-1].append(name)
    return out


def _text(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table(rows, head=heads, right=tuple(range(1, len(heads))))
