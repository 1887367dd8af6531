"""Short forms for the entries of the ledger."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from undiffuse.reproduce.arms import SCALES
from undiffuse.reproduce.claim import Part, Recipe

JUDGE = "fashion"
"""The feature network that judges samples; it has guided nothing."""
SEEDS = (1, 2, 3)
DDPM = "Ho, Jain & Abbeel 2020 (DDPM)"
IDDPM = "Nichol & Dhariwal 2021 (Improved DDPM)"
DDIM = "Song, Meng & Ermon 2020 (DDIM)"
ADM = "Dhariwal & Nichol 2021 (ADM)"


def more(effect: str, says: str, smallest: float, unit: str) -> Part:
    """Returns a part that predicts a positive effect."""
    return Part(effect=effect, says=says, smallest=smallest, unit=unit)


def same(effect: str, says: str, smallest: float, unit: str) -> Part:
    """Returns a part that predicts no effect beyond `smallest`."""
    return Part(effect=effect, says=says, smallest=smallest, unit=unit, expects="equal")


def arithmetic(method: str, *parts: Part, differs: str = "", untested: str = "", **settings: Any) -> Recipe:
    """Returns a recipe that needs schedules only."""
    return Recipe(
        tier="arithmetic",
        method=f"arithmetic:{method}",
        parts=parts,
        settings=settings,
        differs=differs,
        untested=untested,
    )


def oracle(
    method: str,
    *parts: Part,
    minutes: float = 0.1,
    differs: str = "",
    untested: str = "",
    revised: str = "",
    **settings: Any,
) -> Recipe:
    """Returns a recipe on a Gaussian mixture; `method` is "module:function" without the prefix "oracle_"."""
    where = "exact scores of a Gaussian mixture of one number instead of a network"
    return Recipe(
        tier="oracle",
        method=f"oracle_{method}",
        parts=parts,
        seeds=SEEDS,
        minutes=minutes,
        settings=settings,
        differs=differs or where,
        untested=untested,
        revised=revised,
    )


def shipped(
    method: str, *parts: Part, minutes: float, differs: str = "", untested: str = "", **settings: Any
) -> Recipe:
    """Returns a recipe on the shipped Fashion-MNIST model; `method` is "module:function"."""
    where = "Fashion-MNIST at 32x32, the shipped model of 2.7M parameters; seeds are those of the samples"
    return Recipe(
        tier="cpu",
        method=method,
        parts=parts,
        seeds=SEEDS,
        minutes=minutes,
        settings=settings,
        differs=differs or where,
        untested=untested,
    )


def sampled(method: str, *parts: Part, minutes: float, **settings: Any) -> Recipe:
    """Returns a recipe on the shipped model whose samples are compared with test images."""
    settings = {"count": 100, "judge": JUDGE, "reference": 2000, **settings}
    return shipped(f"shipped:{method}", *parts, minutes=minutes, **settings)


def trained(
    method: str,
    *parts: Part,
    arms: tuple[str, ...],
    minutes: float = 0.5,
    scale: str = "small",
    revised: str = "",
    **settings: Any,
) -> Recipe:
    """Returns a recipe of the tier "cpu" that trains arms; `minutes` are those of the measurements alone."""
    of = SCALES[scale]
    where = (
        f"Fashion-MNIST at {of.size}x{of.size}, {of.width} channels, {of.images // of.batch} updates of "
        f"{of.batch} images: the first phase of a training"
    )
    return Recipe(
        tier="cpu",
        method=method,
        parts=parts,
        seeds=SEEDS,
        minutes=minutes,
        settings=settings,
        arms=arms,
        scale=scale,
        differs=where,
        revised=revised,
    )


def large(recipe: Recipe, **settings: Any) -> Recipe:
    """Returns the recipe of the tier "gpu" that tests the same parts with larger and longer arms."""
    scale = SCALES["large"]
    where = f"Fashion-MNIST at {scale.size}x{scale.size}, {scale.width} channels, {scale.images:,} images"
    given = {**recipe.settings, **settings}
    return replace(recipe, tier="gpu", scale="large", settings=given, differs=where, minutes=2.0)


UNITS = {"loss": "log ratio", "bits": "bits/dim", "fd": "log ratio of FD", "precision": "precision", "recall": "recall"}
"""Units of the effects of the measures that compare arms, see `methods.trained.contrasts`."""
Effect = tuple[Part, str, str, str]
"""A part, its measure, and the arms that should be better and worse."""


def gain(effect: str, measure: str, better: str, worse: str, says: str, smallest: float) -> Effect:
    """Returns a prediction that one arm is better than another; "base@net" has its raw weights."""
    return more(effect, says, smallest, UNITS[measure]), measure, better, worse


def tie(effect: str, measure: str, first: str, second: str, says: str, most: float) -> Effect:
    """Returns a prediction that two arms differ by no more than `most`."""
    return same(effect, says, most, UNITS[measure]), measure, first, second


def contrasts(*effects: Effect, scale: str = "small", **settings: Any) -> tuple[Recipe, Recipe]:
    """Returns recipes of the tiers "cpu" and "gpu" that compare arms.

    Args:
        *effects: Predictions, see `gain` and `tie`.
        scale: Scale of the arms of the tier "cpu".
        **settings: Other settings of `methods.trained.contrasts`.
    """
    arms = tuple(dict.fromkeys(arm.partition("@")[0] for _, _, *pair in effects for arm in pair))
    given = {part.effect: [measure, better, worse] for part, measure, better, worse in effects}
    parts = [part for part, *_ in effects]
    recipe = trained("trained:contrasts", *parts, arms=arms, scale=scale, effects=given, judge=JUDGE, **settings)
    return recipe, large(recipe, samples=2000, images=2000, terms=32)
