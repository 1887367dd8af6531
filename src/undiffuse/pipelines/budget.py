"""`--budget CALLS`: the sampler that a model's frontier of quality against network calls says is best."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from undiffuse import frontiers

if TYPE_CHECKING:
    from undiffuse.pipelines.pipeline import SamplerConfig

SWEEP = "undiffuse sweep REFERENCE --model {model} --solvers ancestral,dpmpp-2m,dpmpp-2m-sde,unipc --calls 5,10,20,50"


def within_budget(settings: SamplerConfig, digest: str) -> tuple[SamplerConfig, str]:
    """The settings with solver, steps and grid of the best point within `settings.budget` calls of the network, for the
    weights with that digest; and in a line what that point was measured to give.

    ValueError where these are given too, where no frontier is known (with the command that measures one), and where it
    has no point of the guidance in use.
    """
    assert settings.budget is not None
    given = {"solver": settings.solver, "steps": settings.steps, "grid": settings.grid, "eta": settings.eta}
    given["solver-options"] = settings.solver_options
    for name, value in given.items():
        if value:
            raise ValueError(f"--budget chooses the solver and its steps and grid: leave --{name} out, or --budget")
    command = SWEEP.format(model=settings.model)
    if settings.guiding.compares or settings.guiding.more_classifiers:
        raise ValueError(
            "--budget knows what was measured without guidance or with one classifier: give --solver, --steps"
        )
    frontier = frontiers.known(digest)
    if frontier is None:
        raise ValueError(
            f"no frontier of quality against network calls is known for these weights: measure it by {command}"
        )
    try:
        point = frontier.best(settings.budget, settings.guidance, settings.guidance_at)
    except ValueError as error:
        scales = f" --scales {settings.guidance:g}" if settings.guidance else ""
        raise ValueError(f"--budget {settings.budget}: {error}; measure by {command}{scales}") from None
    chosen = {name: point.settings[name] for name in ("solver", "steps", "grid", "solver_options", "eta")}
    return replace(settings, budget=None, **chosen), _told(frontier, point)


def _told(frontier: frontiers.Frontier, point: frontiers.Point) -> str:
    error = "" if point.stderr is None else f" +- {point.stderr:.2g}"
    text = f"{point.text}: {point.calls} calls, {frontier.metric} {point.value:.4g}{error}"
    reference, verdict = frontier.reference_of(point), frontier.verdict(point)
    if reference is None or not verdict:
        return text
    than = "to" if verdict == "equal" else "than"
    return f"{text}, {verdict} {than} {reference.text} ({reference.calls} calls, {reference.value:.4g})"
