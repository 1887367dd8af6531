"""Sweeps: evaluations of one model at several strengths of guidance, with a table and a plot.

`frontier_sweep` sweeps solvers and budgets of network calls; what both share is here. A sweep that was stopped
resumes where it was, because features are cached.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.distributed import DistContext, session
from undiffuse.evaluation.evaluator import ReferenceEvaluator
from undiffuse.evaluation.inputs import MADE, EvaluationConfig, EvaluationSet, made_images, pipeline_of
from undiffuse.evaluation.points import OVER, with_guidance, without_defaults, without_strength
from undiffuse.evaluation.report import Report
from undiffuse.evaluation.text import side_by_side
from undiffuse.pictures import Panel, PlottingUnavailable, draw_plot, save_png
from undiffuse.pictures.names import safe
from undiffuse.util.errors import ConfigError
from undiffuse.util.files import atomic_file
from undiffuse.util.tables import markdown
from undiffuse.util.text import duration

if TYPE_CHECKING:
    from undiffuse.config import SamplerConfig
    from undiffuse.pipelines import Pipeline

__all__ = ["GuidanceSweep", "SweepPoint", "sweep"]

TABLE, PLOT, SETTINGS = "table.md", "plot.png", "sweep.json"
Notify = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One setting that is to be measured.

    Args:
        title: What it is called in tables.
        config: How the model is sampled.
        scale: Strength of guidance.
        label: What its grid is called, where that is not the grid's own name.
        student: Name of the distilled model that it belongs to; "" for the model itself.
    """

    title: str
    config: SamplerConfig
    scale: float
    label: str = ""
    student: str = ""


