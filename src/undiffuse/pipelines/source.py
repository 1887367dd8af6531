"""How image number i of a run is made: its class, noise and low-resolution image; and the denoising path on the way."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.nets.memory import is_out_of_memory
from undiffuse.noise import NoiseSource
from undiffuse.pictures import spaced
from undiffuse.pixels import Rounding, from_uint8, to_uint8
from undiffuse.sampling import Step
from undiffuse.util.errors import ConfigError
from undiffuse.util.progress import NoProgress

if TYPE_CHECKING:
    from undiffuse.pipelines.given import GivenConditions
    from undiffuse.pipelines.low_res import LowRes
    from undiffuse.pipelines.pipeline import Pipeline

__all__ = ["FixedLowRes", "Frames", "SampleSource", "small_images"]

_FRAMES = 24


class Frames:
    """Collects the denoising path of a run's first images, for an animation.

    Args:
        count: How many of the first images.
        steps: Steps of the sampler, of which up to 24 are kept.
    """

    def __init__(self, count: int, steps: int) -> None:
        self.count = count
        self.kept = spaced(steps, _FRAMES)
        self._images: dict[int, list[np.ndarray]] = {}

    def add(self, indices: Sequence[int], step: Step) -> None:
        """Keeps what a step shows of the images that belong to the animation."""
        wanted = [k for k, index in enumerate(indices) if index < self.count]
        if step.index in self.kept and wanted:
            pixels = to_uint8(step.x[wanted].float()).cpu().numpy()
            for k, image in zip(wanted, pixels, strict=True):
                self._images.setdefault(indices[k], []).append(image)

    def discard(self, indices: Sequence[int]) -> None:
        """Drops the frames of images that have to be started again."""
        for index in indices:
            self._images.pop(index, None)

    def pictures(self) -> list[np.ndarray]:
        """Returns a batch uint8 [count, H, W, C] for each frame."""
        return [np.stack([self._images[i][f] for i in range(self.count)]) for f in range(len(self.kept))]


@dataclass(frozen=True)
class FixedLowRes:
    """Low-resolution images in memory, [N, C, h, w] in [-1, 1]; image i of a run enlarges number i mod N."""

    images: Tensor
    labels: None = None

    def notes(self) -> dict[str, Any]:
        """Images in memory leave no note."""
        return {}

    @classmethod
    def of(cls, images: Any, pipeline: Pipeline) -> FixedLowRes | None:
        """Takes images for a super-resolution model.

        Args:
            images: float [N, C, h, w] in [-1, 1], or uint8 [N, h, w, C]; None for other models.
            pipeline: The pipeline that enlarges them.

        Raises:
            ValueError: If the model needs them and they are missing, or the reverse, or they have other channels.
        """
        needed = pipeline.model.spec.super_resolution
        if images is None:
            if needed:
                raise ConfigError("low_res", "is missing: this model enlarges images, so give the images to enlarge")
            return None
        if not needed:
            raise ValueError("low_res was given, but this model does not enlarge images: leave it out")
        tensor = images if isinstance(images, Tensor) and images.is_floating_point() else from_uint8(np.asarray(images))
        if tensor.dim() != 4 or tensor.shape[1] != pipeline.shape[0]:
            raise ValueError(
                f"low_res is {list(tensor.shape)}; expected [N, {pipeline.shape[0]}, h, w] in [-1, 1], or uint8 "
                f"[N, h, w, {pipeline.shape[0]}]"
            )
        return cls(tensor)

    def __len__(self) -> int:
        return len(self.images)

    def labels_of(self, indices: Sequence[int]) -> None:
        """They have no classes of their own."""

    def images_of(self, indices: Sequence[int]) -> Tensor:
        """Returns [B, C, h, w] in [-1, 1]."""
        return self.images[[i % len(self) for i in indices]]


def small_images(given: Any, pipeline: Pipeline, classes: Any) -> LowRes | FixedLowRes | None:
    """Opens or takes the images that a super-resolution model enlarges.

    Args:
        given: A path, what `LowRes.open` takes, or images, what `FixedLowRes.of` takes; None for other models.
        pipeline: The pipeline that enlarges them.
        classes: The classes that were chosen; with None, images at a path have their own.
    """
    if not isinstance(given, (str, Path)):
        return FixedLowRes.of(given, pipeline)
    from undiffuse.pipelines.low_res import LowRes

    low = LowRes.open(pipeline.model, str(given), labelled=classes is None)
    return None if low is None else replace(low, where=str(given))


class SampleSource:
    """Makes image number i of a run, in batches that fit into memory.

    Args:
        pipeline: What makes them.
        seed: Seed of their noise.
        classes: Class numbers that the images cycle through; None without classes.
        low: The low-resolution images that they enlarge.
        given: Their other conditions.
        stream: Keeps their noise apart from that of other models in the same run, see `NoiseSource`.
        rounding: How finished images are rounded to 8 bits, see `undiffuse.pixels`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        seed: int,
        classes: Sequence[int] | None,
        low: LowRes | FixedLowRes | None = None,
        given: GivenConditions | None = None,
        *,
        stream: str = "",
        rounding: Rounding = "nearest",
    ) -> None:
        self.pipeline, self.seed, self.classes, self.low = pipeline, seed, classes, low
        self.given = given
        self.stream, self.rounding = stream, rounding
        self._fits: int | None = None  # images at once, once memory has not sufficed for more

    def labels(self, indices: Sequence[int]) -> list[int] | None:
        """Returns the classes of some images; None without classes."""
        if self.classes is not None:
            return [self.classes[i % len(self.classes)] for i in indices]
        return None if self.low is None else self.low.labels_of(indices)

    def notes(self) -> dict[str, Any]:
        """Returns where the condition pictures and the images to enlarge are, for the notes of records."""
        where = None if self.given is None or self.given.picture is None else self.given.where
        low = {} if self.low is None else self.low.notes()
        return low if not where else {**low, "condition_data": where}

    def entries(self, indices: Sequence[int]) -> list[dict[str, Any]] | None:
        """Returns what the records of some images say of their conditions; None without conditions."""
        return None if self.given is None else [{"condition": self.given.entry(i)} for i in indices]

    def make(
        self,
        indices: Sequence[int],
        progress: NoProgress | None = None,
        frames: Frames | None = None,
        watch: Callable[[Step, int], None] | None = None,
    ) -> Tensor:
        """Makes images, in halves as often as memory demands it.

        Args:
            indices: The numbers of the images within the run.
            progress: Advanced by one for each image, in parts.
            frames: Collects the path of the first images.
            watch: Called after each step, with the number of images that are made at once.

        Returns:
            uint8 [B, H, W, C] on the CPU.

        Raises:
            MemoryError: If not even one image fits.
        """
        return to_uint8(self.make_float(indices, progress, frames, watch), self.rounding)

    def make_float(
        self,
        indices: Sequence[int],
        progress: NoProgress | None = None,
        frames: Frames | None = None,
        watch: Callable[[Step, int], None] | None = None,
    ) -> Tensor:
        """Makes images as `make` does, without rounding them to 8 bits.

        Returns:
            float32 [B, C, H, W] on the CPU, about in [-1, 1]; `undiffuse.pixels.to_units` gives them their units.
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
            if self.pipeline.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(piece) == 1:
                smaller = "" if self.pipeline.config.precision != "fp32" else ": precision=bf16 needs about half"
                raise MemoryError(f"not even one image at a time fits into memory{smaller} ({problem})")
            self._fits = -(-len(piece) // 2)
            if progress is not None:
                progress.advance(before - progress.done)
            if frames is not None:
                frames.discard(piece)
        return torch.cat(done)

    def _make(
        self,
        indices: list[int],
        progress: NoProgress | None,
        frames: Frames | None,
        watch: Callable[[Step, int], None] | None,
    ) -> Tensor:
        # Of a cascade the upsampler may know no classes, and its images have them all the same.
        labels: Any = self.labels(indices) if "y" in self.pipeline.denoiser.conditions else None
        low = None if self.low is None else self.low.images_of(indices)
        more = None if self.given is None else self.given.tensors(indices)

        def on_step(step: Step) -> None:
            if frames is not None and frames.count:
                frames.add(indices, step)
            if watch is not None:
                watch(step, len(indices))

        noise = NoiseSource(self.seed, indices, self.stream)
        x = self.pipeline.from_noise(noise, labels, low, more=more, on_step=on_step, progress=progress)
        return x.to(torch.float32).cpu()
