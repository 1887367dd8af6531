"""Turns images into features. To add an extractor, write a class that follows `Extractor` and register its name."""

from undiffuse.metrics.extractors.base import Extracted, Extractor, FunctionExtractor, in_batches
from undiffuse.metrics.extractors.classifier import ClassifierExtractor
from undiffuse.metrics.extractors.clip import CLIP_MODELS, CLIP_PROTOCOLS, ClipExtractor
from undiffuse.metrics.extractors.dinov2 import DinoV2Extractor
from undiffuse.metrics.extractors.efflite import EffLiteExtractor
from undiffuse.metrics.extractors.inception_features import INCEPTION_PROTOCOLS, InceptionExtractor, InceptionProtocol
from undiffuse.metrics.extractors.registry import (
    EXTRACTORS,
    build_extractor,
    build_extractors,
    default_extractors,
    extractor_of_card,
    register_extractor,
)

__all__ = [
    "CLIP_MODELS",
    "CLIP_PROTOCOLS",
    "EXTRACTORS",
    "INCEPTION_PROTOCOLS",
    "ClassifierExtractor",
    "ClipExtractor",
    "DinoV2Extractor",
    "EffLiteExtractor",
    "Extracted",
    "Extractor",
    "FunctionExtractor",
    "InceptionExtractor",
    "InceptionProtocol",
    "build_extractor",
    "build_extractors",
    "default_extractors",
    "extractor_of_card",
    "in_batches",
    "register_extractor",
]
