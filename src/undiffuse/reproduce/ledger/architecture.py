"""C37 to C45: the architecture of ADM (ImageNet 128x128, Table 1 to 3 of the paper)."""

from __future__ import annotations

from undiffuse.reproduce.claim import Claim, Recipe
from undiffuse.reproduce.ledger.base import ADM, contrasts, gain


def _ablation(says: str, better: str, worse: str, smallest: float = 0.002) -> tuple[Recipe, Recipe]:
    return contrasts(gain("loss", "loss", better, worse, says, smallest))


CLAIMS = (
    Claim(
        id="C37",
        title="All changes of the architecture together improve the model.",
        source=ADM,
        mark="V",
        published="FID 15.33 to 12.19 (700K iterations)",
        recipes=_ablation("The loss is lower than without any of them.", "more-attention", "plain", 0.005),
    ),
    Claim(
        id="C38",
        title="More depth at equal size improves the model but costs time.",
        source=ADM,
        mark="V",
        published="FID -0.21 and -0.48",
        untestable="at this size networks of equal parameters and other depth differ in much else (rounding of widths)",
    ),
    Claim(
        id="C39",
        title="More attention heads improve the model.",
        source=ADM,
        mark="V",
        published="FID -0.54 and -0.82 with four heads",
        recipes=_ablation("The loss is lower with four heads than with one.", "base", "one-head"),
    ),
    Claim(
        id="C40",
        title="Attention at more resolutions improves the model.",
        source=ADM,
        mark="V",
        published="FID -0.72 and -0.66 with attention at 32, 16 and 8",
        recipes=_ablation("The loss is lower with attention at two resolutions than at one.", "more-attention", "base"),
    ),
    Claim(
        id="C41",
        title="BigGAN's residual blocks for resampling improve the model.",
        source=ADM,
        mark="V",
        published="FID -1.20 and -1.21",
        recipes=_ablation("The loss is lower with them.", "base", "plain-resampling"),
    ),
    Claim(
        id="C42",
        title="Rescaling residual connections does not improve the model.",
        source=ADM,
        mark="V",
        published="FID +0.16 and +0.25",
        recipes=_ablation("The loss is higher with 1/sqrt(2).", "base", "rescaled"),
    ),
    Claim(
        id="C43",
        title="More heads or fewer channels per head improve FID.",
        source=ADM,
        mark="V",
        published="FID by channels per head: 32 -1.36, 64 -1.03, 128 -1.08 (one head 14.08)",
        recipes=contrasts(
            gain(
                "8 for 32",
                "loss",
                "base",
                "one-head",
                "Loss: 8 channels per head are better than 32.",
                0.002,
            ),
            gain("16 for 32", "loss", "two-heads", "one-head", "So are 16.", 0.002),
        ),
    ),
    Claim(
        id="C44",
        title="Adaptive group norm is better than adding the embedding.",
        source=ADM,
        mark="V",
        published="FID 13.06 against 15.08",
        recipes=contrasts(
            gain("loss", "loss", "base", "added", "The loss is lower.", 0.002),
            gain("samples", "fd", "base", "added", "The distance is smaller.", 0.1),
        ),
    ),
    Claim(
        id="C45",
        title="64 channels per head are best in time.",
        source=ADM,
        mark="V",
        published="figure",
        untestable="networks here have 32 channels at most, and heads hardly change their time",
    ),
)
