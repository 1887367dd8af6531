"""Which noise levels a distilled model may be asked at."""

from __future__ import annotations

from undiffuse.grids import NoisePath
from undiffuse.models import DiffusionModel
from undiffuse.util.errors import ConfigError

__all__ = ["check_levels"]

_SAME = 1e-3  # difference of log-SNRs that rounding and texts of levels may make
_FAR = 200.0  # stands for the log-SNR of pure noise


def check_levels(model: DiffusionModel, path: NoisePath) -> None:
    """Checks that a distilled model is asked only at the levels of its calls; other models are asked anywhere.

    A student has learned jumps from these levels. What it says at other levels means nothing.

    Args:
        model: The model.
        path: The levels that a sampler is going to visit.

    Raises:
        ConfigError: The path has other levels ("steps").
    """
    card = model.distillation
    if card is None or card.get("anywhere"):
        return
    trained = [max(float(value), -_FAR) for value in card.get("logsnr", ())]
    visited = [max(float(path.level(k).logsnr), -_FAR) for k in reversed(range(path.steps))]
    if all(any(abs(level - own) < _SAME for own in trained) for level in visited):
        return
    levels = ", ".join(f"{value:.3g}" for value in trained)
    raise ConfigError(
        "steps",
        f"cannot be chosen for this model, which was distilled for {len(trained)} calls at log-SNR {levels}: it has "
        f"not learned other levels, which {path.steps} steps would visit. Leave solver, steps and grid out, or use the "
        "model that it was distilled from",
    )
