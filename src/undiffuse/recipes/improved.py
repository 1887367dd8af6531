"""The models of Improved DDPM (Nichol & Dhariwal 2021, arXiv:2102.09672).

Networks, processes, learning rates and batches are those of the flags in the release's README; numbers of updates are
those in the names of the released files. The README's flags leave half precision off, so these train in float32. The
release does not flip images. Results and advice are those of the file that a recipe names
(`undiffuse.adapters.published`).

All learn their variance. "rescale" of the objective follows the flag rescale_learned_sigmas: with 4,000 steps it
multiplies the bound's term of the hybrid loss by four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import UNetConfig
from undiffuse.objectives import ObjectiveConfig
from undiffuse.recipes.base import NOT_RUN, Preparation, Recipe, advice_of, figures_of, paper_training

_COSINE = ProcessConfig(schedule="cosine", steps=4000, rescale_timesteps=True)
_HYBRID = ObjectiveConfig(loss="hybrid", decoder="tanh")
_HYBRID_PLAIN = ObjectiveConfig(loss="hybrid", rescale=False, decoder="tanh")
_BOUND = ObjectiveConfig(loss="vlb", decoder="tanh")


def _net(
    size: int, channels: int, mult: tuple[float, ...], blocks: int, pixels: tuple[int, ...], **more: Any
) -> UNetConfig:
    """Returns a U-Net with strided convolutions between levels, four heads and adaptive group norm.

    Args:
        pixels: Sides of the feature maps with attention.
        **more: Fields that differ.
    """
    settings: dict[str, Any] = {"num_heads": 4, "use_scale_shift_norm": True, **more}
    return UNetConfig(
        image_size=size,
        model_channels=channels,
        out_channels=6,
        channel_mult=mult,
        num_res_blocks=blocks,
        attention_resolutions=tuple(size // p for p in pixels),
        **settings,
    )


def _cifar10(name: str, summary: str, objective: ObjectiveConfig, timesteps: str, file: str) -> Recipe:
    return Recipe(
        name=name,
        summary=summary,
        data=Preparation(size=32),
        net=_net(32, 128, (1, 2, 2, 2), 3, (16, 8), dropout=0.3),
        process=_COSINE,
        objective=objective,
        train=paper_training(batch=128, steps=500_000, lr=1e-4, timesteps=timesteps),
        advice=advice_of(file),
        published=figures_of(file),
        measured=NOT_RUN,
    )


def cifar10() -> Recipe:
    """CIFAR-10, unconditional, hybrid loss: 52.5M parameters, 500K updates, dropout 0.3."""
    return _cifar10(
        "improved-cifar10-32",
        "Improved DDPM for CIFAR-10, hybrid loss, 52.5M parameters",
        _HYBRID,
        "uniform",
        "cifar10_uncond_50M_500K",
    )


def cifar10_vlb() -> Recipe:
    """CIFAR-10, unconditional, trained on the bound itself with importance-sampled timesteps."""
    return _cifar10(
        "improved-cifar10-32-vlb",
        "Improved DDPM for CIFAR-10, trained on the likelihood bound, 52.5M parameters",
        _BOUND,
        "loss-second-moment",
        "cifar10_uncond_vlb_50M_500K",
    )


def _imagenet(name: str, summary: str, objective: ObjectiveConfig, timesteps: str, file: str) -> Recipe:
    return Recipe(
        name=name,
        summary=summary,
        data=Preparation(size=64),
        net=_net(64, 128, (1, 2, 3, 4), 3, (16, 8)),
        process=_COSINE,
        objective=objective,
        train=paper_training(batch=128, steps=1_500_000, lr=1e-4, timesteps=timesteps),
        advice=advice_of(file),
        published=figures_of(file),
        measured=NOT_RUN,
    )


def imagenet_64() -> Recipe:
    """ImageNet 64x64, unconditional, hybrid loss: 121M parameters, 1.5M updates."""
    return _imagenet(
        "improved-imagenet-64",
        "Improved DDPM for ImageNet 64x64, unconditional, hybrid loss, 121M parameters",
        _HYBRID,
        "uniform",
        "imagenet64_uncond_100M_1500K",
    )


def imagenet_64_vlb() -> Recipe:
    """ImageNet 64x64, unconditional, trained on the bound itself with importance-sampled timesteps."""
    return _imagenet(
        "improved-imagenet-64-vlb",
        "Improved DDPM for ImageNet 64x64, unconditional, trained on the likelihood bound, 121M parameters",
        _BOUND,
        "loss-second-moment",
        "imagenet64_uncond_vlb_100M_1500K",
    )


def imagenet_64_conditional() -> Recipe:
    """ImageNet 64x64 with classes, hybrid loss: 273M parameters, 250K updates of 2,048 images.

    Unlike the smaller models it takes the step number itself as time, and the bound's term is not rescaled.
    """
    return Recipe(
        name="improved-imagenet-64-conditional",
        summary="Improved DDPM for ImageNet 64x64, class-conditional, 273M parameters",
        data=Preparation(size=64),
        net=_net(64, 192, (1, 2, 3, 4), 3, (16, 8), num_classes=1000),
        process=ProcessConfig(schedule="cosine", steps=4000),
        objective=_HYBRID_PLAIN,
        train=paper_training(batch=2048, steps=250_000, lr=3e-4),
        advice=advice_of("imagenet64_cond_270M_250K"),
        published=figures_of("imagenet64_cond_270M_250K"),
        measured=NOT_RUN,
    )


def imagenet_64_to_256() -> Recipe:
    """The class-conditional upsampler from 64x64 to 256x256: 280M parameters, 500K updates."""
    return Recipe(
        name="improved-imagenet-64-to-256",
        summary="Improved DDPM's upsampler 64x64 to 256x256, class-conditional, 280M parameters",
        data=Preparation(size=256),
        low_size=64,
        net=_net(256, 192, (1, 1, 2, 2, 4, 4), 2, (16, 8), num_classes=1000, super_resolution=True),
        process=ProcessConfig(schedule="linear", steps=4000),
        objective=_HYBRID_PLAIN,
        train=paper_training(batch=256, steps=500_000, lr=3e-4),
        advice=advice_of("upsample_cond_500K"),
        published=figures_of("upsample_cond_500K"),
        measured=NOT_RUN,
    )


def _bedroom(name: str, summary: str, batch: int, steps: int, lr: float, file: str, unverified: str = "") -> Recipe:
    """The 114M network of DDPM with a learned variance: one head at 16x16, additive conditioning."""
    return Recipe(
        name=name,
        summary=summary,
        data=Preparation(size=256),
        net=_net(256, 128, (1, 1, 2, 2, 4, 4), 2, (16,), num_heads=1, use_scale_shift_norm=False),
        process=ProcessConfig(schedule="linear", steps=1000),
        objective=_HYBRID_PLAIN,
        train=paper_training(batch=batch, steps=steps, lr=lr),
        advice=advice_of(file),
        published=figures_of(file, unverified),
        measured=NOT_RUN,
    )


def lsun_bedroom() -> Recipe:
    """LSUN bedrooms 256x256: learning rate 1e-4, batch 128, 1.2M updates."""
    return _bedroom(
        "improved-lsun-bedroom-256",
        "Improved DDPM for LSUN bedrooms 256x256, learning rate 1e-4, 114M parameters",
        128,
        1_200_000,
        1e-4,
        "lsun_uncond_100M_1200K_bs128",
    )


def lsun_bedroom_slow() -> Recipe:
    """LSUN bedrooms 256x256: learning rate 2e-5, batch 64, 2.4M updates."""
    return _bedroom(
        "improved-lsun-bedroom-256-slow",
        "Improved DDPM for LSUN bedrooms 256x256, learning rate 2e-5, 114M parameters",
        64,
        2_400_000,
        2e-5,
        "lsun_uncond_100M_2400K_bs64",
        "batch: 64 in the file's name, 128 in the README",
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "improved-cifar10-32": cifar10,
    "improved-cifar10-32-vlb": cifar10_vlb,
    "improved-imagenet-64": imagenet_64,
    "improved-imagenet-64-vlb": imagenet_64_vlb,
    "improved-imagenet-64-conditional": imagenet_64_conditional,
    "improved-imagenet-64-to-256": imagenet_64_to_256,
    "improved-lsun-bedroom-256": lsun_bedroom,
    "improved-lsun-bedroom-256-slow": lsun_bedroom_slow,
}
