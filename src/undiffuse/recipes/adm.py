"""The diffusion models of ADM (Dhariwal & Nichol 2021, arXiv:2105.05233): ImageNet, LSUN and the upsamplers.

The settings are from the paper's Appendix I (Tables 11 and 13); results and advice are those of the published file that
a recipe names (`undiffuse.adapters.published`). Where the paper and the flags of the released files disagree (attention
of an upsampler), the recipe follows the files. The authors trained with a loss scale and 32-bit weights in "fp16"; on
newer GPUs use "bf16", which needs no scale. Flips are the default of the released data loader. Neither the paper nor
the released script has warm-up, decay or clipping.

All have 1,000 steps, a learned variance and the hybrid loss, BigGAN up- and down-sampling and adaptive group norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import UNetConfig
from undiffuse.objectives import ObjectiveConfig
from undiffuse.recipes.base import NOT_RUN, Preparation, Recipe, advice_of, figures_of, paper_training

_OBJECTIVE = ObjectiveConfig(loss="hybrid", rescale=False, decoder="tanh")
LINEAR = ProcessConfig(schedule="linear")
COSINE = ProcessConfig(schedule="cosine")
MULTIPLIERS: dict[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}


def _net(size: int, pixels: tuple[int, ...] = (32, 16, 8), **more: Any) -> UNetConfig:
    """Returns ADM's U-Net with 256 channels, two blocks per level and heads of 64 channels.

    Args:
        pixels: Sides of the feature maps with attention.
        **more: Fields that differ.
    """
    settings: dict[str, Any] = {
        "model_channels": 256,
        "channel_mult": MULTIPLIERS[size],
        "num_res_blocks": 2,
        "num_heads": 4,
        "num_head_channels": 64,
    }
    return UNetConfig(
        image_size=size,
        out_channels=6,
        attention_resolutions=tuple(size // p for p in pixels),
        use_scale_shift_norm=True,
        resblock_updown=True,
        **{**settings, **more},
    )


def _recipe(
    name: str,
    summary: str,
    net: UNetConfig,
    steps: int,
    file: str,
    *,
    unverified: str = "",
    process: ProcessConfig = LINEAR,
    batch: int = 256,
    lr: float = 1e-4,
    low_size: int | None = None,
) -> Recipe:
    return Recipe(
        name=name,
        summary=summary,
        data=Preparation(size=net.size[0], flip=True),
        net=net,
        process=process,
        objective=_OBJECTIVE,
        train=paper_training(batch=batch, steps=steps, lr=lr, precision="fp16"),
        advice=advice_of(file, f"adm-imagenet-{net.size[0]}-classifier"),
        published=figures_of(file, unverified),
        measured=NOT_RUN,
        low_size=low_size,
    )


def imagenet_64() -> Recipe:
    """ImageNet 64x64 with classes: 296M parameters, 192 channels, three blocks per level, dropout 0.1, cosine schedule,
    540K updates of 2,048 images. The only released model with the new order of queries, keys and values. The paper's
    model without dropout has FID 2.61, sFID 3.77, precision 0.73 and recall 0.63."""
    return _recipe(
        "adm-imagenet-64",
        "ADM for ImageNet 64x64, class-conditional, 296M parameters",
        _net(64, model_channels=192, num_res_blocks=3, dropout=0.1, use_new_attention_order=True, num_classes=1000),
        540_000,
        "64x64_diffusion",
        process=COSINE,
        batch=2048,
        lr=3e-4,
    )


def imagenet_128() -> Recipe:
    """ImageNet 128x128 with classes: 422M parameters, 4.36M updates. Four heads at every resolution, not heads of 64
    channels as in the others."""
    return _recipe(
        "adm-imagenet-128",
        "ADM for ImageNet 128x128, class-conditional, 422M parameters",
        _net(128, num_heads=4, num_head_channels=-1, num_classes=1000),
        4_360_000,
        "128x128_diffusion",
    )


def imagenet_256() -> Recipe:
    """ImageNet 256x256 with classes: 554M parameters, 1.98M updates."""
    return _recipe(
        "adm-imagenet-256",
        "ADM for ImageNet 256x256, class-conditional, 554M parameters",
        _net(256, num_classes=1000),
        1_980_000,
        "256x256_diffusion",
    )


def imagenet_256_unconditional() -> Recipe:
    """ImageNet 256x256 without classes, guided by the classifier of the conditional model. The caption of the paper's
    Table 4 says 2M updates of 256 images."""
    return _recipe(
        "adm-imagenet-256-unconditional",
        "ADM for ImageNet 256x256, unconditional, 553M parameters",
        _net(256),
        2_000_000,
        "256x256_diffusion_uncond",
        unverified="learning rate: taken from the conditional model",
    )


def imagenet_512() -> Recipe:
    """ImageNet 512x512 with classes: 559M parameters, 1.94M updates, half the width at full resolution."""
    return _recipe(
        "adm-imagenet-512",
        "ADM for ImageNet 512x512, class-conditional, 559M parameters",
        _net(512, num_classes=1000),
        1_940_000,
        "512x512_diffusion",
        unverified="fp16: stated in the paper for all models, but the release samples this one in float32",
    )


def imagenet_64_to_256() -> Recipe:
    """The class-conditional upsampler from 64x64 to 256x256: 312M parameters, four heads, 500K updates. Guidance is
    for the model below it only."""
    return _recipe(
        "adm-imagenet-64-to-256",
        "ADM's upsampler 64x64 to 256x256, class-conditional, 312M parameters",
        _net(256, model_channels=192, num_heads=4, num_head_channels=-1, num_classes=1000, super_resolution=True),
        500_000,
        "64_256_upsampler",
        low_size=64,
    )


def imagenet_128_to_512() -> Recipe:
    """The class-conditional upsampler from 128x128 to 512x512: 309M parameters, six levels of full width, 1.05M
    updates."""
    return _recipe(
        "adm-imagenet-128-to-512",
        "ADM's upsampler 128x128 to 512x512, class-conditional, 309M parameters",
        _net(
            512,
            pixels=(32, 16),
            model_channels=192,
            channel_mult=(1, 1, 2, 2, 4, 4),
            num_classes=1000,
            super_resolution=True,
        ),
        1_050_000,
        "128_512_upsampler",
        unverified="attention at 32, 16 as in the released file; Table 13 has 32, 16, 8. The base model used another "
        "classifier than adm-imagenet-128-classifier (batch 1,024, learning rate 6e-5)",
        low_size=128,
    )


def _lsun(name: str, what: str, steps: int, file: str, dropout: float = 0.1, unverified: str = "") -> Recipe:
    return _recipe(
        name,
        f"ADM for LSUN {what} 256x256, unconditional, 553M parameters",
        _net(256, dropout=dropout),
        steps,
        file,
        unverified=unverified,
    )


def lsun_bedroom() -> Recipe:
    """LSUN bedrooms: 500K updates. A 250-step schedule of "90,60,60,20,20" was found by a sweep on this model."""
    return _lsun(
        "adm-lsun-bedroom-256",
        "bedrooms",
        500_000,
        "lsun_bedroom",
    )


def lsun_cat() -> Recipe:
    """LSUN cats: 200K updates."""
    return _lsun(
        "adm-lsun-cat-256",
        "cats",
        200_000,
        "lsun_cat",
    )


def lsun_horse() -> Recipe:
    """LSUN horses: 250K updates."""
    return _lsun(
        "adm-lsun-horse-256",
        "horses",
        250_000,
        "lsun_horse",
    )


def lsun_horse_without_dropout() -> Recipe:
    """LSUN horses without dropout, the paper's comparison: better sFID, worse FID."""
    return _lsun(
        "adm-lsun-horse-256-without-dropout",
        "horses",
        250_000,
        "lsun_horse_nodropout",
        dropout=0.0,
        unverified="number of updates: taken from the model with dropout",
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "adm-imagenet-64": imagenet_64,
    "adm-imagenet-128": imagenet_128,
    "adm-imagenet-256": imagenet_256,
    "adm-imagenet-256-unconditional": imagenet_256_unconditional,
    "adm-imagenet-512": imagenet_512,
    "adm-imagenet-64-to-256": imagenet_64_to_256,
    "adm-imagenet-128-to-512": imagenet_128_to_512,
    "adm-lsun-bedroom-256": lsun_bedroom,
    "adm-lsun-cat-256": lsun_cat,
    "adm-lsun-horse-256": lsun_horse,
    "adm-lsun-horse-256-without-dropout": lsun_horse_without_dropout,
}
