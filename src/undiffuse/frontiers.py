"""Frontiers: the measured quality of sampler settings against their network calls.

A frontier belongs to the weights it was measured with, identified by their digest. It is a small JSON file in the
folder of the sweep that made it, in the cache, where a sampler with a budget finds it, or next to a model shipped with
this package.

**Equality.** Two values are called equal if they differ by at most 1.96 standard errors of their difference, so that a
two-sided test at 5 % finds no difference. This standard error is computed over the same images
(`metrics.paired_error`), so the variation that two settings share, from reference images and initial noise, cancels. If
it is unknown, both errors are taken as independent, which is too lenient. This does not prove equality: differences
below `resolution` are not detectable.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from undiffuse.downloads import cache_dir
from undiffuse.grid_specs import brief
from undiffuse.solvers.registry import FORMER_NAMES
from undiffuse.util.files import atomic_file

__all__ = ["Frontier", "Point", "keep", "known", "pareto"]

FORMAT = 1
Z = 1.96  # two-sided test at 5 %
ENDING = ".frontier.json"
_SETTINGS = ("solver", "steps", "grid", "solver_options", "eta", "guidance", "guidance_at")


@dataclass(frozen=True, kw_only=True)
class Point:
    """Holds one setting of the sampler and its measured value.

    Attributes:
        solver: Name of the solver.
        steps: Number of steps.
        grid: Spacing of the steps.
        nfe: Calls of the model's network per image, excluding those of a classifier.
        value: Value of the frontier's metric.
        stderr: Its standard error; None if unknown.
        difference_stderr: Standard error of the difference from the reference over the same images; None if unknown.
        solver_options: Options of the solver.
        eta: Noise of DDIM.
        guidance: Scale of classifier guidance.
        guidance_at: Where its gradient is taken.
        label: Name of a grid of many levels in tables and plots, for example "tuned".
        student: Name of the distilled model that the point belongs to; "" for the frontier's own model.
    """

    solver: str
    steps: str
    grid: str
    nfe: int
    value: float
    stderr: float | None = None
    difference_stderr: float | None = None
    solver_options: str = ""
    eta: float = 0.0
    guidance: float = 0.0
    guidance_at: str = "x_t"
    label: str = ""
    student: str = ""

    @property
    def way(self) -> str:
        """Returns a short name of the spacing of the steps."""
        return self.label or brief(self.grid)

    @property
    def settings(self) -> dict[str, Any]:
        """Returns the settings that determine the images."""
        return {name: getattr(self, name) for name in _SETTINGS}

    @property
    def text(self) -> str:
        """Returns a summary of the settings: "dpmpp-2m 10 logsnr, guidance 1"."""
        parts = [self.solver, self.steps, *([] if self.way == "chain" else [self.way])]
        parts += [self.solver_options] if self.solver_options else []
        parts += [f"eta {self.eta:g}"] if self.eta else []
        who = f"student {self.student}, " if self.student else ""
        return who + " ".join(parts) + (f", guidance {self.guidance:g}" if self.guidance else "")


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Holds all points of one sweep.

    Attributes:
        model: Digest of the weights.
        metric: Name of the metric.
        higher_is_better: Whether larger values are better.
        points: Points of the sweep.
        references: Reference settings that points are compared with, at most one per guidance scale.
        about: How it was measured: samples, reference images, seed, extractor.
    """

    model: str
    metric: str
    higher_is_better: bool
    points: tuple[Point, ...]
    references: tuple[Point, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Number of samples of each point; 0 if it is not known."""
        found = self.about.get("samples")
        return found if isinstance(found, int) else 0

    def best(self, nfe: int, guidance: float = 0.0, guidance_at: str = "x_t") -> Point:
        """Returns the best point of the frontier's own model within a number of network calls.

        Args:
            nfe: Maximum number of calls per image.
            guidance: Required guidance scale.
            guidance_at: Where the gradient is taken.

        Raises:
            ValueError: Nothing was measured with this guidance, or with so few calls.
        """
        alike = [p for p in (*self.points, *self.references) if p.guidance == guidance and not p.student]
        alike = [p for p in alike if not guidance or p.guidance_at == guidance_at]
        if not alike:
            known = ", ".join(f"{g:g}" for g in sorted({p.guidance for p in self.points}))
            raise ValueError(f"this frontier has no points at guidance={guidance:g} ({guidance_at}); it has: {known}")
        within = [p for p in alike if p.nfe <= nfe]
        if not within:
            raise ValueError(f"no point has {nfe} or fewer calls; the smallest number is {min(p.nfe for p in alike)}")
        return min(within, key=lambda p: (self._cost(p), p.nfe))

    def pareto(self) -> list[Point]:
        """Returns the points that no other point beats, by increasing calls, see `pareto`."""
        return pareto((*self.points, *self.references), self.higher_is_better)

    def reference_of(self, point: Point) -> Point | None:
        """Returns the reference with the same guidance; None if there is none."""
        return next((r for r in self.references if r.guidance == point.guidance), None)

    def verdict(self, point: Point) -> str:
        """Compares a point with the reference of the same guidance, by the test of this module.

        Returns:
            "equal", "better" or "worse"; "" without a reference, or if an error is unknown.
        """
        reference, reach = self.reference_of(point), self.resolution(point)
        if reference is None or reach is None or (point.settings, point.student) == (reference.settings, ""):
            return ""
        difference = self._cost(point) - self._cost(reference)
        return "equal" if abs(difference) <= reach else "worse" if difference > 0 else "better"

    def resolution(self, point: Point) -> float | None:
        """Returns the smallest difference from the reference that the test can detect; None if it is unknown."""
        reference = self.reference_of(point)
        if reference is None or None in (point.stderr, reference.stderr):
            return None
        if point.difference_stderr is not None:
            return Z * point.difference_stderr
        return Z * math.hypot(point.stderr or 0.0, reference.stderr or 0.0)

    def _cost(self, point: Point) -> float:
        return -point.value if self.higher_is_better else point.value

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Writes the JSON file atomically; raises FileExistsError if it exists and `overwrite` is False."""
        content = {"kind": "frontier", "format": FORMAT, **asdict(self)}
        with atomic_file(path, overwrite=overwrite) as file:
            file.write(json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Frontier:
        """Reads a file of `save`; raises ValueError for anything else."""
        return cls._read(Path(path).read_bytes(), str(path))

    @classmethod
    def _read(cls, data: bytes, where: str) -> Frontier:
        try:
            content = json.loads(data)
            if content.pop("kind") != "frontier" or content.pop("format") != FORMAT:
                raise ValueError("it is not a frontier of this version")
            content = {"higher_is_better" if key == "rising" else key: value for key, value in content.items()}
            for name in ("points", "references"):
                content[name] = tuple(_point(entry) for entry in content[name])
            if not content["points"] or not isinstance(content["model"], str):
                raise ValueError("it has no points or no model")
            return cls(**content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{where} is not a frontier, or it is damaged ({error}): create one with `undiffuse sweep`"
            ) from None


def pareto(points: Sequence[Point], higher_is_better: bool) -> list[Point]:
    """Returns the points that are better than every point with as few or fewer calls, by increasing calls.

    Standard errors are ignored.

    Args:
        points: The points.
        higher_is_better: Whether larger values are better.
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.nfe, -p.value if higher_is_better else p.value)):
        if not found or (point.value > found[-1].value if higher_is_better else point.value < found[-1].value):
            found.append(point)
    return found


def keep(frontier: Frontier) -> Path:
    """Stores a frontier in the cache, where `known` finds it.

    It replaces an earlier one of the same weights only if that has the same metric, guidance, reference and number of
    samples, so a quick sweep never takes the place of a better one.
    """
    return frontier.save(_place(frontier), overwrite=True)


def known(model: str) -> list[Frontier]:
    """Finds the frontiers of some weights, in the cache and among those shipped.

    Args:
        model: Digest of the weights.

    Returns:
        The frontiers, those of the most samples first; of as many, the newest first and those shipped last.

    Raises:
        ValueError: A file in the cache is damaged or belongs to other weights.
    """
    found = []
    paths = cache_dir("frontiers").glob(f"{model[:40]}*{ENDING}")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        found.append(Frontier.load(path))
        if found[-1].model != model:
            raise ValueError(f"{path} is the frontier of another model: delete it")
    for entry in (resources.files("undiffuse") / "assets").iterdir():
        if entry.name.endswith(ENDING):
            shipped = Frontier._read(entry.read_bytes(), entry.name)
            if shipped.model == model:
                found.append(shipped)
    return sorted(found, key=lambda frontier: -frontier.samples)


def _place(frontier: Frontier) -> Path:
    scales = sorted({(p.guidance, p.guidance_at) for p in frontier.points})
    measured = (frontier.metric, scales, frontier.about.get("against"), frontier.samples)
    key = hashlib.sha256(json.dumps(measured).encode()).hexdigest()[:8]
    return cache_dir("frontiers", f"{frontier.model[:40]}-{key}{ENDING}")


def _point(entry: Mapping[str, Any]) -> Point:
    current = {"nfe" if key == "calls" else key: value for key, value in entry.items()}
    if isinstance(current.get("solver"), str):
        current["solver"] = FORMER_NAMES.get(current["solver"], current["solver"])
    point = Point(**current)
    errors = [value for value in (point.value, point.stderr, point.difference_stderr) if value is not None]
    texts = (point.solver, point.steps, point.grid, point.solver_options, point.guidance_at, point.label, point.student)
    numbers = [*errors, point.eta, point.guidance, point.nfe]
    if not all(isinstance(t, str) for t in texts) or not all(math.isfinite(n) for n in numbers) or point.nfe < 1:
        raise ValueError(f"invalid point {entry!r}"[:120])
    return point
