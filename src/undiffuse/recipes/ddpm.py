"""The models of DDPM (Ho, Jain & Abbeel 2020, arXiv:2006.11239).

Settings are those of the paper's Appendix B and of the authors' released scripts. Where the two disagree the paper is
followed and the recipe's "unverified" entry says so.

The network is this package's U-Net with the paper's arguments: same layers and number of parameters as the authors',
up to details that their weights would need but a training does not (sines before cosines in the time embedding,
epsilon 1e-6 in the group norms, padding on one side when down-sampling).
"""

from __future__ import annotations

from collections.abc import Callable

from undiffuse.config.advice import advice
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import UNetConfig
from undiffuse.objectives import ObjectiveConfig
from undiffuse.recipes.base import NOT_RUN, Preparation, Recipe, figures_of, paper_training

_WARMUP_STEPS = 5_000


def cifar10() -> Recipe:
    """CIFAR-10, unconditional: 35.7M parameters, 800K updates, fixed variance beta, attention at 16x16."""
    return Recipe(
        name="ddpm-cifar10-32",
        summary="DDPM for CIFAR-10, unconditional, 35.7M parameters",
        data=Preparation(size=32, flip=True),
        net=UNetConfig(
            image_size=32,
            model_channels=128,
            channel_mult=(1, 2, 2, 2),
            num_res_blocks=2,
            attention_resolutions=(2,),
            dropout=0.1,
        ),
        process=ProcessConfig(variance="fixed_large"),
        objective=ObjectiveConfig(loss="simple"),
        train=paper_training(
            batch=128, steps=800_000, lr=2e-4, warmup_images=_WARMUP_STEPS * 128, grad_clip=1.0, precision="fp32"
        ),
        advice=advice("1000"),
        published=figures_of(
            "ddpm_ema_cifar10",
            "warm-up over 5,000 updates and clipping are only in the script, which never stops; the 800K updates are "
            "the paper's, whose FID is the best one during training",
            same_network=False,
        ),
        measured=NOT_RUN,
    )


def _large(name: str, summary: str, steps: int, flip: bool, published: dict[str, str]) -> Recipe:
    """Returns a recipe with the 114M network for 256x256 of all data sets: six levels, attention at 16x16."""
    return Recipe(
        name=name,
        summary=summary,
        data=Preparation(size=256, flip=flip),
        net=UNetConfig(
            image_size=256,
            model_channels=128,
            channel_mult=(1, 1, 2, 2, 4, 4),
            num_res_blocks=2,
            attention_resolutions=(16,),
        ),
        process=ProcessConfig(variance="fixed_small"),
        objective=ObjectiveConfig(loss="simple"),
        train=paper_training(
            batch=64, steps=steps, lr=2e-5, warmup_images=_WARMUP_STEPS * 64, grad_clip=1.0, precision="fp32"
        ),
        advice=advice("1000"),
        published=published,
        measured=NOT_RUN,
    )


def celebahq() -> Recipe:
    """CelebA-HQ at 256x256, 0.5M updates. The paper shows samples and reports no FID."""
    return _large(
        "ddpm-celebahq-256",
        "DDPM for CelebA-HQ 256x256, unconditional, 114M parameters",
        500_000,
        True,
        {"FID": "not reported", "source": "Ho et al. 2020; settings: Appendix B and the released script"},
    )


def lsun_bedroom() -> Recipe:
    """LSUN bedrooms at 256x256, 2.4M updates. Not the paper's larger variant (256M parameters, FID 4.90), whose
    widths it does not state."""
    return _large(
        "ddpm-lsun-bedroom-256",
        "DDPM for LSUN bedrooms 256x256, unconditional, 114M parameters",
        2_400_000,
        False,
        figures_of(
            "ddpm_ema_lsun_bedroom",
            "no flips according to the paper; the released script flips",
            same_network=False,
        ),
    )


def lsun_cat() -> Recipe:
    """LSUN cats at 256x256, 1.8M updates."""
    return _large(
        "ddpm-lsun-cat-256",
        "DDPM for LSUN cats 256x256, unconditional, 114M parameters",
        1_800_000,
        True,
        figures_of(
            "ddpm_ema_lsun_cat",
            "flips according to the paper; the released script turns them off for this data set",
            same_network=False,
        ),
    )


def lsun_church() -> Recipe:
    """LSUN churches at 256x256, 1.2M updates."""
    return _large(
        "ddpm-lsun-church-256",
        "DDPM for LSUN churches 256x256, unconditional, 114M parameters",
        1_200_000,
        True,
        figures_of(
            "ddpm_ema_lsun_church",
            "1.2M updates according to the paper; the converted weights are from update 4,432,000",
            same_network=False,
        ),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "ddpm-cifar10-32": cifar10,
    "ddpm-celebahq-256": celebahq,
    "ddpm-lsun-bedroom-256": lsun_bedroom,
    "ddpm-lsun-cat-256": lsun_cat,
    "ddpm-lsun-church-256": lsun_church,
}
