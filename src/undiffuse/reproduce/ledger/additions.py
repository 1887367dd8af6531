"""C81 to C83: what the papers say without a figure, and what a person choosing settings wants to know."""

from __future__ import annotations

from undiffuse.reproduce.claim import Claim
from undiffuse.reproduce.ledger.base import ADM, DDPM, JUDGE, large, more, sampled, trained

_NOISY = trained(
    "trained_guidance:noisy_or_clean",
    more(
        "accuracy", "Samples guided by the classifier of noisy images are of their class more often.", 0.05, "accuracy"
    ),
    more("distance", "Their distance is smaller.", 0.1, "log ratio of FD"),
    arms=("base", "noisy-classifier", "clean-classifier"),
    guidance=3.0,
    judge=JUDGE,
    count=200,
    reference=2000,
    steps=25,
    minutes=1.0,
)
_CROPS = trained(
    "trained_guidance:classifier_crops",
    more("accuracy", "Accuracy on noisy test images is higher with crops.", 0.01, "accuracy"),
    arms=("noisy-classifier", "cropped-classifier"),
    count=1000,
    minutes=0.3,
)

CLAIMS = (
    Claim(
        id="C81",
        title="The classifier that guides has to be trained on noisy images.",
        source=ADM,
        mark="S",
        published="in words",
        recipes=(_NOISY, large(_NOISY, count=2000)),
    ),
    Claim(
        id="C82",
        title="Random crops improve the classifier that guides, as they keep it from overfitting.",
        source=ADM,
        mark="S",
        published="in words",
        recipes=(_CROPS, large(_CROPS, count=10000)),
    ),
    Claim(
        id="C83",
        title="Clipping the denoised image to the range of pixels matters at few steps.",
        source=f"the released code of {DDPM} and ADM",
        mark="S",
        published="in code: samplers clip by default",
        recipes=(
            sampled(
                "settings_pair",
                more("fd", "10 steps of DDIM: clipping makes the distance smaller.", 0.1, "log ratio of FD"),
                first={"solver": "ddim", "steps": "10", "grid": "chain", "clip": "none"},
                second={"solver": "ddim", "steps": "10", "grid": "chain"},
                minutes=0.5,
            ),
        ),
    ),
)
