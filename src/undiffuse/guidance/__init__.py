"""Guidance wraps a denoiser in a denoiser, so kinds of guidance combine by nesting in any order.

To add a kind, write a file with a class that wraps a denoiser: derive it from `base.GradientGuidance` if it follows a
gradient, or from `base.Guided` with `combine.extrapolate` if it compares two predictions.
"""

from undiffuse.guidance.autoguidance import Autoguidance
from undiffuse.guidance.base import GradientGuidance, Guided
from undiffuse.guidance.classifier import ClassifierGuidance, LevelClassifier
from undiffuse.guidance.classifier_free import ClassifierFree
from undiffuse.guidance.combine import extrapolate
from undiffuse.guidance.loss import LossGuidance
from undiffuse.guidance.regressor import LevelRegressor
from undiffuse.guidance.schedules import GUIDANCE_SCHEDULES, Interval, Schedule, product

__all__ = [
    "GUIDANCE_SCHEDULES",
    "Autoguidance",
    "ClassifierFree",
    "ClassifierGuidance",
    "GradientGuidance",
    "Guided",
    "Interval",
    "LevelClassifier",
    "LevelRegressor",
    "LossGuidance",
    "Schedule",
    "extrapolate",
    "product",
]
