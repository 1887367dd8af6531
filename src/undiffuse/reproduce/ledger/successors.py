"""C71 to C80: successors of ADM."""

from __future__ import annotations

from undiffuse.reproduce.claim import Claim
from undiffuse.reproduce.ledger.base import arithmetic, contrasts, gain, more, oracle, same

CLAIMS = (
    Claim(
        id="C71",
        title="Heun's method and EDM's grid need far fewer calls than Euler's.",
        source="Karras et al. 2022 (EDM)",
        mark="VS",
        published="VP: FID 2.85 with 256 calls, 2.93 with 35; VE: 5.45 with 8,192, 3.73 with 27",
        recipes=(
            oracle(
                "sampling:solver_errors",
                more("heun over euler", "19 and 35 calls: Heun's error is at most half of Euler's.", 0.7, "log ratio"),
                calls=[19, 35],
                count=500,
            ),
        ),
    ),
    Claim(
        id="C72",
        title="EDM's loss weighting and noise density improve training.",
        source="Karras et al. 2022 (EDM)",
        mark="VS",
        published="CIFAR-10 FID 2.48 to 1.79 (conditional), 3.01 to 1.97",
        untestable="needs long trainings: early on, a density of levels changes which levels are learned first",
    ),
    Claim(
        id="C73",
        title="Classifier-free guidance trades diversity for fidelity, with an optimum.",
        source="Ho & Salimans 2022 (CFG)",
        mark="S",
        published="ImageNet-64: w = 0.1: FID 1.55, w = 4: 26.2; IS 66 to 260",
        recipes=(
            oracle(
                "guidance:classifier_free",
                more("overshoot", "Scale 3 shifts the mean beyond the class's.", 0.02, "mean"),
                more("narrower", "It narrows the class.", 0.05, "log ratio"),
                same("formula", "One level's guided score is that of the Gaussian of the closed form.", 1e-6, "score"),
                scale=3.0,
                steps=200,
                count=2000,
                minutes=0.2,
                differs="exact scores of Gaussian classes",
                untested="the optimum of the distance, which exact scores do not have",
            ),
        ),
    ),
    Claim(
        id="C74",
        title="Min-SNR weighting converges faster.",
        source="Hang et al. 2023 (Min-SNR)",
        mark="S",
        published="3.4 times faster; ImageNet-256 FID 2.06",
        recipes=contrasts(
            gain("samples", "fd", "min-snr", "simple", "At equal length its distance is smaller.", 0.1),
        ),
    ),
    Claim(
        id="C75",
        title="Guidance in a limited interval is better.",
        source="Kynkaanniemi et al. 2024",
        mark="S",
        published="EDM2-S FID 2.23 to 1.68, EDM2-XXL 1.81 to 1.40",
        untestable="the gain in recall, 0.01 to 0.05, needs tens of thousands of samples at equal precision",
    ),
    Claim(
        id="C76",
        title="A model guided by a weaker version of itself is better.",
        source="Karras et al. 2024 (autoguidance)",
        mark="R",
        published="ImageNet-512 FID: EDM2-S 2.23 to 1.34, XXL 1.81 to 1.25",
        untestable="no weaker version of the shipped model was kept; to be added with the next training",
    ),
    Claim(
        id="C77",
        title="Averages of any width can be made after training.",
        source="Karras et al. 2024 (EDM2)",
        mark="R",
        published="best widths 0.05 to 0.19 by model and metric",
        recipes=(
            arithmetic(
                "posthoc_average",
                same("error", "The reconstruction differs by less than 0.1 %.", 1e-3, "relative error"),
                updates=512,
                weights=64,
                differs="a random walk in place of a training",
                untested="which width is best",
            ),
        ),
    ),
    Claim(
        id="C78",
        title="UniPC is more accurate than other solvers at about ten calls.",
        source="Zhao et al. 2023 (UniPC)",
        mark="S",
        published="10 calls: CIFAR-10 FID 3.87, ImageNet-256 7.51",
        recipes=(
            oracle(
                "sampling:solver_errors",
                more("unipc over 2m", "Its error is smaller than that of DPM-Solver++(2M).", 0.1, "log ratio"),
                more("2m over euler", "And that of 2M smaller than DDIM's.", 0.5, "log ratio"),
                calls=[9, 11, 19],
                count=500,
            ),
        ),
    ),
    Claim(
        id="C79",
        title="Straight paths need fewer steps.",
        source="Liu et al. 2022 (rectified flow)",
        mark="S",
        published="CIFAR-10: FID 2.58 with 127 calls; one step 378, after reflow 12.2",
        recipes=(
            oracle(
                "sampling:straight_paths",
                more("few", "5 and 10 steps along its path: smaller distance than DDIM's.", 0.2, "log ratio"),
                steps=[5, 10],
                count=4000,
                untested="reflow, and one step",
            ),
        ),
    ),
    Claim(
        id="C80",
        title="Zero terminal SNR and trailing steps restore the range of brightness.",
        source="Lin et al. 2023",
        mark="S",
        published="figures",
        recipes=(
            oracle(
                "sampling:brightness_range",
                more("mean", "The mean brightness is nearer to that of the data.", 0.005, "brightness"),
                side=8,
                steps=20,
                count=2000,
            ),
        ),
    ),
)
