"""undiffuse: train, guide, sample and evaluate pixel-space diffusion models."""

__version__ = "0.1.0"
