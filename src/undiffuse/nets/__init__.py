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
from undiffuse.nets.edm_unet import EDMUNet, EDMUNetConfig
from undiffuse.nets.unet import UNet, UNetConfig
from undiffuse.nets.unet2d import UNet2D, UNet2DConfig
from undiffuse.nets.unet_rms import RMSUNet, RMSUNetConfig

__all__ = [
    "ClassifierConfig",
    "DDPMConfig",
    "DDPMUNet",
    "EDMUNet",
    "EDMUNetConfig",
    "NoisyClassifier",
    "RMSUNet",
    "RMSUNetConfig",
    "UNet",
    "UNet2D",
    "UNet2DConfig",
    "UNetConfig",
    "config_from_dict",
]


ARCHITECTURES: Mapping[
    str, type[DDPMConfig] | type[UNet2DConfig] | type[RMSUNetConfig] | type[EDMUNetConfig]
] = {
    "ddpm": DDPMConfig,
    "edm": EDMUNetConfig,
    "unet2d": UNet2DConfig,
    "unet-rms": RMSUNetConfig,
}
"""Configurations of the diffusion networks that are not `UNet`, by the value of their "architecture"."""


def config_from_dict(
    about: Mapping[str, Any], kind: str = "diffusion"
) -> UNetConfig | DDPMConfig | UNet2DConfig | RMSUNetConfig | EDMUNetConfig | ClassifierConfig:
    """The configuration that `dataclasses.asdict` made `about` of, as it stands in a checkpoint's manifest as "net".

    kind: "diffusion" or "classifier". The key "architecture" names a diffusion network that is not `UNet`, one of
    `ARCHITECTURES`; without it the dictionary is a `UNetConfig`. TypeError or ValueError if it is of no configuration.
    """
    if kind == "classifier":
        return ClassifierConfig(**about)
    architecture = about.get("architecture")
    if architecture is None:
        return UNetConfig(**about)
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {architecture!r}; this version knows {', '.join(ARCHITECTURES)}, and its U-Net "
            "without one"
        )
    return ARCHITECTURES[architecture](**about)
