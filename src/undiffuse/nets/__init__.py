"""Networks of the line: one U-Net that is DDPM's, Improved DDPM's and ADM's by its arguments, and the noisy classifier.

Nothing in this room knows about diffusion: a network maps an image and a number (the "time" it is told) to an image
or to class scores. What the number and the output mean is the business of `undiffuse.denoiser`.
"""

from undiffuse.nets.classifier import ClassifierConfig, NoisyClassifier
from undiffuse.nets.unet import UNet, UNetConfig

__all__ = ["ClassifierConfig", "NoisyClassifier", "UNet", "UNetConfig"]