@dataclass(frozen=True, kw_only=True)
class GuidanceSweep:
    """Reports at several strengths of guidance.

    Args:
        points: The settings.
        reports: One for each of them.
        floor: Report of real images, measured as samples are; None without.
        settings: Everything that decides the numbers, for JSON.
        sampler: The sampler in a few words.
    """

    points: Sequence[SweepPoint]
    reports: Sequence[Report]
    floor: Report | None
    settings: Mapping[str, Any]
    sampler: str

    def __repr__(self) -> str:
        return self.table()

    def _repr_markdown_(self) -> str:
        return self.table()

    @property
    def all_reports(self) -> list[Report]:
        """The reports, that of real images first."""
        return [*([] if self.floor is None else [self.floor]), *self.reports]

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that any report has, in the order of the reports."""
        return list(dict.fromkeys(estimate.name for report in self.all_reports for estimate in report.estimates))

    def table(self) -> str:
        """Returns a table in Markdown with a row for each metric and a column for each strength."""
        heads, rows = side_by_side(self.all_reports, self.metrics)
        columns = list(zip(heads, *rows, strict=True))
        return markdown(["metric", *columns[0][1:]], [list(column) for column in columns[2:]])

    def panels(self) -> list[Panel]:
        """Returns plots of every metric over the strength of guidance, and of precision against recall."""
        order = sorted(range(len(self.points)), key=lambda k: self.points[k].scale)
        swept = [(self.points[k].scale, self.reports[k]) for k in order]
        label = OVER[str(self.settings["over"])][0]
        panels = [self._panel(names, swept, label) for names in _together(self.metrics)]
        pairs = [(scale, report.get("precision"), report.get("recall")) for scale, report in swept]
        both = [(scale, a, b) for scale, a, b in pairs if a is not None and b is not None]
        if both:
            panels.append(
                Panel(
                    lines={label: [(b.value, a.value) for _, a, b in both]},
                    title="fidelity against diversity", x_label="recall", y_label="precision",
                    errors={label: [a.stderr or 0.0 for _, a, _ in both]},
                    notes={label: [f"{scale:g}" for scale, _, _ in both]},
                )
            )  # fmt: skip
        return [panel for panel in panels if any(panel.lines.values())]

    def _panel(self, names: Sequence[str], swept: Sequence[tuple[float, Report]], label: str) -> Panel:
        found = {name: [(scale, e) for scale, r in swept if (e := r.get(name)) is not None] for name in names}
        floors = {name: None if self.floor is None else self.floor.get(name) for name in names}
        real = {name: f"{name} of real images" if len(names) > 1 else "real images" for name in names}
        return Panel(
            lines={name: [(scale, e.value) for scale, e in points] for name, points in found.items() if points},
            errors={name: [e.stderr or 0.0 for _, e in points] for name, points in found.items() if points},
            hlines={real[name]: floor.value for name, floor in floors.items() if floor is not None},
            title=" and ".join(names), x_label=label, y_label=", ".join(names),
        )  # fmt: skip

    def save(self, folder: str | Path) -> list[str]:
        """Writes table, plot, settings and every report into a folder, over what is there.

        Returns:
            Notes: what could not be written and why (the plot without matplotlib).
        """
        out, about = Path(folder), self.settings
        names = save_reports(out, self.all_reports)
        scales = [*([] if self.floor is None else [None]), *(point.scale for point in self.points)]
        warnings = list(dict.fromkeys(text for report in self.all_reports for text in report.warnings))
        model, where = Path(str(about["model"])).name, self.reports[-1].reference.get("where")
        text = [
            f"{model} against {where}: {about['count']:,} samples each, {self.sampler}, seed {about['seed']}. "
            "Value ± standard error.",
            "",
            self.table(),
            "",
            *(f"- {warning}" for warning in warnings),
        ]
        put(out / TABLE, "\n".join(text).rstrip() + "\n")
        title = f"{model}: {about['count']:,} samples at each strength of guidance"
        notes = save_plot(out / PLOT, self.panels(), title, about)
        rows = [{"scale": scale, "file": name} for scale, name in zip(scales, names, strict=True)]
        put(out / SETTINGS, json.dumps({"settings": about, "rows": rows}, indent=1) + "\n")
        return notes


def sweep(
    model: str,
    reference: Any,
    *,
    over: str = "guidance",
    scales: Sequence[float] | None = None,
    config: SamplerConfig | None = None,
    floor: Any = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    notify: Notify | None = None,
    **settings: Any,
) -> GuidanceSweep:
    """Evaluates a model at several strengths of guidance: the trade-off between fidelity and diversity.

    Args:
        model: Name or path of a model.
        reference: What the samples are measured against, see `evaluate`.
        over: What is swept: "guidance" (by a classifier), "cfg" or "autoguide".
        scales: Strengths; by default 0, 0.5, 1, 2, 4, 8 of a classifier and 1, 1.5, 2, 3, 5 of the others.
        config: How the model is sampled, beside the strength.
        floor: Real images, as many as samples, that are measured like samples.
        out: Folder for the table, plot and reports; None writes nothing. A sweep of other settings that is there
            already is an error.
        overwrite: Replaces another sweep in the folder.
        device: Where it runs.
        notify: Called with a line of text before each point, and for what could not be drawn.
        **settings: Fields of `EvaluationConfig`: `count`, `extractor`, `metrics`, `seed`, `classes` and others.

    Raises:
        ValueError: Settings that do not go together.
        FileExistsError: The folder holds another sweep.
    """
    from undiffuse.config import SamplerConfig

    if over not in OVER:
        raise ConfigError("over", f"got {over!r}, expected {', '.join(OVER)}")
    measured_by = EvaluationConfig(**settings)
    base = (config or SamplerConfig()).replace(model=str(model))
    chosen = [float(scale) for scale in (OVER[over][1] if scales is None else scales)]
    if not chosen:
        raise ConfigError("scales", "got none, expected at least one strength of guidance")
    points = [
        SweepPoint(title=f"{over} {scale:g}", config=with_guidance(base, over, scale), scale=scale) for scale in chosen
    ]
    common = without_strength(base, over)
    about = settings_of(common, measured_by, reference, floor) | {"over": over, "scales": chosen}
    if out is not None:
        check_same_sweep(Path(out) / SETTINGS, about, overwrite)
    real, reports, sampler = None, [], ""
    with session(device) as ranks, nullcontext() if out is None else ranks.only_user(out, "measuring"):
        for point, report, pipeline in measured(points, reference, measured_by, ranks, floor, notify):
            if point is None or pipeline is None:
                real = report
            else:
                reports.append(report)
                sampler = sampler or f"{pipeline.config.solver} {pipeline.config.steps}"
        known = ("model", "solver", "steps")  # which the text names anyway
        shaped = [f"{name}={value}" for name, value in _flat(about["sampler"]).items() if name not in known]
        result = GuidanceSweep(
            points=points, reports=reports, floor=real, settings=about, sampler=", ".join([sampler, *shaped])
        )
        if out is not None and ranks.is_main:
            for note in result.save(out):
                (notify or _silent)(note)
    return result


def measured(
    points: Sequence[SweepPoint],
    reference: Any,
    config: EvaluationConfig,
    ranks: DistContext,
    floor: Any = None,
    notify: Notify | None = None,
) -> Iterator[tuple[SweepPoint | None, Report, Pipeline | None]]:
    """Yields each point with its report and pipeline, first (None, report, None) of the real images in `floor`."""
    device = str(ranks.device)
    first = pipeline_of(points[0].config.model, points[0].config, device)
    evaluator = ReferenceEvaluator(reference, config, ranks, first, sources=[points[0].config.model])
    if floor is not None:
        real = evaluator.open(floor, count=config.count or MADE)
        yield None, evaluator.measure("real images", real), None
    begin, work = time.monotonic(), [_work(point) for point in points]
    for k, point in enumerate(points):
        if notify is not None and ranks.is_main:
            spent = time.monotonic() - begin
            left = f", about {duration(spent * sum(work[k:]) / sum(work[:k]))} left" if k else ""
            notify(f"{point.title} ({k + 1} of {len(points)}{left}) ...")
        pipeline = pipeline_of(point.config.model, point.config, device) if k else first
        samples = EvaluationSet(images=made_images(pipeline, config))
        yield point, evaluator.measure(point.title, samples), pipeline


def _work(point: SweepPoint) -> float:
    """Returns what a point costs beside others: its number of steps, where that is a plain number."""
    steps = str(point.config.steps or "")
    return float(steps) if steps.isdigit() else 1.0


def settings_of(config: SamplerConfig, measured_by: EvaluationConfig, reference: Any, floor: Any) -> dict[str, Any]:
    """Returns what decides a sweep's numbers, for JSON; of what is not text only its kind."""
    names = ("seed", "extractor_weights", "grey", "reference_count", "size", "fit", "labels", "protocol")
    extractors = measured_by.extractors
    return {
        "model": config.model,
        "reference": _named(reference),
        "floor": _named(floor),
        "count": measured_by.count or MADE,
        "classes": None if measured_by.classes is None else list(measured_by.classes),
        "extractor": None if extractors is None else [_named(extractor) for extractor in extractors],
        "metrics": None if measured_by.metrics is None else list(measured_by.metrics),
        **{name: getattr(measured_by, name) for name in names},
        "sampler": without_defaults(config),
    }


