"""Guidance: a denoiser in, a denoiser out. To add a kind, write a file with a class that wraps a denoiser."""

from undiffuse.guidance.classifier import ClassifierGuidance, LevelClassifier

__all__ = ["ClassifierGuidance", "LevelClassifier"]
