"""Settings as frozen dataclasses without torch: each field is declared once, with its help, its type and its range.

`SamplerConfig` and `GuidanceConfig` are the one description of how a model is sampled. Command-line options, the
records in PNG files, the advice of recipes and published models, frontiers and sweeps are all this object.
"""

from undiffuse.config.guidance import GuidanceConfig
from undiffuse.config.sampler import SamplerConfig

__all__ = ["GuidanceConfig", "SamplerConfig"]
