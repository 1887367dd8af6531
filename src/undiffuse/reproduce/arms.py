"""The networks that claims about training compare: each differs from the base arm in what its name says.

All arms of a scale see the same images in the same order with the same noise and time steps for the same seed, since
these depend on the seed and the position in the stream only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from undiffuse.util.files import atomic_file
from undiffuse.util.records import read_json

__all__ = ["ARMS", "SCALES", "Arm", "Scale", "settings_of", "train_arm"]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large and how long the arms of a tier are.

    Attributes:
        size: Side of the images in pixels.
        width: Channels of the first level.
        mult: Multipliers of the levels.
        images: Images after which a training ends.
        batch: Images of an update.
        lr: Learning rate, which falls to 0 by a cosine.
        ema: Decay of the average of the weights; its half-life is a tenth of the run or less.
        precision: Precision of the training.
        minutes: Minutes of one arm and seed on one thread of a CPU, or on a GPU.
    """

    size: int
    width: int
    mult: tuple[int, ...]
    images: int
    batch: int
    lr: float
    ema: float
    precision: str
    minutes: float


SCALES = {
    "small": Scale(
        size=16, width=16, mult=(1, 2), images=4_800, batch=16, lr=2e-3, ema=0.98, precision="bf16", minutes=0.4
    ),
    "large": Scale(
        size=32, width=64, mult=(1, 2, 2), images=400_000, batch=256, lr=1e-3, ema=0.99, precision="bf16", minutes=3.0
    ),
}
"""Scales by name: "small" for the tier cpu, "large" for the tier gpu."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One network.

    Attributes:
        says: How it differs from the base arm.
        changes: Fields of the recipe by path, for example {"process.schedule": "cosine"}.
        kind: "diffusion", "classifier", "upsampler" or "gan".
        width: Factor of the width.
        size: Factor of the image size.
        labels: Whether it is conditional on the class.
        length: Factor of the number of images.
    """

    says: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "diffusion"
    width: float = 1.0
    size: float = 1.0
    labels: bool = False
    length: float = 1.0


_FIXED = {"process.variance": "fixed_large"}
_SIMPLE = {**_FIXED, "objective.loss": "simple"}
ARMS: dict[str, Arm] = {
    "base": Arm(says="hybrid loss, linear schedule, learned variance, AdaGN, BigGAN resampling, four heads"),
    "cosine": Arm(says="cosine schedule", changes={"process.schedule": "cosine"}),
    "simple": Arm(says="simple loss, fixed variance", changes=_SIMPLE),
    "bound": Arm(says="the bound as the loss", changes={"objective.loss": "vlb"}),
    "bound-fixed": Arm(says="the bound as the loss, fixed variance", changes={**_FIXED, "objective.loss": "vlb"}),
    "bound-raw": Arm(
        says="the bound as the loss, log variance predicted directly",
        changes={"objective.loss": "vlb", "process.variance": "learned"},
    ),
    "x0": Arm(says="as simple, predicts x0", changes={**_SIMPLE, "process.target": "x0"}),
    "mean": Arm(says="as simple, predicts the previous mean", changes={**_SIMPLE, "process.target": "previous_mean"}),
    "v": Arm(says="as simple, predicts v", changes={**_SIMPLE, "process.target": "v"}),
    "min-snr": Arm(says="as simple, weighted by min-SNR-5", changes={**_SIMPLE, "objective.weighting": "min-snr:5"}),
    "added": Arm(says="embedding added instead of AdaGN", changes={"net.use_scale_shift_norm": False}),
    "plain-resampling": Arm(says="no BigGAN resampling", changes={"net.resblock_updown": False}),
    "one-head": Arm(says="one attention head", changes={"net.num_head_channels": -1}),
    "two-heads": Arm(says="two attention heads", changes={"net.num_head_channels": -1, "net.num_heads": 2}),
    "half-way": Arm(says="half as many images", length=0.5),
    "more-attention": Arm(says="attention at full and half size", changes={"net.attention_resolutions": (1, 2)}),
    "rescaled": Arm(says="residuals rescaled by 1/sqrt(2)", changes={"net.rescale_residual": True}),
    "plain": Arm(
        says="one head, no BigGAN resampling", changes={"net.num_head_channels": -1, "net.resblock_updown": False}
    ),
    "narrow": Arm(says="half the channels", width=0.5),
    "wide": Arm(says="twice the channels", width=2.0),
    "conditional": Arm(says="conditional on the class", labels=True),
    "flipped": Arm(says="images mirrored at random", changes={"data.flip": True}),
    "low": Arm(says="half the image size", size=0.5, changes={"net.attention_resolutions": (2,)}),
    "upsampler": Arm(says="conditional on the image at half the size, enlarged again", kind="upsampler"),
    "noisy-classifier": Arm(says="classifier of noisy images", kind="classifier", labels=True),
    "cropped-classifier": Arm(
        says="classifier of noisy images with random crops", kind="classifier", labels=True,
        changes={"data.random_crop": True},
    ),
    "clean-classifier": Arm(says="classifier of clean images", kind="classifier", labels=True),
    "gan": Arm(says="a generative adversarial network of as many parameters, trained for as long", kind="gan"),
}  # fmt: skip
"""Arms by name."""


