"""From images to features. To add an extractor, write a class that follows `base.Extractor`."""

from undiffuse.metrics.extractors.base import Extracted, Extractor, FunctionExtractor, in_batches
from undiffuse.metrics.extractors.classifier import ClassifierExtractor
from undiffuse.metrics.extractors.clip import CLIP_MODELS, CLIP_PROTOCOLS, ClipExtractor
from undiffuse.metrics.extractors.dinov2 import DinoV2Extractor
from undiffuse.metrics.extractors.efflite import EffLiteExtractor
from undiffuse.metrics.extractors.inception_features import INCEPTION_PROTOCOLS, InceptionExtractor, InceptionProtocol

__all__ = [
    "CLIP_MODELS",
    "CLIP_PROTOCOLS",
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
    "in_batches",
]
