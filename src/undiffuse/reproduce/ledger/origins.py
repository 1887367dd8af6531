"""C01 to C12: the origins, DDPM, and score-based models."""

from __future__ import annotations

from undiffuse.reproduce.claim import Claim
from undiffuse.reproduce.ledger.base import DDPM, arithmetic, contrasts, gain, more, oracle, same, shipped

SCORE_SDE = "Song et al. 2021 (Score-SDE)"

CLAIMS = (
    Claim(
        id="C01",
        title="A slow, fixed noising chain gives a tractable bound on log p that tightens as T grows.",
        source="Sohl-Dickstein et al. 2015",
        mark="V",
        published="swiss roll 2.35 bits; CIFAR-10 at most 5.4 +- 0.2 bits/pixel",
        recipes=(
            oracle(
                "chains:bound_gap",
                more("bound", "The bound is not below the truth at the largest T.", 1e-7, "nats"),
                more("shrinks", "The gap shrinks at least fivefold from T = 40 to 400.", 1.6, "log ratio"),
                lengths=[40, 100, 400],
                count=40,
                minutes=0.3,
            ),
        ),
    ),
    Claim(
        id="C02",
        title="DDPM is a high-quality image model.",
        source=DDPM,
        mark="V",
        published="CIFAR-10: FID 3.17 (train), 5.24 (test), IS 9.46 +- 0.11",
        untestable="absolute FID of CIFAR-10 requires that data, the Inception network and days of a GPU",
    ),
    Claim(
        id="C03",
        title="Training on the bound gives better codelength, the simple loss better samples.",
        source=DDPM,
        mark="V",
        published="fixed variance: bound 3.70 bits/dim, FID 13.51; simple loss 3.75 bits/dim, FID 3.17",
        recipes=contrasts(
            gain("codelength", "bits", "bound-fixed", "simple", "The bound's bits/dim are lower.", 0.02),
            gain("samples", "fd", "simple", "bound-fixed", "The simple loss's distance is smaller.", 0.1),
        ),
    ),
    Claim(
        id="C04",
        title="Predicting the noise beats predicting the mean and x0 under the plain squared error.",
        source=DDPM,
        mark="V",
        published="FID: noise 3.17; mean unstable; x0 worse (in words)",
        recipes=contrasts(
            gain(
                "mean, loss",
                "loss",
                "simple",
                "mean",
                "Predicted noise has a smaller error than via the mean.",
                0.02,
            ),
            gain("mean, samples", "fd", "simple", "mean", "So is the distance.", 0.1),
            gain(
                "x0, loss",
                "loss",
                "simple",
                "x0",
                "Predicted noise has a smaller error than via x0.",
                0.02,
            ),
            gain("x0, samples", "fd", "simple", "x0", "So is the distance.", 0.1),
        ),
    ),
    Claim(
        id="C05",
        title="beta and beta~ as the reverse variance give similar samples at 1,000 steps.",
        source=DDPM,
        mark="V",
        published="in words; a learned diagonal variance was unstable (FID 23.69 against 13.22)",
        recipes=(
            oracle(
                "sampling:reverse_variances",
                same("fixed differ, many", "At 1,000 steps the distances are equal.", 0.005, "Wasserstein-1"),
                more("fixed differ, few", "At 5 steps they are not.", 0.1, "log ratio"),
                steps=[5, 25, 1000],
                untested="a learned diagonal variance",
                count=1000,
                minutes=0.5,
            ),
        ),
    ),
    Claim(
        id="C06",
        title="What the end of the chain still knows of the image is negligible.",
        source=DDPM,
        mark="V",
        published="L_T about 1e-5 bits/dim",
        recipes=(
            arithmetic(
                "prior_term",
                more("decades", "L_T is at most 1e-4 bits/dim, by half a decade.", 0.5, "decades"),
                square=0.25,
                limit=1e-4,
                differs="computed for pixels with a mean square of 0.25",
            ),
        ),
    ),
    Claim(
        id="C07",
        title="More than half of the codelength describes imperceptible detail.",
        source=DDPM,
        mark="V",
        published="rate 1.78, distortion 1.97 bits/dim, RMSE 0.95 of 255",
        recipes=(
            shipped(
                "likelihoods:rate_distortion",
                more("distortion", "The decoder's share exceeds a quarter.", 0.05, "share"),
                more("first tenth", "The first tenth of the steps carries more than half of all bits.", 0.1, "share"),
                steps=[0, 1, 2, 4, 9, 19, 49, 99, 199, 399, 699, 999],
                count=32,
                minutes=0.6,
            ),
        ),
    ),
    Claim(
        id="C08",
        title="DDPM reaches the quality of GANs on LSUN at 256x256.",
        source=DDPM,
        mark="V",
        published="FID: bedroom 4.90, church 7.89, cat 19.75",
        untestable="requires LSUN at 256x256 and weeks of training",
    ),
    Claim(
        id="C09",
        title="An average of the weights improves samples.",
        source=f"{DDPM}; a third party's measurement",
        mark="R",
        published="FID without the average 12.1, with it 3.21",
        recipes=contrasts(
            gain("samples", "fd", "base", "base@net", "The distance is smaller with the average.", 0.1),
            gain("loss", "loss", "base", "base@net", "So is the error of the noise.", 0.01),
        ),
    ),
    Claim(
        id="C10",
        title="Langevin dynamics at one noise level cannot recover the weights of modes; annealed it can.",
        source="Song & Ermon 2019 (NCSN)",
        mark="S",
        published="weights 1:4 of two modes are recovered by annealing only",
        recipes=(
            oracle(
                "chains:annealed_weights",
                more("plain is wrong", "Plain dynamics miss the weight 0.2.", 0.1, "share"),
                same("annealed is right", "Annealed dynamics find it.", 0.04, "share"),
                count=2000,
                levels=40,
                inner=150,
                minutes=1.0,
                revised="the first run took 50 steps at each level and ended at 0.227 [0.209, 0.246], not settled "
                "within 0.04; thresholds unchanged",
            ),
        ),
    ),
    Claim(
        id="C11",
        title="Better networks and continuous training of score models set the state of the art.",
        source=SCORE_SDE,
        mark="V",
        published="CIFAR-10: NCSN++ FID 2.20, DDPM++ sub-VP 2.99 bits/dim",
        untestable="absolute FID of CIFAR-10 requires days of training",
    ),
    Claim(
        id="C12",
        title="The probability flow gives exact likelihoods.",
        source=SCORE_SDE,
        mark="VS",
        published="the same DDPM: bound at most 3.75, flow 3.28 bits/dim",
        recipes=(
            oracle(
                "chains:exact_flow",
                same("flow is exact", "The flow's log p is the truth.", 0.002, "nats"),
                untested="the difference from the bound for trained networks",
                count=40,
                minutes=0.6,
            ),
        ),
    ),
)
