"""ADM's classifiers of noisy ImageNet images (Dhariwal & Nichol 2021, sections 4.3 and Appendix I, Table 12).

The encoder half of a U-Net of 128 channels with an attention pool at 8x8, trained on the chain of the diffusion model
it guides: cross-entropy, timesteps uniform, learning rate falling linearly to zero, random crops and flips, and no
moving average. Weight decay and crops are there against overfitting. The paper reports no accuracies; how well a
classifier guides is reported with the diffusion model (`advice.guidance.classifier` of adm-imagenet-*).
"""

from __future__ import annotations

from collections.abc import Callable

from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import ClassifierConfig
from undiffuse.recipes.adm import COSINE, LINEAR, MULTIPLIERS
from undiffuse.recipes.base import NOT_RUN, Preparation, Recipe, figures_of, paper_training


def _classifier(
    size: int,
    parameters: str,
    steps: int,
    *,
    blocks: int = 2,
    process: ProcessConfig = LINEAR,
    batch: int = 256,
    lr: float = 3e-4,
    weight_decay: float = 0.05,
) -> Recipe:
    return Recipe(
        name=f"adm-imagenet-{size}-classifier",
        summary=f"ADM's noisy-image classifier for ImageNet {size}x{size}, {parameters} parameters",
        data=Preparation(size=size, flip=True, random_crop=True),
        net=ClassifierConfig(
            image_size=size,
            model_channels=128,
            out_channels=1000,
            num_res_blocks=blocks,
            channel_mult=MULTIPLIERS[size],
            attention_resolutions=(size // 32, size // 16, size // 8),
            num_head_channels=64,
            use_scale_shift_norm=True,
            resblock_updown=True,
            pool="attention",
        ),
        process=process,
        train=paper_training(
            batch=batch,
            steps=steps,
            lr=lr,
            lr_decay="linear",
            weight_decay=weight_decay,
            ema_decays=(),
            precision="fp16",
            preview_every=None,
        ),
        published=figures_of(f"{size}x{size}_classifier"),
        measured=NOT_RUN,
    )


def imagenet_64() -> Recipe:
    """64x64: 65M parameters, four blocks per level, batch 1,024, learning rate 6e-4, weight decay 0.2, cosine chain."""
    return _classifier(64, "65M", 300_000, blocks=4, process=COSINE, batch=1024, lr=6e-4, weight_decay=0.2)


def imagenet_128() -> Recipe:
    """128x128: 43M parameters, 300K updates of 256 images; the README of the release gives the same flags."""
    return _classifier(128, "43M", 300_000)


def imagenet_256() -> Recipe:
    """256x256: 54M parameters, 500K updates; also guides the unconditional model."""
    return _classifier(256, "54M", 500_000)


def imagenet_512() -> Recipe:
    """512x512: 54M parameters, 500K updates."""
    return _classifier(512, "54M", 500_000)


RECIPES: dict[str, Callable[[], Recipe]] = {
    "adm-imagenet-64-classifier": imagenet_64,
    "adm-imagenet-128-classifier": imagenet_128,
    "adm-imagenet-256-classifier": imagenet_256,
    "adm-imagenet-512-classifier": imagenet_512,
}
