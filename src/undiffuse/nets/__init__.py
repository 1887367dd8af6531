"""Networks: the U-Net of DDPM, Improved DDPM and ADM, the noisy-image classifier, and doors for anybody's networks.

Nothing in this room knows about diffusion. A network maps an image and a number, its time input, to an image or to
class scores (`protocol.Network`). What the number and the output mean is the business of `undiffuse.denoiser`.
"""

from __future__ import annotations

from undiffuse.nets.classifier import ClassifierConfig, NoisyClassifier
from undiffuse.nets.ddpm import DDPMConfig, DDPMUNet
from undiffuse.nets.edm2_unet import EDM2UNet, EDM2UNetConfig
from undiffuse.nets.edm_unet import EDMUNet, EDMUNetConfig
from undiffuse.nets.protocol import Network, NetworkSpec, conditions_of, describe
from undiffuse.nets.registry import config_from_dict, config_to_dict, register_network
from undiffuse.nets.resnet import ResNet, ResNetConfig
from undiffuse.nets.runner import NetworkRunner, prepare_for_inference
from undiffuse.nets.unet import UNet, UNetConfig
from undiffuse.nets.unet2d import UNet2D, UNet2DConfig
from undiffuse.nets.unet_rms import RMSUNet, RMSUNetConfig

__all__ = [
    "ClassifierConfig",
    "DDPMConfig",
    "DDPMUNet",
    "Network",
    "NetworkRunner",
    "NetworkSpec",
    "EDM2UNet",
    "EDM2UNetConfig",
    "EDMUNet",
    "EDMUNetConfig",
    "NoisyClassifier",
    "RMSUNet",
    "RMSUNetConfig",
    "ResNet",
    "ResNetConfig",
    "UNet",
    "UNet2D",
    "UNet2DConfig",
    "UNetConfig",
    "conditions_of",
    "config_from_dict",
    "config_to_dict",
    "describe",
    "prepare_for_inference",
    "register_network",
]