def check_same_sweep(path: Path, about: Mapping[str, Any], overwrite: bool) -> None:
    """Raises FileExistsError if the folder holds another sweep, whose files would be mixed with the new ones."""
    if overwrite or not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8")).get("settings")
    except (OSError, ValueError, AttributeError):
        before = None
    if before != json.loads(json.dumps(about)):
        raise FileExistsError(f"{path.parent} holds another sweep: choose another folder, or overwrite what is there")


def save_reports(folder: Path, reports: Sequence[Report]) -> list[str]:
    """Writes each report into a file named after it; returns the files' names."""
    names: list[str] = []
    for report in reports:
        stem = safe(report.name)  # which cuts long names and drops the sign of -1
        name, k = f"{stem}.json", 1
        while name.casefold() in map(str.casefold, names):
            k += 1
            name = f"{stem}-{k}.json"
        report.save(folder / name, overwrite=True)
        names.append(name)
    return names


def save_plot(path: Path, panels: Sequence[Panel], title: str, about: Mapping[str, Any]) -> list[str]:
    """Draws and writes a plot; returns a note if matplotlib is not installed, and removes an outdated plot then."""
    try:
        picture = draw_plot(panels, title)
    except PlottingUnavailable as error:
        path.unlink(missing_ok=True)
        return [f"{path} is not drawn: {error}"]
    save_png(path, picture, {"settings": dict(about)}, overwrite=True)
    return []


def put(path: Path, text: str) -> None:
    """Writes a text file atomically, over what is there."""
    with atomic_file(path, overwrite=True) as file:
        file.write(text.encode())


def _named(source: Any) -> str | None:
    return None if source is None else str(source) if isinstance(source, (str, Path)) else type(source).__name__


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a config, nested ones too, as text; of files their names."""
    out: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out |= _flat(value)
        else:
            items = value if isinstance(value, (tuple, list)) else [value]
            out[name] = " ".join(Path(item).name if isinstance(item, str) else str(item) for item in items)
    return out


def _silent(text: str) -> None:
    """Ignores a message."""


def _together(names: Sequence[str]) -> list[list[str]]:
    """Pairs precision with recall and density with coverage (of one extractor each); others stand alone."""
    partner = {"precision": "recall", "density": "coverage"}
    pairs = []
    for name in names:
        word, _, rest = name.partition(" ")
        other = f"{partner.get(word, '')} {rest}".strip()
        if word in partner and other in names:
            pairs.append([name, other])
    return [[name] for name in names if not any(name in pair for pair in pairs)] + pairs
