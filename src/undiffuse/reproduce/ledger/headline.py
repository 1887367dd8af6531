"""C55 to C70: ADM's results and cost, and the review's own remarks."""

from __future__ import annotations

from undiffuse.reproduce.claim import Claim
from undiffuse.reproduce.ledger.base import (
    ADM,
    IDDPM,
    contrasts,
    gain,
    large,
    more,
    oracle,
    same,
    sampled,
    trained,
)

_NUMBERS = "requires ImageNet or LSUN, and hundreds of V100 days"

CLAIMS = (
    Claim(
        id="C55",
        title="ADM beats GANs on LSUN at 256x256.",
        source=ADM,
        mark="VR",
        published="FID: bedroom 1.90, horse 2.57, cat 5.57; StyleGAN 2.35, StyleGAN2 3.84 and 7.25",
        untestable=_NUMBERS,
    ),
    Claim(
        id="C56",
        title="ADM beats BigGAN-deep at 64x64.",
        source=ADM,
        mark="VR",
        published="FID 2.07 against 4.06",
        untestable=_NUMBERS,
    ),
    Claim(
        id="C57",
        title="Guided, it beats BigGAN-deep at 128x128.",
        source=ADM,
        mark="VR",
        published="FID 2.97 against 6.02",
        untestable=_NUMBERS,
    ),
    Claim(
        id="C58",
        title="Guided, it beats BigGAN-deep at 256x256.",
        source=ADM,
        mark="VR",
        published="FID 4.59 against 6.95",
        untestable=_NUMBERS,
    ),
    Claim(
        id="C59",
        title="Guided, it beats BigGAN-deep at 512x512.",
        source=ADM,
        mark="VR",
        published="FID 7.72 against 8.43",
        untestable=_NUMBERS,
    ),
    Claim(
        id="C60",
        title="25 steps of DDIM come close to 250 steps.",
        source=ADM,
        mark="V",
        published="FID 5.98, 5.44, 8.41 with 25 steps; 2.97, 4.59, 7.72 with 250",
        recipes=(
            sampled(
                "sampler_sweep",
                same("25 for 50", "DDIM: 25 steps are within 20 % of 50.", 0.2, "log ratio of FD"),
                effects={"25 for 50": ["ddim", 25, "ddim", 50]},
                minutes=2.0,
            ),
        ),
    ),
    Claim(
        id="C61",
        title="Diffusion models beat GANs on image synthesis.",
        source=ADM,
        mark="V",
        published="FID 4.59 against 6.95, recall 0.52 against 0.28, precision 0.82 against 0.87 (ImageNet-256)",
        recipes=contrasts(
            gain("distance", "fd", "base", "gan", "The distance is smaller than the GAN's.", 0.1),
            gain("recall", "recall", "base", "gan", "Recall is higher.", 0.02),
            gain("precision", "precision", "gan", "base", "Precision is lower.", 0.02),
        ),
    ),
    Claim(
        id="C62",
        title="More of the steps near the image improve samples.",
        source=ADM,
        mark="V",
        published="LSUN bedroom FID: 250 even steps 2.31, allocated 90,60,60,20,20 2.02",
        recipes=(
            sampled(
                "settings_pair",
                more("fd", "25 ancestral steps: the allocation 9,6,6,2,2 is better.", 0.05, "log ratio of FD"),
                first={"solver": "ddpm", "steps": "25", "grid": "chain"},
                second={"solver": "ddpm", "steps": "9,6,6,2,2", "grid": "chain"},
                minutes=1.5,
            ),
        ),
    ),
    Claim(
        id="C63",
        title="Samples improve steadily during training.",
        source=ADM,
        mark="V",
        published="ImageNet-256 FID at 250K to 2M iterations: 12.21 to 4.59",
        recipes=contrasts(
            gain("loss", "loss", "base", "half-way", "The loss is below that after half of the images.", 0.01),
            gain("samples", "fd", "base", "half-way", "So is its distance.", 0.1),
        ),
    ),
    Claim(
        id="C64",
        title="Training costs about as much as that of GANs.",
        source=ADM,
        mark="V",
        published="V100 days: LSUN horse 116 against 130; ImageNet-256 962 against 128 to 256",
        untestable=_NUMBERS,
    ),
    Claim(
        id="C65",
        title="Optimised code reaches 36 to 41 % of a V100.",
        source=ADM,
        mark="V",
        published="74.1, 24.8 and 6.4 images per V100 second",
        untestable="about a V100; the throughput of this library is in docs/benchmarks-networks.md",
    ),
    Claim(
        id="C66",
        title="Samples are not copies of training images.",
        source=ADM,
        mark="V",
        published="figure",
        recipes=(
            sampled(
                "copies",
                more("not copies", "Training images are no nearer to samples than to test images.", 0.02, "log ratio"),
                training=5000,
                minutes=1.0,
            ),
        ),
    ),
    Claim(
        id="C67",
        title="Dropout helps.",
        source=ADM,
        mark="V",
        published="FID: horse 2.95 to 2.57, ImageNet-64 2.61 to 2.07",
        untestable="dropout acts against overfitting, which begins after many passes over the data",
    ),
    Claim(
        id="C68",
        title="Sampling is slower than a GAN's single pass.",
        source=f"the review; {IDDPM}",
        mark="V",
        published="about 4,000 network calls",
        recipes=tuple(
            make(
                trained(
                    "trained:sampling_time",
                    more("25 steps", "25 steps take over ten times as long as the GAN's pass.", 2.3, "log ratio"),
                    arms=("base", "gan"),
                    steps=25,
                    count=50,
                    minutes=0.3,
                )
            )
            for make in (lambda recipe: recipe, large)
        ),
    ),
    Claim(
        id="C69",
        title="Reverse steps are nearly Gaussian if they are short.",
        source="Sohl-Dickstein et al. 2015",
        mark="V",
        published="Feller's argument",
        recipes=(
            oracle(
                "chains:gaussian_reverse",
                same("one step", "A single step of 1,000 is Gaussian.", 0.01, "Wasserstein-1 in deviations"),
                more("long steps", "A step over 400 of them is not.", 0.05, "Wasserstein-1 in deviations"),
                strides=[1, 10, 100, 250, 400],
                count=200,
            ),
        ),
    ),
    Claim(
        id="C70",
        title="To the eye, diffusion and flows were on a par with GANs already.",
        source="the review",
        mark="V",
        published="an opinion",
        untestable="a judgement of people, not of a measurement",
    ),
)
