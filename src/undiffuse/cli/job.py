"""How image number i of a run is made: its class, noise and low-resolution image; and the denoising path on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.cli.console import Progress
from undiffuse.cli.low_res import LowRes
from undiffuse.cli.sampler import Sampler
from undiffuse.noise import NoiseSource
from undiffuse.pictures import spaced
from undiffuse.pixels import to_uint8
from undiffuse.sampling import Step

FRAMES = 24


class Frames:
    """The denoising path of a run's first images, as it is seen on the way."""

    def __init__(self, count: int, steps: int) -> None:
        self.count = count
        self.kept = spaced(steps, FRAMES)
        self._images: dict[int, list[np.ndarray]] = {}

    def see(self, indices: Sequence[int], step: Step) -> None:
        """Keep what a step shows of the images that belong to the animation."""
        wanted = [k for k, index in enumerate(indices) if index < self.count]
        if step.index in self.kept and wanted:
            pixels = to_uint8(step.x[wanted].float()).cpu().numpy()
            for k, image in zip(wanted, pixels, strict=True):
                self._images.setdefault(indices[k], []).append(image)

    def pictures(self) -> list[np.ndarray]:
        """One batch uint8 [count, H, W, C] a frame."""
        return [np.stack([self._images[i][f] for i in range(self.count)]) for f in range(len(self.kept))]


class Job:
    """How image number i of a run is made: its class, its noise, its low-resolution image."""

    def __init__(self, sampler: Sampler, seed: int, classes: Sequence[int] | None, low: LowRes | None = None) -> None:
        self.sampler, self.seed, self.classes, self.low = sampler, seed, classes, low

    def labels(self, indices: Sequence[int]) -> list[int] | None:
        """The classes of some images, None without classes."""
        if self.classes is not None:
            return [self.classes[i % len(self.classes)] for i in indices]
        return None if self.low is None else self.low.labels_of(indices)

    def make(self, indices: Sequence[int], progress: Progress | None = None, frames: Frames | None = None) -> Tensor:
        """Images uint8 [B, H, W, C] on the CPU."""
        labels: Any = self.labels(indices)
        low = None if self.low is None else self.low.images_of(indices)

        def on_step(step: Step) -> None:
            if frames is not None and frames.count:
                frames.see(indices, step)

        x = self.sampler.steps_of(NoiseSource(self.seed, indices), labels, low, on_step=on_step, progress=progress)
        return to_uint8(x.to(torch.float32)).cpu()
