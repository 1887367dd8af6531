"""C46 to C54: classifier guidance of ADM."""

from __future__ import annotations

from typing import Any

from undiffuse.reproduce.claim import Claim, Recipe
from undiffuse.reproduce.ledger.base import ADM, JUDGE, large, more, oracle, same, sampled, shipped, trained

_GUIDED: dict[str, Any] = {"judge": JUDGE, "count": 200, "reference": 2000, "steps": 25}


def _both(recipe: Recipe) -> tuple[Recipe, Recipe]:
    return recipe, large(recipe, **({"count": 2000} if "count" in recipe.settings else {}))


CLAIMS = (
    Claim(
        id="C46",
        title="An unconditional model is made conditional by guidance; scale 1 is not enough in practice.",
        source=ADM,
        mark="V",
        published="ImageNet-256 FID: none 26.21, scale 1 33.03, scale 10 12.00",
        recipes=(
            oracle(
                "guidance:scale_one",
                same("scale 1 is exact", "With exact scores, scale 1 gives the class's mean.", 0.02, "mean"),
                more("overshoot", "Scale 3 goes beyond it.", 0.05, "mean"),
                more("narrower", "Scale 3 narrows the class.", 0.05, "log ratio"),
                steps=200,
                count=2000,
                minutes=0.3,
                differs="exact denoiser and classifier",
                untested="that scale 1 is too small for trained networks",
            ),
        ),
    ),
    Claim(
        id="C47",
        title="Conditional and guided is best; guidance improves the unconditional model.",
        source=ADM,
        mark="V",
        published="FID: conditional 10.94, guided 4.59; unconditional 26.21, guided 12.00; recall 0.63 to 0.52",
        recipes=_both(
            trained(
                "trained_guidance:conditioning",
                more(
                    "conditional beats unconditional",
                    "Unguided, the conditional model is better.",
                    0.1,
                    "log ratio of FD",
                ),
                more(
                    "guided unconditional: accuracy",
                    "Guided, the unconditional model obeys the class.",
                    0.2,
                    "accuracy",
                ),
                more(
                    "guided conditional: accuracy", "Guidance makes the conditional model obey more.", 0.05, "accuracy"
                ),
                more("guided conditional: recall", "It costs recall.", 0.01, "recall"),
                more(
                    "guided conditional beats guided unconditional",
                    "Guided, the conditional model is better.",
                    0.1,
                    "log ratio of FD",
                ),
                arms=("conditional", "base", "noisy-classifier"),
                scales=[1.0, 3.0],
                minutes=1.5,
                **_GUIDED,
            )
        ),
    ),
    Claim(
        id="C48",
        title="Along the scale precision rises, recall falls, and the distance has an optimum.",
        source=ADM,
        mark="V",
        published="figure (ImageNet-128)",
        recipes=(
            sampled(
                "guidance_scales",
                more("accuracy", "The accuracy of an independent classifier rises.", 0.03, "accuracy"),
                more("precision", "Precision rises.", 0.02, "precision"),
                more("recall", "Recall falls.", 0.02, "recall"),
                more("distance, optimum", "A moderate scale has a smaller distance than none.", 0.1, "log ratio of FD"),
                more("distance, largest", "The largest scale has a larger one.", 0.1, "log ratio of FD"),
                scales=[0.0, 1.0, 4.0],
                steps=25,
                minutes=5.0,
            ),
        ),
    ),
    Claim(
        id="C49",
        title="Guidance dominates BigGAN's truncation.",
        source=ADM,
        mark="V",
        published="figure",
        untestable="requires BigGAN-deep; truncating a small GAN would say nothing of it",
    ),
    Claim(
        id="C50",
        title="Lowering the temperature of the sampler's noise does not help.",
        source=ADM,
        mark="V",
        published="figure: precision and recall both fall; 1 - temperature = 0.01 raises FID from 6 to about 7",
        recipes=(
            sampled(
                "settings_pair",
                more(
                    "fd", "25 ancestral steps: the distance is larger at a temperature of 0.9.", 0.05, "log ratio of FD"
                ),
                more("precision", "Precision is lower.", 0.01, "precision"),
                more("recall", "Recall is lower.", 0.01, "recall"),
                first={"solver": "ddpm", "steps": "25", "grid": "chain", "temperature": 0.9},
                second={"solver": "ddpm", "steps": "25", "grid": "chain"},
                minutes=1.5,
            ),
        ),
    ),
    Claim(
        id="C51",
        title="25 steps of DDIM need a larger scale than 250 ancestral steps.",
        source=ADM,
        mark="VR",
        published="scales 1.0, 0.5, 1.0, 4.0 at 250 steps; 1.25, 2.5, 9.0 at 25 steps of DDIM",
        recipes=(
            oracle(
                "guidance:needed_scale",
                more("scale", "For an equal shift of the mean DDIM needs more.", 0.1, "log ratio"),
                many=250,
                few=25,
                scale=1.0,
                count=1000,
                minutes=0.4,
            ),
        ),
    ),
    Claim(
        id="C52",
        title="Unguided encoding and decoding reconstructs images, guided only roughly; one step less is better.",
        source=ADM,
        mark="V",
        published="figures",
        recipes=(
            shipped(
                "shipped:reconstruction",
                more("guided is worse", "Scale 2 has at least three times the error.", 1.1, "log ratio"),
                more("last step", "The last step to pure noise makes it worse.", 0.05, "log ratio"),
                steps=[10, 25],
                scale=2.0,
                count=16,
                minutes=1.0,
            ),
        ),
    ),
    Claim(
        id="C53",
        title="A gradient at the noisy image instead of the mean makes no noticeable difference.",
        source=f"{ADM}, an author's remark",
        mark="R",
        published="in words",
        recipes=(
            oracle(
                "guidance:gradient_place",
                same("many", "250 steps: the means differ by less than 0.05 standard deviations.", 0.05, "deviations"),
                many=250,
                few=25,
                scale=1.0,
                count=1000,
                minutes=0.4,
            ),
            sampled(
                "settings_pair",
                same("fd", "25 steps, scale 4: the distances are equal.", 0.15, "log ratio of FD"),
                same("accuracy", "So are the accuracies.", 0.05, "accuracy"),
                first={"solver": "ddpm", "steps": "25", "grid": "chain", "guidance": 4.0},
                second={"solver": "ddpm", "steps": "25", "grid": "chain", "guidance": 4.0, "guidance_at": "mean"},
                minutes=3.0,
            ),
        ),
    ),
    Claim(
        id="C54",
        title="Guidance and upsampling complement each other.",
        source=ADM,
        mark="VR",
        published="ImageNet-256 FID: none 10.94, stack 7.49, guidance 4.59, both 3.94",
        recipes=_both(
            trained(
                "trained_guidance:stacked",
                more(
                    "stack beats one stage", "The stack's distance is smaller than one stage's.", 0.1, "log ratio of FD"
                ),
                more("guidance below: accuracy", "Guidance of the small model raises the accuracy.", 0.05, "accuracy"),
                more("guidance below: recall", "It costs recall.", 0.01, "recall"),
                arms=("low", "upsampler", "base", "noisy-classifier"),
                guidance=3.0,
                minutes=1.5,
                **_GUIDED,
            )
        ),
    ),
)
