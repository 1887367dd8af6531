"""From paths to a page: what each path holds, and the section of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from undiffuse.reports.evaluations import evaluation_section, is_evaluation, is_sweep, sweep_section
from undiffuse.reports.page import Section, render
from undiffuse.reports.runs import run_section
from undiffuse.reports.samples import is_samples, samples_section
from undiffuse.training.request import is_run_folder
from undiffuse.util.errors import ConfigError, reading
from undiffuse.util.files import atomic_file

__all__ = ["KINDS", "kind_of", "write_report"]

KINDS = ("run", "evaluation", "sweep", "samples")


def kind_of(path: str | Path) -> str:
    """Returns what a path holds, one of `KINDS`.

    Raises:
        FileNotFoundError: There is nothing there.
        ConfigError: It is nothing that a report shows.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if is_samples(place):
        return "samples"
    if is_sweep(place):
        return "sweep"
    if is_run_folder(place):
        return "run"
    if is_evaluation(place):
        return "evaluation"
    raise ConfigError(
        "paths", f"{path} is neither a training run, an evaluation, a sweep nor a folder of samples of undiffuse"
    )


def write_report(
    paths: Sequence[str | Path],
    out: str | Path = "report.html",
    *,
    title: str | None = None,
    training: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes one HTML file about runs, evaluations, sweeps and samples.

    The file holds its pictures, styles and scripts, so it opens without a network and can be sent to anybody.

    Args:
        paths: Run folders, evaluation files, folders of sweeps and of samples, in the order of the page.
        out: The file to write.
        title: The title of the page; by default the names of what it shows.
        training: Training data; samples are then shown beside their nearest training images.
        overwrite: Replace an existing file.

    Returns:
        The file.

    Raises:
        FileNotFoundError: A path does not exist.
        FileExistsError: `out` exists.
        ConfigError: A path holds nothing that a report shows.
        ValueError: A file is damaged.
    """
    places = [Path(path).expanduser() for path in paths]
    if not places:
        raise ConfigError("paths", "name at least one run, evaluation, sweep or folder of samples")
    target = Path(out).expanduser()
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} already exists; choose another name, or pass overwrite=True to replace it")
    kinds = [kind_of(place) for place in places]
    sections = []
    for kind, place in zip(kinds, places, strict=True):
        with reading(str(place)):
            sections.append(_section(kind, place, training))
    names = ", ".join(place.resolve().name for place in places)
    with atomic_file(target, overwrite=overwrite) as file:
        file.write(render(title or f"undiffuse report: {names}", sections).encode("utf-8"))
    return target


def _section(kind: str, place: Path, training: str | None) -> Section:
    if kind == "run":
        return run_section(place)
    if kind == "evaluation":
        return evaluation_section(place)
    return sweep_section(place) if kind == "sweep" else samples_section(place, training)
