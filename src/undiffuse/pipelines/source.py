"""How image number i of a run is made: its class, noise and low-resolution image; and the denoising path on the way."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.nets.memory import is_out_of_memory
from undiffuse.noise import NoiseSource
from undiffuse.pictures import spaced
from undiffuse.pipelines.low_res import LowRes, Made
from undiffuse.pipelines.pipeline import Pipeline
from undiffuse.pixels import Rounding, to_uint8
from undiffuse.sampling import Step
from undiffuse.util.progress import Progress

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

    def forget(self, indices: Sequence[int]) -> None:
        """Drop what was seen of images that have to be begun again."""
        for index in indices:
            self._images.pop(index, None)

    def pictures(self) -> list[np.ndarray]:
        """One batch uint8 [count, H, W, C] a frame."""
        return [np.stack([self._images[i][f] for i in range(self.count)]) for f in range(len(self.kept))]


class SampleSource:
    """How image number i of a run is made: its class, its noise, its low-resolution image.

    `stream`    keeps its noise apart from that of other models of the same run, see `NoiseSource`
    `rounding`  of the finished images to 8 bits, see `undiffuse.pixels`
    """

    def __init__(
        self,
        sampler: Pipeline,
        seed: int,
        classes: Sequence[int] | None,
        low: LowRes | Made | None = None,
        *,
        stream: str = "",
        rounding: Rounding = "nearest",
    ) -> None:
        self.sampler, self.seed, self.classes, self.low = sampler, seed, classes, low
        self.stream, self.rounding = stream, rounding
        self._fits: int | None = None  # images at once, once memory has not sufficed for more

    def labels(self, indices: Sequence[int]) -> list[int] | None:
        """The classes of some images, None without classes."""
        if self.classes is not None:
            return [self.classes[i % len(self.classes)] for i in indices]
        return None if self.low is None else self.low.labels_of(indices)

    def make(
        self,
        indices: Sequence[int],
        progress: Progress | None = None,
        frames: Frames | None = None,
        watch: Callable[[Step, int], None] | None = None,
    ) -> Tensor:
        """Images uint8 [B, H, W, C] on the CPU, in halves as often as memory demands it.

        `watch` hears of every step, and of how many images are made at once. MemoryError where not even one fits.
        """
        done: list[Tensor] = []
        rest = list(indices)
        while rest:
            piece = rest[: self._fits]
            before, problem = progress.done if progress is not None else 0.0, ""
            try:
                done.append(self._make(piece, progress, frames, watch))
                rest = rest[len(piece) :]
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            # Here the exception is gone, and with it the tensors that its traceback kept alive.
            gc.collect()
            if self.sampler.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(piece) == 1:
                smaller = "" if self.sampler.settings.precision != "fp32" else ": --precision bf16 needs about half"
                raise MemoryError(f"not even one image at a time fits into memory{smaller} ({problem})")
            self._fits = -(-len(piece) // 2)
            if progress is not None:
                progress.advance(before - progress.done)
            if frames is not None:
                frames.forget(piece)
        return torch.cat(done)

    def _make(
        self,
        indices: list[int],
        progress: Progress | None,
        frames: Frames | None,
        watch: Callable[[Step, int], None] | None,
    ) -> Tensor:
        # Of a cascade the upsampler may know no classes, and its images have them all the same.
        told: Any = self.labels(indices) if "y" in self.sampler.denoiser.conditions else None
        low = None if self.low is None else self.low.images_of(indices)

        def on_step(step: Step) -> None:
            if frames is not None and frames.count:
                frames.see(indices, step)
            if watch is not None:
                watch(step, len(indices))

        noise = NoiseSource(self.seed, indices, self.stream)
        x = self.sampler.steps_of(noise, told, low, on_step=on_step, progress=progress)
        return to_uint8(x.to(torch.float32), self.rounding).cpu()