def settings_of(name: str, scale: Scale) -> dict[str, Any]:
    """Returns keyword arguments of `training.train` for an arm.

    Args:
        name: Name of the arm, not that of a GAN.
        scale: Size and length.
    """
    arm = ARMS[name]
    width, size = int(scale.width * arm.width), int(scale.size * arm.size)
    heads, images = max(width // 2, 4), int(scale.images * arm.length)
    settings: dict[str, Any] = {
        "size": size, "channels": 1, "images": images, "batch": scale.batch, "precision": scale.precision,
        "lr": scale.lr, "lr_decay": "cosine", "warmup_images": images // 20, "ema_decays": (scale.ema,),
        "timesteps": "uniform", "save_seconds": None, "save_every": None, "preview_every": None,
        "validate_every": None, "preview_count": 1, "preview_steps": 1, "log_every": images // 8,
        "unconditional": not arm.labels,
        "data.fit": "pad" if size == 32 else "crop", "net.model_channels": width, "net.channel_mult": scale.mult,
        "net.num_res_blocks": 1,
        "net.attention_resolutions": (2,), "net.num_head_channels": heads, "net.dropout": 0.0,
    }  # fmt: skip
    if arm.kind == "classifier":
        settings |= {"recipe": "fashion-mnist-32-classifier", "kind": "classifier", "process.schedule": "linear"}
        settings |= {"clean": True} if name == "clean-classifier" else {}
    else:
        settings |= {"recipe": "fashion-mnist-32", "process.schedule": "linear"}
    return {**settings, **arm.changes}


def train_arm(name: str, scale: Scale, seed: int, folder: Path, data: str, device: str = "auto") -> dict[str, Any]:
    """Trains an arm if its folder has no model yet, and returns what is known of the run.

    Args:
        name: Name of the arm.
        scale: Size and length.
        seed: Decides the weights, the order of the images and all noise.
        folder: Run folder.
        data: Data reference.
        device: "auto", "cpu" or "cuda".

    Returns:
        "parameters" of the network and "seconds" of processor time.
    """
    notes = folder / "arm.json"
    if notes.is_file():
        return read_json(notes.read_text(encoding="utf-8"), str(notes))
    begin, clock = time.process_time(), time.monotonic()
    if ARMS[name].kind == "gan":
        from undiffuse.reproduce.gan import train_gan

        longer = replace(scale, images=int(scale.images * ARMS[name].length))
        net: Any = train_gan(longer, seed, folder, data, device)
    else:
        from undiffuse.training.face import train

        given: dict[str, Any] = settings_of(name, scale)
        images: Any = data
        if ARMS[name].kind == "upsampler":
            images, low = with_low_resolution(data, scale.size, scale.images)
            given["condition"] = {"image": low}
            del given["unconditional"]
        result = train(images, out=folder, seed=seed, progress=False, workers=1, device=device, **given)
        net = result.model.net
    found = {
        "arm": name,
        "parameters": sum(p.numel() for p in net.parameters()),
        "seconds": round(time.process_time() - begin, 2),
        "clock": round(time.monotonic() - clock, 2),
    }
    with atomic_file(notes, overwrite=True) as file:
        file.write((json.dumps(found, indent=1) + "\n").encode())
    return found


def with_low_resolution(data: str, size: int, most: int) -> tuple[Any, Any]:
    """Returns images uint8 [N, size, size, 1], and the same at half the size, enlarged by repetition.

    Args:
        data: Data reference.
        size: Side in pixels.
        most: Number of images, evenly spaced, if there are more.
    """
    import numpy as np

    from undiffuse.data import prepare
    from undiffuse.data.opening import open_data

    source: Any = open_data(data, labels="none")
    fit: Any = "pad" if size == 32 else "crop"
    chosen = np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(int)
    images = np.stack([prepare(source.images[i], size, 1, fit=fit) for i in chosen])
    low = np.stack([prepare(source.images[i], size // 2, 1) for i in chosen])
    return images, low.repeat(2, axis=1).repeat(2, axis=2)
