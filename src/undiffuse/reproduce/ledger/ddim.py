"""C29 to C36: DDIM."""

from __future__ import annotations

from undiffuse.reproduce.claim import Claim
from undiffuse.reproduce.ledger.base import DDIM, more, oracle, same, sampled, shipped

CLAIMS = (
    Claim(
        id="C29",
        title="Of one network's samplers the deterministic one is best at few steps.",
        source=DDIM,
        mark="VR",
        published="CIFAR-10 FID at 10 steps: eta 0 13.36, eta 1 41.07; at 1,000 steps 4.04 and 4.73",
        recipes=(
            oracle(
                "sampling:noise_of_ddim",
                more("few", "At 10 steps eta 0 is better than eta 1.", 0.2, "log ratio"),
                steps=[10, 50],
                etas=[0.0, 0.5, 1.0],
                count=4000,
                minutes=0.2,
            ),
            sampled(
                "sampler_sweep",
                more("5 steps", "5 steps: eta 0 is better than eta 1.", 0.2, "log ratio of FD"),
                more("10 steps", "10 steps: eta 0 is better than eta 1.", 0.2, "log ratio of FD"),
                effects={"5 steps": ["fixed_small", 5, "ddim", 5], "10 steps": ["fixed_small", 10, "ddim", 10]},
                minutes=7.0,
            ),
        ),
    ),
    Claim(
        id="C30",
        title="Sampling with the large variance fails at few steps.",
        source=DDIM,
        mark="V",
        published="CIFAR-10 FID at 10 steps 367.43 against 13.36; at 1,000 steps 3.17 against 4.04",
        recipes=(
            sampled(
                "sampler_sweep",
                more("5 steps", "5 steps: its distance is over three times DDIM's.", 1.1, "log ratio of FD"),
                more("10 steps", "10 steps: its distance is larger than DDIM's.", 0.5, "log ratio of FD"),
                effects={"5 steps": ["fixed_large", 5, "ddim", 5], "10 steps": ["fixed_large", 10, "ddim", 10]},
                minutes=7.0,
            ),
        ),
    ),
    Claim(
        id="C31",
        title="DDIM needs a fraction of the steps of ancestral sampling for equal quality.",
        source=DDIM,
        mark="V",
        published="CelebA-64: 20 steps of DDIM are like 100 of DDPM",
        recipes=(
            sampled(
                "sampler_sweep",
                more(
                    "10 for 25", "10 steps of DDIM are better than 25 with the variance beta.", 0.1, "log ratio of FD"
                ),
                effects={"10 for 25": ["fixed_large", 25, "ddim", 10]},
                minutes=7.0,
            ),
        ),
    ),
    Claim(
        id="C32",
        title="The same holds for LSUN at 256x256.",
        source=DDIM,
        mark="V",
        published="bedroom FID at 10 steps 16.95 against 42.78",
        untestable="requires models of LSUN at 256x256",
    ),
    Claim(
        id="C33",
        title="Cost is linear in the number of steps.",
        source=DDIM,
        mark="V",
        published="50,000 CIFAR images: 20 h by DDPM",
        recipes=(
            shipped(
                "shipped:run_time",
                same("unexplained", "A line explains the processor time.", 0.05, "1 - R^2"),
                steps=[2, 4, 8],
                count=8,
                minutes=0.3,
            ),
        ),
    ),
    Claim(
        id="C34",
        title="The error of encoding and decoding falls with the number of steps.",
        source=DDIM,
        mark="V",
        published="CIFAR-10 mean square error: 0.014 at 10 steps, 0.0065 at 20, 0.0009 at 100, 0.0001 at 500",
        recipes=(
            oracle(
                "sampling:round_trip",
                more("falls", "Every increase of the number of steps lowers it.", 0.1, "log ratio"),
                more("total", "From 10 to 500 steps it falls a hundredfold.", 2.0, "decades"),
                steps=[10, 20, 50, 100, 200, 500],
                count=500,
                minutes=0.4,
            ),
            shipped(
                "shipped:reconstruction",
                more("falls", "From 10 to 25 steps it falls.", 0.5, "log ratio"),
                steps=[10, 25],
                scale=2.0,
                count=16,
                minutes=1.0,
            ),
        ),
    ),
    Claim(
        id="C35",
        title="Equal x_T give equal images at any number of DDIM steps, and slerp interpolates meaningfully.",
        source=DDIM,
        mark="V",
        published="figures",
        recipes=(
            sampled(
                "latent_space",
                more("ddim", "DDIM at 10 and 50 steps: the images correlate by more than 0.5.", 0.1, "correlation"),
                more("difference", "More than by ancestral sampling.", 0.2, "correlation"),
                same(
                    "as good as the ends",
                    "The middle of a slerp is of its class as often as the ends.",
                    0.15,
                    "accuracy",
                ),
                more("slerp over lerp", "More often than the middle of a line.", 0.05, "accuracy"),
                few=10,
                many=50,
                steps=10,
                pairs=50,
                points=5,
                count=50,
                minutes=3.0,
            ),
        ),
    ),
    Claim(
        id="C36",
        title="Even or quadratic spacing of the steps makes little difference.",
        source=DDIM,
        mark="V",
        published="quadratic slightly better for CIFAR-10, even spacing elsewhere",
        recipes=(
            sampled(
                "settings_pair",
                same("fd", "At 10 steps of DDIM the distances are equal.", 0.15, "log ratio of FD"),
                first={"solver": "ddim", "steps": "10", "grid": "chain"},
                second={"solver": "ddim", "steps": "10", "grid": "quadratic"},
                minutes=0.5,
            ),
        ),
    ),
)
