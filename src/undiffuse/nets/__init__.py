"""Networks of the line: one U-Net that is DDPM's, Improved DDPM's and ADM's by its arguments, the noisy classifier,
and DDPM's U-Net in the details that its authors' weights need.

Nothing in this room knows about diffusion: a network maps an image and a number (the "time" it is told) to an image
or to class scores. What the number and the output mean is the business of `undiffuse.denoiser`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from undiffuse.nets.classifier import ClassifierConfig, NoisyClassifier
from undiffuse.nets.ddpm import DDPMConfig, DDPMUNet
from undiffuse.nets.unet import UNet, UNetConfig

__all__ = [
    "ClassifierConfig",
    "DDPMConfig",
    "DDPMUNet",
    "NoisyClassifier",
    "UNet",
    "UNetConfig",
    "config_from_dict",
]


def config_from_dict(about: Mapping[str, Any], kind: str = "diffusion") -> UNetConfig | DDPMConfig | ClassifierConfig:
    """The configuration that `dataclasses.asdict` made `about` of, as it stands in a checkpoint's manifest as "net".

    kind: "diffusion" or "classifier". The key "architecture" names a diffusion network that is not `UNet` ("ddpm");
    without it the dictionary is a `UNetConfig`. TypeError or ValueError if it is of no configuration.
    """
    if kind == "classifier":
        return ClassifierConfig(**about)
    architecture = about.get("architecture")
    if architecture is None:
        return UNetConfig(**about)
    if architecture != "ddpm":
        raise ValueError(f"unknown architecture {architecture!r}; this version knows 'ddpm', and its U-Net without one")
    return DDPMConfig(**about)
