"""From a network to a denoiser: which number it is told for a noise level, and what its output means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from undiffuse.levels import Chain, Level, named_chain
from undiffuse.prediction import KINDS, FixedVariance, LearnedLogVariance, Prediction, ReverseVariance, VarianceFraction

MOST_STEPS = 1_000_000
VARIANCES = ("range", "direct", "beta", "posterior")
Condition = Mapping[str, Tensor]


class Denoiser(Protocol):
    """x [B, C, H, W], level, conditions by name -> Prediction. `conditions` are the names it can use."""

    chain: Chain

    @property
    def conditions(self) -> frozenset[str]: ...

    def __call__(self, x: Tensor, level: Level, cond: Condition | None = None) -> Prediction: ...


@dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """The diffusion process a network was trained on.

    `schedule`, `steps`  "linear" or "cosine" with any number of steps; or `betas`, which replace both
    `target`             what the network predicts: "eps", "x0", "v", or "mean" of the previous step
    `variance`           of the reverse step: "range" (learned by interpolation, Improved DDPM eq. 15), "direct"
                         (learned log variance), "beta" or "posterior" (fixed; DDPM section 3.2)
    `rescale_timesteps`  the network is told k * 1000 / steps instead of the step number k
    """

    schedule: str = "linear"
    steps: int = 1000
    betas: tuple[float, ...] | None = None
    target: str = "eps"
    variance: str = "range"
    rescale_timesteps: bool = False

    def __post_init__(self) -> None:
        if self.betas is not None:
            object.__setattr__(self, "betas", tuple(self.betas))
            object.__setattr__(self, "steps", len(self.betas))
        if not isinstance(self.steps, int) or not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"a process has from 1 to {MOST_STEPS:,} steps; got {self.steps!r}")
        if self.target not in KINDS:
            raise ValueError(f"unknown prediction target {self.target!r}; choose one of {', '.join(KINDS)}")
        if self.variance not in VARIANCES:
            raise ValueError(f"unknown variance {self.variance!r}; choose one of {', '.join(VARIANCES)}")

    @property
    def learns_variance(self) -> bool:
        return self.variance in ("range", "direct")

    def chain(self) -> Chain:
        """The full chain of levels."""
        return Chain(self.betas) if self.betas is not None else named_chain(self.schedule, self.steps)

    def out_channels(self, image_channels: int) -> int:
        """Output channels a network needs: twice the image's if it also predicts the variance."""
        return 2 * image_channels if self.learns_variance else image_channels


class TimeAdapter:
    """Tells a network the time of a level: the step number in its chain, interpolated in log-SNR between steps."""

    def __init__(self, chain: Chain, rescale: bool) -> None:
        self.chain = chain
        self.scale = 1000.0 / chain.steps if rescale else 1.0

    def __call__(self, level: Level, like: Tensor) -> Tensor:
        """Times [B] in float32 on the device of `like` [B, ...]."""
        index = (self.chain.index_of(level) * self.scale).to(torch.float32)
        return index.expand(like.shape[0]).to(like.device)


def clip_static(x0: Tensor) -> Tensor:
    """Clamp the denoised image to [-1, 1], as the original does."""
    return x0.clamp(-1, 1)


def clip_dynamic(x0: Tensor, quantile: float = 0.995) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022): clamp to [-s, s] and divide by s = max(1, quantile of |x0|)."""
    flat = x0.abs().flatten(1).float()
    s = torch.quantile(flat, quantile, dim=1).clamp(min=1).to(x0.dtype).reshape(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) / s


CLIPS: dict[str, Callable[[Tensor], Tensor] | None] = {"none": None, "static": clip_static, "dynamic": clip_dynamic}


class ChainDenoiser:
    """A network trained on a discrete chain as a denoiser.

    `network(x, t, **conditions)` returns [B, C, H, W], or [B, 2C, H, W] when it also predicts the variance; t is a
    float tensor [B]. `clip` treats the denoised image: "static" (clamp to [-1, 1]), "dynamic", "none", or a function.
    """

    def __init__(self, network: Any, process: ProcessConfig, clip: str | Callable[[Tensor], Tensor] = "static") -> None:
        if isinstance(clip, str) and clip not in CLIPS:
            raise ValueError(f"unknown clipping {clip!r}; choose one of {', '.join(CLIPS)}")
        self.network = network
        self.process = process
        self.chain = process.chain()
        if process.target == "eps" and self.chain.alphas_cumprod[-1] == 0:
            raise ValueError(
                "this chain ends in pure noise (its last beta is 1), where predicted noise says nothing about the "
                "image; predict 'v', 'x0' or 'mean', or use a chain with more steps"
            )
        self.time = TimeAdapter(self.chain, process.rescale_timesteps)
        self.clip = CLIPS[clip] if isinstance(clip, str) else clip

    @property
    def conditions(self) -> frozenset[str]:
        return getattr(self.network, "conditions", frozenset())

    def clipping(self, clip: str | Callable[[Tensor], Tensor]) -> ChainDenoiser:
        """The same denoiser with another treatment of the denoised image."""
        return ChainDenoiser(self.network, self.process, clip)

    def __call__(self, x: Tensor, level: Level, cond: Condition | None = None) -> Prediction:
        """The prediction at x [B, C, H, W] of noise level `level`; the network gets those conditions that it takes."""
        given = {name: value for name, value in (cond or {}).items() if name in self.conditions}
        output = self.network(x, self.time(level, x), **given)
        value, variance = self._split(output, x, level)
        trained = self._trained_step(level) if self.process.target == "mean" else None
        prediction = Prediction(x, level, self.process.target, value, variance, trained=trained, clip=self.clip)
        if self.process.target == "mean":
            prediction = replace(prediction, direct_mean=value)
        return prediction if self.clip is None else prediction.with_x0(self.clip(prediction.x0))

    def _split(self, output: Tensor, x: Tensor, level: Level) -> tuple[Tensor, ReverseVariance]:
        channels = x.shape[1]
        expected = self.process.out_channels(channels)
        if output.shape[1] != expected:
            raise ValueError(
                f"the network returned {output.shape[1]} channels for images of {channels}; with variance="
                f"{self.process.variance!r} it must return {expected}. The process does not belong to this network"
            )
        if not self.process.learns_variance:
            return output, FixedVariance(self.process.variance)
        value, raw = output.split(channels, dim=1)
        if self.process.variance == "range":
            return value, VarianceFraction((raw + 1) / 2)
        return value, LearnedLogVariance(raw, self._trained_step(level))

    def _trained_step(self, level: Level) -> Any:
        index = self.chain.index_of(level)
        whole = index.round().long()
        return self.chain.transition(whole) if bool((index == whole).all()) else None
