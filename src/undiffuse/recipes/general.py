"""Recipes for your own images: small ADM networks for one GPU, at 32 pixels also for a CPU with patience.

Nothing here was measured; they are ADM's choices (BigGAN up- and down-sampling, adaptive group norm, heads of 64
channels, attention at 16 and 8 pixels, learned variance with the hybrid loss) at a width that one device can train,
with the cosine schedule up to 64 pixels and the linear one above, as the papers found and chose. Short runs are what
they are made for: warm-up, clipping, two averages with warm-up.

No flips: letters and shoes know left from right. Switch them on for scenes and textures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from undiffuse.config.advice import advice
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import ClassifierConfig, UNetConfig
from undiffuse.objectives import ObjectiveConfig
from undiffuse.recipes.base import Preparation, Recipe
from undiffuse.train_config import TrainConfig

NOT_MEASURED = "not measured here"
KINDS = ("diffusion", "classifier")

_SCHEDULES = {32: "cosine", 64: "cosine", 128: "linear"}
_MULTIPLIERS = {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4)}
_CLASSIFIER_MULTIPLIERS = {32: (1, 2, 2), 64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4)}  # all end at 8x8
_BATCHES = {32: 128, 64: 64, 128: 32}


def _model(size: int, parameters: str, lr: float, images: int) -> Recipe:
    batch = _BATCHES[size]
    return Recipe(
        name=f"general-{size}",
        summary=f"a small ADM for your own images at {size}x{size}, {parameters} parameters ({NOT_MEASURED})",
        data=Preparation(size=size),
        net=UNetConfig(
            image_size=size,
            model_channels=64,
            out_channels=6,
            channel_mult=_MULTIPLIERS[size],
            num_res_blocks=2,
            attention_resolutions=(size // 16, size // 8),
            num_head_channels=64,
            dropout=0.1,
            use_scale_shift_norm=True,
            resblock_updown=True,
        ),
        process=ProcessConfig(schedule=_SCHEDULES[size]),
        objective=ObjectiveConfig(loss="hybrid"),
        train=TrainConfig(
            batch=batch,
            images=images,
            lr=lr,
            warmup_images=200 * batch,
            lr_decay="cosine",
            grad_clip=1.0,
            ema_decays=(0.999, 0.9999),
            precision="bf16",
            timesteps="stratified",
            log_every=50 * batch,
            preview_every=1_000 * batch,
            validate_every=2_000 * batch,
            save_every=None,
            save_seconds=600.0,
        ),
        # No guidance until the paired classifier has been trained on the same pictures.
        advice=advice("50", solver="ddim", classifier=f"general-{size}-classifier"),
        measured=NOT_MEASURED,
    )


def _classifier(size: int, parameters: str, images: int) -> Recipe:
    batch = _BATCHES[size]
    return Recipe(
        name=f"general-{size}-classifier",
        summary=f"noisy-image classifier to guide general-{size}, {parameters} parameters ({NOT_MEASURED})",
        data=Preparation(size=size, random_crop=True),
        net=ClassifierConfig(
            image_size=size,
            model_channels=64,
            out_channels=10,
            channel_mult=_CLASSIFIER_MULTIPLIERS[size],
            num_res_blocks=1,
            attention_resolutions=(size // 16, size // 8),
            num_head_channels=64,
            dropout=0.1,
            use_scale_shift_norm=True,
            resblock_updown=True,
            pool="attention",
        ),
        process=ProcessConfig(schedule=_SCHEDULES[size]),
        train=TrainConfig(
            batch=batch,
            images=images,
            lr=3e-4,
            warmup_images=200 * batch,
            lr_decay="linear",
            weight_decay=0.05,
            grad_clip=1.0,
            ema_decays=(0.999,),
            precision="bf16",
            timesteps="stratified",
            log_every=50 * batch,
            preview_every=None,
            validate_every=1_000 * batch,
            save_every=None,
            save_seconds=600.0,
        ),
        measured=NOT_MEASURED,
    )


def general_32() -> Recipe:
    """Returns the recipe for sizes up to 48 pixels."""
    return _model(32, "11M", 2e-4, 4_000_000)


def general_64() -> Recipe:
    """Returns the recipe for sizes above 48 and up to 96 pixels."""
    return _model(64, "25M", 1e-4, 4_000_000)


def general_128() -> Recipe:
    """Returns the recipe for sizes above 96 pixels."""
    return _model(128, "26M", 1e-4, 3_000_000)


def general_32_classifier() -> Recipe:
    """Returns the recipe of the classifier for general-32."""
    return _classifier(32, "2.3M", 1_000_000)


def general_64_classifier() -> Recipe:
    """Returns the recipe of the classifier for general-64."""
    return _classifier(64, "7.1M", 1_000_000)


def general_128_classifier() -> Recipe:
    """Returns the recipe of the classifier for general-128."""
    return _classifier(128, "7.3M", 1_000_000)


def tiny() -> Recipe:
    """Returns the recipe of a small network for any data, grey or colour, with or without classes, for a CPU."""
    recipe = _model(32, "1M", 1e-3, 60_000)
    assert isinstance(recipe.net, UNetConfig)
    return replace(
        recipe,
        name="tiny",
        summary=f"a tiny model of your own images, grey or colour, 1M parameters, for a CPU ({NOT_MEASURED})",
        net=replace(
            recipe.net, model_channels=32, channel_mult=(1, 1, 2), num_res_blocks=1, attention_resolutions=(4,),
            num_head_channels=32, dropout=0.0,
        ),
        train=replace(
            recipe.train, batch=32, warmup_images=1_600, ema_decays=(0.999,), precision="fp32", log_every=1_600,
            preview_every=4_000, preview_steps=20, validate_every=None, save_seconds=60.0,
        ),
        advice=advice("50", solver="ddim"),
    )  # fmt: skip


RECIPES: dict[str, Callable[[], Recipe]] = {
    "tiny": tiny,
    "general-32": general_32,
    "general-64": general_64,
    "general-128": general_128,
    "general-32-classifier": general_32_classifier,
    "general-64-classifier": general_64_classifier,
    "general-128-classifier": general_128_classifier,
}


def for_data(
    size: int | tuple[int, int], channels: int, classes: int | None = None, *, kind: str = "diffusion"
) -> Recipe:
    """Returns the general recipe for a data set: general-32 up to 48 pixels, general-64 up to 96, else general-128.

    Args:
        size: Image size in pixels, one number or (height, width). The longer side chooses the recipe.
        channels: Number of image channels.
        classes: Number of classes, None without labels. A single class gives an unconditional model.
        kind: "diffusion", or "classifier" for the paired classifier on the same noise levels.

    Raises:
        ValueError: The size is not a multiple of 8 (of 16 above 96 pixels), or a classifier has fewer than two classes.
    """
    if kind not in KINDS:
        raise ValueError(f"expected kind {' or '.join(KINDS)}, got {kind!r}")
    several = classes is not None and classes > 1
    if kind == "classifier" and not several:
        found = "have no labels" if classes is None else f"have {classes}"
        raise ValueError(
            f"a classifier requires at least two classes, but these images {found}: sort them into one folder per class"
        )
    longer = size if isinstance(size, int) else max(size)
    chosen = 32 if longer <= 48 else 64 if longer <= 96 else 128
    name = f"general-{chosen}" + ("-classifier" if kind == "classifier" else "")
    recipe = RECIPES[name]().with_shape(size, channels)
    return recipe.with_classes(classes) if several else recipe
