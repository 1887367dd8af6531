"""Chooses the best sampler within a number of network calls, from a measured frontier of quality against calls."""

from __future__ import annotations

from undiffuse import frontiers
from undiffuse.config import SamplerConfig
from undiffuse.util.errors import ConfigError

__all__ = ["within_budget"]

_SWEEP = "undiffuse sweep {data} --model {model} --solvers ddpm,dpmpp-2m,dpmpp-2m-sde,unipc --nfe 5,10,20,50"


def within_budget(config: SamplerConfig, digest: str) -> tuple[SamplerConfig, str]:
    """Chooses solver, steps and grid from the frontier of a model.

    Args:
        config: Settings with a `budget`, their guidance resolved.
        digest: Identity of the model's weights, to which a frontier belongs.

    Returns:
        The settings of the best point within `config.budget` calls of the network, and one line on what that point was
        measured to give.

    Raises:
        ConfigError: If solver, steps, grid or eta are given too; if no frontier is known, with the command that
            measures one; or if it has no point with the guidance in use.
    """
    assert config.budget is not None
    chosen = {name: getattr(config, name) for name in ("solver", "steps", "grid", "eta", "solver_options")}
    for name, value in chosen.items():
        if value:
            raise ConfigError(name, "cannot be combined with `budget`, which chooses it: omit one of them")
    guidance = config.guidance
    command = _SWEEP.format(model=config.model, data="DATA")
    if guidance.compares or len(guidance.judges) > 1:
        raise ConfigError(
            "budget",
            "works without guidance or with one classifier only, as frontiers are measured: give `solver` and `steps` "
            "instead",
        )
    measured = frontiers.known(digest)
    if not measured:
        raise ConfigError(
            "budget",
            "needs a measured frontier of quality against network calls, and there is none for this model. Measure one "
            f"on test images that the model was not trained on (DATA): {command}",
        )
    found, error = None, None
    for frontier in measured:  # the best measured one that has a point within the budget
        try:
            found = frontier, frontier.best(config.budget, guidance.strength, guidance.at)
            break
        except ValueError as why:
            error = error or why
    if found is None:
        scales = f" --scales {guidance.strength:g}" if guidance.strength else ""
        raise ConfigError("budget", f"{config.budget} network calls: {error}; measure it by {command}{scales}")
    frontier, point = found
    names = ("solver", "steps", "grid", "solver_options", "eta")
    return config.replace(budget=None, **{name: point.settings[name] for name in names}), _describe(frontier, point)


def _describe(frontier: frontiers.Frontier, point: frontiers.Point) -> str:
    error = "" if point.stderr is None else f" +- {point.stderr:.2g}"
    text = f"{point.text}: {point.nfe} calls, {frontier.metric} {point.value:.4g}{error}"
    reference, verdict = frontier.reference_of(point), frontier.verdict(point)
    if reference is None or not verdict:
        return text
    than = "to" if verdict == "equal" else "than"
    return f"{text}, {verdict} {than} {reference.text} ({reference.nfe} calls, {reference.value:.4g})"
