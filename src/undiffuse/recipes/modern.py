"""The general recipes with newer processes than ADM's: v-prediction, EDM's preconditioning, flow matching.

Network, optimiser and lengths are those of `general-32` and `general-64`, so that runs differ in the process alone. All
keep snapshots of power-function averages, for `undiffuse ema`. Nothing here was measured.

    -v      v on a cosine chain that ends in pure noise, min-SNR weighting, learned variance (Salimans & Ho 2022; Lin et
            al. 2023; Hang et al. 2023)
    -edm    F over continuous levels, log-normal density (Karras et al. 2022); their weighting is F's own error
    -flow   noise minus image over t in (0, 1], logit-normal density (Lipman et al. 2023; Esser et al. 2024)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from undiffuse.config.advice import advice
from undiffuse.denoiser import ProcessConfig
from undiffuse.objectives import ObjectiveConfig
from undiffuse.recipes.base import Recipe
from undiffuse.recipes.general import NOT_MEASURED, general_32, general_64

_GENERAL = {32: general_32, 64: general_64}
_SNAPSHOTS = 40
_VARIANTS: dict[str, tuple[str, ProcessConfig, ObjectiveConfig, str]] = {
    "v": (
        "v-prediction, zero terminal SNR, min-SNR",
        ProcessConfig(schedule="cosine+zero-terminal", target="v"),
        ObjectiveConfig(loss="hybrid", weighting="min-snr:5"),
        "uniform",
    ),
    "edm": (
        "EDM's preconditioning and noise levels",
        ProcessConfig(preconditioning="edm", target="edm", variance="fixed_small"),
        ObjectiveConfig(),
        "lognormal:-1.2,1.2",
    ),
    "flow": (
        "flow matching",
        ProcessConfig(preconditioning="flow", target="velocity", variance="fixed_small"),
        ObjectiveConfig(),
        "logitnormal:0,1",
    ),
}


def _modern(size: int, variant: str) -> Recipe:
    what, process, objective, levels = _VARIANTS[variant]
    base = _GENERAL[size]()
    every = (base.train.images or 0) // _SNAPSHOTS
    channels = base.data.channels
    return replace(
        base,
        name=f"general-{size}-{variant}",
        summary=f"general-{size} with {what} ({NOT_MEASURED})",
        net=replace(base.net, out_channels=process.out_channels(channels)),
        process=process,
        objective=objective,
        train=replace(base.train, density=levels, posthoc_widths=(0.05, 0.1), posthoc_every=every),
        advice=advice("50", solver="ddim"),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    f"general-{size}-{variant}": partial(_modern, size, variant) for size in _GENERAL for variant in _VARIANTS
}
