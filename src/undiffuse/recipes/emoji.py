"""Emoji in colour (`examples/emoji.py` prepares them): a model, its noisy classifier and a judge.

The U-Net is that of fashion-mnist-32 with three channels; at 64x64 it has a level more. It predicts v, because a short
training on noise leaves the colour of a whole image to chance: noise says little of it at the noisiest levels. One
label in ten is dropped in training, so that the model can be guided by its classifier and without one.
"""

from __future__ import annotations

from dataclasses import replace

from undiffuse.config.advice import advice
from undiffuse.nets import ClassifierConfig, UNetConfig
from undiffuse.recipes import fashion_mnist
from undiffuse.recipes.base import NOT_RUN, Preparation, Recipe

CLASSES = 9
_DATA = Preparation(size=32, channels=3)  # no flip: flags, letters and hands have a left and a right


def emoji_32() -> Recipe:
    """Returns the recipe of the class-conditional colour model that ships with the package."""
    grey = fashion_mnist.fashion_mnist_32()
    assert isinstance(grey.net, UNetConfig)
    return replace(
        grey,
        name="emoji-32",
        summary="class-conditional 32x32 colour ADM of emoji for a CPU",
        data_path=None,
        data=_DATA,
        process=replace(grey.process, target="v"),
        net=replace(grey.net, in_channels=3, out_channels=6, num_classes=CLASSES, null_class=True),
        label_dropout=0.1,
        train=replace(
            grey.train, images=200_000, warmup_images=10_000, ema_decays=(0.99, 0.999), validate_every=50_000
        ),
        advice=advice("50", guidance=1.0, classifier="emoji-32-classifier"),
        measured=(
            "the shipped weights had 126,208 images on noise and 84,032 on v: FD-efflite 104 of 1,000 samples against "
            "590 held-out images (training images: 37); 97 % authentic"
        ),
    )


def emoji_64() -> Recipe:
    """Returns the recipe of the same model at 64x64."""
    small = emoji_32()
    assert isinstance(small.net, UNetConfig)
    return replace(
        small,
        name="emoji-64",
        summary="class-conditional 64x64 colour ADM of emoji",
        data=replace(_DATA, size=64),
        net=replace(small.net, image_size=64, channel_mult=(1, 2, 2, 3, 4), attention_resolutions=(8, 16)),
        train=replace(small.train, images=1_000_000, batch=64),
        advice=advice("50"),
        measured=NOT_RUN,
    )


def emoji_32_classifier() -> Recipe:
    """Returns the recipe of the noisy classifier that guides emoji-32."""
    grey = fashion_mnist.fashion_mnist_32_classifier()
    assert isinstance(grey.net, ClassifierConfig)
    return replace(
        grey,
        name="emoji-32-classifier",
        summary="noisy-image classifier for emoji-32",
        data_path=None,
        data=_DATA,
        process=replace(grey.process, target="v"),
        net=replace(grey.net, in_channels=3, out_channels=CLASSES, model_channels=24, num_head_channels=24),
        train=replace(grey.train, batch=64, images=60_000, warmup_images=4_000, validate_every=20_000),
        measured="names the group of 55 % of 590 held-out images, averaged over noise levels",
    )


def emoji_32_judge() -> Recipe:
    """Returns the recipe of the classifier of clean emoji whose features judge emoji-32; it guides nothing."""
    grey = fashion_mnist.fashion_mnist_32_judge()
    net = ClassifierConfig(
        image_size=32, in_channels=3, out_channels=CLASSES, model_channels=24, channel_mult=(1, 2, 4),
        num_res_blocks=1, attention_resolutions=(), dropout=0.2, pool="adaptive",
    )  # fmt: skip
    return replace(
        grey,
        name="emoji-32-judge",
        summary="clean-image classifier of emoji whose features judge emoji-32",
        data_path=None,
        data=_DATA,
        net=net,
        shift=0,
        erase=0.0,
        smoothing=0.0,
        train=replace(grey.train, batch=64, images=60_000, warmup_images=4_000, lr=2e-3, precision="fp32"),
        measured="names the group of 64 % of 590 held-out images",
    )


def emoji_64_classifier() -> Recipe:
    """Returns the recipe of the noisy classifier that guides emoji-64."""
    small = emoji_32_classifier()
    assert isinstance(small.net, ClassifierConfig)
    return replace(
        small,
        name="emoji-64-classifier",
        summary="noisy-image classifier for emoji-64",
        data=replace(_DATA, size=64),
        net=replace(small.net, image_size=64, channel_mult=(1, 2, 3, 4), attention_resolutions=(4, 8)),
        train=replace(small.train, images=200_000),
        measured=NOT_RUN,
    )


def emoji_64_judge() -> Recipe:
    """Returns the recipe of the classifier of clean emoji whose features judge emoji-64; it guides nothing."""
    small = emoji_32_judge()
    assert isinstance(small.net, ClassifierConfig)
    return replace(
        small,
        name="emoji-64-judge",
        summary="clean-image classifier of emoji whose features judge emoji-64",
        data=replace(_DATA, size=64),
        net=replace(small.net, image_size=64, channel_mult=(1, 2, 3, 4)),
        train=replace(small.train, images=120_000),
        measured=NOT_RUN,
    )


RECIPES = {
    "emoji-32": emoji_32,
    "emoji-32-classifier": emoji_32_classifier,
    "emoji-32-judge": emoji_32_judge,
    "emoji-64": emoji_64,
    "emoji-64-classifier": emoji_64_classifier,
    "emoji-64-judge": emoji_64_judge,
}
