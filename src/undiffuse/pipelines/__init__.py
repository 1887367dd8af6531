"""Models put together with what guides them and how they are sampled, and everything that is made with them.

`Pipeline` is one model with its guidance, solver and noise levels; `SamplingRun` writes its images into a folder,
resumably; `Cascade` is two of them; `regenerate` makes a picture again from its record.
"""

from undiffuse.pipelines.pipeline import Pipeline

__all__ = ["Pipeline"]
